"""The laboratory: who takes part, runs that survive being killed, regret by halves, a picture whose names never collide."""
import copy
import csv
import io
import json
from dataclasses import dataclass, replace

import oracle
import pytest
from click.testing import CliRunner

import cllm
from cllm.cli import main
from cllm.comparison.job import Job
from cllm.comparison.runner import Run
from cllm.lab import experiment, report, running
from cllm.lab.contestants import KINDS, UNDER_A_LIMIT, Contestant, contestants, limits_of, names_of
from cllm.lab.picture import LOOKS, curves_of, lab_figure
from cllm.lab.printed import COLUMNS, csv_of, sentences
from cllm.lab.report import foretold, problems_of, regret_of, report_of, rows_of
from cllm.lab.running import RUNS, Record, run_left
from cllm.planning import ledger_of
from cllm.plans.plan import Estimate

CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 4, "vocab_size": 256, "d_model": 32, "d_ff": 64, "max_seq_len": 16})
JOB = Job(CONFIG, 4, 16, steps=1, threads=1)
FAST = [kind for kind in KINDS if kind != "checkmate"]


@pytest.fixture(scope="module")
def ledger():
    return ledger_of(CONFIG, 4, 16, num_threads=1)


@pytest.fixture(scope="module")
def made(ledger):
    return contestants(ledger, FAST, limits_of(ledger, 4))


# who takes part

def test_limits_go_from_the_least_of_the_curve_to_keeping_everything(ledger):
    limits = limits_of(ledger, 5)
    assert limits == sorted(limits) and len(set(limits)) == 5
    assert cllm.MemoryBudget(limits[0]).decide(ledger)
    assert ledger.evaluate(cllm.CacheAll().decide(ledger)).total_bytes <= limits[-1]
    with pytest.raises(cllm.BudgetError):
        cllm.MemoryBudget(limits[0] - 20_000).decide(ledger)


def test_every_kind_takes_part_at_every_limit_and_nothing_runs_twice(ledger, made):
    assert {c.kind for c in made} == set(FAST)
    for kind in UNDER_A_LIMIT[:-1]:
        mine = [c for c in made if c.kind == kind]
        assert len(mine) == 4 and [c.limit for c in mine] == limits_of(ledger, 4)
        assert all(ledger.evaluate(c.plan).total_bytes <= c.limit for c in mine if c.plan)
    assert all((c.plan is not None) + (c.refused is not None) + (c.same_as is not None) == 1 for c in made)
    assert next(c for c in made if c.name == "korthikanti").same_as == "cache"
    assert any(c.refused and "must be at least" in c.refused for c in made)
    run = [ledger.build(c.plan)[0] for c in made if c.plan]
    assert all(one != other for n, one in enumerate(run) for other in run[:n])


def test_settings_fit_the_model():
    one = ledger_of(replace(CONFIG, n_layers=1), 1, 16, num_threads=1)
    assert names_of(one, "every", ()) == {} and list(names_of(one, "binomial", ())) == ["binomial:1"]
    assert list(names_of(one, "cache", ())) == ["cache"]


@dataclass(frozen=True)
class Mine:
    def decide(self, ledger):
        return cllm.EveryNth(3).decide(ledger)


def test_a_users_strategy_takes_part(ledger):
    found = contestants(ledger, ["recompute"], [], {"mine": Mine()})
    assert [c.name for c in found] == ["recompute", "recompute@1", "mine"] and found[-1].plan is not None
    with pytest.raises(cllm.ConfigError, match="must be among cache, selective"):
        contestants(ledger, ["memory"], [])


# runs

def result(seconds, total=100, digest="d", **more):
    return {"exact": True, "step_seconds": [seconds], "predicted_step_seconds": seconds, "arena_bytes": total - 10,
            "high_water_bytes": total - 10, "total_bytes": total, "rss_peak_bytes": total + 50, "rss_start_bytes": 50,
            "losses": [1.0], "grad_sha256": digest, **more}


@pytest.fixture
def ran(monkeypatch):
    """Runs that are no processes: what was asked for, in order."""
    asked = []

    def run_once(parcel, label, number, on_step, gradients=None):
        asked.append((number, label))
        on_step(label, number, 1)
        if asked[-1] == ran.stop:
            raise KeyboardInterrupt
        return Run(label, number, result(1.0, timeline="long", plan="long"), None)

    run_once.asked = asked
    ran.stop = None
    monkeypatch.setattr(running, "run_once", run_once)
    return asked


TWO = [Contestant("cache", "cache", cllm.CacheAll().decide(ledger_of(CONFIG, 4, 16))),
       Contestant("recompute", "recompute", cllm.RecomputeAll().decide(ledger_of(CONFIG, 4, 16))),
       Contestant("chen", "chen:1B", refused="no"), Contestant("korthikanti", "korthikanti", same_as="cache")]


def begin(folder, asked="this", make=lambda: TWO):
    return Record.of(folder, {"what": asked}, make)


def test_rounds_are_interleaved_and_only_what_has_a_plan_runs(tmp_path, ran):
    record = begin(tmp_path)
    assert run_left(record, JOB, 2, lambda *_: None) is False
    assert ran == [(0, "cache"), (0, "recompute"), (1, "cache"), (1, "recompute")]
    assert "timeline" not in record.runs[0].result and record.left(0) == record.left(1) == []


def test_a_run_that_was_killed_goes_on(tmp_path, ran, monkeypatch):
    record = begin(tmp_path)
    test = ran
    globals()["ran"].stop = (1, "cache")
    assert run_left(record, JOB, 2, lambda *_: None) is True
    assert [(r.round, r.strategy) for r in record.runs] == [(0, "cache"), (0, "recompute")]
    with open(tmp_path / RUNS, "a") as file:
        file.write('{"strategy": "cache", "round": 1, "res')  # the process was killed while it wrote
    globals()["ran"].stop = None
    test.clear()
    again = begin(tmp_path, make=lambda: pytest.fail("who takes part is decided once"))
    assert again.contestants == TWO
    run_left(again, JOB, 3, lambda *_: None)
    assert test == [(1, "cache"), (1, "recompute"), (2, "cache"), (2, "recompute")]
    assert len(begin(tmp_path).runs) == 6 and begin(tmp_path).left(2) == []


def test_a_round_is_for_those_that_some_limit_has_a_use_for(tmp_path):
    """As predicted in the first round, as measured in the rounds before in others; the planner's plans always."""
    some = [Contestant("budget", "budget:1", TWO[0].plan, limit=100), Contestant("rotor", "near", TWO[0].plan, limit=100),
            Contestant("dtr", "small", TWO[0].plan, limit=60), Contestant("chen", "slow", TWO[0].plan, limit=100),
            Contestant("budget", "budget:2", same_as="twin", limit=60), Contestant("cache", "twin", TWO[0].plan)]
    record = begin(tmp_path, make=lambda: some)
    cost = {"budget:1": (100, 9.0), "near": (100, 1.1), "small": (50, 2.0), "slow": (70, 2.5), "twin": (55, 9.0),
            "quick": (90, 1.0)}
    costs = {name: Estimate(0, nbytes, seconds) for name, (nbytes, seconds) in cost.items()}
    assert record.contenders(0, costs, 0.2) == {"budget:1", "twin", "quick", "near", "small"}
    assert record.contenders(0, costs, 0.05) == {"budget:1", "twin", "quick", "small"}
    record.runs += [Run("near", 0, result(1.0)), Run("small", 0, result(2.0)), Run("quick", 0, result(3.0)),
                    Run("quick", 1, result(0.1))]
    assert record.contenders(1, costs, 0.2) == {"budget:1", "twin", "near", "small"}, "of rounds before alone"


def test_no_round_begins_that_would_end_too_late(tmp_path, ran, monkeypatch):
    clock = iter(range(0, 10_000, 30))  # each look at it takes half a minute
    monkeypatch.setattr(running, "monotonic", lambda: next(clock))
    costs = {name: Estimate(0, 100, 1.0) for name in ("cache", "recompute")}
    run_left(begin(tmp_path), JOB, 9, lambda *_: None, costs, minutes=0.1)
    assert ran == [(0, "cache"), (0, "recompute")], "the first round is whole whatever it takes"
    ran.clear()
    run_left(begin(tmp_path), JOB, 9, lambda *_: None, costs, minutes=4)
    numbers = [number for number, _ in ran]
    assert numbers == sorted([*range(1, 1 + len(ran) // 2)] * 2) and 1 <= max(numbers) < 8, "whole rounds, and not all"


def test_what_failed_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run_once", lambda parcel, label, number, *_: Run(label, number, None, "no memory"))
    record = begin(tmp_path)
    run_left(record, JOB, 3, lambda *_: None)
    assert [(r.round, r.error) for r in record.runs] == [(0, "no memory")] * 2


@pytest.mark.parametrize("text, match", [("", None), ("{}\n", "KeyError"), ("lab!\n", "JSONDecodeError"),
                                         ("[]\n", "TypeError"), ('{"lab": 9, "asked": {}}\n', "begun for what is asked now")])
def test_a_record_that_is_none_is_refused(tmp_path, text, match):
    (tmp_path / RUNS).write_text(text)
    if match is None:
        assert begin(tmp_path).contestants == TWO
        return
    with pytest.raises(cllm.CllmError, match=match):
        begin(tmp_path)


def test_a_record_of_something_else_is_refused_and_left_alone(tmp_path):
    begin(tmp_path)
    before = (tmp_path / RUNS).read_bytes()
    with pytest.raises(cllm.CllmError, match="other what. Choose another --out"):
        begin(tmp_path, "that")
    assert (tmp_path / RUNS).read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(cllm.CllmError, match="FileExistsError|NotADirectoryError"):
        begin(tmp_path / "file")


# the report

def runs(name, *seconds, total=100, **more):
    return [Run(name, number, result(s, total, **more)) for number, s in enumerate(seconds)]


def test_regret_chooses_in_one_half_and_times_in_the_other():
    """`lucky` is quickest in the even rounds by chance: it wins there, and is timed in the odd ones."""
    every = [Contestant("budget", "budget:1", TWO[0].plan, limit=100), Contestant("rotor", "lucky", TWO[0].plan, limit=100),
             Contestant("dtr", "steady", TWO[0].plan, limit=100), Contestant("chen", "large", TWO[0].plan, limit=100)]
    done = [*runs("budget:1", 10, 10, 10, 10), *runs("lucky", 5, 20, 5, 20), *runs("steady", 8, 8, 8, 8),
            *runs("large", 1, 1, 1, 1, total=101)]
    found, = regret_of(rows_of(every, done), [100])
    assert found["best"] == ["lucky", "steady"] and found["rounds"] == 4
    assert (found["low"], found["high"]) == (0.5, 1.25) and found["ratio"] == (0.5 + 1.25) / 2
    assert regret_of(rows_of(every, runs("budget:1", 10)), [100]) == []
    early, = regret_of(rows_of(every, [*runs("budget:1", 10, 9), *runs("lucky", 20), *runs("steady", 16)]), [100])
    assert early["best"] == ["steady"] and (early["ratio"], early["rounds"]) == (10 / 16, 1), "left out after one round"
    assert regret_of(rows_of(every, [*runs("budget:1", 10), *runs("steady", 8)]), [100]) == [], "one round has no halves"


def test_rows_share_what_they_share_and_say_what_failed():
    rows = {row["strategy"]: row for row in rows_of(TWO, [*runs("cache", 3, 1, 2), Run("recompute", 0, None, "no memory")])}
    assert rows["cache"]["step_seconds"] == {"min": 1, "median": 2, "max": 3} and rows["cache"]["rounds"] == 3
    assert rows["korthikanti"]["step_seconds"] == rows["cache"]["step_seconds"]
    assert (rows["recompute"]["error"], rows["chen:1B"]["error"]) == ("no memory", "no")
    told = foretold(rows.values())
    assert told["points"] == 1 and told["median"] == 0.5 and told["narrow_points"] == 0


def test_what_a_machine_is_slower_than_before_is_told_apart():
    rows = [{"strategy": name, "same_as": None, "rounds": 1, "predicted_step_seconds": predicted,
             "step_seconds": dict(median=measured, min=measured, max=measured)}
            for name, predicted, measured in (("a", 1, 2), ("b", 2, 4), ("c", 4, 10))]
    told = foretold(rows)
    assert (told["pace"], told["median"], told["median_at_pace"]) == (2, 0.5, 0)
    assert foretold([])["pace"] is None


def test_problems_are_found():
    assert problems_of(rows_of(TWO, runs("cache", 1, 1)), runs("cache", 1, 1)) == []
    for wrong, match in (([*runs("cache", 1), *runs("recompute", 1, digest="e")], "gradients of exact strategies differ"),
                         (runs("cache", 1, high_water_bytes=3), "the highest byte written, 3"),
                         ([*runs("cache", 1), Run("cache", 1, result(1, digest="e"))], "two rounds gave different bits"),
                         ([Run("cache", 0, None, "killed")], "cache: killed")):
        assert any(match in problem for problem in problems_of(rows_of(TWO, wrong), wrong)), match


@pytest.fixture(scope="module")
def whole(made):
    """A report of everybody, with seconds that rise where bytes fall, and points of another library."""
    ledger = ledger_of(CONFIG, 4, 16, num_threads=1)
    done = []
    for c in made:
        if c.plan is not None:
            cost = ledger.evaluate(c.plan)
            done += runs(c.name, *(cost.seconds * share for share in (1, 1.01, 0.99, 1.02)), total=cost.total_bytes)
    peers = [{"date": "2026-01-01", "cpu": "another", "points": [
        {"name": f"torch {mode}", "step_seconds": 1e-3 * (1 + n), "memory_bytes": 500_000 + 90_000 * n}
        for n, mode in enumerate(("eager", "checkpoint", "compile:0.5"))]}]
    machine = {"cpu": "some", "cores": 2, "versions": {}}
    around = {"date": "2026-01-01", "machine": machine, "rounds": 4, "curve": [], "peers": peers, "interrupted": False}
    return report_of(JOB, made, done, limits_of(ledger, 4), around)


def test_the_report_is_plain_data_and_says_it_in_words(whole, ledger):
    assert json.loads(json.dumps(whole)) == whole and whole["problems"] == []
    others = [row["total_bytes"] for row in whole["rows"] if row["step_seconds"] and row["kind"] != "budget"]
    rivalled = [limit for limit in limits_of(ledger, 4) if min(others) <= limit]
    assert [one["limit"] for one in whole["regret"]] == rivalled and len(rivalled) >= 3
    assert all(0.5 < one["ratio"] < 1.1 for one in whole["regret"])
    assert [line.split()[0] for line in sentences(whole)] == ["Regret", "Predicted"]
    rows = list(csv.DictReader(io.StringIO(csv_of(whole))))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == len(whole["rows"])
    assert float(rows[0]["step_seconds_median"]) == whole["rows"][0]["step_seconds"]["median"]


def test_no_name_in_the_picture_lies_on_another_and_looks_differ(whole):
    Text = pytest.importorskip("matplotlib.text").Text
    curves = curves_of(whole)
    assert curves[0].name == "the planner" and curves[-1].name == "PyTorch"
    figure, labels = lab_figure(whole)
    figure.draw_without_rendering()
    named = {label.name for label in labels}
    assert named >= {curve.name for curve in curves[:-1]} and {"torch eager", "torch checkpoint"} <= named
    boxes = [Text.get_window_extent(text) for axis in figure.axes for text in axis.texts]  # without what leads to points
    assert len(boxes) == len(labels)
    for n, one in enumerate(boxes):
        assert not [other.bounds for other in boxes[:n] if one.overlaps(other)], one.bounds
    assert len({(mark, dash) for _, mark, dash in LOOKS}) == len({mark for _, mark, _ in LOOKS}) == len(LOOKS)
    empty = copy.deepcopy(whole)
    for row in empty["rows"]:
        row["step_seconds"] = None
    lab_figure({**empty, "peers": []})


# the command

def test_the_command_measures_goes_on_and_writes_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("CLLM_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "lab"
    ask = ["lab", "--preset", "tiny", "--layers", "2", "--d-model", "16", "--heads", "2", "--d-ff", "32", "--batch-size", "2",
           "--seq-len", "8", "--threads", "1", "--strategies", "cache,recompute,dtr", "--limits", "2", "--steps", "1",
           "--no-calibrate", "--out", str(out), "--json", str(tmp_path / "report.json")]
    asked = []
    real = running.run_once
    monkeypatch.setattr(running, "run_once", lambda parcel, label, *rest: (asked.append(label), real(parcel, label, *rest))[1])
    done = CliRunner().invoke(main, [*ask, "--rounds", "1"])
    assert done.exit_code == 0, done.output
    first, made = len(asked), json.loads((out / "lab.json").read_text())
    assert first >= 3 and json.loads((tmp_path / "report.json").read_text()) == made
    assert len({row["grad_sha256"] for row in made["rows"] if row["rounds"]}) == 1
    assert all(row["arena_bytes"] == row["high_water_bytes"] for row in made["rows"])
    assert (out / "lab.csv").read_text().startswith("strategy,kind,limit")
    done = CliRunner().invoke(main, [*ask, "--rounds", "1"])
    assert done.exit_code == 0 and len(asked) == first, "nothing is left to run"
    done = CliRunner().invoke(main, [*ask, "--rounds", "1", "--seed", "1"])
    assert done.exit_code == 1 and "must have been begun for what is asked now" in done.output


@pytest.mark.parametrize("wrong, match", [
    (["--strategies", "cache,memory"], "must be some of"), (["--strategies", "cache,cache"], "each once"),
    (["--limits", "1"], "not in the range"), (["--rounds", "0"], "not in the range")])
def test_the_command_refuses_what_it_cannot_do(wrong, match, tmp_path):
    done = CliRunner().invoke(main, ["lab", "--out", str(tmp_path / "lab"), *wrong])
    assert done.exit_code == 2 and match in done.output and not (tmp_path / "lab").exists()


def test_settings_in_python_are_checked(tmp_path):
    for wrong in (dict(limits=0), dict(rounds=1.5)):
        with pytest.raises(cllm.ConfigError, match="lab"):
            experiment.run(JOB, tmp_path, **wrong)
    assert report is not None
