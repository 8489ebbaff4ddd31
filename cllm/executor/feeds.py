"""What a step reads from outside, in arrays that bound calls hold: the batch, its loss, the key of dropout."""

import numpy as np

from cllm.executor.batches import checked_batch, checked_tokens
from cllm.program.declare import FEEDS
from cllm.program.dims import resolve
from cllm.program.workload import Workload

BATCHED = ("tokens", "targets")


class Feeds:
    """The feeds of one executor (`declare.FEEDS` lists them).

    Parameters
    ----------
    workload : Workload
    micro_batch : int
        Sequences at a time.

    Attributes
    ----------
    part : dict of arrays by name
        Tokens and targets of the micro-batch under way, and what a step has one of.
    whole : dict of arrays by name
        The same with the tokens and targets of the whole batch.
    """

    def __init__(self, workload: Workload, micro_batch: int):
        self._workload, self._micro_batch = workload, micro_batch
        letters = workload.letters(micro_batch)
        self.part = {name: np.zeros(resolve(shape, letters), dtype) for name, (shape, dtype) in FEEDS.items()}
        self.whole = {**self.part, **{name: np.empty(resolve(FEEDS[name][0], workload.letters()), FEEDS[name][1])
                                      for name in BATCHED}}

    def take(self, tokens, targets, num_targets: int | None = None) -> int:
        """Check a batch, copy it, and return the divisor of its loss, which begins at zero."""
        tokens, targets, count = checked_batch(self._workload, tokens, targets, num_targets)
        self.whole["tokens"][...] = tokens
        self.whole["targets"][...] = targets
        self.part["scale"][0] = 1.0 / count
        self.part["loss"][0] = 0.0
        return count

    def take_tokens(self, tokens) -> None:
        """Check and copy tokens that have no targets."""
        self.whole["tokens"][...] = checked_tokens(self._workload, tokens)

    def key(self, seed: int, step: int) -> None:
        """What dropout draws from in this step, beside the place of a micro-batch."""
        self.part["key"][:2] = seed, step

    def cuts(self) -> list[tuple[int, int]]:
        """The first sequence of each micro-batch, and how many it has."""
        micro, batch = self._micro_batch, self._workload.batch
        return [(start, min(micro, batch - start)) for start in range(0, batch, micro)]

    def place(self, start: int, size: int) -> None:
        """Make a micro-batch the one under way."""
        for name in BATCHED:
            self.part[name][:size] = self.whole[name][start:start + size]
        self.part["key"][2] = start * self._workload.time

    def of(self, size: int) -> dict[str, np.ndarray]:
        """`part` for a micro-batch of so many sequences."""
        return {name: array[:size] if name in BATCHED else array for name, array in self.part.items()}
