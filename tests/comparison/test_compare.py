"""`cllm.compare` on what users write: their models and strategies, from their files, in fresh processes."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import own_model
import pytest
from own_model import Last, Mine, Pictures

import cllm
from cllm.comparison import compare as comparing
from cllm.comparison import runner
from cllm.comparison.contestants import labelled, reference_of
from cllm.comparison.data import batches_of
from cllm.comparison.job import Job
from cllm.comparison.parcel import pack, unpack

TEXT = Mine(vocab_size=256)

SCRIPT = '''
import json, sys
from pathlib import Path
from dataclasses import dataclass, replace

import cllm
import own_model  # a module beside it, through the caller's sys.path

with open("loads", "a") as file:
    file.write(__name__ + "\\n")


@dataclass(frozen=True)
class Scale(own_model.Scale):
    C: int


@dataclass(frozen=True)
class Mine(own_model.Mine):
    vocab_size: int = 256

    def wire(self, w):
        x = w.add("embed", cllm.layers.Embedding(V=self.vocab_size, C=self.C, P=self.max_seq_len, kind="none"))
        with w.block(0):
            h = w.add("norm", Scale(C=self.C), x=x)
            h = w.add("fc", cllm.layers.Linear(I=self.C, O=self.C), x=h)
            x = w.add("res", cllm.layers.Residual(C=self.C), x=x, branch=h)
        w.add("head", cllm.layers.CrossEntropyHead(V=self.vocab_size, C=self.C), x=x)


class Half:
    """No dataclass; keeps a strategy inside."""

    def __init__(self, inner):
        self.inner = inner

    def decide(self, ledger):
        assert ledger.workload.batch == 4
        return replace(self.inner.decide(ledger), micro_batch=2)


class Broken:
    def decide(self, ledger):
        return {}["no such plan"]


plan = cllm.plan(Mine(), 4, 8, "recompute")
result = cllm.compare(Mine(), ["cache", Half(own_model.Last()), plan, Broken()], batch_size=4, seq_len=8, steps=1, rounds=1,
                      num_threads=1)
result.to_json("out.json")
result.html("out.html")
print(result.table())
'''


@pytest.fixture
def not_run(monkeypatch):
    """Processes that are not started; what would be is listed."""
    asked = []

    def run_once(parcel, label, number, on_step, gradients, command):
        asked.append((label, unpack(parcel["job"]), unpack(parcel["strategy"])))
        return runner.Run(label, number, None, "not run")

    monkeypatch.setattr(runner, "run_once", run_once)
    return asked


def test_a_script_without_a_guard_compares_its_own_classes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    shutil.copy(own_model.__file__, tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parents[1])}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loads").read_text().split() == ["__main__", *["script"] * 4]  # each process once, and no more of them
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["family"], report["config"]["vocab_size"]) == ("script:Mine", 256)
    assert [row["strategy"] for row in report["rows"]] == ["cache", "Half", "plan", "Broken"]
    *good, broken = report["rows"]
    assert broken["error"] == "KeyError: 'no such plan'" and report["problems"] == [f"Broken: {broken['error']}"]
    assert len({row["grad_sha256"] for row in good}) == 1 and all(row["error"] is None for row in good)
    assert good[1]["plan"]["micro_batches"] == 2 and good[2]["plan"]["sites"][0]["blocks"] == ["rebuilt"]
    assert "Mine, vocab_size 256" in done.stdout and "Broken" in done.stdout
    assert "Half" in (tmp_path / "out.html").read_text()


def test_a_model_without_time_steps_is_fed_its_own_batches(tmp_path):
    result = cllm.compare(Pictures(), ["recompute", cllm.CacheAll(micro_batch=2), cllm.CacheAll()], batch_size=4, steps=1,
                          rounds=1, num_threads=1, seed=3)
    assert result.problems == [] and result.report["job"]["seq_len"] is None
    assert [row["strategy"] for row in result.rows] == ["recompute", "CacheAll(micro_batch=2)", "CacheAll"]
    assert result.rows[2]["slowdown_vs_cache"] == 1.0 and result.rows[0]["slowdown_vs_cache"] > 0
    model = cllm.Model(Pictures(), seed=3)
    expected = cllm.Executor(model, 4, num_threads=1, seed=3).loss_and_grad(
        **Pictures().example_batch(np.random.default_rng([3, 0]), 4, None))
    assert {row["losses"][0] for row in result.rows} == {expected}
    assert result.rows[0]["tokens_per_second"] == 4 / result.rows[0]["step_seconds"]["median"]
    table = result.table()
    assert "batch 4, float32, 1 thread" in table and "sequences/s" in table and "tokens/s" not in table
    result.to_json(tmp_path / "a.json")
    result.html(tmp_path / "a.html")
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == json.loads(json.dumps(result.rows))
    assert "sequences/s" in (tmp_path / "a.html").read_text()
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "a.svg")
    assert b"</svg>" in (tmp_path / "a.svg").read_bytes()


def test_windows_of_a_text_are_for_models_that_read_bytes(tmp_path):
    (tmp_path / "text").write_text("what a fine day " * 9)
    for architecture, text in ((TEXT, tmp_path / "text"), (TEXT, None)):
        feeds = batches_of(Job(architecture, 2, 8, text=text and str(text)))(1)
        assert feeds["tokens"].shape == (2, 8) and (feeds["tokens"][:, 1:] == feeds["targets"][:, :-1]).all()
        assert bool(text) == (set(feeds["tokens"].ravel()) <= set(b"what a fine day "))
    drawn = batches_of(Job(Mine(), 2, 8))
    assert drawn(1)["tokens"].max() < 31 and (drawn(1)["tokens"] == drawn(1)["tokens"]).all()
    assert (drawn(1)["tokens"] != drawn(2)["tokens"]).any()
    for architecture, time in ((Mine(), 8), (Pictures(), None)):
        with pytest.raises(cllm.ConfigError, match="text: is for models that are fed tokens, 256 of them or more"):
            cllm.compare(architecture, ["cache"], 2, time, text=tmp_path / "text")


def test_strategies_get_the_names_of_their_rows():
    plan = cllm.plan(Mine(), 2, 8)
    found = labelled(["cache", "every:2@1", cllm.EveryNth(2), cllm.Sqrt(), Last(), Last(2), Last(2), plan, plan])
    assert list(found) == ["cache", "every:2@1", "EveryNth(n=2)", "Sqrt", "Last", "Last(count=2)", "Last(count=2) (2)",
                           "plan", "plan (2)"]
    assert list(labelled("cache")) == ["cache"] and list(labelled(Last())) == ["Last"]
    assert reference_of(found) == "cache" and reference_of(labelled([cllm.CacheAll(micro_batch=1)])) is None
    assert reference_of(labelled([Last(), cllm.CacheAll()])) == "CacheAll"
    assert reference_of(labelled(["recompute"])) is None


@pytest.mark.parametrize("strategies, match", [
    ([], "must have at least one"), (["cache", "cache"], "must each be there once; got 'cache' twice"),
    (["nonsense"], "nonsense"), (3, "must be an iterable"), ([Last], "must be strategies, plans or names"),
    ([3], "must be strategies, plans or names")])
def test_what_is_no_strategy_is_refused(not_run, strategies, match):
    with pytest.raises(cllm.ConfigError, match=match):
        cllm.compare(Mine(), strategies, 2, 8)
    assert not not_run


@dataclass(frozen=True)
class Ajar(Mine):
    def __getstate__(self):
        return {"file": sys.stderr}


@dataclass(frozen=True)
class Holding:
    what: object

    def decide(self, ledger):
        return cllm.CacheAll().decide(ledger)


def test_what_cannot_travel_is_refused_before_anything_runs(not_run):
    @dataclass(frozen=True)
    class Local(Last):
        pass

    for strategy, match in ((Local(), "class test_what.*Local: must stand at the top of a file"),
                            (Holding(lambda: 1), "function .*lambda.*: must stand at the top"),
                            (Holding(sys.stderr), "Holding.*must be made of what another process can be given; got TypeError")):
        with pytest.raises(cllm.ConfigError, match=match):
            cllm.compare(Mine(), ["cache", strategy], 2, 8)
    assert not not_run


def test_a_model_that_cannot_travel_is_named(not_run):
    @dataclass(frozen=True)
    class Local(Mine):
        pass

    with pytest.raises(cllm.ConfigError, match="class test_a_model.*Local: must stand at the top of a file"):
        cllm.compare(Local(), ["cache"], 2, 8)
    with pytest.raises(cllm.ConfigError, match="the model: must be made of what another process can be given"):
        cllm.compare(Ajar(), ["cache"], 2, 8)
    assert not not_run


def test_what_travels_arrives_as_it_was(not_run):
    nested = cllm.PerBlock({range(0, 1): cllm.RecomputeAll(), 1: cllm.Selective(("norm",))}, default=cllm.CacheAll())
    plan = cllm.plan(Mine(), 2, 8, "recompute@1")
    cllm.compare(Mine(), [nested, plan, Holding(np.arange(3)), "cache"], 2, 8, steps=7, dtype="float64", num_threads=2, seed=5)
    jobs = {job for _, job, _ in not_run}
    assert jobs == {Job(Mine(), 2, 8, 7, "float64", 2, None, 5)}
    (_, _, first), (_, _, second), (_, _, third), (_, _, last) = not_run
    assert first == nested and (second, second.fingerprint) == (plan, plan.fingerprint) and last == "cache"
    assert third.what.tolist() == [0, 1, 2]
    assert unpack(pack("a class", [Last, labelled, dict, cllm.Plan])) == [Last, labelled, dict, cllm.Plan]


@dataclass(frozen=True)
class Elsewhere(Mine):
    folder: Path = Path()


@pytest.mark.parametrize("change, match", [
    ({"architecture": "gpt"}, r"compare\(architecture\): must be an architecture"), ({"rounds": 0}, r"compare\(rounds=...\)"),
    ({"steps": 0}, "steps"), ({"seq_len": None}, "seq_len: must be a number"), ({"seq_len": 17}, "at most max_seq_len = 16"),
    ({"architecture": Elsewhere()}, "Elsewhere: must have settings that JSON can hold")])
def test_wrong_arguments_are_refused_before_anything_runs(not_run, change, match):
    with pytest.raises(cllm.CllmError, match=match):
        cllm.compare(**{"architecture": Mine(), "strategies": ["cache"], "batch_size": 2, "seq_len": 8, **change})
    assert not not_run


def test_a_family_without_an_example_batch_is_one_error(not_run):
    @dataclass(frozen=True)
    class Mute(Pictures):
        example_batch = cllm.Architecture.example_batch

    class Wrong(Pictures):
        def example_batch(self, rng, batch_size, seq_len):
            return {**super().example_batch(rng, batch_size, seq_len), "label": np.zeros(batch_size)}

    for architecture, match in ((Mute(), "Mute.example_batch: must be defined"), (Wrong(), "label: must hold integers")):
        with pytest.raises(cllm.CllmError, match=match):
            cllm.compare(architecture, ["cache"], 2)
    assert not not_run


def test_a_machine_is_measured_where_a_budget_decides(not_run, monkeypatch):
    told = []
    monkeypatch.setattr(comparing, "calibrate_where_wanted", lambda _, workload, strategies: told.append(list(strategies)))
    budget = cllm.MemoryBudget("1MB")
    cllm.compare(Mine(), ["cache", budget], 2, 8)
    cllm.compare(Mine(), ["cache", budget], 2, 8, calibrate=False)
    assert told == [["cache", budget]]


def test_ctrl_c_is_passed_on(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_once", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cllm.compare(Mine(), ["cache"], 2, 8)
