"""Activations: reference, finite differences, bits."""
import math

import lawtools
import numpy as np
import pytest
from lawtools import blank, draw
from scipy.special import expit, log_ndtr, ndtr

from cllm import _kernels
from cllm.errors import ConfigError

KINDS = {"gelu": 0, "relu": 1, "tanh": 2, "silu": 3, "gelu_erf": 4}
# Around a vector, a piece of work (8192 elements), and enough for threads.
SHAPES = [(0, 4), (1, 1), (1, 15), (1, 16), (1, 17), (7, 9), (1, 8191), (2, 4096), (1, 8193), (5, 8191)]

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def reference(z, kind):
    """Value and derivative in float64."""
    z = np.asarray(z, "float64")
    if kind == 1:
        return np.maximum(z, 0), (z > 0).astype("float64")
    if kind == 2:
        return np.tanh(z), 1 - np.tanh(z) ** 2
    if kind == 3:
        return z * expit(z), expit(z) * (1 + z * expit(-z))
    if kind == 4:
        return z * ndtr(z), ndtr(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (z + 0.044715 * z**3))
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t**2) * scale * (1 + 3 * 0.044715 * z**2)


def forward(x, kind):
    y = blank(x.shape, x.dtype)
    _kernels.activation_forward(x, kind, y=y)
    return y


def backward(dy, x, kind):
    dx = blank(x.shape, x.dtype)
    _kernels.activation_backward(dy, x, kind, dx=dx)
    return dx


def cases(n, f, dtype, kind):
    given = {"x": draw((n, f), dtype, 0, 3.0), "dy": draw((n, f), dtype, 1), "y": blank((n, f), dtype),
             "dx": blank((n, f), dtype)}

    def call_forward(a, first):
        _kernels.activation_forward(a["x"], kind, y=a["y"])

    def call_backward(a, first):
        _kernels.activation_backward(a["dy"], a["x"], kind, dx=a["dx"])

    for call, names, written in ((call_forward, ("x", "y"), ("y",)), (call_backward, ("dy", "x", "dx"), ("dx",))):
        yield lawtools.Case(call, {name: given[name] for name in names}, rows=names, writes=written)


@kinds
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_slopes_equal_the_reference(shape, dtype, kind):
    x, dy = draw(shape, dtype, 0, 3.0), draw(shape, dtype, 1)
    value, slope = reference(x, kind)
    lawtools.assert_close(forward(x, kind), value, float32=2e-7, float64=1e-15)
    lawtools.assert_close(backward(dy, x, kind), dy.astype("float64") * slope, float32=4e-7, float64=4e-15)


@kinds
def test_backward_equals_finite_differences(kind):
    x, dy = draw((3, 19), seed=2, scale=2.0), draw((3, 19), seed=3)
    x += np.where(np.abs(x) < 0.01, 0.02, 0)  # ReLU away from its kink
    numeric = lawtools.finite_differences(lambda: lawtools.weighted_sum(forward(x, kind), dy), x)
    lawtools.assert_gradient(backward(dy, x, kind), numeric)


@kinds
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, dtype, kind):
    for case in cases(*shape, dtype, kind):
        lawtools.assert_law_of_bits(case)


@kinds
def test_outputs_may_be_their_inputs(kind):
    x, dy = draw((3, 19), "float32"), draw((3, 19), "float32", 1)
    y, dx = forward(x, kind), backward(dy, x, kind)
    _kernels.activation_backward(dy, x, kind, dx=dy)
    _kernels.activation_forward(x, kind, y=x)
    lawtools.assert_same_bits(dy, dx)
    lawtools.assert_same_bits(x, y)


def gelu_error(x):
    """Largest relative error of gelu, against long double."""
    z = x.astype("longdouble")
    scale = np.sqrt(2 / (4 * np.arctan(np.longdouble(1))))
    value = z / (1 + np.exp(-2 * scale * (z + z**3 * 44715 / 1000000)))
    return np.abs(forward(x, 0) / value - 1).max()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_gelu_keeps_the_precision_of_its_left_tail(dtype):
    assert gelu_error(np.linspace(-5, -3, 41, dtype=dtype)[None]) < (3e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_gelu_is_accurate_where_its_power_of_two_is_of_order_one(dtype):
    x = np.random.default_rng(0).uniform(-1, 1, (1, 100_000)).astype(dtype)
    assert gelu_error(x) < 4.5 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_silu_and_its_slope_keep_their_digits(dtype):
    x = np.concatenate([np.linspace(-80, 80, 3201), np.linspace(-1, 1, 2001)]).astype(dtype)[None]
    z, eps = x.astype("longdouble"), np.finfo(dtype).eps
    s = 1 / (1 + np.exp(-z))
    assert np.abs(forward(x, 3) - z * s).max() < 3 * eps * 80
    at = x != 0
    assert np.abs(forward(x, 3)[at] / (z * s)[at] - 1).max() < 4 * eps
    # The slope has a root at -1.278: there the error is relative to its parts.
    error = np.abs(backward(np.ones_like(x), x, 3) - s * (1 + z * (1 - s)))
    assert (error <= 6 * eps * s * (1 + np.abs(z))).all()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_exact_gelu_is_as_accurate_as_its_type(dtype):
    """Against the logarithm of the normal distribution, which has no cancellation."""
    eps = np.finfo(dtype).eps
    x = np.concatenate([np.linspace(-12, 12, 4801), np.linspace(-0.5, 0.5, 2000)]).astype(dtype)[None]
    z = x.astype("float64")
    phi, density = ndtr(z), np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    at = (x != 0) & ((x > -12) if dtype == "float32" else True)
    error = np.abs(forward(x, 4)[at] / (z * np.exp(log_ndtr(z)))[at] - 1)
    assert (error <= eps * (4 + 1.5 * np.minimum(z, 0)[at] ** 2)).all()
    assert np.abs(forward(x, 4)[x > 0] / (z * phi)[x > 0] - 1).max() < 6 * eps
    error = np.abs(backward(np.ones_like(x), x, 4) - (phi + z * density))
    assert (error <= eps * (4 + 1.5 * z * z) * (phi + np.abs(z) * density)).all()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("large", [50.0, 1e4, 1e19, 1e30])
def test_large_arguments_saturate(dtype, large):
    x = np.array([[large, -large]], dtype)
    one = np.ones_like(x)
    for kind in (0, 1, 4) if large == 50 else (0, 1, 3, 4):
        assert (forward(x, kind) == [[x[0, 0], 0]]).all()
        assert (backward(one, x, kind) == [[1, 0]]).all()
    assert (forward(x, 2) == [[1, -1]]).all()
    assert (backward(one, x, 2) == 0).all() or large == 50 and dtype == "float64"


def test_the_slope_of_tanh_keeps_the_precision_of_its_tails():
    x = np.linspace(1, 40, 79)[None]
    for dtype, allowed in (("float32", 8e-6), ("float64", 2e-14)):
        z = x.astype(dtype)
        got = backward(np.ones_like(z), z, 2)
        assert np.abs(got / np.cosh(z.astype("longdouble")) ** -2 - 1).max() < allowed


@kinds
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_nan_is_seen(dtype, kind):
    x = draw((1, 40), dtype)
    x[0, [3, 39]] = np.nan
    assert (np.isnan(forward(x, kind)) == np.isnan(x)).all()
    assert (np.isnan(backward(x, np.ones_like(x), kind)) == np.isnan(x)).all()
    if kind != KINDS["relu"]:
        assert (np.isnan(backward(np.ones_like(x), x, kind)) == np.isnan(x)).all()


def test_infinity_is_seen():
    x = np.array([[np.inf]], "float32")
    assert [forward(x, kind)[0, 0] for kind in KINDS.values()] == [np.inf, np.inf, 1, np.inf, np.inf]


def test_wrong_shapes_and_kinds_are_refused():
    for case in cases(3, 5, "float32", 0):
        lawtools.assert_shapes_refused(case)
    x = draw((2, 3))
    for kind in (-1, 5):
        with pytest.raises(ConfigError, match="kind"):
            forward(x, kind)
        with pytest.raises(ConfigError, match="kind"):
            backward(x, x, kind)
