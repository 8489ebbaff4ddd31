"""AdamW in bytes: codes, the nearest of them, whole steps against NumPy, bits, what is refused."""
from functools import cache

import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.errors import ConfigError, DtypeError, LayoutError, ShapeError

ArrayList, CodeList = _kernels.ArrayList, _kernels.CodeList
BLOCK = 2048
SIZES = [0, 1, 2047, 2048, 2049, 8192, 40001]  # around a block, a piece of work, and enough for threads
HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
LISTS = {"grad": ArrayList, "param": ArrayList, "m_scale": ArrayList, "v_scale": ArrayList, "m": CodeList, "v": CodeList}


def magnitudes(parts):
    """The dynamic map: 0, seven decades of the middles of equal parts of [0.1, 1], and 1."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, parts * 2**decade + 1)
        found += list(10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2)
    return np.array(sorted(found))


@cache
def codes(signed):
    made = np.empty(256, np.float32)
    _kernels.dynamic_codes(signed, out=made)
    return made


def test_the_codes_are_the_dynamic_map():
    positive = magnitudes(1)
    assert len(positive) == 129 and len(magnitudes(2)) == 256
    np.testing.assert_allclose(codes(True), [*-positive[127:0:-1], *positive], rtol=1e-7)
    np.testing.assert_allclose(codes(False), magnitudes(2), rtol=1e-7)
    for signed in (True, False):
        assert (np.diff(codes(signed)) > 0).all() and codes(signed)[-1] == 1


def nearest(values, signed):
    """Bytes and scales of values, block by block."""
    found, scales = np.zeros(len(values), np.uint8), np.zeros(-(-len(values) // BLOCK), np.float32)
    table = codes(signed)[127:] if signed else codes(False)
    middles = ((table[:-1].astype("float64") + table[1:]) / 2).astype(np.float32)
    for b in range(len(scales)):
        part = slice(b * BLOCK, (b + 1) * BLOCK)
        block = values[part]
        scales[b] = np.abs(block).max()
        if scales[b]:
            number = np.searchsorted(middles, np.abs(block) / scales[b], side="left")
            found[part] = (np.where(block >= 0, 127 + number, 127 - np.minimum(number, 127)) if signed
                           else np.where((number == 0) & (block > 0), 1, number))
        elif signed:
            found[part] = 127
    return found, scales


def spread_out(size, seed):
    """Numbers of many magnitudes: seven decades and below, and zeros."""
    values = draw(size, "float32", seed) * np.float32(10) ** np.random.default_rng(seed).uniform(-9, 1, size).astype("float32")
    values[::17] = 0
    return values


def arrays(size, seed=0):
    m, m_scale = nearest(spread_out(size, seed + 1), True)
    v, v_scale = nearest(spread_out(size, seed + 2) ** 2, False)
    return {"grad": spread_out(size, seed + 3), "param": draw(size, "float32", seed), "m": m, "v": v, "m_scale": m_scale,
            "v_scale": v_scale}


def update(a, step=3, lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    x = {name: LISTS[name]([array]) for name, array in a.items()}
    _kernels.adamw8bit_update(x["grad"], lr, beta1, beta2, eps, np.array([weight_decay]), step, params=x["param"], m=x["m"],
                              m_scales=x["m_scale"], v=x["v"], v_scales=x["v_scale"])


def reference(a, step=3, lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """The same in NumPy, operation by operation in float32."""
    f = np.float32
    m, v = (codes(name == "m")[a[name]] * np.repeat(a[f"{name}_scale"], BLOCK)[:len(a["grad"])] for name in "mv")
    m = f(beta1) * m + f(1 - beta1) * a["grad"]
    v = f(beta2) * v + (f(1 - beta2) * a["grad"]) * a["grad"]
    root = np.sqrt(v) * f(1 / np.sqrt(1 - beta2**step)) + f(eps)
    param = a["param"] - (f(lr / (1 - beta1**step)) * (m / root) + f(lr * weight_decay) * a["param"])
    (m_codes, m_scale), (v_codes, v_scale) = nearest(m, True), nearest(v, False)
    return {"grad": a["grad"], "param": param, "m": m_codes, "v": v_codes, "m_scale": m_scale, "v_scale": v_scale}


@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_reference_to_the_last_bit(size):
    for step in (1, 3):
        got = arrays(size, seed=step)
        expected = reference(got, step)
        update(got, step)
        for name in got:
            lawtools.assert_same_bits(got[name], expected[name], name)


def test_from_zeros_it_is_adamw_and_stays_near():
    size, seen = 5000, {}
    grads = [draw(size, "float32", seed) for seed in range(20)]
    small = {name: np.zeros(-(-size // BLOCK) if "scale" in name else size, np.uint8 if name in "mv" else np.float32)
             for name in ("param", "m", "v", "m_scale", "v_scale")}
    exact = {name: np.zeros(size, np.float32) for name in ("param", "m", "v")}
    for step, grad in enumerate(grads, 1):
        update({"grad": grad, **small}, step)
        _kernels.adamw_update(ArrayList([grad]), 3e-3, 0.9, 0.95, 1e-8, np.array([0.1]), False, step,
                              **{k: ArrayList([exact[n]]) for k, n in (("params", "param"), ("m", "m"), ("v", "v"))})
        seen[step] = np.abs(small["param"] - exact["param"]).max() / np.abs(exact["param"]).max()
    assert seen[1] < 1e-6, "the first step has nothing to round"
    assert 1e-4 < seen[20] < 0.1, "later ones have, and stay near"


def test_what_was_not_zero_in_v_does_not_become_zero():
    """A row of an embedding without a gradient, in a block with one of large gradients: m over the root of v is bounded."""
    size = 2048
    a = {"param": np.zeros(size, np.float32), "m": np.zeros(size, np.uint8), "v": np.zeros(size, np.uint8),
         "m_scale": np.zeros(1, np.float32), "v_scale": np.zeros(1, np.float32)}
    grad = np.full(size, 1e3, np.float32)
    grad[:100], grad[100:200] = 1e-3, 0
    for step in range(1, 6):
        update({"grad": grad, **a}, step)
        grad[:100] = 0
    assert (codes(False)[a["v"][:100]] > 0).all() and not codes(False)[a["v"][100:200]].any()
    assert np.abs(a["param"]).max() < 6 * 3e-3


@pytest.mark.parametrize("size", SIZES)
def test_bits(size):
    """Threads, addresses, and cuts between blocks change nothing."""
    expected = arrays(size)
    update(expected)
    for n_threads, shift in ((1, 1), (2, 0), (3, 5)):
        got = {name: lawtools.misaligned(array, shift) for name, array in arrays(size).items()}
        with lawtools.threads(n_threads):
            update(got)
        for name in got:
            lawtools.assert_same_bits(got[name], expected[name], name)
    cut = arrays(size)
    for start in range(0, size, 3 * BLOCK):
        update({name: array[start // BLOCK:start // BLOCK + 3] if "scale" in name else array[start:start + 3 * BLOCK]
                for name, array in cut.items()})
    for name in cut:
        lawtools.assert_same_bits(cut[name], expected[name], name)


def test_what_is_not_finite_stays_in_its_block():
    got, clean = arrays(3 * BLOCK), arrays(3 * BLOCK)
    got["grad"][BLOCK + 5], got["grad"][BLOCK + 6] = np.nan, np.inf
    update(got), update(clean)
    for name in ("param", "m", "v"):
        for part in (slice(0, BLOCK), slice(2 * BLOCK, None)):
            lawtools.assert_same_bits(got[name][part], clean[name][part], name)


@pytest.mark.parametrize("name, wrong, error", [
    ("m", np.zeros(4999, np.uint8), ShapeError), ("v", np.zeros(5001, np.uint8), ShapeError),
    ("m_scale", np.zeros(2, np.float32), ShapeError), ("v_scale", np.zeros(4, np.float32), ShapeError),
    ("param", np.zeros(10, np.float32), ShapeError), ("v_scale", np.zeros(3), DtypeError),
    ("param", np.zeros(5000), DtypeError)])
def test_arrays_that_do_not_belong_together_are_refused(name, wrong, error):
    with pytest.raises(error, match="adamw8bit_update"):
        update({**arrays(5000), name: wrong})


def test_other_things_are_refused():
    with pytest.raises(ConfigError, match="must be at least 1; got 0"):
        update(arrays(5), step=0)
    with pytest.raises(DtypeError, match=r"CodeList\(arrays\)\[1\]: must be uint8; got float32"):
        CodeList([np.zeros(3, np.uint8), np.zeros(3, np.float32)])
    with pytest.raises(LayoutError, match="must be C-contiguous and writable"):
        CodeList([np.zeros((4, 4), np.uint8)[:, 1]])
    with pytest.raises(TypeError):
        _kernels.fill_zero(x=CodeList([np.zeros(3, np.uint8)]))
    assert len(CodeList([])) == 0 and len(CodeList([np.zeros(0, np.uint8)]).arrays) == 1
    _kernels.adamw8bit_update(*(ArrayList([]), 1e-3, 0.9, 0.95, 1e-8, np.zeros(0), 1), params=ArrayList([]), m=CodeList([]),
                              m_scales=ArrayList([]), v=CodeList([]), v_scales=ArrayList([]))
