"""At most `slots` block inputs at a time, rebuilt with the fewest block advances (Griewank and Walther 2000, revolve)."""

from dataclasses import dataclass
from functools import cache

from cllm.checks import checked_size, keep
from cllm.planner.ledger import Ledger
from cllm.plans.tree import Segment, Tape
from cllm.strategies.by_blocks import ByBlocks


@cache
def advances(n: int, slots: int) -> tuple[int, int]:
    """Fewest advances that reverse a chain of n blocks with that many stored inputs, and the first split.

    The recursion t(n, c) = min over m of m + t(n - m, c - 1) + t(m, c), with t(1, c) = 0 and one slot left for the
    chain's own input; its closed form is r n - C(c + r, r - 1), r the least with C(c + r, c) >= n.
    """
    if n == 1:
        return 0, 0
    if slots == 1:
        return n * (n - 1) // 2, n - 1
    return min((m + advances(n - m, slots - 1)[0] + advances(m, slots)[0], m) for m in range(1, n))


@dataclass(frozen=True, slots=True)
class Binomial(ByBlocks):
    """The optimal schedule for a chain of equal blocks.

    Parameters
    ----------
    slots : int
        Block inputs that may be stored at once, block 0's among them.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    slots: int
    micro_batch: int | None = None

    def __post_init__(self):
        keep(self, "Binomial", "slots", checked_size)

    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape | Segment, ...]:
        return _reverse(blocks, min(self.slots, len(blocks))) if blocks else ()


def _reverse(blocks: range, slots: int) -> tuple[Tape | Segment, ...]:
    """Nodes that run the blocks forward and backward while their input is stored in one of the slots."""
    nodes: list[Tape | Segment] = []
    while len(blocks) > 1:
        split = advances(len(blocks), slots)[1]
        nodes.append(Segment(_reverse(blocks[:split], slots)))
        blocks, slots = blocks[split:], max(1, slots - 1)
    return (*nodes, Tape(blocks[0]))
