"""Attention as families want it: grouped queries, scale, rotation by position, bounds, soft cap; each and together."""
import dataclasses

import lawtools
import numpy as np
import pytest

from cllm import _kernels as kernels
from cllm.errors import ConfigError, ShapeError

# One tile is 64 positions (48 where there are 16 registers): less one, one, one more, and several tiles.
TIMES = [1, 7, 47, 48, 49, 63, 64, 65, 193]


@pytest.fixture(autouse=True)
def restored_threads():
    before = kernels.get_threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(before)


def tables(positions, pairs, theta=50.0):
    """cos and sin of shape P R/2."""
    angles = np.arange(positions)[:, None] * theta ** (-np.arange(pairs) / max(1, pairs))
    return np.cos(angles), np.sin(angles)


def window(time, width):
    """first of a window that holds `width` keys, the row's own among them."""
    return np.maximum(np.arange(time) - width + 1, 0).astype(np.int32)


def documents(batch, time, seed=0):
    """first, last and positions, all of batch * time elements, of documents of drawn lengths that fill each sequence."""
    generator = np.random.default_rng([seed, batch, time])
    first, last = np.empty((2, batch, time), np.int32)
    for b in range(batch):
        start = 0
        while start < time:
            stop = min(time, start + int(generator.integers(1, 1 + time // 2)) if time > 1 else 1)
            first[b, start:stop], last[b, start:stop] = start, stop - 1
            start = stop
    return first.reshape(-1), last.reshape(-1), (np.arange(time) - first).astype(np.int32).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One call's shape and options, without its arrays of numbers."""

    batch: int
    time: int
    heads: int
    kv_heads: int
    head_dim: int
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def shapes(self):
        n, dim = self.batch * self.time, self.head_dim
        return {"qkv": (n, (self.heads + 2 * self.kv_heads) * dim), "dy": (n, self.heads * dim)}

    def draw(self, dtype, seed=0):
        generator = np.random.default_rng([seed, *dataclasses.astuple(self)[:5]])
        return tuple(generator.standard_normal(shape).astype(dtype) for shape in self.shapes.values())

    def arguments(self, dtype):
        return {name: value.astype(dtype) if name in ("cos", "sin") else value for name, value in self.options.items()}


def run(setting, qkv, dy, threads=1, keep=False, like=lambda x: x):
    """All that the kernels write for one input, into fresh arrays full of NaN."""
    batch, time, heads = setting.batch, setting.time, setting.heads
    kernels.set_threads(threads)
    given = {name: like(value) if isinstance(value, np.ndarray) else value
             for name, value in setting.arguments(qkv.dtype).items()}
    given["kv_heads"] = setting.kv_heads

    def fresh(*shape):
        return like(np.full(shape, np.nan, qkv.dtype))

    workspace = fresh(workspace_of(setting, threads, qkv.itemsize))
    out = {"y": fresh(*dy.shape), "lse": fresh(batch, heads, time), "probs": fresh(batch, heads, time, time),
           "dqkv": fresh(*qkv.shape)}
    kernels.attention_forward(qkv, batch, heads, **given, y=out["y"], lse=out["lse"], workspace=workspace)
    workspace[:] = np.nan
    kernels.attention_probabilities(qkv, out["lse"], batch, heads, **given, probs=out["probs"], workspace=workspace)
    workspace[:] = np.nan
    kernels.attention_backward(dy, qkv, out["y"], out["lse"], batch, heads, out["probs"] if keep else None, **given,
                               dqkv=out["dqkv"], workspace=workspace)
    return out


def workspace_of(setting, threads, itemsize):
    options = setting.options
    return kernels.attention_workspace(setting.batch, setting.time, setting.heads, setting.head_dim, threads, itemsize,
                                       kv_heads=setting.kv_heads, bounded=bool({"first", "last", "documents"} & set(options)),
                                       capped="softcap" in options)


def rotate(x, setting, back=False):
    """Turn (B, heads, T, D) by position, or back, in float64."""
    if "cos" not in setting.options:
        return x
    rows = setting.options.get("positions", np.arange(setting.time)).reshape(-1, setting.time)
    c, s = (setting.options[name][rows][:, None] for name in ("cos", "sin"))
    half = c.shape[-1]
    u, v, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    s = -s if back else s
    return np.concatenate([u * c - v * s, v * c + u * s, rest], axis=-1)


def reference(setting, qkv, dy):
    """The same in plain float64 NumPy; a row that sees nothing has zeros, and minus infinity in lse."""
    batch, time, heads, kv_heads, dim = dataclasses.astuple(setting)[:5]
    options = setting.options
    scale, cap = options.get("scale", 1 / np.sqrt(dim)), options.get("softcap")
    columns = qkv.astype("float64").reshape(batch, time, heads + 2 * kv_heads, dim).transpose(0, 2, 1, 3)
    q, k, v = columns[:, :heads], columns[:, heads:heads + kv_heads], columns[:, heads + kv_heads:]
    q, k = rotate(q, setting), rotate(k, setting)
    group = heads // kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    raw = scale * q @ k.transpose(0, 1, 3, 2)
    s = raw if cap is None else cap * np.tanh(raw / cap)
    place = np.arange(time)
    first = options.get("first", np.zeros(time, int)).reshape(-1, time)
    if options.get("documents"):
        first = np.maximum(first, place - options["positions"].reshape(-1, time))
    last = options.get("last", place).reshape(-1, time)
    seen = ((place >= first[..., None]) & (place <= last[..., None]))[:, None]
    s = np.where(seen, s, -np.inf)
    top = np.maximum(s.max(-1, keepdims=True), np.finfo("float64").min)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(np.exp(s - top).sum(-1, keepdims=True)))[..., 0]
    p = np.where(seen, np.exp(s - np.where(np.isfinite(lse), lse, 0)[..., None]), 0)
    y = p @ v
    g = dy.astype("float64").reshape(batch, time, heads, dim).transpose(0, 2, 1, 3)
    dp = g @ v.transpose(0, 1, 3, 2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    if cap is not None:
        ds = ds * (1 - np.tanh(raw / cap) ** 2)
    dq = rotate(ds @ k, setting, back=True)
    dk, dv = (x.reshape(batch, kv_heads, group, time, dim).sum(2)
              for x in (rotate(ds.transpose(0, 1, 3, 2) @ q, setting, back=True), p.transpose(0, 1, 3, 2) @ g))
    rows = batch * time
    return {"y": y.transpose(0, 2, 1, 3).reshape(rows, heads * dim), "lse": lse, "probs": p,
            "dqkv": np.concatenate([dq, dk, dv], axis=1).transpose(0, 2, 1, 3).reshape(rows, -1)}


def rope(positions, pairs):
    return dict(zip(("cos", "sin"), tables(positions, pairs), strict=True))


def all_of(batch, time, dim):
    first, last, positions = documents(batch, time)
    return {"scale": 0.4, **rope(time + 9, dim // 4), "positions": positions, "first": first, "last": last,
            "softcap": 2.0}


OPTIONS = {  # for B, T, D
    "plain": lambda b, t, d: {},
    "scale": lambda b, t, d: {"scale": 0.3},
    "rotation": lambda b, t, d: rope(t, d // 2),
    "partial rotation": lambda b, t, d: rope(t + 9, d // 4),
    "positions": lambda b, t, d: {**rope(t, d // 2), "positions": documents(b, t)[2]},
    "shared positions": lambda b, t, d: {**rope(t + 9, d // 2), "positions": np.arange(9, t + 9, dtype=np.int32)},
    "window": lambda b, t, d: {"first": window(t, 5)},
    "wide window": lambda b, t, d: {"first": window(t, 55)},
    "documents": lambda b, t, d: {"first": documents(b, t)[0]},
    "documents by positions": lambda b, t, d: {"documents": True, "positions": documents(b, t)[2]},
    "documents, turned, in a window": lambda b, t, d: {**rope(t, d // 2), "documents": True, "first": window(t, 20),
                                                       "positions": documents(b, t, 1)[2]},
    "both ways": lambda b, t, d: {"last": np.full(t, t - 1, np.int32)},
    "documents both ways": lambda b, t, d: dict(zip(("first", "last"), documents(b, t), strict=False)),
    "window both ways": lambda b, t, d: {"first": window(t, 20), "last": np.minimum(np.arange(t) + 30, t - 1)
                                         .astype(np.int32)},
    "softcap": lambda b, t, d: {"softcap": 1.5},
    "all": all_of,
}
HEADS = [(1, 1, 1, 16), (2, 6, 2, 8), (1, 4, 1, 20), (2, 3, 3, 33)]  # B, H, K, D
names = pytest.mark.parametrize("name", OPTIONS)
dtypes = pytest.mark.parametrize("dtype", lawtools.DTYPES)


def setting_of(name, batch, time, heads, kv_heads, head_dim):
    return Setting(batch, time, heads, kv_heads, head_dim, OPTIONS[name](batch, time, head_dim))


def assert_same(got, expected, what=""):
    for name in expected:
        lawtools.assert_same_bits(got[name], expected[name], f"{name} {what}")


# --- values -----------------------------------------------------------------------------------------------------------

# every option with every arrangement of heads, and each of the two with every dtype
PAIRS = [(name, *heads, lawtools.DTYPES[(row + column) % 2]) for row, name in enumerate(OPTIONS)
         for column, heads in enumerate(HEADS)]


@pytest.mark.parametrize("name, batch, heads, kv_heads, head_dim, dtype", PAIRS)
def test_forward_and_backward_equal_the_reference(name, batch, heads, kv_heads, head_dim, dtype):
    tolerance = 2e-5 if dtype == "float32" else 1e-13
    for time in TIMES:
        setting = setting_of(name, batch, time, heads, kv_heads, head_dim)
        qkv, dy = setting.draw(dtype)
        got, expected = run(setting, qkv, dy), reference(setting, qkv, dy)
        for array in ("y", "lse", "probs"):
            np.testing.assert_allclose(got[array], expected[array], rtol=0, atol=tolerance, err_msg=f"{array} T={time}")
        largest = max(1.0, np.abs(expected["dqkv"]).max())
        np.testing.assert_allclose(got["dqkv"], expected["dqkv"], rtol=0, atol=5 * tolerance * largest)


@names
def test_backward_equals_finite_differences(name):
    for setting in (setting_of(name, 2, 5, 4, 2, 4), setting_of(name, 1, 3, 3, 1, 9)):
        qkv, dy = setting.draw("float64")

        def loss(qkv=qkv, dy=dy, setting=setting):
            return lawtools.weighted_sum(run(setting, qkv, dy)["y"], dy)

        numeric = lawtools.finite_differences(loss, qkv)
        lawtools.assert_gradient(run(setting, qkv, dy)["dqkv"], numeric)


@dtypes
def test_heads_of_a_group_read_the_same_keys(dtype):
    """Bits of the outputs are those of keys and values repeated for each query head."""
    setting = setting_of("all", 2, 70, 6, 2, 8)
    repeated = dataclasses.replace(setting, kv_heads=6)
    qkv, dy = setting.draw(dtype)
    q, k, v = np.split(qkv.reshape(140, 10, 8), [6, 8], axis=1)
    copies = np.concatenate([q, np.repeat(k, 3, 1), np.repeat(v, 3, 1)], axis=1).reshape(140, -1)
    got, expected = run(setting, qkv, dy), run(repeated, copies, dy)
    for name in ("y", "lse", "probs"):
        lawtools.assert_same_bits(got[name], expected[name], name)
    lawtools.assert_same_bits(got["dqkv"][:, :48].copy(), expected["dqkv"][:, :48].copy(), "dq")
    sums = expected["dqkv"][:, 48:].reshape(140, 2, 2, 3, 8).sum(3).reshape(140, -1)
    lawtools.assert_close(got["dqkv"][:, 48:], sums, float32=1e-6, float64=1e-14)


@dtypes
@pytest.mark.parametrize("time", [1, 47, 48, 49, 64, 130])
def test_options_that_say_nothing_change_no_bit(time, dtype):
    plain = Setting(2, time, 4, 4, 6)
    qkv, dy = plain.draw(dtype)
    expected = run(plain, qkv, dy)
    place, none = np.arange(time, dtype=np.int32), np.zeros(time, np.int32)
    for options in ({"scale": 1 / np.sqrt(6)}, {"first": none}, {"last": place}, {"first": none, "last": place},
                    {"cos": np.ones((time, 3)), "sin": np.zeros((time, 3))}, {"cos": np.ones((time, 0)),
                                                                              "sin": np.ones((time, 0))}):
        assert_same(run(dataclasses.replace(plain, options=options), qkv, dy), expected, f"{list(options)}")


@dtypes
def test_bounds_and_positions_may_be_shared_by_all_sequences(dtype):
    shared = {**rope(79, 4), "positions": np.arange(9, 79, dtype=np.int32), "first": window(70, 9),
              "last": np.minimum(np.arange(70) + 3, 69).astype(np.int32)}
    one = Setting(3, 70, 2, 1, 8, shared)
    many = dataclasses.replace(one, options={name: np.tile(x, 3) if x.dtype == np.int32 else x
                                             for name, x in shared.items()})
    qkv, dy = one.draw(dtype)
    assert_same(run(many, qkv, dy), run(one, qkv, dy))


def test_a_constant_shift_of_all_positions_changes_little():
    """The rotation is relative; and a position of its own for each row is read."""
    setting = setting_of("rotation", 1, 70, 2, 1, 8)
    qkv, dy = setting.draw("float64")
    moved = {**rope(120, 4), "positions": np.arange(50, 120, dtype=np.int32)}
    got, expected = run(dataclasses.replace(setting, options=moved), qkv, dy), run(setting, qkv, dy)
    lawtools.assert_close(got["y"], expected["y"], float64=1e-13)
    other = {**rope(120, 4), "positions": np.arange(0, 140, 2)[:70].astype(np.int32) // 3}
    assert np.abs(run(dataclasses.replace(setting, options=other), qkv, dy)["y"] - expected["y"]).max() > 1e-3


def test_packed_documents_equal_separate_ones():
    first, last, positions = documents(1, 150)
    for both_ways in (False, True):
        options = {**rope(150, 4), "positions": positions, "first": first} | ({"last": last} if both_ways else {})
        setting = Setting(1, 150, 4, 2, 8, options)
        qkv, dy = setting.draw("float64")
        packed = run(setting, qkv, dy)
        for start in np.unique(first):
            rows = slice(start, last[start] + 1)
            alone = {**rope(150, 4)} | ({"last": np.full(rows.stop - start, rows.stop - start - 1, np.int32)}
                                        if both_ways else {})
            part = run(Setting(1, rows.stop - start, 4, 2, 8, alone), qkv[rows].copy(), dy[rows].copy())
            for name in ("y", "dqkv"):
                lawtools.assert_close(packed[name][rows], part[name], name, float64=1e-12)


@dtypes
def test_documents_by_their_positions_are_documents_by_their_bounds(dtype):
    first, _, positions = documents(2, 150)
    for more in ({}, {"first": window(150, 20)}):
        bounds = np.maximum(first, np.tile(more["first"], 2)) if more else first
        by_bounds, by_positions = (Setting(2, 150, 4, 2, 8, {**rope(150, 4), "positions": positions, **options})
                                   for options in ({"first": bounds}, {"documents": True, **more}))
        qkv, dy = by_bounds.draw(dtype)
        for keep in (False, True):
            assert_same(run(by_positions, qkv, dy, keep=keep), run(by_bounds, qkv, dy, keep=keep))


@dtypes
def test_documents_that_begin_at_whole_tiles_are_never_met_by_others(dtype):
    """What stands in tiles that no row of a document sees is not read, so NaN there goes nowhere; and the document's bits are
    those that it has alone."""
    positions = np.concatenate([np.arange(192), np.arange(201), np.zeros(183)]).astype(np.int32)
    rows = slice(192, 393)
    setting = Setting(1, 576, 4, 2, 8, {**rope(210, 4), "documents": True, "positions": positions})
    qkv, dy = setting.draw(dtype)
    alone = run(Setting(1, 201, 4, 2, 8, rope(210, 4)), qkv[rows].copy(), dy[rows].copy())
    qkv[:192], dy[:192] = np.nan, np.nan
    for threads, keep in ((1, False), (3, True)):
        got = run(setting, qkv, dy, threads, keep)
        for name in ("y", "dqkv"):
            lawtools.assert_same_bits(got[name][rows].copy(), alone[name], name)
        lawtools.assert_same_bits(got["lse"][:, :, rows].copy(), alone["lse"])


def test_a_row_that_sees_nothing_has_zeros():
    first = np.zeros(60, np.int32)
    first[[3, 50]] = 60
    setting = Setting(1, 60, 2, 1, 8, {"first": first})
    qkv, dy = setting.draw("float32")
    for keep in (False, True):
        got = run(setting, qkv, dy, keep=keep)
        assert (got["y"][[3, 50]] == 0).all() and (got["lse"][:, :, [3, 50]] == -np.inf).all()
        assert (got["probs"][:, :, [3, 50]] == 0).all() and (got["dqkv"][[3, 50], :16] == 0).all()
        np.testing.assert_allclose(got["dqkv"], reference(setting, qkv, dy)["dqkv"], rtol=0, atol=1e-4)


def test_a_soft_cap_bounds_what_is_shared_out():
    setting = Setting(1, 60, 1, 1, 8, {"softcap": 0.5})
    qkv, dy = setting.draw("float32")
    qkv[:, :16] *= 100
    probs = run(setting, qkv, dy)["probs"][0, 0]
    assert np.isfinite(run(setting, qkv, dy)["dqkv"]).all()
    assert probs[59].max() / probs[59].min() <= np.exp(1.0) * 1.001  # scores differ by at most twice the cap


# --- the numerical contract -------------------------------------------------------------------------------------------

@names
@dtypes
@pytest.mark.parametrize("batch, time, heads, kv_heads, head_dim", [(1, 300, 3, 1, 8), (2, 65, 6, 2, 5), (1, 5, 2, 1, 4)])
def test_bits_do_not_depend_on_threads_addresses_or_kept_probabilities(name, batch, time, heads, kv_heads, head_dim,
                                                                       dtype):
    setting = setting_of(name, batch, time, heads, kv_heads, head_dim)
    qkv, dy = setting.draw(dtype)
    expected = run(setting, qkv, dy)
    for threads, keep, like in ((2, False, None), (3, True, None), (1, True, lawtools.misaligned), (5, False, None)):
        like = like or (lambda x: x)
        assert_same(run(setting, like(qkv), like(dy), threads, keep, like), expected, f"{threads} threads, kept {keep}")


@names
@dtypes
def test_bits_do_not_depend_on_the_cut_of_the_batch(name, dtype):
    setting = setting_of(name, 4, 67, 4, 2, 8)
    qkv, dy = setting.draw(dtype)
    whole = run(setting, qkv, dy, threads=3)
    for b in range(4):
        rows = slice(67 * b, 67 * (b + 1))
        options = {key: x[rows] if isinstance(x, np.ndarray) and len(x) == 268 else x
                   for key, x in setting.options.items()}
        part = run(dataclasses.replace(setting, batch=1, options=options), qkv[rows].copy(), dy[rows].copy())
        for key in ("y", "dqkv"):
            lawtools.assert_same_bits(part[key], whole[key][rows].copy(), key)
        for key in ("lse", "probs"):
            lawtools.assert_same_bits(part[key], whole[key][b:b + 1].copy(), key)


@dtypes
@pytest.mark.parametrize("poison", [1e3, np.inf, np.nan])
def test_what_a_row_does_not_see_changes_no_bit_of_it(poison, dtype):
    """Tokens of other documents, inside and outside of the row's own tile, and tokens that have left the window."""
    first, last, _ = documents(1, 150, seed=1)
    for options in ({"first": first, "last": last}, {"first": window(150, 20)}):
        setting = Setting(1, 150, 2, 1, 12, options)
        low, high = options["first"], options.get("last", np.arange(150))
        qkv, dy = setting.draw(dtype)
        before = run(setting, qkv, dy)
        for t in (0, 13, 47, 50, 100, 149):
            changed = qkv.copy()
            changed[t] = poison
            after = run(setting, changed, dy)
            blind = ~((low <= t) & (t <= high)) & (np.arange(150) != t)
            lawtools.assert_same_bits(after["y"][blind], before["y"][blind])
            lawtools.assert_same_bits(after["lse"][:, :, blind], before["lse"][:, :, blind])
            assert not np.array_equal(after["y"][~blind], before["y"][~blind])


# --- edges and errors -------------------------------------------------------------------------------------------------

@names
def test_no_rows(name):
    setting = Setting(1, 0, 4, 2, 4, OPTIONS[name](1, 0, 4) if "documents" not in name and name not in (
        "positions", "all") else {"first": np.zeros(0, np.int32)})
    qkv, dy = setting.draw("float32")
    assert run(setting, qkv, dy)["y"].shape == (0, 16)


@names
def test_nothing_is_written_outside(name):
    setting = setting_of(name, 2, 66, 4, 2, 5)
    qkv, dy = setting.draw("float32")
    kernels.set_threads(2)
    given = setting.arguments("float32") | {"kv_heads": 2}

    def guarded(*shape):
        whole = np.full(int(np.prod(shape)) + 32, 7, np.float32)
        return whole, whole[16:-16].reshape(shape)

    (y_all, y), (lse_all, lse), (d_all, d), (p_all, p), (w_all, w) = (
        guarded(132, 20), guarded(2, 4, 66), guarded(132, 40), guarded(2, 4, 66, 66),
        guarded(workspace_of(setting, 2, 4)))
    kernels.attention_forward(qkv, 2, 4, **given, y=y, lse=lse, workspace=w)
    kernels.attention_probabilities(qkv, lse, 2, 4, **given, probs=p, workspace=w)
    kernels.attention_backward(dy, qkv, y, lse, 2, 4, p, **given, dqkv=d, workspace=w)
    kernels.attention_backward(dy, qkv, y, lse, 2, 4, None, **given, dqkv=d, workspace=w)
    for whole in (y_all, lse_all, d_all, p_all, w_all):
        assert np.all(whole[:16] == 7) and np.all(whole[-16:] == 7)


def test_a_group_needs_the_room_of_one_head():
    one = kernels.attention_workspace(1, 100, 2, 64, 2, 4)
    assert kernels.attention_workspace(1, 100, 8, 64, 2, 4, kv_heads=2) == one
    assert kernels.attention_workspace(1, 100, 8, 64, 2, 4, bounded=True) > one


TABLE = np.ones((10, 2), "float32")
WRONG = {
    "no key heads": ({"kv_heads": 0}, "kv_heads must divide the 4 heads"),
    "key heads that do not divide": ({"kv_heads": 3}, "kv_heads must divide the 4 heads"),
    "other key heads": ({"kv_heads": 4}, "multiple of 2 rows and of 12 columns"),
    "cos alone": ({"cos": TABLE}, "cos and sin must both be given"),
    "sin alone": ({"sin": TABLE}, "cos and sin must both be given"),
    "positions alone": ({"positions": np.zeros(20, np.int32)}, "cos and sin must both be given"),
    "few rows of sin": ({"cos": TABLE, "sin": TABLE[1:]}, "sin.shape\\[0\\] must be 10"),
    "few columns of sin": ({"cos": TABLE, "sin": TABLE[:, :1].copy()}, "sin.shape\\[1\\] must be 2"),
    "few rows": ({"cos": TABLE[1:], "sin": TABLE[1:]}, "cos and sin must have at least 10 rows"),
    "many columns": ({"cos": np.ones((10, 3), "float32"), "sin": np.ones((10, 3), "float32")}, "at most 2 columns"),
    "few positions": ({"cos": TABLE, "sin": TABLE, "positions": np.zeros(9, np.int32)}, "positions must have an element"),
    "documents without positions": ({"documents": True}, "documents must have the positions"),
    "few positions of documents": ({"documents": True, "positions": np.zeros(9, np.int32)}, "positions must have an element"),
    "few first": ({"first": np.zeros(19, np.int32)}, "first must have an element for each of 20 rows or 10 places"),
    "many last": ({"last": np.zeros(21, np.int32)}, "last must have an element for each of 20 rows or 10 places"),
    "short workspace": ({"first": np.zeros(20, np.int32), "short": 1}, "workspace must have at least"),
    "short workspace for a cap": ({"softcap": 1.0, "short": 1}, "workspace must have at least"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_refused_before_anything_is_written(what):
    given, message = WRONG[what]
    given = {"kv_heads": 2, **given}
    short = given.pop("short", 0)
    size = kernels.attention_workspace(2, 10, 4, 5, 1, 4, kv_heads=2, bounded=True, capped="softcap" in given)
    if short:
        size = kernels.attention_workspace(2, 10, 4, 5, 1, 4, kv_heads=2, bounded="first" in given,
                                           capped="softcap" in given) - 1
    qkv, dy = Setting(2, 10, 4, 2, 5).draw("float32")
    lse, probs = np.full((2, 4, 10), 5, "float32"), np.full((2, 4, 10, 10), 5, "float32")
    y, dqkv, workspace = np.full_like(dy, 5), np.full_like(qkv, 5), np.full(size, 5, "float32")
    for call in (lambda: kernels.attention_forward(qkv, 2, 4, **given, y=y, lse=lse, workspace=workspace),
                 lambda: kernels.attention_probabilities(qkv, lse, 2, 4, **given, probs=probs, workspace=workspace),
                 lambda: kernels.attention_backward(dy, qkv, dy, lse, 2, 4, None, **given, dqkv=dqkv,
                                                    workspace=workspace)):
        with pytest.raises(ShapeError, match=message):
            call()
    for array in (y, lse, probs, dqkv, workspace):
        assert (array == 5).all()


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_soft_cap_is_above_zero(cap):
    qkv, dy = Setting(1, 4, 1, 1, 4).draw("float32")
    with pytest.raises(ConfigError, match="softcap"):
        kernels.attention_forward(qkv, 1, 1, softcap=cap, y=dy, lse=np.zeros((1, 1, 4), "float32"),
                                  workspace=np.zeros(100_000, "float32"))
