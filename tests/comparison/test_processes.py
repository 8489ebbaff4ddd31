"""A comparison whose runs several processes share: figures of all, bits of one, and whoever cannot take part says so."""
import re
import sys
from math import prod
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from team import processes

from cllm import cli
from cllm.comparison import runner, together, worker
from cllm.comparison.experiment import Experiment, report_of
from cllm.comparison.html import page
from cllm.comparison.job import Job
from cllm.comparison.machine import describe_machine
from cllm.comparison.printed import text_of
from cllm.comparison.runner import Run, Runs, command_of
from cllm.comparison.summary import summarise
from cllm.errors import ConfigError
from cllm.models.gpt import ModelConfig

SMALL = dict(architecture=ModelConfig(256, 1, 64, 2, 256, 16), batch_size=4, seq_len=16, steps=2, threads=1, groups=2)
ALONE, SHARED = Job(**SMALL), Job(**SMALL, processes=2)


def test_processes_have_the_losses_and_gradients_of_one(tmp_path):
    alone = worker.train(ALONE, "recompute", lambda step: None)
    heard = []

    def run(team):
        return worker.train(SHARED, "recompute", lambda step: heard.append((team.rank, step)), tmp_path / "gradients", team)

    first, second = processes(2, run)
    assert sorted(heard) == [(rank, step) for rank in (0, 1) for step in range(3)]
    for name in ("losses", "grad_sha256", "exact"):
        assert first[name] == second[name] == alone[name], name
    for name in ("step_seconds", "message_bytes", "rss_peak_bytes", "process_seconds", "crowded"):
        assert first[name] == second[name], name
    elements = sum(prod(parameter.shape) for parameter in ALONE.architecture.program.parameters.values())
    assert first["message_bytes"] == 4 * elements, "half of the gradients, and half of the parameters"
    assert first["arena_bytes"] == first["high_water_bytes"] and first["total_bytes"] < alone["total_bytes"]
    assert len(first["process_seconds"]) == 2 and len(alone["process_seconds"]) == 1 and alone["message_bytes"] == 0
    report = summarise(Runs(SHARED, {"recompute": "recompute"}, [Run("recompute", 0, first)]), {"load_average": None})
    assert report["problems"] == [] and report["job"]["processes"] == 2
    (tmp_path / "one").mkdir()
    worker.train(ALONE, "recompute", lambda step: None, tmp_path / "one" / "gradients")
    assert (tmp_path / "gradients").read_bytes() == (tmp_path / "one" / "gradients").read_bytes()


def figures(**changes):
    return {"step_seconds": [1.0, 2.0], "message_bytes": 10, "high_water_bytes": 640, "arena_bytes": 640,
            "rss_peak_bytes": 5000, "rss_start_bytes": 3000, **changes}


def test_a_row_has_the_slowest_and_the_largest(monkeypatch):
    monkeypatch.setattr(together, "crowded", lambda team, threads: [f"{threads} threads"])
    others = [figures(step_seconds=[3.0, 1.0], message_bytes=12, rss_peak_bytes=6000, rss_start_bytes=5500), figures()]
    team = SimpleNamespace(tell=lambda value: [*others, value])
    found = together.in_all(team, figures(), 3)
    assert found == figures(step_seconds=[3.0, 2.0], message_bytes=12, rss_peak_bytes=6000, rss_start_bytes=5500,
                            crowded=["3 threads"])
    others[1] = figures(high_water_bytes=704)
    assert together.in_all(team, figures(rss_peak_bytes=None), 1)["high_water_bytes"] == 704
    assert together.in_all(team, figures(rss_peak_bytes=None), 1)["rss_peak_bytes"] == 6000


def made_up(**changes):
    return {"exact": True, "step_seconds": [0.2], "predicted_step_seconds": 0.2, "arena_bytes": 640, "high_water_bytes": 640,
            "total_bytes": 1000, "rss_peak_bytes": 5000, "rss_start_bytes": 3000, "losses": [2.0, 1.0], "grad_sha256": "ab" * 9,
            "plan": {}, "timeline": {}, "process_seconds": [0.1, 0.3], "message_bytes": 531_456, "crowded": [], **changes}


def test_the_table_tells_messages_and_the_slowest_process():
    runs = Runs(SHARED, {"cache": "cache", "every:2": "every:2"}, [
        Run("cache", 0, made_up(crowded=["one: crowded."])), Run("cache", 1, made_up(process_seconds=[0.1, 0.5])),
        Run("every:2", 0, None, "it died")])
    report = report_of([Experiment(SHARED, runs.strategies)], [runs], describe_machine(), {})
    text = text_of(report)
    assert "batch 4 × 16 in 2 groups, float32, 2 processes of 1 thread" in text and "messages MB" in text
    assert re.search(r"cache .*│ +0\.531 │ 1 \(1\.60\) │", text), text
    assert [doubt for doubt in report["doubts"] if "crowded" in doubt] == ["one: crowded."]
    assert report["rows"][0]["process_seconds"] == [0.1, 0.4]
    written = page.render(report)
    assert "<th scope=\"col\">messages, each</th>" in written and "<td>1 (1.60)</td>" in written
    runs = Runs(ALONE, {"cache": "cache"}, [Run("cache", 0, made_up(process_seconds=[0.1], message_bytes=0))])
    alone = report_of([Experiment(ALONE, runs.strategies)], [runs], describe_machine(), {})
    assert "messages" not in text_of(alone) and "messages" not in page.render(alone)


def test_what_starts_processes_is_found_or_asked_for(tmp_path, monkeypatch):
    assert command_of(ALONE) == runner.WORKER
    (tmp_path / "starts").write_text("")
    (tmp_path / "starts").chmod(0o755)
    job = Job(**SMALL, processes=2, launcher=f"{tmp_path / 'starts'} --here")
    assert command_of(job) == [str(tmp_path / "starts"), "--here", "-n", "2", *runner.WORKER]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command_of(Job(**SMALL, processes=2, launcher="starts"))[0] == str(tmp_path / "starts"), "beside the interpreter"
    for wrong in ("nobody-starts -x", " "):
        with pytest.raises(ConfigError, match="launcher: must be a program that starts processes of MPI; got '.*Or name your"):
            command_of(Job(**SMALL, processes=2, launcher=wrong))
    with pytest.raises(ConfigError, match="processes: must be a power of two that divides groups = 2; got 4"):
        Job(**SMALL, processes=4)


@pytest.mark.parametrize("written, told", [
    ("Warning\nError: process 1 of 2: out of memory; all are ended\n" + "-" * 74 + "\nMPI_ABORT was invoked\n" + "-" * 74,
     "process 1 of 2: out of memory; all are ended"),
    ("Warning\n" + "-" * 74 + "\nThere are not\nenough slots:\n\n  python\n\nEither\n" + "-" * 74 + "\n",
     "There are not enough slots:"), ("one\ntwo\n", "two"), ("", "no message")])
def test_the_reason_is_found_among_what_a_launcher_writes(written, told):
    assert runner._cause_of_death(1, written) == f"ended with code 1: {told}"
    assert "killed by the system" in runner._cause_of_death(137, written)


def test_a_comparison_is_started_once(monkeypatch):
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        with monkeypatch.context() as patch:
            patch.setenv(size, "2")
            patch.setenv(rank, "0")
            first = CliRunner().invoke(cli.main, ["compare"])
            assert first.exit_code == 1 and "cllm compare: must be started once, and not by a launcher of MPI" in first.output
            assert "got 2 of it. Use cllm compare --processes 2." in first.output
            patch.setenv(rank, "1")
            other = CliRunner().invoke(cli.main, ["compare"])
            assert other.exit_code == 0 and not other.output, "one that failed first would end all"


def test_no_curve_of_several_groups():
    asked = CliRunner().invoke(cli.main, ["compare", "--preset", "tiny", "--groups", "2", "--pareto"])
    assert asked.exit_code == 2 and "--pareto is the curve of one group" in asked.output


def test_points_that_differ_in_processes_alone_have_the_same_bits():
    def report(groups, *digests):
        points = [Experiment(Job(**SMALL | {"groups": of}, processes=count), {"cache": "cache"}, {"processes": count})
                  for count, of in zip((1, 2), groups, strict=True)]
        runs = [Runs(one.job, one.strategies, [Run("cache", 0, made_up(
            step_seconds=[2.0 / one.job.processes], predicted_step_seconds=1.0, grad_sha256=digest))])
            for one, digest in zip(points, digests, strict=True)]
        return report_of(points, runs, describe_machine(), {"processes": [1, 2]})

    same = report((2, 2), "ab" * 9, "ab" * 9)
    assert same["problems"] == [] and [point["rows"][0]["speedup"] for point in same["points"]] == [1.0, 2.0]
    assert "Speed-up over processes=1" in text_of(same) and "2.00 (100%)" in text_of(same)
    assert report((2, 2), "ab" * 9, "cd" * 9)["problems"] == [
        "The gradients of processes=1; processes=2 differ; on any number of threads and processes they must be equal to the "
        "last bit."]
    assert report((1, 2), "ab" * 9, "cd" * 9)["problems"] == [], "bits depend on groups"
