"""The terms of crystalline attention, against float64 NumPy, finite differences, plain attention and the contract."""
import numpy as np
import oracle
import pytest

from cllm import _kernels as kernels
from cllm.errors import ShapeError
from cllm.layers.lattice import lattice_coordinates

VOCABULARY = 40
PARTS = [("rotation",), ("distance",), ("bias",), ("rotation", "distance", "bias")]
TIMES = [1, 2, 8, 9, 63, 64, 65, 130]


@pytest.fixture(autouse=True)
def restored_threads():
    before = kernels.get_threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(before)


def draw(batch, time, heads, head_dim, dtype="float64", seed=0):
    """qkv, dy, tokens, alpha, beta."""
    generator = np.random.default_rng([seed, batch, time, heads, head_dim])
    n, width = batch * time, heads * head_dim
    return (generator.standard_normal((n, 3 * width)).astype(dtype),
            generator.standard_normal((n, width)).astype(dtype),
            generator.integers(0, VOCABULARY, n).astype(np.int32), generator.normal(-1, 1, heads).astype(dtype),
            generator.standard_normal((heads, 12)).astype(dtype))


def misaligned(x):
    """The same array, one element off its alignment."""
    copy = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    copy[:] = x
    return copy


def run(parts, qkv, dy, tokens, alpha, beta, batch, heads, threads=1, keep=False, like=lambda x: x, onto=None):
    """Everything that forward and backward write, by name; dalpha and dbeta are added to `onto`."""
    n, width = dy.shape
    time, distance, bias = n // batch, "distance" in parts, "bias" in parts

    def fresh(*shape):
        return like(np.full(shape, np.nan, qkv.dtype))

    coordinates = like(lattice_coordinates(VOCABULARY).astype(qkv.dtype)) if distance else None
    terms = (tokens, coordinates, alpha if distance else None, beta if bias else None, "rotation" in parts)
    kernels.set_threads(threads)
    workspace = fresh(kernels.attention_workspace(batch, time, heads, width // heads, threads, qkv.itemsize, distance,
                                                  bias))
    out = {"y": fresh(n, width), "lse": fresh(batch, heads, time), "probs": fresh(batch, heads, time, time),
           "dqkv": fresh(n, 3 * width)}
    if distance:
        out["dalpha"] = np.zeros_like(alpha) if onto is None else onto["dalpha"].copy()
    if bias:
        out["dbeta"] = np.zeros_like(beta) if onto is None else onto["dbeta"].copy()
    kernels.attention_forward(qkv, batch, heads, *terms, y=out["y"], lse=out["lse"], workspace=workspace)
    kernels.attention_probabilities(qkv, out["lse"], batch, heads, *terms, probs=out["probs"], workspace=workspace)
    workspace[:] = np.nan
    kernels.attention_backward(dy, qkv, out["y"], out["lse"], batch, heads, out["probs"] if keep else None, *terms,
                               dqkv=out["dqkv"], dalpha=out.get("dalpha"), dbeta=out.get("dbeta"), workspace=workspace)
    return out


def reference(parts, qkv, dy, tokens, alpha, beta, batch, heads):
    """The same in plain float64 NumPy, by the oracle."""
    n, width = dy.shape
    time, head_dim = n // batch, width // heads
    config = {"attention": "crystalline", "crystalline": parts}
    q, k, v = qkv.astype(float).reshape(batch, time, 3, heads, head_dim).transpose(2, 0, 3, 1, 4)
    tokens, alpha, beta = tokens.reshape(batch, time), alpha.astype(float), beta.astype(float)
    y, kept = oracle.attention(q, k, v, tokens, config, alpha, beta)
    dy = dy.astype(float).reshape(batch, time, width)
    d, dalpha, dbeta = oracle.attention_backward(dy, kept, tokens, config, alpha)
    out = {"y": y.reshape(n, width), "probs": kept[0], "dqkv": d.transpose(1, 3, 0, 2, 4).reshape(n, 3 * width)}
    return {**out, **{name: x for name, x in (("dalpha", dalpha), ("dbeta", dbeta)) if x is not None}}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("batch, heads, head_dim", [(1, 1, 64), (2, 3, 6), (3, 1, 34)])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_forward_and_backward_equal_the_oracle(parts, time, batch, heads, head_dim, dtype, tolerance):
    given = draw(batch, time, heads, head_dim, dtype)
    got = run(parts, *given, batch, heads)
    for name, expected in reference(parts, *given, batch, heads).items():
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(got[name] - expected).max() <= tolerance * scale, name


@pytest.mark.parametrize("batch, time, heads, head_dim", [(2, 5, 2, 2), (1, 66, 1, 2)])
def test_backward_equals_central_differences(batch, time, heads, head_dim):
    qkv, dy, tokens, alpha, beta = draw(batch, time, heads, head_dim)
    got = run(PARTS[-1], qkv, dy, tokens, alpha, beta, batch, heads)
    for name, x in (("dqkv", qkv), ("dalpha", alpha), ("dbeta", beta)):
        for i in np.random.default_rng(0).choice(x.size, min(x.size, 40), replace=False):
            flat, values = x.reshape(-1), []
            here = flat[i]
            for step in (1e-5, -1e-5):
                flat[i] = here + step
                values.append((run(PARTS[-1], qkv, dy, tokens, alpha, beta, batch, heads)["y"] * dy).sum())
            flat[i] = here
            a, n = got[name].reshape(-1)[i], (values[0] - values[1]) / 2e-5
            assert abs(a - n) <= 1e-6 * max(abs(a), abs(n)) + 2e-9, (name, i)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch, time, heads, head_dim", [(1, 130, 1, 34), (2, 65, 3, 6), (3, 40, 2, 64)])
def test_bits_do_not_depend_on_threads_addresses_or_kept_probabilities(batch, time, heads, head_dim, dtype):
    given = draw(batch, time, heads, head_dim, dtype)
    expected = run(PARTS[-1], *given, batch, heads)
    for threads in (1, 2, 3):
        for keep in (False, True):
            for like in (lambda x: x, misaligned):
                moved = [like(x) for x in given]
                oracle.assert_same_bits(run(PARTS[-1], *moved, batch, heads, threads, keep, like), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_cut_of_the_batch(dtype):
    batch, time, heads, head_dim = 5, 70, 2, 8
    qkv, dy, tokens, alpha, beta = draw(batch, time, heads, head_dim, dtype)
    expected = run(PARTS[-1], qkv, dy, tokens, alpha, beta, batch, heads)
    for cut in (1, 2, 4):
        first, second = (slice(0, cut * time), cut), (slice(cut * time, None), batch - cut)
        done = None
        for rows, size in (first, second):
            done = run(PARTS[-1], qkv[rows], dy[rows], tokens[rows], alpha, beta, size, heads, onto=done)
            oracle.assert_same_bits(done["dqkv"], expected["dqkv"][rows])
        oracle.assert_same_bits([done["dalpha"], done["dbeta"]], [expected["dalpha"], expected["dbeta"]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_switched_off_it_is_plain_attention_to_the_last_bit(dtype):
    given = draw(2, 70, 3, 6, dtype)
    plain = run((), *given, 2, 3)
    kernels.set_threads(1)
    workspace = np.empty(kernels.attention_workspace(2, 70, 3, 6, 1, given[0].itemsize), dtype)
    y, lse, dqkv = (np.empty_like(plain[name]) for name in ("y", "lse", "dqkv"))
    kernels.attention_forward(given[0], 2, 3, y=y, lse=lse, workspace=workspace)
    kernels.attention_backward(given[1], given[0], y, lse, 2, 3, None, dqkv=dqkv, workspace=workspace)
    oracle.assert_same_bits([plain["y"], plain["lse"], plain["dqkv"]], [y, lse, dqkv])
    zero = run(("bias",), *given[:4], np.zeros_like(given[4]), 2, 3)  # a bias of zero adds exact zeros
    oracle.assert_same_bits([zero["y"], zero["lse"], zero["dqkv"]], [y, lse, dqkv])


def test_no_nan_crosses_the_diagonal():
    qkv, dy, tokens, alpha, beta = draw(1, 70, 1, 6)
    qkv[50:] = np.nan
    assert np.isfinite(run(PARTS[-1], qkv, dy, tokens, alpha, beta, 1, 1)["y"][:50]).all()
    alpha[0] = np.nan
    got = run(PARTS[-1], draw(1, 70, 1, 6)[0], dy, tokens, alpha, beta, 1, 1)
    assert np.isnan(got["y"]).all() and np.isnan(got["dalpha"]).all()


def test_the_workspace_grows_with_the_time_alone_not_with_its_square():
    whole_tiles = (1152, 2304, 4608)
    at = {time: kernels.attention_workspace(1, time, 8, 64, 2, 4, True, True) for time in whole_tiles}
    assert at[4608] - at[2304] == 2 * (at[2304] - at[1152])


def call(changes, parts=PARTS[-1]):
    qkv, dy, tokens, alpha, beta = draw(2, 5, 3, changes.pop("head_dim", 4), "float32")
    arguments = {"tokens": tokens, "coordinates": lattice_coordinates(VOCABULARY).astype("float32"), "alpha": alpha,
                 "beta": beta, "turns": True}
    written = {"dqkv": np.zeros_like(qkv), "dalpha": np.zeros_like(alpha), "dbeta": np.zeros_like(beta),
               "workspace": np.zeros(1 << 16, "float32")}
    for name, value in changes.items():
        (written if name in written else arguments)[name] = value
    lse = np.zeros((2, 3, 5), "float32")
    kernels.attention_backward(dy, qkv, dy, lse, 2, 3, None, **arguments, **written)
    return written


WRONG = {
    "no tokens": {"tokens": None},
    "few tokens": {"tokens": np.zeros(9, np.int32)},
    "alpha without coordinates": {"coordinates": None},
    "coordinates without alpha": {"alpha": None},
    "two axes": {"coordinates": np.zeros((40, 2), "float32")},
    "no token has coordinates": {"coordinates": np.zeros((0, 3), "float32")},
    "few heads in alpha": {"alpha": np.zeros(2, "float32")},
    "few heads in beta": {"beta": np.zeros((2, 12), "float32")},
    "few groups": {"beta": np.zeros((3, 11), "float32")},
    "no dalpha": {"dalpha": None},
    "no dbeta": {"dbeta": None},
    "short dalpha": {"dalpha": np.zeros(2, "float32")},
    "short dbeta": {"dbeta": np.zeros((3, 11), "float32")},
    "odd channels": {"head_dim": 5},
    "short workspace": {"workspace": np.zeros(8, "float32")},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    with pytest.raises(ShapeError):
        call(dict(WRONG[name]))


def test_right_arguments_are_taken():
    call({})
