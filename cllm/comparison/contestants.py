"""What a comparison compares, by the names that its rows have."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass

from cllm.errors import ConfigError
from cllm.plans.plan import Plan
from cllm.strategies import CacheAll, parse


def labelled(strategies: Iterable) -> dict[str, object]:
    """Strategies, plans and names by what they are called in a report: a name by itself, an object by its class and the
    settings that are not the class's own; a second of one name gets a number.

    Raises
    ------
    ConfigError
        When there is none, a name is unknown or there twice, or something is no strategy.
    """
    found: dict[str, object] = {}
    alone = isinstance(strategies, (str, Plan)) or hasattr(strategies, "decide")
    if not alone and not isinstance(strategies, Iterable):
        raise ConfigError("strategies", "must be an iterable of strategies, plans and names", repr(strategies),
                          "Pass for example ['cache', 'recompute'].")
    for strategy in [strategies] if alone else strategies:
        label = _label(strategy)
        if isinstance(strategy, str) and label in found:
            raise ConfigError("strategies", "must each be there once", f"{label!r} twice", "Leave one out.")
        number = 1
        while label in found:
            number += 1
            label = f"{_label(strategy)} ({number})"
        found[label] = strategy
    if not found:
        raise ConfigError("strategies", "must have at least one", "none", "Pass for example ['cache', 'recompute'].")
    return found


def reference_of(strategies: Mapping[str, object]) -> str | None:
    """Label of the strategy that keeps everything, to which others are compared; None where it is not among them."""
    return next((label for label, one in strategies.items() if one == "cache" or type(one) is CacheAll and one == CacheAll()),
                None)


def _label(strategy) -> str:
    if isinstance(strategy, str):
        parse(strategy)
        return strategy
    if isinstance(strategy, Plan):
        return "plan"
    if isinstance(strategy, type) or not callable(getattr(strategy, "decide", None)):
        raise ConfigError("strategies", "must be strategies, plans or names", repr(strategy),
                          "Pass for example 'every:2', cllm.CacheAll(), or an object with decide(ledger).")
    name = type(strategy).__name__
    if not is_dataclass(strategy):
        return name
    told = [f"{f.name}={getattr(strategy, f.name)!r}" for f in fields(strategy) if not _is_default(f, strategy)]
    return f"{name}({', '.join(told)})" if told else name


def _is_default(field, strategy) -> bool:
    made = field.default_factory() if field.default_factory is not MISSING else field.default
    return bool(made is not MISSING and made == getattr(strategy, field.name))
