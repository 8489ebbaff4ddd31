"""One slab for everything that a step needs: lifetimes give offsets, offsets give the peak, before step 1."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cllm import _kernels as kernels
from cllm.schedule.operations import Buffer, Schedule

ROUNDS = 60  # of placing all buffers in one order and those that follow from it
PIECE = 64  # operations, for which first fit keeps lists of what is alive; doubled until the lists together are not longer
MOST_ROWS = 8  # than so many times the number of buffers
SEARCH = 1 << 16  # buffers placed in all, where no order alone meets the bound: a second


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets of a schedule's buffers in one slab.

    Attributes
    ----------
    offsets : tuple of int
        Byte offset of each buffer, a multiple of `cllm.program.dims.ALIGNMENT`.
    nbytes : int
        Size of the slab: the peak.
    live_bytes : tuple of int
        For each operation, the bytes of the buffers that are alive while it runs; their maximum bounds `nbytes` from
        below.
    """

    offsets: tuple[int, ...]
    nbytes: int
    live_bytes: tuple[int, ...]


def lay_out(schedule: Schedule) -> Arena:
    """Give every buffer a place; two that are alive at once never overlap.

    Dynamic storage allocation is NP-hard. Greedy first fit from the bottom, in a good order, fails where a buffer lies in
    the middle of the room that a later, larger one needs: hence a buffer with a hole beneath it, while another one sticks
    out above the lower bound, is hung from the top instead, and all are placed again. Orders are tried in turn until one
    meets the bound. If none does, they are tried once more, and what still sticks out is placed before all others from then
    on. The best layout is kept.
    """
    live = live_bytes(schedule.buffers, len(schedule.ops))
    slab = _Slab(schedule.buffers, max(live, default=0))
    best: tuple[int, np.ndarray] | None = None
    for found in _layouts(slab):
        if best is None or found[0] < best[0]:
            best = found
        if best[0] == slab.bound:
            break
    total, offsets = best
    return Arena(tuple(offsets.tolist()), total, tuple(live))


def _layouts(slab: "_Slab") -> Iterator[tuple[int, np.ndarray]]:
    """One layout after another: its size and the offsets."""
    placed = 0
    for promotes in (False, True):
        for order in slab.orders():
            hung = np.zeros(len(order), np.uint8)
            for _ in range(ROUNDS):
                if promotes and (placed := placed + len(order)) > SEARCH:
                    return
                total, offsets = slab.place(order, hung)
                yield total, offsets
                more = slab.in_the_way(offsets) & (hung == 0)
                hung[more] = 1
                if more.any():
                    continue
                if not promotes:
                    break
                high = (offsets + slab.nbytes > slab.bound)[order]
                order = np.concatenate((order[high], order[~high]))
                hung[:] = 0


def live_bytes(buffers: Sequence[Buffer], n_ops: int) -> list[int]:
    """Bytes alive during each operation."""
    change = np.zeros(n_ops + 1, dtype=np.int64)
    for b in buffers:
        change[b.first] += b.nbytes
        change[b.last + 1] -= b.nbytes
    return [int(n) for n in np.cumsum(change)[:n_ops]]


class _Slab:
    """Buffers as arrays, and the bytes that some moment needs; what `kernels.first_fit` asks for is made once."""

    def __init__(self, buffers: Sequence[Buffer], bound: int):
        self.first, self.last, self.nbytes = (np.array([getattr(b, name) for b in buffers], np.int64)
                                              for name in ("first", "last", "nbytes"))
        self.bound = bound
        n = len(buffers)
        self._width = PIECE
        while (self._reach() - 1).sum() > MOST_ROWS * n:
            self._width *= 2
        pieces = int(self.last.max(initial=0)) // self._width + 1
        begun = np.bincount(self.first // self._width, minlength=pieces)
        ended = np.bincount(self.last // self._width, minlength=pieces)
        reached = np.concatenate(([0], (begun - ended).cumsum()[:-1]))  # into a piece: begun in one before, ended in none
        rows = np.concatenate((begun, reached))
        starts = rows.cumsum() - rows
        self._begins, self._reaches = starts[:pieces], starts[pieces:]
        self._rows, self._filled, self._near = np.empty(rows.sum(), np.int64), np.empty(2 * pieces, np.int64), np.empty(
            (2, n), np.int64)

    def _reach(self) -> np.ndarray:
        """Pieces of time in which each buffer is alive."""
        return self.last // self._width - self.first // self._width + 1

    def place(self, order: np.ndarray, hung: np.ndarray) -> tuple[int, np.ndarray]:
        """Each buffer in turn at the lowest offset that is free for its whole lifetime; those hung, the highest below the
        bound: size and offsets."""
        offsets = np.zeros(len(order), np.int64)
        total = kernels.first_fit(order, self.first, self.last, self.nbytes, hung, self.bound, self._width, self._begins,
                                  self._reaches, rows=self._rows, filled=self._filled, near=self._near, offsets=offsets)
        return total, offsets

    def orders(self) -> Iterator[np.ndarray]:
        """Orders in which to place: long lives first, large ones, what takes much of both, as they come, as they go."""
        first, last, nbytes = self.first, self.last, self.nbytes
        life = last - first
        for keys in ((-nbytes, -life), (-life, -nbytes), (-nbytes * (life + 1.0),), (-last, first), (first, -last)):
            yield np.lexsort(keys)

    def in_the_way(self, offsets: np.ndarray) -> np.ndarray:
        """Which buffers have a hole beneath them while another sticks out above the bound."""
        found = np.zeros(len(offsets), bool)
        end = offsets + self.nbytes
        for high in np.flatnonzero(end > self.bound):
            below = np.flatnonzero((self.first <= self.last[high]) & (self.last >= self.first[high])
                                   & (offsets < offsets[high]) & (self.nbytes > 0))
            below = below[np.argsort(offsets[below], kind="stable")]
            reach = np.concatenate(([0], np.maximum.accumulate(end[below])[:-1])) if below.size else np.empty(0)
            found[below[offsets[below] > reach]] = True
        return found
