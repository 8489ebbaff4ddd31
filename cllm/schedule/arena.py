"""One slab for everything that a step needs: lifetimes give offsets, offsets give the peak, before step 1."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from cllm.schedule.build import Buffer, Schedule

ROUNDS = 60  # of placing all buffers in one order and those that follow from it
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
    bound = max(live, default=0)
    best: tuple[int, list[int]] | None = None
    for found in _layouts(schedule.buffers, bound):
        if best is None or found[0] < best[0]:
            best = found
        if best[0] == bound:
            break
    total, offsets = best
    return Arena(tuple(offsets), total, tuple(live))


def _layouts(buffers: Sequence[Buffer], bound: int) -> Iterator[tuple[int, list[int]]]:
    """One layout after another: its size and the offsets."""
    placed = 0
    for promotes in (False, True):
        for order in _orders(buffers):
            hung: set[int] = set()
            for _ in range(ROUNDS):
                if promotes and (placed := placed + len(buffers)) > SEARCH:
                    return
                total, offsets = _first_fit(buffers, order, hung, bound)
                yield total, offsets
                more = _in_the_way(buffers, offsets, bound) - hung
                if not more and not promotes:
                    break
                hung |= more
                if not more:
                    high = {i for i in order if offsets[i] + buffers[i].nbytes > bound}
                    order = [*(i for i in order if i in high), *(i for i in order if i not in high)]
                    hung = set()


def live_bytes(buffers: Sequence[Buffer], n_ops: int) -> list[int]:
    """Bytes alive during each operation."""
    change = np.zeros(n_ops + 1, dtype=np.int64)
    for b in buffers:
        change[b.first] += b.nbytes
        change[b.last + 1] -= b.nbytes
    return [int(n) for n in np.cumsum(change)[:n_ops]]


def _orders(buffers: Sequence[Buffer]):
    yield sorted(range(len(buffers)), key=lambda i: (-(buffers[i].last - buffers[i].first), -buffers[i].nbytes, i))
    yield sorted(range(len(buffers)), key=lambda i: (-buffers[i].nbytes, -(buffers[i].last - buffers[i].first), i))
    yield sorted(range(len(buffers)), key=lambda i: (-buffers[i].nbytes * (buffers[i].last - buffers[i].first + 1), i))
    yield sorted(range(len(buffers)), key=lambda i: (buffers[i].first, -buffers[i].last, i))
    yield sorted(range(len(buffers)), key=lambda i: (-buffers[i].last, buffers[i].first, i))


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int], hung: Set[int], bound: int) -> tuple[int, list[int]]:
    """Each buffer in turn at the lowest offset that is free for its whole lifetime; those hung, the highest below `bound`."""
    n = len(buffers)
    first, last, start, end = (np.empty(n, dtype=np.int64) for _ in range(4))
    offsets = [0] * n
    total = 0
    for placed, i in enumerate(order):
        b = buffers[i]
        clash = np.flatnonzero((first[:placed] <= b.last) & (last[:placed] >= b.first))
        clash = clash[np.argsort(start[clash], kind="stable")]
        lows = np.concatenate(([0], np.maximum.accumulate(end[clash])))
        highs = np.concatenate((start[clash], [bound]))
        fits = np.flatnonzero(highs - lows >= b.nbytes)
        if not fits.size:
            place = int(lows[-1])
        else:
            place = int(highs[fits[-1]]) - b.nbytes if i in hung else int(lows[fits[0]])
        offsets[i] = place
        first[placed], last[placed], start[placed], end[placed] = b.first, b.last, place, place + b.nbytes
        total = max(total, place + b.nbytes)
    return total, offsets


def _in_the_way(buffers: Sequence[Buffer], offsets: list[int], bound: int) -> set[int]:
    """Buffers with a hole beneath them while another sticks out above the bound."""
    start = np.array(offsets, dtype=np.int64)
    nbytes, first, last = (np.array([getattr(b, n) for b in buffers], dtype=np.int64) for n in ("nbytes", "first", "last"))
    found: set[int] = set()
    for high in np.flatnonzero(start + nbytes > bound):
        below = np.flatnonzero((first <= last[high]) & (last >= first[high]) & (start < start[high]) & (nbytes > 0))
        below = below[np.argsort(start[below], kind="stable")]
        reach = np.concatenate(([0], np.maximum.accumulate((start + nbytes)[below])[:-1])) if below.size else np.empty(0)
        found.update(int(i) for i in below[start[below] > reach])
    return found
