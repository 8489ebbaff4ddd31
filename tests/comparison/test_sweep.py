"""Sweeps, budgets from least to most, peers' points: what is asked, what runs, what is kept."""
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from cllm.cli import main
from cllm.comparison import experiment as experiments
from cllm.comparison import runner
from cllm.comparison.budgets import budget_strategies, planned_curve
from cllm.comparison.contestants import labelled
from cllm.comparison.description import KEPT, REBUILT, describe_plan, describe_timeline
from cllm.comparison.experiment import Experiment, points_of, report_of, run_experiments
from cllm.comparison.files import write_json
from cllm.comparison.job import Job
from cllm.comparison.parcel import unpack
from cllm.comparison.peers import peers_of, read_peers
from cllm.comparison.runner import Run
from cllm.comparison.series import memory_against_time
from cllm.comparison.sweeps import QUANTITIES, draw_sweep, lines_of, places_of
from cllm.errors import DataError
from cllm.models.architecture import program_of
from cllm.models.gpt import ModelConfig
from cllm.planner.ledger import Ledger
from cllm.planning import decide, plan
from cllm.program.workload import Workload
from cllm.threads.counts import default_threads

SMALL = ["compare", "--preset", "tiny", "--batch-size", "2", "--seq-len", "16", "--steps", "1", "--rounds", "1"]
TINY = Job(ModelConfig.preset("tiny"), batch_size=2, seq_len=16, steps=2, threads=1)


def run(*arguments):
    """The command, inside this process."""
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def quick(monkeypatch):
    """Runs as if they had happened: what was asked for is listed, and strategies fail or interrupt as the test says."""
    asked, fate = [], {}

    def run_once(parcel, strategy, number, on_step, gradients, command):
        job = unpack(parcel["job"])
        asked.append((job, strategy, number))
        if fate.get(strategy) == "interrupt" or fate.get((job.seq_len, strategy)) == "interrupt":
            raise KeyboardInterrupt
        if strategy in fate:
            return Run(strategy, number, None, fate[strategy])
        ledger = Ledger(program_of(job.architecture), Workload(job.batch_size, job.seq_len))
        made = decide(strategy, ledger)
        _, memory = ledger.build(made)
        program = program_of(job.architecture)
        return Run(strategy, number, {
            "exact": True, "step_seconds": [0.2, 0.1, 0.3], "predicted_step_seconds": made.predicted_seconds,
            "process_seconds": [0.1], "message_bytes": 0, "crowded": [],
            "arena_bytes": memory.arena_bytes, "high_water_bytes": memory.arena_bytes, "total_bytes": memory.total_bytes,
            "rss_peak_bytes": 9_000_000 + memory.total_bytes, "rss_start_bytes": 8_000_000, "losses": [2.0, 1.0],
            "grad_sha256": f"{job.seq_len:064x}", "plan": describe_plan(made, memory, program),
            "timeline": describe_timeline(memory, program)})

    monkeypatch.setattr(runner, "run_once", run_once)
    return asked, fate


def test_a_sweep_is_every_combination_in_order(quick, tmp_path):
    asked, _ = quick
    path = tmp_path / "out.json"
    done = run(*SMALL, "--strategies", "cache,recompute", "--sweep", "seq_len=16,32", "--sweep", "layers=1,2", "--json", path)
    assert done.exit_code == 0, done.stderr
    assert [(job.seq_len, job.architecture.n_layers, strategy) for job, strategy, _ in asked] == [
        (T, L, name) for T in (16, 32) for L in (1, 2) for name in ("cache", "recompute")]
    report = json.loads(path.read_text())
    assert report["sweep"] == {"seq_len": [16, 32], "n_layers": [1, 2]} and report["problems"] == []
    assert [point["setting"] for point in report["points"]] == [
        {"seq_len": T, "n_layers": L} for T in (16, 32) for L in (1, 2)]
    for point in report["points"]:
        assert [row["strategy"] for row in point["rows"]] == ["cache", "recompute"]
        assert point["config"]["n_layers"] == point["setting"]["n_layers"]
    assert done.output.count("seq_len=32, n_layers=1") == 1


@pytest.mark.parametrize("text, key, values", [
    ("batch-size=1,2", "batch_size", [1, 2]), ("heads=1,2", "n_heads", [1, 2]), ("n_heads=1,2", "n_heads", [1, 2]),
    ("qkv=full,lattice", "qkv", ["full", "lattice"]), ("tied=true,false", "tied", [True, False]),
    ("dropout=0,0.5", "dropout", [0.0, 0.5]), ("dtype=float32,float64", "dtype", ["float32", "float64"]),
    ("threads=1,2", "threads", [1, 2]), ("preset=tiny,small", "preset", ["tiny", "small"])])
def test_any_size_or_setting_may_be_swept(quick, tmp_path, text, key, values):
    done = run(*SMALL, "--strategies", "cache", "--sweep", text, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["sweep"] == {key: values}


def test_parts_of_crystalline_attention_may_be_swept(quick):
    asked, _ = quick
    assert run(*SMALL, "--strategies", "cache", "--attention", "crystalline", "--sweep",
               "crystalline=rotation+bias,distance").exit_code == 0
    assert [job.architecture.crystalline for job, *_ in asked] == [("rotation", "bias"), ("distance",)]


@pytest.mark.parametrize("arguments, word", [
    (("--sweep", "steps=1,2"), "one of the keys"), (("--sweep", "seq_len"), "one of the keys"),
    (("--sweep", "seq_len=16,many"), "many"), (("--sweep", "seq_len="), "seq_len"), (("--sweep", "qkv=full,square"), "square"),
    (("--sweep", "seq_len=16,16"), "twice"), (("--sweep", "layers=1", "--sweep", "n_layers=2"), "twice"),
    (("--sweep", "tied=perhaps"), "perhaps"), (("--pareto", "1"), "1"), (("--peers", "missing.json"), "missing.json")])
def test_wrong_keys_and_values_are_usage_errors_before_any_work(quick, arguments, word):
    asked, _ = quick
    done = run(*SMALL, *arguments)
    assert done.exit_code == 2 and word in done.stderr and not asked


@pytest.mark.parametrize("text", ["seq_len=16,-1", "heads=4,3", "layers=1,0"])
def test_a_point_that_cannot_be_is_refused_before_any_work(quick, text):
    asked, _ = quick
    done = run(*SMALL, "--sweep", text)
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and "Traceback" not in done.stderr and not asked


def test_a_failed_strategy_of_a_sweep_is_a_row_that_says_so(quick, tmp_path):
    _, fate = quick
    fate["recompute"] = "killed by the system"
    done = run(*SMALL, "--strategies", "cache,recompute", "--sweep", "seq_len=16,32", "--json", tmp_path / "out.json",
               "--html", tmp_path / "out.html")
    assert done.exit_code == 1 and "seq_len=16: recompute: killed by the system" in done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["error"] for point in report["points"] for row in point["rows"]] == [None, "killed by the system"] * 2
    assert (tmp_path / "out.html").read_text().count("killed by the system") == 4  # two rows, two problems


@pytest.mark.parametrize("more", [(), ("--pareto", "2", "--layers", "1")], ids=["sweep", "sweep and pareto"])
def test_an_interrupted_sweep_keeps_what_there_is(quick, tmp_path, more):
    pytest.importorskip("matplotlib")
    asked, fate = quick
    fate[32, "recompute"] = "interrupt"
    done = run(*SMALL, "--strategies", "cache,recompute", "--sweep", "seq_len=16,32,64", *more, "--json", tmp_path / "out.json",
               "--html", tmp_path / "out.html", "--plot", tmp_path / "out.svg")
    assert done.exit_code == 130 and "Traceback" not in done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["interrupted"] and {job.seq_len for job, *_ in asked} == {16, 32}
    measured = [[row["step_seconds"] is not None for row in point["rows"][:2]] for point in report["points"]]
    assert measured == [[True, True], [True, False], [False, False]]
    assert all("interrupted" in row["error"] for row in report["points"][2]["rows"])
    assert "Interrupted" in (tmp_path / "out.html").read_text() and "</svg>" in (tmp_path / "out.svg").read_text()


def test_an_interrupted_comparison_writes_page_and_picture_too(quick, tmp_path):
    pytest.importorskip("matplotlib")
    _, fate = quick
    fate["recompute"] = "interrupt"
    done = run(*SMALL, "--strategies", "cache,recompute", "--html", tmp_path / "out.html", "--plot", tmp_path / "out.png")
    assert done.exit_code == 130
    assert "interrupted before it ran" in (tmp_path / "out.html").read_text() and (tmp_path / "out.png").stat().st_size > 1000


def test_what_cannot_be_written_keeps_no_other_file_from_it(quick, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    write = Path.write_text

    def full(path, text, **how):
        write(path, text[:100], **how)
        if path.suffix == ".html" or "recompute" in text:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    (tmp_path / "out.html").write_bytes(b"old")
    done = run(*SMALL, "--strategies", "cache,recompute", "--json", tmp_path / "out.json", "--html", tmp_path / "out.html",
               "--plot", tmp_path / "out.svg")
    assert done.exit_code == 1 and "equal to the last bit" in done.output
    for name in ("out.html", "out.json"):
        assert f"{name}: must take what is written there; got No space left on device" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.svg"]
    assert (tmp_path / "out.html").read_bytes() == b"old" and b"</svg>" in (tmp_path / "out.svg").read_bytes()


def test_a_pipe_gets_the_report_once_and_stays_a_pipe(quick, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert run(*SMALL, "--strategies", "cache,recompute", "--json", pipe).exit_code == 0
        assert len(json.loads(read.result())["rows"]) == 2 and pipe.is_fifo()


def test_a_file_is_written_through_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    write_json(tmp_path / "link.json", {})
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "there.json").read_text() == "{}\n"


def test_json_is_written_after_every_run(quick, tmp_path, monkeypatch):
    from cllm.cli import compare
    sizes = []
    monkeypatch.setattr(compare, "write_json", lambda path, report: sizes.append(
        sum(row["step_seconds"] is not None for point in points_of(report) for row in point["rows"])))
    run(*SMALL, "--strategies", "cache,recompute", "--sweep", "seq_len=16,32", "--json", tmp_path / "out.json")
    assert sizes == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("arguments", [("--sweep", "seq_len=16,32"), ("--sweep", "qkv=full,lattice", "--sweep", "layers=1,2"),
                                       ("--pareto", "3", "--layers", "1")], ids=["sweep", "two keys", "pareto"])
def test_pictures(quick, tmp_path, ending, arguments):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"out.{ending}"
    done = run(*SMALL, "--strategies", "cache,recompute", *arguments, "--plot", path)
    assert done.exit_code == 0, done.stderr
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5000 if ending == "png" else b"</svg>" in data and len(data) > 5000


def test_a_sweep_in_truth(tmp_path):
    """Two points in fresh processes, one strategy inexact."""
    path = tmp_path / "out.json"
    done = run(*SMALL, "--strategies", "bf16,cache", "--threads", 1, "--sweep", "seq_len=8,16", "--by-parameter",
               "--json", path)
    assert done.exit_code == 0, done.stderr
    assert done.output.count("blocks.1.mlp.fc2.weight") == 2 and "gradient error" in done.output
    arenas = []
    for point in json.loads(path.read_text())["points"]:
        close, exact = point["rows"]
        assert exact["gradient_error"] is None and 0 < close["gradient_error"]["relative_error"] < 0.01
        assert 0.9999 < close["gradient_error"]["cosine"] < 1 and close["gradient_error"]["reference"] == "cache"
        assert max(exact["timeline"]["bytes"]) <= exact["high_water_bytes"] == exact["arena_bytes"]
        assert {site["site"]: site["blocks"] for site in close["plan"]["sites"]}["ln1.y"] == ["bfloat16"] * 2
        arenas.append(exact["arena_bytes"])
    assert arenas[0] < arenas[1]


# budgets

def limits_of(names):
    """Of budgets by name, in MB."""
    return [float(name.removeprefix("budget:").removesuffix("MB")) for name in names]


def test_no_plan_is_measured_twice():
    curve = planned_curve(TINY)
    alone = budget_strategies(TINY, curve, 40)
    ledger = Ledger(program_of(TINY.architecture), TINY.workload)
    run = [ledger.build(decide(name, ledger))[0] for name in alone]
    assert len(alone) < 40 and all(one != other for place, one in enumerate(run) for other in run[place + 1:])
    least, *_, most = alone
    assert budget_strategies(TINY, curve, 2, ["budget:1MB", f"{least}"]) == (most,), "one that is refused is no plan"


def test_budgets_go_over_the_curve_from_its_least_to_its_most():
    curve = planned_curve(TINY)
    assert curve[0]["total_bytes"] < curve[-1]["total_bytes"]
    assert curve[0]["predicted_step_seconds"] > curve[-1]["predicted_step_seconds"]
    names = budget_strategies(TINY, curve, 5)
    plans = [plan(TINY.architecture, TINY.batch_size, TINY.seq_len, name, num_threads=1) for name in names]
    totals = [one.total_bytes for one in plans]
    cache = plan(TINY.architecture, TINY.batch_size, TINY.seq_len, "cache", num_threads=1)
    assert len(names) == 5 and totals == sorted(set(totals))
    assert plans[-1].predicted_seconds <= cache.predicted_seconds
    assert limits_of(names)[-1] * 1e6 - curve[-1]["total_bytes"] <= 10_001
    limits = limits_of(names)
    gaps = [b - a for a, b in zip(limits, limits[1:], strict=False)]
    assert 0 < limits[0] * 1e6 - curve[0]["total_bytes"] <= 10_001
    assert max(gaps) - min(gaps) <= 0.011 and all(t <= limit * 1e6 for t, limit in zip(totals, limits, strict=True))


def test_pareto_adds_budgets_and_the_curve(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cllm", "compare", "--pareto"])
    path = tmp_path / "out.json"
    done = run(*SMALL, "--strategies", "cache,recompute,selective", "--layers", 1, "--pareto", "--json", path)
    assert done.exit_code == 0, done.stderr
    report = json.loads(path.read_text())
    names = [row["strategy"] for row in report["rows"]]
    assert names[:3] == ["cache", "recompute", "selective"] and 5 < len(names) <= 9
    assert all(name.startswith("budget:") for name in names[3:]) and len(report["curve"]) > 3
    kinds = {(series.kind, series.measured): len(series.points) for series in memory_against_time(report)}
    assert kinds == {("curve", False): len(report["curve"]), ("strategies", False): 3, ("budgets", False): len(names) - 3,
                     ("strategies", True): 3, ("budgets", True): len(names) - 3}
    assert all(p.low == 0.1 and p.high == 0.3 for series in memory_against_time(report) if series.measured
               for p in series.points)
    assert report["predicted_from"] and report["date"] and report["command"] == "cllm compare --pareto"


# peers

def a_result(**changes):
    """What profiling/compare.py writes, the part of it that is read."""
    rows = [{"name": "cache", "seconds": {"median": 1.0}, "growth_bytes": 5},
            {"name": "torch eager", "seconds": {"median": 2.0}, "growth_bytes": 7_000_000},
            {"name": "torch compile", "seconds": {"median": 3.0}, "growth_bytes": None}]
    return {"config": json.loads(json.dumps(TINY.architecture.to_dict())), "batch_size": 2, "seq_len": 16,
            "threads": default_threads(), "date": "2026-11-22", "machine": {"cpu": "a processor"}, "rows": rows, **changes}


def test_points_of_peers(quick, tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(a_result()))
    done = run(*SMALL, "--strategies", "cache", "--peers", path, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    made = report["peers"][0]
    parameters = plan(TINY.architecture, 2, 16, optimizer="none").total_bytes
    assert [p["name"] for p in made["points"]] == ["torch eager"]
    assert 7_000_000 < made["points"][0]["memory_bytes"] < 7_000_000 + parameters
    assert memory_against_time(report)[-1].title == "PyTorch, measured 2026-11-22 on a processor"


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"seq_len": 8}, {"threads": 77}, {"config": {"n_layers": 9}},
                                    {"family": "crystalline"}])
def test_peers_of_another_job_are_refused(quick, tmp_path, change):
    asked, _ = quick
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(a_result(**change)))
    done = run(*SMALL, "--strategies", "cache", "--peers", path)
    assert done.exit_code == 1 and "must have measured the model" in done.stderr and not asked


def test_peers_stand_at_the_point_that_they_measured(quick, tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(a_result()))
    run(*SMALL, "--strategies", "cache", "--peers", path, "--sweep", "seq_len=8,16", "--json", tmp_path / "out.json")
    assert [len(p["peers"]) for p in json.loads((tmp_path / "out.json").read_text())["points"]] == [0, 1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1]}', json.dumps(a_result(rows=[]))])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "peers.json"
    path.write_text(text)
    with pytest.raises(DataError, match="--peers"):
        read_peers(path)


def test_float64_has_no_peers():
    from dataclasses import replace
    found = {**a_result(), "family": "gpt", "cpu": "", "points": [("torch eager", 1.0, 5)]}
    job = replace(TINY, threads=None)
    assert peers_of(job, found) is not None and peers_of(replace(job, dtype="float64"), found) is None


# plans and timelines as data

@pytest.mark.parametrize("name", ["cache", "recompute", "sqrt", "int8:selective", "cache@1", "cache:probs+logits"])
def test_a_timeline_by_kind_adds_up(name):
    program = program_of(TINY.architecture)
    ledger = Ledger(program, Workload(2, 16))
    made = decide(name, ledger)
    schedule, memory = ledger.build(made)
    timeline = describe_timeline(memory, program)
    assert timeline["operations"] == [op.name for op in schedule.ops]
    assert [sum(column) for column in zip(*timeline["by_kind"].values(), strict=True)] == timeline["bytes"]
    assert max(timeline["bytes"]) <= memory.arena_bytes and "other" not in timeline["by_kind"]
    assert ("probs" in timeline["by_kind"]) == ("probs" in name)


def words(name, batch=2, tmp="/tmp"):
    """Site -> words by block."""
    config = ModelConfig(13, 4, 16, 2, 24, 9)
    program = program_of(config)
    ledger = Ledger(program, Workload(batch, 8))
    made = decide(name, ledger)
    described = describe_plan(made, ledger.build(made)[1], program)
    return {site["site"]: site["blocks"] for site in described["sites"]}, described


def test_a_plan_as_a_grid():
    cache, _ = words("cache")
    assert cache["attn.probs"] == ["absent"] * 4
    assert all(blocks == [KEPT] * 4 for site, blocks in cache.items() if site != "attn.probs")
    recompute, described = words("recompute@1")
    assert recompute["mlp.act.y"] == [REBUILT] * 4 and recompute["res2.y"] == [KEPT] * 4
    assert (described["micro_batch"], described["micro_batches"]) == (1, 2)
    assert words("every:2")[0]["res2.y"] == [REBUILT, KEPT, REBUILT, KEPT]
    assert words("selective")[0]["ln1.y"] == [REBUILT] * 4 and words("selective")[0]["attn.y"] == [KEPT] * 4
    assert words("int8")[0]["attn.y"] == ["int8"] * 4 and words("int8")[0]["attn.lse"] == [KEPT] * 4
    assert words("cache:probs")[0]["attn.probs"] == [KEPT] * 4


def test_a_spilled_value_is_told(tmp_path):
    assert "spilled" in words(f"spill:{tmp_path}")[0]["attn.qkv.y"]


# what a sweep shows

def test_lines_of_a_sweep(quick):
    _, fate = quick
    fate["sqrt"] = "killed"
    points = [Experiment(Job(TINY.architecture, 2, T, 1), labelled(["cache", "sqrt"]), {"seq_len": T}) for T in (8, 16)]
    runs = run_experiments(points, 1, lambda *_: None, lambda *_: None)
    report = report_of(points, runs, {"cpu": "x"}, {"seq_len": [8, 16]})
    made = points_of(report)
    time, arena = (lines_of(made, quantity) for quantity in QUANTITIES)
    assert [line.strategy for line in time] == ["cache", "sqrt"] and time[0].measured == (0.2, 0.2)
    assert time[1].measured == (None, None) and arena[0].measured == arena[0].predicted
    assert places_of(made) == ([8, 16], ["8", "16"], "seq_len")
    assert all(point["machine"] == {"cpu": "x"} for point in made)


@pytest.mark.parametrize("settings, places, labels, name", [
    ([{"qkv": "full"}, {"qkv": "lattice"}], [0, 1], ["full", "lattice"], "qkv"),
    ([{"tied": True}, {"tied": False}], [0, 1], ["True", "False"], "tied"),
    ([{"a": 1, "b": 2}, {"a": 1, "b": 3}], [0, 1], ["1, 2", "1, 3"], "a, b")])
def test_places_of_a_sweep(settings, places, labels, name):
    assert places_of([{"setting": setting} for setting in settings]) == (places, labels, name)


def test_a_setting_in_words():
    assert experiments.setting_name({"seq_len": 8, "crystalline": ("rotation", "bias")}) == \
        "seq_len=8, crystalline=rotation+bias"


def test_json_keeps_plain_lists_on_one_line(tmp_path):
    data = {"a": [1, 2.5, -3e-7, None, True], "b": ["x, y", "[1,\n2]", '"q"\\'], "c": [], "d": [[1, 2], {"e": [3]}], "f": {}}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == data and '"a": [1, 2.5, -3e-07, null, true]' in text and text.count("\n") == 12


def test_draw_sweep_refuses_other_endings(tmp_path):
    with pytest.raises(DataError, match="png or .svg"):
        draw_sweep([], tmp_path / "a.jpg")


def test_several_numbers_of_threads_are_a_sweep_that_shows_how_steps_scale(quick, tmp_path):
    asked, _ = quick
    path, html = tmp_path / "out.json", tmp_path / "out.html"
    done = run(*SMALL, "--strategies", "cache,recompute", "--threads", "1,2,4", "--json", path, "--html", html)
    assert done.exit_code == 0, done.stderr
    assert [job.threads for job, strategy, _ in asked if strategy == "cache"] == [1, 2, 4]
    report = json.loads(path.read_text())
    assert report["sweep"] == {"threads": [1, 2, 4]}
    assert [row["speedup"] for point in report["points"] for row in point["rows"]] == [1.0] * 6
    assert "threads=4" in done.stdout and "1.00 (25%)" in done.stdout
    assert "Speed-up" in html.read_text()
    pytest.importorskip("matplotlib")
    draw_sweep(report["points"], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_speedups_are_against_the_first_number_of_threads_at_the_same_other_settings():
    def point(threads, seq_len, seconds):
        rows = [{"strategy": name, "step_seconds": None if value is None else {"median": value}}
                for name, value in zip(("cache", "recompute"), seconds, strict=True)]
        return {"setting": {"threads": threads, "seq_len": seq_len}, "rows": rows}

    points = [point(2, 8, (4.0, None)), point(2, 16, (6.0, 1.0)), point(8, 8, (1.0, 1.0)), point(8, 16, (2.0, None))]
    experiments._add_speedups(points, 2, "threads")
    assert [[row["speedup"] for row in one["rows"]] for one in points] == [[1, None], [1, 1], [4, None], [3, None]]


def test_a_number_of_threads_that_is_none_is_refused():
    done = run(*SMALL, "--threads", "1,two")
    assert done.exit_code == 2 and "'two' is not a valid integer" in done.stderr
