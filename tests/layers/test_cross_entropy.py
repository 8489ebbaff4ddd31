"""The head leaves out rows without a target, and no bit shows it."""
import numpy as np
import oracle
import pytest

import cllm
from cllm import _kernels as kernels
from cllm.layers import CrossEntropyHead

N, C, V, R = 53, 12, 31, 16  # chunks of R rows; the last has 5


def targets_with(ignored, seed=0):
    """int32 targets of N rows, so many of them -1."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, N).astype(np.int32)
    targets[rng.permutation(N)[:ignored]] = -1
    return targets


def every_row(layer, x, weight, bias, targets, scale):
    """Loss, dx, dweight and dbias by the kernels over all rows, those without a target among them."""
    work = np.empty(kernels.linear_workspace(N, V, C, kernels.get_threads(), x.itemsize), x.dtype)
    logits, losses, loss = np.empty((N, V), x.dtype), np.empty(N), np.zeros(1)
    dx, dweight = np.empty_like(x), np.full_like(weight, 0.25)
    dbias = None if bias is None else np.full_like(bias, 0.5)
    layer.forward(x, weight, bias, logits=logits, workspace=work)
    kernels.cross_entropy_backward(targets, scale, layer.scale, layer.softcap, logits=logits, losses=losses)
    kernels.accumulate_losses(losses, loss=loss)
    kernels.linear_backward_weight(logits, x, dweight=dweight, dbias=None, workspace=work)
    if bias is not None:
        kernels.linear_backward_bias(logits, dbias=dbias)
    kernels.linear_forward(logits, weight, None, y=dx, workspace=work)
    return {"loss": loss, "dx": dx, "dweight": dweight, "dbias": dbias}


def scratch_of(layer, dtype):
    letters, itemsize = {"N": N, "R": R, **layer.letters}, np.dtype(dtype).itemsize
    return {s.name: np.full(s.elements(layer, letters, kernels.get_threads(), itemsize), np.nan, s.dtype or dtype)
            for s in layer.scratch}


@pytest.mark.parametrize("keeps_logits", [False, True])
@pytest.mark.parametrize("settings", [{}, {"bias": True, "scale": 0.7, "softcap": 3.0}], ids=["plain", "bias, scale, cap"])
@pytest.mark.parametrize("ignored", [0, 1, 20, N - 1, N])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_bit_tells_that_rows_were_left_out(dtype, ignored, settings, keeps_logits):
    layer, rng = CrossEntropyHead(V=V, C=C, **settings), np.random.default_rng(1)
    x, weight = (rng.normal(0, 1, shape).astype(dtype) for shape in ((N, C), (V, C)))
    bias = rng.normal(0, 1, V).astype(dtype) if layer.bias else None
    targets, scale = targets_with(ignored), np.array([1 / 37])
    expected, scratch = every_row(layer, x, weight, bias, targets, scale), scratch_of(layer, dtype)
    logits = None
    if keeps_logits:
        logits = np.empty((N, V), dtype)
        layer.forward(x, weight, bias, logits=logits, workspace=scratch["workspace"])
    got = {"loss": np.zeros(1), "dx": np.full_like(x, np.nan), "dweight": np.full_like(weight, 0.25),
           "dbias": None if bias is None else np.full_like(bias, 0.5)}
    layer.backward(x, weight, bias, targets, scale, logits, N, **got, **scratch)
    oracle.assert_same_bits({n: a for n, a in got.items() if a is not None},
                            {n: a for n, a in expected.items() if a is not None})
    assert not got["dx"][targets == -1].any() and (ignored == N or got["dx"].any())
    loss = np.zeros(1)
    layer.evaluate(x, weight, bias, targets, loss=loss, **scratch)
    oracle.assert_same_bits(loss, expected["loss"])


@pytest.mark.parametrize("rows", [1, 2, 3, R])
def test_an_evaluation_needs_no_more_room(rows):
    """Rows of x lie in the chunk behind their logits; where V + C do not fit into it, they are taken one by one."""
    layer, rng = CrossEntropyHead(V=V, C=C), np.random.default_rng(1)
    x, weight, targets = rng.normal(0, 1, (N, C)), rng.normal(0, 1, (V, C)), targets_with(30)
    scratch = scratch_of(layer, "float64")
    scratch |= {"chunk": np.full(rows * V, np.nan), "losses": np.full(rows, np.nan)}
    loss = np.zeros(1)
    layer.evaluate(x, weight, None, targets, loss=loss, **scratch)
    oracle.assert_same_bits(loss, every_row(layer, x, weight, None, targets, np.ones(1))["loss"])


def test_what_is_nan_in_a_row_without_a_target_stays_there():
    layer, rng = CrossEntropyHead(V=V, C=C), np.random.default_rng(1)
    x, weight, targets = rng.normal(0, 1, (N, C)), rng.normal(0, 1, (V, C)), targets_with(30)
    x[targets == -1] = np.nan
    got = {"loss": np.zeros(1), "dx": np.full_like(x, np.nan), "dweight": np.zeros_like(weight), "dbias": None}
    layer.backward(x, weight, None, targets, np.ones(1), None, N, **got, **scratch_of(layer, "float64"))
    assert all(np.isfinite(got[name]).all() for name in ("loss", "dx", "dweight"))


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ignored", [0, 1, 12, 26, 27])
def test_steps_write_up_to_the_peak_however_many_rows_are_left_out(ignored, tied, micro_batch):
    """Of 3 x 9 targets; those of a whole micro-batch among them."""
    config = cllm.ModelConfig(**{**oracle.CONFIG, "tied": tied})
    found = []
    for strategy in (cllm.CacheAll(micro_batch=micro_batch), cllm.RecomputeAll()):
        model = cllm.GPT(config, dtype="float32")
        ex = cllm.Executor(model, 3, 9, strategy=strategy)
        tokens, targets = oracle.draw_batch(oracle.CONFIG, 3, 9, ignored=0)
        targets.reshape(-1)[:ignored] = -1
        loss = ex.loss_and_grad(tokens, targets, num_targets=27)
        assert ex.high_water_bytes == ex.memory.arena_bytes
        if ignored < 27:
            assert ex.loss(tokens, targets) == pytest.approx(loss * 27 / (27 - ignored), rel=1e-12)
        found.append({"loss": loss, **model.gradients})
    oracle.assert_same_bits(*found)
