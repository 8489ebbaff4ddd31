"""`check_layer` passes what keeps its promises and names what does not: each fault is planted in a layer that passes."""
from dataclasses import dataclass

import numpy as np
import pytest

import cllm
from cllm import layers
from cllm.testing import check_layer

OURS = [layers.Linear(I=5, O=7), layers.Linear(I=5, O=7, bias=False), layers.LayerNorm(C=8), layers.Activation(F=6),
        layers.Attention(H=2, D=4, C=8), layers.BlockLinear(S=3, H=2, D=4, O=24), layers.Residual(C=8),
        layers.Residual(C=8, rate=0.3, stream=1), layers.Dropout(C=8, rate=0.3, stream=1), layers.Embedding(V=9, C=6, P=8),
        layers.Embedding(V=9, C=6, P=8, kind="clock"), layers.Embedding(V=5, C=6, P=8, pad=2),
        layers.Embedding(V=9, C=6, P=8, scale=2.5), layers.Residual(C=8, scale=0.3),
        layers.CrossEntropyHead(V=9, C=6), layers.SquaredErrorHead(V=9, C=6),
        layers.CrossEntropyHead(V=9, C=6, bias=True), layers.CrossEntropyHead(V=9, C=6, bias=True, scale=0.3, softcap=2.0),
        layers.HeadNorm.of(2, 1, 4, True, unit_offset=True),
        layers.CrystallineAttention(H=2, D=4, C=8, V=9), layers.Activation(F=6, kind="silu"),
        layers.RMSNorm(C=8), layers.RMSNorm(C=8, unit_offset=True), layers.HeadNorm.of(4, 2, 4, each=True),
        layers.HeadNorm.of(4, 2, 4, each=False),
        layers.GatedActivation(F=6), layers.GatedActivation(F=6, kind="gelu_erf"),
        layers.GroupedAttention(H=4, K=2, D=4, E=8, P=9, Z=2, rope=layers.Rope()),
        layers.GroupedAttention(H=4, K=2, D=6, E=8, P=9, Z=2, rope=layers.Rope(), window=2, softcap=3.0, scale=0.4),
        layers.GroupedAttention(H=4, K=4, D=4, E=12, P=9),
        layers.AdaptedLinear(I=5, O=7, U=2, K=2, W=7, slices=((0, 7),), scale=0.5),
        layers.AdaptedLinear(I=5, O=9, U=4, K=2, W=5, slices=((0, 3), (6, 8)), scale=2.0, bias=False, rate=0.4, stream=3),
        layers.Attention(H=2, D=4, C=8, packed=True),
        layers.CrystallineAttention(H=2, D=4, C=8, V=9, packed=True), layers.Embedding(V=9, C=6, P=8, packed=True),
        layers.Embedding(V=9, C=6, P=8, kind="none", packed=True),
        layers.GroupedAttention(H=4, K=2, D=6, E=8, P=9, Z=2, rope=layers.Rope(), window=2, packed=True)]


@pytest.mark.parametrize("layer", OURS, ids=lambda layer: type(layer).__name__)
def test_our_layers_pass(layer):
    check_layer(layer)


def test_every_layer_of_ours_is_checked():
    assert {type(layer) for layer in OURS} == set(layers.LAYERS)


@dataclass(frozen=True)
class Good(cllm.Layer):
    """y = x w; nothing of it is declared but what must be."""

    C: int
    sites = (cllm.Site("y", "N C", "scaled rows"),)
    params = (cllm.Param("weight", "C", "ones"),)
    scratch = (cllm.Scratch("room", lambda layer, letters, threads, itemsize: letters["N"] * layer.C),)

    def forward(self, x, weight, *, y, room):
        room[:x.size] = (x * weight).reshape(-1)
        y[...] = room[:x.size].reshape(x.shape)

    def accumulate(self, dy, x, *, dweight):
        for row in dy * x:
            dweight += row

    def backward(self, dy, weight, *, dx):
        np.multiply(dy, weight, out=dx)


def test_a_layer_in_numpy_passes():
    check_layer(Good(C=8))
    check_layer(Good(C=3), batch=4, time=1, x="N C")


def keeps(self, x, weight, *, y, room):
    np.multiply(x, weight, out=y)
    y[0] += COUNT.append(0) or len(COUNT)


def half(self, x, weight, *, y, room):
    y[1:] = x[1:] * weight


def beyond(self, x, weight, *, y, room):
    np.multiply(x, weight, out=y)
    np.lib.stride_tricks.as_strided(y.reshape(-1), (y.size + 1,), (y.itemsize,))[-1] = 5


def neighbours(self, x, weight, *, y, room):
    y[...] = x * weight
    y[1:] += 0.1 * x[:-1]


def by_address(self, x, weight, *, y, room):
    np.multiply(x, weight * (1 + (x.ctypes.data % 64 == 8 * 9) * 1e-7), out=y)


def at_once(self, dy, x, *, dweight):
    dweight += (dy * x).sum(axis=0)


def overwrites(self, dy, x, *, dweight):
    dweight[...] = (dy * x).sum(axis=0)


COUNT: list = []
FAULTS = {
    "writes into what it reads": ("forward", lambda self, x, weight, *, y, room: np.multiply(x, weight, out=x),
                                  "changes what it reads"),
    "keeps something from the last call": ("forward", keeps, "other bits the second time"),
    "leaves a row unwritten": ("forward", half, "leaves NaN in y"),
    "writes beyond its array": ("forward", beyond, "writes beyond the ends of y"),
    "looks at another position": ("forward", neighbours, "across = True"),
    "a wrong factor": ("backward", lambda self, dy, weight, *, dx: np.multiply(dy, 2 * weight, out=dx), r"dx\[0, 0\] is"),
    "no gradient": ("backward", lambda self, dy, weight, *, dx: dx.fill(0), "central difference"),
    "an unwritten gradient": ("backward", lambda self, dy, weight, *, dx: None, "leaves NaN in dx"),
    "= for += in a parameter's gradient": ("accumulate", overwrites, "dweight is not added to"),
    "rows summed before they are added": ("accumulate", at_once, "micro-batches of"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name):
    method, fault, match = FAULTS[name]
    Bad = dataclass(frozen=True)(type("Bad", (Good,), {method: fault, "__annotations__": {}, "__module__": __name__}))
    with pytest.raises(AssertionError, match=match) as caught:
        check_layer(Bad(C=8))
    assert str(caught.value).startswith("Bad") and str(caught.value).rstrip().endswith(".")


def test_who_says_that_rows_are_not_added_in_order_may_sum_at_once():
    Said = dataclass(frozen=True)(type("Said", (Good,), {"accumulate": at_once, "in_order": False, "__annotations__": {},
                                                       "__module__": __name__}))
    check_layer(Said(C=8))


@pytest.mark.parametrize("layer", [Good, "Good", None])
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(AssertionError, match="must be an instance of a cllm.Layer"):
        check_layer(layer)


def test_a_wrong_step_by_step_form_is_found():
    class Bad(layers.Attention):
        def extend(self, state, position, qkv):
            y = super().extend(state, position, qkv)
            return y if position < 2 else y * 1.001

    with pytest.raises(AssertionError, match="extend differs from forward at position 2"):
        check_layer(Bad(H=2, D=4, C=8))


@dataclass(frozen=True)
class Before(cllm.Layer):
    """y[t] = x[t] + x[t - 1], through scratch; what it reads is an array by sequence and position."""

    C: int
    sites = (cllm.Site("y", "B T C", "two positions"),)
    scratch = (cllm.Scratch("room", lambda layer, letters, threads, itemsize: letters["N"] * layer.C),)
    reads = {"x": "B T C"}
    across = True

    def forward(self, x, *, y, room):
        room = room[:x.size].reshape(x.shape)
        room[...] = x
        room[:, 1:] += x[:, :-1]
        y[...] = room

    def backward(self, dy, *, dx):
        dx[...] = dy
        dx[:, :-1] += dy[:, 1:]

    def start(self, room, dtype):
        return np.zeros(self.C, dtype)

    def extend(self, state, position, x):
        y = x + np.concatenate([state[None, None], x[:, :-1]], axis=1)
        state[...] = x[0, -1]
        return y


def test_a_layer_over_sequences_and_positions_passes():
    check_layer(Before(C=4))


def one_row_only(self, state, position, x):
    y = x + state
    state[...] = x[0, -1]
    return y


def all_scratch(self, x, *, y, room):
    room[...] = (x + np.concatenate([0 * x[:, :1], x[:, :-1]], axis=1)).reshape(-1)
    y[...] = room.reshape(x.shape)


@pytest.mark.parametrize("body, match", [
    ({"across": False}, "lets x of one position change another's y"),
    ({"extend": one_row_only}, "extend differs from forward where 3 rows are new at once"),
    ({"forward": all_scratch}, "5 sequences, 2 at a time, ends in an error: .*take of scratch")])
def test_a_fault_in_a_layer_over_sequences_and_positions_is_named(body, match):
    Bad = dataclass(frozen=True)(type("Bad", (Before,), {"__annotations__": {}, "__module__": __name__, **body}))
    with pytest.raises(AssertionError, match=match):
        check_layer(Bad(C=4))
