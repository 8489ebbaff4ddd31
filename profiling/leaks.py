"""A thousand steps: does memory, the number of threads or of descriptors grow?

    python profiling/leaks.py
    python profiling/leaks.py --steps 100 --spill-to DIR

Each strategy trains a tiny model in a fresh process, whole steps with clipping, optimizer and an evaluation; so does one
with gradients in the arena and states on disk. After some steps that warm up, what the process holds is written down at
even distances: resident bytes, bytes that Python's allocators hand out, threads (the system's count), open descriptors, files
in the directory for what is on disk. A thread, a descriptor or a file more is growth, and so are resident bytes that rise by
more than allocators and interpreter caches move about: 2 MiB. A kept value that was lost at every step would show as many
times that.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import harness
from jobs import models, options, record
from peers import process

NOISE_BYTES = 2 << 20
CONFIG = {"vocab_size": 256, "n_layers": 3, "d_model": 32, "n_heads": 2, "d_ff": 128, "max_seq_len": 32}
BATCH, TIME = 4, 32


def main() -> int:
    """Run, print, write; the exit code is 1 when something grew."""
    arguments = _arguments()
    model = models.asked(arguments, CONFIG)
    with tempfile.TemporaryDirectory(dir=arguments.spill_to) as folder:
        rows = []
        for name, strategy, states in (("cache", "cache", None), ("recompute", "recompute", None),
                                       ("spill", f"spill:{folder}", None), ("states", "recompute", f"disk:{folder}")):
            harness.say(name)
            with process.Peer("peers/cllm/leaks.py", arguments.threads) as peer:
                samples = peer.ask("train", model=model, batch_size=BATCH, seq_len=arguments.seq_len, strategy=strategy,
                                   steps=arguments.steps, threads=arguments.threads, states=states, folder=folder)
            rows.append({"name": name, "samples": samples, **judged(samples)})
    harness.say("")
    path = record.write_result("leaks", arguments.threads, {
        **models.recorded(model), "batch_size": BATCH, "seq_len": arguments.seq_len, "steps": arguments.steps,
        "rows": rows}, arguments.out)
    for row in rows:
        print(f"{row['name']:10s} after {arguments.steps} steps: resident {row['resident_growth_bytes']:+,} bytes, Python "
              f"{row['python_growth_bytes']:+,} bytes, threads {row['threads_growth']:+d}, descriptors "
              f"{row['descriptors_growth']:+d}, files {row['files_growth']:+d}{'' if row['holds'] else '  GREW'}")
    print(f"\nwritten: {path}")
    return int(not all(row["holds"] for row in rows))


def judged(samples: list[dict]) -> dict:
    """Growth from the first sample to the last, and whether that is none."""
    grown = {f"{name}_growth{'_bytes' if name in ('resident', 'python') else ''}": samples[-1][name] - samples[0][name]
             for name in ("resident", "python", "threads", "descriptors", "files")}
    holds = (grown["threads_growth"] == grown["descriptors_growth"] == grown["files_growth"] == 0
             and grown["resident_growth_bytes"] < NOISE_BYTES and grown["python_growth_bytes"] < NOISE_BYTES)
    return {**grown, "holds": holds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    models.add_options(parser, preset=None)
    parser.set_defaults(seq_len=TIME)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spill-to", type=Path, default=None, metavar="DIR", help="on a disk (default: the system's "
                                                                                  "directory for temporary files)")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json", help="where to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(options.run(main))
