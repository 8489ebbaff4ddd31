"""Causal attention and the vector exponential, against float64 NumPy, finite differences and the numerical contract."""
import numpy as np
import pytest

from cllm import _kernels as kernels
from cllm.errors import ShapeError

# One tile is 64 positions (48 where there are 16 registers): less one, one, one more, and several tiles.
TIMES = [1, 2, 7, 9, 47, 48, 49, 63, 64, 65, 193]
EXP_ULP, TANH_ULP = 1.5, 3.0


@pytest.fixture(autouse=True)
def restored_threads():
    before = kernels.get_threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(before)


def reference(qkv, batch, heads):
    """Attention in plain float64 NumPy: y (N C), lse (B H T), probabilities (B H T T)."""
    n_rows, width = qkv.shape
    time, head_dim = n_rows // batch, width // 3 // heads
    q, k, v = qkv.astype(np.float64).reshape(batch, time, 3, heads, head_dim).transpose(2, 0, 3, 1, 4)
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(head_dim)
    s[..., np.triu(np.ones((time, time), bool), 1)] = -np.inf
    top = s.max(-1, keepdims=True)
    lse = (top + np.log(np.exp(s - top).sum(-1, keepdims=True)))[..., 0]
    probs = np.exp(s - lse[..., None])
    return (probs @ v).transpose(0, 2, 1, 3).reshape(n_rows, width // 3), lse, probs


def reference_backward(dy, qkv, batch, heads):
    """The gradient of sum(dy * y) in plain float64 NumPy, of shape N 3C."""
    n_rows, width = qkv.shape
    time, head_dim = n_rows // batch, width // 3 // heads
    q, k, v = qkv.astype(np.float64).reshape(batch, time, 3, heads, head_dim).transpose(2, 0, 3, 1, 4)
    g = dy.astype(np.float64).reshape(batch, time, heads, head_dim).transpose(0, 2, 1, 3)
    p = reference(qkv, batch, heads)[2]
    dp = g @ v.transpose(0, 1, 3, 2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(head_dim)
    dq, dk, dv = ds @ k, ds.transpose(0, 1, 3, 2) @ q, p.transpose(0, 1, 3, 2) @ g
    return np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(n_rows, width)


def draw(batch, time, heads, head_dim, dtype=np.float32, seed=0):
    """qkv of shape N 3C and dy of shape N C."""
    generator = np.random.default_rng([seed, batch, time, heads, head_dim])
    width = heads * head_dim
    return (generator.standard_normal((batch * time, 3 * width)).astype(dtype),
            generator.standard_normal((batch * time, width)).astype(dtype))


def misaligned(x):
    """The same array, one element off its alignment."""
    copy = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    copy[:] = x
    return copy


class Attention:
    """All that the kernels write for one input, into fresh arrays full of NaN."""

    def __init__(self, qkv, dy, batch, heads, threads=1, keep=False, like=lambda x: x):
        n_rows, width = dy.shape
        time = n_rows // batch

        def fresh(*shape):
            return like(np.full(shape, np.nan, qkv.dtype))

        kernels.set_threads(threads)
        size = kernels.attention_workspace(batch, time, heads, width // heads, threads, qkv.itemsize)
        workspace = fresh(size)
        self.y, self.lse = fresh(n_rows, width), fresh(batch, heads, time)
        self.probs, self.dqkv = fresh(batch, heads, time, time), fresh(n_rows, 3 * width)
        kernels.attention_forward(qkv, batch, heads, y=self.y, lse=self.lse, workspace=workspace)
        kernels.attention_probabilities(qkv, self.lse, batch, heads, probs=self.probs, workspace=workspace)
        workspace[:] = np.nan
        kernels.attention_backward(dy, qkv, self.y, self.lse, batch, heads, self.probs if keep else None,
                                   dqkv=self.dqkv, workspace=workspace)

    def arrays(self):
        return {"y": self.y, "lse": self.lse, "probs": self.probs, "dqkv": self.dqkv}


def assert_same_bits(one, other):
    for name, a in one.arrays().items():
        assert a.tobytes() == other.arrays()[name].tobytes(), name


# --- values -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("batch, heads, head_dim", [(1, 1, 64), (2, 3, 5), (1, 2, 16), (3, 1, 33)])
@pytest.mark.parametrize("time", TIMES)
def test_forward_and_backward_equal_float64_reference(time, batch, heads, head_dim, dtype, tolerance):
    qkv, dy = draw(batch, time, heads, head_dim, dtype)
    got = Attention(qkv, dy, batch, heads)
    y, lse, probs = reference(qkv, batch, heads)
    np.testing.assert_allclose(got.y, y, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.lse, lse, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.probs, probs, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.dqkv, reference_backward(dy, qkv, batch, heads), rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("head_dim", [1, 2, 15, 17, 31, 32, 48, 100, 130])
def test_any_head_dim(head_dim):
    qkv, dy = draw(1, 20, 2, head_dim, np.float64)
    got = Attention(qkv, dy, 1, 2)
    np.testing.assert_allclose(got.y, reference(qkv, 1, 2)[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.dqkv, reference_backward(dy, qkv, 1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch, time, heads, head_dim", [(2, 5, 2, 3), (1, 66, 1, 2)])
def test_backward_equals_central_differences(batch, time, heads, head_dim):
    qkv, dy = draw(batch, time, heads, head_dim, np.float64)
    analytic = Attention(qkv, dy, batch, heads).dqkv
    numeric, step = np.empty_like(qkv), 1e-5
    for i in range(qkv.size):
        values = []
        for sign in (1, -1):
            moved = qkv.copy()
            moved.flat[i] += sign * step
            values.append(forward_only(moved, batch, heads))
        numeric.flat[i] = np.sum(dy * (values[0] - values[1])) / (2 * step)
    assert np.all(np.abs(analytic - numeric) <= 1e-6 * np.maximum(np.abs(analytic), np.abs(numeric)) + 1e-9)


def forward_only(qkv, batch, heads):
    n_rows, width = qkv.shape
    y, lse = np.empty((n_rows, width // 3), qkv.dtype), np.empty((batch, heads, n_rows // batch), qkv.dtype)
    size = kernels.attention_workspace(batch, n_rows // batch, heads, width // 3 // heads, 1, qkv.itemsize)
    kernels.attention_forward(qkv, batch, heads, y=y, lse=lse, workspace=np.empty(size, qkv.dtype))
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_any_size_do_not_overflow(dtype):
    qkv, dy = draw(1, 130, 1, 8, dtype)
    qkv[:, :16] *= 30
    got = Attention(qkv, dy, 1, 1)
    y, lse, _ = reference(qkv, 1, 1)
    tolerance = 3e-3 if dtype is np.float32 else 1e-11
    np.testing.assert_allclose(got.y, y, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.lse, lse, rtol=0, atol=tolerance)
    assert np.isfinite(got.dqkv).all()


def test_first_row_is_its_own_value():
    qkv, dy = draw(2, 70, 2, 16)
    got = Attention(qkv, dy, 2, 2)
    np.testing.assert_array_equal(got.probs[:, :, 0, 0], 1)
    np.testing.assert_array_equal(got.y[[0, 70]], qkv[[0, 70], 64:])


def test_probabilities_above_the_diagonal_are_zero():
    qkv, dy = draw(1, 130, 2, 8)
    probs = Attention(qkv, dy, 1, 2).probs
    assert np.all(probs[..., np.triu(np.ones((130, 130), bool), 1)] == 0)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)


# --- the numerical contract -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch, time, heads, head_dim",
                         [(1, 300, 1, 20), (1, 130, 3, 16), (2, 65, 2, 7), (1, 5, 1, 4), (1, 1100, 1, 4)])
def test_bits_do_not_depend_on_threads(batch, time, heads, head_dim, dtype):
    qkv, dy = draw(batch, time, heads, head_dim, dtype)
    one = Attention(qkv, dy, batch, heads)
    for threads in (2, 3, 5):
        assert_same_bits(one, Attention(qkv, dy, batch, heads, threads))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("time, head_dim", [(1, 8), (50, 5), (130, 32)])
def test_kept_probabilities_change_no_bit(time, head_dim, dtype, threads):
    qkv, dy = draw(1, time, 3, head_dim, dtype)
    assert_same_bits(Attention(qkv, dy, 1, 3), Attention(qkv, dy, 1, 3, threads, keep=True))


def test_kept_probabilities_are_what_backward_reads():
    qkv, dy = draw(1, 70, 1, 8)
    got = Attention(qkv, dy, 1, 1)
    size = kernels.attention_workspace(1, 70, 1, 8, 1, 4)
    other = np.empty_like(got.dqkv)
    kernels.attention_backward(dy, qkv, got.y, got.lse, 1, 1, got.probs * np.float32(0.5), dqkv=other,
                               workspace=np.empty(size, np.float32))
    np.testing.assert_allclose(other[:, 16:], 0.5 * got.dqkv[:, 16:], atol=1e-6)


def test_bits_do_not_depend_on_the_batch_around_a_sequence():
    qkv, dy = draw(4, 67, 2, 24)
    whole = Attention(qkv, dy, 4, 2, threads=3)
    for b in range(4):
        rows = slice(67 * b, 67 * (b + 1))
        part = Attention(qkv[rows].copy(), dy[rows].copy(), 1, 2)
        assert part.y.tobytes() == whole.y[rows].tobytes()
        assert part.dqkv.tobytes() == whole.dqkv[rows].tobytes()
        assert part.lse[0].tobytes() == whole.lse[b].tobytes()


def test_bits_do_not_depend_on_the_heads_beside_a_head():
    qkv, dy = draw(2, 67, 3, 9)
    whole = Attention(qkv, dy, 2, 3, threads=2)
    for h in range(3):
        columns = [slice(27 * s + 9 * h, 27 * s + 9 * (h + 1)) for s in range(3)]
        part = Attention(np.hstack([qkv[:, c] for c in columns]), dy[:, columns[0]].copy(), 2, 1)
        np.testing.assert_array_equal(part.y, whole.y[:, columns[0]])
        np.testing.assert_array_equal(part.dqkv, np.hstack([whole.dqkv[:, c] for c in columns]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_addresses(dtype):
    qkv, dy = draw(2, 70, 2, 17, dtype)
    assert_same_bits(Attention(qkv, dy, 2, 2), Attention(misaligned(qkv), misaligned(dy), 2, 2, like=misaligned))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("poison", [1e3, np.inf, np.nan])
def test_later_tokens_change_no_earlier_bit(poison, dtype):
    qkv, dy = draw(1, 140, 2, 12, dtype)
    before = Attention(qkv, dy, 1, 2)
    for t in (0, 5, 13, 47, 63, 64, 100, 138):
        changed = qkv.copy()
        changed[t + 1:] = poison
        after = Attention(changed, dy, 1, 2)
        assert after.y[:t + 1].tobytes() == before.y[:t + 1].tobytes()
        assert after.lse[:, :, :t + 1].tobytes() == before.lse[:, :, :t + 1].tobytes()


def test_a_longer_sequence_begins_with_the_same_bits():
    qkv, dy = draw(1, 140, 2, 12)
    whole = Attention(qkv, dy, 1, 2)
    for time in (1, 12, 63, 64, 65, 139):
        part = Attention(qkv[:time].copy(), dy[:time].copy(), 1, 2)
        assert part.y.tobytes() == whole.y[:time].tobytes()


def test_gradient_of_a_token_ignores_earlier_outputs():
    qkv, dy = draw(1, 100, 1, 12)
    before = Attention(qkv, dy, 1, 1).dqkv
    dy[:30] = 7
    after = Attention(qkv, dy, 1, 1).dqkv
    np.testing.assert_array_equal(after[30:], before[30:])
    assert not np.array_equal(after[:30], before[:30])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 8, 16])
def test_not_a_number_is_passed_on(column, value):
    qkv, dy = draw(1, 100, 1, 8)
    qkv[70, column] = value
    got = Attention(qkv, dy, 1, 1)
    assert not np.isfinite(got.y[70:]).all()
    assert np.isfinite(got.y[:70]).all()
    assert not np.isfinite(got.dqkv).all()


# --- edges and errors -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rows(dtype):
    got = Attention(np.empty((0, 24), dtype), np.empty((0, 8), dtype), 1, 2)
    assert got.y.shape == (0, 8)


def test_nothing_is_written_outside():
    qkv, dy = draw(2, 66, 3, 5)
    size = kernels.attention_workspace(2, 66, 3, 5, 2, 4)
    kernels.set_threads(2)

    def guarded(*shape):
        whole = np.full(int(np.prod(shape)) + 32, 7, np.float32)
        return whole, whole[16:-16].reshape(shape)

    (y_all, y), (lse_all, lse), (d_all, d), (p_all, p), (w_all, w) = (
        guarded(132, 15), guarded(2, 3, 66), guarded(132, 45), guarded(2, 3, 66, 66), guarded(size))
    kernels.attention_forward(qkv, 2, 3, y=y, lse=lse, workspace=w)
    kernels.attention_probabilities(qkv, lse, 2, 3, probs=p, workspace=w)
    kernels.attention_backward(dy, qkv, y, lse, 2, 3, p, dqkv=d, workspace=w)
    for whole in (y_all, lse_all, d_all, p_all, w_all):
        assert np.all(whole[:16] == 7) and np.all(whole[-16:] == 7)


def test_workspace_is_linear_in_time_and_monotone():
    sizes = [kernels.attention_workspace(1, time, 8, 64, 2, 4) for time in range(0, 4096, 16)]
    assert sizes == sorted(sizes)
    fixed = kernels.attention_workspace(1, 1, 8, 64, 2, 4)
    assert sizes[-1] < fixed + 2 * 9 * 64 * (4096 + 64)
    assert kernels.attention_workspace(8, 64, 8, 64, 2, 4) >= kernels.attention_workspace(1, 64, 8, 64, 2, 4)


SHAPES = {"qkv": (20, 24), "y": (20, 8), "lse": (2, 2, 10), "probs": (2, 2, 10, 10), "dy": (20, 8), "dqkv": (20, 24)}


def call_with(**shapes):
    shape = SHAPES | shapes
    a = {name: np.zeros(s, np.float32) for name, s in shape.items()}
    size = shape.get("workspace", kernels.attention_workspace(2, 10, 2, 4, 1, 4))
    workspace = np.zeros(size, np.float32)
    kernels.attention_forward(a["qkv"], 2, 2, y=a["y"], lse=a["lse"], workspace=workspace)
    kernels.attention_probabilities(a["qkv"], a["lse"], 2, 2, probs=a["probs"], workspace=workspace)
    kernels.attention_backward(a["dy"], a["qkv"], a["y"], a["lse"], 2, 2, a["probs"], dqkv=a["dqkv"],
                               workspace=workspace)


def test_right_shapes_are_taken():
    call_with()


@pytest.mark.parametrize("name", SHAPES)
def test_every_wrong_length_is_refused(name):
    for axis in range(len(SHAPES[name])):
        for by in (-1, 1):
            wrong = list(SHAPES[name])
            wrong[axis] += by
            with pytest.raises(ShapeError):
                call_with(**{name: tuple(wrong)})


def test_short_workspace_is_refused_before_anything_is_written():
    qkv = np.ones((10, 12), np.float32)
    y, lse = np.full((10, 4), 5, np.float32), np.full((1, 1, 10), 5, np.float32)
    size = kernels.attention_workspace(1, 10, 1, 4, 1, 4)
    with pytest.raises(ShapeError, match="workspace must have at least"):
        kernels.attention_forward(qkv, 1, 1, y=y, lse=lse, workspace=np.empty(size - 1, np.float32))
    assert np.all(y == 5) and np.all(lse == 5)


@pytest.mark.parametrize("batch, heads", [(0, 1), (1, 0), (-1, 1)])
def test_batch_and_heads_are_checked(batch, heads):
    qkv, y = np.zeros((4, 12), np.float32), np.zeros((4, 4), np.float32)
    with pytest.raises(ShapeError, match="batch and heads"):
        kernels.attention_forward(qkv, batch, heads, y=y, lse=np.zeros((1, 1, 4), np.float32),
                                  workspace=np.zeros(100000, np.float32))


# --- exp and tanh -----------------------------------------------------------------------------------------------------

def units(got, exact):
    """Distance in units of the last place of the exact value."""
    return np.abs(got - exact) / np.spacing(np.abs(exact).astype(got.dtype)).astype(exact.dtype)


def apply(x, tanh):
    y = np.full_like(x, 7)
    kernels.exponential(x, tanh, y=y)
    return y


@pytest.mark.parametrize("dtype, low, high", [(np.float32, -86.9, 88.72), (np.float64, -708.0, 709.7)])
def test_exp_and_tanh_are_accurate(dtype, low, high):
    generator = np.random.default_rng(0)
    for a, b in ((low, high), (-10, 10), (-1, 1), (-1e-3, 1e-3)):
        x = generator.uniform(a, b, 200_001).astype(dtype)
        wide = x.astype(np.longdouble if dtype is np.float64 else np.float64)
        # Where long double is no wider than float64, the reference itself may be half a unit off.
        assert units(apply(x, False), np.exp(wide)).max() < EXP_ULP
        assert units(apply(x, True), np.tanh(wide)).max() < TANH_ULP


@pytest.mark.parametrize("dtype, zero_below", [(np.float32, -87.0), (np.float64, -708.1)])
def test_exp_and_tanh_at_the_edges(dtype, zero_below):
    x = np.array([zero_below, -1e30, -np.inf, 0.0, -0.0, 1e30, np.inf, np.nan, -np.nan], dtype)
    np.testing.assert_array_equal(apply(x, False), [0, 0, 0, 1, 1, np.inf, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(apply(x, True), [-1, -1, -1, 0, 0, 1, 1, np.nan, np.nan])
    assert np.signbit(apply(x, True)[[3, 4]]).tolist() == [False, True]
    tiny = np.array([np.finfo(dtype).tiny, -np.finfo(dtype).tiny], dtype)
    np.testing.assert_array_equal(apply(tiny, True), tiny)


def test_exp_never_returns_a_denormal():
    y = apply(np.linspace(-90, -86, 100_001).astype(np.float32), False)
    assert np.all((y == 0) | (y >= np.finfo(np.float32).tiny))


def test_exp_does_not_depend_on_the_place():
    x = np.random.default_rng(1).standard_normal(67)
    whole = apply(x, False)
    for i in range(67):
        assert apply(x[i:i + 1].copy(), False)[0] == whole[i]


def test_exp_refuses_another_length():
    with pytest.raises(ShapeError):
        kernels.exponential(np.zeros(3), False, y=np.zeros(4))
