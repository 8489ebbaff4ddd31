"""Sets of (peak, seconds) pairs of which none beats another: what the frontier's recursion passes along.

A child of a plan's tree in one of several ways keeps the same bytes K in all of them, has a peak of its own in each, and
stands before a rest. Under a limit M each of the two is chosen for itself: the fastest way whose own peak is at most M,
and the fastest rest whose peak is at most M - K. Both are staircases in M, and so is their sum: it has as many steps as
both together, not as their product, and at every other limit nothing changes.
"""

from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-12  # sums of the same seconds in another order differ by less: no gain, so the fewer bytes win

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
        order = np.lexsort((seconds, peak))
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

    def before(self, rest: Pairs) -> Part:
        """All that is worth having of this child followed by that rest."""
        shifted = self.kept + rest.peak
        peak = np.concatenate((self.own, shifted))
        peak = peak[peak >= max(self.own[0], shifted[0])]
        mine, theirs = np.searchsorted(self.own, peak, "right") - 1, np.searchsorted(shifted, peak, "right") - 1
        made = np.column_stack((self.choice[mine], self.inside[mine], theirs))
        return peak, self.seconds[mine] + rest.seconds[theirs], made


def tape_ways(kept: np.ndarray, own: np.ndarray, seconds: np.ndarray) -> list[Ways]:
    """The tapes of a block, those together that keep the same bytes."""
    number = np.arange(len(kept))
    found = []
    for nbytes in np.unique(kept):
        mine = number[kept == nbytes]
        mine = mine[np.lexsort((seconds[mine], own[mine]))]
        mine = mine[_falls(seconds[mine])]
        found.append(Ways(int(nbytes), own[mine].astype(float), seconds[mine], mine, mine))
    return found


def best_under(tapes: tuple[np.ndarray, np.ndarray, np.ndarray], rest: Pairs, segments: list[tuple[Ways, Pairs]],
               count: int) -> Pairs:
    """The fastest child before its rest under each of `count` limits, spread evenly in the logarithm.

    `tapes` are (kept, own peak, seconds) of each tape, all before the same rest; segments have rests of their own.
    """
    kept, own, seconds = tapes
    least = min([np.maximum(own, kept + rest.peak[0]).min(), *(max(w.own[0], w.kept + r.peak[0]) for w, r in segments)])
    most = max([np.maximum(own, kept + rest.peak[-1]).max(), *(max(w.own[-1], w.kept + r.peak[-1]) for w, r in segments)])
    limits = np.geomspace(max(1.0, least), max(1.0, most), count)
    limits[0], limits[-1] = least, most
    rows = len(kept) + len(segments)
    cost, peak = np.empty((2, rows, count))
    inside, after = np.empty((2, rows, count), np.int64)
    choice = np.concatenate((np.arange(len(kept)), [w.choice[0] for w, _ in segments])).astype(np.int64)
    top = slice(0, len(kept))
    inside[top] = choice[top, None]
    after[top] = rest.peak.searchsorted(limits - kept[:, None], "right") - 1
    cost[top] = seconds[:, None] + rest.seconds[after[top]]
    cost[top][(after[top] < 0) | (limits < own[:, None])] = np.inf
    peak[top] = np.maximum(own[:, None], kept[:, None] + rest.peak[after[top]])
    for row, (ways, theirs) in enumerate(segments, len(kept)):
        mine = ways.own.searchsorted(limits, "right") - 1
        after[row] = theirs.peak.searchsorted(limits - ways.kept, "right") - 1
        inside[row] = ways.inside[mine]
        cost[row] = ways.seconds[mine] + theirs.seconds[after[row]]
        cost[row, (mine < 0) | (after[row] < 0)] = np.inf
        peak[row] = np.maximum(ways.own[mine], ways.kept + theirs.peak[after[row]])
    winner = cost.argmin(axis=0)
    place = np.arange(count)
    place = place[_falls(cost[winner, place])]
    winner = winner[place]
    made = np.column_stack((choice[winner], inside[winner, place], after[winner, place]))
    return Pairs(peak[winner, place], cost[winner, place], made)


def _falls(seconds: np.ndarray) -> np.ndarray:
    """Where a row of seconds is less than all before it."""
    keep = np.ones(len(seconds), bool)
    keep[1:] = seconds[1:] < np.minimum.accumulate(seconds)[:-1] * (1 - ROUNDING)
    return keep
