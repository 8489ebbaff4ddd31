"""What another strategy keeps, in fewer bits."""

from dataclasses import dataclass

from cllm.errors import ConfigError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Compress
from cllm.schedule.compression import PACKED, ROUNDINGS
from cllm.strategies.cache_all import CacheAll
from cllm.strategies.keeping import keep_as


@dataclass(frozen=True, slots=True)
class Compressed:
    """Values that `base` keeps are stored as bfloat16 or int8; gradients are close, not equal.

    Row statistics stay as they are.

    Parameters
    ----------
    dtype : {"bfloat16", "int8"}
    sites : tuple of str or None
        Groups, names inside a block, or "input" for what blocks and segments are rebuilt from; None is all.
    base : strategy
    rounding : {"nearest", "stochastic"}
        "stochastic" is for int8: up or down at random so that the mean of a copy is the value; the same bits again
        under the same seed and step, whatever the micro-batch and the number of threads.
    micro_batch : int or None
        None leaves it to `base`.
    """

    dtype: str = "bfloat16"
    sites: tuple[str, ...] | None = None
    base: object = CacheAll()
    rounding: str = "nearest"
    micro_batch: int | None = None

    def __post_init__(self):
        if not isinstance(self.dtype, str) or self.dtype not in PACKED:
            raise ConfigError("Compressed(dtype)", f"must be one of {', '.join(PACKED)}", repr(self.dtype),
                              "Choose one of these.")
        if not isinstance(self.rounding, str) or self.rounding not in ROUNDINGS[self.dtype]:
            raise ConfigError("Compressed(rounding)", f"must be one of {', '.join(ROUNDINGS[self.dtype])} for {self.dtype}",
                              repr(self.rounding), "Choose one of these; dtype='int8' knows both.")

    def decide(self, ledger: Ledger) -> Plan:
        return keep_as(Compress(self.dtype, self.rounding), self.sites, self.base, self.micro_batch, ledger, "Compressed")
