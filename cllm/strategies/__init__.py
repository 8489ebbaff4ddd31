"""Strategies: each a frozen class in a file of its own with ``decide(ledger) -> Plan``.

Ours also have ``children(ledger, blocks)``, the nodes of the plan's tree for a run of blocks, so that `PerBlock` can mix
them. `STRATEGIES` is the registry: one line per strategy, the word before the colon of its name.
"""

from collections.abc import Callable
from typing import Protocol

from cllm.errors import ConfigError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.binomial import Binomial
from cllm.strategies.cache_all import CacheAll
from cllm.strategies.checkmate import Checkmate
from cllm.strategies.chen import ChenGreedy
from cllm.strategies.compressed import Compressed
from cllm.strategies.dtr import DTR
from cllm.strategies.every_nth import EveryNth
from cllm.strategies.knapsack import Knapsack
from cllm.strategies.korthikanti import KorthikantiSelective
from cllm.strategies.memory_budget import MemoryBudget
from cllm.strategies.per_block import PerBlock
from cllm.strategies.products import KeepProducts
from cllm.strategies.recompute_all import RecomputeAll
from cllm.strategies.rotor import Rotor
from cllm.strategies.selective import Selective
from cllm.strategies.spill import Spill
from cllm.strategies.sqrt import Sqrt


class Strategy(Protocol):
    """Anything that decides: a user's own strategy needs no more than this."""

    def decide(self, ledger: Ledger) -> Plan:
        """The plan for the ledger's workload."""


StrategyLike = Strategy | Plan | str  # what calls take: a strategy, what one has decided, or a name

# name -> how to make the strategy from what follows the colon ("" where nothing does)
STRATEGIES: dict[str, Callable[[str], Strategy]] = {
    "cache": lambda text: CacheAll(also=_words(text)),
    "recompute": lambda text: _bare(RecomputeAll, text),
    "every": lambda text: EveryNth(_number("every", text)),
    "bf16": lambda text: Compressed("bfloat16", base=_base(text)),
    "int8": lambda text: Compressed("int8", base=_base(text)),
    "int8-stochastic": lambda text: Compressed("int8", base=_base(text), rounding="stochastic"),
    "spill": lambda text: Spill(text),
    "sqrt": lambda text: _bare(Sqrt, text),
    "binomial": lambda text: Binomial(_number("binomial", text)),
    "budget": lambda text: MemoryBudget(text),
    "chen": lambda text: ChenGreedy(text),
    "rotor": lambda text: Rotor(text),
    "checkmate": lambda text: Checkmate(text),
    "dtr": lambda text: DTR(text),
    "korthikanti": lambda text: _bare(KorthikantiSelective, text),
    "knapsack": lambda text: Knapsack(_share(text)),
    "products": lambda text: _bare(KeepProducts, text),
    "selective": lambda text: Selective(_words(text)) if text else Selective(),
}

BY_SECONDS = (MemoryBudget, ChenGreedy, Rotor, Checkmate, DTR, Knapsack)  # what decides by predicted seconds


def parse(name: str) -> Strategy:
    """The strategy of a name such as ``every:2`` or ``selective:norm+act``; ``@2`` at the end sets micro_batch=2.

    Raises
    ------
    ConfigError
        When there is no such strategy, or its argument is wrong.
    """
    if not isinstance(name, str):
        raise ConfigError("strategy", "must be a strategy, a Plan or a name", repr(name), "See cllm compare --help.")
    body, at, micro = name.rpartition("@") if "@" in name else (name, "", "")
    if name.startswith("spill:") and not micro.isdecimal():  # a directory may have the sign in its name
        body, at, micro = name, "", ""
    kind, _, text = body.partition(":")
    if kind not in STRATEGIES:
        raise ConfigError("strategy", f"must begin with one of {', '.join(STRATEGIES)}", repr(name), "Check the spelling.")
    try:
        strategy = STRATEGIES[kind](text)
        if at and "micro_batch" not in _fields(strategy):
            raise ConfigError(f"strategy {name!r}", "decides on its own micro_batch", repr(at + micro), "Leave it out.")
        return type(strategy)(**{**_fields(strategy), "micro_batch": int(micro)}) if at else strategy
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"strategy {name!r}", "needs a whole number after its sign", repr(text if not at else micro),
                          "Write for example every:2, binomial:3 or cache@2.") from error


def _fields(strategy) -> dict:
    return {name: getattr(strategy, name) for name in strategy.__dataclass_fields__}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("+")) if text else ()


def _base(text: str) -> Strategy:
    """The strategy whose kept values are compressed: ``bf16:selective``; CacheAll where nothing follows."""
    return parse(text) if text else CacheAll()


def _number(kind: str, text: str) -> int:
    return int(text)


def _share(text: str) -> float | str:
    """A number, or what was typed where one belongs, to be refused with its bounds."""
    try:
        return float(text)
    except ValueError:
        return text


def _bare(make: Callable[[], Strategy], text: str) -> Strategy:
    if text:
        raise ConfigError("strategy", f"{make.__name__} takes nothing after a colon", repr(text), "Leave it out.")
    return make()


__all__ = ["DTR", "STRATEGIES", "Binomial", "CacheAll", "Checkmate", "ChenGreedy", "Compressed", "EveryNth", "KeepProducts",
           "Knapsack", "KorthikantiSelective", "MemoryBudget", "PerBlock", "RecomputeAll", "Rotor", "Selective", "Spill",
           "Sqrt", "Strategy", "StrategyLike", "parse"]
