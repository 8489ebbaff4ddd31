"""Adapters beside a base in quantised blocks: what a step takes, with the base read as it lies in its file.

    python profiling/quantised_base.py --directory DIR
    python profiling/quantised_base.py --directory DIR --kinds Q8_0 --strategies cache --set n_layers=12

A LLaMA of 1.7 billion parameters (24 layers, C 2048, F 8192, V 49152) with drawn weights is written as a GGUF file of each
kind, one after the other, into DIR (up to 2 GB, taken away again). Each strategy maps it in a process of its own and steps
adapters on q and v. The peak is the whole process in its steady steps, mapped pages included. It takes the library gguf
(extra ``hf``).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import compare
import harness
import words
from jobs import gguf_files, models, options, record, whole_steps
from views.steps import VIEWS

KINDS = "Q4_0,Q4_1,Q8_0"


def main() -> int:
    """Measure, print, write; the exit code is 1 when a strategy failed or they differ in their losses."""
    arguments = _arguments()
    model = whole_steps.llama(whole_steps.LLAMA_1700M, arguments.set)
    rows, problems = [], []
    for kind in arguments.kinds.split(","):
        with tempfile.TemporaryDirectory(prefix="quantised-base-", dir=arguments.directory) as folder:
            found, wrong = measured(arguments, model, kind, Path(folder) / f"{kind}.gguf")
        rows, problems = rows + found, problems + [f"{kind}: {one}" for one in wrong]
    data = {**options.job_of(arguments, models.with_adapters(model, arguments.rank, None)), "rows": rows, "problems": problems}
    path = record.write_result("quantised_base", arguments.threads, data, arguments.out)
    print(words.aligned(*VIEWS["quantised_base", ""](data)), *problems, f"written: {path}", sep="\n")
    return int(bool(problems))


def measured(arguments, model: dict, kind: str, file: Path) -> tuple[list[dict], list[str]]:
    """Rows of the strategies over a base of this kind, which is written to `file`, and what went wrong."""
    harness.say(f"writing {file.name}")
    weights = gguf_files.write_drawn(file, models.architecture(model), kind)
    asked = models.with_adapters(model, arguments.rank, str(file))
    rows, failed = compare.measure(arguments, asked, options.strategies_of(arguments))
    return ([{"kind": kind, "base_bytes": weights, **row} for row in rows],
            [f"{name} failed: {reason}" for name, reason in failed.items()] + compare.different_losses(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, metavar="DIR", help="where the file lies meanwhile")
    parser.add_argument("--kinds", default=KINDS, metavar="A,B,...", help="of the matrices: F16, BF16, Q8_0, Q4_0 or Q4_1")
    parser.add_argument("--rank", type=options.positive, default=8, help="of the adapters")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change one setting of the model")
    parser.add_argument("--batch-size", type=options.positive, default=1)
    parser.add_argument("--seq-len", type=options.positive, default=512)
    parser.add_argument("--strategies", default="cache,recompute", metavar="A,B,...")
    parser.add_argument("--rounds", type=options.positive, default=3, help="rounds of bursts")
    options.add_common(parser)
    return options.parsed(parser)


if __name__ == "__main__":
    sys.exit(options.run(main))
