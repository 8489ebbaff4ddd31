"""Sets of (peak, seconds) pairs of which none beats another: what the frontier's recursion passes along.

A child of a plan's tree in one of several ways keeps the same bytes K in all of them, has a peak of its own in each, and
stands before a rest. Under a limit M each of the two is chosen for itself: the fastest way whose own peak is at most M,
and the fastest rest whose peak is at most M - K. Both are staircases in M, and so is their sum: it has as many steps as
both together, not as their product, and at every other limit nothing changes.
"""

from dataclasses import dataclass
from math import log

import numpy as np

ROUNDING = 1e-12  # sums of the same seconds in another order differ by less: no gain, so the fewer bytes win

BINS = 1024  # of peaks, in which pairs that are beaten are looked for before the others are sorted

Part = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Pairs:
    """(peak, seconds) pairs by rising peak and falling seconds, and how each was made: three whole numbers."""

    peak: np.ndarray
    seconds: np.ndarray
    made: np.ndarray

    def __len__(self) -> int:
        return len(self.peak)

    @staticmethod
    def best(parts: list[Part], most: int | None = None) -> "Pairs":
        """Those of all the parts that no other beats; thinned to `most`, half of them evenly in the logarithm of the peak and
        the rest evenly in number, for many may lie close together far above the least."""
        peak, seconds, made = (np.concatenate(column) for column in zip(*parts, strict=True))
        hopeful = _hopeful(peak, seconds)
        order = hopeful[np.lexsort((seconds[hopeful], peak[hopeful]))]
        peak, seconds = peak[order], seconds[order]
        keep = _falls(seconds)
        peak, seconds, made = peak[keep], seconds[keep], made[order[keep]]
        if most is not None and len(peak) > most:
            grid = np.geomspace(max(1.0, peak[0]), peak[-1], most // 2)
            chosen = np.zeros(len(peak), bool)
            chosen[np.clip(np.searchsorted(peak, grid, side="right") - 1, 0, len(peak) - 1)] = True
            chosen[[0, -1]] = True
            others = np.flatnonzero(~chosen)
            chosen[others[np.linspace(0, len(others) - 1, most - chosen.sum()).astype(int)]] = True
            peak, seconds, made = peak[chosen], seconds[chosen], made[chosen]
        return Pairs(peak, seconds, made)


@dataclass(frozen=True, slots=True)
class Ways:
    """Ways of one child that keep the same bytes: own peaks, rising, their seconds, falling, and what `Pairs.made` shall
    say of each."""

    kept: int
    own: np.ndarray
    seconds: np.ndarray
    choice: np.ndarray
    inside: np.ndarray

    def __len__(self) -> int:
        return len(self.own)

    def before(self, rest: Pairs) -> Part:
        """All that is worth having of this child followed by that rest."""
        shifted = self.kept + rest.peak
        peak = np.concatenate((self.own, shifted))
        peak = peak[peak >= max(self.own[0], shifted[0])]
        mine, theirs = self.own.searchsorted(peak, "right") - 1, shifted.searchsorted(peak, "right") - 1
        made = np.empty((len(peak), 3), np.int64)
        made[:, 0], made[:, 1], made[:, 2] = self.choice[mine], self.inside[mine], theirs
        return peak, self.seconds[mine] + rest.seconds[theirs], made


@dataclass(frozen=True, slots=True)
class Tapes:
    """The tapes of a block that no other beats: bytes kept, own peak, seconds, and the number of each."""

    kept: np.ndarray
    own: np.ndarray
    seconds: np.ndarray
    number: np.ndarray

    @staticmethod
    def best(kept: np.ndarray, own: np.ndarray, seconds: np.ndarray) -> "Tapes":
        """Those of all that are not beaten."""
        number = unbeaten(np.column_stack((kept, own, seconds)))
        return Tapes(kept[number], own[number], seconds[number], number)

    def ways(self) -> list[Ways]:
        """Those together that keep the same bytes."""
        found = []
        for nbytes in np.unique(self.kept):
            mine = np.flatnonzero(self.kept == nbytes)
            mine = mine[np.lexsort((self.seconds[mine], self.own[mine]))]
            mine = mine[_falls(self.seconds[mine])]
            number = self.number[mine]
            found.append(Ways(int(nbytes), self.own[mine].astype(float), self.seconds[mine], number, number))
        return found


def best_under(tapes: Tapes, rest: Pairs, segments: list[tuple[Ways, Pairs]], count: int) -> Pairs:
    """The fastest child before its rest under each of `count` limits, spread evenly in the logarithm.

    All tapes stand before the same rest; segments have rests of their own. There is a row for each child. Under a limit, the
    fastest of its ways (a tape has one) and of its rest's pairs are the last that fit; runs of all rows lie end to end.
    """
    taped, others, behind = len(tapes.kept), [w for w, _ in segments], [r for _, r in segments]
    own = np.concatenate((tapes.own, *(w.own for w in others)))
    shifted = np.concatenate(((tapes.kept[:, None] + rest.peak).ravel(), *(w.kept + r.peak for w, r in segments)))
    lengths = np.array([*[1] * taped, *(len(w) for w in others), *[len(rest)] * taped, *(len(r) for r in behind)])
    rows, starts = len(lengths) // 2, np.cumsum(lengths) - lengths
    mine, theirs = starts[:rows], starts[rows:] - len(own)
    last_mine, last_theirs = mine + lengths[:rows] - 1, theirs + lengths[rows:] - 1
    least = np.maximum(own[mine], shifted[theirs]).min()
    most = np.maximum(own[last_mine], shifted[last_theirs]).max()
    limits = max(1.0, least) * np.exp(np.linspace(0.0, log(max(1.0, most) / max(1.0, least)), count))
    limits[0], limits[-1] = least, most
    fit = _within(limits, np.concatenate((own, shifted)), lengths)
    ways, pairs = fit[:rows] - 1, fit[rows:] - 1

    own_seconds = np.concatenate((tapes.seconds, *(w.seconds for w in others)))
    rest_seconds = np.concatenate((np.broadcast_to(rest.seconds, (taped, len(rest))).ravel(), *(r.seconds for r in behind)))
    cost = own_seconds[mine[:, None] + ways] + rest_seconds[theirs[:, None] + pairs]
    cost[(ways < 0) | (pairs < 0)] = np.inf
    winner = cost.argmin(axis=0)
    place = np.arange(count)
    fastest = cost[winner, place]
    place = place[_falls(fastest)]
    winner = winner[place]
    way, pair = mine[winner] + ways[winner, place], pairs[winner, place]
    peak = np.maximum(own[way], shifted[theirs[winner] + pair])
    choice = np.concatenate((tapes.number, *(w.choice for w in others)))
    inside = np.concatenate((tapes.number, *(w.inside for w in others)))
    return Pairs(peak, fastest[place], np.column_stack((choice[way], inside[way], pair)))


def _within(limits: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many values of each run, which lie end to end, are within each limit: an array of runs by limits."""
    columns = len(limits) + 1
    run = np.repeat(np.arange(len(lengths)) * columns, lengths)
    counts = np.bincount(run + limits.searchsorted(values), minlength=len(lengths) * columns)
    return counts.reshape(-1, columns)[:, :-1].cumsum(axis=1)


def _hopeful(peak: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Numbers of pairs, all but most of those that a quicker one of less peak beats: sorting is for the rest."""
    low, high = peak.min(), peak.max()
    if len(peak) < BINS or low == high:
        return np.arange(len(peak))
    place = ((peak - low) * ((BINS - 1) / (high - low))).astype(np.intp)
    least = np.full(BINS + 1, np.inf)
    np.minimum.at(least[1:], place, seconds)
    return np.flatnonzero(seconds <= np.minimum.accumulate(least)[place])


def _falls(seconds: np.ndarray) -> np.ndarray:
    """Where a row of seconds is less than all before it."""
    keep = np.ones(len(seconds), bool)
    keep[1:] = seconds[1:] < np.minimum.accumulate(seconds)[:-1] * (1 - ROUNDING)
    return keep


def unbeaten(costs: np.ndarray) -> np.ndarray:
    """Numbers of the rows that no other equals or betters in every column; of equal rows, the first."""
    number = np.lexsort(costs.T[::-1])
    left, found = costs[number], []
    while len(left):  # what would beat the first row would stand before it
        found.append(number[0])
        others = (left < left[0]).any(axis=1)
        left, number = left[others], number[others]
    return np.sort(np.array(found, np.int64))
