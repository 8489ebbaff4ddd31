"""Validation: the mean loss over windows that do not overlap."""

import numpy as np

from cllm import corpus
from cllm.executor.executor import Executor


def mean_loss(executor: Executor, tokens: np.ndarray, most: int) -> float:
    """Mean loss in nats per token, without dropout.

    Parameters
    ----------
    executor : Executor
        Its shape is that of the batches; a last, smaller one is filled up with rows that do not count.
    tokens : integer array of shape (n,)
    most : int
        Windows at most, spread evenly over the tokens.
    """
    batch, time = executor.workload.batch, executor.workload.time
    starts = corpus.even_starts(len(tokens), time, most)
    total = 0.0
    for first in range(0, len(starts), batch):
        some = starts[first:first + batch]
        inputs, targets = corpus.gather(tokens, np.resize(some, batch), time)
        targets[len(some):] = -1
        total += executor.loss(inputs, targets) * len(some)
    return total / len(starts)
