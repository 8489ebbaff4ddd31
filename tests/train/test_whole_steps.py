"""Runs whose steps update in backward and keep states on disk: bits, torn models, kills, what is refused."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import oracle
import pytest

import cllm
from cllm import Trainer, snapshot
from cllm.errors import NonFiniteError, PlanError, SpillError
from cllm.executor.spilling import SpillFile
from cllm.executor.updating import Updating
from cllm.planner import disks
from cllm.train.callbacks import read_lines

CONFIG = cllm.ModelConfig(vocab_size=256, n_layers=2, d_model=16, n_heads=2, d_ff=24, max_seq_len=16)
TEXT = np.frombuffer(b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 40, np.uint8)
SMALL = dict(batch_size=2, seq_len=16, steps=8, eval_every=100, eval_batches=1, snapshot_every=3, threads=1, lr=1e-2, keep=9)
PLAN = cllm.plan(CONFIG, 2, 16, num_threads=1)
IN_BACKWARD = replace(PLAN, update_in_backward=True)


@pytest.fixture
def disk(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("needs a directory on a disk")
    return tmp_path


def run(out=None, **more):
    trainer = Trainer(cllm.GPT(CONFIG), TEXT, out, **{**SMALL, **more})
    trainer.run()
    return trainer


def assert_same(trainer, other):
    assert trainer.losses == other.losses
    oracle.assert_same_bits(dict(trainer.model.parameters), dict(other.model.parameters))
    oracle.assert_same_bits(trainer.optimizer.arrays(), other.optimizer.arrays())


@pytest.mark.parametrize("clip", [dict(), dict(clip=None), dict(clip=0.05, clip_by="each")], ids=["all", "none", "each"])
def test_a_run_has_the_same_bits_wherever_gradients_and_states_live(clip, disk):
    plain = run(**clip)
    for more in (dict(strategy=IN_BACKWARD), dict(states=f"disk:{disk}"), dict(strategy=IN_BACKWARD, states=f"disk:{disk}")):
        made = run(**clip, **more)
        assert_same(made, plain)
        assert made.optimizer.states.where == more.get("states", "memory")
    assert plain.executors.total_bytes > made.executors.total_bytes


def test_a_budget_may_decide_all_of_it_and_gradients_are_kept_where_they_are_added_up(disk, monkeypatch):
    monkeypatch.setenv("CLLM_SPILL_DIR", str(disk))
    plain = run()
    least = cllm.MemoryBudget(1, (*cllm.strategies.memory_budget.ALLOWED, *cllm.strategies.whole_step.WHOLE_STEP))
    with pytest.raises(cllm.BudgetError) as caught:
        cllm.plan(CONFIG, 2, 16, least, num_threads=1, clip_by="all")
    tight = run(memory_budget=caught.value.least)
    (executor,) = tight.executors.kept.values()
    assert executor.plan.states_on_disk
    assert executor.memory.total_bytes <= caught.value.least < PLAN.total_bytes
    assert_same(tight, plain)
    with pytest.raises(PlanError, match="needs a plan that keeps gradients"):
        trainer = Trainer(cllm.GPT(CONFIG), TEXT, **SMALL, strategy=IN_BACKWARD)
        trainer.train_step([(np.zeros((2, 16), int), np.ones((2, 16), int))] * 2)
    added = run(accumulate=2, strategy=IN_BACKWARD, states=f"disk:{disk}")
    assert_same(added, run(accumulate=2))


def tear(monkeypatch, at, times=1):
    """The second update of that step of an executor finds a gradient that is not finite, so many times."""
    whole, seen = Updating._clip, []

    def clip(self, name, gradient):
        if self.where.endswith(f"step {at}") and not self.measuring and name == "blocks.0.ln1.weight" and len(seen) < times:
            seen.append(name)
            gradient.arrays[0].reshape(-1)[0] = np.nan
        whole(self, name, gradient)

    monkeypatch.setattr(Updating, "_clip", clip)
    return seen


def test_a_torn_model_is_restored_and_the_run_goes_on_as_if_the_step_had_been_left_out(disk, monkeypatch):
    bad = run(disk / "plain", strategy="cache", callbacks=[Poison(5)])
    seen = tear(monkeypatch, 5, times=9)
    torn = run(disk / "torn", strategy=IN_BACKWARD, states=f"disk:{disk}", clip=1e9, clip_by="each")
    assert len(seen) == 1 and not torn.model.torn and torn.step == 8
    plain = run(disk / "other", strategy="cache", callbacks=[Poison(5)], clip=1e9, clip_by="each")
    assert_same(torn, plain)
    assert len(bad.losses) == len(torn.losses) == 7
    events = [(line["event"], line["step"]) for line in read_lines(disk / "torn" / "metrics.jsonl")]
    assert ("restored", 3) in events and ("bad_step", 6) in events
    assert [step for event, step in events if event == "step"] == [1, 2, 3, 4, 5, 7, 8]
    resumed = Trainer(cllm.GPT(CONFIG), TEXT, disk / "torn", resume=True, states=f"disk:{disk}", strategy=IN_BACKWARD)
    oracle.assert_same_bits(resumed.optimizer.arrays(), torn.optimizer.arrays())


class Poison(cllm.Callback):
    """The gradients of one step of a run that keeps them are not finite."""

    def __init__(self, step):
        self.step = step

    def on_start(self, trainer):
        executor = trainer.executors.of(2, 16)
        whole = executor.train_step

        def poisoned(**named):
            if trainer.step == self.step:
                raise NonFiniteError("train_step", "must be finite", "NaN", "Skip.")
            return whole(**named)

        executor.train_step = poisoned


def test_without_a_snapshot_a_torn_model_ends_the_run(disk, monkeypatch):
    tear(monkeypatch, 1)
    for out in (None, disk / "run"):
        trainer = Trainer(cllm.GPT(CONFIG), TEXT, out, **SMALL, strategy=IN_BACKWARD, clip=None)
        with pytest.raises(NonFiniteError, match="parameters had moved"):
            trainer.run()
        assert trainer.model.torn and (out is None or not snapshot.snapshots(out))
        monkeypatch.undo()
        tear(monkeypatch, 1)


def test_an_error_of_the_disk_restores_the_last_snapshot_and_ends_the_run(disk, monkeypatch):
    straight = run(disk / "straight", states=f"disk:{disk}")
    whole, seen = SpillFile._write, []

    def failing(self, view, place):
        if trainer.step == 4 and (fails_on or threading.current_thread() is not threading.main_thread()):
            raise self._failed("write", OSError(28, "No space left on device"))
        seen.append(place)
        whole(self, view, place)

    for fails_on in (True, False):  # also when the snapshot's states are written back, or in steps alone
        trainer = Trainer(cllm.GPT(CONFIG), TEXT, disk / f"run{fails_on}", **SMALL, states=f"disk:{disk}")
        with monkeypatch.context() as patch:
            patch.setattr(SpillFile, "_write", failing)
            with pytest.raises(SpillError, match="No space left on device, after .* parameters had moved"):
                trainer.run()
        assert bool(trainer.model.torn) == fails_on and [p.name for p in snapshot.snapshots(trainer.out)] == ["step-000003"]
    assert trainer.step == 3
    trainer.run()
    assert_same(trainer, straight)


SCRIPT = """
import sys, numpy as np, cllm
from dataclasses import replace
out, place, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = cllm.ModelConfig(vocab_size=256, n_layers=2, d_model=16, n_heads=2, d_ff=24, max_seq_len=16)
plan = replace(cllm.plan(config, 2, 16, num_threads=1), update_in_backward=True, states=f"disk:{place}")
text = np.frombuffer(b"It was the best of times, it was the worst of times. " * 60, np.uint8)
cllm.Trainer(cllm.GPT(config), text, out, resume=True, batch_size=2, seq_len=16, steps=steps, eval_every=10**6, eval_batches=1,
             snapshot_every=5, threads=1, lr=1e-2, strategy=plan, clip=1.0, clip_by="each").run()
"""


def start(out, disk, steps):
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(cllm.__file__))}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), str(disk), str(steps)], env=env)


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits(disk):
    straight = start(disk / "straight", disk, 60)
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = start(disk / "killed", disk, 60)
        while process.poll() is None and not (disk / "killed" / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(disk / "killed", disk, 60).wait() == 0 and straight.wait() == 0
    states = [json.loads((disk / name / "step-000060" / "state.json").read_text())["files"] for name in ("straight", "killed")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert states[0][name] == states[1][name]
    assert sorted(os.listdir(disk)) == ["killed", "straight"]
