"""Another strategy for each run of blocks."""

from collections.abc import Mapping
from dataclasses import dataclass

from cllm.checks import whole_number
from cllm.errors import ConfigError
from cllm.planner.ledger import Ledger
from cllm.plans.tree import Segment, Tape
from cllm.strategies.by_blocks import ByBlocks
from cllm.strategies.cache_all import CacheAll


@dataclass(frozen=True, slots=True)
class PerBlock(ByBlocks):
    """``PerBlock({range(0, 3): RecomputeAll()}, default=CacheAll())``

    Parameters
    ----------
    choices : dict of range or int to strategy
        Blocks that no key names take the default; keys may not overlap.
    default : strategy
    micro_batch : int or None
        Sequences at a time; None is the whole batch. Those of the parts are not looked at.
    """

    choices: Mapping[range | int, object]
    default: object = CacheAll()
    micro_batch: int | None = None

    def __post_init__(self):
        if isinstance(self.choices, Mapping):
            object.__setattr__(self, "choices", tuple((k if isinstance(k, range) else whole_number(k), s)
                                                      for k, s in self.choices.items()))
        if not isinstance(self.choices, tuple) or any(k is None for k, _ in self.choices):
            raise ConfigError("PerBlock(choices)", "must map block numbers or ranges of them to strategies",
                              repr(self.choices), "Write for example PerBlock({range(0, 3): cllm.RecomputeAll()}).")
        for strategy in (*(s for _, s in self.choices), self.default):
            if not hasattr(strategy, "children"):
                raise ConfigError("PerBlock(...)", "must mix strategies that can treat a run of blocks", repr(strategy),
                                  "Give yours a children(ledger, blocks) method.")

    def children(self, ledger: Ledger, blocks: range) -> tuple[Tape | Segment, ...]:
        chosen = {}
        for key, strategy in self.choices:
            for block in (key,) if isinstance(key, int) else key:
                if block in chosen or block not in range(ledger.n_blocks):
                    raise ConfigError("PerBlock(choices)", f"must name each of the {ledger.n_blocks} blocks at most once",
                                      f"block {block}", "Choose ranges that do not overlap and end at the last block.")
                chosen[block] = strategy
        nodes: list[Tape | Segment] = []
        start = blocks.start
        while start < blocks.stop:
            strategy = chosen.get(start, self.default)
            stop = start + 1
            while stop < blocks.stop and chosen.get(stop, self.default) is strategy:
                stop += 1
            nodes += strategy.children(ledger, range(start, stop))
            start = stop
        return tuple(nodes)
