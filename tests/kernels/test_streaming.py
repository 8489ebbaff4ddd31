"""Stores past the caches: outputs so large that they take them have the bits of those that do not."""
import lawtools
import numpy as np
import pytest
from lawtools import draw

from cllm import _kernels
from cllm.arrays import aligned_empty

ROWS, COLUMNS = 1031, 4112  # 16 MiB and a little more in float32; neither whole pieces nor a power of two
FILL = np.float32(7)


def activation(kind):
    def forward(a, y):
        _kernels.activation_forward(a["x"], kind, y=y)

    def backward(a, y):
        _kernels.activation_backward(a["dy"], a["x"], kind, dx=y)

    return forward, backward


def layernorm(a, y):
    statistics = np.empty((2, len(y)))
    _kernels.layernorm_forward(a["x"], a["weight"], a["bias"], 1e-5, y=y, mean=statistics[0], rstd=statistics[1])


def rmsnorm(a, y):
    _kernels.rmsnorm_forward(a["x"], a["weight"], 1e-5, y=y, rstd=np.empty((len(y), 1)))


def gated(a, y):
    _kernels.gated_forward(a["both"], 3, y=y)


def gated_backward(a, y):
    _kernels.gated_backward(a["half"], a["x"], 3, dx=y)


def residual(a, y):
    _kernels.residual_forward(a["x"], a["dy"], y=y)


def zero(a, y):
    _kernels.fill_zero(x=_kernels.ArrayList([y]))


@pytest.fixture(scope="module")
def given():
    x = draw((ROWS, COLUMNS), "float32")
    return {"x": x, "dy": x[::-1].copy(), "both": np.hstack([x, x[::-1]]), "half": x[:, 1:1 + COLUMNS // 2].copy(),
            "weight": draw(COLUMNS, "float32", 1), "bias": draw(COLUMNS, "float32", 2)}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("call", [*activation(0), *activation(1), *activation(2), *activation(3),
                                  *activation(4), layernorm, rmsnorm, gated, gated_backward, residual, zero])
def test_bits(given, call, n_threads):
    room = aligned_empty((ROWS + 1) * COLUMNS, np.float32)
    room[...] = FILL
    streamed = room[:ROWS * COLUMNS].reshape(ROWS, COLUMNS)
    assert streamed.nbytes >= 1 << 24 and streamed.ctypes.data % 64 == 0
    expected = np.full((ROWS, COLUMNS), FILL)
    with lawtools.threads(n_threads):
        call(given, streamed)
    for rows in (slice(0, 500), slice(500, None)):  # each part too small to be streamed
        call({name: a[rows] if a.ndim == 2 else a for name, a in given.items()}, expected[rows])
    lawtools.assert_same_bits(streamed, expected)
    assert (room[ROWS * COLUMNS:] == FILL).all()


def test_in_place(given):
    for call in activation(0):
        for name in ("x", "dy") if call.__name__ == "backward" else ("x",):
            expected, arrays = aligned_empty(ROWS * COLUMNS, np.float32).reshape(ROWS, COLUMNS), dict(given)
            call(given, expected)
            arrays[name] = aligned_empty(ROWS * COLUMNS, np.float32).reshape(ROWS, COLUMNS)
            arrays[name][...] = given[name]
            call(arrays, arrays[name])
            lawtools.assert_same_bits(arrays[name], expected)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_zeroing_a_list_that_is_large_together(n_threads):
    """Arrays of which none is large go past the caches when all together are, those off alignment do not; and what lies
    between them is left alone."""
    sizes = (1 << 20, 1, 17, (1 << 20) + 3, 8193, (1 << 20) - 1, 63, 1 << 20, 40_001)
    room = aligned_empty(sum(sizes) + 32 * len(sizes), np.float32)
    room[...] = FILL
    arrays, start, inside = [], 0, np.zeros(len(room), bool)
    for number, size in enumerate(sizes):
        first = start + number % 3 % 2  # every third off alignment
        arrays.append(room[first:first + size])
        inside[first:first + size] = True
        start += (size + 32) // 16 * 16
    assert sum(a.nbytes for a in arrays) >= 1 << 24 and arrays[3].ctypes.data % 64 == 0 != arrays[1].ctypes.data % 64
    with lawtools.threads(n_threads):
        _kernels.fill_zero(x=_kernels.ArrayList(arrays))
    assert not room[inside].any() and (room[~inside] == FILL).all()
