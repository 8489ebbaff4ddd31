"""What the profiling scripts make of what was measured, and what they refuse."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_model
import pytest
from profiling_scripts import FOLDER, IN_A_CHECKOUT, script

import cllm
from cllm.models.llama import Llama
from cllm.strategies import STRATEGIES

harness = script("harness")


def test_work_of_the_kernels():
    kernels = script("kernels")
    assert kernels.flops("linear_forward", (2, 3, 5)) == 60
    assert kernels.flops("attention", (1, 1, 2, 4)) == 7 * 2 * 4 * 3
    assert kernels.flops("adamw", (10,)) == 0
    assert set(kernels.WORDS) | {one for one in kernels.SHAPES if kernels.flops(one, kernels.SHAPES[one][0])} == \
        set(kernels.SHAPES)


def test_parts_of_a_step_are_folded_by_kind():
    speed = script("speed")
    steps = [{"operations": [["forward", "blocks.0.mlp.fc1", 1.0], ["forward", "blocks.1.mlp.fc1", 2.0],
                             ["backward", "head", 4.0]], "zero_grad": 0.1, "clip": 0.2, "adamw": 0.3}]
    assert speed.by_kind(steps) == {"forward": 3.0, "backward": 4.0, "zero_grad": 0.1, "clip": 0.2, "adamw": 0.3}


def test_parts_that_are_not_of_the_same_step_are_named():
    speed = script("speed")

    def row(name, *parts):
        return {"name": name, "seconds": {"median": 1.0}, "by_kind": dict(enumerate(parts))}

    assert speed.apart([row("cache", 0.5, 0.7), row("recompute", 0.5, 0.5, 0.3), row("sqrt", 0.4, 0.3)]) == [
        "recompute: the parts add up to 1.30 of the whole step", "sqrt: the parts add up to 0.70 of the whole step"]


def test_parts_are_taken_in_each_round():
    speed = script("speed")

    class Fake:
        def ask(self, what, **_arguments):
            return [0.5] if what == "burst" else {"operations": []}

    parts = []
    burst = speed._with_parts(Fake(), parts)
    assert burst() == [0.5] == burst() and len(parts) == 2


def test_points_of_the_roofline():
    roofline = script("machine.roofline")
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


def test_only_what_was_drawn_is_told_of(tmp_path):
    pytest.importorskip("matplotlib")
    draw = script("draw")
    path = tmp_path / "speed.json"
    nothing = {"script": "speed", "rows": [], "points": [], "roofs": None, "batch_size": 1, "seq_len": 1, "threads": 1,
               "config": {"n_layers": 1, "d_model": 1, "n_heads": 1, "d_ff": 1, "vocab_size": 1}}
    row = {"name": "cache", "seconds": {"median": 1.0}, "by_kind": {"forward": 1.0}}
    (tmp_path / "speed.png").write_bytes(b"an older picture")
    path.write_text(json.dumps(nothing))
    assert draw.draw(path) == [] and draw.told(path, []) == f"\nwritten: {path}"
    path.write_text(json.dumps({**nothing, "rows": [row]}))
    assert draw.draw(path) == [tmp_path / "speed.png"]
    assert draw.told(path, draw.draw(path)) == f"\nwritten: {path}, {tmp_path / 'speed.png'}"


@IN_A_CHECKOUT
def test_every_picture_names_its_workload(monkeypatch, tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    draw, drawn = script("draw"), []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    results = {}
    for path in sorted(draw.RESULTS.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(data.get("script", draw.COMPARE), (path, data))
    for name, pictures in draw.PICTURES.items():
        for ending, picture in pictures.items() if name in results else ():  # some are yet to be measured
            path, data = results[name]
            picture(data, tmp_path / f"{path.stem}{ending}.png")
            words = [drawn[-1].get_suptitle(), *(axis.get_title() for axis in drawn[-1].axes)]
            assert any(data["machine"]["cpu"] in one and "thread" in one for one in words), (name, ending)
            sizes = script("words").workload(data) if "seq_len" in data else []
            assert all(any(size in one for one in words) for size in sizes), (name, ending)
    assert len(drawn) == sum(len(pictures) for name, pictures in draw.PICTURES.items() if name in results) > 8


def test_what_is_rounded_at_random_differs_by_chance():
    kernels = script("kernels")
    assert kernels.tolerance("int8_compress", (1, 64)) == kernels.TOLERANCE
    assert abs(31.75 - 31.625) <= kernels.tolerance("int8_stochastic", (1, 64)) * 31.75 < 1
    assert kernels.tolerance("int8_stochastic", (8192, 2048)) < 2 * kernels.TOLERANCE


def test_sizes_of_the_limits_are_few():
    limits = script("machine.limits")
    assert limits._rounded(0) == limits.SMALLEST_BYTES and limits._rounded(10**12) == limits.MEMORY_BYTES
    assert limits._rounded(100_000) == 131_072 == limits._rounded(131_072)


def test_kernels_take_the_shapes_of_a_model():
    kernels = script("kernels")
    from cllm.models.gpt import ModelConfig

    plain = kernels.shapes_of(ModelConfig.preset("tiny").to_dict(), 2, 8)
    assert set(plain) == set(kernels.SHAPES) and plain["attention"] == ((2, 4, 8, 16),) and not plain["block_backward_weight"]
    assert plain["linear_forward"] == ((16, 64, 192), (16, 64, 64), (16, 64, 256), (16, 256, 64))
    assert plain["optimizer_list"] == kernels.ARRAYS[:1]
    lattice = kernels.shapes_of(ModelConfig.preset("tiny", qkv="lattice", out_proj=False).to_dict(), 2, 8)
    assert lattice["linear_forward"] == ((16, 64, 256), (16, 256, 64)) and lattice["block_backward_weight"] == ((16, 4, 16),)


@pytest.mark.parametrize("asked, words", [
    (["--set", "n_heads=7"], "n_heads"), (["--set", "d_model=abc"], "must be a value of int"),
    (["--set", "nonsense=1"], "must be a field of ModelConfig"), (["--model", "nonsense"], "--model: must be one of gpt"),
    (["--model", "own_model:Mine", "--preset", "tiny"], "is for families that derive from ModelConfig"),
    (["--rounds", "0"], "above zero"), (["--preset", "nonsense"], "invalid choice")])
def test_scripts_refuse_in_one_line(asked, words, monkeypatch, capsys):
    options = script("jobs.options")
    monkeypatch.setattr(sys, "argv", ["speed.py", *asked])

    def main():
        return len(script("jobs.models").asked(options.parsed(options.parser("words", "cache", 3))))

    try:
        code = options.run(main)
    except SystemExit as left:  # as argparse does, or with the words as its code
        code = left.code
    said = capsys.readouterr().err.strip() or code
    assert code and words in said.splitlines()[-1]
    assert sum(not line.startswith(("usage", " ")) for line in said.splitlines()) == 1


def test_a_setting_is_read_like_its_default(monkeypatch):
    options = script("jobs.options")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--preset", "tiny", "--set", "tied=no", "--set", "norm_eps=1e-3",
                                      "--set", "crystalline=bias+distance", "--set", "attention=crystalline",
                                      "--seq-len", "300"])
    arguments = options.parsed(options.parser("words", "cache", 3))
    model = script("jobs.models").asked(arguments)
    config = model["config"]
    assert (config["tied"], config["norm_eps"], config["max_seq_len"]) == (False, 1e-3, 300)
    assert options.title(arguments, model).startswith("2 layers, C 64, H 4, F 256, V 256; batch 8 × 300; ")
    assert set(config["crystalline"]) == {"bias", "distance"}


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_scripts_measure_the_shapes_of_a_model_in_other_peoples_files(monkeypatch, name):
    from cllm.pretrained import read_architecture

    options, models, place = script("jobs.options"), script("jobs.models"), Path(__file__).parents[1] / "golden" / "hf" / name
    monkeypatch.setattr(sys, "argv", ["speed.py", "--model", str(place), "--set", "max_seq_len=32", "--seq-len", "16"])
    model = models.asked(options.parsed(options.parser("words", "cache", 3)))
    expected = read_architecture(place, max_seq_len=32)[0]
    assert models.architecture(json.loads(json.dumps(model))) == expected


def test_scripts_measure_a_model_of_a_user(monkeypatch):
    options, models = script("jobs.options"), script("jobs.models")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--model", f"{own_model.__file__}:Pictures", "--set", "C=5",
                                      "--batch-size", "4"])
    arguments = options.parsed(options.parser("words", "cache", 3))
    model = models.asked(arguments)
    assert models.architecture(json.loads(json.dumps(model))) == own_model.Pictures(C=5)
    assert options.job_of(arguments, model) == {"family": "own_model:Pictures", "config": model["config"], "seq_len": None,
                                                "model": "Pictures, pixels 12, C 5, classes 4", "batch_size": 4, "rounds": 3}
    assert options.title(arguments, model).startswith("Pictures, pixels 12, C 5, classes 4; batch 4; float32")
    with options.trainings(arguments, model, ["per-block@2"]) as (made, failed):
        assert failed == {"per-block@2": f"ConfigError: strategy: must begin with one of {', '.join(STRATEGIES)}; "
                          "got 'per-block@2'. Check the spelling."}
    with options.trainings(arguments, model, ["recompute"]) as (made, failed):
        peer, facts = made["recompute"]
        assert not failed and facts["loss"] > 0 and len(peer.ask("burst", repeats=2)) == 2
        assert len(peer.ask("parts")["operations"]) == len(peer.ask("work"))


def test_declared_work_does_not_depend_on_the_cut_of_the_batch():
    import cllm
    from cllm.models.architecture import program_of
    from cllm.planner.costs import op_work
    from cllm.planner.ledger import Ledger
    from cllm.program.workload import Workload

    config, batch, time = cllm.ModelConfig(50, 2, 16, 2, 24, 9), 5, 8
    ledger = Ledger(program_of(config), Workload(batch, time, threads=1))
    sums = []
    for micro, sizes in ((None, [5]), (2, [2, 2, 1])):
        schedule, _ = ledger.build(cllm.CacheAll(micro_batch=micro).decide(ledger))
        sums.append(sum(op_work(op, schedule, ledger.workload, size)[0] for size in sizes for op in schedule.ops))
        fc1 = next(op for op in schedule.ops if op.name == "forward blocks.0.mlp.fc1")
        rows = sizes[-1] * time
        assert op_work(fc1, schedule, ledger.workload, sizes[-1]) == (
            2 * rows * 16 * 24, 4 * (rows * 16 + rows * 24 + 16 * 24 + 24))
    assert sums[0] == sums[1] > 0


def test_operations_of_a_timeline_stand_where_they_ran():
    memory = script("memory")
    parts = {"operations": [["forward", "a", 1.0], ["forward", "b", 3.0]]}
    assert memory.ends(2, parts) == [0.25, 1.0]
    assert memory.ends(4, parts) == [0.25, 0.5, 0.75, 1.0]


def test_what_is_alive_at_the_peak_is_a_table():
    memory = script("memory")
    alive = [["blocks.*.fc.y", 1, "kept", 8], ["blocks.*.fc.y", 0, "kept", 8], ["head.chunk", None, "scratch", 20],
             ["blocks.*.fc.y", 1, "kept", 2]]
    assert memory.by_site(alive) == ([None, 0, 1], [("head.chunk", "scratch", {None: 20}, 20),
                                                    ("blocks.*.fc.y", "kept", {1: 10, 0: 8}, 18)])


def test_samples_inside_a_run_are_left_out():
    memory = script("memory")
    samples = [[moment, size] for moment, size in enumerate((5, 5, 5, 7, 7, 7, 7, 5))]
    assert memory.changes(samples) == [[0, 5], [2, 5], [3, 7], [6, 7], [7, 5]]
    assert memory.changes(samples[:1]) == samples[:1] and memory.changes([]) == []


def test_verdicts_on_a_predicted_total():
    memory = script("memory")
    row = {"arena_bytes": 10**8, "high_water_bytes": 10**8, "total_bytes": 2 * 10**8, "sampled_over_predicted": 1.029,
           "growth_bytes": 2 * 10**8 + 6_000_000}
    assert memory.verdicts(row) == {"arena": True, "sampled": True, "growth": True}
    bad = {**row, "high_water_bytes": 10**8 - 64, "sampled_over_predicted": 0.96, "growth_bytes": 2 * 10**8 + 6_300_000}
    assert memory.verdicts(bad) == {"arena": False, "sampled": False, "growth": False}
    unknown = {**row, "sampled_over_predicted": None, "growth_bytes": None}
    assert memory.verdicts(unknown) == {"arena": True, "sampled": None, "growth": None}


def test_budgets_are_spread_over_the_bytes():
    predictions = script("predictions")
    curve = [{"total_bytes": nbytes} for nbytes in (10, 11, 12, 50, 51, 100)]
    assert [one["total_bytes"] for one in predictions.spread(curve, 4)] == [10, 12, 51, 100]
    assert predictions.spread(curve, 99) == curve and predictions.spread([], 3) == []
    assert predictions.spread(curve, 1) == curve[:1] and predictions.spread(curve, 0) == []


def test_verdicts_on_budgets():
    predictions = script("predictions")

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


def test_one_rise_in_many_steps_must_be_surer_than_one_in_one():
    predictions = script("predictions")

    def rises(budgets):
        """The last of so many is slower in eight rounds of nine; the others are all equal."""
        timings = {str(n): harness.Timing(tuple((1.0,) for _ in range(9))) for n in range(budgets - 1)}
        timings["last"] = harness.Timing(tuple((1.02 if number else 0.99,) for number in range(9)))
        rows = [{"name": name, "is_budget": True, "exact": True, "total_bytes": size, "arena_bytes": size,
                 "seconds": timing.to_dict()} for size, (name, timing) in enumerate(timings.items())]
        return [one["rises"] for one in predictions.judged(rows, timings)["steps"]]

    assert rises(2) == [True] and rises(8) == 7 * [False]


@pytest.mark.parametrize("name", ["speed", "memory", "kernels", "compare", "crystalline", "overhead",
                                  "predictions", "depth", "training"])
def test_scripts_have_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "--threads" in out and "--out" in out
    begun = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('\nif __name__ == "__main__":\n')[1]
    assert begun in ("    sys.exit(main())\n", "    sys.exit(options.run(main))\n")


def test_a_script_is_a_program():
    done = subprocess.run([sys.executable, str(FOLDER / "depth.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--threads" in done.stdout, done.stderr


def test_a_point_of_pytorch_is_beaten_by_what_is_faster_with_no_more_growth():
    compare = script("compare")

    def row(name, growth, ratio):
        return {"name": name, "growth_bytes": growth, "ratio": {"value": ratio}}

    rows = [row("large", 9, 0.5), row("slow", 3, 2.0), row("both", 5, 1.0), row("unknown", None, 0.1),
            row("torch eager", 5, 1.5)]
    compare._judge(rows)
    assert rows[-1]["beaten_by"] == ["both"] and all("beaten_by" not in one for one in rows[:-1])


def test_every_group_of_contestants_has_the_first():
    compare = script("compare")

    assert compare._groups(list("abcdef"), 3) == [["a", "b", "c"], ["a", "d", "e"], ["a", "f"]]
    assert compare._groups(["a"], 1) == [["a"]]


def test_share_of_a_copy_is_the_time_of_the_copy_over_that_of_the_kernel():
    kernels = script("kernels")

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


@pytest.mark.parametrize("more, reason", [(["--model", "gpt"], "--lora: name a model in other people's files")])
def test_adapters_are_of_a_model_in_files(more, reason, monkeypatch):
    compare = script("compare")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--lora", "2", "--preset", "tiny", *more])
    with pytest.raises(SystemExit, match=reason):
        compare.main()


def test_contestants_train_the_adapters_of_a_base_that_is_mapped(tmp_path):
    models, process = script("jobs.models"), script("peers.process")
    base = Llama(vocab_size=300, n_layers=1, d_model=16, n_heads=4, d_ff=24, max_seq_len=32, n_kv_heads=2, tied=True)
    cllm.Model(base, seed=1).save_pretrained(tmp_path / "model")
    plain = models.told(base, str(tmp_path / "model"))
    model = models.adapted(plain, 2, str(tmp_path / "base"))
    assert models.recorded(model)["lora"] == 2 and "base" not in models.recorded(model)
    made = models.weighted(model)
    assert not made.parameters["tok_emb.weight"].flags.writeable and len(made.program.trained) == 2
    with process.Peer("peers/cllm/steps.py", 1) as peer:
        facts = peer.ask("make", model=model, batch_size=1, seq_len=16, strategy="recompute", threads=1)
        assert peer.ask("watched_burst", repeats=1)["high_water_bytes"] == facts["arena_bytes"]
        peer.ask("export", model=model, batch_size=1, seq_len=16, weights=str(tmp_path / "weights"),
                 data=str(tmp_path / "data.npz"))
    theirs = cllm.load_adapter(cllm.from_pretrained(tmp_path / "weights"), tmp_path / "weights" / "adapter")
    assert all((values == theirs.parameters[name]).all() for name, values in made.parameters.items())
    executor, optimizer = cllm.Executor(made, 1, 16), cllm.AdamW(made, lr=3e-4)
    with np.load(tmp_path / "data.npz") as feeds:
        for _ in range(2):
            made.zero_grad()
            loss = executor.loss_and_grad(feeds["tokens"], feeds["targets"])
            cllm.clip_grad_norm(made, 1.0)
            optimizer.step()
    assert facts["loss"] == loss  # of the second step: the first is that of the base
