"""Segments of about equal bytes, greedily (Chen et al. 2016, algorithm 3)."""

from dataclasses import dataclass

import numpy as np

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape
from cllm.strategies.limits import Attempt, UnderALimit

MOST = 64  # plans that are evaluated


@dataclass(frozen=True, slots=True)
class ChenGreedy(UnderALimit):
    """A segment ends with the block with which the bytes that its blocks would keep pass a budget b.

    The paper searches for b; here every b that gives other segments is tried (on deep networks, 64 of them), and the fastest
    plan that keeps the limit is taken, of equal ones the smallest. The last segment is taped, not dropped, as in the usual
    implementations: backward begins with it.

    Parameters
    ----------
    limit : int or str
        Of total bytes, as of `MemoryBudget`.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    limit: int | str
    micro_batch: int | None = None

    def attempts(self, ledger: Ledger) -> Attempt:
        sizes = [0] * ledger.n_blocks
        for entry in ledger.entries.values():
            if entry.block is not None and not entry.optional:
                sizes[entry.block] += entry.nbytes
        runs = {sum(sizes[i:j]) for i in range(len(sizes)) for j in range(i + 1, len(sizes) + 1)}
        every = [*dict.fromkeys(_segments(sizes, b) for b in (0, *sorted(runs)))]
        plans = [Plan(every[n], self.micro_batch) for n in sorted({*np.linspace(0, len(every) - 1, MOST, dtype=int).tolist()})]
        costs = [ledger.evaluate(plan) for plan in plans]
        fixed = ledger.graph(self.micro_batch).fixed_bytes

        def attempt(room: int) -> Plan | None:
            fits = [(c.seconds, c.arena_bytes, n) for n, c in enumerate(costs) if c.total_bytes <= room + fixed]
            return plans[min(fits)[2]] if fits else None

        return attempt


def _segments(sizes: list[int], budget: int) -> tuple[Tape | Segment, ...]:
    """The greedy segments of a budget."""
    nodes: list[Tape | Segment] = []
    first, nbytes = 0, 0
    for block, size in enumerate(sizes):
        nbytes += size
        if nbytes > budget and block + 1 < len(sizes):
            nodes.append(Segment(tuple(map(Tape, range(first, block + 1)))))
            first, nbytes = block + 1, 0
    return (*nodes, *map(Tape, range(first, len(sizes))))
