"""What mixed precision does to training: curves of the loss with bfloat16 weights, activations, and both.

    python profiling/mixed_precision_loss.py
    python profiling/mixed_precision_loss.py --quick

Forward and backward see matrices that are rounded to bfloat16 at the start of each step, and backward reads activations
that were kept as bfloat16; sums are float32, and the optimizer goes on from float32 master weights. See jobs/curves.py for
what is compared with what.
"""

import argparse
import sys

import numpy as np
from jobs import curves

import cllm
from cllm import _kernels


def rounded(matrix: np.ndarray) -> np.ndarray:
    """The matrix as bfloat16 keeps it."""
    copy, back = np.empty(matrix.size, np.uint16), np.empty(matrix.size, np.float32)
    _kernels.compress_bfloat16(matrix.reshape(-1), y=copy)
    _kernels.expand_bfloat16(copy, y=back)
    return back.reshape(matrix.shape)


VARIANTS = {"float32": curves.Variant(),
            "bfloat16 weights": curves.Variant(working_copy=rounded),
            "bfloat16 weights, activations": curves.Variant(cllm.Compressed("bfloat16"), rounded)}


def main() -> int:
    """Train, print, write; the exit code is 1 when a curve leaves the spread of seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    curves.options(parser)
    arguments = parser.parse_args()
    job = curves.job_of(arguments)
    rows = curves.compare("mixed_precision_loss", job, VARIANTS, arguments)
    return curves.publish("mixed_precision_loss", job, rows, arguments)


if __name__ == "__main__":
    sys.exit(main())
