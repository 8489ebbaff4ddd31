"""A factor and a soft cap, element by element: reference, finite differences, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw

from cllm import _kernels
from cllm.errors import ConfigError

SHAPES = [(0, 4), (1, 1), (1, 15), (3, 17), (2, 4096), (1, 8193), (5, 8191)]
CAPS = [None, 0.5, 30.0]


def case_of(n, c, dtype, cap, scale=0.7):
    def call(a, first):
        _kernels.scale_and_cap(a["x"], scale, cap, y=a["y"])

    return lawtools.Case(call, {"x": draw((n, c), dtype, 0, 20.0), "y": blank((n, c), dtype)}, ("x", "y"), ("y",))


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_bits(shape, dtype, cap):
    case = case_of(*shape, dtype, cap)
    x = 0.7 * case.arrays["x"].astype("float64")
    expected = x if cap is None else cap * np.tanh(x / cap)
    got = case.run()["y"]
    lawtools.assert_close(got, expected, float32=3e-7, float64=1e-15)
    assert cap is None or (np.abs(got) <= cap).all()
    lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_a_factor_alone_is_one_product(dtype):
    x, scale = draw((3, 19), dtype), np.dtype(dtype).type(0.22)
    y = blank(x.shape, dtype)
    _kernels.scale_and_cap(x, float(scale), y=y)
    lawtools.assert_same_bits(y, x * scale)


@pytest.mark.parametrize("cap", CAPS)
def test_y_may_be_x(cap):
    case = case_of(3, 19, "float32", cap)
    x = case.arrays["x"].copy()
    case.call({"x": x, "y": x}, 0)
    lawtools.assert_same_bits(x, case.run()["y"])


def test_nan_is_seen():
    x = np.array([[1, np.nan, np.inf]], "float32")
    for cap in CAPS:
        y = blank(x.shape, "float32")
        _kernels.scale_and_cap(x, 1.0, cap, y=y)
        assert np.isnan(y).tolist() == [[False, True, False]] and y[0, 2] == (cap or np.inf)


def test_wrong_shapes_and_caps_are_refused():
    lawtools.assert_shapes_refused(case_of(3, 5, "float32", 2.0))
    x = np.ones((1, 2))
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="softcap"):
            _kernels.scale_and_cap(x, 1.0, cap, y=x)
