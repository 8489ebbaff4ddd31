"""What strategies share that treat any run of blocks for itself."""

from abc import ABC, abstractmethod

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape


class ByBlocks(ABC):
    """Says what becomes of a run of blocks; a plan is that of all of them."""

    __slots__ = ()
    micro_batch: int | None

    def decide(self, ledger: Ledger) -> Plan:
        return Plan(self.children(ledger, range(ledger.n_blocks)), self.micro_batch)

    @abstractmethod
    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape | Segment, ...]:
        """The nodes of a plan's tree for these blocks."""
