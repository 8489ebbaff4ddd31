"""Keep all but some sites, which are rebuilt from what is kept (Korthikanti et al. 2022)."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.tree import Recompute, Tape
from cllm.strategies.by_blocks import ByBlocks
from cllm.strategies.naming import named


@dataclass(frozen=True, slots=True)
class Selective(ByBlocks):
    """Dropping what is cheap to rebuild: normalised rows and activations cost no product.

    Parameters
    ----------
    recompute : tuple of str
        Groups (norm, act, attn, mlp, residual) or names inside a block ("ln1.y").
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    recompute: tuple[str, ...] = ("norm", "act")
    micro_batch: int | None = None

    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape, ...]:
        chosen = named(ledger, self.recompute, "Selective(recompute=...)", optional=False)
        return tuple(Tape(b, tuple((e.key, Recompute()) for e in chosen if e.block == b)) for b in blocks)
