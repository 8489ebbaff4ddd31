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
    (["--clip", "0"], "got clip 1.0 there, None now"), (["--compute", "bfloat16"], "compute 'float32' there, 'bfloat16' now"),
    (["--text", "/none"], "must be a file that can be read")], ids=str)
def test_a_run_is_resumed_as_it_began_or_not_at_all(arguments, reason, trained):
    assert reason in run("train", "--out", trained, "--resume", "--steps", 9, *arguments, code=1)


@pytest.mark.parametrize("arguments, reason, code", [
    (["--memory-budget", "10KB"], "must be at least", 1), (["--memory-budget", "much"], "must be a number of bytes", 1),
    (["--memory-budget", "1GB", "--strategy", "recompute"], "must not both be given", 1),
    (["--compute", "bfloat16", "--dtype", "float64"], "must be 'float32' where dtype is float64", 1),
    (["--compute", "half"], "must be one of float32, bfloat16", 1),
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


def test_a_run_in_bfloat16_is_measured_and_sampled_so_unless_told_otherwise(tmp_path):
    out = tmp_path / "run"
    train("--out", out, "--steps", 3, "--compute", "bfloat16")
    assert json.loads((out / "step-000003" / "state.json").read_text())["compute"] == "bfloat16"
    assert "resumed after step 3" in run("train", "--out", out, "--resume", "--steps", 4)
    found = {}
    for name, more in (("own", []), ("same", ["--compute", "bfloat16"]), ("other", ["--compute", "float32"])):
        run("perplexity", "--model", out, "--seq-len", 16, "--windows", 2, "--json", tmp_path / name, *more)
        found[name] = json.loads((tmp_path / name).read_text())
        run("sample", out, "--tokens", 2, *more)
    assert found["own"] == found["same"] and found["own"]["mean_nll"] != found["other"]["mean_nll"]
    assert (found["own"]["compute"], found["other"]["compute"]) == ("bfloat16", "float32")


def test_sample_continues_a_prompt(trained, tmp_path):
    text = run("sample", trained, "--prompt", "It is", "--tokens", 20, "--seed", 3, "--json", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    assert text == "It is" + result["text"] + "\n" and len(result["tokens"]) == 20
    model = cllm.load(trained / "step-000006" / "model.safetensors")
    assert result["tokens"] == cllm.generate(model, list(b"It is"), 20, temperature=0.8, seed=3).tolist()
    for path in (trained / "step-000006", trained / "step-000006" / "model.safetensors"):
        assert run("sample", path, "--prompt", "It is", "--tokens", 20, "--seed", 3) == text
    assert run("sample", trained, "--best", "--tokens", 0) == "\n\n"


@pytest.mark.parametrize("make, reason", [(lambda p: p.mkdir(), "must be a run, a snapshot"),
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


# ------------------------------------------------------------------------------------------------ what surrounds a run

def test_a_second_run_is_refused_before_any_work(trained, tmp_path):
    from cllm.train.guard import only_run_in
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    (tmp_path / "text").write_text("another text " * 100)
    with only_run_in(trained):
        for more in ([], ["--resume"]):
            assert "must be the only one there" in train("--out", trained, "--text", tmp_path / "text", *more, code=1)
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_nothing_is_left_of_a_refused_run(tmp_path):
    (tmp_path / "short").write_text("short")
    for arguments in (["--text", tmp_path / "short"], ["--memory-budget", "10KB"], ["--hours", "1", "--steps", "3"]):
        train("--out", tmp_path / "a" / "run", *arguments, code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["short"]


def test_a_tokenizer_is_refused_by_name_when_a_run_is_resumed(tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra io")
    (tmp_path / "text").write_text("the cat sat on the mat and the dog on the log\n" * 60)
    out = tmp_path / "run"
    train("--out", out, "--text", tmp_path / "text", "--steps", 2)
    for name in ("bpe:280", tmp_path / "tokenizer.json"):
        cllm.BPETokenizer.train(["the cat"], 270).save(tmp_path / "tokenizer.json")
        said = run("train", "--out", out, "--resume", "--steps", 3, "--tokenizer", name, code=1)
        assert "must go on with the tokenizer it began with, bytes; got --tokenizer" in said
    assert "resumed after step 2" in run("train", "--out", out, "--resume", "--steps", 3, "--tokenizer", "bytes")
    other = tmp_path / "bpe"
    train("--out", other, "--text", tmp_path / "text", "--steps", 2, "--tokenizer", "bpe:280")
    assert "resumed" in run("train", "--out", other, "--resume", "--steps", 3, "--tokenizer", "bpe:280")
    said = run("train", "--out", other, "--resume", "--steps", 4, "--tokenizer", "bytes", code=1)
    assert "must go on with the tokenizer it began with, bpe:" in said  # which a short text may leave smaller than asked


def test_auto_is_read_once_by_a_command(tmp_path, monkeypatch):
    from cllm.strategies import memory_budget
    readings = []
    monkeypatch.setattr(memory_budget, "free_bytes", lambda: readings.append(1) or 80_000_000)
    train("--out", tmp_path / "run", "--steps", 3, "--memory-budget", "auto", "--no-calibrate", "--json",
          tmp_path / "result.json")
    assert len(readings) == 1 and json.loads((tmp_path / "result.json").read_text())["budget_bytes"] == 80_000_000


def test_the_loss_is_drawn_while_it_runs(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from cllm.cli.curve import running_mean
    for name in ("loss.png", "loss.svg"):
        train("--out", tmp_path / name[:-4] / name[-3:], "--steps", 5, "--plot", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    train("--out", tmp_path / "loss" / "png", "--steps", 8, "--plot", tmp_path / "again.svg", "--resume")
    assert (tmp_path / "again.svg").read_text().count("<use ") > 8, "the steps before it are drawn as well"
    assert "must end in .png or .svg" in train("--out", tmp_path / "other", "--plot", tmp_path / "loss.txt", code=1)
    assert running_mean([1.0, 3.0, 5.0]) == [1.0, 2.0, 3.0] and running_mean([1.0] * 30 + [21.0])[-1] == 2.0


def test_hours_on_the_command_line(tmp_path, monkeypatch):
    from cllm.train import pace
    monkeypatch.setattr(pace, "_seconds_of", lambda call: call() and 1.0)
    said = train("--out", tmp_path / "run", "--hours", "0.002", "--json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert 3 <= result["step"] == result["settings"]["steps"] <= 7 and "hours are about" in said
    assert "finished before" in train("--out", tmp_path / "run", "--hours", "0.002", "--resume")


# -------------------------------------------------------------------------------------------------------------- sample

def test_the_best_is_named_or_refused(trained, tmp_path):
    best = json.loads((trained / "step-000006" / "state.json").read_text())["training"]["best"]
    path = trained / f"step-{best[0]:06d}"
    assert path.exists() and run("sample", trained, "--best", "--tokens", 3, "--json", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["model"] == str(path)
    path.rename(trained / "gone")
    if best[0] != 6:
        assert "must have a snapshot of its best evaluation" in run("sample", trained, "--best", code=1)


def test_a_larger_vocabulary_ends_no_text(tmp_path):
    train("--out", tmp_path / "run", "--steps", 1, "--vocab-size", 1000)
    run("sample", tmp_path / "run", "--tokens", 60, "--temperature", 5, "--json", tmp_path / "s.json")
    assert max(json.loads((tmp_path / "s.json").read_text())["tokens"]) < 256


def test_the_tokenizer_beside_a_model_file_is_taken(tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra io")
    (tmp_path / "text").write_text("the cat sat on the mat and the dog on the log\n" * 60)
    train("--out", tmp_path / "run", "--text", tmp_path / "text", "--tokenizer", "bpe:280", "--steps", 2)
    snapshot = tmp_path / "run" / "step-000002"
    (tmp_path / "alone").mkdir()
    cllm.load(snapshot / "model.safetensors").save(tmp_path / "alone" / "model.safetensors")
    (tmp_path / "alone" / "tokenizer.json").write_text((snapshot / "tokenizer.json").read_text())
    (tmp_path / "bare").mkdir()
    cllm.load(snapshot / "model.safetensors").save(tmp_path / "bare" / "it")
    texts = [run("sample", *where, "--prompt", "the c", "--tokens", 9) for where in (
        [tmp_path / "run"], [snapshot], [snapshot / "model.safetensors"], [tmp_path / "alone" / "model.safetensors"],
        [tmp_path / "bare" / "it", "--tokenizer", snapshot / "tokenizer.json"])]
    assert len(set(texts)) == 1
    assert run("sample", tmp_path / "bare" / "it", "--prompt", "the c", "--tokens", 9) != texts[0]


def test_a_run_trains_what_is_asked_and_goes_on_so(tmp_path):
    out = ("--no-calibrate", "--out", tmp_path / "run")
    assert "96 of them trained" in train(*out, "--steps", 2, "--trainable", "*.ln*, ln_f.*")
    assert "trainable" in train(*out, "--steps", 3, "--resume", "--trainable", "*.fc1.*", code=1)
    assert "96 of them trained" in train(*out, "--steps", 3, "--resume")
    assert "must have a parameter to train" in train("--out", tmp_path / "other", "--trainable", ",", code=1)
    assert not (tmp_path / "other").exists()
