"""A step that nobody profiles reads no clock and leaves nothing behind; a profiled one has a record of each operation."""
import gc
import itertools
import tracemalloc

import oracle
import pytest

import cllm
from cllm import _kernels

B, T = 4, 8


@pytest.fixture(params=["cache", "recompute@3"])
def made(request):
    model = cllm.GPT(cllm.ModelConfig(**oracle.CONFIG), seed=0)
    return model, cllm.Executor(model, B, T, strategy=request.param, num_threads=1), oracle.draw_batch(oracle.CONFIG, B, T)


def traced(call, times):
    """Bytes that Python's allocators hold more after so many calls."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        call()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in itertools.repeat(None, times):
            call()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_without_profiling_no_clock_is_read(made, monkeypatch):
    model, executor, batch = made

    def refuse(*arguments, **named):
        raise AssertionError("the clock was read")

    monkeypatch.setattr(_kernels, "call_timed", refuse)
    executor.loss_and_grad(*batch)
    executor.loss(*batch)
    executor.logits(batch[0])
    with pytest.raises(AssertionError, match="clock was read"):
        executor.timed_step(*batch)


def test_without_profiling_nothing_is_kept(made):
    _, executor, batch = made
    records = []
    executor.loss_and_grad(*batch)
    # An int that leaves the small ones, the step's number, is all that may differ.
    assert traced(lambda: executor.loss_and_grad(*batch), 20) < 100
    assert traced(lambda: records.append(executor.timed_step(*batch)), 20) > 20 * 50 * 8, "and a record would be seen"


def test_without_profiling_nothing_is_allocated_for_operations(made):
    """The most that a step holds in passing grows by no record's entry for each operation."""
    def most(n_blocks, profiled):
        config = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": n_blocks})
        executor = cllm.Executor(cllm.GPT(config, seed=0), B, T, num_threads=1)
        take = executor.timed_step if profiled else executor.loss_and_grad
        batch = oracle.draw_batch(oracle.CONFIG, B, T)
        take(*batch)
        tracemalloc.start()
        try:
            take(*batch)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # 9 blocks have 176 operations more than 1. A place in a list of calls is 8 bytes, a double of the record 8 more.
    assert most(9, True) - most(1, True) > 176 * 12
    assert most(9, False) - most(1, False) < 176 * 12, "no entry for each"


def test_a_profiled_step_is_the_same_step(made):
    model, executor, batch = made
    loss = executor.loss_and_grad(*batch)
    plain = {name: gradient.copy() for name, gradient in model.gradients.items()}
    model.zero_grad()
    executor.step = 0
    record = executor.timed_step(*batch)
    assert all((model.gradients[name] == plain[name]).all() for name in plain) and executor.step == 1 and loss > 0
    schedule, body = executor.schedule, executor.schedule.ops[:executor.schedule.epilogue]
    ran = [*body] * schedule.n_micro + [*schedule.ops[schedule.epilogue:]]
    assert schedule.whole_step(schedule.ops) == ran and record.shape == (len(ran),)
    assert (record > 0).all()
