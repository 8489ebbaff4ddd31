"""What computing in bfloat16 does to training: curves of the loss in float32 and in bfloat16, and gradients layer by layer.

    python profiling/bfloat16_loss.py --steps 2000 --seeds 6 --out profiling/results/bfloat16_loss.json
    python profiling/bfloat16_loss.py --quick

Operands of products and the values that enter them are bfloat16; sums, the residual stream, statistics, attention, loss,
gradients, weights and the optimizer are float32. The last variant takes attention's own products in bfloat16, too,
which no mode of the engine does (jobs/narrow_attention.py). See jobs/curves.py for what is compared with what; runs that ended
before the script was killed are not repeated.
"""

import argparse
import sys

import numpy as np
from jobs import curves
from jobs.narrow_attention import NarrowConfig

import cllm
from cllm import corpus
from cllm.program.dims import COMPUTES
from cllm.proof.gradient_error import gradient_error

VARIANTS = {**{name: curves.Variant(compute=name) for name in COMPUTES},
            "bfloat16, attention too": curves.Variant(compute="bfloat16", config=NarrowConfig)}


def errors_by_layer(job: curves.Job) -> dict[str, float]:
    """How far the first gradient in bfloat16 is from that in float32, of each layer."""
    model = cllm.GPT(job.config, seed=0, compute="bfloat16")
    text = np.frombuffer(corpus.embedded_text(), np.uint8)
    tokens, targets = corpus.batch(text, job.batch_size, job.config.max_seq_len, 0, seed=0)
    return gradient_error(model, tokens, targets, num_threads=job.threads, against="float32", by_layer=True)


def main() -> int:
    """Train, print, write; the exit code is 1 when a curve leaves the spread of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    curves.options(parser)
    arguments = parser.parse_args()
    job = curves.job_of(arguments)
    errors = errors_by_layer(job)
    width = max(map(len, errors))
    print("relative error of the first gradient",
          *(f"  {name:<{width}} {error:.2e}" for name, error in errors.items()), sep="\n")
    rows = curves.compare("bfloat16_loss", job, VARIANTS, arguments)
    return curves.publish("bfloat16_loss", job, rows, arguments, {"gradient_errors": errors})


if __name__ == "__main__":
    sys.exit(main())
