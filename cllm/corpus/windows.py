"""Windows of a long row of tokens: what a step is made of, as pure functions of their arguments.

Order comes from raw words of the counter-based generator Philox (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011): unlike a generator's distributions, these words are the same in every version of NumPy.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cllm.arrays import narrowed
from cllm.checks import checked_real, checked_size, keep
from cllm.errors import DataError

LARGEST_WORD = (1 << 64) - 1  # of the generator's keys


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Shuffled windows that do not overlap, each seen once an epoch; the next epoch begins where the last one ends.

    An epoch cuts the tokens into `count` windows of T + 1 tokens, the last of one being the first of the next, after
    leaving out a few tokens at the front: phase and order are functions of (seed, epoch). Window k of the run is window
    ``k % count`` of epoch ``k // count``, so any batch of a run can be drawn without those before it.

    Parameters
    ----------
    tokens : integer array of shape (n,)
        May be a memory map; n >= seq_len + 1.
    seq_len : int
        T.
    seed : int
        0 .. 2**64 - 1.

    Raises
    ------
    DataError
        When there are too few tokens.
    """

    tokens: np.ndarray
    seq_len: int
    seed: int = 0

    def __post_init__(self):
        keep(self, "Windows", "seq_len", checked_size, 1, LARGEST_WORD)
        keep(self, "Windows", "seed", checked_size, 0, LARGEST_WORD)
        _checked_text("Windows", self.tokens, self.seq_len)

    @property
    def count(self) -> int:
        """Windows of one epoch."""
        return max(1, (len(self.tokens) - self.seq_len) // self.seq_len)

    def starts(self, first: int, number: int) -> np.ndarray:
        """Positions at which the windows number `first` .. `first + number - 1` of the run begin."""
        first = checked_size("starts(first=...)", first, 0, LARGEST_WORD)
        number = checked_size("starts(number=...)", number, 0, LARGEST_WORD)
        return np.array([self._epoch(k // self.count)[k % self.count] for k in range(first, first + number)], np.int64)

    def batch(self, first: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows number `first` and on.

        Returns
        -------
        inputs, targets : int32 arrays of shape B T
            ``targets[b, t]`` is the token after ``inputs[b, t]``.
        """
        return gather(self.tokens, self.starts(first, batch_size), self.seq_len)

    def _epoch(self, epoch: int) -> np.ndarray:
        return _epoch_starts(len(self.tokens), self.seq_len, self.count, self.seed, epoch)


@lru_cache(maxsize=4)
def _epoch_starts(n: int, seq_len: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where the windows of an epoch begin, in their shuffled order."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count + 1)
    phases = min(seq_len, n - count * seq_len)
    return np.argsort(words[1:], kind="stable") * seq_len + int(words[0] % np.uint64(phases))


def even_starts(n: int, seq_len: int, most: int | None = None) -> np.ndarray:
    """Where windows that do not overlap begin, in order; at most `most` of them, spread evenly. For evaluation."""
    count = (n - 1) // seq_len
    chosen = count if most is None else min(count, most)
    return np.arange(chosen, dtype=np.int64) * count // max(1, chosen) * seq_len


def split(tokens: np.ndarray, fraction: float, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens for training, and the last `fraction` of them for validation; no token is in both.

    Raises
    ------
    DataError
        When a part is shorter than one window of seq_len + 1 tokens.
    """
    fraction = checked_real("split(fraction)", fraction, high=1.0)
    cut = len(tokens) - round(len(tokens) * fraction)
    train, validation = tokens[:cut], tokens[cut:]
    for name, part in (("training", train), ("validation", validation)):
        if len(part) <= seq_len and (fraction or name == "training"):
            raise DataError(f"the {name} part of {len(tokens)} tokens",
                            f"must have at least seq_len + 1 = {seq_len + 1} tokens", str(len(part)),
                            "Take a longer text or a smaller seq_len, or validate on another fraction.")
    return train, validation


def gather(tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows that begin at `starts`: inputs and targets, int32 arrays of shape B T."""
    rows = tokens[np.asarray(starts, np.int64)[:, None] + np.arange(seq_len + 1)]
    rows = narrowed("gather(tokens)", rows, np.int32)
    return rows[:, :-1].copy(), rows[:, 1:].copy()  # one row would be contiguous as it is, and the two would share it


def batch(tokens, batch_size: int, seq_len: int, step: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The windows of one step, and the tokens that follow in each: a function of the arguments alone.

    Step s of a run can be drawn without the steps before it, so a resumed run sees what the straight run sees.
    Starts are raw words of Philox keyed by (seed, step), modulo the number of windows.

    Parameters
    ----------
    tokens : integer array of shape (n,)
        The whole text, n >= seq_len + 1.
    batch_size, seq_len : int
        B and T.
    step : int
        Number of the step, from 0.
    seed : int
        0 .. 2**64 - 1.

    Returns
    -------
    inputs, targets : int32 arrays of shape B T
        ``targets[b, t]`` is the token after ``inputs[b, t]``.
    """
    batch_size, seq_len, step, seed = (
        checked_size(f"batch({n}=...)", v, least, LARGEST_WORD) for n, v, least in
        (("batch_size", batch_size, 1), ("seq_len", seq_len, 1), ("step", step, 0), ("seed", seed, 0)))
    tokens = _checked_text("batch", tokens, seq_len)
    words = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(batch_size)
    return gather(tokens, (words % np.uint64(tokens.size - seq_len)).astype(np.int64), seq_len)


def _checked_text(where: str, tokens, seq_len: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{where}(tokens=...)", "must be integers in one axis",
                        f"{tokens.dtype} of shape {tokens.shape}", "Pass what a tokenizer's encode() returns.")
    if tokens.size <= seq_len:
        raise DataError(f"{where}(tokens=...)", f"must have at least seq_len + 1 = {seq_len + 1} tokens",
                        str(tokens.size), "Take a longer text or a smaller seq_len.")
    return tokens
