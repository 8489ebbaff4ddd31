"""What is done to gradients beside an update: zero, scale, sum of squares, the search for NaN."""
import math

import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels

ArrayList = _kernels.ArrayList

# Around a vector, a piece of work (8192), the pieces whose results are held at once (256), and enough for threads.
SIZES = [0, 1, 15, 16, 17, 63, 8191, 8192, 8193, 40001]
LARGE = 256 * 8192 + 17


def cases(size, dtype):
    """Scaling and zeroing, with what each must give."""
    x = draw(size, dtype)
    third = np.dtype(dtype).type(1 / 3)
    yield lawtools.Case(lambda a, first: _kernels.scale_in_place(np.array([1 / 3]), x=ArrayList([a["x"]])), {"x": x},
                        ("x",), ("x",)), x * third
    yield lawtools.Case(lambda a, first: _kernels.fill_zero(x=ArrayList([a["x"]])), {"x": x}, ("x",), ("x",)), x * 0 + 0


def squares(x):
    out = np.empty(1)
    _kernels.sum_of_squares(ArrayList([x]), out=out)
    return float(out[0])


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_scale_and_zero(size, dtype):
    for case, expected in cases(size, dtype):
        lawtools.assert_same_bits(case.run()["x"], expected)
        lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_sum_of_squares(size, dtype):
    x = draw(size, dtype)
    expected = math.fsum(x.astype("float64") ** 2)
    results = set()
    for n in lawtools.THREADS:
        for shift in (0, 1):
            with lawtools.threads(n):
                results.add(squares(lawtools.misaligned(x, shift)))
    assert len(results) == 1
    assert results.pop() == pytest.approx(expected, rel=1e-13, abs=0)


def test_sum_of_squares_of_float32_does_not_overflow():
    assert squares(np.full(3, 1e30, "float32")) == pytest.approx(3e60)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [size for size in SIZES if size] + [LARGE])
def test_one_element_that_is_not_finite(size, value, dtype):
    x = draw(size, dtype)
    bound = ArrayList([x])
    assert _kernels.nonfinite_arrays(bound) == ()
    for at in {size - 1, size // 2, 0}:
        good, x[at] = x[at], value
        for n in lawtools.THREADS:
            with lawtools.threads(n):
                assert _kernels.nonfinite_arrays(bound) == (0,)
        x[at] = good


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_the_largest_numbers_are_finite(dtype):
    assert _kernels.nonfinite_arrays(ArrayList([np.full(40, -np.finfo(dtype).max, dtype)])) == ()


def test_nan_is_seen():
    for case, _ in cases(19, "float32"):
        case.arrays["x"][3] = np.nan
        got = case.run()["x"]
        assert np.isnan(got[3]) or (got == 0).all()
    x = draw(19)
    x[17] = np.nan
    assert np.isnan(squares(x))
