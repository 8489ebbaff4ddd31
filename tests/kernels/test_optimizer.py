"""Optimizers and what surrounds a step: reference in float64, bits."""
import math

import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.errors import ConfigError

HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
# Around a vector, a piece of work (8192), the pieces whose sums are held at once (256), and enough for threads.
SIZES = [0, 1, 15, 16, 17, 63, 8191, 8192, 8193, 40001]
LARGE = 256 * 8192 + 17


def reference_adamw(grad, param, m, v, step, lr, beta1, beta2, eps, weight_decay):
    grad, param, m, v = (np.asarray(a, "float64") for a in (grad, param, m, v))
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return {"param": param - lr * update - lr * weight_decay * param, "m": m, "v": v}


def adamw_case(size, dtype, step=3, **changes):
    hyper = HYPER | changes

    def call(a, first):
        _kernels.adamw_update(a["grad"], hyper["lr"], hyper["beta1"], hyper["beta2"], hyper["eps"],
                              hyper["weight_decay"], step, param=a["param"], m=a["m"], v=a["v"])

    arrays = {"grad": draw(size, dtype, 0), "param": draw(size, dtype, 1), "m": draw(size, dtype, 2, 0.1),
              "v": draw(size, dtype, 3, 0.1) ** 2}
    return lawtools.Case(call, arrays, rows=tuple(arrays), writes=("param", "m", "v"))


def sgd_case(size, dtype, momentum=0.9):
    def call(a, first):
        _kernels.sgd_update(a["grad"], 0.01, momentum, param=a["param"], velocity=a.get("velocity"))

    arrays = {"grad": draw(size, dtype, 0), "param": draw(size, dtype, 1)}
    if momentum:
        arrays["velocity"] = draw(size, dtype, 2)
    return lawtools.Case(call, arrays, rows=tuple(arrays), writes=tuple(arrays)[1:])


def small_cases(size, dtype):
    """Scaling, zeroing and adding, with what each must give."""
    x, y = draw(size, dtype, 0), draw(size, dtype, 1)
    third = np.dtype(dtype).type(1 / 3)
    yield lawtools.Case(lambda a, first: _kernels.scale_in_place(1 / 3, x=a["x"]), {"x": x}, ("x",), ("x",)), x * third
    yield lawtools.Case(lambda a, first: _kernels.fill_zero(x=a["x"]), {"x": x}, ("x",), ("x",)), x * 0 + 0
    yield lawtools.Case(lambda a, first: _kernels.add_in_place(a["x"], y=a["y"]), {"x": x, "y": y}, ("x", "y"),
                        ("y",)), x + y


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.0}, {"step": 1}, {"step": 1000}, {"eps": 0.1}, {"lr": 0.0}])
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_adamw_equals_the_reference(size, dtype, changes):
    case = adamw_case(size, dtype, **changes)
    expected = reference_adamw(**case.arrays, **({"step": 3} | HYPER | changes))
    for name, got in case.run().items():
        lawtools.assert_close(got, expected[name], name, float32=2e-7, float64=4e-16)


def test_adamw_over_many_steps_stays_with_the_reference():
    size = 50
    param, m, v = draw(size), np.zeros(size), np.zeros(size)
    expected = {"param": param.copy(), "m": m.copy(), "v": v.copy()}
    for step in range(1, 30):
        grad = draw(size, seed=100 + step)
        _kernels.adamw_update(grad, *HYPER.values(), step, param=param, m=m, v=v)
        expected = reference_adamw(grad, **expected, step=step, **HYPER)
    for got, name in ((param, "param"), (m, "m"), (v, "v")):
        lawtools.assert_close(got, expected[name], name, float64=1e-14)


def test_first_step_of_adamw_moves_by_the_rate():
    param, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    _kernels.adamw_update(np.array([5.0, -0.1, 0.0]), 0.01, 0.9, 0.999, 1e-8, 0.1, 1, param=param, m=m, v=v)
    np.testing.assert_allclose(param, [-0.01, 0.01, 0.0], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sgd_equals_the_reference(size, dtype, momentum):
    case = sgd_case(size, dtype, momentum)
    a = {name: array.astype("float64") for name, array in case.arrays.items()}
    velocity = momentum * a.get("velocity", 0) + a["grad"]
    expected = {"velocity": velocity, "param": a["param"] - 0.01 * velocity}
    for name, got in case.run().items():
        lawtools.assert_close(got, expected[name], name, float32=2e-7, float64=4e-16)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_small_kernels(size, dtype):
    for case, expected in small_cases(size, dtype):
        lawtools.assert_same_bits(case.run()[case.writes[0]], expected)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_bits(size, dtype):
    for case in (adamw_case(size, dtype), sgd_case(size, dtype), sgd_case(size, dtype, 0.0),
                 *(case for case, _ in small_cases(size, dtype))):
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
                results.add(_kernels.sum_of_squares(lawtools.misaligned(x, shift)))
    assert len(results) == 1
    assert results.pop() == pytest.approx(expected, rel=1e-13, abs=0)


def test_sum_of_squares_of_float32_does_not_overflow():
    assert _kernels.sum_of_squares(np.full(3, 1e30, "float32")) == pytest.approx(3e60)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [size for size in SIZES if size] + [LARGE])
def test_first_nonfinite(size, value, dtype):
    x = draw(size, dtype)
    assert _kernels.first_nonfinite(x) == -1
    for at in sorted({size - 1, size // 2, 0}, reverse=True):
        x[at] = value
        for n in lawtools.THREADS:
            with lawtools.threads(n):
                assert _kernels.first_nonfinite(x) == at


def test_first_nonfinite_of_nothing_and_of_the_largest_numbers():
    assert _kernels.first_nonfinite(np.zeros(0)) == -1
    assert _kernels.first_nonfinite(np.full(40, np.finfo("float64").max)) == -1
    assert _kernels.first_nonfinite(np.full(40, -np.finfo("float32").max, "float32")) == -1


def test_nan_is_seen():
    case = adamw_case(19, "float32")
    case.arrays["grad"][17] = np.nan
    for name, got in case.run().items():
        assert (np.isnan(got) == (np.arange(19) == 17)).all(), name
    assert np.isnan(_kernels.sum_of_squares(case.arrays["grad"]))
    for kernel_case, _ in small_cases(19, "float32"):
        kernel_case.arrays["x"][3] = np.nan
        got = kernel_case.run()[kernel_case.writes[0]]
        assert np.isnan(got[3]) or (got == 0).all()


def test_wrong_arguments_are_refused():
    lawtools.assert_shapes_refused(adamw_case(5, "float32"))
    lawtools.assert_shapes_refused(sgd_case(5, "float32"))
    lawtools.assert_shapes_refused(list(small_cases(5, "float32"))[2][0])
    with pytest.raises(ConfigError, match="step"):
        adamw_case(5, "float32", step=0).run()
    with pytest.raises(ConfigError, match="velocity"):
        _kernels.sgd_update(draw(3), 0.1, 0.9, param=draw(3), velocity=None)
