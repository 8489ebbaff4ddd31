"""`train_step`: what it refuses, what it leaves when something goes wrong, and what a torn model does."""
import copy
import gc
import os
import pickle
import signal
import threading
from dataclasses import replace

import numpy as np
import oracle
import pytest

import cllm
from cllm import snapshot
from cllm.errors import ConfigError, NonFiniteError, OptimizerError, PlanError, SpillError, TornError
from cllm.executor.spilling import SpillFile
from cllm.planner import disks

B, T = 3, 6
CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 3})
BATCHES = [oracle.draw_batch(oracle.CONFIG, B, T, seed=step) for step in range(4)]
WAYS = {"kept": {}, "backward": dict(update_in_backward=True), "disk": dict(states="disk"),
        "both": dict(update_in_backward=True, states="disk")}


def new(place=None, seed=0, **way):
    model = cllm.GPT(CONFIG, seed=seed)
    way = {**way, **({"states": f"disk:{place}"} if way.get("states") == "disk" else {})}
    return model, cllm.AdamW(model, lr=1e-2), cllm.Executor(model, B, T, num_threads=1, **way)


def state_of(model, optimizer):
    return {name: array.copy() for name, array in {**model.parameters, **optimizer.arrays()}.items()}


@pytest.fixture
def disk(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("needs a directory on a disk")
    return tmp_path


def test_what_cannot_be_stepped_is_refused_and_nothing_changes(disk):
    model, optimizer, ex = new()
    before = state_of(model, optimizer)
    other = cllm.AdamW(cllm.GPT(CONFIG))
    for arguments, error, message in (
            (dict(), ConfigError, r"train_step\(optimizer\): must be an optimizer; got NoneType. Pass for example cllm.AdamW"),
            (dict(optimizer=other), ConfigError, "must be of the executor's model; got one of another. Make the optimizer"),
            (dict(optimizer=optimizer, clip_norm=-1), ConfigError, r"train_step\(clip_norm=...\)"),
            (dict(optimizer=optimizer, clip_by="none"), ConfigError, r"train_step\(clip_by=...\): must be one of all, each")):
        with pytest.raises(error, match=message):
            ex.train_step(*BATCHES[0], **arguments)
    small = cllm.Executor(model, B, T, optimizer="sgd", num_threads=1)
    with pytest.raises(OptimizerError, match="must keep at most 0 bytes for tok_emb.weight, as planned; got 1,664. Make"):
        small.train_step(*BATCHES[0], optimizer)
    with pytest.raises(cllm.ShapeError):
        ex.train_step(*(array[:, 1:] for array in BATCHES[0]), optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), before)
    assert optimizer.steps == 0 and ex.step == 0
    for states in ("floppy", np.zeros(3), 5):
        with pytest.raises(PlanError, match="states: must be 'memory' or 'disk:DIR'"):
            cllm.Executor(model, B, T, cllm.MemoryBudget("1GB"), states=states)
    for update in (1, "yes", np.zeros(3)):
        with pytest.raises(ConfigError, match="update_in_backward: must be True, False or None"):
            cllm.Executor(model, B, T, update_in_backward=update)
    with pytest.raises(ConfigError, match="clip_by: must be one of all, each"):
        cllm.Executor(model, B, T, clip_by="some")


def test_gradients_are_zero_before_and_after(disk):
    for way in WAYS.values():
        model, optimizer, ex = new(disk, **way)
        reference, moving, straight = new()
        for gradient in model.gradients.values():
            gradient[...] = 7
        ex.train_step(*BATCHES[0], optimizer)
        straight.train_step(*BATCHES[0], moving)
        assert not any(gradient.any() for gradient in model.gradients.values())
        oracle.assert_same_bits(state_of(model, optimizer), state_of(reference, moving))


def test_a_plan_that_keeps_gradients_measures_them_there():
    with pytest.raises(PlanError, match="Executor.measure: is for plans that update in backward; got one that keeps gradients"):
        new()[2].measure(*BATCHES[0])


def test_a_plan_that_updates_in_backward_keeps_no_gradients_to_add_to():
    model, optimizer, ex = new(update_in_backward=True)
    for call in (ex.loss_and_grad, ex.timed_step):
        with pytest.raises(PlanError, match="needs a plan that keeps gradients; got one that updates in backward. Call"):
            call(*BATCHES[0])
    assert ex.loss(*BATCHES[0]) == ex.train_step(*BATCHES[0], optimizer)
    before = state_of(model, optimizer)
    norm = ex.measure(*BATCHES[1])
    oracle.assert_same_bits(state_of(model, optimizer), before)
    ex.train_step(*BATCHES[1], optimizer)
    assert ex.grad_norm == norm > 0 and not model.has_gradients


def test_gradients_can_be_added_up_by_hand_where_states_are_on_disk(disk):
    (model, optimizer, ex), (reference, moving, straight) = new(disk, states="disk"), new()
    for _ in range(2):
        ex.train_step(*BATCHES[0], optimizer)
        straight.train_step(*BATCHES[0], moving)
        for m, o, e in ((model, optimizer, ex), (reference, moving, straight)):
            m.zero_grad()
            e.loss_and_grad(*BATCHES[1])
            assert len(e.timed_step(*BATCHES[1])) > 10
            o.step()
    oracle.assert_same_bits(state_of(model, optimizer), state_of(reference, moving))


def test_states_move_with_what_they_hold(disk):
    (model, optimizer, ex), (reference, moving, straight) = new(), new()
    for way in ("memory", f"disk:{disk}", "memory", f"disk:{disk}", f"disk:{disk}/."):
        ex = cllm.Executor(model, B, T, num_threads=1, states=way)
        ex.train_step(*BATCHES[0], optimizer)
        straight.train_step(*BATCHES[0], moving)
        oracle.assert_same_bits(state_of(model, optimizer), state_of(reference, moving))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        oracle.assert_same_bits(other.arrays(), moving.arrays())
        assert other.states.where == "memory"
    with pytest.raises(PlanError, match=r"AdamW.keep_states\(where\): must be 'memory' or 'disk:DIR'; got 'tape'"):
        optimizer.keep_states("tape")
    for where, message in ((f"disk:{disk}/none", "must be a directory; got none there"), ("disk:/proc", "must")):
        with pytest.raises(SpillError, match=message):
            optimizer.keep_states(where)
    oracle.assert_same_bits(optimizer.arrays(), moving.arrays())
    assert os.listdir(disk) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_is_not_finite_moves_nothing(way, disk):
    model, optimizer, ex = new(disk, **WAYS[way])
    ex.train_step(*BATCHES[0], optimizer)
    model.parameters["blocks.1.ln1.weight"][2] = np.nan
    before = state_of(model, optimizer)
    with pytest.raises(NonFiniteError, match="train_step, step 1, parameter blocks.1.ln1.weight: must be finite; got loss nan"):
        ex.train_step(*BATCHES[1], optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), before)
    assert optimizer.steps == 1 and ex.step == 1 and not model.torn


def burst(ex, name):
    """From then on the accumulation of that parameter's gradient ends in infinity."""
    mode = "step"
    calls = ex._bound(B, mode)
    schedule = ex._schedule(mode)
    at = next(i for i, op in enumerate(schedule.ops) if op.kind == "clip" and op.params in ((), (name,)))
    clip = calls[at]

    def bursting():
        if schedule.ops[at].params:
            buffer = schedule.buffers[dict(schedule.ops[at].reads)["gradient"]]
            start = ex.memory.arena.offsets[buffer.index]
            ex._slab.bytes[start:start + 4].view(np.float32)[0] = np.inf
        else:
            ex._model.gradients[name].reshape(-1)[0] = np.inf
        clip()

    ex._calls[mode, B] = [*calls[:at], bursting, *calls[at + 1:]]


@pytest.mark.parametrize("clip_norm, clip_by", [(None, "all"), (1.0, "all"), (1.0, "each")])
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_that_is_not_finite_tears_only_what_had_begun_to_move(way, clip_norm, clip_by, disk):
    model, optimizer, ex = new(disk, **WAYS[way])
    ex.train_step(*BATCHES[0], optimizer)
    path = snapshot.write_snapshot(disk / "run", 1, model, optimizer)
    before = state_of(model, optimizer)
    burst(ex, "blocks.1.ln1.weight")
    message = "train_step, step 1, gradient of blocks.1.ln1.weight: must be finite; got NaN or"
    with pytest.raises(NonFiniteError, match=message) as caught:
        ex.train_step(*BATCHES[1], optimizer, clip_norm, clip_by)
    tears = "update_in_backward" in WAYS[way] and (clip_norm is None or clip_by == "each")
    assert bool(model.torn) == bool(optimizer.torn) == tears
    if tears:
        assert "parameters had moved, head" in str(caught.value) or "parameters had moved, ln_f" in str(caught.value)
        assert "The model is torn: load the last snapshot" in caught.value.do
        snapshot.load_snapshot(path, model, optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), before)
    assert optimizer.steps == 1 and ex.step == 1


def test_what_is_torn_refuses_every_call_until_it_is_restored(disk, tmp_path):
    model, optimizer, ex = new(disk, update_in_backward=True)
    path = snapshot.write_snapshot(disk / "run", 0, model, optimizer)
    fresh = state_of(model, optimizer)
    burst(ex, "blocks.0.ln1.weight")
    with pytest.raises(NonFiniteError):
        ex.train_step(*BATCHES[0], optimizer)
    message = r"must be of one step; got train_step, step 0, broken off after \d+ of \d+ parameters had moved, .* more. Load"
    for call in (lambda: ex.train_step(*BATCHES[0], optimizer), lambda: ex.loss(*BATCHES[0]), lambda: ex.logits(BATCHES[0][0]),
                 lambda: ex.measure(*BATCHES[0]), optimizer.step, optimizer.arrays, lambda: model.parameters, model.copy,
                 lambda: model.save(tmp_path / "m"), model.zero_grad, lambda: cllm.clip_grad_norm(model, 1.0),
                 lambda: cllm.Executor(model, B, T), lambda: cllm.generate(model, BATCHES[0][0][0, :2], 2),
                 lambda: snapshot.write_snapshot(disk / "run", 1, model, optimizer),
                 lambda: pickle.loads(pickle.dumps(model)).parameters):
        with pytest.raises(TornError, match=message):
            call()
    assert [p.name for p in snapshot.snapshots(disk / "run")] == ["step-000000"] and not (tmp_path / "m").exists()
    with pytest.raises(cllm.SnapshotError):
        snapshot.load_snapshot(disk / "none", model, optimizer)
    assert model.torn and optimizer.torn
    snapshot.load_snapshot(path, model)
    with pytest.raises(TornError, match="the state of AdamW: must be of one step"):
        ex.train_step(*BATCHES[0], optimizer)
    snapshot.load_snapshot(path, model, optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), fresh)
    ex._calls.clear()
    reference, moving, straight = new()
    assert ex.train_step(*BATCHES[0], optimizer) == straight.train_step(*BATCHES[0], moving)
    oracle.assert_same_bits(state_of(model, optimizer), state_of(reference, moving))


@pytest.mark.parametrize("move, after", [("read", 0), ("read", 12), ("write", 0), ("write", 9)])
@pytest.mark.parametrize("way", ["disk", "both"])
def test_an_error_of_the_disk_tears_what_had_begun_to_move(way, move, after, disk, monkeypatch):
    model, optimizer, ex = new(disk, **WAYS[way])
    ex.train_step(*BATCHES[0], optimizer)
    path, before = snapshot.write_snapshot(disk / "run", 1, model, optimizer), state_of(model, optimizer)
    whole, seen = getattr(SpillFile, f"_{move}"), []

    def failing(self, view, place):
        seen.append(place)
        if len(seen) > after:
            raise self._failed(move, OSError(28, "No space left on device"))
        return whole(self, view, place)

    with monkeypatch.context() as patch:
        patch.setattr(SpillFile, f"_{move}", failing)
        with pytest.raises(SpillError, match=f"states on disk in .*: must be able to {move}; got .*No space left") as caught:
            ex.train_step(*BATCHES[1], optimizer)
    assert ("parameters had moved" in str(caught.value)) == bool(model.torn) == (move == "write" or after > 0)
    if model.torn:
        snapshot.load_snapshot(path, model, optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), before)
    reference, moving, straight = new()
    for batch in BATCHES[:2]:
        straight.train_step(*batch, moving)
    ex.train_step(*BATCHES[1], optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), state_of(reference, moving))


def test_an_interrupt_in_a_backward_that_updates_leaves_a_torn_model_and_no_thread(disk):
    model, optimizer, ex = new(disk, **WAYS["both"])
    calls, ops = ex._bound(B, "step"), ex._schedule("step").ops
    middle = [i for i, op in enumerate(ops) if op.kind == "update"][5]

    def interrupt():
        raise KeyboardInterrupt

    ex._calls["step", B] = [*calls[:middle], interrupt, *calls[middle:]]
    with pytest.raises(KeyboardInterrupt):
        ex.train_step(*BATCHES[0], optimizer)
    assert model.torn and optimizer.states.file._thread is None
    with pytest.raises(TornError):
        ex.loss(*BATCHES[0])


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
def test_a_ctrl_c_waits_for_the_end_of_the_step_and_a_second_one_does_not(disk):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        straight = new(disk, **WAYS["both"])
        straight[2].train_step(*BATCHES[0], straight[1])
        for times in (1, 2):
            model, optimizer, ex = new(disk, **WAYS["both"])
            calls = ex._bound(B, "step")
            middle = [i for i, op in enumerate(ex._schedule("step").ops) if op.kind == "update"][5]
            presses = [lambda: signal.raise_signal(signal.SIGINT)] * times
            ex._calls["step", B] = [*calls[:middle], *presses, *calls[middle:]]
            with pytest.raises(KeyboardInterrupt):
                ex.train_step(*BATCHES[0], optimizer)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert bool(model.torn) == (times == 2)
            if times == 1:
                oracle.assert_same_bits(state_of(model, optimizer), state_of(*straight[:2]))
                assert ex.step == optimizer.steps == 1
        seen = []
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        model, optimizer, ex = new(disk, **WAYS["both"])
        ex._calls["step", B] = [presses[0], *ex._bound(B, "step")]
        ex.train_step(*BATCHES[0], optimizer)
        assert seen == [signal.SIGINT], "who has a handler of his own decides"
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_of_the_disk_while_a_snapshot_is_written_is_an_error(disk, monkeypatch):
    """Not a signal, which a mapped file would end the process with; what is loaded into a file goes the same way."""
    model, optimizer, ex = new(disk, states="disk")
    ex.train_step(*BATCHES[0], optimizer)
    path = snapshot.write_snapshot(disk / "good", 1, model, optimizer)
    reads = []

    def failing(number, rooms, at):
        reads.append(at)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        with pytest.raises(SpillError, match=r"states on disk in .*: must be able to read; got .*Input/output error. Make"):
            snapshot.write_snapshot(disk / "bad", 1, model, optimizer)
        assert reads and os.listdir(disk / "bad") == []
    before = state_of(model, optimizer)
    ex.train_step(*BATCHES[1], optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda number, data, at: failing(number, data, at))
        with pytest.raises(SpillError, match="must be able to write"):
            snapshot.load_snapshot(path, model, optimizer)
    with pytest.raises(TornError, match="step-000001, broken off at optimizer.safetensors"):
        ex.loss(*BATCHES[0])
    snapshot.load_snapshot(path, model, optimizer)
    oracle.assert_same_bits(state_of(model, optimizer), before)


def test_directories_in_memory_and_disks_without_room_are_refused_beforehand(disk, monkeypatch):
    model, optimizer, ex = new(disk, states="disk")
    before = state_of(model, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(disks, "file_system", lambda path: "tmpfs")
        with pytest.raises(SpillError, match=r"states on disk in .*: must be on a disk; got a file system in memory \(tmpfs\)"):
            ex.train_step(*BATCHES[0], optimizer)
    usage = disks.shutil.disk_usage(disk)
    with monkeypatch.context() as patch:
        patch.setattr(disks.shutil, "disk_usage", lambda path: usage._replace(free=disks.SPARE_BYTES + 100))
        with pytest.raises(SpillError, match=r"must have [\d,]+ bytes free; got 67,108,964"):
            ex.train_step(*BATCHES[0], optimizer)
    assert optimizer.steps == 0 and not model.torn
    oracle.assert_same_bits(state_of(model, optimizer), before)
    ex.train_step(*BATCHES[0], optimizer)
    with pytest.raises(SpillError, match=r"Executor\(states=...\): must be a directory; got none there"):
        cllm.Executor(model, B, T, states=f"disk:{disk}/none")


def test_a_forked_child_has_no_states_on_disk(disk):
    model, optimizer, ex = new(disk, states="disk")
    ex.train_step(*BATCHES[0], optimizer)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            ex.train_step(*BATCHES[1], optimizer)
            os.write(write, b"stepped")
        except SpillError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"are of the process that put them there; got a forked child. Make a model" in os.read(read, 1000)
    os.close(read), os.close(write)
    ex.train_step(*BATCHES[1], optimizer)


def test_many_steps_with_states_on_disk_open_nothing_and_leave_nothing(disk):
    model, optimizer, ex = new(disk, **WAYS["both"])
    ex.train_step(*BATCHES[0], optimizer)
    gc.collect()  # files of other tests are closed now, not while we count
    opened, running = descriptors(), threading.active_count()
    for step in range(30):
        ex.train_step(*BATCHES[step % 4], optimizer, 1.0, ("all", "each")[step % 2])
        assert optimizer.arrays()  # maps the file
    gc.collect()
    assert descriptors() <= opened and threading.active_count() <= running and os.listdir(disk) == []


def descriptors():
    """How many are open; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_plans_as_data_say_where_gradients_and_states_are(disk):
    plan = cllm.plan(CONFIG, B, T, num_threads=1)
    both = replace(plan, update_in_backward=True, states=f"disk:{disk}")
    assert cllm.Plan.from_dict(both.to_dict()) == both != plan == cllm.Plan.from_dict(plan.to_dict())
    assert "updated in backward" in both.table() and f"states are on disk in {disk}" in both.table()
    assert "update in backward: no -> True" in plan.explain(both) and f"states: memory -> disk:{disk}" in plan.explain(both)
    for bad in ({"update_in_backward": 1}, {"states": None}):
        with pytest.raises(PlanError):
            cllm.Plan.from_dict({**plan.to_dict(), **bad})
    made = cllm.plan(CONFIG, B, T, both, num_threads=1)
    held = sum(p.nbytes for p in cllm.GPT(CONFIG).parameters.values())
    assert made.total_bytes - made.arena_bytes == plan.total_bytes - plan.arena_bytes - 3 * held
