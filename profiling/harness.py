"""The one clock of profiling, and what makes its figures worth reading.

A machine with shared cores drifts by tens of per cent within seconds. So nothing is timed alone: contestants take short
bursts in turn with pauses between, and are compared round by round. A ratio is the median over rounds of the paired
ratios; where the two sides' intervals overlap, the ratio says so and never stands alone.

`peers/process.py` gives each contestant a pinned process of its own, `jobs/record.py` writes the result with machine,
build, commit and load. This module needs the standard library alone, so that a contestant's environment needs no more
than the contestant.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from time import perf_counter, process_time, sleep, time

# Between two bursts: long enough for the threads of the one before to fall asleep, and for a power budget to refill.
PAUSE_SECONDS = 0.035


@dataclass(frozen=True, slots=True)
class Timing:
    """Bursts of one contestant: ``rounds[r]`` holds the seconds of each call in round r."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def by_round(self) -> tuple[float, ...]:
        """Median seconds of a call, round by round."""
        return tuple(median(one) for one in self.rounds)

    @property
    def min(self) -> float:
        """Fastest call of all; meaningful for calls under about 20 ms, which fit between two disturbances."""
        return min(min(one) for one in self.rounds)

    @property
    def median(self) -> float:
        """Median over rounds."""
        return median(self.by_round)

    @property
    def max(self) -> float:
        """Slowest call of all."""
        return max(max(one) for one in self.rounds)

    def to_dict(self) -> dict:
        """Plain data: the three figures and every call."""
        return {"min": self.min, "median": self.median, "max": self.max, "rounds": [list(one) for one in self.rounds]}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of `a` over time of `b`, paired by round; it can only be printed whole."""

    value: float
    low: float
    high: float
    intervals_overlap: bool

    def __str__(self) -> str:
        note = "intervals overlap; " if self.intervals_overlap else ""
        return f"{self.value:.2f} ({note}{self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "intervals_overlap": self.intervals_overlap}


def ratio(a: Timing, b: Timing) -> Ratio:
    """Compare two contestants of the same rounds.

    Raises
    ------
    ValueError
        When the two were not measured in the same number of rounds, so that nothing pairs.
    """
    pairs = paired(a, b)
    overlap = max(a.by_round) >= min(b.by_round) and max(b.by_round) >= min(a.by_round)
    return Ratio(median(pairs), min(pairs), max(pairs), overlap)


def paired(a: Timing, b: Timing) -> list[float]:
    """Time of `a` over time of `b`, round by round; errors as `ratio`."""
    if len(a.rounds) != len(b.rounds):
        raise ValueError(f"{len(a.rounds)} rounds cannot be paired with {len(b.rounds)}")
    return [one / other for one, other in zip(a.by_round, b.by_round, strict=True)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The median, and an interval that holds the true median with that confidence at least.

    Its ends are order statistics: each value lies below the true median with probability one half, so the number of those
    that do is binomial, whatever the values' distribution (Conover, Practical Nonparametric Statistics, 3.2). With fewer
    than six values no interval is that sure, and the least and the most are its ends.
    """
    ordered, count = sorted(values), len(values)
    tail, below = 0.0, 0
    while (tail := tail + comb(count, below) / 2 ** count) <= (1 - confidence) / 2:
        below += 1
    low = max(below - 1, 0)
    return median(ordered), ordered[low], ordered[count - 1 - low]


def processor_seconds(call: Callable[[], object]) -> tuple[object, float]:
    """What a call returns, and the seconds of the processor that it took: what other processes do is not in them."""
    begin = process_time()
    result = call()
    return result, process_time() - begin


def burst(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls in a row."""
    seconds = []
    for _ in range(repeats):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return seconds


def pause(seconds: float) -> None:
    """Let so much time go by."""
    sleep(seconds)


def repeats_for(seconds: float, target: float = 0.02, most: int = 200) -> int:
    """How many calls of that length make a burst of about `target` seconds."""
    return max(1, min(most, round(target / max(seconds, 1e-9))))


def wall_clock() -> float:
    """Seconds of the clock that all processes of the machine share, for lining up their records."""
    return time()


def interleave(bursts: Mapping[str, Callable[[], Sequence[float]]], rounds: int,
               tell: Callable[[str], None] = lambda text: None) -> dict[str, Timing]:
    """Let the contestants take their bursts in turn; every second round goes backwards.

    Going back and forth gives each contestant every neighbour, so that none always follows the one that heats most.
    """
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in bursts}
    for number in range(rounds):
        names = list(bursts) if number % 2 == 0 else list(reversed(bursts))
        for name in names:
            tell(f"round {number + 1} of {rounds}: {name}")
            sleep(PAUSE_SECONDS)
            seen[name].append(tuple(bursts[name]()))
    return {name: Timing(tuple(one)) for name, one in seen.items()}


def say(text: str) -> None:
    """Progress, on standard error, one line that overwrites itself on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
