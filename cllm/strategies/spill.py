"""What another strategy keeps, on disk."""

from dataclasses import dataclass, replace

from cllm.errors import ConfigError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import OnDisk
from cllm.strategies.cache_all import CacheAll
from cllm.strategies.keeping import keep_as


@dataclass(frozen=True, slots=True)
class Spill:
    """Values that `base` keeps are written to a file while forward goes on, and fetched before backward asks for them.

    Those of the last block stay in memory, since backward wants them at once. Bits are those of `base`.

    Parameters
    ----------
    directory : str
        On a disk with room for what is spilled.
    sites : tuple of str or None
        Groups, names inside a block, or "input"; None is all.
    base : strategy
    micro_batch : int or None
        None leaves it to `base`.
    """

    directory: str
    sites: tuple[str, ...] | None = None
    base: object = CacheAll()
    micro_batch: int | None = None

    def __post_init__(self):
        if not isinstance(self.directory, str) or not self.directory:
            raise ConfigError("Spill(directory)", "must name a directory", repr(self.directory), "Pass a path on a disk.")

    def decide(self, ledger: Ledger) -> Plan:
        plan = keep_as(OnDisk(), self.sites, self.base, self.micro_batch, ledger, "Spill", but_last=True)
        return replace(plan, spill_directory=self.directory)
