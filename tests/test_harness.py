"""The harness of profiling: pairing, ratios that say when they mean nothing, contestants in processes."""
import importlib
import json
import sys
from pathlib import Path

import pytest

PROFILING = Path(__file__).resolve().parents[1] / "profiling"


@pytest.fixture(scope="module")
def harness():
    """The module, from where the scripts themselves import it."""
    return _from_profiling("harness")


def _from_profiling(name):
    sys.path.insert(0, str(PROFILING))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PROFILING))


def test_ratio_is_paired(harness):
    # The machine slows to a third in the second round; side by side the ratio is 2 all along.
    fast, slow = harness.Timing(((1.0,), (3.0,), (1.1,))), harness.Timing(((2.0,), (6.0,), (2.2,)))
    ratio = harness.ratio(slow, fast)
    assert ratio.value == pytest.approx(2) and ratio.low == pytest.approx(2) and ratio.high == pytest.approx(2)


def test_ratio_says_when_intervals_overlap(harness):
    a, b = harness.Timing(((1.0,), (1.2,))), harness.Timing(((1.1,), (1.3,)))
    assert harness.ratio(a, b).intervals_overlap
    assert "intervals overlap" in str(harness.ratio(a, b)) and "intervals overlap" in f"{harness.ratio(a, b)}"


def test_ratio_is_plain_when_they_do_not(harness):
    a, b = harness.Timing(((1.0,), (1.2,))), harness.Timing(((2.0,), (2.4,)))
    assert not harness.ratio(a, b).intervals_overlap
    assert str(harness.ratio(a, b)) == "0.50 (0.50 to 0.50)"


def test_ratio_refuses_what_does_not_pair(harness):
    with pytest.raises(ValueError, match="cannot be paired"):
        harness.ratio(harness.Timing(((1.0,),)), harness.Timing(((1.0,), (1.0,))))


def test_timing_folds_rounds(harness):
    timing = harness.Timing(((1.0, 5.0, 2.0), (4.0, 3.0, 9.0), (7.0,)))
    assert timing.by_round == (2.0, 4.0, 7.0)
    assert (timing.min, timing.median, timing.max) == (1.0, 4.0, 9.0)


def test_interleave_takes_turns_back_and_forth(harness, monkeypatch):
    monkeypatch.setattr(harness, "PAUSE_SECONDS", 0.0)
    order = []

    def contestant(name):
        return lambda: order.append(name) or [1.0]

    timings = harness.interleave({name: contestant(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_burst_measures_each_call(harness):
    calls = []
    seconds = harness.burst(lambda: calls.append(1), 5)
    assert len(seconds) == len(calls) == 5 and all(one >= 0 for one in seconds)


def test_repeats_fill_a_burst(harness):
    assert harness.repeats_for(0.001) == 20
    assert harness.repeats_for(10.0) == 1
    assert harness.repeats_for(1e-9) == 200


def test_environment_caps_every_pool(harness, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    made = harness.environment(2)
    assert "OPENBLAS_CORETYPE" not in made
    assert made["OPENBLAS_THREAD_TIMEOUT"] == harness.OPENBLAS_SPIN
    assert made["OMP_NUM_THREADS"] == made["OPENBLAS_NUM_THREADS"] == made["MKL_NUM_THREADS"] == "2"
    assert "OMP_WAIT_POLICY" not in made and made["OMP_PROC_BIND"] == "close"
    monkeypatch.setattr(harness, "wait_policy", "passive")
    assert harness.environment(2)["OMP_WAIT_POLICY"] == "passive"


def test_peer_answers_and_survives_an_error(harness):
    with harness.Peer("kernels_numpy.py", threads=1) as peer:
        with pytest.raises(harness.PeerError, match="KeyError"):
            peer.ask("no such")
        assert peer.ask("prepare", kernel="no such", shape=[1], settings={"threads": 1}) is None
        made = peer.ask("prepare", kernel="linear_forward", shape=[8, 4, 4], settings={"threads": 1})
        assert made["digest"] > 0
        assert len(peer.ask("burst", repeats=3)) == 3


def test_a_dead_peer_is_an_error(harness, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text("raise SystemExit(3)\n")
    with harness.Peer(str(script), threads=1) as peer, pytest.raises(harness.PeerError, match="code 3"):
        peer.ask("burst", repeats=1)


def test_an_interpreter_that_is_not_there_is_named(harness):
    with pytest.raises(harness.PeerError, match="no interpreter /nowhere/python"):
        harness.Peer("torch_peer.py", 1, "/nowhere/python")


def test_kernel_cases_agree_with_numpy(harness):
    kernels = _from_profiling("kernels")
    shapes = {"linear": (40, 24, 17), "block": (40, 2, 8), "attention": (2, 2, 20, 8), "head": (300, 16, 50),
              "int8": (300, 256)}
    by_length = {1: (1000,), 2: (30, 24)}
    with harness.Peer("kernels_numpy.py", 1) as numpy, harness.Peer("kernels_cllm.py", 1) as ours:
        for kernel, cases in kernels.SHAPES.items():
            shape = next((one for name, one in shapes.items() if kernel.startswith(name)), by_length.get(len(cases[0])))
            digests = [peer.ask("prepare", kernel=kernel, shape=shape, settings={"threads": 1})["digest"]
                       for peer in (numpy, ours)]
            # What is rounded at random agrees as far as its mean does: 76 800 errors of half a step on codes of about 40.
            rel = 3e-4 if kernel == "int8_stochastic" else 1e-5
            assert digests[1] == pytest.approx(digests[0], rel=rel), kernel


def test_training_contestant(harness):
    from cllm.config import ModelConfig

    with harness.Peer("cllm_peer.py", 1) as peer:
        facts = peer.ask("make", config=ModelConfig.preset("tiny").to_dict(), batch_size=4, seq_len=16,
                         strategy="recompute@2", threads=1)
        assert facts["loss"] > 0 and facts["arena_bytes"] < facts["total_bytes"]
        parts, timeline = peer.ask("parts"), peer.ask("timeline")
        assert {kind for kind, _, _ in parts["operations"]} >= {"forward", "rebuild", "backward"}
        assert timeline["operations"] == [f"{kind} {name}" for kind, name, _ in parts["operations"]]
        assert [sum(one) for one in zip(*timeline["by_kind"].values(), strict=True)] == timeline["live_bytes"]
        assert max(timeline["live_bytes"]) <= facts["arena_bytes"]
        assert sum(nbytes for *_, nbytes in timeline["peak"]["alive"]) == max(timeline["live_bytes"])
        assert len(peer.ask("work")) == len(parts["operations"])
        assert peer.ask("watched_burst", repeats=1)["high_water_bytes"] == facts["arena_bytes"]


def test_work_of_the_kernels():
    kernels = _from_profiling("kernels")
    assert kernels.flops("linear_forward", (2, 3, 5)) == 60
    assert kernels.flops("attention", (1, 1, 2, 4)) == 7 * 2 * 4 * 3
    assert kernels.flops("adamw", (10,)) == 0
    assert set(kernels.WORDS) | {one for one in kernels.SHAPES if kernels.flops(one, kernels.SHAPES[one][0])} == \
        set(kernels.SHAPES)


def test_parts_of_a_step_are_folded_by_kind():
    speed = _from_profiling("speed")
    steps = [{"operations": [["forward", "blocks.0.mlp.fc1", 1.0], ["forward", "blocks.1.mlp.fc1", 2.0],
                             ["backward", "head", 4.0]], "zero_grad": 0.1, "clip": 0.2, "adamw": 0.3}]
    assert speed.by_kind(steps) == {"forward": 3.0, "backward": 4.0, "zero_grad": 0.1, "clip": 0.2, "adamw": 0.3}


def test_points_of_the_roofline():
    roofline = _from_profiling("roofline")
    step = [["forward", "blocks.0.fc", 2.0], ["forward", "ln_f", 1.0], ["forward", "blocks.1.fc", 3.0]]
    slower = [["forward", "blocks.0.fc", 4.0], ["forward", "ln_f", 1.0], ["forward", "blocks.1.fc", 3.0]]
    work = [[100.0, 10.0], [0.0, 8.0], [100.0, 10.0]]
    fc, ln = roofline.points("cache", [step, slower, slower], work, {"flops": 50.0, "memory": 16.0})
    assert (fc["step"], fc["calls"], fc["flops"], fc["bytes"], fc["seconds"]) == ("fc", 2, 200.0, 20.0, 7.0)
    assert fc["limit_seconds"] == 4.0 and fc["share"] == pytest.approx(4 / 7), "bound by arithmetic"
    assert ln["limit_seconds"] == 0.5 and ln["share"] == 0.5, "bound by memory"
    assert roofline.points("cache", [step], work, None)[0]["share"] is None
    assert roofline.points("cache", [step], work, None, ("rebuild",)) == []
    with pytest.raises(ValueError, match="2 operations"):
        roofline.points("cache", [step], work[:2], None)


def test_sizes_of_the_limits_are_few():
    limits = _from_profiling("limits")
    assert limits._rounded(0) == limits.SMALLEST_BYTES and limits._rounded(10**12) == limits.MEMORY_BYTES
    assert limits._rounded(100_000) == 131_072 == limits._rounded(131_072)


def test_kernels_take_the_shapes_of_a_model():
    kernels = _from_profiling("kernels")
    from cllm.config import ModelConfig

    plain = kernels.shapes_of(ModelConfig.preset("tiny").to_dict(), 2, 8)
    assert set(plain) == set(kernels.SHAPES) and plain["attention"] == ((2, 4, 8, 16),) and not plain["block_backward_weight"]
    assert plain["linear_forward"] == ((16, 64, 192), (16, 64, 64), (16, 64, 256), (16, 256, 64))
    assert plain["optimizer_list"] == kernels.ARRAYS[:1]
    lattice = kernels.shapes_of(ModelConfig.preset("tiny", qkv="lattice", out_proj=False).to_dict(), 2, 8)
    assert lattice["linear_forward"] == ((16, 64, 256), (16, 256, 64)) and lattice["block_backward_weight"] == ((16, 4, 16),)


@pytest.mark.parametrize("options, words", [
    (["--set", "n_heads=7"], "n_heads"), (["--set", "d_model=abc"], "must be of type int"),
    (["--set", "nonsense=1"], "settings are"),
    (["--rounds", "0"], "above zero"), (["--preset", "nonsense"], "invalid choice")])
def test_scripts_refuse_in_one_line(options, words, monkeypatch, capsys):
    jobs = _from_profiling("jobs")
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])

    def main():
        return len(jobs.config_of(jobs.parsed(jobs.parser("words", "cache", 3))))

    try:
        code = jobs.run(main)
    except SystemExit as left:  # as argparse does, or with the words as its code
        code = left.code
    said = capsys.readouterr().err.strip() or code
    assert code and words in said.splitlines()[-1]
    assert sum(not line.startswith(("usage", " ")) for line in said.splitlines()) == 1


def test_a_setting_is_read_like_its_default(monkeypatch):
    jobs = _from_profiling("jobs")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--preset", "tiny", "--set", "tied=no", "--set", "norm_eps=1e-3",
                                      "--set", "crystalline=bias+distance", "--set", "attention=crystalline",
                                      "--seq-len", "300"])
    config = jobs.config_of(jobs.parsed(jobs.parser("words", "cache", 3)))
    assert (config["tied"], config["norm_eps"], config["max_seq_len"]) == (False, 1e-3, 300)
    assert set(config["crystalline"]) == {"bias", "distance"}


def test_declared_work_does_not_depend_on_the_cut_of_the_batch():
    import cllm
    from cllm.costs import op_work
    from cllm.ledger import Ledger
    from cllm.models.wiring import wire
    from cllm.workload import Workload

    config, batch, time = cllm.ModelConfig(50, 2, 16, 2, 24, 9), 5, 8
    ledger = Ledger(wire(config), Workload(config, batch, time, threads=1))
    sums = []
    for micro, sizes in ((None, [5]), (2, [2, 2, 1])):
        schedule, _ = ledger.build(cllm.CacheAll(micro_batch=micro).decide(ledger))
        sums.append(sum(op_work(op, schedule, ledger.workload, size)[0] for size in sizes for op in schedule.ops))
        fc1 = next(op for op in schedule.ops if op.name == "forward blocks.0.mlp.fc1")
        rows = sizes[-1] * time
        assert op_work(fc1, schedule, ledger.workload, sizes[-1]) == (
            2 * rows * 16 * 24, 4 * (rows * 16 + rows * 24 + 16 * 24 + 24))
    assert sums[0] == sums[1] > 0


def test_interval_of_a_median(harness):
    assert harness.median_interval([5.0, 1.0, 3.0]) == (3.0, 1.0, 5.0)
    assert harness.median_interval([*range(6)]) == (2.5, 0, 5)
    assert harness.median_interval([*range(11)]) == (5, 1, 9), "1 + 11 of 2048 lie below: 0.6 %; with 55 more it were 3.3 %"
    # Of all orders in which 9 values can lie about the true median, at least 95 % have it inside.
    low, high = harness.median_interval([*range(9)])[1:]
    inside = sum(low < below <= high for signs in range(2 ** 9) for below in [signs.bit_count()])
    assert inside / 2 ** 9 >= 0.95


def test_operations_of_a_timeline_stand_where_they_ran():
    memory = _from_profiling("memory")
    parts = {"operations": [["forward", "a", 1.0], ["forward", "b", 3.0]]}
    assert memory.ends(2, parts) == [0.25, 1.0]
    assert memory.ends(4, parts) == [0.25, 0.5, 0.75, 1.0]


def test_what_is_alive_at_the_peak_is_a_table():
    memory = _from_profiling("memory")
    alive = [["blocks.*.fc.y", 1, "kept", 8], ["blocks.*.fc.y", 0, "kept", 8], ["head.chunk", None, "scratch", 20],
             ["blocks.*.fc.y", 1, "kept", 2]]
    assert memory.by_site(alive) == ([None, 0, 1], [("head.chunk", "scratch", {None: 20}, 20),
                                                    ("blocks.*.fc.y", "kept", {1: 10, 0: 8}, 18)])


def test_samples_inside_a_run_are_left_out():
    memory = _from_profiling("memory")
    samples = [[moment, size] for moment, size in enumerate((5, 5, 5, 7, 7, 7, 7, 5))]
    assert memory.changes(samples) == [[0, 5], [2, 5], [3, 7], [6, 7], [7, 5]]
    assert memory.changes(samples[:1]) == samples[:1] and memory.changes([]) == []


def test_json_keeps_lists_of_plain_values_on_a_line(harness):
    data = {"a": [1, 2.5, None], "b": [["x [", "y\n ]", 3], [1], []], "c": {"d": ["{", "]"], "e": "×"}}
    text = harness.json_text(data)
    assert json.loads(text) == data and "[1, 2.5, null]" in text and "×" in text
    assert len(text.splitlines()) < len(json.dumps(data, indent=1).splitlines())


def test_verdicts_on_a_predicted_total():
    memory = _from_profiling("memory")
    row = {"arena_bytes": 10**8, "high_water_bytes": 10**8, "total_bytes": 2 * 10**8, "sampled_over_predicted": 1.029,
           "growth_bytes": 2 * 10**8 + 6_000_000}
    assert memory.verdicts(row) == {"arena": True, "sampled": True, "growth": True}
    bad = {**row, "high_water_bytes": 10**8 - 64, "sampled_over_predicted": 0.96, "growth_bytes": 2 * 10**8 + 6_300_000}
    assert memory.verdicts(bad) == {"arena": False, "sampled": False, "growth": False}
    unknown = {**row, "sampled_over_predicted": None, "growth_bytes": None}
    assert memory.verdicts(unknown) == {"arena": True, "sampled": None, "growth": None}


def test_budgets_are_spread_over_the_bytes():
    predictions = _from_profiling("predictions")
    curve = [{"total_bytes": nbytes} for nbytes in (10, 11, 12, 50, 51, 100)]
    assert [one["total_bytes"] for one in predictions.spread(curve, 4)] == [10, 12, 51, 100]
    assert predictions.spread(curve, 99) == curve and predictions.spread([], 3) == []
    assert predictions.spread(curve, 1) == curve[:1] and predictions.spread(curve, 0) == []


def test_verdicts_on_budgets(harness):
    predictions = _from_profiling("predictions")

    def measured(**seconds):
        timings = {name: harness.Timing(tuple((value * drift,) for drift in (1.0, 1.5, 0.9, 1.2, 1.1, 1.0, 2.0)))
                   for name, value in seconds.items()}
        sizes = {"least": 100, "int8": 105, "recompute": 110, "middle": 200, "cache": 300, "most": 400}
        rows = [{"name": name, "is_budget": name in ("least", "middle", "most"), "seconds": timing.to_dict(),
                 "exact": name != "int8", "arena_bytes": sizes[name], "total_bytes": sizes[name]}
                for name, timing in timings.items()]
        return predictions.judged(rows, timings)

    good = measured(least=3.0, middle=2.0, most=1.02, cache=1.0, recompute=2.5, int8=0.5)
    assert good["falls"] and good["within"]
    assert [(one["budget"], one["best"]) for one in good["against_best"]] == [("middle", "recompute"), ("most", "cache")]
    rising = measured(least=3.0, middle=2.0, most=2.1, cache=2.2, recompute=2.5)
    assert not rising["falls"] and rising["within"] and [one["rises"] for one in rising["steps"]] == [False, True]
    beaten = measured(least=3.0, middle=2.7, most=1.0, cache=1.0, recompute=2.5)
    assert beaten["falls"] and not beaten["within"]
    assert measured(cache=1.0, least=2.0) is None


def test_one_rise_in_many_steps_must_be_surer_than_one_in_one(harness):
    predictions = _from_profiling("predictions")

    def rises(budgets):
        """The last of so many is slower in eight rounds of nine; the others are all equal."""
        timings = {str(n): harness.Timing(tuple((1.0,) for _ in range(9))) for n in range(budgets - 1)}
        timings["last"] = harness.Timing(tuple((1.02 if number else 0.99,) for number in range(9)))
        rows = [{"name": name, "is_budget": True, "exact": True, "total_bytes": size, "arena_bytes": size,
                 "seconds": timing.to_dict()} for size, (name, timing) in enumerate(timings.items())]
        return [one["rises"] for one in predictions.judged(rows, timings)["steps"]]

    assert rises(2) == [True] and rises(8) == 7 * [False]


def test_result_is_complete_in_itself(harness, tmp_path):
    path = harness.write_result("speed", 1, {"rows": []}, tmp_path / "result.json")
    written = json.loads(path.read_text())
    assert {"script", "date", "machine", "commit", "threads", "rows"} <= set(written)
    assert written["machine"]["versions"]["flags"] is not None
    assert harness.result_path("speed", ".json").parent == harness.RESULTS


@pytest.mark.parametrize("script", ["speed", "memory", "kernels", "compare", "crystalline", "overhead",
                                    "predictions", "depth", "training"])
def test_scripts_have_help(harness, script):
    import subprocess

    done = subprocess.run([sys.executable, str(PROFILING / f"{script}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--threads" in done.stdout and "--out" in done.stdout, done.stderr


def test_a_point_of_pytorch_is_beaten_by_what_is_faster_with_no_more_growth(harness):
    compare = _from_profiling("compare")

    def row(name, growth, ratio):
        return {"name": name, "growth_bytes": growth, "ratio": {"value": ratio}}

    rows = [row("large", 9, 0.5), row("slow", 3, 2.0), row("both", 5, 1.0), row("unknown", None, 0.1),
            row("torch eager", 5, 1.5)]
    compare._judge(rows)
    assert rows[-1]["beaten_by"] == ["both"] and all("beaten_by" not in one for one in rows[:-1])


def test_every_group_of_contestants_has_the_first(harness):
    compare = _from_profiling("compare")

    assert compare._groups(list("abcdef"), 3) == [["a", "b", "c"], ["a", "d", "e"], ["a", "f"]]
    assert compare._groups(["a"], 1) == [["a"]]


def test_share_of_a_copy_is_the_time_of_the_copy_over_that_of_the_kernel(harness):
    kernels = _from_profiling("kernels")

    class Fake:
        def __init__(self, seconds):
            self.seconds = seconds

        def ask(self, what, repeats):
            return [self.seconds] * repeats

        def look(self, nbytes):
            pass

    peers = {"cllm": Fake(4.0), "copy": Fake(1.0)}
    row = kernels._row("scale", (8,), peers, {name: {"seconds": one.seconds} for name, one in peers.items()}, 1, Fake(0.0))
    assert row["share_of_copy"]["value"] == 0.25 and row["time_against"] == {}
