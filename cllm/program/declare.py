"""The words in which a layer says what it takes, makes and needs: `Feed`, `Site`, `Param`, `Table`, `Scratch`, `Flow`.

The layer that uses them, and what its signatures mean, is in `cllm/program/layer.py`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cllm.errors import DeclarationError

# What the executor makes itself and hands to every step that names it, with shape and dtype. `scale` is 1 / (the divisor
# of the whole batch's loss); `key` is (seed, step, first row of this micro-batch in the whole batch), for dropout; `loss`
# is the accumulator of the summed loss.
HANDED_ARRAYS = {
    "scale": ("1", "float64"),
    "key": ("3", "uint64"),
    "loss": ("1", "float64"),
}
# And a whole number: how many of the rows of a step are one sequence.
HANDED = (*HANDED_ARRAYS, "sequence_rows")


# What a site is to the planner, beside an array like others: a running sum, to which each branch adds and which is not
# dropped, since to make it again takes its branch; statistics of rows, small and never compressed.
ROLES = ("", "stream", "statistics")


@dataclass(frozen=True, slots=True)
class Feed:
    """What a step is fed: an array that the caller passes by name.

    Parameters
    ----------
    name, shape : str
        Shape in letters. One that begins with B or N is cut into micro-batches there; any other is handed on whole.
    dtype : str
        What it is kept as: int32, float32, float64, ..., or "" for the workload's.
    low : int, float or None
        Least value allowed.
    high : int, float, str or None
        Values must be below it; a letter stands for the layer's own.
    when : str or None
        The layer's field that switches it on, as of `Param`; where it is off the layer gets None.
    called : str
        What a step is fed it by, where the layer needs the name for something else; "" is `name`.
    counts : bool
        Along the last axis each value is 0, as the first is, or one more than the one before.
    """

    name: str
    shape: str
    dtype: str = ""
    low: float | None = None
    high: float | str | None = None
    when: str | None = None
    called: str = ""
    counts: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether a micro-batch gets its part alone."""
        return self.shape.split()[:1] in (["B"], ["N"])


# Feeds that a layer has by naming them, without declaring them; -1 marks a target that is ignored.
STANDARD_FEEDS = {feed.name: feed for feed in (Feed("tokens", "B T", "int32", 0, "V"),
                                               Feed("targets", "B T", "int32", -1, "V"))}


@dataclass(frozen=True, slots=True)
class Site:
    """A place where forward leaves an array that somebody may want later.

    Parameters
    ----------
    name, shape, meaning : str
        Shape in letters (`cllm.program.dims`), meaning in one line.
    group : str
        The word by which strategies name sites of a kind: norm, act, attn, mlp, residual; "" belongs to none.
    optional : bool
        Exists only when a plan names it; otherwise the layer gets None and rebuilds the values inside its backward.
    dtype : str or None
        None for the workload's.
    role : {"", "stream", "statistics"}
        What it is to the planner, see `ROLES`; groups mean nothing to it.

    Raises
    ------
    DeclarationError
        When the role is none of these.
    """

    name: str
    shape: str
    meaning: str
    group: str = ""
    optional: bool = False
    dtype: str | None = None
    role: str = ""

    def __post_init__(self):
        if self.role not in ROLES:
            raise DeclarationError(f"Site({self.name!r}, role=...)", "must be '', 'stream' or 'statistics'", repr(self.role),
                                   "Leave it out where the site is neither a running sum nor statistics of rows.")


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter: its shape in letters, how it starts, and the layer's field that switches it on.

    `init` is "normal" (standard deviation: the layer's field ``std``), "fan_in" (uniform within 1 / sqrt of the last length, to
    either side), "ones", "zeros", a number, or what gives one of these from the layer. `by_position` says that row t belongs to
    position t of a sequence. `constant` says that the layer holds it constant: it reads it and adds no gradient to it, of all
    of it (True), or of the row whose number is in the field of that name (None is no row). `stored` says that the layer hands
    it to kernels that also read it as it lies in a file (`_kernels.StoredRows`): where it is frozen, it may be no array then.
    """

    name: str
    shape: str
    init: str | float | Callable[[Any], str] = "normal"
    when: str | None = None
    by_position: bool = False
    constant: bool | str = False
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """An array of constants: its shape in letters, what makes it, and the layer's field that switches it on.

    `make(layer)` gives it in float64; it is rounded once. It is made once for a model, is never written, and has no
    gradient. `by_position` is that of `Param`; `dtype` is None for the workload's.
    """

    name: str
    shape: str
    make: Callable[[Any], np.ndarray]
    when: str | None = None
    by_position: bool = False
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room that a method needs while it runs, a flat array.

    `elements(layer, letters, threads, itemsize)` gives its length; `letters` includes the layer's own. A last micro-batch that
    is smaller gets no less: take the beginning. `dtype` is None for the workload's.
    """

    name: str
    elements: Callable[[Any, Mapping[str, int], int, int], int]
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """The data flow of one method, read off its signature: the names before and after the bare ``*``."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    exists: bool = field(default=True)

    @staticmethod
    def of(method) -> "Flow":
        if method is None:
            return Flow(exists=False)
        parameters = list(inspect.signature(method).parameters.values())[1:]
        reads = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        writes = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        return Flow(reads, writes)
