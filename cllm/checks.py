"""Numbers and words that users hand in, converted once: callers keep what these return and never the argument.

A NumPy scalar equals the int that it stands for, but JSON refuses it, and a small one overflows in arithmetic: kept in a
frozen record it would break a file, or an entry of a cache, far from here.
"""

from collections.abc import Callable, Iterable
from math import inf
from numbers import Real
from operator import index

import numpy as np

from cllm._build_info import DISTRIBUTION
from cllm.errors import ConfigError

# Keeps a length far inside 64 bits and catches nonsense early.
LARGEST = 1 << 24
LARGEST_SEED = (1 << 63) - 1


def whole_number(value) -> int | None:
    """The int that `value` stands for, be it Python's or NumPy's; None where it is no whole number. Bools are none."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def real_number(value) -> float | None:
    """The float that `value` stands for, be it Python's or NumPy's; None where it is no real number. Bools are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return None


def checked_size(where: str, value, least: int = 1, most: int = LARGEST) -> int:
    """`value` as an int when it is a whole number in `least` .. `most`; otherwise `ConfigError`."""
    number = whole_number(value)
    if number is None or not least <= number <= most:
        raise ConfigError(where, f"must be a whole number from {least} to {most}", shown(value),
                          "Pass an int in that range.")
    return number


def checked_real(where: str, value, low: float = 0.0, high: float = inf, ends: str = "[)") -> float:
    """`value` as a float when it is a finite number between `low` and `high`; otherwise `ConfigError`.

    Parameters
    ----------
    ends : str
        Whether each end is inside, in the signs of an interval: "[)" holds `low` and not `high`.
    """
    number = real_number(value)
    inside = number is not None and (low <= number if ends[0] == "[" else low < number) and (
        number <= high if ends[1] == "]" else number < high)
    if not inside:
        raise ConfigError(where, f"must be a number in {ends[0]}{low:g}, {high:g}{ends[1]}", shown(value),
                          "Pass a float in that range.")
    return number


def checked_flag(where: str, value) -> bool:
    """`value` as a bool when it is True or False, Python's or NumPy's; otherwise `ConfigError`."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ConfigError(where, "must be True or False", shown(value), "Pass a bool.")


def checked_word(where: str, value, allowed: Iterable[str]) -> str:
    """`value` as a str when it is one of those allowed; otherwise `ConfigError`."""
    words = tuple(allowed)
    if not isinstance(value, str) or value not in words:
        raise ConfigError(where, f"must be one of {', '.join(words)}", shown(value), "Choose one of these.")
    return str(value)


def keep(record, where: str, name: str, check: Callable, *limits) -> None:
    """Check a field of a frozen record and put what the check returns in its place; errors name ``where(name=...)``."""
    object.__setattr__(record, name, check(f"{where}({name}=...)", getattr(record, name), *limits))


def shown(value) -> str:
    """`value` as an error shows it: its repr, cut short where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"a {type(value).__name__} of too many digits to show"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"


def installing(extra: str) -> str:
    """What to do where the libraries of an extra are missing, a sentence."""
    return f"Install it with: pip install '{DISTRIBUTION}[{extra}]'."
