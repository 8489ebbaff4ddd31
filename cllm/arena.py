"""One slab for everything that a step needs: lifetimes give offsets, offsets give the peak, before step 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cllm.schedule import Buffer, Schedule


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets of a schedule's buffers in one slab.

    Attributes
    ----------
    offsets : tuple of int
        Byte offset of each buffer, a multiple of `cllm.dims.ALIGNMENT`.
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

    Dynamic storage allocation is NP-hard; greedy first fit in a good order is within a percent on tape-like lifetimes.
    Orders are tried in turn until one meets the lower bound, and the best is kept.
    """
    buffers = schedule.buffers
    live = live_bytes(buffers, len(schedule.ops))
    bound = max(live, default=0)
    best: tuple[int, list[int]] | None = None
    for order in _orders(buffers):
        total, offsets = _first_fit(buffers, order)
        if best is None or total < best[0]:
            best = total, offsets
        if total == bound:
            break
    total, offsets = best
    return Arena(tuple(offsets), total, tuple(live))


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


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> tuple[int, list[int]]:
    """Each buffer in turn at the lowest offset that is free for its whole lifetime."""
    n = len(buffers)
    first, last, start, end = (np.empty(n, dtype=np.int64) for _ in range(4))
    offsets = [0] * n
    total = 0
    for placed, i in enumerate(order):
        b = buffers[i]
        clash = np.flatnonzero((first[:placed] <= b.last) & (last[:placed] >= b.first))
        place = 0
        if clash.size:
            clash = clash[np.argsort(start[clash], kind="stable")]
            starts, ends = start[clash], np.maximum.accumulate(end[clash])
            gaps = np.concatenate(([starts[0]], starts[1:] - ends[:-1]))
            fits = np.flatnonzero(gaps >= b.nbytes)
            place = int(ends[fits[0] - 1]) if fits.size and fits[0] else 0 if fits.size else int(ends[-1])
        offsets[i] = place
        first[placed], last[placed], start[placed], end[placed] = b.first, b.last, place, place + b.nbytes
        total = max(total, place + b.nbytes)
    return total, offsets
