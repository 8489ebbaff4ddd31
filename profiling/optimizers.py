"""What optimizers of less state do to training: curves of the loss beside AdamW's, seed by seed.

    python profiling/optimizers.py --out profiling/results/optimizers.json
    python profiling/optimizers.py --quick

AdamW8bit alone, and with AdamW for embeddings, have AdamW's rates. Adafactor's rate is a share of each parameter's size: at the
default rate of 2e-3, five times as much is its paper's highest, and fifty times moves a matrix of deviation 0.02 as AdamW does.
See jobs/curves.py for what is compared with what.
"""

import argparse
import sys

from jobs import curves

import cllm
from cllm.program.workload import Workload
from cllm.schedule.report import optimizer_bytes

VARIANTS = {"adamw": curves.Variant(), "adamw8bit": curves.Variant(optimizer="adamw8bit"),
            "*emb.weight=adamw,adamw8bit": curves.Variant(optimizer="*emb.weight=adamw,adamw8bit"),
            "adafactor, rate x 5": curves.Variant(optimizer="adafactor", rate=5.0),
            "adafactor, rate x 50": curves.Variant(optimizer="adafactor", rate=50.0)}


def main() -> int:
    """Train, print, write; the exit code is 1 when bytes are not what they must be. Curves may leave the spread of seeds: these
    optimizers are others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    curves.options(parser)
    arguments = parser.parse_args()
    job = curves.job_of(arguments)
    rows = curves.compare("optimizers", job, VARIANTS, arguments)
    for row in rows:
        work = Workload(job.batch_size, job.config.max_seq_len, optimizer=VARIANTS[row["name"]].optimizer)
        row["state_bytes"] = optimizer_bytes(cllm.GPT(job.config).program, work)
    curves.publish("optimizers", job, rows, arguments)
    return int(not rows[1]["state_bytes"] < 0.3 * rows[0]["state_bytes"])


if __name__ == "__main__":
    sys.exit(main())
