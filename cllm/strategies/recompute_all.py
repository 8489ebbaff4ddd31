"""Keep block inputs only (full activation checkpointing, one block a segment)."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.tree import Segment, Tape
from cllm.strategies.by_blocks import ByBlocks


@dataclass(frozen=True, slots=True)
class RecomputeAll(ByBlocks):
    """Each block is rebuilt from its input in its own backward.

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def children(self, ledger: Ledger, blocks: range) -> tuple[Segment, ...]:
        return tuple(Segment((Tape(b),)) for b in blocks)
