"""Keep block inputs only (full activation checkpointing, one block a segment)."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape


@dataclass(frozen=True, slots=True)
class RecomputeAll:
    """Each block is rebuilt from its input in its own backward.

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def decide(self, ledger: Ledger) -> Plan:
        return Plan(self.children(ledger, range(ledger.n_blocks)), self.micro_batch)

    def children(self, ledger: Ledger, blocks: range) -> tuple[Segment, ...]:
        return tuple(Segment((Tape(b),)) for b in blocks)
