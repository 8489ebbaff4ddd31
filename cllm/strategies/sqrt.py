"""Segments of ceil(sqrt(L)) blocks: memory grows with the square root of depth (Chen et al. 2016)."""

from dataclasses import dataclass
from math import isqrt

from cllm.planner.ledger import Ledger
from cllm.plans.tree import Segment
from cllm.strategies.by_blocks import ByBlocks
from cllm.strategies.every_nth import EveryNth


@dataclass(frozen=True, slots=True)
class Sqrt(ByBlocks):
    """`EveryNth` with n = ceil(sqrt(number of blocks)).

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def children(self, ledger: Ledger, blocks: range) -> tuple[Segment, ...]:
        return EveryNth(1 + isqrt(max(0, len(blocks) - 1))).children(ledger, blocks)
