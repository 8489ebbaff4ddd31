"""Calibration: what is measured is stored and used, on first use where a budget decides, and plans run no kernel for it."""
import dataclasses
import datetime
import functools
import json
import tempfile

import pytest
from click.testing import CliRunner

import cllm
from cllm import _kernels, calibrate
from cllm.cli import main
from cllm.models.architecture import program_of
from cllm.models.excerpt import Used
from cllm.planner.costs import Speeds, op_signature
from cllm.planner.ledger import Ledger
from cllm.planner.store import load_measured, load_measurements, save_measurements, store_path
from cllm.program.workload import Workload

CONFIG = cllm.ModelConfig(61, 4, 16, 2, 32, 16)
WORK = Workload(5, 16, threads=1)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CLLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(calibrate, "DISK_PROBE_BYTES", 1 << 16)
    monkeypatch.setattr(calibrate, "load_average", lambda: 0.5)  # whatever else the machine does
    return tmp_path


def test_every_operation_of_every_plan_is_measured_at_powers_of_two_and_the_whole(store):
    told = []
    assert not calibrate.is_calibrated(CONFIG, WORK) and calibrate.source_of_seconds(CONFIG, WORK).startswith("declared work")
    assert calibrate.calibrate(CONFIG, WORK, told.append).parent == store
    other = Workload(4, 16, threads=1)
    assert calibrate.is_calibrated(CONFIG, WORK) and not calibrate.is_calibrated(CONFIG, other)
    assert calibrate.source_of_seconds(CONFIG, WORK).startswith(f"measured on this machine on {datetime.date.today()}")
    assert "for other models or batches" in calibrate.source_of_seconds(CONFIG, other)
    assert [t for t in told if t.startswith("micro")] == [f"micro-batch of {n}" for n in (1, 2, 4, 5)]
    known = load_measurements(1, "float32")
    ledger = Ledger(program_of(CONFIG), WORK)
    for size in (1, 2, 4, 5):
        for strategy in (cllm.CacheAll(micro_batch=size), cllm.RecomputeAll(micro_batch=size)):
            schedule, _ = ledger.build(strategy.decide(ledger))
            missing = {op.name for op in schedule.ops if op_signature(op, schedule, WORK) not in known}
            late = {m for m in missing if m.endswith("embed")}  # gradients for the epilogue are put aside in cut batches alone
            assert missing == late and (size > 1 or not any(m.startswith("stash") for m in late))


@pytest.mark.parametrize("use", [{"trainable": ("blocks.[23].*", "*ln_f*")}, {"compute": "bfloat16"}], ids=lambda u: [*u][0])
def test_a_model_is_measured_as_it_is_trained_and_as_it_computes(store, monkeypatch, use):
    monkeypatch.setattr(calibrate, "TURN_SECONDS", 0.0001)
    monkeypatch.setattr(calibrate, "DISAGREE", 1e9)
    used = Used.of(CONFIG, **use)
    calibrate.calibrate(used, WORK)
    assert calibrate.is_calibrated(used, WORK) and not calibrate.is_calibrated(CONFIG, WORK)
    assert used.program.digest == cllm.Model(CONFIG, **use).program.digest
    known, ledger = load_measurements(1, "float32"), Ledger(used.program, WORK)
    for strategy in (cllm.CacheAll(micro_batch=2), cllm.RecomputeAll(micro_batch=5)):
        schedule, _ = ledger.build(strategy.decide(ledger))
        missing = {op.name for op in schedule.ops if op_signature(op, schedule, WORK) not in known}
        assert all(name.endswith("embed") for name in missing), missing


def test_the_planner_believes_what_was_measured(store):
    calibrate.calibrate(CONFIG, WORK)
    measured = Speeds.stored(WORK)
    slower = Speeds({name: seconds * 3 for name, seconds in measured.measured.items()})
    first, second = (Ledger(program_of(CONFIG), WORK, rates) for rates in (measured, slower))
    for strategy in (cllm.CacheAll(), cllm.RecomputeAll(micro_batch=3)):
        plan = strategy.decide(first)
        # what only a cut batch does, putting gradients aside for the epilogue, is reckoned by its bytes
        assert second.evaluate(plan).seconds == pytest.approx(3 * first.evaluate(plan).seconds, rel=0.02)


def test_sizes_beyond_the_limit_are_left_out(store):
    limit = cllm.plan(dataclasses.replace(CONFIG, n_layers=calibrate.LAYERS), 2, 16, "recompute", num_threads=1).total_bytes
    told = []
    calibrate.calibrate(CONFIG, WORK, told.append, limit)
    assert [t for t in told if t.startswith("micro")] == ["micro-batch of 1", "micro-batch of 2"]


def test_a_long_calibration_is_cut_short_and_says_so(store, monkeypatch):
    monkeypatch.setattr(calibrate, "MOST_SECONDS", 0.0)
    told = []
    calibrate.calibrate(CONFIG, WORK, told.append)
    assert "micro-batches of 2 and more are estimated" in told and "micro-batch of 4" not in told
    assert calibrate.is_calibrated(CONFIG, WORK), "it is not tried again on the next run"


def test_operations_are_quick_at_the_pace_of_whole_steps():
    """What disturbed one operation in one round disturbed another in another: neither seems the dearer for it."""
    def turn(a, b, total):
        return calibrate._Steps(WORK, cllm.RecomputeAll(), {"a": a, "b": b}, ["a", "b", "a"], total)

    steps = calibrate._Steps(WORK, cllm.RecomputeAll(), names=["a", "b", "a"], turns=[
        turn([1.0, 3.0, 9.0], [2.0, 3.0, 9.0], [5.0, 5.2, 50.0]), turn([1.0, 1.5], [2.0, 2.1], [4.8, 4.8])])
    assert steps.quick() == {"a": 1.0, "b": 2.0} and steps.paces() == [5.2 / 4, 4.8 / 4]


def test_all_sizes_share_one_pace(store, monkeypatch):
    """A size is not taken for a slow one because half of its turns, or single operations in all of them, were disturbed."""
    turn = calibrate._Steps.turn

    def paced(self, model, warm=False):
        turn(self, model, warm)
        slow = 3.0 if self.strategy.micro_batch == 2 and len(self.turns) > 4 else 1.0
        for samples in self.turns[-1].found.values():
            samples[:] = [slow] * len(samples)
        whole = 2.0 if self.strategy.micro_batch == 4 else slow
        self.turns[-1].totals[:] = [whole * len(self.names)] * len(self.turns[-1].totals)

    monkeypatch.setattr(calibrate._Steps, "turn", paced)
    calibrate.calibrate(CONFIG, WORK)
    known = {name: seconds for name, seconds in load_measurements(1, "float32").items() if name.startswith("forward|")}
    assert set(known.values()) == {1.0}


def test_every_size_has_its_turn_in_every_round(store, monkeypatch):
    turns = []
    turn = calibrate._Steps.turn

    def noted(self, model, warm=False):
        turns.append((type(self.strategy).__name__, self.strategy.micro_batch, warm))
        turn(self, model, warm)

    monkeypatch.setattr(calibrate._Steps, "turn", noted)
    monkeypatch.setattr(calibrate, "TURN_SECONDS", 0.0001)
    monkeypatch.setattr(calibrate, "DISAGREE", 1e9)
    calibrate.calibrate(CONFIG, WORK)
    rounds = (True, *(calibrate.ROUNDS - 1) * [False])
    assert turns[:-2] == [("RecomputeAll", size, warm) for warm in rounds for size in (1, 2, 4, 5)]
    assert turns[-2:] == 2 * [("Compressed", 1, True)], "the first of each alone warms up: rounds are worth more"


@pytest.mark.parametrize("warm", [False, True])
def test_a_turn_that_warms_up_takes_a_step_that_is_not_timed(warm, monkeypatch):
    taken = []

    class Noting(calibrate.Executor):
        def loss_and_grad(self, *feeds, **named):
            taken.append("loss_and_grad")
            return super().loss_and_grad(*feeds, **named)

        def timed_step(self, *feeds, **named):
            taken.append("timed_step")
            return super().timed_step(*feeds, **named)

    monkeypatch.setattr(calibrate, "Executor", Noting)
    monkeypatch.setattr(calibrate, "TURN_SECONDS", 1e-9)
    steps = calibrate._Steps(WORK, cllm.RecomputeAll())
    steps.turn(calibrate.Excerpt.of(CONFIG, 1).model("float32"), warm)
    assert taken == warm * ["loss_and_grad"] + ["timed_step"]
    assert len(steps.turns[0].totals) == 1


def test_plan_measures_nothing(store, monkeypatch):
    monkeypatch.setattr(_kernels, "Threads", lambda *a: pytest.fail("a kernel runs"))
    cllm.plan(CONFIG, 1, 16, "budget:1GB", num_threads=1)
    assert not list(store.iterdir())


@pytest.mark.parametrize("strategy, option, measures", [
    ("budget:1GB", [], True), ("budget:1GB", ["--no-calibrate"], False), ("cache", [], False)])
def test_train_measures_once_where_a_budget_decides(store, tmp_path, strategy, option, measures):
    def train(out):
        return CliRunner().invoke(main, [
            "train", "--preset", "tiny", "--layers", "1", "--batch-size", "1", "--seq-len", "8", "--steps", "1", "--threads",
            "1", "--eval-every", "5", "--strategy", strategy, "--out", str(tmp_path / out), *option])

    first, second = train("one"), train("two")
    assert first.exit_code == second.exit_code == 0, first.output
    assert ("measuring this machine" in first.stderr) == measures
    assert "measuring this machine" not in second.stderr


# a machine that has other things to do

def rounds_of(*medians):
    """Steps whose rounds took so long."""
    def turn(m):
        return calibrate._Steps(WORK, cllm.RecomputeAll(), {"a": [m / 4] * 3, "b": [m * 3 / 4] * 3}, ["a", "b"], [m] * 3)

    return calibrate._Steps(WORK, cllm.RecomputeAll(), names=["a", "b"], turns=[turn(m) for m in medians])


def test_rounds_that_were_disturbed_are_left_out():
    steps = rounds_of(1.0, 7.0, 1.1, 5.0)
    assert steps.spread == 7.0 and len(steps.quiet_turns) == 2
    assert steps.quick() == pytest.approx({"a": 1.075 / 4, "b": 3 * 1.075 / 4})
    assert steps.paces() == pytest.approx([1.0 / 1.075, 1.1 / 1.075])
    assert not calibrate._disagree([steps]) and calibrate._disagree([steps, rounds_of(1.0, 1.5, 2.0)])
    assert not calibrate._disagree([rounds_of(1.0)]), "one round cannot disagree"


def test_rounds_are_repeated_where_they_disagree(store, monkeypatch):
    told, paces = [], iter([*(2.0 ** k for k in range(calibrate.ROUNDS + 1)), 1.1, *[1.0] * 20])
    turn = calibrate._Steps.turn

    def paced(self, model, warm=False):
        turn(self, model, warm)
        pace = next(paces)
        self.turns[-1].totals[:] = [pace] * len(self.turns[-1].totals)

    monkeypatch.setattr(calibrate._Steps, "turn", paced)
    calibrate.calibrate(CONFIG, Workload(1, 16, threads=1), told.append)
    assert told.count("another round: those before disagree") == 2
    made, = load_measured(1, "float32").made.values()
    assert made["spread"] == 2.0 ** calibrate.ROUNDS and not made["loaded"], "in the end two agree"


def test_what_a_loaded_machine_gave_is_marked_and_measured_again_when_it_is_quiet(store, monkeypatch):
    load = 1000.0
    monkeypatch.setattr(calibrate, "load_average", lambda: load)
    monkeypatch.setattr(calibrate, "TURN_SECONDS", 0.0001)
    told = []
    calibrate.calibrate(CONFIG, WORK, told.append)
    assert told[0].startswith("the machine has a load of 1000.0 on ")
    source = calibrate.source_of_seconds(CONFIG, WORK)
    assert f"{datetime.date.today()}, under a load of 1000.0 on" in source and "measure again when it is quiet" in source
    assert calibrate.is_calibrated(CONFIG, WORK), "as long as it is loaded"
    assert f"(measured {datetime.date.today()} under load)" in cllm.plan(CONFIG, 5, 16, "cache", num_threads=1).table()
    load = 0.5
    assert not calibrate.is_calibrated(CONFIG, WORK)
    monkeypatch.setattr(calibrate, "DISAGREE", 1e9)
    calibrate.calibrate(CONFIG, WORK)
    assert "load" not in calibrate.source_of_seconds(CONFIG, WORK) and not load_measured(1, "float32").loaded
    assert f"(measured {datetime.date.today()})" in cllm.plan(CONFIG, 5, 16, "cache", num_threads=1).table()


def test_what_a_loaded_machine_gave_does_not_reach_other_workloads(store):
    good, bad = "forward|Linear|B1,64|1.0e-03", "forward|Linear|B2,64|2.0e-03"
    save_measurements(1, "float32", {good: 2.0e-3})
    save_measurements(1, "float32", {good: 50e-3, bad: 100e-3, "forward|Attention|B1|1.0e-03": 7e-3}, loaded=True)
    found = load_measured(1, "float32")
    assert found.seconds[good] == 2.0e-3 and found.seconds[bad] == 100e-3 and good not in found.loaded
    speeds = Speeds(dict(found.seconds), found.loaded)
    assert speeds._nearest("forward", "Linear", 2.0e-3) == pytest.approx(2.0), "of the quiet one, though the other is nearer"
    assert speeds._nearest("forward", "Attention", 1e-3) == pytest.approx(7.0), "better than nothing"
    save_measurements(1, "float32", {bad: 4.0e-3})
    assert bad not in load_measured(1, "float32").loaded


def test_seconds_say_what_they_rest_on(store):
    assert "(declared work)" in cllm.plan(CONFIG, 5, 16, "cache", num_threads=1).table()
    job = ["--preset", "tiny", "--layers", "1", "--batch-size", "1", "--seq-len", "8", "--threads", "1"]
    for more in ([], ["--pareto"]):
        said = CliRunner().invoke(main, ["plan", *job, *more]).output
        assert "seconds: declared work, at the speeds of a server core" in said
    done = CliRunner().invoke(main, ["plan", *job, "--calibrate", "--json", str(store / "plan.json")])
    assert f"seconds: measured on this machine on {datetime.date.today()}" in done.output
    assert json.loads((store / "plan.json").read_text())["seconds_from"].startswith("measured on this machine on")


# what may befall the store

def stored():
    save_measurements(1, "float32", {"done x": 0.0, "forward|Linear|B1,64|1.0e-03": 2.5})
    path = store_path(1, "float32")
    return path, path.read_text()


@functools.cache
def declared_plan():
    """That of a machine of which nothing is stored."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("CLLM_CACHE_DIR", folder)
        return cllm.plan(CONFIG, 1, 16, "budget:1GB", num_threads=1)


DAMAGED = {"empty": lambda text: "", "half": lambda text: text[:len(text) // 2], "no JSON": lambda text: "seconds!",
           "a list": lambda text: "[]", "null": lambda text: "null", "bytes": lambda text: "\udcff\udcfe",
           "nested without end": lambda text: "[" * 100_000, "without a digest": lambda text: '{"a": 1.0}',
           **{f"seconds {word}": lambda text, word=word: text.replace("2.5", word)
              for word in ("NaN", "Infinity", "0.0", "-2.5", "2.6", '"soon"', "null", "[]")},
           "a name of another work": lambda text: text.replace("1.0e-03", "0")}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_store_counts_as_none_says_so_and_is_replaced(what, store):
    path, text = stored()
    path.write_bytes(DAMAGED[what](text).encode(errors="surrogateescape"))
    with pytest.warns(RuntimeWarning, match="damaged or cannot be read"):
        damaged = cllm.plan(CONFIG, 1, 16, "budget:1GB", num_threads=1)
    assert damaged == (clean := declared_plan())
    assert damaged.predicted_seconds == clean.predicted_seconds
    path.write_bytes(DAMAGED[what](text).encode(errors="surrogateescape"))
    save_measurements(1, "float32", {"a": 1.0})
    assert load_measurements(1, "float32") == {"a": 1.0}


def test_what_is_saved_is_added_in_one_move(store):
    path, _ = stored()
    save_measurements(1, "float32", {"a": 0.1 + 0.2})
    assert load_measurements(1, "float32") == {"done x": 0.0, "forward|Linear|B1,64|1.0e-03": 2.5, "a": 0.1 + 0.2}
    assert list(store.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_stored_and_no_part(store, monkeypatch):
    path, text = stored()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space"):
        save_measurements(1, "float32", {"a": 1.0})
    assert path.read_text() == text and list(store.iterdir()) == [path]


def test_figures_that_are_none_are_not_saved(store):
    path, text = stored()
    with pytest.raises(ValueError, match="Out of range"):
        save_measurements(1, "float32", {"a": float("nan")})
    assert path.read_text() == text and list(store.iterdir()) == [path]


def test_a_store_that_cannot_be_written_is_told_before_anything_is_measured(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLLM_CACHE_DIR", str(tmp_path / "file"))  # no directory; holds for root too
    monkeypatch.setattr(calibrate, "Model", lambda *a, **k: pytest.fail("it measures"))
    job = ["--preset", "tiny", "--layers", "1", "--batch-size", "1", "--seq-len", "8", "--threads", "1"]
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        done = CliRunner().invoke(main, ["train", *job, "--steps", "1", "--eval-every", "5", "--strategy", "budget:1GB",
                                         "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "cannot be kept, so declared work decides" in done.stderr
    done = CliRunner().invoke(main, ["plan", *job, "--calibrate"])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "Error: " in done.stderr


def test_a_disk_without_room_is_left_unmeasured(store, monkeypatch):
    monkeypatch.setattr(calibrate.os, "pwrite", lambda *a: 7)
    assert calibrate._measure_disk() is None
    monkeypatch.setattr(calibrate.tempfile, "TemporaryFile", lambda **k: (_ for _ in ()).throw(OSError(28, "full")))
    assert calibrate._measure_disk() is None


def test_a_user_without_a_home_has_a_store(monkeypatch):
    from cllm.planner import store as measurements
    monkeypatch.delenv("CLLM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(measurements.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert store_path(1, "float32").is_absolute()
