"""What optimizers keep for each parameter, by name of the optimizer: one table, from which bytes, files and windows follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import numpy as np

from cllm.program.shards import largest

CODE_BLOCK = 2048  # elements that share a scale (cllm/kernels/optimizer_8bit.pxi)
ROWS, COLUMNS = "rows", "columns"


@dataclass(frozen=True, slots=True)
class Part:
    """An array that is kept for each parameter.

    Parameters
    ----------
    name : str
    dtype : str
        Empty is the parameter's.
    per : int or str
        Elements of the parameter to each of its own; or one for each row, or each column, where a parameter of several axes is
        a matrix whose columns are its last axis, and one of a single axis has one column.
    """

    name: str
    dtype: str = ""
    per: int | str = 1

    def shape(self, parameter: Sequence[int]) -> tuple[int, ...]:
        """Of the array for a parameter of that shape."""
        if self.per == 1:
            return tuple(parameter)
        if self.per == COLUMNS:
            return (columns(parameter),)
        return (prod(parameter) // columns(parameter) if self.per == ROWS else -(-prod(parameter) // self.per),)

    def size(self, parameter: Sequence[int]) -> int:
        """Elements."""
        return prod(self.shape(parameter))

    def share(self, parameter: Sequence[int], processes: int) -> int:
        """Elements that each of some processes has room for: all, or the largest part where they share them."""
        size = self.size(parameter)
        return size if processes == 1 else largest(size, processes, self.per)

    def bytes_of(self, count: int, dtype: str) -> int:
        """Bytes of so many elements, where parameters are of that dtype."""
        return count * np.dtype(self.dtype or dtype).itemsize

    def cut(self, parameter: Sequence[int], start: int, stop: int) -> slice:
        """The elements that belong to elements start .. stop - 1 of a parameter."""
        if isinstance(self.per, str):
            return slice(0, self.size(parameter))
        return slice(start // self.per, -(-stop // self.per))


# Within an optimizer the wider dtypes come first, so that each array of a window is aligned.
OPTIMIZER_STATES: dict[str, tuple[Part, ...]] = {
    "none": (), "sgd": (), "momentum": (Part("velocity"),), "adam": (Part("m"), Part("v")), "adamw": (Part("m"), Part("v")),
    "adamw8bit": (Part("m_scale", per=CODE_BLOCK), Part("v_scale", per=CODE_BLOCK), Part("m", "uint8"), Part("v", "uint8")),
    "adafactor": (Part("row", per=ROWS), Part("column", per=COLUMNS)),
}
FLOAT32_ALONE = frozenset({"adamw8bit"})


def columns(parameter: Sequence[int]) -> int:
    """The last axis of a parameter of several; 1 of one of a single axis."""
    return parameter[-1] if len(parameter) > 1 else 1


def optimizer_groups(optimizer: str) -> tuple[tuple[str, str], ...]:
    """Pattern of parameter names and kind of each part of a name such as ``adamw`` or ``*emb.weight=adam,sgd``."""
    parts = [part.strip().rpartition("=") for part in optimizer.split(",")]
    return tuple((pattern if equals else "*", kind) for pattern, equals, kind in parts)


def state_parts(optimizer: str, parameter: str) -> tuple[Part, ...]:
    """What the optimizer keeps for a parameter: as the first part whose pattern matches its name has it."""
    return next((OPTIMIZER_STATES[kind] for pattern, kind in optimizer_groups(optimizer)
                 if fnmatchcase(parameter, pattern)), ())


def state_bytes(parts: Sequence[Part], parameter: Sequence[int], dtype: str) -> int:
    """Bytes of these for a parameter of that shape."""
    return sum(part.bytes_of(part.size(parameter), dtype) for part in parts)


def piece_elements(parts: Sequence[Part], parameter: Sequence[int], most: int) -> int:
    """Elements that an update may go over at a time: about `most`, where parts allow that a parameter is cut."""
    if any(isinstance(part.per, str) for part in parts):
        return max(1, prod(parameter))
    whole = max((part.per for part in parts), default=1)
    return max(most // whole, 1) * whole
