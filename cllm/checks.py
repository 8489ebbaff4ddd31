"""Checks of single arguments, at every public door: what comes back is a plain int or float."""

from math import isfinite
from numbers import Real

import numpy as np

from cllm.errors import ConfigError

# Keeps a length far inside 64 bits and catches nonsense early.
LARGEST = 1 << 24
LARGEST_SEED = (1 << 63) - 1


def checked_size(where: str, value, least: int = 1, most: int = LARGEST) -> int:
    """`value` as an int when it is a whole number in `least` .. `most`; otherwise `ConfigError`."""
    whole = hasattr(type(value), "__index__") and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ConfigError(where, f"must be a whole number from {least} to {most}", repr(value),
                          "Pass an int in that range.")
    return int(value)


def checked_real(where: str, value, low: float, high: float, lowest_allowed: bool = True) -> float:
    """`value` as a float when it is a number in [low, high), or in (low, high); otherwise `ConfigError`."""
    real = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if not real or not (low <= value if lowest_allowed else low < value) or not value < high:
        raise ConfigError(where, f"must be a number in {'[' if lowest_allowed else '('}{low}, {high})", repr(value),
                          "Pass a float in that range.")
    return float(value)


def checked_bool(where: str, value) -> bool:
    """`value` as a bool when it is one, NumPy's included; otherwise `ConfigError`."""
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(where, "must be True or False", repr(value), "Pass a bool.")
    return bool(value)
