"""Many threads on little work, as a micro-batch of one sequence has it: other shares, the same bits."""
import time
from pathlib import Path

import numpy as np
import pytest
from lawtools import assert_same_bits, draw, threads

from cllm import _kernels as kernels

MANY = 16
ROWS, C, F = 256, 160, 416  # of 16 threads each would get ten columns, or rows in slices


def on(count, call):
    """What `call` wrote on so many threads."""
    with threads(count):
        return call()


def same_on_many(call):
    expected = on(1, call)
    for count in (7, MANY):
        for number, (got, one) in enumerate(zip(on(count, call), expected, strict=True)):
            assert np.isfinite(one).all()
            assert_same_bits(got, one, f"array {number} on {count} threads")


def _products(rounds):
    x, w, dy, bias = (draw(shape, "float32", seed) for seed, shape in enumerate([(ROWS, C), (C, F), (ROWS, F), (F,)]))
    y, dx, dw, db = np.empty_like(dy), np.empty_like(x), np.ones_like(w), np.ones_like(bias)
    room = np.empty(kernels.linear_workspace(ROWS, C, F, kernels.get_threads(), 4), np.float32)
    kernels.linear_forward(x, w, bias, rounds, y=y, workspace=room)
    kernels.linear_backward_input(dy, w, None, rounds, dx=dx, workspace=room)
    kernels.linear_backward_weight(x, dy, rounds, dweight=dw, dbias=db, workspace=room)
    return y, dx, dw, db


@pytest.mark.parametrize("rounds", [False, True])
def test_products_are_cut_along_both_sides(rounds):
    same_on_many(lambda: _products(rounds))


@pytest.mark.parametrize("batch, time, heads, keys, softcap, window", [
    (1, 150, 3, 3, None, None), (1, 97, 4, 2, 5.0, None), (2, 200, 2, 1, None, 60)])
def test_attention_backward_shares_out_blocks(batch, time, heads, keys, softcap, window):
    width = 24
    qkv = draw((batch * time, (heads + 2 * keys) * width), "float32", 1)
    dy = draw((batch * time, heads * width), "float32", 2)
    first = None if window is None else np.maximum(np.arange(time) - window, 0).astype(np.int32)

    def call():
        y, dqkv = np.empty_like(dy), np.empty_like(qkv)
        lse = np.empty((batch, heads, time), np.float32)
        room = np.empty(kernels.attention_workspace(batch, time, heads, width, kernels.get_threads(), 4, kv_heads=keys,
                                                    bounded=window is not None, capped=softcap is not None), np.float32)
        about = {"kv_heads": keys, "softcap": softcap, "first": first}
        kernels.attention_forward(qkv, batch, heads, **about, y=y, lse=lse, workspace=room)
        kernels.attention_backward(dy, qkv, y, lse, batch, heads, None, **about, dqkv=dqkv, workspace=room)
        return y, lse, dqkv

    same_on_many(call)


def test_norms_and_embeddings_cut_columns_finer():
    x, dy, weight = (draw(shape, "float32", seed) for seed, shape in enumerate([(ROWS, 200), (ROWS, 200), (200,)]))
    tokens = np.random.default_rng(0).integers(0, 9, ROWS).astype(np.int32)

    def call():
        y, mean, rstd = np.empty_like(x), np.empty(ROWS), np.empty(ROWS)
        dx, dweight, dbias, table = np.zeros_like(x), np.ones(200, np.float32), np.ones(200, np.float32), np.ones((9, 200), "f")
        kernels.layernorm_forward(x, weight, weight, 1e-5, y=y, mean=mean, rstd=rstd)
        kernels.layernorm_backward(dy, x, mean, rstd, weight, dx=dx, dweight=dweight, dbias=dbias)
        root, square = np.ones(200, np.float32), np.zeros_like(x)
        kernels.rmsnorm_backward(dy, x, rstd[:, None], weight, dx=square, dweight=root)
        kernels.embedding_backward(tokens, dy, ROWS, dweight=table, dpositions=None)
        return y, dx, dweight, dbias, square, root, table

    same_on_many(call)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's threads")
def test_work_that_is_worth_few_threads_ends_none():
    """GNU's runtime ends the threads that a region leaves out, and the next one waits until they are made anew."""
    x, w, y = (np.zeros(shape, np.float32) for shape in [(192, 96), (96, 96), (192, 96)])
    wide = np.zeros((1024, 1024), np.float32)
    blocks = np.zeros((1, 2, 48, 48), np.float32)

    def alive():
        kernels.copy_values(wide, y=wide)
        return {one.name for one in Path("/proc/self/task").iterdir()}

    with threads(6):
        room = np.empty(kernels.linear_workspace(192, 96, 96, 6, 4), np.float32)
        narrow = np.empty(kernels.block_linear_workspace(192, 1, 2, 48, 6, 4), np.float32)
        alive()
        time.sleep(0.05)  # threads that were started on trial are gone, but the system lists them for a moment
        before = alive()
        for call in (lambda: kernels.linear_forward(x, w, None, y=y, workspace=room),
                     lambda: kernels.linear_backward_bias(wide[:96], dbias=wide[0]),
                     lambda: kernels.block_linear_forward(x, blocks, None, y=y, workspace=narrow)):
            call()
            assert before <= alive(), "what else the process does may begin threads"
