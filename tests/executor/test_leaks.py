"""Hundreds of steps take no more memory, threads or descriptors than a few, and an executor that goes leaves nothing."""
import gc
import os
import threading
import tracemalloc

import numpy as np
import oracle
import psutil
import pytest
from longer import always

import cllm
from cllm.planner import disks

CONFIG = {**oracle.CONFIG, "n_layers": 3, "d_model": 32, "d_ff": 128, "n_heads": 2, "max_seq_len": 32}
B, T = 4, 32
NOISE = 2 << 20  # bytes: allocators and interpreter caches settle; 100 steps that each lost a kept value would lose 3 MB
STRATEGIES = {"cache": lambda d: cllm.CacheAll(), "recompute": lambda d: cllm.RecomputeAll(micro_batch=3),
              "spill": lambda d: cllm.Spill(d)}


def usage():
    gc.collect()
    return psutil.Process().memory_info().rss, threading.active_count(), psutil.Process().num_threads(), descriptors()


def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def assert_grows_nothing(work):
    """What is lost is lost each time; an allocator that settles, in a process of thousands of tests, does so once."""
    for _ in range(3):
        before = usage()
        work()
        after = usage()
        if after[0] - before[0] < NOISE:
            break
    assert after[0] - before[0] < NOISE, f"{after[0] - before[0]:,} bytes more"
    assert after[1:] == before[1:], "threads (Python's, the system's) and descriptors"


@pytest.mark.parametrize("name", always(lambda name: name != "recompute", STRATEGIES))
def test_100_steps_grow_nothing(name, tmp_path):
    if name == "spill" and disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("the temporary directory lies in memory")
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0)
    ex = cllm.Executor(model, B, T, strategy=STRATEGIES[name](str(tmp_path)), num_threads=2)
    opt = cllm.AdamW(model, lr=1e-3)
    batch = oracle.draw_batch(CONFIG, B, T)

    def train(steps):
        for _ in range(steps):
            model.zero_grad()
            ex.loss_and_grad(*batch)
            cllm.clip_grad_norm(model, 1.0)
            opt.step()
            ex.loss(*batch)
            assert np.isfinite(ex.logits(batch[0])).all()

    train(20)
    assert_grows_nothing(lambda: train(100))
    # The heap has room to hide small losses in; what Python's allocators hand out has not.
    tracemalloc.start()
    try:
        train(5)
        held = tracemalloc.get_traced_memory()[0]
        train(40)
        assert tracemalloc.get_traced_memory()[0] - held < 40 * 512
    finally:
        tracemalloc.stop()


def test_executors_that_come_and_go_leave_nothing(tmp_path):
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0)
    batch = oracle.draw_batch(CONFIG, B, T)

    def one(strategy):
        cllm.Executor(model, B, T, strategy=strategy, num_threads=2).loss_and_grad(*batch)

    strategies = [cllm.CacheAll(), cllm.Binomial(2), cllm.Compressed()]
    if disks.file_system(tmp_path) not in disks.MEMORY_BACKED:
        strategies.append(cllm.Spill(str(tmp_path)))
    for strategy in strategies * 3:
        one(strategy)
    assert_grows_nothing(lambda: [one(strategy) for strategy in strategies * 10])
    assert not list(tmp_path.iterdir())


def test_errors_leave_nothing(tmp_path):
    """Refused batches and losses that are not finite, hundreds of times."""
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0)
    ex = cllm.Executor(model, B, T, strategy=cllm.RecomputeAll(), num_threads=2)
    tokens, targets = oracle.draw_batch(CONFIG, B, T)
    good = model.parameters["ln_f.weight"].copy()

    def fail(times):
        for _ in range(times):
            with pytest.raises(cllm.TokenError):
                ex.loss_and_grad(tokens + 100, targets)
            model.parameters["ln_f.weight"][...] = np.nan
            with pytest.raises(cllm.NonFiniteError):
                ex.loss_and_grad(tokens, targets)
            model.parameters["ln_f.weight"][...] = good
            model.zero_grad()

    fail(5)
    assert_grows_nothing(lambda: fail(100))
    assert np.isfinite(ex.loss_and_grad(tokens, targets))


@pytest.mark.parametrize("lose, names", [(lambda: np.ones(16 << 20, "float32"), "bytes more"),
                                         (lambda: open(os.devnull), "descriptors")], ids=["memory", "a file"])
def test_growth_is_seen(lose, names):
    """Law 12."""
    lost = []
    with pytest.raises(AssertionError, match=names):
        assert_grows_nothing(lambda: lost.append(lose()))
    for one in lost:
        getattr(one, "close", int)()
