"""The command line: every command runs, writes what it is asked, and fails in one clear message."""
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cllm.cli import main
from cllm.models.gpt import ModelConfig

COMMANDS = sorted(main.commands)
SMALL_JOB = ["--preset", "tiny", "--batch-size", "2", "--seq-len", "16"]


def run(*arguments):
    """Run a command inside this process; its output and errors are kept apart."""
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_commands_are_there():
    assert {"compare", "plan", "memory", "gradcheck", "info"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    done = run(command, "--help")
    assert done.exit_code == 0 and "--json" in done.output and "Usage:" in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_json_into_a_missing_directory_is_refused_before_the_work(command, tmp_path):
    done = run(command, "--json", tmp_path / "missing" / "out.json")
    assert done.exit_code == 2 and "no directory" in done.stderr


def test_module_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "cllm", "info"], capture_output=True, text=True)
    assert done.returncode == 0 and "numpy" in done.stdout and done.stderr == ""


def test_info_json(tmp_path):
    assert run("info", "--json", tmp_path / "info.json").exit_code == 0
    assert "openmp" in json.loads((tmp_path / "info.json").read_text())


def test_compare_end_to_end(tmp_path):
    path = tmp_path / "out.json"
    done = run("compare", *SMALL_JOB, "--steps", 1, "--rounds", 1, "--strategies", "cache,recompute", "--threads", 1,
               "--json", path)
    assert done.exit_code == 0, done.stderr
    assert "equal to the last bit" in done.output and "recompute" in done.output
    report = json.loads(path.read_text())
    assert [row["strategy"] for row in report["rows"]] == ["cache", "recompute"]
    assert not list(tmp_path.glob("*partial*"))


def test_compare_plan_and_memory_in_bfloat16(tmp_path):
    """By the width of what is kept; the cut makes the scratch of products small beside it."""
    arenas = {}
    for compute in ("float32", "bfloat16"):
        for command, more in (("plan", ["--strategy", "cache"]), ("memory", [])):
            done = run(command, "--preset", "tiny", "--compute", compute, *more, "--json", tmp_path / "out.json")
            assert done.exit_code == 0, done.stderr
            found = json.loads((tmp_path / "out.json").read_text())
            arenas[command, compute] = found.get("arena_bytes") or found["total_bytes"]["arena"]
    assert arenas["plan", "bfloat16"] == arenas["memory", "bfloat16"] < 0.8 * arenas["plan", "float32"]
    done = run("compare", *SMALL_JOB, "--steps", 1, "--rounds", 1, "--strategies", "recompute,cache@1", "--threads", 1,
               "--sweep", "compute=float32,bfloat16", "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    digests = [[row["grad_sha256"] for row in point["rows"]] for point in points]
    assert [len(set(found)) for found in digests] == [1, 1] and digests[0] != digests[1]
    assert "products in bfloat16" in done.output
    assert "must be 'float32' where dtype is float64" in run("plan", "--compute", "bfloat16", "--dtype", "float64").stderr


def test_compare_on_a_file_with_other_settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("What a fine day. " * 30)
    done = run("compare", *SMALL_JOB, "--layers", 1, "--qkv", "lattice", "--no-tied", "--text", text, "--steps", 1,
               "--rounds", 1, "--strategies", "recompute", "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.stderr
    config = json.loads((tmp_path / "out.json").read_text())["config"]
    assert (config["n_layers"], config["qkv"], config["tied"]) == (1, "lattice", False)


def test_compare_draws(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("compare", *SMALL_JOB, "--steps", 1, "--rounds", 1, "--strategies", "cache", "--plot",
               tmp_path / "a.png")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_compare_fails_when_a_strategy_fails():
    done = run("compare", *SMALL_JOB, "--steps", 1, "--rounds", 1, "--strategies", "budget:1KB", "--no-calibrate")
    assert done.exit_code == 1 and "budget:1KB: MemoryBudget" in done.stderr and "Traceback" not in done.stderr


def test_a_text_that_is_too_short_is_one_error_before_anything_runs(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    done = run("compare", *SMALL_JOB, "--text", tmp_path / "short.txt")
    assert done.exit_code == 1 and done.stderr.startswith("Error: batch(tokens=...)") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--strategies", "cache,nonsense"), ("--strategies", "cache,cache"),
                                       ("--strategies", ","), ("--steps", "0"), ("--preset", "huge"),
                                       ("--qkv", "diagonal"), ("--batch-size", "many")])
def test_compare_usage_errors(arguments):
    done = run("compare", *arguments)
    assert done.exit_code == 2 and "Error" in done.stderr


@pytest.mark.parametrize("command", ["compare", "plan", "memory"])
@pytest.mark.parametrize("arguments", [("--d-model", "510"), ("--layers", "0"), ("--batch-size", "-1"),
                                       ("--threads", "0"), ("--dropout", "1.5")])
def test_errors_of_cllm_are_one_message(command, arguments):
    done = run(command, *arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ") and "got" in done.stderr and done.stderr.count("\n") == 1


def test_a_plot_of_an_unknown_kind_is_refused_before_the_work(tmp_path):
    done = run("compare", "--plot", tmp_path / "a.jpg")
    assert done.exit_code == 1 and ".png or .svg" in done.stderr


def test_longer_sequences_raise_max_seq_len(tmp_path):
    path = tmp_path / "plan.json"
    assert run("plan", "--preset", "tiny", "--seq-len", 300, "--json", path).exit_code == 0
    assert json.loads(path.read_text())["config"]["max_seq_len"] == 300
    assert run("plan", "--preset", "tiny", "--seq-len", 300, "--max-seq-len", 200).exit_code == 1


def test_plan(tmp_path):
    path = tmp_path / "plan.json"
    done = run("plan", *SMALL_JOB, "--strategy", "every:2", "--json", path)
    assert done.exit_code == 0, done.stderr
    plan = json.loads(path.read_text())
    assert plan["arena_bytes"] < plan["total_bytes"] and plan["predicted_seconds"] > 0
    assert plan["strategy"] == "every:2" and plan["plan"]["children"]
    assert run("plan", "--strategy", "nonsense").exit_code == 1
    done = run("plan", *SMALL_JOB, "--plot", tmp_path / "curve.png")
    assert done.exit_code == 2 and "--pareto" in done.stderr and not (tmp_path / "curve.png").exists()
    pytest.importorskip("matplotlib")
    assert run("plan", *SMALL_JOB, "--pareto", "--plot", tmp_path / "curve.svg").exit_code == 0
    drawn = (tmp_path / "curve.svg").read_text()
    assert "layers, C 64, H 4" in drawn and "seconds: " in drawn and "the planner's curve, predicted" in drawn
    assert b"</svg>" in (tmp_path / "curve.svg").read_bytes()


# The table of model.md: six layers, C = 512, H = 8, F = 2048, float32, no output projection, no bias on q, k, v.
@pytest.mark.parametrize("qkv, attention, together, adam", [("lattice", 2.36, 52.80, 105.60),
                                                            ("full", 18.87, 69.32, 138.63)])
def test_memory_reproduces_the_table(tmp_path, qkv, attention, together, adam):
    path = tmp_path / "memory.json"
    done = run("memory", "--preset", "small", "--qkv", qkv, "--no-out-proj", "--no-qkv-bias", "--json", path)
    assert done.exit_code == 0, done.stderr
    rows = {row["part"]: row for row in json.loads(path.read_text())["weights"]}
    assert rows["attention"]["gradient_bytes"] / 1e6 == pytest.approx(attention, abs=0.005)
    assert rows["feed-forward"]["gradient_bytes"] / 1e6 == pytest.approx(50.39, abs=0.005)
    assert rows["layer norms"]["gradient_bytes"] / 1e6 == pytest.approx(0.049, abs=0.0005)
    assert rows["all blocks"]["gradient_bytes"] / 1e6 == pytest.approx(together, abs=0.005)
    assert rows["all blocks"]["optimizer_bytes"] / 1e6 == pytest.approx(adam, abs=0.01)
    for shown in (f"{attention:.2f}", "50.39", f"{together:.2f}"):
        assert shown in done.output


def test_memory_accounts_for_every_parameter(tmp_path):
    path = tmp_path / "memory.json"
    assert run("memory", "--preset", "tiny", "--no-tied", "--json", path).exit_code == 0
    found = json.loads(path.read_text())
    rows = {row["part"]: row for row in found["weights"]}
    parts = [row for part, row in rows.items() if part not in ("all", "all blocks")]
    assert {"embeddings", "final norm", "head"} <= set(rows)
    assert sum(row["elements"] for row in parts) == rows["all"]["elements"]
    assert rows["all"]["parameter_bytes"] == found["total_bytes"]["parameters"]


def test_memory_shows_what_a_strategy_keeps(tmp_path):
    kept = {}
    for strategy in ("cache", "recompute"):
        path = tmp_path / f"{strategy}.json"
        assert run("memory", *SMALL_JOB, "--strategy", strategy, "--json", path).exit_code == 0
        sites = json.loads(path.read_text())["activations"]
        kept[strategy] = sum(site["kept_bytes"] for site in sites)
        assert all(site["meaning"] and site["bytes"] > 0 for site in sites)
    assert 0 < kept["recompute"] < kept["cache"]


def test_every_setting_of_the_model_is_an_option():
    text = run("plan", "--help").output
    for name in ModelConfig.preset("tiny").to_dict():
        spelled = {"n_layers": "layers", "n_heads": "heads"}.get(name, name).replace("_", "-")
        assert f"--{spelled}" in text


def test_what_is_trained_is_told_to_plan_and_memory(tmp_path):
    found = {}
    for trainable in ([], ["--trainable", "*.ln*, ln_f.*"]):
        for command in ("plan", "memory"):
            path = tmp_path / "out.json"
            assert run(command, *SMALL_JOB, *trainable, "--json", path).exit_code == 0
            found[command, bool(trainable)] = json.loads(path.read_text())
    assert found["plan", True]["total_bytes"] == found["memory", True]["total_bytes"]["total"]
    assert found["plan", True]["total_bytes"] < found["plan", False]["total_bytes"]
    assert found["memory", True]["trainable"] == ["*.ln*", "ln_f.*"] and found["memory", False]["trainable"] is None
    rows = {row["part"]: row for row in found["memory", True]["weights"]}
    assert rows["layer norms"]["gradient_bytes"] == rows["layer norms"]["parameter_bytes"] > 0
    assert rows["attention"]["gradient_bytes"] == rows["attention"]["optimizer_bytes"] == 0
    assert rows["all"]["gradient_bytes"] == found["memory", True]["total_bytes"]["gradients"]
    for command in ("plan", "memory"):
        done = run(command, *SMALL_JOB, "--trainable", "blocks.0.lm1.*")
        assert done.exit_code == 1 and "nearest names are blocks.0.ln1" in done.stderr
