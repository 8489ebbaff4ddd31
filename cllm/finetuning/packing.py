"""Examples into rows, and rows into the order of an epoch; all of it by seeds alone."""

from bisect import bisect_left, insort
from functools import lru_cache

import numpy as np


def best_fit_decreasing(lengths: np.ndarray, room: int, order: np.ndarray) -> list[list[int]]:
    """Rows of which each has room for the examples in it: the longest first, each into the row that it leaves the least room in
    (Johnson et al. 1974).

    Parameters
    ----------
    lengths : integer array of shape (n,)
        Each from 1 to `room`.
    room : int
    order : integer array of shape (n,)
        Which of two of the same length comes first.

    Returns
    -------
    list of list of int
        Numbers of examples.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows by what is left in them
    left: list[int] = []  # the keys of that, ascending
    for example in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[example])
        at = bisect_left(left, length)
        if at < len(left):
            had = left[at]
            row = by_room[had].pop()
            if not by_room[had]:
                del by_room[had], left[at]
        else:
            had, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        if had > length:
            if had - length not in by_room:
                by_room[had - length] = []
                insort(left, had - length)
            by_room[had - length].append(row)
    return rows


def alike(lengths: np.ndarray, size: int, order: np.ndarray) -> list[list[int]]:
    """Batches of `size` examples that are about equally long; the last may have fewer. Parameters are those above."""
    sequence = order[np.argsort(lengths[order], kind="stable")].tolist()
    return [sequence[i:i + size] for i in range(0, len(sequence), size)]


@lru_cache(maxsize=8)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count` in the order of an epoch."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order
