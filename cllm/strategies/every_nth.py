"""Keep the input of every n-th block; the segment between two is rebuilt whole."""

from dataclasses import dataclass

from cllm.checks import checked_size, keep
from cllm.planner.ledger import Ledger
from cllm.plans.tree import Segment, Tape
from cllm.strategies.by_blocks import ByBlocks


@dataclass(frozen=True, slots=True)
class EveryNth(ByBlocks):
    """Segments of n blocks.

    Parameters
    ----------
    n : int
        Blocks in a segment; the last may be shorter.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    n: int
    micro_batch: int | None = None

    def __post_init__(self):
        keep(self, "EveryNth", "n", checked_size)

    def children(self, ledger: Ledger, blocks: range) -> tuple[Segment, ...]:
        return tuple(Segment(tuple(Tape(b) for b in blocks[i:i + self.n])) for i in range(0, len(blocks), self.n))
