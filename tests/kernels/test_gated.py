"""Gated activation: the activation kernels and a product, finite differences, bits."""
import lawtools
import numpy as np
import pytest
from lawtools import blank, draw
from test_activation import kinds, reference

from cllm import _kernels
from cllm.errors import ConfigError

# N, F: around a vector, a piece of work (8192 elements), and enough for threads.
SHAPES = [(0, 4), (3, 0), (1, 1), (1, 15), (1, 16), (1, 17), (7, 9), (2, 4095), (2, 8192), (3, 8193), (130, 300)]


def forward(x, kind):
    y = blank((len(x), x.shape[1] // 2), x.dtype)
    _kernels.gated_forward(x, kind, y=y)
    return y


def backward(dy, x, kind):
    dx = blank(x.shape, x.dtype)
    _kernels.gated_backward(dy, x, kind, dx=dx)
    return dx


def cases(n, f, dtype, kind):
    x = draw((n, 2 * f), dtype, 0, 3.0)

    def call_forward(a, first):
        _kernels.gated_forward(a["x"], kind, y=a["y"])

    def call_backward(a, first):
        _kernels.gated_backward(a["dy"], a["x"], kind, dx=a["dx"])

    yield lawtools.Case(call_forward, {"x": x, "y": blank((n, f), dtype)}, ("x", "y"), ("y",))
    yield lawtools.Case(call_backward, {"dy": draw((n, f), dtype, 1), "x": x, "dx": blank((n, 2 * f), dtype)},
                        ("dy", "x", "dx"), ("dx",))


@kinds
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n, f", SHAPES)
def test_values_and_slopes_equal_the_reference(n, f, dtype, kind):
    x, dy = draw((n, 2 * f), dtype, 0, 3.0), draw((n, f), dtype, 1)
    gate, up, d = (a.astype("float64") for a in (x[:, :f], x[:, f:], dy))
    value, slope = reference(gate, kind)
    lawtools.assert_close(forward(x, kind), value * up, float32=3e-7, float64=1e-15)
    lawtools.assert_close(backward(dy, x, kind), np.hstack([d * up * slope, d * value]), float32=5e-7, float64=4e-15)


@kinds
def test_the_forward_has_the_bits_of_the_activation(kind):
    x, value = draw((5, 34), "float32", 0, 3.0), blank((5, 17), "float32")
    _kernels.activation_forward(x[:, :17].copy(), kind, y=value)
    lawtools.assert_same_bits(forward(x, kind), value * x[:, 17:])


@kinds
def test_backward_equals_finite_differences(kind):
    x, dy = draw((3, 38), seed=2, scale=2.0), draw((3, 19), seed=3)
    x += np.where(np.abs(x) < 0.01, 0.02, 0)  # ReLU away from its kink
    numeric = lawtools.finite_differences(lambda: lawtools.weighted_sum(forward(x, kind), dy), x)
    lawtools.assert_gradient(backward(dy, x, kind), numeric)


@kinds
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("n, f", SHAPES)
def test_bits(n, f, dtype, kind):
    for case in cases(n, f, dtype, kind):
        lawtools.assert_law_of_bits(case)


@kinds
def test_dx_may_be_x(kind):
    x, dy = draw((3, 38), "float32"), draw((3, 19), "float32", 1)
    expected = backward(dy, x, kind)
    _kernels.gated_backward(dy, x, kind, dx=x)
    lawtools.assert_same_bits(x, expected)


@kinds
def test_nan_is_seen(kind):
    x = draw((1, 80), "float32")
    x[0, [3, 50]] = np.nan
    assert np.flatnonzero(np.isnan(forward(x, kind))).tolist() == [3, 10]
    assert np.isnan(backward(np.ones((1, 40), "float32"), x, kind))[0, [10, 43]].all()


def test_wrong_shapes_and_kinds_are_refused():
    for case in cases(3, 5, "float32", 3):
        lawtools.assert_shapes_refused(case)
    x = draw((2, 4))
    for kind in (-1, 5):
        with pytest.raises(ConfigError, match="kind"):
            forward(x, kind)
        with pytest.raises(ConfigError, match="kind"):
            backward(x[:, :2].copy(), x, kind)
