"""Selective recomputation of attention's core (Korthikanti et al. 2022)."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.tree import Recompute, Tape
from cllm.strategies.by_blocks import ByBlocks

CORE = ("probs",)


@dataclass(frozen=True, slots=True)
class KorthikantiSelective(ByBlocks):
    """Everything is kept but what grows with T T: scores and probabilities, which are made again in backward.

    The paper's 34 s b h of a layer's s b h (34 + 5 a s / h). Layers of ours that hold them as an optional value make them
    again tile by tile inside their backward, so of them this keeps what `CacheAll` keeps, and the paper's baseline is
    ``CacheAll(also=("probs",))``; a layer that declares a value of the group ``probs`` without that has it dropped.

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape, ...]:
        return tuple(Tape(b, tuple((e.key, Recompute()) for e in ledger.in_block(b) if e.group in CORE and not e.optional))
                     for b in blocks)
