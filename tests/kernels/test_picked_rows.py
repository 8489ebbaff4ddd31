"""Rows picked, and spread to where they belong: NumPy's indexing, threads, addresses, what is refused."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ShapeError

SHAPES = [(0, 3), (1, 1), (5, 7), (40, 255), (33, 256), (17, 257), (300, 700)]  # a piece is 256 columns
SHARES = [0.0, 0.1, 0.5, 0.95, 1.0]


def some_rows(n, share):
    chosen = np.random.default_rng([3, n]).permutation(n)[:round(share * n)]
    return np.sort(chosen).astype(np.int32)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_picked_and_come_back(shape, dtype, share):
    x, rows = draw(shape, dtype), some_rows(shape[0], share)
    expected = np.zeros(shape, dtype)
    expected[rows] = x[rows]
    for threads in lawtools.THREADS:
        for like in (lambda a: a, lawtools.misaligned):
            picked, place = like(blank((len(rows), shape[1]), dtype)), like(blank(shape, dtype))
            with lawtools.threads(threads):
                _kernels.pick_rows(like(x), rows, y=picked)
                lawtools.assert_same_bits(picked, x[rows])
                place[:len(rows)] = picked
                _kernels.spread_rows(rows, x=place)
            lawtools.assert_same_bits(place, expected)


@pytest.mark.parametrize("rows", [[0, 0], [2, 1], [-1, 2], [1, 4]])
def test_rows_that_do_not_ascend_or_are_not_there_are_refused(rows):
    rows, x, y = np.array(rows, np.int32), draw((4, 3)), blank((2, 3))
    before = x.copy()
    for call in (lambda: _kernels.pick_rows(x, rows, y=y), lambda: _kernels.spread_rows(rows, x=x)):
        with pytest.raises(ShapeError, match="rows must ascend from 0 and stay below 4"):
            call()
    assert np.isnan(y).all() and (x == before).all()


def test_other_shapes_are_refused():
    x, rows = draw((4, 3)), np.array([0, 2], np.int32)
    for shape in ((3, 3), (2, 4)):
        with pytest.raises(ShapeError, match="pick_rows"):
            _kernels.pick_rows(x, rows, y=blank(shape))
