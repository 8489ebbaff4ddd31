"""What a step costs in Python: a tiny model's step with every kernel replaced by a call that does nothing.

    python profiling/overhead.py

What is left is the interpreter's share: the executor's loop over bound calls, the layers' methods, the checks of a batch.
The same step with its kernels stands beside it.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest import mock

import harness
import numpy as np

from cllm import GPT, Executor, ModelConfig, _kernels

BATCH, TIME = 4, 32
STEPS = 200


def main() -> int:
    """Measure and write JSON."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    model = GPT(ModelConfig.preset("tiny"))
    tokens, targets = np.random.default_rng(0).integers(0, 256, (2, BATCH, TIME))
    rows = []
    for strategy in ("cache", "recompute", "cache@1"):
        executor = Executor(model, BATCH, TIME, strategy=strategy, num_threads=arguments.threads)
        for what, steps in (("with kernels", _steps), ("Python alone", _steps_without_kernels)):
            steps(executor, tokens, targets, STEPS)
            seconds = [harness.burst(lambda run=steps, ex=executor: run(ex, tokens, targets, STEPS), 1)[0] / STEPS
                       for _ in range(arguments.rounds)]
            operations = executor.schedule.n_micro * len(executor.schedule.ops)
            rows.append({"strategy": strategy, "what": what, "operations": operations,
                         "seconds": {"min": min(seconds), "median": median(seconds), "max": max(seconds)}})
            model.zero_grad()
    path = harness.write_result("overhead", arguments.threads, {"batch_size": BATCH, "seq_len": TIME, "rows": rows},
                                arguments.out)
    for row in rows:
        print(f"{row['strategy']:<10} {row['what']:<13} {row['operations']:>4} operations  "
              f"{row['seconds']['median'] * 1e3:.3f} ms a step")
    print(f"\nwritten: {path}")
    return 0


def _steps(executor: Executor, tokens, targets, count: int) -> None:
    for _ in range(count):
        executor.loss_and_grad(tokens, targets)


def _steps_without_kernels(executor: Executor, tokens, targets, count: int) -> None:
    def nothing(*arguments, **named):
        return -1  # also the executor's answer to "where is the first value that is not finite?"

    with ExitStack() as stack:
        for name in dir(_kernels):
            sizes = name.endswith(("workspace", "bytes"))
            if callable(getattr(_kernels, name)) and not sizes and not name.startswith("_") and not name.endswith("Error"):
                stack.enter_context(mock.patch.object(_kernels, name, nothing))
        _steps(executor, tokens, targets, count)


if __name__ == "__main__":
    sys.exit(main())
