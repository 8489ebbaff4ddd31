"""Losses: reference, finite differences, bits."""
import dataclasses

import lawtools
import numpy as np
import pytest
from lawtools import blank, draw
from scipy.special import logsumexp

from cllm import _kernels
from cllm.errors import ConfigError

# R, V (or C): around the lanes of a sum (16), vectors, and enough for threads.
SHAPES = [(0, 5), (1, 1), (1, 2), (3, 15), (2, 16), (5, 17), (4, 61), (3, 256), (33, 1001), (2, 20000)]


def draw_targets(rows, vocab, seed=0):
    """Each row's target; every third is ignored."""
    targets = np.random.default_rng(seed).integers(0, vocab, rows).astype("int32")
    targets[1::3] = -1
    return targets


def scale_of(value):
    return np.array([float(value)])


def cross_entropy(logits, targets):
    losses = blank(len(logits))
    _kernels.cross_entropy_forward(logits, targets, losses=losses)
    return losses


def squared_error(y, weight, targets):
    losses = blank(len(y))
    _kernels.squared_error_forward(y, weight, targets, losses=losses)
    return losses


def reference(logits, targets, scale):
    """Losses and dlogits in float64."""
    z, at = np.asarray(logits, "float64"), np.arange(len(logits))
    lse = logsumexp(z, axis=1)
    onehot = np.zeros_like(z)
    onehot[at, targets] = 1
    valid = targets != -1
    return np.where(valid, lse - z[at, targets], 0), (np.exp(z - lse[:, None]) - onehot) * scale * valid[:, None]


def cross_entropy_cases(rows, vocab, dtype):
    def forward(a, first):
        _kernels.cross_entropy_forward(a["logits"], a["targets"], losses=a["losses"])

    def backward(a, first):
        _kernels.cross_entropy_backward(a["targets"], a["scale"], logits=a["logits"], losses=a["losses"])

    arrays = {"logits": draw((rows, vocab), dtype, 0, 3.0), "targets": draw_targets(rows, vocab), "losses": blank(rows)}
    names = tuple(arrays)
    yield lawtools.Case(forward, arrays, rows=names, writes=("losses",))
    yield lawtools.Case(backward, arrays | {"scale": scale_of(0.3)}, rows=names, writes=("logits", "losses"))


def squared_error_cases(rows, c, dtype, vocab=7):
    def forward(a, first):
        _kernels.squared_error_forward(a["y"], a["weight"], a["targets"], losses=a["losses"])

    def backward(a, first):
        _kernels.squared_error_backward(a["y"], a["weight"], a["targets"], a["scale"], dy=a["dy"], losses=a["losses"])

    arrays = {"y": draw((rows, c), dtype, 0), "weight": draw((vocab, c), dtype, 1),
              "targets": draw_targets(rows, vocab), "losses": blank(rows)}
    yield lawtools.Case(forward, arrays, rows=("y", "targets", "losses"), writes=("losses",))
    yield lawtools.Case(backward, arrays | {"scale": scale_of(0.3), "dy": blank((rows, c), dtype)},
                        rows=("y", "targets", "dy", "losses"), writes=("dy", "losses"))


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("rows, vocab", SHAPES)
def test_cross_entropy_equals_the_reference(rows, vocab, dtype):
    forward, backward = cross_entropy_cases(rows, vocab, dtype)
    a = backward.arrays
    losses, dlogits = reference(a["logits"], a["targets"], 0.3)
    got = backward.run()
    # Losses are float64 whatever the dtype of the logits.
    np.testing.assert_allclose(forward.run()["losses"], losses, rtol=1e-14, atol=1e-14)
    lawtools.assert_same_bits(got["losses"], forward.run()["losses"])
    lawtools.assert_close(got["logits"], dlogits, float32=4e-7, float64=1e-14)
    assert (got["logits"][a["targets"] == -1] == 0).all()


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("rows, c", SHAPES)
def test_squared_error_equals_the_reference(rows, c, dtype):
    forward, backward = squared_error_cases(rows, c, dtype)
    a = backward.arrays
    valid = a["targets"] != -1
    difference = (a["y"].astype("float64") - a["weight"].astype("float64")[a["targets"]]) * valid[:, None]
    got = backward.run()
    np.testing.assert_allclose(forward.run()["losses"], (difference**2).sum(axis=1), rtol=1e-13)
    lawtools.assert_same_bits(got["losses"], forward.run()["losses"])
    lawtools.assert_close(got["dy"], 2 * difference * 0.3, float32=2e-7, float64=4e-16)


def test_cross_entropy_gradient_equals_finite_differences():
    logits, targets, scale = draw((5, 19), scale=2.0), draw_targets(5, 19), scale_of(0.25)
    dlogits = logits.copy()
    _kernels.cross_entropy_backward(targets, scale, logits=dlogits, losses=blank(5))

    def loss():
        return 0.25 * lawtools.weighted_sum(cross_entropy(logits, targets), 1)

    lawtools.assert_gradient(dlogits, lawtools.finite_differences(loss, logits))


@pytest.mark.parametrize("logit_scale, softcap", [(1.0, 2.0), (0.3, None), (0.3, 2.0)])
def test_gradient_of_capped_logits_equals_finite_differences(logit_scale, softcap):
    product, targets, z = draw((5, 19), scale=4.0), draw_targets(5, 19), blank((5, 19))

    def loss():
        _kernels.scale_and_cap(product, logit_scale, softcap, y=z)
        return 0.25 * lawtools.weighted_sum(cross_entropy(z, targets), 1)

    numeric, losses = lawtools.finite_differences(loss, product), blank(5)
    loss()
    expected = cross_entropy(z, targets)
    _kernels.cross_entropy_backward(targets, scale_of(0.25), logit_scale, softcap, logits=z, losses=losses)
    lawtools.assert_same_bits(losses, expected)
    lawtools.assert_gradient(z, numeric)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("rows, vocab", SHAPES)
def test_gradient_of_capped_logits(rows, vocab, dtype):
    case = list(cross_entropy_cases(rows, vocab, dtype))[1]

    def call(a, first):
        _kernels.cross_entropy_backward(a["targets"], a["scale"], 0.5, 9.0, logits=a["logits"], losses=a["losses"])

    capped = dataclasses.replace(case, call=call)
    slope = 0.5 * (1 - (case.arrays["logits"].astype("float64") / 9.0) ** 2)
    expected = reference(case.arrays["logits"], case.arrays["targets"], 0.3)[1] * slope
    lawtools.assert_close(capped.run()["logits"], expected, float32=6e-7, float64=1e-14)
    lawtools.assert_law_of_bits(capped)


def test_squared_error_gradient_equals_finite_differences():
    y, weight, targets, dy = draw((5, 19)), draw((7, 19), seed=1), draw_targets(5, 7), blank((5, 19))
    _kernels.squared_error_backward(y, weight, targets, scale_of(0.25), dy=dy, losses=blank(5))
    numeric = lawtools.finite_differences(lambda: 0.25 * lawtools.weighted_sum(squared_error(y, weight, targets), 1), y)
    lawtools.assert_gradient(dy, numeric)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, dtype):
    for case in (*cross_entropy_cases(*shape, dtype), *squared_error_cases(*shape, dtype)):
        lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
def test_large_logits_neither_overflow_nor_cancel(dtype):
    logits = np.array([[1000, 0, -1000], [-5000, -5001, -9000]], dtype)
    targets = np.array([0, 1], "int32")
    losses, dlogits = reference(logits, targets, 1)
    lawtools.assert_close(cross_entropy(logits, targets), losses)
    _kernels.cross_entropy_backward(targets, scale_of(1), logits=logits, losses=losses)
    lawtools.assert_close(logits, dlogits)


def test_the_gradient_of_a_sure_row_keeps_its_digits():
    logits, targets = np.array([[20.0, 0.0]], "float32"), np.array([0], "int32")
    _kernels.cross_entropy_backward(targets, scale_of(1), logits=logits, losses=blank(1))
    p = 1 / (1 + np.exp(20.0))
    np.testing.assert_allclose(logits, [[-p, p]], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 17, 18])
def test_what_is_not_finite_is_seen(value, at):
    logits, targets = draw((3, 19), "float32"), np.array([3, 4, -1], "int32")
    logits[1:, at] = value
    losses = cross_entropy(logits, targets)
    assert np.isfinite(losses[0]) and np.isnan(losses[1]) and losses[2] == 0
    _kernels.cross_entropy_backward(targets, scale_of(1), logits=logits, losses=losses)
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all() and (logits[2] == 0).all()
    y, weight = draw((1, 19)), draw((5, 19))
    y[0, at] = value
    assert not np.isfinite(squared_error(y, weight, targets[:1])[0])


def test_a_forbidden_class_has_no_share():
    logits, targets = np.array([[0.0, -np.inf, 0.0]], "float32"), np.array([0], "int32")
    assert cross_entropy(logits, targets)[0] == pytest.approx(np.log(2), rel=1e-15)
    _kernels.cross_entropy_backward(targets, scale_of(1), logits=logits, losses=blank(1))
    np.testing.assert_allclose(logits, [[-0.5, 0, 0.5]], rtol=1e-6)


def test_losses_are_added_in_order():
    losses = draw(1001, scale=1e3)
    expected = 0.125
    for value in losses:
        expected += value
    loss = np.array([0.125])
    _kernels.accumulate_losses(losses, loss=loss)
    assert loss[0] == expected
    case = lawtools.Case(lambda a, first: _kernels.accumulate_losses(a["losses"], loss=a["loss"]),
                         {"losses": losses, "loss": loss}, rows=("losses",), writes=("loss",))
    lawtools.assert_law_of_bits(case)
    lawtools.assert_shapes_refused(case, free={("losses", 0)})


def test_wrong_shapes_are_refused():
    for case in cross_entropy_cases(3, 5, "float32"):
        lawtools.assert_shapes_refused(case, free={("logits", 1)})
    for case in squared_error_cases(3, 5, "float32"):
        lawtools.assert_shapes_refused(case, free={("weight", 0)})


@pytest.mark.parametrize("cap", [0.0, -3.0, float("nan")])
def test_a_soft_cap_is_above_zero(cap):
    logits = np.ones((1, 2))
    with pytest.raises(ConfigError, match="softcap"):
        _kernels.cross_entropy_backward(np.zeros(1, "int32"), scale_of(1), 1.0, cap, logits=logits, losses=blank(1))
    assert (logits == 1).all()
