"""Do a processor's instructions for bfloat16 compute what their definitions say, and how fast are they from registers?

    python profiling/bfloat16_instructions.py
    python profiling/bfloat16_instructions.py --out profiling/results/bfloat16_instructions.json

Needs a C compiler and Python, nothing else: no cllm, no NumPy. Of what the processor lacks it says so. The float32
multiply-add with subnormals flushed is tried against the same definition, by which products in bfloat16 are computed where
there is neither instruction. The exit code is 1 when a bit differs on finite numbers.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "machine" / "bfloat16_instructions.c"
WORDS = {"float32_fma_256": "float32 multiply-add, 256 bits, subnormals flushed",
         "vdpbf16ps_512": "VDPBF16PS, 512 bits (AVX512-BF16)", "tdpbf16ps": "TDPBF16PS (AMX)"}


def measured(compiler: str = os.environ.get("CC", "cc")) -> dict:
    """What the program says of each instruction, None where the processor lacks it; `OSError` or
    `subprocess.CalledProcessError` where it cannot be built or run."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "probe")
        subprocess.run([compiler, "-O3", "-ffp-contract=off", str(SOURCE), "-o", program, "-lm"], check=True)
        return json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def processor() -> str:
    """The model's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def lines_of(found: dict) -> list[str]:
    """A line for each instruction."""
    lines = []
    for name, words in WORDS.items():
        one = found[name]
        lines.append(f"{words}: not on this processor, not tried" if one is None else
                     f"{words}: {one['differ']} of {one['tried']:,} differ from the definition, "
                     f"{one['differ_with_infinity_or_nan']} of as many with infinity and NaN; "
                     f"{one['operations_per_second'] / 1e9:.0f} GFLOP/s on one core from registers")
    return lines


def main() -> int:
    """Build, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json")
    arguments = parser.parse_args()
    found = measured()
    print(processor(), *lines_of(found), sep="\n")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"cpu": processor(), "instructions": found}, indent=1) + "\n", encoding="utf-8")
    return int(any(one is not None and one["differ"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
