"""A model in other people's files on the command line: planned from its header, trained on, exported, sampled, measured."""
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cllm
from cllm.cli import main
from cllm.models.llama import Llama
from cllm.weights.directory import find_tensors

HF = Path(__file__).parents[1] / "golden" / "hf"
TOY = Llama(vocab_size=300, n_layers=2, d_model=16, n_heads=4, d_ff=24, max_seq_len=32, n_kv_heads=2, tied=True)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + result.stderr + repr(result.exception)
    return result


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def directory(tmp_path):
    """A model's directory in bfloat16, without a tokenizer."""
    path = tmp_path / "model"
    cllm.Model(TOY, seed=1).save_pretrained(path, dtype="bfloat16")
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (path / "LICENSE").write_text("free")
    return path


def test_a_plan_and_the_memory_need_the_header_alone(directory, tmp_path):
    file = directory / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with open(file, "r+b") as out:  # weights become a hole: nobody may read them
        size = file.stat().st_size
        out.truncate(header)
        out.truncate(size)
    sizes = ["--batch-size", 2, "--seq-len", 16]
    run("plan", "--model", directory, *sizes, "--memory-budget", "1MB", "--json", tmp_path / "plan.json")
    plan = cllm.plan(TOY, 2, 16, "budget:1MB")
    found = read(tmp_path / "plan.json")
    assert found["family"] == "llama" and found["strategy"] == "budget:1MB"
    assert (found["total_bytes"], found["arena_bytes"]) == (plan.total_bytes, plan.arena_bytes)
    run("memory", "--model", directory, *sizes, "--set", "max_seq_len=16", "--json", tmp_path / "memory.json")
    assert read(tmp_path / "memory.json")["config"]["max_seq_len"] == 16
    assert "give one" in run("plan", "--model", directory, "--strategy", "cache", "--memory-budget", "1MB", code=2).stderr
    assert "leave it out with --model DIR" in run("plan", "--model", directory, "--preset", "tiny", code=2).stderr


def test_gradients_of_the_files_weights_are_checked(tmp_path):
    run("gradcheck", "--model", HF / "qwen3", "--seq-len", 6, "--elements", 2, "--json", tmp_path / "a.json")
    assert read(tmp_path / "a.json")["passed"]
    assert "qk_layernorm" in run("plan", "--model", _phi(tmp_path, qk_layernorm=True), code=1).stderr


def _phi(tmp_path, **changes):
    path = tmp_path / "phi"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**read(HF / "phi" / "config.json"), **changes}))
    return path


def test_weights_are_trained_on_snapshot_resumed_and_exported(directory, tmp_path):
    out, options = tmp_path / "run", ["--tokenizer", "bytes", "--batch-size", 2, "--seq-len", 16, "--eval-batches", 1,
                                      "--eval-every", 2, "--snapshot-every", 2, "--threads", 1]
    run("train", "--model", directory, *options, "--out", out, "--steps", 2, "--json", tmp_path / "a.json")
    began = cllm.from_pretrained(directory)
    record = read(tmp_path / "a.json")
    assert record["settings"]["lr"] == 2e-5 and record["config"]["vocab_size"] == 300
    first = cllm.Trainer(began, None, seq_len=16, batch_size=2, steps=2, eval_batches=1, eval_every=2, lr=2e-5, threads=1).run()
    assert record["loss"] == first.loss  # the weights of the files, in float32
    run("train", "--out", out, "--resume", "--steps", 4)
    run("export", out, tmp_path / "tuned", "--json", tmp_path / "b.json")
    saved, before, after = read(tmp_path / "b.json"), find_tensors(directory), find_tensors(tmp_path / "tuned")
    assert {n: (t.code, t.shape) for n, t in before.items()} == {n: (t.code, t.shape) for n, t in after.items()}
    assert 0 < saved["changed"] and (tmp_path / "tuned" / "LICENSE").read_text() == "free"
    assert read(tmp_path / "tuned" / "generation_config.json") == {"eos_token_id": [7, 9]}
    run("export", out, tmp_path / "wide", "--dtype", "float32")
    from cllm.snapshot import load_snapshot
    model, wide = load_snapshot(out / "step-000004")[0], cllm.from_pretrained(tmp_path / "wide")
    assert all((values == model.parameters[name]).all() for name, values in wide.parameters.items())
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert "has gone" in run("export", out, tmp_path / "late").stderr
    assert find_tensors(tmp_path / "late").keys() == after.keys()
    assert "--chat: must be a model with" in run("sample", out, "--chat", "--prompt", "a", code=1).stderr


def test_perplexity_is_over_windows_that_are_said(directory, tmp_path):
    text = b"It is a truth universally acknowledged, that a single man in possession of a good fortune"
    (tmp_path / "text").write_bytes(text)
    run("perplexity", "--model", directory, "--tokenizer", _bytes(tmp_path), "--text", tmp_path / "text", "--seq-len", 20,
        "--json", tmp_path / "a.json")
    model, found = cllm.from_pretrained(directory, dtype="float64"), read(tmp_path / "a.json")
    tokenizer = cllm.load_tokenizer(_bytes(tmp_path))
    ids = tokenizer.encode(text)
    assert found["windows"] == (len(ids) - 1) // 20 and found["tokens"] == len(ids)
    for k, loss in enumerate(found["by_window"]):
        logits = cllm.Executor(model, 1, 20).logits(ids[None, 20 * k:20 * k + 20])[0]
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        assert loss == pytest.approx(-logits[np.arange(20), ids[20 * k + 1:20 * k + 21]].mean(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(found["mean_nll"]))
    command = ["perplexity", "--model", directory, "--tokenizer", _bytes(tmp_path), "--text", tmp_path / "text"]
    assert "for 9 windows of 20" in run(*command, "--seq-len", 20, "--windows", 9, code=1).stderr


def _bytes(tmp_path):
    """A tokenizer.json of bytes."""
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    path = tmp_path / "bytes.json"
    if not path.exists():
        cllm.BPETokenizer.train(["abc"], 256).save(path)
    return path


def test_a_directory_with_a_tokenizer_is_trained_sampled_and_compared_by_it(directory, tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    tokenizer = cllm.BPETokenizer.train(["the cat sat on the mat, the cat"] * 3, 262)
    tokenizer.save(directory / "tokenizer.json")
    (tmp_path / "text").write_text("the cat sat on the mat, the cat " * 60)
    options = ["--text", tmp_path / "text", "--batch-size", 2, "--seq-len", 8, "--threads", 1]
    run("train", "--model", directory, *options, "--out", tmp_path / "run", "--steps", 1, "--eval-batches", 1)
    assert read(tmp_path / "run" / "step-000001" / "state.json")["training"]["data"]["tokenizer"] == tokenizer.name
    for place in (directory, tmp_path / "run"):
        run("sample", place, "--prompt", "the cat", "--tokens", 5, "--json", tmp_path / "a.json")
        assert 1 <= len(read(tmp_path / "a.json")["tokens"]) <= 5
    run("compare", "--model", directory, *options, "--strategies", "cache,recompute", "--steps", 1, "--rounds", 1,
        "--no-calibrate", "--json", tmp_path / "b.json")
    found = read(tmp_path / "b.json")
    model = cllm.from_pretrained(directory)
    from cllm.corpus import batch
    tokens = tokenizer.encode((tmp_path / "text").read_text())
    loss = cllm.Executor(model, 2, 8).loss(*batch(tokens, 2, 8, 0, 0))
    assert {row["losses"][0] for row in found["rows"]} == {loss}


def test_a_text_ends_at_a_stop_token(directory):
    model = cllm.from_pretrained(directory)
    whole = cllm.generate(model, [1, 2], 12, temperature=0).tolist()
    stop = whole[4]
    ended = cllm.generate(model, [1, 2], 12, temperature=0, stop=[stop, 299]).tolist()
    assert ended == whole[:whole.index(stop) + 1]
    from cllm.sampling import stream_text
    from cllm.tokenizer import ByteTokenizer
    pieces = list(stream_text(model, ByteTokenizer(), np.array([1, 2]), 12, temperature=0, stop=[stop]))
    assert b"".join(p.encode() for _, p in pieces) == ByteTokenizer().decode(ended[:-1]).encode() and pieces[-1][0] == stop
