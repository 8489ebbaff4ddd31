"""`Stored`: a matrix of weights as it lies in files, which products and lookups expand as they read it.

A parameter may be one tensor of a file, turned or not, or several beside each other (q, k and v; gate and up). Where its rows
stand in another order there, they are read through that order.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from cllm import _kernels as kernels
from cllm.program.parts import StoredForm
from cllm.weights.parts import Part

KINDS = tuple(kernels.STORED_KINDS)
PIECE_BYTES = 1 << 24  # of what is expanded at a time, for those who want every number
Rows = tuple[str, np.ndarray, np.ndarray | None]  # kind, bytes of each row, and which row is which, where they are not in order


class Stored(kernels.StoredRows, NDArrayOperatorsMixin):
    """A read-only matrix of float32, kept as rows of bytes; it is frozen in whatever model has it.

    It has the attributes of an array that ask for no element. ``numpy.asarray``, slices and operators expand it, into an array
    of their own. `nbytes` is what it takes as it is.

    Parameters
    ----------
    parts : sequence of (str, uint8 array, int32 array or None)
        Kind, bytes of each row, and which row is which.
    length : int
        Elements of a row.
    turned : bool
        The matrix is (length, rows).

    Raises
    ------
    ShapeError, DtypeError
        When rows are not whole, or a kind is none of `KINDS`.
    """

    dtype, itemsize, ndim = np.dtype("float32"), 4, 2
    flags = SimpleNamespace(writeable=False, c_contiguous=False)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def form(self) -> StoredForm:
        """What a program says of it."""
        return StoredForm(tuple((kind, len(data if order is None else order), data.shape[1], order is not None)
                                for kind, data, order in self.parts))

    @property
    def nbytes(self) -> int:
        return self.form.nbytes

    def values(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1 of the matrix, expanded."""
        made = np.empty((stop - start, self.shape[1]), np.float32)
        kernels.stored_values(self, start, y=made)
        return made

    def pieces(self) -> Iterator[np.ndarray]:
        """All values in order, some rows at a time, flat, as `cllm.tensors` takes them."""
        step = max(1, PIECE_BYTES // max(1, 4 * self.shape[1]))
        for start in range(0, len(self), step):
            yield self.values(start, min(len(self), start + step)).reshape(-1)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        made = self.values(0, self.shape[0])
        return made if dtype is None else made.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **more):
        if any(isinstance(one, Stored) for one in out):
            raise ValueError("assignment destination is read-only")  # as of an array that is
        more |= {"out": out} if out else {}
        return getattr(ufunc, method)(*(np.asarray(one) if isinstance(one, Stored) else one for one in inputs), **more)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(self.shape[0])
            return self.values(start, max(start, stop))
        return np.asarray(self)[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self):
        parts = tuple((kind, np.array(data), order) for kind, data, order in self.parts)
        return Stored, (parts, self.shape[0] if self.turned else self.shape[1], self.turned)

    def __repr__(self) -> str:
        return f"Stored({self.shape[0]} x {self.shape[1]}, {self.form.kinds}: {self.nbytes:,} bytes)"


def stored(parts: Sequence[tuple[Part, Rows]], columns: int) -> Stored | None:
    """The parameter of so many columns that some tensors are; None where they lie otherwise than rows can be read."""
    turned = parts[0][0].transposed
    if any(part.transposed != turned for part, _ in parts) or any(kind not in KINDS for _, (kind, *_) in parts):
        return None
    pieces = []
    for part, (kind, data, order) in parts:
        start = 0
        if part.columns is not None and len(part.columns) == 2:
            start = part.columns[0]
        elif part.columns is not None:  # row r of the file is column columns[r]
            placed = np.argsort(part.columns)
            order = placed if order is None else order[placed]
        pieces.append((start, (kind, data, None if order is None else order.astype(np.int32))))
    pieces = [piece for _, piece in sorted(pieces, key=lambda piece: piece[0])]
    if not turned and (len(pieces) > 1 or parts[0][0].columns is not None):
        return None
    if turned and sum(len(data) for _, data, _ in pieces) != columns:
        return None
    kind, data, _ = pieces[0]
    nbytes, count = kernels.STORED_KINDS[kind]
    return Stored(tuple(pieces), data.shape[1] // nbytes * count, turned)
