"""Checks of what users feed to a step, before anything is written."""

from collections.abc import Iterable, Mapping
from math import isfinite

import numpy as np

from cllm.checks import checked_size
from cllm.errors import ConfigError, DtypeError, ShapeError, TokenError
from cllm.program.declare import Feed
from cllm.program.dims import resolve
from cllm.program.program import Program
from cllm.program.workload import Workload

WORDS = {"B": "batch_size", "T": "seq_len", "N": "rows"}


class FeedCheck:
    """Whether an array may be fed: its dtype, its shape, its values.

    Parameters
    ----------
    feed : Feed
    workload : Workload
        Of whose whole batches they are.
    """

    def __init__(self, feed: Feed, workload: Workload):
        self.feed = feed
        self.shape = resolve(feed.shape, workload.letters())
        self.dtype = np.dtype(feed.dtype or workload.dtype)
        self.whole_numbers = self.dtype.kind in "iu"
        self.low, self.high = feed.low, feed.high
        if self.whole_numbers:  # beyond these a value would become another
            bits = 8 * self.dtype.itemsize
            least, beyond = (-2 ** (bits - 1), 2 ** (bits - 1)) if self.dtype.kind == "i" else (0, 2 ** bits)
            self.low = least if self.low is None else max(least, self.low)
            self.high = beyond if self.high is None else min(beyond, self.high)

    def __call__(self, array) -> np.ndarray:
        """The array.

        Raises
        ------
        ShapeError, DtypeError, TokenError
        """
        name, array = self.feed.name, _array(self.feed.name, array)
        if array.dtype.kind not in ("iu" if self.whole_numbers else "fiu"):
            raise DtypeError(name, f"must hold {'integers' if self.whole_numbers else 'numbers'}", str(array.dtype),
                             f"Pass them for example as {self.dtype}.")
        if array.shape != self.shape:
            words = ", ".join(WORDS.get(part, part) for part in self.feed.shape.split())
            raise ShapeError(name, f"must have the shape ({words}) = {self.shape}", str(array.shape),
                             "Reshape the batch, or make an Executor for its shape.")
        if array.size:
            self._check_bounds(array)
        if self.feed.counts:
            self._check_counts(array)
        return array

    def _check_bounds(self, array: np.ndarray) -> None:
        number, low, high = int if self.whole_numbers else float, self.low, self.high
        least, most = number(array.min()), number(array.max())
        if (low is None or least >= low) and (high is None or most < high):
            return
        bad = least if low is not None and not least >= low else most
        within = f"from {low} to {high - 1}" if self.whole_numbers else f"at least {low} and below {high}"
        raise TokenError(self.feed.name, f"must be {within}", str(bad),
                         "Check the tokenizer, or make the model with a larger vocab_size."
                         if self.feed.name in ("tokens", "targets")
                         else "Check the data, or declare the feed with other bounds.")


    def _check_counts(self, array: np.ndarray) -> None:
        before = np.concatenate([np.full_like(array[..., :1], -1), array[..., :-1]], axis=-1)
        wrong = (array != 0) & (array - before != 1)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            raise TokenError(f"{self.feed.name}{list(place)}", "must be 0 or one more than the one before it",
                             f"{array[place]}" + (f" after {before[place]}" if place[-1] else ", the first"),
                             "Count from 0 in each document; padding may be 0 everywhere.")


def feed_checks(program: Program, workload: Workload) -> dict[str, FeedCheck]:
    """A check for each feed of a program, by its name."""
    return {name: FeedCheck(feed, workload) for name, feed in program.feeds.items()}


def checked_feeds(checks: Mapping[str, FeedCheck], given: Mapping, names: Iterable[str]) -> dict[str, np.ndarray]:
    """What was fed, as arrays of the declared shapes whose values are within the declared bounds.

    Parameters
    ----------
    checks : dict of FeedCheck by name
    given : dict of arrays by name
        None counts as not given.
    names : iterable of str
        Those that are needed.

    Raises
    ------
    ConfigError, ShapeError, DtypeError, TokenError
    """
    names = list(names)
    given = {name: array for name, array in given.items() if array is not None}
    for strays, must, got in ((set(names) - set(given), "must be fed", "None"),
                              (set(given) - set(names), f"must be one of {', '.join(names)}", "another feed")):
        if strays:
            raise ConfigError(", ".join(sorted(strays)), must, got,
                              "Pass each feed by its name; a model's program.feeds tells their shapes.")
    return {name: checks[name](given[name]) for name in names}


def sizes_of(program: Program, given: Mapping) -> tuple[int, int | None]:
    """B and T of a batch, read off the shapes of what is fed.

    Raises
    ------
    ShapeError
        When an array has not as many axes as its feed, or is fed to a model that does not name it.
    """
    sizes: dict[str, int] = {}
    for name, array in given.items():
        letters, shape = program.feeds[name].shape.split() if name in program.feeds else (), _array(name, array).shape
        if len(letters) != len(shape):
            raise ShapeError(name, f"must have the axes {' '.join(letters) or 'of a feed of the model'}", str(shape),
                             "Pass each feed by its name and in its shape.")
        sizes |= {letter: length for letter, length in zip(letters, shape, strict=True) if letter in WORDS}
    return sizes.get("B", sizes.get("N", 0)), sizes.get("T") if program.has_time else None


def _array(name: str, given) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ShapeError(name, "must be an array", str(error), "Pass rows of equal length.") from error


def divisor_of(program: Program, workload: Workload, feeds: Mapping[str, np.ndarray], chosen: float | None) -> float:
    """What the summed loss of a whole batch is divided by: `chosen`, or what the program's head says of the feeds.

    Raises
    ------
    ConfigError, TokenError
        When it is not a number above zero.
    """
    if chosen is not None:
        return checked_size("num_targets", chosen)
    layer, named = program.head.layer, program.head.feeds
    if layer.divisor_flow.exists:
        divisor = float(layer.divisor(*[feeds[named[name]] for name in layer.divisor_flow.reads]))
        if not isfinite(divisor) or divisor <= 0:
            raise TokenError(", ".join(named[name] for name in layer.divisor_flow.reads),
                             "must give the loss a divisor above zero", str(divisor), "Skip this batch, or pass num_targets.")
        return divisor
    if "targets" not in named:
        return workload.batch
    count = int(np.count_nonzero(feeds[named["targets"]] != -1))
    if not count:
        raise TokenError(named["targets"], "at least one must not be -1", "none", "Skip this batch, or pass num_targets.")
    return count
