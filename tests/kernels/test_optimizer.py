"""Optimizers: reference in float64, bits. (Several arrays in a list: `test_array_list`.)"""
import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.errors import ConfigError

ArrayList = _kernels.ArrayList

HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
# Around a vector, a piece of work (8192), and enough for threads.
SIZES = [0, 1, 15, 16, 17, 63, 8191, 8192, 8193, 40001]


def bound(arrays):
    return {name: ArrayList([array]) for name, array in arrays.items()}


def update(a, lr, beta1, beta2, eps, weight_decay, step, coupled=False):
    x = bound(a)
    _kernels.adamw_update(x["grad"], lr, beta1, beta2, eps, np.array([weight_decay]), coupled, step, params=x["param"],
                          m=x["m"], v=x["v"])


def reference_adamw(grad, param, m, v, step, lr, beta1, beta2, eps, weight_decay):
    grad, param, m, v = (np.asarray(a, "float64") for a in (grad, param, m, v))
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return {"param": param - lr * update - lr * weight_decay * param, "m": m, "v": v}


def adamw_case(size, dtype, step=3, **changes):
    hyper = HYPER | changes

    def call(a, first):
        update(a, **hyper, step=step)

    arrays = {"grad": draw(size, dtype, 0), "param": draw(size, dtype, 1), "m": draw(size, dtype, 2, 0.1),
              "v": draw(size, dtype, 3, 0.1) ** 2}
    return lawtools.Case(call, arrays, rows=tuple(arrays), writes=("param", "m", "v"))


def sgd_case(size, dtype, momentum=0.9):
    def call(a, first):
        x = bound(a)
        _kernels.sgd_update(x["grad"], 0.01, momentum, np.zeros(1), params=x["param"], velocity=x.get("velocity"))

    arrays = {"grad": draw(size, dtype, 0), "param": draw(size, dtype, 1)}
    if momentum:
        arrays["velocity"] = draw(size, dtype, 2)
    return lawtools.Case(call, arrays, rows=tuple(arrays), writes=tuple(arrays)[1:])


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
        update({"grad": grad, "param": param, "m": m, "v": v}, **HYPER, step=step)
        expected = reference_adamw(grad, **expected, step=step, **HYPER)
    for got, name in ((param, "param"), (m, "m"), (v, "v")):
        lawtools.assert_close(got, expected[name], name, float64=1e-14)


def test_first_step_of_adamw_moves_by_the_rate():
    param, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    update({"grad": np.array([5.0, -0.1, 0.0]), "param": param, "m": m, "v": v}, 0.01, 0.9, 0.999, 1e-8, 0.1, step=1)
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
def test_bits(size, dtype):
    for case in (adamw_case(size, dtype), sgd_case(size, dtype), sgd_case(size, dtype, 0.0)):
        lawtools.assert_law_of_bits(case)


@pytest.mark.parametrize("dtype", lawtools.DTYPES)
@pytest.mark.parametrize("size", [1, 17, 8193])
def test_coupled_decay_is_a_product_and_a_sum_each_rounded(size, dtype):
    """As if it had been added to the gradient beforehand: no fused multiply-add, whatever follows."""
    decay = 0.3
    for call, parts in ((lambda x, d: _kernels.adamw_update(x["grad"], 0.01, 0.9, 0.95, 1e-8, d, True, 3,
                                                            params=x["param"], m=x["m"], v=x["v"]), ("param", "m", "v")),
                        (lambda x, d: _kernels.sgd_update(x["grad"], 0.01, 0.9, d, params=x["param"], velocity=x["m"]),
                         ("param", "m"))):
        coupled, before = ({name: a.copy() for name, a in adamw_case(size, dtype).arrays.items()} for _ in range(2))
        before["grad"] += before["param"] * np.dtype(dtype).type(decay)
        call(bound(coupled), np.array([decay]))
        call(bound(before), np.array([0.0]))
        for name in parts:
            lawtools.assert_same_bits(coupled[name], before[name], name)


def test_nan_is_seen():
    case = adamw_case(19, "float32")
    case.arrays["grad"][17] = np.nan
    for name, got in case.run().items():
        assert (np.isnan(got) == (np.arange(19) == 17)).all(), name


def test_wrong_arguments_are_refused():
    lawtools.assert_shapes_refused(adamw_case(5, "float32"))
    lawtools.assert_shapes_refused(sgd_case(5, "float32"))
    with pytest.raises(ConfigError, match="step"):
        adamw_case(5, "float32", step=0).run()
    x = bound({"grad": draw(3), "param": draw(3)})
    with pytest.raises(ConfigError, match="velocity"):
        _kernels.sgd_update(x["grad"], 0.1, 0.9, np.zeros(1), params=x["param"], velocity=None)
