"""How runs end: whatever ends one, the steps that went well are in a snapshot, and what is in a snapshot can go on."""
import errno
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import oracle
import pytest

import cllm
from cllm import corpus, snapshot
from cllm.errors import DataError, NonFiniteError, ShapeError, SpillError, TokenError
from cllm.train import Callback, Lines, Trainer, read_lines

TEXT = np.frombuffer(corpus.embedded_text()[:8000], np.uint8)
SMALL = dict(steps=8, batch_size=2, seq_len=16, eval_every=100, eval_batches=2, snapshot_every=3, threads=1, lr=1e-3, keep=2)


def new(**changes):
    return cllm.GPT(cllm.ModelConfig(256, 1, 16, 2, 32, 16, **changes), seed=1)


def names(out):
    return [p.name for p in snapshot.snapshots(out)]


BEYOND = "ln_f.weight"


def spoil(trainer):
    """Finite weights that give no finite loss."""
    trainer.model.parameters[BEYOND][...] = 3e38


class At(Callback):
    """Calls something after the step of a number."""

    def __init__(self, step, call, event="step"):
        self.when, self.call = (event, step), call

    def on_event(self, trainer, record):
        if (record["event"], record["step"]) == self.when:
            self.call(trainer)


def at(step, call, event="step"):
    return At(step, call, event)


# ------------------------------------------------------------------------------------------------------- stop and go on

def test_a_run_that_was_stopped_goes_on_when_called_again(copies):
    straight = Trainer(new(), TEXT, **SMALL)
    straight.run()
    trainer = Trainer(new(), TEXT, callbacks=[at(3, Trainer.stop), at(5, Trainer.stop)], **SMALL)
    assert [trainer.run().step for _ in range(3)] == [3, 5, 8] and trainer.losses == straight.losses
    oracle.assert_same_bits(copies(trainer.model.parameters), copies(straight.model.parameters))
    assert trainer.run().step == 8, "it has ended"


def test_a_stop_while_nothing_runs_is_no_stop():
    trainer = Trainer(new(), TEXT, **SMALL)
    trainer.stop()
    assert trainer.run().step == 8


# -------------------------------------------------------------------------------------------------------- what is saved

def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A finite loss whose update makes NaN: the snapshot is refused, and the one before is the last good one."""
    def poison(trainer):
        trainer.model.parameters["ln_f.bias"][3] = np.nan

    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[at(6, poison)], **SMALL)
    with pytest.raises(NonFiniteError, match=r"snapshot of step 6: weights .* must be finite; got .* ln_f\.bias.*step-000003"):
        trainer.run()
    assert names(tmp_path) == ["step-000003"]
    assert Trainer(new(), TEXT, tmp_path, resume=True, **SMALL).run().step == 8
    with pytest.raises(NonFiniteError, match=r"tok_emb\.weight\.v"):
        trainer.model.parameters["ln_f.bias"][3] = 0
        trainer.optimizer.arrays()["tok_emb.weight.v"][0, 0] = np.inf
        trainer.snapshot()


def test_a_snapshot_whose_next_loss_was_finite_is_kept(tmp_path):
    """Finite weights from which no step is finite: the snapshots of them push out none that is known to be good."""
    settings = {**SMALL, "snapshot_every": 1, "keep": 1, "max_bad_steps": 3}
    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[at(5, spoil)], **settings)
    with pytest.raises(NonFiniteError, match="step 8: must have a finite one in 3 .*last good snapshot is .*step-000004;"):
        trainer.run()
    assert names(tmp_path) == ["step-000004", "step-000005"]
    assert Trainer(new(), TEXT, tmp_path / "other", **settings).run().step == 8
    assert names(tmp_path / "other") == ["step-000008"], "the last evaluation proves the last snapshot"


def test_what_is_known_to_be_good_survives_a_resume(tmp_path):
    settings = {**SMALL, "snapshot_every": 2, "keep": 1, "max_bad_steps": 2}
    Trainer(new(), TEXT, tmp_path, callbacks=[at(4, Trainer.stop)], **settings).run()
    assert names(tmp_path) == ["step-000002", "step-000004"]
    resumed = Trainer(new(), TEXT, tmp_path, resume=True, **settings)
    spoil(resumed)
    with pytest.raises(NonFiniteError, match="The last good snapshot is .*step-000002"):
        resumed.run()


def test_the_best_is_one_that_was_written(tmp_path):
    """The untrained model is evaluated and not saved, so it is never the best."""
    class Worse(Trainer):
        def evaluate(self, most=None):
            return float(self.step)

    Worse(new(), TEXT, tmp_path, **{**SMALL, "eval_every": 2}).run()
    found = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["event"] == "evaluation"]
    assert [line["best"] for line in found] == [False, True, False, False, False]
    best = Trainer(new(), TEXT, tmp_path, resume=True, **SMALL).keeper.best
    assert best == (2, 2.0) and "step-000002" in names(tmp_path)


def test_worse_and_worse_ends_a_run_that_was_asked_to(tmp_path):
    class Course(Trainer):
        course = [5.0, 4.0, 3.0, 3.5, 3.4, 3.3, 1.0]

        def evaluate(self, most=None):
            return self.course[self.step]

    settings = {**SMALL, "eval_every": 1, "steps": 6, "stop_when_worse": 3}
    result = Course(new(), TEXT, tmp_path, **settings).run()
    assert result.step == 5 and result.interrupted and result.best_step == 2 and "step-000002" in names(tmp_path)
    again = Course(new(), TEXT, tmp_path, resume=True, **settings)
    assert again.keeper.since_best == 3 and again.run().step == 6, "and goes on when asked to, until it is worse again"


# --------------------------------------------------------------------------------------------------------- numbers gone

def test_evaluating_a_diverged_model_ends_no_run(tmp_path, capsys):
    def heal(trainer):
        trainer.model.parameters[BEYOND][...] = kept

    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[at(4, spoil), Lines(), at(4, heal, "evaluation")],
                      **{**SMALL, "eval_every": 4, "lr": 1e-30})
    kept = trainer.model.parameters[BEYOND].copy()
    result = trainer.run()
    assert result.step == 8 and result.val_loss is not None
    record = next(line for line in read_lines(tmp_path / "metrics.jsonl") if (line["event"], line["step"]) == ("evaluation", 4))
    assert record["val_loss"] is None and record["perplexity"] is None and not record["best"]
    assert "validation is not finite: the model has diverged" in capsys.readouterr().out
    spoil(trainer)
    with pytest.raises(NonFiniteError, match="The model has diverged: take an earlier snapshot") as caught:
        trainer.evaluate()
    assert "zero_grad" not in str(caught.value)


@pytest.mark.parametrize("batches, error", [
    ([], ShapeError), (3, ShapeError), ([3], ShapeError), ([(np.zeros((2, 3), int),)], ShapeError),
    ([(np.zeros(3, int), np.zeros(3, int))], ShapeError), ([(np.zeros((0, 3), int),) * 2], ShapeError),
    ([([[1], [1, 2]], [[1], [1, 2]])], ShapeError), ([(np.zeros((2, 3), int), np.full((2, 3), -1))], TokenError)], ids=range(8))
def test_a_step_of_nothing_is_none(batches, error, copies):
    """Weight decay would move the weights."""
    trainer = Trainer(new(), TEXT, **SMALL)
    before = copies(trainer.model.parameters)
    with pytest.raises(error, match="train_step"):
        trainer.train_step(batches)
    oracle.assert_same_bits(copies(trainer.model.parameters), before)
    assert trainer.step == 0 and not trainer.losses


# ------------------------------------------------------------------------------------------------------------- failures

@pytest.mark.parametrize("event, step", [("step", 5), ("snapshot", 3), ("evaluation", 4)])
def test_a_callback_that_fails_ends_the_run_with_a_snapshot(event, step, copies, tmp_path):
    class Fails(Callback):
        heard = 0

        def on_event(self, trainer, record):
            if (record["event"], record["step"]) == (event, step):
                raise KeyError("a slip of the user's")
            self.heard += record["step"] > step

    seen = Fails()
    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[seen], **{**SMALL, "eval_every": 4})
    with pytest.raises(KeyError, match="a slip"):
        trainer.run()
    assert names(tmp_path)[-1] == f"step-{step:06d}" and not seen.heard
    straight = Trainer(new(), TEXT, **{**SMALL, "eval_every": 4})
    straight.run()
    again = Trainer(new(), TEXT, tmp_path, resume=True)
    assert again.run().step == 8
    oracle.assert_same_bits(copies(again.model.parameters), copies(straight.model.parameters))


@pytest.mark.parametrize("error", [SpillError("Spill", "must write", "a full disk", "Make room."), MemoryError("no room"),
                                   OSError(errno.EIO, "Input/output error")], ids=repr)
def test_a_step_that_fails_ends_the_run_with_a_snapshot_of_those_before(error, tmp_path, monkeypatch):
    trainer = Trainer(new(), TEXT, tmp_path, **SMALL)
    executor = trainer.executors.of(2, 16)
    whole = executor.train_step

    def failing(*arguments, **named):
        if trainer.step == 5:
            raise error
        return whole(*arguments, **named)

    monkeypatch.setattr(executor, "train_step", failing)
    with pytest.raises(type(error)) as caught:
        trainer.run()
    assert caught.value is error and names(tmp_path) == ["step-000003", "step-000005"]
    with pytest.raises(type(error)):  # at once: nothing new to save
        trainer.run()
    assert names(tmp_path) == ["step-000003", "step-000005"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_metrics_ends_in_a_snapshot_and_names_the_file(tmp_path):
    def fill(trainer):
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, trainer.callbacks[0]._descriptor)
        os.close(full)

    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[at(4, fill)], **SMALL)
    with pytest.raises(DataError, match=r"metrics\.jsonl: must take what the run tells; got No space left.*--resume"):
        trainer.run()
    assert names(tmp_path)[-1] == "step-000005"
    assert Trainer(new(), TEXT, tmp_path, resume=True, **SMALL).run().step == 8
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl") if line["event"] == "step"] == [1, 2, 3, 4, 6, 7, 8]


def test_metrics_that_cannot_be_begun_are_an_error_of_ours(tmp_path):
    trainer = Trainer(new(), TEXT, tmp_path / "run", **SMALL)
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: must take what the run tells; got what is there is no file"):
        trainer.run()


# -------------------------------------------------------------------------------------------------- pipes and terminals

COMMAND = ["train", "--preset", "tiny", "--layers", "1", "--d-model", "16", "--heads", "2", "--d-ff", "32", "--batch-size", "1",
           "--seq-len", "8", "--eval-every", "1000000", "--eval-batches", "1", "--snapshot-every", "1000000", "--threads", "1",
           "--log-every", "1", "--steps", "1000000"]


def start(out, *arguments, **more):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-m", "cllm", *COMMAND, "--out", str(out), *arguments], env=env, text=True,
                            stderr=subprocess.PIPE, **more)


def test_a_pipe_that_is_closed_ends_the_run_with_a_snapshot(tmp_path):
    process = start(tmp_path, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step      3"):
            break
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert "Error: standard output: must take what the run tells; got Broken pipe" in err
    assert names(tmp_path) and snapshot.step_of(snapshot.snapshots(tmp_path)[-1]) >= 3


@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "nohup"])
def test_a_terminal_that_goes_away_ends_the_run_with_a_snapshot(ignored, tmp_path):
    """SIGHUP; under nohup, which has it ignored, the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if ignored else None
    try:
        process = start(tmp_path, stdout=subprocess.PIPE)
    finally:
        if ignored:
            signal.signal(signal.SIGHUP, before)
    for line in process.stdout:
        if line.startswith("step      3"):
            break
    process.send_signal(signal.SIGHUP)
    if ignored:
        last = int(re.search(r"\d+", next(line for line in process.stdout if line.startswith("step")))[0])
        assert any(int(re.search(r"\d+", line)[0]) > last + 50 for line in process.stdout if line.startswith("step"))
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err and "go on with" in out
    assert len(names(tmp_path)) == 1


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="no pseudo-terminals")
def test_a_bar_on_a_terminal_that_is_closed_ends_with_a_snapshot(tmp_path):
    master, slave = pty.openpty()
    process = start(tmp_path, stdin=slave, stdout=slave, start_new_session=True,
                    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    seen = b""
    while b"loss" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in err and len(names(tmp_path)) == 1, err
