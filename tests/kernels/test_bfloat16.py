"""Products in bfloat16 are what their definition says, bit for bit, and so are the kernels that read and write it."""
import itertools
from fractions import Fraction

import bfloat16_reference as reference
import numpy as np
import pytest
from bfloat16_products import made, room
from bfloat16_reference import AWKWARD, float_of, magnitudes, r16, wide
from lawtools import assert_same_bits, draw, misaligned, threads

from cllm import _kernels as kernels
from cllm.errors import CllmError

SHAPES = [(1, 1, 1), (3, 4, 0), (5, 0, 3), (5, 7, 3), (13, 13, 31), (15, 15, 33), (29, 255, 31), (33, 513, 65), (70, 40, 200),
          (400, 20, 30), (17, 515, 390), (5, 1100, 20), (5, 20, 1100), (1100, 5, 20), (3, 40, 830)]


# As this processor makes them, and as pairs by float32: those of the instruction but for the instruction.
way = made("decide", "halves")


def bits16(shape):
    return np.full(shape, 0x7fc1, np.uint16)


def copied(x):
    y = bits16(x.shape)
    kernels.copy_values(x, y=y)
    return y


def test_the_reference_is_exact_arithmetic_rounded_once():
    """The fast form against fractions: sums that cancel, ties and what is next to them, and what is flushed."""
    rng, plain = np.random.default_rng(0), 0
    a, b, c = wide(r16(magnitudes(4000, 1))), wide(r16(magnitudes(4000, 2))), magnitudes(4000, 3)
    c[:1500] = rng.integers(2 ** 23, 2 ** 24, 1500) * np.float32(2) ** rng.integers(-30, 3, 1500)
    a[:1500] = np.spacing(np.abs(c[:1500])) / 2  # half of a last place, plus a very little or nothing
    b[:1500] = 1
    b[:500] = wide(r16(1 + 2.0 ** -7 * rng.integers(0, 3, 500)))
    c[500:1500] += rng.choice([0, 2.0 ** -60], 1000).astype(np.float32)
    a[-500:], b[-500:] = (wide(r16(magnitudes(500, k))) * np.float32(2.0 ** -60) for k in (5, 6))  # of the size of the least
    c[-500:] = 2.0 ** -126 * rng.choice([-1, 1, 1.5], 500)
    extra = [(2.0 ** -13 * 1.5, 2.0 ** -12, 1.0), (2.0 ** -126, 1.0, -2.0 ** -126), (-2.0 ** -63, 2.0 ** -64, 2.0 ** -126),
             (2.0 ** -75, 2.0 ** -76, -2.0 ** -126), (-2.0 ** -75, 2.0 ** -76, 2.0 ** -126)]
    a, b, c = (np.concatenate([one, np.float32([e[i] for e in extra])]) for i, one in enumerate((a, b, c)))
    got = reference.fma(a, b, c)
    for i in range(len(a)):
        start = Fraction(float(c[i])) if abs(c[i]) >= reference.LEAST else Fraction(0)
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + start
        assert got[i] == float_of(exact), (i, a[i], b[i], c[i])
        plain += float(np.float32(a[i] * b[i]) + c[i]) != float_of(exact)
    assert plain > 5  # without flushing it would be another function


def test_rounding_is_the_reference_s():
    x = np.concatenate([AWKWARD, magnitudes(4000, 4), np.random.default_rng(5).integers(0, 2 ** 32, 60000, np.uint64)
                        .astype(np.uint32).view(np.float32)])[None]
    with threads(2):
        assert_same_bits(copied(x), r16(x))
    back = np.empty_like(x)
    kernels.copy_values(r16(x), y=back)
    assert_same_bits(back, wide(r16(x)))
    assert_same_bits(copied(r16(x)), r16(x))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_their_definition_bit_for_bit(shape):
    n, i, o = shape
    x, weight, dy, bias = (magnitudes(s, k) for k, s in enumerate([(n, i), (i, o), (n, o), (o,)]))
    dweight = magnitudes((i, o), 9)
    for arrays in (x, weight, dy, bias, dweight):
        arrays.reshape(-1)[::7] = np.resize(AWKWARD[:-5], arrays.reshape(-1)[::7].shape)
    for count in (1, 3):
        with threads(count):
            y, y16, dx, dw = np.empty((n, o), np.float32), bits16((n, o)), np.empty((n, i), np.float32), dweight.copy()
            kernels.linear_forward(x, weight, bias, True, y=y, workspace=room(n, i, o))
            assert_same_bits(y, reference.product(x, weight, bias), "forward")
            kernels.linear_forward(r16(x), weight, bias, True, y=y16, workspace=room(n, i, o))
            assert_same_bits(y16, r16(reference.product(x, weight, bias)), "forward into bfloat16")
            kernels.linear_backward_input(dy, weight, None, True, dx=dx, workspace=room(n, i, o))
            assert_same_bits(dx, reference.product(dy, weight.T, 0), "input")
            kernels.linear_backward_weight(r16(x), dy, True, dweight=dw, dbias=None, workspace=room(n, i, o))
            assert_same_bits(dw, reference.product(x.T, dy, dweight), "weight")
            dw[...] = dweight
            kernels.linear_backward_weight(x, r16(dy), True, dweight=dw, dbias=None,
                                           workspace=room(n, i, o))
            assert_same_bits(dw, reference.product(x.T, dy, dweight), "weight, dy in bfloat16")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(400, 20, 30), (3, 40, 830), (5, 830, 40), (830, 3, 40), (9, 1030, 400), (400, 9, 1030)])
def test_nothing_is_written_behind_the_scratch(shape):
    n, i, o = shape
    x, weight, dy, dweight = (magnitudes(s, k) for k, s in enumerate([(n, i), (i, o), (n, o), (i, o)]))
    for count in (1, 2):
        with threads(count):
            own = kernels.linear_workspace(n, i, o, count, 4, True)
            frame = np.full(own + 50_000, 7, np.float32)
            kernels.linear_forward(r16(x), weight, None, True, y=bits16((n, o)), workspace=frame[:own])
            kernels.linear_backward_input(dy, weight, None, True, dx=np.empty((n, i), np.float32), workspace=frame[:own])
            kernels.linear_backward_weight(x, dy, True, dweight=dweight, dbias=None, workspace=frame[:own])
            assert (frame[own:] == 7).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(5, 2, 3), (29, 7, 31), (33, 70, 65), (3, 600, 3)])
def test_sums_that_are_subnormal_are_zero(shape):
    """Products and sums about the least normal number, starts below it: flushed at every step, to + 0 in the end."""
    n, i, o = shape
    sizes = [((n, i), -63), ((i, o), -64), ((n, o), -64), ((o,), -127), ((i, o), -127)]
    x, weight, dy, bias, start = (draw(s, "float32", k) * np.float32(2.0 ** e) for k, (s, e) in enumerate(sizes))
    for count in (1, 3):
        with threads(count):
            y, dw = np.empty((n, o), np.float32), start.copy()
            kernels.linear_backward_weight(x, dy, True, dweight=dw, dbias=None, workspace=room(n, i, o))
            assert_same_bits(dw, reference.product(x.T, dy, start), "weight")
            kernels.linear_forward(x, weight, bias, True, y=y, workspace=room(n, i, o))
            expected = reference.product(x, weight, bias)
            assert_same_bits(y, expected, "forward")
            assert not np.signbit(y[y == 0]).any() and (y == 0).any() and (np.abs(y[y != 0]) >= reference.LEAST).all()
    with np.errstate(all="ignore"):
        acc = np.broadcast_to(bias, (n, o)).astype(np.float32)
        for k in range(i):
            acc = (wide(r16(x))[:, k, None] * wide(r16(weight))[None, k]).astype(np.float64) + acc
            acc = acc.astype(np.float32)
    assert (acc != expected).any(), "without flushing it would be another function"


@pytest.mark.usefixtures("way")
def test_block_products_are_their_definition():
    n, s, h, d = 389, 2, 3, 14
    shapes = [(n, h * d), (n, s * h * d), (s, h, d, d), (s * h * d,)]
    x, dy, weight, bias = (magnitudes(shape, k) for k, shape in enumerate(shapes))
    for count in (1, 3):
        with threads(count):
            work = np.empty(kernels.block_linear_workspace(n, s, h, d, count, 4, True), np.float32)
            y, dx, dw = bits16(dy.shape), np.empty_like(x), magnitudes(weight.shape, 8)
            begin = dw.copy()
            kernels.block_linear_forward(r16(x), weight, bias, True, y=y, workspace=work)
            kernels.block_linear_backward_input(dy, weight, True, dx=dx, workspace=work)
            kernels.block_linear_backward_weight(r16(x), dy, True, dweight=dw, dbias=None, workspace=work)
        for part, head in itertools.product(range(s), range(h)):
            mine, columns = slice(head * d, head * d + d), slice((part * h + head) * d, (part * h + head + 1) * d)
            assert_same_bits(y[:, columns].copy(), r16(reference.product(x[:, mine], weight[part, head].T, bias[columns])))
            assert_same_bits(dw[part, head], reference.product(dy[:, columns].T, x[:, mine], begin[part, head]))
        for head in range(h):
            both = np.concatenate([dy[:, (p * h + head) * d:(p * h + head + 1) * d] for p in range(s)], axis=1)
            assert_same_bits(dx[:, head * d:head * d + d].copy(), reference.product(both, np.concatenate(weight[:, head]), 0))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("cut", [1, 2, 33, 50])
def test_weight_gradients_do_not_depend_on_where_the_rows_are_cut(cut):
    """Odd cuts too: that an element is never - 0 hides where the chain has rested."""
    x, dy = magnitudes((101, 19), 1), magnitudes((101, 23), 2)
    x[:, :4] = np.abs(draw((101, 4), "float32", 3)) * np.float32(2.0 ** -70)
    dy[:, :5] = -np.abs(draw((101, 5), "float32", 4)) * np.float32(2.0 ** -70)  # products that are flushed to - 0
    whole, parts = np.zeros((19, 23), np.float32), np.zeros((19, 23), np.float32)
    kernels.linear_backward_weight(x, dy, True, dweight=whole, dbias=None, workspace=room(101, 19, 23))
    for rows in (slice(0, cut), slice(cut, None)):
        kernels.linear_backward_weight(misaligned(x[rows]), misaligned(dy[rows]), True, dweight=parts, dbias=None,
                                       workspace=room(101, 19, 23))
    assert_same_bits(parts, whole)
    assert (whole[:4, :5] == 0).all() and not np.signbit(whole[whole == 0]).any()


def test_the_thread_s_own_treatment_of_subnormals_is_put_back():
    x = np.full((1, 1), 1e-40, np.float32)
    kernels.linear_forward(x, x, None, True, y=np.empty_like(x), workspace=room(1, 1, 1))
    assert (x * np.float32(0.5) != 0).all() and np.float32(1e-38) * np.float32(0.1) != 0
    y = np.empty_like(x)
    kernels.linear_forward(x, np.ones_like(x), None, y=y, workspace=room(1, 1, 1))
    assert y[0, 0] == x[0, 0]


@pytest.mark.parametrize("kind", range(5))
def test_activations_read_and_write_it(kind):
    x, dy = draw((37, 45), "float32", 1, 3), draw((37, 45), "float32", 2)
    small, near = r16(x), wide(r16(x))
    y, y16, dx, dx16 = np.empty_like(x), bits16(x.shape), np.empty_like(x), np.empty_like(x)
    kernels.activation_forward(near, kind, y=y)
    kernels.activation_forward(small, kind, y=y16)
    assert_same_bits(y16, r16(y))
    kernels.activation_forward(near, kind, y=y16)
    assert_same_bits(y16, r16(y))
    kernels.activation_backward(dy, near, kind, dx=dx)
    kernels.activation_backward(dy, small, kind, dx=dx16)
    assert_same_bits(dx16, dx)
    gates, half = draw((37, 90), "float32", 3), np.empty_like(x)
    dgates, dgates16 = np.empty_like(gates), np.empty_like(gates)
    kernels.gated_forward(wide(r16(gates)), kind, y=half)
    kernels.gated_forward(r16(gates), kind, y=y16)
    assert_same_bits(y16, r16(half))
    kernels.gated_backward(dy, wide(r16(gates)), kind, dx=dgates)
    kernels.gated_backward(dy, r16(gates), kind, dx=dgates16)
    assert_same_bits(dgates16, dgates)


@pytest.mark.parametrize("columns", [1, 31, 64, 165])
def test_norms_read_and_write_it(columns):
    x, weight, bias = draw((19, columns), "float32", 1), draw(columns, "float32", 2), draw(columns, "float32", 3)
    y, y16, mean, rstd = np.empty_like(x), bits16(x.shape), np.empty(19), np.empty(19)
    kernels.layernorm_forward(x, weight, bias, 1e-5, y=y, mean=mean, rstd=rstd)
    statistics = mean.copy(), rstd.copy()
    kernels.layernorm_forward(x, weight, bias, 1e-5, y=y16, mean=mean, rstd=rstd)
    assert_same_bits(y16, r16(y))
    assert_same_bits(np.stack(statistics), np.stack([mean, rstd]))
    near, roots, roots16 = wide(r16(x)), np.empty((19, 1)), np.empty((19, 1))
    kernels.rmsnorm_forward(near, weight, 1e-6, y=y, rstd=roots)
    kernels.rmsnorm_forward(r16(x), weight, 1e-6, y=y16, rstd=roots16)
    assert_same_bits(y16, r16(y))
    assert_same_bits(roots16, roots)
    dy, dx, dx16 = draw(x.shape, "float32", 4), np.ones_like(x), np.ones_like(x)
    dw, dw16 = np.ones_like(weight), np.ones_like(weight)
    kernels.rmsnorm_backward(dy, near, roots, weight, dx=dx, dweight=dw)
    kernels.rmsnorm_backward(dy, r16(x), roots, weight, dx=dx16, dweight=dw16)
    assert_same_bits(dx16, dx)
    assert_same_bits(dw16, dw)


@pytest.mark.parametrize("time, heads, keys, width, turned", [(33, 3, 3, 5, False), (70, 4, 2, 16, True), (210, 2, 1, 8, True)])
def test_attention_reads_and_writes_it(time, heads, keys, width, turned):
    """As in float32 of the rounded values, but for where 1/sqrt(D) goes and that what is turned is rounded again."""
    n, columns = 2 * time, heads * width
    qkv, dy = draw((n, (heads + 2 * keys) * width), "float32", 1), draw((n, columns), "float32", 2)
    angles = np.outer(np.arange(time), np.arange(1, width // 2 + 1)).astype(np.float32)
    terms = {"kv_heads": keys, "cos": np.cos(angles), "sin": np.sin(angles)} if turned else {"kv_heads": keys}
    given = [r16(qkv), wide(r16(qkv))]
    if turned:  # both on the same values: already turned, and rounded
        given[1] = _turned(given[1], terms["cos"], terms["sin"], heads + keys, width)
        given.append({"kv_heads": keys, "scale": None})
    made = {}
    for count in (1, 2, 3):
        with threads(count):
            work = np.empty(kernels.attention_workspace(2, time, heads, width, count, 4, kv_heads=keys), np.float32)
            y16, lse, dqkv = bits16(dy.shape), np.empty((2, heads, time), np.float32), np.empty(qkv.shape, np.float32)
            kernels.attention_forward(given[0], 2, heads, **terms, y=y16, lse=lse, workspace=work)
            kernels.attention_backward(dy, given[0], y16, lse, 2, heads, None, **terms, dqkv=dqkv, workspace=work)
            if made:
                for name, value in (("y", y16), ("lse", lse), ("dqkv", dqkv)):
                    assert_same_bits(value, made[name], name)
            made = {"y": y16, "lse": lse, "dqkv": dqkv}
            probs = np.empty((2, heads, time, time), np.float32)
            kernels.attention_probabilities(given[0], lse, 2, heads, **terms, probs=probs, workspace=work)
            kept = np.empty_like(dqkv)
            kernels.attention_backward(dy, given[0], y16, lse, 2, heads, probs, **terms, dqkv=kept, workspace=work)
            assert_same_bits(kept, dqkv, "dqkv from kept probabilities")
    y, wide_lse, wide_dqkv = np.empty(dy.shape, np.float32), np.empty_like(lse), np.empty_like(dqkv)
    work = np.empty(kernels.attention_workspace(2, time, heads, width, kernels.get_threads(), 4, kv_heads=keys), np.float32)
    kernels.attention_forward(given[1], 2, heads, kv_heads=keys, y=y, lse=wide_lse, workspace=work)
    assert np.abs(lse - wide_lse).max() < 1e-5
    near = np.abs(wide(y16) - y) <= 2.0 ** -8 * np.abs(y) + 1e-6
    assert near.all()
    kernels.attention_backward(dy, given[1], wide(y16), wide_lse, 2, heads, None, kv_heads=keys, dqkv=wide_dqkv, workspace=work)
    if turned:
        wide_dqkv = _turned(wide_dqkv, terms["cos"], -terms["sin"], heads + keys, width, rounds=False)
    assert np.abs(dqkv - wide_dqkv).max() < 2e-5 * np.abs(dqkv).max()


def _turned(x, cos, sin, heads, width, rounds=True):
    """The first heads of each row turned by position, and rounded."""
    out = x.copy()
    half = cos.shape[1]
    rows = np.arange(len(x)) % len(cos)
    for head in range(heads):
        u, v = (x[:, head * width + m * half:head * width + (m + 1) * half].astype(np.float64) for m in (0, 1))
        for m, value in enumerate((u * cos[rows] - v * sin[rows], v * cos[rows] + u * sin[rows])):
            value = value.astype(np.float32)
            out[:, head * width + m * half:head * width + (m + 1) * half] = wide(r16(value)) if rounds else value
    return out


def test_what_does_not_go_together_is_refused():
    x, weight, y = draw((4, 5), "float32", 1), draw((5, 6), "float32", 2), np.empty((4, 6), np.float32)
    work = room(4, 5, 6)
    with pytest.raises(CllmError, match="rounds=1 or 2 where an array is bfloat16"):
        kernels.linear_forward(r16(x), weight, None, y=y, workspace=work)
    with pytest.raises(CllmError, match="not in float64"):
        kernels.linear_forward(x.astype(float), weight.astype(float), None, True, y=y.astype(float),
                               workspace=work.astype(float))
    with pytest.raises(CllmError, match="y must be float32, or uint16"):
        kernels.linear_forward(x, weight, None, True, y=np.empty((4, 6), np.int32), workspace=work)
    with pytest.raises(CllmError, match="x must be float64"):
        kernels.linear_forward(r16(x), weight.astype(float), None, True, y=y.astype(float), workspace=work.astype(float))
    with pytest.raises(CllmError, match="dy must be float32 here"):
        kernels.linear_backward_weight(x, r16(y), True, dweight=weight, dbias=np.zeros(6, np.float32), workspace=work)
    with pytest.raises(CllmError, match="must have two axes"):
        kernels.activation_forward(x[0], 0, y=x[0])
    with pytest.raises(CllmError, match="workspace must have at least"):
        kernels.linear_forward(x, weight, None, True, y=bits16((4, 6)), workspace=work[:100])
    qkv, lse = r16(draw((4, 12), "float32", 3)), np.empty((1, 2, 4), np.float32)
    room_of_attention = np.empty(100000, np.float32)
    with pytest.raises(CllmError, match="qkv must be float32 here"):
        kernels.attention_forward(qkv, 1, 2, np.zeros(4, np.int32), turns=True, y=np.empty((4, 4), np.float32), lse=lse,
                                  workspace=room_of_attention)


def test_a_way_that_is_not_known_is_refused():
    with pytest.raises(CllmError, match="must be one of decide, singles, halves, tiles; got vdpbf16ps"):
        kernels.take_bfloat16("vdpbf16ps")


def test_the_trial_of_the_instruction_passes_what_keeps_the_definition():
    """Where there is no instruction, the same trial of the same words by float32."""
    assert kernels.bfloat16_pairs_agree()
