"""Validation: the mean loss over windows that do not overlap, what it means, and how long it has not been bettered."""

from collections.abc import Callable
from functools import cached_property
from math import exp, log

import numpy as np

from cllm import corpus
from cllm.errors import NonFiniteError
from cllm.executor.executor import Executor

LARGEST_EXPONENT = 700.0  # beyond it exp overflows


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


def window_losses(executor: Executor, ids: np.ndarray, count: int) -> list[float]:
    """The loss of each window ``ids[k T : k T + T + 1]``, k < count, in nats per token.

    Parameters
    ----------
    executor : Executor
        Of B = 1.
    ids : integer array of shape (n,)
        At least ``count * T + 1``.
    count : int
    """
    time = executor.workload.time
    found = []
    for start in range(0, count * time, time):
        window = np.asarray(ids[start:start + time + 1], np.int32)[None]
        found.append(float(executor.loss(np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:]))))
    return found


class Validation:
    """What validation losses mean: which is the best, for how long there was none, and what they are in other units.

    Parameters
    ----------
    source : Windowed or Drawn
    in_nats : bool
        Whether the model's loss is, so that it has a perplexity.
    keeper : Keeper
        Remembers the best.
    """

    def __init__(self, source, in_nats: bool, keeper):
        self._source, self._is_entropy, self._keeper = source, in_nats, keeper

    @cached_property
    def _bytes_per_token(self) -> float | None:
        return self._source.bytes_per_token

    def look(self, step: int, evaluate: Callable[[], float]) -> dict:
        """Evaluate after `step` steps: the record of an "evaluation". A model that has diverged has no loss, and the
        untrained one is never the best: it has no snapshot."""
        try:
            loss = evaluate()
        except NonFiniteError:
            loss = None
        best = False
        if loss is not None:
            self._keeper.proven = step
            best = step > 0 and self._keeper.is_better(step, loss)
        entropy = loss if self._is_entropy else None
        return {"val_loss": loss, "perplexity": perplexity_of(entropy),
                "bits_per_byte": None if entropy is None else bits_per_byte(entropy, self._bytes_per_token), "best": best,
                "since_best": self._keeper.since_best}


def bytes_per_token(data, tokens: np.ndarray, time: int, most: int) -> float | None:
    """Bytes of text that a target of `mean_loss` stands for, in the mean; None where no tokenizer knows."""
    starts = corpus.even_starts(len(tokens), time, most)
    nbytes = [data.bytes_of(tokens[start + 1:start + 1 + time]) for start in starts.tolist()]
    return None if not nbytes or None in nbytes else sum(nbytes) / (len(starts) * time)


def perplexity_of(loss: float | None) -> float | None:
    """exp of a loss in nats; None where there is none, or it is beyond every float."""
    return None if loss is None or loss > LARGEST_EXPONENT else exp(loss)


def bits_per_byte(loss: float, nbytes: float | None) -> float | None:
    """A loss in bits per byte of text, what tokenizers can be compared by; `nbytes` are those of a token."""
    return loss / log(2) / nbytes if nbytes else None
