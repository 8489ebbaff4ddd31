"""Axes of pictures: which share of its length a value stands at, and the round numbers beside it."""

from dataclasses import dataclass
from math import ceil, floor, log, log10

FACTORS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))  # of powers of ten, ever more of them
FEWEST = 4  # marks that make a logarithmic axis legible


def round_step(length: float, about: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that takes at most `about` steps for `length`."""
    raw = length / about
    power = 10.0 ** floor(log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))


def round_marks(top: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to just past `top`."""
    if not top > 0:
        return [0.0, 1.0]
    step = round_step(top, about)
    return [step * position for position in range(ceil(top / step - 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Linear:
    """An axis from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def around(cls, values: list[float]) -> "Linear":
        """An axis with room at its ends, from zero where that costs less than a third of it."""
        low, high = min(values), max(values)
        if low <= high / 3:
            return cls(0.0, high * 1.08 or 1.0)
        room = 0.08 * (high - low) or 0.1 * high
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def marks(self, about: int = 6) -> list[float]:
        """Round numbers within."""
        step = round_step(self.high - self.low, about)
        return [step * n for n in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Log:
    """A logarithmic axis from `low` to `high`, both above zero."""

    low: float
    high: float

    @classmethod
    def around(cls, values: list[float]) -> "Log":
        """An axis with room at its ends, never so short that noise fills it."""
        low, high = min(values), max(values)
        room = max((high / low) ** 0.08, 1.05)
        return cls(low / room, high * room)

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        return log(value / self.low) / log(self.high / self.low)

    def marks(self) -> list[float]:
        """Round numbers within: as few of each power of ten as suffice, or even steps where the axis is short."""
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        for factors in FACTORS:
            found = [factor * 10.0 ** power for power in powers for factor in factors]
            found = [mark for mark in found if self.low <= mark <= self.high]
            if len(found) >= FEWEST:
                return found
        return Linear(self.low, self.high).marks(8)
