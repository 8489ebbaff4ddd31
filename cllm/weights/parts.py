"""How a tensor of a file is a parameter, or a part of one."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor in a file: columns of a parameter, perhaps turned.

    Parameters
    ----------
    parameter : str
    columns : (int, int), tuple of int, or None
        A range of the parameter's last axis, or its columns one by one in the file's order where there are more than two;
        None is all.
    transposed : bool
        The file keeps (out, in) where the parameter is (in, out).
    """

    parameter: str
    columns: tuple[int, ...] | None = None
    transposed: bool = False

    def read(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor's values out of the parameter, as the file orders them."""
        part = np.asarray(parameter) if self.columns is None else parameter[..., self._which]
        return part.T if self.transposed else part

    def write(self, parameter: np.ndarray, values: np.ndarray) -> None:
        """The tensor's values into their place in the parameter."""
        values = values.T if self.transposed else values
        parameter[..., slice(None) if self.columns is None else self._which] = values

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the parameter's."""
        count = len(range(*self.columns)) if self.columns is not None and len(self.columns) == 2 else len(self.columns or ())
        lengths = parameter if self.columns is None else (*parameter[:-1], count)
        return tuple(reversed(lengths)) if self.transposed else tuple(lengths)

    @property
    def _which(self):
        return slice(*self.columns) if len(self.columns) == 2 else list(self.columns)
