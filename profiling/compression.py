"""What compressed activations do to training: curves of the loss, exact against bfloat16 against int8.

    python profiling/compression.py
    python profiling/compression.py --quick

See jobs/curves.py for what is compared with what.
"""

import argparse
import sys

from jobs import curves

import cllm
from cllm.strategies import parse

NAMES = ("cache", "bf16", "int8", "int8-stochastic")


def main() -> int:
    """Train, print, write; the exit code is 1 when a curve leaves the spread of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    curves.options(parser)
    arguments = parser.parse_args()
    job = curves.job_of(arguments)
    rows = curves.compare("compression", job, {name: curves.Variant(parse(name)) for name in NAMES}, arguments)
    for row in rows:
        plan = cllm.plan(job.config, job.batch_size, job.config.max_seq_len, strategy=row["name"], num_threads=1)
        row["arena_bytes"] = plan.arena_bytes
    return curves.publish("compression", job, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
