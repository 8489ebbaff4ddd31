"""Keep everything that backward reads."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Tape
from cllm.strategies.naming import named, optional_ends


@dataclass(frozen=True, slots=True)
class CacheAll:
    """Fastest per micro-batch, largest.

    Parameters
    ----------
    also : tuple of str
        Optional sites to keep too: "probs", "logits".
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    also: tuple[str, ...] = ()
    micro_batch: int | None = None

    def decide(self, ledger: Ledger) -> Plan:
        children = self.children(ledger, range(ledger.n_blocks))
        return Plan(children, self.micro_batch, ends=optional_ends(ledger, self.also))

    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape, ...]:
        named(ledger, self.also, "CacheAll(also=...)", optional=True)
        return tuple(Tape(b, tuple((e.key, Cache()) for e in ledger.in_block(b) if e.optional and e.group in self.also))
                     for b in blocks)
