"""The laws that every kernel is under, as helpers for the tests of the families.

A kernel is described once, as a `Case`: its arrays, which of them go row by row, which it writes. The laws then run it
in other ways that must not matter (threads, addresses, cuts of the rows) and compare bits, or against differences.
"""
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from cllm import _kernels
from cllm.errors import ShapeError

DTYPES = ("float32", "float64")
THREADS = (1, 2, 3)


@contextlib.contextmanager
def threads(n):
    """Run the kernels on n threads, and on as many as before afterwards."""
    before = _kernels.get_threads()
    _kernels.set_threads(n)
    try:
        yield
    finally:
        _kernels.set_threads(before)


def draw(shape, dtype="float64", seed=0, scale=1.0):
    """Normal numbers."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def blank(shape, dtype="float64"):
    """An array of NaN, so that an element that is not written shows."""
    return np.full(shape, np.nan, dtype)


def misaligned(array, elements=1):
    """A contiguous copy that begins `elements` elements after an address that is a multiple of 64."""
    room = np.empty(array.nbytes + 64 + elements * array.itemsize, np.uint8)
    start = -room.ctypes.data % 64 + elements * array.itemsize
    copy = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not array.size or copy.ctypes.data % 64 == elements * array.itemsize % 64
    return copy


def assert_same_bits(got, expected, what=""):
    """Equal shape, dtype and bits; NaN equals NaN, and zero does not equal minus zero."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, (what, got.shape, got.dtype)
    same = got.view(f"u{got.itemsize}") == expected.view(f"u{expected.itemsize}")
    assert same.all(), f"{what}: {(~same).sum()} of {same.size} differ, the first at {np.argwhere(~same)[0]}"


def assert_close(got, reference, what="", float32=2e-6, float64=1e-13):
    """max |got - reference| <= tolerance * max |reference|, the tolerance by got's dtype."""
    tolerance = float32 if got.dtype == np.float32 else float64
    assert got.shape == reference.shape, (what, got.shape, reference.shape)
    if got.size:
        error, largest = np.abs(got - reference).max(), np.abs(reference).max()
        assert error <= tolerance * largest, f"{what}: error {error:.3g}, largest {largest:.3g}"


def finite_differences(function, x, step=1e-3):
    """Gradient of a scalar function at float64 x by central differences of fourth order; x is put back."""
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        here, values = x[at], {}
        for k in (-2, -1, 1, 2):
            x[at] = here + k * step
            values[k] = function()
        x[at] = here
        gradient[at] = (values[-2] - 8 * values[-1] + 8 * values[1] - values[2]) / (12 * step)
    return gradient


def assert_gradient(analytic, numeric, what=""):
    """|a - n| <= 1e-6 max(|a|, |n|) + 1e-9 for every element."""
    assert analytic.shape == numeric.shape, (what, analytic.shape, numeric.shape)
    error = np.abs(analytic - numeric)
    allowed = 1e-6 * np.maximum(np.abs(analytic), np.abs(numeric)) + 1e-9
    bad = ~(error <= allowed)
    assert not bad.any(), f"{what}: {bad.sum()} of {bad.size} wrong, the first by {error[bad][0]:.3g}"


def weighted_sum(a, b):
    """sum(a * b), rounded once, so that differences of it are clean."""
    return math.fsum((np.asarray(a, "float64") * np.asarray(b, "float64")).ravel())


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel on one set of arrays.

    Parameters
    ----------
    call : callable
        ``call(arrays, first)`` runs the kernel on a dict of arrays; ``first`` is the number of the first row.
    arrays : dict
        Inputs, and outputs as they are before the call.
    rows : tuple of str
        Arrays that are cut along their first axis.
    writes : tuple of str
        Outputs; those not in `rows` are accumulators.
    unit : int
        Rows come in groups of so many.
    """

    call: Callable
    arrays: dict
    rows: tuple
    writes: tuple
    unit: int = 1

    @property
    def n_rows(self):
        return len(self.arrays[self.rows[0]])

    def run(self, n_threads=1, shift=0, cuts=(), before=None):
        """Outputs on copies `shift` elements off alignment, in one call for each piece between the cuts.

        `before`: rows to put in front of the row arrays; their results are left out again.
        """
        arrays, first, extra = dict(self.arrays), 0, 0
        if before is not None:
            extra = self.unit
            first = -extra
            arrays |= {name: np.concatenate([before[name], arrays[name]]) for name in self.rows}
        arrays = {name: misaligned(array, shift) for name, array in arrays.items()}
        edges = [0, *cuts, self.n_rows + extra]
        with threads(n_threads):
            for start, stop in itertools.pairwise(edges):
                part = {name: array[start:stop] if name in self.rows else array for name, array in arrays.items()}
                self.call(part, first + start)
        return {name: arrays[name][extra:] if name in self.rows else arrays[name] for name in self.writes}


def assert_law_of_bits(case):
    """Threads, addresses, a row in front and cuts of the rows change no bit."""
    expected = case.run()

    def check(names, what, **changes):
        got = case.run(**changes)
        for name in names:
            assert_same_bits(got[name], expected[name], f"{name}, {what}")

    for n in THREADS:
        check(case.writes, f"{n} threads", n_threads=n)
        check(case.writes, f"{n} threads, off alignment", n_threads=n, shift=1)
    if case.n_rows == 0:
        return
    front = {name: case.arrays[name][-case.unit:] for name in case.rows}
    check([name for name in case.writes if name in case.rows], "a row in front", before=front, n_threads=2)
    groups = case.n_rows // case.unit
    for cut in sorted({0, 1, groups // 2, groups - 1, groups}):
        check(case.writes, f"cut after {cut}", cuts=(cut * case.unit,), n_threads=2)
    check(case.writes, "cut three times", cuts=tuple(sorted(case.unit * (groups * k // 4) for k in (1, 2, 3))))


def assert_shapes_refused(case, free=()):
    """Any array that is one shorter along any axis is refused before anything is written.

    `free`: pairs (name, axis) that the kernel cannot know.
    """
    for name, array in case.arrays.items():
        for axis in range(array.ndim):
            if (name, axis) in free:
                continue
            for delete in (True, False):
                wrong = (np.delete(array, -1, axis) if delete
                         else np.concatenate([array, np.take(array, [-1], axis)], axis))
                arrays = {key: value.copy() for key, value in case.arrays.items()} | {name: wrong.copy()}
                before = {key: value.copy() for key, value in arrays.items()}
                with pytest.raises(ShapeError):
                    case.call(arrays, 0)
                for key, value in arrays.items():
                    assert_same_bits(value, before[key], f"{key} after a wrong {name}")
