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


def checked_feeds(program: Program, workload: Workload, given: Mapping, names: Iterable[str]) -> dict[str, np.ndarray]:
    """What was fed, as arrays of the declared shapes whose values are within the declared bounds.

    Parameters
    ----------
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
    return {name: _checked(program.feeds[name], workload, given[name]) for name in names}


def sizes_of(program: Program, given: Mapping) -> tuple[int, int | None]:
    """B and T of a batch, read off the shapes of what is fed.

    Raises
    ------
    ShapeError
        When an array has not as many axes as its feed, or is fed to a model that does not name it.
    """
    sizes: dict[str, int] = {}
    for name, array in given.items():
        letters, shape = program.feeds[name].shape.split() if name in program.feeds else (), np.shape(array)
        if len(letters) != len(shape):
            raise ShapeError(name, f"must have the axes {' '.join(letters) or 'of a feed of the model'}", str(shape),
                             "Pass each feed by its name and in its shape.")
        sizes |= {letter: length for letter, length in zip(letters, shape, strict=True) if letter in WORDS}
    return sizes.get("B", sizes.get("N", 0)), sizes.get("T") if program.has_time else None


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


def _checked(feed: Feed, workload: Workload, array) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ShapeError(feed.name, "must be an array", str(error), "Pass rows of equal length.") from error
    kept = np.dtype(feed.dtype or workload.dtype)
    if kept.kind in "iu" and array.dtype.kind not in "iu":
        raise DtypeError(feed.name, "must hold integers", str(array.dtype), f"Pass them for example as {kept}.")
    if kept.kind == "f" and array.dtype.kind not in "fiu":
        raise DtypeError(feed.name, "must hold numbers", str(array.dtype), f"Pass them for example as {kept}.")
    shape = resolve(feed.shape, workload.letters())
    if array.shape != shape:
        words = ", ".join(WORDS.get(part, part) for part in feed.shape.split())
        raise ShapeError(feed.name, f"must have the shape ({words}) = {shape}", str(array.shape),
                         "Reshape the batch, or make an Executor for its shape.")
    if array.size:
        _check_bounds(feed, kept, array)
    return array


def _check_bounds(feed: Feed, kept: np.dtype, array: np.ndarray) -> None:
    low, high = feed.low, feed.high
    if kept.kind in "iu":  # beyond these a value would become another
        bits = 8 * kept.itemsize
        least, beyond = (-2 ** (bits - 1), 2 ** (bits - 1)) if kept.kind == "i" else (0, 2 ** bits)
        low = least if low is None else max(low, least)
        high = beyond if high is None else min(high, beyond)
    number = int if kept.kind in "iu" else float
    least, most = number(array.min()), number(array.max())
    if (low is None or least >= low) and (high is None or most < high):
        return
    bad = least if low is not None and not least >= low else most
    within = f"from {low} to {high - 1}" if kept.kind in "iu" else f"at least {low} and below {high}"
    raise TokenError(feed.name, f"must be {within}", str(bad),
                     "Check the tokenizer, or make the model with a larger vocab_size." if feed.name in ("tokens", "targets")
                     else "Check the data, or declare the feed with other bounds.")
