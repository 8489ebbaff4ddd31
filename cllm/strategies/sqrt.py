"""Segments of ceil(sqrt(L)) blocks: memory grows with the square root of depth (Chen et al. 2016)."""

from dataclasses import dataclass
from math import isqrt

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment
from cllm.strategies.every_nth import EveryNth


@dataclass(frozen=True, slots=True)
class Sqrt:
    """`EveryNth` with n = ceil(sqrt(number of blocks)).

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def decide(self, ledger: Ledger) -> Plan:
        return Plan(self.children(ledger, range(ledger.n_blocks)), self.micro_batch)

    def children(self, ledger: Ledger, blocks: range) -> tuple[Segment, ...]:
        return EveryNth(1 + isqrt(max(0, len(blocks) - 1))).children(ledger, blocks)
