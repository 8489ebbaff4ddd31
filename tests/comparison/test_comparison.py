"""The comparison job: rows, problems, fresh processes, the picture. The trainings here take a second each."""
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cllm.comparison.contestants import labelled
from cllm.comparison.job import Job
from cllm.comparison.machine import cpu_name, describe_machine
from cllm.comparison.picture import check_picture, draw
from cllm.comparison.resident import forget_peak, peak_resident_bytes, resident_bytes
from cllm.comparison.runner import Run, Runs, run_rounds
from cllm.comparison.summary import summarise
from cllm.errors import ConfigError, DataError
from cllm.models.gpt import ModelConfig

TINY = Job(ModelConfig.preset("tiny"), batch_size=2, seq_len=16, steps=2, threads=1)
ROW_KEYS = {"strategy", "exact", "step_seconds", "tokens_per_second", "slowdown_vs_cache", "predicted_step_seconds",
            "arena_bytes", "high_water_bytes", "total_bytes", "rss_peak_bytes", "rss_start_bytes", "losses",
            "grad_sha256"}


def ignore(*_arguments):
    """Where the caller wants to hear of progress."""


def result(**changes):
    """What a worker returns, made up."""
    return {"exact": True, "step_seconds": [0.3, 0.1, 0.2], "predicted_step_seconds": 0.15, "arena_bytes": 640,
            "process_seconds": [0.1], "message_bytes": 0, "crowded": [],
            "high_water_bytes": 640, "total_bytes": 1000, "rss_peak_bytes": 5000, "rss_start_bytes": 3000,
            "losses": [2.0, 1.0], "grad_sha256": "ab" * 32, "plan": {}, "timeline": {}, **changes}


def made_up(*runs, strategies=("cache", "recompute"), interrupted=False):
    """Runs as if they had happened."""
    return Runs(TINY, labelled(strategies), list(runs), interrupted)


@pytest.fixture(scope="module")
def measured():
    """A real comparison: two rounds of two strategies in fresh processes, and what was told meanwhile."""
    steps, sizes = [], []
    runs = run_rounds(TINY, labelled(["cache", "recompute"]), 2, lambda *step: steps.append(step),
                      lambda runs: sizes.append(len(runs.done)))
    return runs, steps, sizes


def test_rounds_are_interleaved(measured):
    runs, _, sizes = measured
    assert [(run.strategy, run.round) for run in runs.done] == [("cache", 0), ("recompute", 0), ("cache", 1),
                                                               ("recompute", 1)]
    assert sizes == [1, 2, 3, 4]


def test_every_step_is_told(measured):
    _, steps, _ = measured
    assert steps[:3] == [("cache", 0, 0), ("cache", 0, 1), ("cache", 0, 2)]
    assert len(steps) == 2 * 2 * (1 + TINY.steps)


def test_report_has_what_the_interface_promises(measured):
    report = json.loads(json.dumps(summarise(measured[0], describe_machine())))
    assert report["problems"] == []
    assert report["config"] == json.loads(json.dumps(TINY.architecture.to_dict()))
    assert {"machine", "config", "rows"} <= set(report)
    for row in report["rows"]:
        assert set(row) >= ROW_KEYS
        assert row["exact"] is True and row["error"] is None
        assert 0 < row["step_seconds"]["min"] <= row["step_seconds"]["median"] <= row["step_seconds"]["max"]
        assert row["arena_bytes"] == row["high_water_bytes"] < row["total_bytes"]
        assert len(row["losses"]) == 1 + TINY.steps
        assert len(row["grad_sha256"]) == 64


def test_strategies_agree_to_the_last_bit(measured):
    rows = summarise(measured[0], {})["rows"]
    assert rows[0]["grad_sha256"] == rows[1]["grad_sha256"]
    assert rows[0]["losses"] == rows[1]["losses"]
    assert rows[0]["slowdown_vs_cache"] == 1.0
    assert rows[1]["arena_bytes"] < rows[0]["arena_bytes"]


@pytest.mark.skipif(resident_bytes() is None, reason="only Linux tells")
def test_process_peak_is_measured(measured):
    for row in summarise(measured[0], {})["rows"]:
        assert row["rss_peak_bytes"] > row["rss_start_bytes"] > 10_000_000


def test_a_failed_strategy_is_a_row_and_loses_no_other():
    job = Job(ModelConfig.preset("tiny"), batch_size=2, seq_len=16, steps=1, threads=1)
    runs = run_rounds(job, labelled(["budget:1MB", "cache"]), 2, ignore, ignore)
    report = summarise(runs, {})
    failed, good = report["rows"]
    assert "must be at least" in failed["error"] and failed["step_seconds"] is None and failed["arena_bytes"] is None
    assert good["error"] is None and good["rounds"] == 2
    assert [run.strategy for run in runs.done] == ["budget:1MB", "cache", "cache"]  # not tried again
    assert len(report["problems"]) == 1


def test_a_killed_process_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(subprocess, "Popen", _killing(subprocess.Popen))
    runs = run_rounds(TINY, labelled(["cache"]), 1, ignore, ignore)
    assert "killed by the system" in runs.done[0].error


def _killing(popen):
    def start(command, **options):
        return popen(["/bin/sh", "-c", "kill -KILL $$"], **options)

    return start


def test_a_crash_shows_the_last_words(monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(
        ["/bin/sh", "-c", "cat > /dev/null; echo first >&2; echo the reason >&2; exit 7"], **options))
    assert run_rounds(TINY, labelled(["cache"]), 1, ignore, ignore).done[0].error == "ended with code 7: the reason"


def test_interruption_keeps_what_was_measured_and_ends_the_process():
    started = []

    def interrupt(strategy, number, step):
        started.append(strategy)
        if strategy == "recompute":
            raise KeyboardInterrupt

    runs = run_rounds(TINY, labelled(["cache", "recompute", "sqrt"]), 1, interrupt, ignore)
    report = summarise(runs, {})
    assert runs.interrupted and report["interrupted"]
    assert [row["step_seconds"] is not None for row in report["rows"]] == [True, False, False]
    assert "sqrt" not in started
    assert any("Interrupted" in problem for problem in report["problems"])


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_on_the_command_line_leaves_the_file(tmp_path):
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "cllm", "compare", "--preset", "tiny", "--batch-size", "2", "--seq-len", "16",
               "--steps", "2000000", "--rounds", "1", "--strategies", "recompute", "--json", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not psutil.Process(process.pid).children() and process.poll() is None and time.monotonic() < started + 60:
        time.sleep(0.05)  # until the worker is there
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert json.loads(path.read_text())["interrupted"] is True


# The rest is made up, since real runs do not go wrong on demand.

def test_step_seconds_are_folded_over_all_rounds():
    runs = made_up(Run("cache", 0, result(step_seconds=[4.0, 2.0])), Run("cache", 1, result(step_seconds=[1.0, 3.0])),
                   Run("recompute", 0, result(step_seconds=[5.0])))
    cache, recompute = summarise(runs, {})["rows"]
    assert cache["step_seconds"] == {"min": 1.0, "median": 2.5, "max": 4.0}
    assert recompute["slowdown_vs_cache"] == 2.0
    assert cache["tokens_per_second"] == 2 * 16 / 2.5


def test_peak_is_the_highest_round_with_its_own_start():
    runs = made_up(Run("cache", 0, result(rss_peak_bytes=7, rss_start_bytes=1)),
                   Run("cache", 1, result(rss_peak_bytes=9, rss_start_bytes=4)), strategies=("cache",))
    row = summarise(runs, {})["rows"][0]
    assert (row["rss_peak_bytes"], row["rss_start_bytes"]) == (9, 4)


def test_without_the_system_the_peak_is_null():
    runs = made_up(Run("cache", 0, result(rss_peak_bytes=None, rss_start_bytes=None)), strategies=("cache",))
    report = summarise(runs, {})
    assert report["rows"][0]["rss_peak_bytes"] is None and report["problems"] == []


def test_without_cache_there_is_no_slowdown():
    runs = made_up(Run("recompute", 0, result()), strategies=("recompute",))
    assert summarise(runs, {})["rows"][0]["slowdown_vs_cache"] is None


def test_different_gradients_of_exact_strategies_are_a_problem():
    runs = made_up(Run("cache", 0, result()), Run("recompute", 0, result(grad_sha256="cd" * 32)))
    assert any("must be equal to the last bit" in problem for problem in summarise(runs, {})["problems"])


def test_an_inexact_strategy_may_differ():
    runs = made_up(Run("cache", 0, result()), Run("recompute", 0, result(grad_sha256="cd" * 32, exact=False)))
    assert summarise(runs, {})["problems"] == []


@pytest.mark.parametrize("change", [{"grad_sha256": "cd" * 32}, {"losses": [2.0, 1.5]}])
def test_rounds_that_differ_are_a_problem(change):
    runs = made_up(Run("cache", 0, result()), Run("cache", 1, result(**change)), strategies=("cache",))
    assert any("two rounds" in problem for problem in summarise(runs, {})["problems"])


def test_an_arena_that_is_not_as_predicted_is_a_problem():
    runs = made_up(Run("cache", 0, result(high_water_bytes=704)), strategies=("cache",))
    assert any("704" in problem for problem in summarise(runs, {})["problems"])


@pytest.mark.parametrize("load, seconds, predicted, doubts", [
    (0.5, [1.0, 1.1], 1.0, []), (None, [1.0, 1.1], 1.9, []), (1e4, [1.0, 1.1], 1.0, ["a load of 10000.0 on"]),
    (0.5, [16.0, 16.0], 2.0, ["a step took 16 s where 2 were predicted"]), (0.5, [1.0], 2.5, ["more than a factor of 2"]),
    (0.5, [1.0, 1.1, 4.0], 1.0, ["its steps took from 1 to 4 s"])])
def test_what_speaks_against_the_seconds_is_said_and_fails_nothing(load, seconds, predicted, doubts):
    runs = made_up(Run("cache", 0, result(step_seconds=seconds, predicted_step_seconds=predicted)), strategies=("cache",))
    report = summarise(runs, {"load_average": None if load is None else [load, 0.0, 0.0]})
    assert report["problems"] == [] and len(report["doubts"]) == len(doubts)
    for sentence, words in zip(report["doubts"], doubts, strict=True):
        assert words in sentence


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"seq_len": 1025}, {"threads": 0}, {"seed": -1}])
def test_job_refuses_what_cannot_be(change):
    with pytest.raises(ConfigError):
        Job(ModelConfig.preset("small"), **change)


@pytest.mark.skipif(resident_bytes() is None, reason="only Linux tells")
def test_peak_forgets_and_grows():
    if not forget_peak():
        pytest.skip("the system does not allow it")
    before = peak_resident_bytes()
    bytearray(64_000_000)  # zero pages count once they are written, which bytearray does not do
    block = b"x" * 64_000_000
    assert peak_resident_bytes() >= before + 60_000_000
    del block
    assert forget_peak() and peak_resident_bytes() < before + 60_000_000


def test_resident_memory_of_no_process_is_none():
    assert resident_bytes(2 ** 30) is None and not forget_peak(2 ** 30)


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_picture_is_drawn_also_with_failed_rows(tmp_path, name):
    pytest.importorskip("matplotlib")
    runs = made_up(Run("cache", 0, result(rss_peak_bytes=None)), Run("recompute", 0, None, "killed"))
    draw(summarise(runs, describe_machine()), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG") if name.endswith("png") else b"</svg>" in data


def test_picture_refuses_an_unknown_ending(tmp_path):
    with pytest.raises(DataError, match="png or .svg"):
        check_picture(tmp_path / "picture.jpg")


def test_picture_names_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DataError, match=r"\[plot\]"):
        check_picture(tmp_path / "picture.png")


def test_machine_is_plain_data():
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cpu"] and machine["cores"] >= 1


def test_a_processor_is_told_by_family_and_model(tmp_path, monkeypatch):
    monkeypatch.setattr("cllm.dispatch.CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n")
    assert cpu_name() == "AMD EPYC (family 25, model 1)"
    (tmp_path / "cpuinfo").write_text("model name\t: Cortex\n")
    assert cpu_name() == "Cortex"
