"""``cllm train`` and ``cllm sample`` as a user meets them."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cllm
from cllm.cli import main
from cllm.train import read_lines

TINY = ["--preset", "tiny", "--layers", "1", "--d-model", "16", "--heads", "2", "--d-ff", "32", "--batch-size", "2",
        "--seq-len", "16", "--eval-every", "4", "--eval-batches", "2", "--snapshot-every", "3", "--threads", "1"]


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def train(*arguments, code=0):
    return run("train", *TINY, *arguments, code=code)


@pytest.fixture
def trained(tmp_path):
    train("--out", tmp_path / "run", "--steps", 6, "--json", tmp_path / "result.json")
    return tmp_path / "run"


def test_a_run_leaves_what_the_contract_says(trained):
    result = json.loads((trained.parent / "result.json").read_text())
    assert result["step"] == 6 and len(result["losses"]) == 6 and not result["interrupted"]
    assert result["snapshot"] == str(trained / "step-000006") and result["config"]["d_model"] == 16
    assert sorted(p.name for p in (trained / "step-000006").iterdir()) == [
        "model.safetensors", "optimizer.safetensors", "state.json"]
    steps = [line for line in read_lines(trained / "metrics.jsonl") if line["event"] == "step"]
    assert [line["loss"] for line in steps] == result["losses"]
    assert result["total_bytes"] > 0 and result["rss_peak_bytes"] > result["total_bytes"]


def test_output_is_plain_lines_and_quiet_is_fewer(tmp_path):
    lines = train("--out", tmp_path / "a", "--steps", 6, "--log-every", 2, "--memory-budget", "10MB").splitlines()
    for part in ("loss", "rate", "norm", "tok/s", "of 10 MB", "left"):
        assert sum(part in line for line in lines if line.startswith("step")) == 4, part
    quiet = train("--out", tmp_path / "b", "--steps", 6, "--quiet").splitlines()
    assert not any(" loss " in line for line in quiet) and sum("validation" in line for line in quiet) == 3
    assert "\x1b" not in "".join([*lines, *quiet])
    assert f"cllm sample {tmp_path / 'b'}" in quiet[-1]


def test_resume_on_nothing_on_a_finished_run_and_on_a_longer_one(tmp_path):
    out = tmp_path / "run"
    assert "from the start" in train("--out", out, "--steps", 4, "--resume")
    assert "finished before: 4 steps are taken" in train("--out", out, "--steps", 4, "--resume")
    assert "finished before: 4 steps are taken" in run("train", "--out", out, "--resume")
    assert "resumed after step 4" in run("train", "--out", out, "--resume", "--steps", 6)
    assert "must be a directory without a run" in train("--out", out, "--steps", 6, code=1)


@pytest.mark.parametrize("arguments, reason", [
    (["--lr", "0.5"], "got lr 0.001 there, 0.5 now"), (["--layers", "2"], "got n_layers 1 there, 2 now"),
    (["--preset", "small"], "n_layers 1 there, 6 now"), (["--dtype", "float64"], "dtype float32 there"),
    (["--clip", "0"], "got clip 1.0 there, None now"),
    (["--text", "/none"], "must be a file that can be read")], ids=str)
def test_a_run_is_resumed_as_it_began_or_not_at_all(arguments, reason, trained):
    assert reason in run("train", "--out", trained, "--resume", "--steps", 9, *arguments, code=1)


@pytest.mark.parametrize("arguments, reason, code", [
    (["--memory-budget", "10KB"], "must be at least", 1), (["--memory-budget", "much"], "must be a number of bytes", 1),
    (["--memory-budget", "1GB", "--strategy", "recompute"], "must not both be given", 1),
    (["--steps", "0"], "train(steps=...)", 1), (["--optimizer", "lion"], "lion", 1), (["--text", "/none"], "/none", 1),
    (["--tokenizer", "/none"], "/none", 1), (["--steps", "many"], "--steps", 2)], ids=str)
def test_what_cannot_be_is_refused_before_anything_is_made(arguments, reason, code, tmp_path):
    assert reason in train("--out", tmp_path / "run", *arguments, code=code)
    assert not (tmp_path / "run" / "tokens.bin").exists()


def test_every_setting_is_an_option(tmp_path):
    out = train("--out", tmp_path / "run", "--steps", 3, "--accumulate", 2, "--optimizer", "*emb.weight=adam,sgd@30",
                "--lr", "1e-2", "--min-lr", "1e-3", "--warmup", 1, "--rate", "linear", "--betas", "0.8", "0.9",
                "--eps", "1e-6", "--weight-decay", "0.2", "--clip", 0, "--clip-by", "each", "--seed", 5,
                "--val-fraction", "0.2", "--keep", 1, "--max-bad-steps", 2,
                "--strategy", "recompute@1", "--dropout", "0.1", "--qkv", "lattice", "--dtype", "float64")
    assert "2 x 16" not in out and "4 x 16" in out
    settings = json.loads((tmp_path / "run" / "step-000003" / "state.json").read_text())["training"]["settings"]
    assert settings["betas"] == [0.8, 0.9] and settings["clip"] is None and settings["rate"] == "linear"


def test_sample_continues_a_prompt(trained, tmp_path):
    text = run("sample", trained, "--prompt", "It is", "--tokens", 20, "--seed", 3, "--json", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    assert text == "It is" + result["text"] + "\n" and len(result["tokens"]) == 20
    model = cllm.load(trained / "step-000006" / "model.safetensors")
    assert result["tokens"] == cllm.generate(model, list(b"It is"), 20, temperature=0.8, seed=3).tolist()
    for path in (trained / "step-000006", trained / "step-000006" / "model.safetensors"):
        assert run("sample", path, "--prompt", "It is", "--tokens", 20, "--seed", 3) == text
    assert run("sample", trained, "--best", "--tokens", 0) == "\n\n"


@pytest.mark.parametrize("make, reason", [(lambda p: p.mkdir(), "must be a run or a snapshot"),
                                          (lambda p: p.write_bytes(b"PK"), "must be a model")])
def test_sample_refuses_what_is_no_model(make, reason, tmp_path):
    make(tmp_path / "x")
    assert reason in run("sample", tmp_path / "x", code=1)


def test_byte_pairs_from_the_text(tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra io")
    (tmp_path / "text").write_text("the cat sat on the mat and the dog on the log\n" * 60)
    train("--out", tmp_path / "run", "--text", tmp_path / "text", "--tokenizer", "bpe:280", "--steps", 2)
    (tmp_path / "text").unlink()
    assert run("sample", tmp_path / "run", "--prompt", "the", "--tokens", 4).startswith("the")


def test_ctrl_c_says_how_to_go_on(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
    command = [sys.executable, "-m", "cllm", "train", *TINY, "--out", tmp_path / "run", "--steps", "1000000"]
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step     10"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err, err
    assert out.rstrip().endswith(f"go on with:\n  cllm train --out {tmp_path / 'run'} --resume")
