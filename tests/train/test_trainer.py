"""Training that can be relied on: the same bits whatever interrupts it, bad steps not applied, data that is checked."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
from longer import whole

import cllm
from cllm import corpus, snapshot
from cllm.errors import BudgetError, ConfigError, DataError, NonFiniteError, SnapshotError
from cllm.train import Callback, Lines, Trainer, TrainSettings, read_lines

KILLS = int(os.environ.get("CLLM_KILLS", "3"))  # CLLM_KILLS=50 for the long version
TEXT = np.frombuffer(corpus.embedded_text()[:20_000], np.uint8)
SMALL = dict(steps=12, batch_size=3, seq_len=16, eval_every=5, eval_batches=2, snapshot_every=4, threads=2, lr=3e-3)


def new(**changes):
    return cllm.GPT(cllm.ModelConfig(256, 3, 32, 2, 64, 32, **changes), seed=1)


def state_of(trainer, copies):
    return {**copies(trainer.model.parameters), **copies(trainer.optimizer.arrays()),
            "steps": np.array(trainer.optimizer.steps), "step": np.array(trainer.step)}


class StopAfter(Callback):
    """Stops a run after some step."""

    def __init__(self, step):
        self.step = step

    def on_event(self, trainer, record):
        if record["event"] == "step" and record["step"] == self.step:
            trainer.stop()


# ------------------------------------------------------------------------------------------------------------- numbers

def test_a_run_is_what_its_parts_do_by_hand(copies):
    """The loop written out: windows, zero, differentiate, clip, rate, step."""
    settings = {**SMALL, "steps": 6, "accumulate": 2, "clip": 0.5, "warmup": 2, "weight_decay": 0.2}
    trainer = Trainer(new(dropout=0.2), TEXT, seed=7, **settings)
    trainer.run()
    model = new(dropout=0.2)
    ex, opt = cllm.Executor(model, 3, 16, num_threads=1, seed=7), cllm.AdamW(model, weight_decay=0.2)
    windows = corpus.Windows(TEXT[:18_000], 16, 7)
    losses = []
    for step in range(6):
        model.zero_grad()
        parts = []
        for part in range(2):
            ex.step = 2 * step + part
            parts.append(ex.loss_and_grad(*windows.batch((2 * step + part) * 3, 3), num_targets=96))
        losses.append(sum(parts))
        cllm.clip_grad_norm(model, 0.5)
        opt.lr = trainer.rate(step)
        opt.step()
    assert trainer.losses == losses
    oracle.assert_same_bits(dict(trainer.model.parameters), dict(model.parameters))


def test_the_loss_falls_and_evaluation_sees_it():
    trainer = Trainer(new(), TEXT, **{**SMALL, "steps": 60, "batch_size": 8, "lr": 1e-2})
    fresh = trainer.evaluate()
    result = trainer.run()
    assert abs(fresh - np.log(256)) < 0.1 and result.val_loss < 0.7 * fresh
    assert result.best_val_loss <= result.val_loss == trainer.evaluate()
    assert result.step == 60 and result.tokens == 60 * 8 * 16 and not result.interrupted


def test_evaluation_counts_each_window_once():
    """The last, smaller batch is filled up with rows that do not count."""
    trainer = Trainer(new(), TEXT[:1000], **{**SMALL, "val_fraction": 0.12})
    starts = corpus.even_starts(120, 16)
    assert len(starts) == 7
    ex = cllm.Executor(trainer.model, 1, 16)
    expected = np.mean([ex.loss(*corpus.gather(TEXT[880:1000], [s], 16)) for s in starts])
    oracle.assert_near(trainer.evaluate(most=9), expected, 1e-6)


@pytest.mark.parametrize("changes", [
    whole(dict(threads=1)), dict(threads=3), dict(strategy="recompute"), dict(strategy="cache@1"),
    whole(dict(strategy="recompute@2")), dict(strategy="selective"), whole(dict(memory_budget="1GB")),
    dict(memory_budget="2500KB"), dict(eval_every=3, eval_batches=1)], ids=str)
def test_curves_do_not_depend_on_plan_micro_batch_or_threads(changes, copies):
    found = []
    for settings in ({}, changes):
        trainer = Trainer(new(dropout=0.1), TEXT, **{**SMALL, "steps": 5, "batch_size": 4, **settings})
        trainer.run()
        found.append((trainer.losses, copies(trainer.model.parameters)))
    assert found[0][0] == found[1][0]
    oracle.assert_same_bits(found[1][1], found[0][1])


@pytest.mark.parametrize("stop, optimizer", [
    (3, "adamw"), (5, "momentum"), (11, "*emb.weight=adam,sgd@30"), (5, "adamw"), whole(11, "adamw"), whole(3, "momentum"),
    whole(11, "momentum"), whole(3, "*emb.weight=adam,sgd@30"), whole(5, "*emb.weight=adam,sgd@30")])
def test_resume_equals_the_straight_run_to_the_last_bit(stop, optimizer, copies, tmp_path):
    settings = {**SMALL, "optimizer": optimizer, "accumulate": 2, "lr": 1e-2, "clip_by": "each"}
    straight = Trainer(new(dropout=0.2), TEXT, tmp_path / "straight", **settings)
    straight.run()
    broken = Trainer(new(dropout=0.2), TEXT, tmp_path / "broken", callbacks=[StopAfter(stop)], **settings)
    result = broken.run()
    assert result.interrupted and result.step == stop and result.snapshot.name == f"step-{stop:06d}"
    model = cllm.GPT(broken.model.config, seed=99)  # every weight comes from the snapshot
    resumed = Trainer(model, TEXT, tmp_path / "broken", resume=True, threads=1, strategy="recompute")
    assert resumed.settings.lr == 1e-2 and resumed.step == stop
    final = resumed.run()
    oracle.assert_same_bits(state_of(resumed, copies), state_of(straight, copies))
    assert broken.losses + resumed.losses == straight.losses
    assert final.val_loss == straight.val_loss and resumed.keeper.best == straight.keeper.best
    lines = [[{k: v for k, v in line.items() if k in ("event", "step", "loss", "rate", "grad_norm", "val_loss", "best")}
              for line in read_lines(tmp_path / name / "metrics.jsonl") if line["event"] != "snapshot"]
             for name in ("straight", "broken")]
    assert lines[0] == lines[1]


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(copies, tmp_path):
    Trainer(new(), TEXT, tmp_path, **SMALL).run()
    again = Trainer(new(), TEXT, tmp_path, resume=True, **SMALL)
    before = state_of(again, copies)
    result = again.run()
    assert result.step == 12 and result.tokens == 0 and not result.interrupted
    oracle.assert_same_bits(state_of(again, copies), before)
    longer = Trainer(new(), TEXT, tmp_path, resume=True, **{**SMALL, "steps": 14})
    assert longer.run().step == 14 and len(longer.losses) == 2


def test_batches_of_any_shape_are_served_and_their_executors_kept(copies):
    """A last, smaller batch and another T; the mean is over all targets of the step."""
    trainer, model = Trainer(new(), TEXT, **SMALL), new()
    batches = [corpus.batch(TEXT, b, t, step=n) for n, (b, t) in enumerate([(3, 16), (1, 16), (2, 24), (3, 16)])]
    batches[1][1][0, :9] = -1
    loss = trainer.train_step(batches)
    count = sum((targets != -1).sum() for _, targets in batches)
    total = 0.0
    for tokens, targets in batches:
        ex = cllm.Executor(model, *tokens.shape, num_threads=1)
        total += ex.loss_and_grad(tokens, targets, num_targets=int(count))
    assert loss == total and set(trainer.executors.kept) == {(3, 16), (1, 16), (2, 24)}
    cllm.clip_grad_norm(model, 1.0)
    opt = cllm.AdamW(model, lr=trainer.rate(0))
    opt.step()
    oracle.assert_same_bits(dict(trainer.model.parameters), dict(model.parameters))


def test_executors_stay_within_the_budget_together():
    model, settings = cllm.GPT(cllm.ModelConfig(256, 1, 16, 2, 32, 32)), {**SMALL, "batch_size": 2}
    budget = cllm.plan(model, 2, 16, "cache").total_bytes
    trainer = Trainer(model, TEXT, **settings, memory_budget=budget)
    for shape in ((1, 32), (2, 16)):
        trainer.train_step([corpus.batch(TEXT, *shape, step=0)])
        assert shape in trainer.executors.kept and trainer.executors.total_bytes <= budget
    with pytest.raises(BudgetError):
        Trainer(model, TEXT, **settings, memory_budget="50KB")


# ----------------------------------------------------------------------------------------------------------- bad steps

class Poison(Callback):
    """Makes a parameter NaN before some steps and heals it after: the steps are numbered from 1."""

    def __init__(self, *steps):
        self.steps, self.bad = steps, []

    def on_start(self, trainer):
        self.kept = trainer.model.parameters["ln_f.bias"][0]
        self._poison(trainer, 1)

    def on_event(self, trainer, record):
        if record["event"] == "bad_step":
            self.bad.append((record["step"], record["where"], record["in_a_row"]))
        if record["event"] in ("step", "bad_step"):
            bias = trainer.model.parameters["ln_f.bias"]
            if record["step"] in self.steps:
                bias[0] = self.kept
            self.kept = bias[0]
            self._poison(trainer, record["step"] + 1)

    def _poison(self, trainer, step):
        if step in self.steps:
            trainer.model.parameters["ln_f.bias"][0] = np.nan


def test_a_bad_step_is_named_and_not_applied(copies):
    poison, seen = Poison(3, 4, 8), []

    class Watch(Callback):
        def on_event(self, trainer, record):
            if record["event"] in ("step", "bad_step"):
                found = state_of(trainer, copies)
                found["ln_f.bias"][0] = 0  # the poisoned one
                seen.append((record["event"], found))

    trainer = Trainer(new(), TEXT, callbacks=[Watch(), poison], **{**SMALL, "eval_every": 100, "max_bad_steps": 3})
    assert trainer.run().step == 12
    assert [(step, in_a_row) for step, _, in_a_row in poison.bad] == [(3, 1), (4, 2), (8, 1)]
    assert all("parameter ln_f.bias" in where for _, where, _ in poison.bad)
    assert len(trainer.losses) == 9 and trainer.optimizer.steps == 9
    for (_, before), (event, after) in zip(seen, seen[1:], strict=False):
        if event == "bad_step":
            oracle.assert_same_bits(after, {**before, "step": after["step"]})


def test_too_many_bad_steps_end_the_run_and_name_the_last_good_snapshot(tmp_path):
    settings = {**SMALL, "eval_every": 100, "max_bad_steps": 3}
    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[Poison(7, 8, 9)], **settings)
    with pytest.raises(NonFiniteError, match=r"step 9: must have a finite one in 3 .* got .*ln_f.bias.*step-000004"):
        trainer.run()
    assert [p.name for p in snapshot.snapshots(tmp_path)] == ["step-000004"]
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["event"] == "bad_step"


# ----------------------------------------------------------------------------------------------------- snapshots, data

def test_the_last_snapshots_and_the_best_are_kept(tmp_path):
    class Worse(Trainer):
        def evaluate(self, most=None):
            return abs(self.step - 4.0)

    trainer = Worse(new(), TEXT, tmp_path, **{**SMALL, "eval_every": 2, "snapshot_every": 1, "keep": 2})
    result = trainer.run()
    assert [p.name for p in snapshot.snapshots(tmp_path)] == ["step-000004", "step-000011", "step-000012"]
    assert (result.best_step, result.best_val_loss) == (4, 0.0)


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    Trainer(new(), TEXT, tmp_path, **{**SMALL, "steps": 2}).run()
    with pytest.raises(SnapshotError, match="must be a directory without a run; got snapshots up to step-000002"):
        Trainer(new(), TEXT, tmp_path, **SMALL)


def test_one_run_at_a_time(tmp_path):
    class Another(Callback):
        def on_start(self, trainer):
            with pytest.raises(SnapshotError, match="must be the only one there"):
                Trainer(new(), TEXT, tmp_path, **SMALL).run()

    Trainer(new(), TEXT, tmp_path, callbacks=[Another()], **{**SMALL, "steps": 1}).run()


def test_damaged_snapshots_are_passed_over_and_set_aside(copies, tmp_path, capsys):
    straight = Trainer(new(), TEXT, tmp_path, **SMALL)
    straight.run()
    state = tmp_path / "step-000012" / "state.json"
    state.write_text(state.read_text()[:-20])
    resumed = Trainer(new(), TEXT, tmp_path, resume=True, callbacks=[Lines()])
    assert resumed.step == 10
    resumed.run()
    oracle.assert_same_bits(state_of(resumed, copies), state_of(straight, copies))
    assert "passed over: snapshot" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("*step-*")) == [
        "damaged-0-step-000012", "step-000008", "step-000010", "step-000012"]
    for path in snapshot.snapshots(tmp_path):
        (path / "model.safetensors").unlink()
    with pytest.raises(SnapshotError, match="must have a whole snapshot; got .*model.safetensors"):
        Trainer(new(), TEXT, tmp_path, resume=True)


def test_a_resumed_run_keeps_what_makes_its_numbers(tmp_path):
    Trainer(new(), TEXT, tmp_path, **{**SMALL, "steps": 2}).run()
    for change in (dict(lr=1.0), dict(batch_size=4), dict(seed=3), dict(optimizer="sgd"), dict(accumulate=2),
                   dict(clip=None), dict(val_fraction=0.2), dict(learning_rate=1)):
        with pytest.raises(ConfigError, match=f"the settings it began with; got .*{next(iter(change))}"):
            Trainer(new(), TEXT, tmp_path, resume=True, **change)
    with pytest.raises(SnapshotError, match="another dropout"):
        Trainer(new(dropout=0.5), TEXT, tmp_path, resume=True)
    with pytest.raises(DataError, match="must be what it was when the run began"):
        Trainer(new(), TEXT[:-1], tmp_path, resume=True)
    free = Trainer(new(), TEXT, tmp_path, resume=True, steps=3, memory_budget="1GB", keep=1, min_lr=None, warmup=None)
    assert free.settings.memory_budget == "1GB" and free.settings.keep == 1
    assert free.run().step == 3


def test_a_text_that_changed_is_noticed_and_one_that_went_is_not_needed(tmp_path):
    text, out = tmp_path / "book.txt", tmp_path / "run"
    text.write_bytes(TEXT.tobytes())
    Trainer(new(), text, out, **{**SMALL, "steps": 2}).run()
    assert Trainer(new(), None, out, resume=True, steps=3).run().step == 3
    text.write_bytes(TEXT.tobytes()[:-1] + b"x")
    with pytest.raises(DataError, match="has changed since it was tokenised"):
        Trainer(new(), None, out, resume=True, steps=4)
    text.unlink()
    assert Trainer(new(), None, out, resume=True, steps=4).run().step == 4
    (out / "tokens.bin").unlink()
    with pytest.raises(DataError, match="tokens.bin"):
        Trainer(new(), None, out, resume=True, steps=5)
    text.write_bytes(TEXT.tobytes())
    assert Trainer(new(), text, out, resume=True, steps=5).run().step == 5


@pytest.mark.parametrize("content, reason", [(b"", "must not be empty"), (b"short", "must have at least seq_len"),
                                             (None, "must be a file that can be read")])
def test_texts_that_cannot_be_trained_on(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    for out in (None, tmp_path / "run"):
        with pytest.raises(DataError, match=reason):
            Trainer(new(), tmp_path / "text", out, **SMALL)


def test_any_bytes_are_a_text(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(256)) * 20)
    assert Trainer(new(), tmp_path / "text", tmp_path / "run", **{**SMALL, "steps": 1}).run().step == 1


def test_byte_pairs_are_kept_with_the_snapshot(tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra io")
    from cllm.tokenizer import BPETokenizer
    tokenizer = BPETokenizer.train([TEXT.tobytes().decode()], 300)
    model = cllm.GPT(cllm.ModelConfig(300, 1, 16, 2, 32, 32))
    trainer = Trainer(model, None, tmp_path, tokenizer=tokenizer, **{**SMALL, "steps": 2})
    trainer.run()
    again = Trainer(cllm.GPT(model.config), None, tmp_path, resume=True, steps=3)
    assert again.source.data.tokenizer.name == tokenizer.name and again.run().step == 3
    assert again.sample("It is", 5, seed=1) == again.sample("It is", 5, seed=1) != ""
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="at most the model's vocab_size = 256"):
        Trainer(new(), None, tmp_path / "other", tokenizer=tokenizer, **SMALL)


@pytest.mark.parametrize("arguments", [
    dict(steps=0), dict(batch_size=1.5), dict(lr=0), dict(lr=-1), dict(lr="1e-3"), dict(clip=0), dict(clip_by="norm"),
    dict(rate="step"), dict(seed=-1), dict(memory_budget="1 ZB"), dict(strategy="recompute", memory_budget="1GB"),
    dict(keep=0), dict(min_lr=1.0)], ids=str)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ConfigError):
        TrainSettings(**arguments)


# ------------------------------------------------------------------------------------------------ signals, kill, memory

RUN = """
import sys
import cllm
from cllm.train import Lines, Trainer
model = cllm.GPT(cllm.ModelConfig(256, 3, 32, 2, 64, 32, dropout=0.2), seed=1)
trainer = Trainer(model, None, sys.argv[1], resume=True, callbacks=[Lines()], steps=int(sys.argv[2]), batch_size=3,
                  seq_len=16, eval_every=50, eval_batches=2, snapshot_every=7, threads=1, log_every=1)
result = trainer.run()
print("ended", result.step, result.interrupted, flush=True)
"""


def start(*arguments):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", RUN, *map(str, arguments)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_snapshot_and_ends_cleanly(number, tmp_path):
    process = start(tmp_path, 1_000_000)
    wait_for(process, "step      3")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    step = int(out.split()[-2])
    assert out.split()[-1] == "True" and (tmp_path / f"step-{step:06d}" / "state.json").exists() and step < 1_000_000


def test_kill_at_any_moment_and_resume_equals_the_straight_run(tmp_path):
    # more steps than a fast machine makes up to the last kill; counted, for a time alone would need many times as many
    rng, steps = np.random.default_rng(os.getpid()), 80 * KILLS
    straight = start(tmp_path / "straight", steps)
    for kill in range(KILLS):
        process = start(tmp_path / "killed", steps)
        for _ in range(rng.integers(1, 40)):
            wait_for(process, "step ")
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate(timeout=60)
        assert all(snapshot.is_whole(p) for p in snapshot.snapshots(tmp_path / "killed")), f"kill {kill}"
    process = start(tmp_path / "killed", steps)
    assert f"ended {steps} False" in process.communicate(timeout=60)[0]
    assert f"ended {steps} False" in straight.communicate(timeout=60)[0]
    states = [json.loads((tmp_path / name / f"step-{steps:06d}" / "state.json").read_text())
              for name in ("straight", "killed")]
    assert states[0]["files"] == states[1]["files"], "sha256 of weights and optimizer"


def test_memory_does_not_grow_after_the_third_step():
    class Resident(Callback):
        def __init__(self):
            self.bytes = []

        def on_event(self, trainer, record):
            if record["event"] == "step":
                self.bytes.append(record["rss_bytes"])

    seen = Resident()
    trainer = Trainer(new(), TEXT, callbacks=[seen], **{**SMALL, "steps": 200, "eval_every": 1000})
    trainer.run()
    assert seen.bytes[-1] - seen.bytes[2] < 1 << 20


PEAK = """
import resource, sys
import cllm
from cllm.train import Trainer
layers, channels, time, budget, steps = map(int, sys.argv[2:])
model = cllm.GPT(cllm.ModelConfig(256, layers, channels, 2, 4 * channels, time))
trainer = Trainer(model, None, sys.argv[1], batch_size=8, seq_len=time, memory_budget=budget, steps=steps, threads=2,
                  eval_every=4, eval_batches=1, snapshot_every=3)
trainer.run()
print(trainer.executors.total_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted otherwise elsewhere")
def test_the_whole_process_stays_within_its_budget(tmp_path):
    """Snapshots and evaluation included; what the interpreter and the libraries take is known from a tiny run."""
    def peak(name, *arguments):
        env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / name, *map(str, arguments)], env=env, text=True,
                              capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return map(int, done.stdout.split())

    tiny_total, tiny_peak = peak("tiny", 1, 8, 16, 10**7, 10)
    budget = 24_000_000
    total, process = peak("large", 2, 128, 128, budget, 6)
    assert 16_000_000 < total <= budget
    assert process - (tiny_peak - tiny_total) <= budget + 3_000_000
