"""Values on disk: bits of what stays in memory, and every fault of a disk told by name with nothing else harmed."""
import dataclasses
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
import toys
from longer import whole

import cllm
from cllm.executor.spilling import SpillFile
from cllm.planner import disks
from cllm.planner.disks import MEMORY_BACKED
from cllm.plans.plan import Plan
from cllm.plans.tree import OnDisk, Segment, Tape

CONFIG = {**oracle.CONFIG, "n_layers": 4, "dropout": 0.2}
B, T = 5, 6
BASES = {"cache": cllm.CacheAll(), "optional": cllm.CacheAll(also=("probs",)), "selective": cllm.Selective(),
         "every:2": cllm.EveryNth(2), "binomial:2": cllm.Binomial(2), "recompute": cllm.RecomputeAll(),
         "bf16": cllm.Compressed(sites=("act",)),
         "per block": cllm.PerBlock({range(0, 2): cllm.RecomputeAll(), 2: cllm.Selective()})}


@pytest.fixture
def disk(tmp_path):
    """A directory on a disk."""
    kind = disks.file_system(tmp_path)
    if kind in MEMORY_BACKED:
        pytest.skip(f"{tmp_path} lies in memory ({kind}): pass --basetemp on a disk")
    if shutil.disk_usage(tmp_path).free < 2 * disks.SPARE_BYTES:
        pytest.skip(f"{tmp_path} is nearly full")
    return tmp_path


def threads():
    return {t.name for t in threading.enumerate() if t.name.startswith("cllm")}


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def new(strategy, seed=3, **changes):
    model = cllm.GPT(cllm.ModelConfig(**{**CONFIG, **changes}), seed=0)
    return model, cllm.Executor(model, B, T, strategy=strategy, num_threads=2, seed=seed)


def copies(arrays):
    return {name: a.copy() for name, a in arrays.items()}


BATCH = oracle.draw_batch(CONFIG, B, T)


def train(strategy, steps=2, poison=False):
    model, ex = new(strategy)
    opt, losses = cllm.AdamW(model, lr=1e-2), []
    if poison:
        for size in {size for _, size in ex._feeds.cuts()}:
            ex._calls["train", size] = [after(ex, call, op) for call, op in
                                        zip(ex._bound(size), ex.schedule.ops, strict=True)]
        ex._slab.bytes.fill(toys.POISON)
    for _ in range(steps):
        model.zero_grad()
        losses.append(ex.loss_and_grad(*BATCH))
        opt.step()
    return {"losses": losses, "gradients": copies(model.gradients), "weights": copies(model.parameters)}


def after(ex, call, op):
    """A call, and NaN over every buffer that it frees: one whose write has not ended would go to disk as NaN."""
    frees = [(ex.memory.arena.offsets[b], ex.schedule.buffers[b].nbytes) for b in op.frees]

    def run():
        call()
        for start, nbytes in frees:
            ex._slab.bytes[start:start + nbytes] = toys.POISON

    return run


@pytest.mark.parametrize("base, micro_batch", [
    (base, micro_batch) if (row + column) % 3 < 2 else whole(base, micro_batch)
    for row, base in enumerate(BASES) for column, micro_batch in enumerate((None, 1, 2))])
def test_bits_are_those_of_what_stays_in_memory(base, micro_batch, disk):
    expected = train(dataclasses.replace(BASES[base], micro_batch=micro_batch))
    spill = cllm.Spill(str(disk), base=BASES[base], micro_batch=micro_batch)
    oracle.assert_same_bits(train(spill), expected)
    oracle.assert_same_bits(train(spill, poison=True), expected)
    assert not list(disk.iterdir()) and not threads()


def test_slow_disks_change_no_bit(disk, monkeypatch):
    """Writes and reads that take longer than the kernels beside them."""
    expected = train(cllm.CacheAll(), steps=1)
    for name in ("pwrite", "preadv"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real: (time.sleep(0.002), real(*a))[1])
    oracle.assert_same_bits(train(cllm.Spill(str(disk)), steps=1, poison=True), expected)


def test_drawn_plans_that_spill_anything(disk):
    """Any site of any block, block inputs and those of segments too."""
    expected = train(cllm.CacheAll(), steps=1)
    rng = np.random.default_rng(0)
    keys = ("ln1.y", "ln1.mean", "attn.qkv.y", "attn.y", "attn.lse", "res1.y", "ln2.rstd", "mlp.fc1.y", "mlp.act.y", "input")
    for _ in range(8):
        tapes = [Tape(b, tuple((k, OnDisk()) for k in keys if rng.random() < 0.5)) for b in range(4)]
        at = int(rng.integers(0, 3))
        children = (*tapes[:at], Segment(tuple(tapes[at:at + 2]), OnDisk()), *tapes[at + 2:])
        plan = Plan(children, int(rng.integers(1, B + 1)), None, (("ln_f.y", OnDisk()),), spill_directory=str(disk))
        oracle.assert_same_bits(train(plan, steps=1, poison=True), expected)


def test_less_lies_in_the_arena_and_the_peak_is_exact(disk):
    sizes = {}
    for name, strategy in (("cache", cllm.CacheAll()), ("spill", cllm.Spill(str(disk)))):
        ex = cllm.Executor(cllm.GPT(cllm.ModelConfig(13, 12, 64, 4, 256, 64)), 4, 64, strategy=strategy, num_threads=2)
        ex.loss_and_grad(*oracle.draw_batch(CONFIG, 4, 64))
        assert ex.high_water_bytes == ex.memory.arena_bytes
        sizes[name] = ex.memory.arena_bytes
    assert sizes["spill"] < 0.5 * sizes["cache"]
    parts = ex.memory.timeline_by_kind()
    assert max(parts["disk"]) == 0


def test_the_last_block_and_what_is_not_named_stay(disk):
    _, ex = new(cllm.Spill(str(disk), sites=("act", "input")))
    spilled = {ex.schedule.buffers[op.reads[0][1]].label for op in ex.schedule.ops if op.kind == "spill_start"}
    assert spilled == {"blocks.0.mlp.act.y", "blocks.1.mlp.act.y", "blocks.2.mlp.act.y", "drop.y", "blocks.0.res2.y",
                       "blocks.1.res2.y"}


# faults

def faulty(monkeypatch, call, at, fault):
    """os.<call> is real until its `at`-th time, which does `fault` instead."""
    real, count = getattr(os, call), iter(range(10**9))

    def stand_in(*arguments):
        return fault(real, *arguments) if next(count) == at else real(*arguments)

    monkeypatch.setattr(os, call, stand_in)


def fails(code):
    def fault(real, *arguments):
        raise OSError(code, os.strerror(code))
    return fault


def truncates(real, descriptor, *arguments):
    os.ftruncate(descriptor, 0)
    return real(descriptor, *arguments)


FAULTS = {"no space on write": ("pwrite", fails(errno.ENOSPC), "No space left"),
          "device fails on write": ("pwrite", fails(errno.EIO), "Input/output error"),
          "nothing is written": ("pwrite", lambda real, *a: 0, "ended after 0"),
          "device fails on read": ("preadv", fails(errno.EIO), "Input/output error"),
          "the file ends in mid-step": ("preadv", truncates, "ended after 0"),
          "quota": ("pwrite", fails(errno.EDQUOT), os.strerror(errno.EDQUOT)),
          "the descriptor is gone": ("preadv", fails(errno.EBADF), "Bad file descriptor")}


@pytest.mark.parametrize("what, at", [
    *((what, 0) for what in FAULTS), *((what, 11) for what in list(FAULTS)[::3]), *(whole(what, 3) for what in FAULTS),
    *(whole(what, 11) for n, what in enumerate(FAULTS) if n % 3)])
def test_a_fault_of_the_disk_is_named_and_harms_nothing(what, at, disk, monkeypatch):
    call, fault, says = FAULTS[what]
    model, ex = new(cllm.Spill(str(disk), micro_batch=3))
    opt = cllm.AdamW(model, lr=1e-2)
    ex.loss_and_grad(*BATCH)
    opt.step()
    before, state, step = copies(model.parameters), repr(opt.state_dict() if hasattr(opt, "state_dict") else 0), ex.step
    opened = descriptors()
    model.zero_grad()
    with monkeypatch.context() as patch:
        faulty(patch, call, at, fault)
        with pytest.raises(cllm.SpillError, match=says) as caught:
            ex.loss_and_grad(*BATCH)
    assert str(disk) in caught.value.where and "parameters are unchanged" in caught.value.do
    assert ex.step == step and not threads() and descriptors() == opened
    oracle.assert_same_bits(dict(model.parameters), before)
    assert repr(opt.state_dict() if hasattr(opt, "state_dict") else 0) == state
    del caught
    # and afterwards the executor goes on as if nothing had been
    model.zero_grad()
    loss = ex.loss_and_grad(*BATCH)
    clean, other = new(cllm.CacheAll(micro_batch=3))
    for name, value in before.items():
        clean.parameters[name][...] = value
    other.step = step
    assert other.loss_and_grad(*BATCH) == loss
    oracle.assert_same_bits(dict(model.gradients), dict(clean.gradients))


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_transfers_in_pieces_are_completed(call, disk, monkeypatch):
    """A system call may move less than it was asked to; that is no error."""
    expected = train(cllm.CacheAll(), steps=1)
    real = getattr(os, call)

    def short(descriptor, what, place):
        if call == "pwrite":
            return real(descriptor, what[:max(1, len(what) // 3)], place)
        return real(descriptor, [what[0][:max(1, len(what[0]) // 3)]], place)

    monkeypatch.setattr(os, call, short)
    oracle.assert_same_bits(train(cllm.Spill(str(disk)), steps=1), expected)


def refused(strategy, match):
    opened = descriptors()
    with pytest.raises(cllm.SpillError, match=match) as caught:
        new(strategy)
    where = caught.value.where
    del caught
    assert descriptors() == opened and not threads()
    return where


def test_a_directory_that_is_none_is_refused(disk):
    (disk / "file").touch()
    for path in (disk / "missing", disk / "file"):
        assert str(path) in refused(cllm.Spill(str(path)), "must be a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_refused(disk):
    disk.chmod(0o500)
    refused(cllm.Spill(str(disk)), "must be able to make its file")


@pytest.mark.parametrize("kind", MEMORY_BACKED)
def test_a_file_system_in_memory_is_refused(kind, disk, monkeypatch):
    monkeypatch.setattr(disks, "file_system", lambda path: kind)
    refused(cllm.Spill(str(disk)), rf"in memory \({kind}\)")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_shared_memory_is_refused():
    if disks.file_system(Path("/dev/shm")) not in MEMORY_BACKED:
        pytest.skip("/dev/shm is not in memory here")
    refused(cllm.Spill("/dev/shm"), "in memory")


def test_too_little_room_is_refused(disk, monkeypatch):
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=disks.SPARE_BYTES + 1000))
    refused(cllm.Spill(str(disk)), "bytes free")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EFBIG])
def test_a_file_that_cannot_be_given_its_room_is_refused(code, disk, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda *a: fails(code)(None))
    refused(cllm.Spill(str(disk)), "must be able to make its file")
    assert not list(disk.iterdir())


# what a step that ends early leaves behind

@pytest.mark.parametrize("error", [KeyboardInterrupt, whole(MemoryError), whole(ZeroDivisionError)])
def test_whatever_ends_a_step_leaves_no_thread_and_no_harm(error, disk):
    model, ex = new(cllm.Spill(str(disk), micro_batch=3))
    expected = ex.loss_and_grad(*BATCH)
    gradients, opened, calls = copies(model.gradients), descriptors(), ex._calls["train", 3]
    starts = [i for i, op in enumerate(ex.schedule.ops) if op.kind in ("spill_start", "fetch_start")]
    for position in (0, *starts[::9], starts[-1], len(calls) - 2):
        def stop(position=position):
            calls[position]()
            raise error

        ex._calls["train", 3] = [*calls[:position], stop, *calls[position + 1:]]
        ex.step = 0
        with pytest.raises(error):
            ex.loss_and_grad(*BATCH)
        assert not threads() and descriptors() == opened and ex.step == 0
        assert not ex._spill._flying
    ex._calls["train", 3] = calls
    model.zero_grad()
    assert ex.loss_and_grad(*BATCH) == expected
    oracle.assert_same_bits(dict(model.gradients), gradients)


def test_a_signal_in_a_step_is_a_keyboard_interrupt_like_any(disk):
    _, ex = new(cllm.Spill(str(disk)))
    calls = ex._bound(B)
    middle = [i for i, op in enumerate(ex.schedule.ops) if op.kind == "fetch_start"][1]
    ex._calls["train", B] = [*calls[:middle + 1], lambda: signal.raise_signal(signal.SIGINT), *calls[middle + 1:]]
    with pytest.raises(KeyboardInterrupt):
        ex.loss_and_grad(*BATCH)
    assert not threads()


def test_an_executor_that_goes_takes_its_file_with_it(disk):
    opened = descriptors()
    for _ in range(5):
        _, ex = new(cllm.Spill(str(disk)))
        ex.loss_and_grad(*BATCH)
        del ex, _
    assert descriptors() == opened and not list(disk.iterdir())


def test_a_closed_file_gives_its_space_back(disk):
    opened = descriptors()
    file = SpillFile(str(disk), {0: 4096})
    array = np.arange(1024, dtype="float32")
    file.write_call(0, array)()
    file.wait_call("write", 0)()
    expected, array[...] = array.copy(), 0
    file.read_call(0, array)()
    file.wait_call("read", 0)()
    assert (array == expected).all() and descriptors() == opened + 1
    file.close()
    assert descriptors() == opened and not threads()


KILLED = """
    import sys, numpy as np, cllm
    model = cllm.GPT(cllm.ModelConfig(13, 4, 64, 2, 256, 64))
    ex = cllm.Executor(model, 4, 64, strategy=cllm.Spill(sys.argv[1]))
    tokens = np.zeros((4, 64), int)
    ex.loss_and_grad(tokens, tokens)
    print("ready", flush=True)
    while True:
        ex.loss_and_grad(tokens, tokens)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_nothing_in_the_directory(how, disk):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(disk)], stdout=subprocess.PIPE, text=True,
                               cwd=Path(cllm.__file__).parent.parent)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
    finally:
        process.send_signal(how)
        process.wait()
        process.stdout.close()
    assert process.returncode == -how
    assert not list(disk.iterdir())
