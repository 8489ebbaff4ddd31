"""``--model`` and ``--set``: every command takes families of users, from their files."""
import json
from pathlib import Path

import own_model
import pytest
from click.testing import CliRunner

import cllm
from cllm.cli import main

FILE = Path(own_model.__file__)
MINE, PICTURES = f"{FILE}:Mine", f"{FILE}:Pictures"
TEXT = ["--model", MINE, "--set", "vocab_size=256", "--batch-size", "2", "--seq-len", "8"]


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


def test_plan_takes_a_model_by_file_and_settings(tmp_path):
    run("plan", "--model", MINE, "--set", "C=4", "--vocab-size", 20, "--layers", 2, "--seq-len", 40,
        "--strategy", "recompute", "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    model = own_model.Mine(vocab_size=20, n_layers=2, C=4, max_seq_len=40)
    assert found["family"] == "own_model:Mine" and found["config"] == model.to_dict()
    assert found["arena_bytes"] == cllm.plan(model, 8, 40, "recompute").arena_bytes
    run("plan", "--model", "crystalline", "--preset", "tiny", "--seq-len", 16, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["family"] == "crystalline" and found["config"]["attention"] == "crystalline"


def test_memory_groups_parameters_by_their_steps(tmp_path):
    done = run("memory", *TEXT, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    rows = {row["part"]: row for row in found["weights"]}
    assert {part: row["elements"] for part, row in rows.items()} == {
        "norm": 24, "fc": 216, "all blocks": 240, "tok_emb": 2048, "all": 2288}
    assert rows["fc"]["gradient_bytes_per_layer"] == 4 * 72 and rows["tok_emb"]["gradient_bytes_per_layer"] is None
    assert rows["all"]["parameter_bytes"] == found["total_bytes"]["parameters"] and "Parameters, 3 blocks" in done.output


def test_sizes_of_time_are_not_used_by_a_model_without(tmp_path):
    done = run("plan", "--model", PICTURES, "--batch-size", 4, "--json", tmp_path / "a.json")
    assert done.stderr == "" and json.loads((tmp_path / "a.json").read_text())["seq_len"] is None
    for command in ("plan", "memory", "gradcheck"):
        assert "--seq-len is not used: the model has no time steps" in run(
            command, "--model", PICTURES, "--batch-size", 2, "--seq-len", 9).stderr
    assert "no time steps" in run("compare", "--model", PICTURES, "--sweep", "seq_len=8,16", code=2).stderr


def test_gradcheck_takes_any_model():
    done = run("gradcheck", "--model", MINE, "--set", "n_layers=1", "--elements", 4)
    assert "blocks.0.fc.weight" in done.output
    assert "class.weight" in run("gradcheck", "--model", PICTURES, "--all-elements", "--strategy", "recompute@1").output


def test_compare_sweeps_a_field_of_the_model(tmp_path):
    run("compare", *TEXT, "--strategies", "recompute", "--steps", 1, "--rounds", 1, "--threads", 1, "--sweep", "C=4,6",
        "--json", tmp_path / "a.json")
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["sweep"] == {"C": [4, 6]} and [point["config"]["C"] for point in report["points"]] == [4, 6]
    first, second = (point["rows"][0] for point in report["points"])
    assert first["arena_bytes"] < second["arena_bytes"] and first["error"] is None is second["error"]


def test_a_text_model_of_a_user_is_trained_resumed_and_sampled(tmp_path):
    options = ["--out", tmp_path / "run", "--snapshot-every", 2, "--eval-batches", 1, "--threads", 1]
    done = run("train", *TEXT, *options, "--steps", 2, "--json", tmp_path / "a.json")
    assert f"cllm sample {tmp_path / 'run'} --model {MINE}" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["family"] == "own_model:Mine"
    state = json.loads((tmp_path / "run" / "step-000002" / "state.json").read_text())
    assert (state["family"], state["config"]["vocab_size"]) == ("own_model:Mine", 256)
    for place in (tmp_path / "run", tmp_path / "run" / "step-000002"):
        said = run("sample", place, code=1).stderr
        assert "--model FILE.py:Class" in said and "whole snapshot" not in said and "another directory" not in said
    resume = ["train", "--out", tmp_path / "run", "--resume", "--steps", 4]
    assert "--model FILE.py:Class" in run(*resume, code=1).stderr
    assert "must be the class that was saved" in run(*resume, "--model", "gpt", code=1).stderr
    assert "C 8 there, 4 now" in run(*resume, "--model", MINE, "--set", "C=4", code=1).stderr
    assert "resumed after step 2" in run(*resume, "--model", MINE, "--set", "C=8").output


@pytest.mark.parametrize("command", ["compare", "plan", "memory", "gradcheck"])
@pytest.mark.parametrize("arguments, word, code", [
    (("--model", "gtp"), "--model: must be one of gpt", 1),
    (("--model", MINE, "--heads", "2"), "--heads is no setting of Mine", 2),
    (("--model", MINE, "--set", "D=2"), "must be a field of Mine", 1), (("--model", MINE, "--set", "C=x"), "a value of int", 1),
    (("--model", MINE, "--preset", "tiny"), "is for families that derive", 1),
    (("--set", "d_model=64", "--d-model", "32"), "--d-model and --set d_model=... are the same", 2)], ids=str)
def test_what_the_model_has_not_is_refused(command, arguments, word, code):
    assert word in run(command, *arguments, code=code).stderr


@pytest.mark.parametrize("text, word", [
    ("D=1,2", "one of the keys C, batch_size, compute, dtype, groups, layers"), ("C=1,x", "C=...: must be a value"),
    ("preset=tiny,small", "one of the keys"), ("C=1,1", "twice")])
def test_what_cannot_be_swept_is_a_usage_error(text, word):
    assert word in run("compare", *TEXT, "--sweep", text, code=2).stderr
