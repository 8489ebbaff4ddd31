"""``cllm finetune``, ``merge``, and what others do with such a run, as a user meets them."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from longer import whole

import cllm
from cllm.cli import main
from cllm.models.llama import Llama
from cllm.sampling import stream_text
from cllm.snapshot import load_snapshot, read_state, snapshots, step_of
from cllm.train import read_lines
from cllm.weights.directory import find_tensors

TOY = Llama(vocab_size=300, n_layers=2, d_model=16, n_heads=4, d_ff=24, max_seq_len=64, n_kv_heads=2, tied=True)
SIZES = ["--batch-size", 2, "--seq-len", 24, "--threads", 1]
LORA = ["--lora", 2, "--targets", "q,v,up", "--dropout", 0.1, "--lr", 1e-2]


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + result.stderr + repr(result.exception)
    return result


def read(path):
    return json.loads(path.read_text())


def written(path, examples):
    path.write_text("".join(json.dumps(one) + "\n" for one in examples))
    return path


def sums(count, seed=0):
    pairs = np.random.default_rng(seed).integers(0, 99, (count, 2)).tolist()
    return [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in pairs]


class Place:
    """A model's directory in bfloat16, examples, and commands over them."""

    def __init__(self, folder):
        self.folder, self.model, self.out = folder, folder / "model", folder / "run"
        cllm.Model(TOY, seed=1).save_pretrained(self.model, dtype="bfloat16")
        (self.model / "LICENSE").write_text("free")
        self.data = written(folder / "train.jsonl", sums(30))
        self.valid = written(folder / "valid.jsonl", sums(7, seed=1))

    def command(self, *more, out=None):
        return ["finetune", "--model", self.model, "--data", self.data, "--valid", self.valid, "--tokenizer", "bytes", *SIZES,
                "--out", out or self.out, *more]

    def tune(self, *more, out=None, code=0):
        return run(*self.command(*more, out=out), code=code)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_plan_is_told_and_a_run_is_that_of_the_library(place, tmp_path):
    said = place.tune(*LORA, "--steps", 6, "--eval-every", 3, "--memory-budget", "2MB", "--show-examples", 2, "--json",
                      tmp_path / "a.json").output
    result = read(tmp_path / "a.json")
    base = cllm.from_pretrained(place.model, mapped=True)
    model = cllm.add_lora(base, 2, 16, ("q", "v", "up"), dropout=0.1, seed=0)
    data = cllm.FineTuningData(place.data, cllm.ByteTokenizer(), 2, 24)
    valid = cllm.FineTuningData(place.valid, cllm.ByteTokenizer(), 2, 24, evaluation=True)
    trainer = cllm.Trainer(model, data=data, eval_data=valid, steps=6, eval_every=3, lr=1e-2, memory_budget="2MB", threads=1)
    trainer.run()
    assert result["losses"] == trainer.losses and result["val_loss"] == trainer.val_loss
    assert result["trained"] == sum(model.parameters[n].size for n in model.program.trained)
    assert result["total_bytes"] == trainer.executors.total_bytes <= 2_000_000
    memory = trainer.executors.of(2, 24, True).memory
    assert data.show(2) in said and "trained  384 parameters in 8 arrays: *lora*" in said
    assert f"frozen   {sum(p.size for p in base.parameters.values()):,} parameters" in said
    takes = re.search(r"^takes    weights (\S+), gradients (\S+), state of adamw (\S+), .*arena (\S+): (\S+) MB$", said, re.M)
    parts = (memory.parameter_bytes, memory.gradient_bytes, memory.optimizer_bytes, memory.arena_bytes, memory.total_bytes)
    assert [*takes.groups()] == [f"{n / 1e6:,.1f}" for n in parts]
    assert f"to train on: {data.in_words()}; to validate: {valid.in_words()}" in said
    assert "within a limit of 2,000,000 bytes" in said and "nats per target, perplexity" in said
    assert f"cllm merge {place.out} DIRECTORY" in said


def test_snapshots_hold_what_is_trained_and_the_digest_of_the_rest(place):
    place.tune(*LORA, "--steps", 2)
    snapshot = place.out / "step-000002"
    assert sorted(p.name for p in snapshot.iterdir()) == ["optimizer.safetensors", "state.json", "trained.safetensors"]
    assert all("lora" in name for name in find_tensors_of(snapshot / "trained.safetensors"))
    assert read_state(snapshot)["base"]["place"] == str(place.model)
    model, _ = load_snapshot(snapshot)
    base = cllm.from_pretrained(place.model)
    assert all((model.parameters[name] == values).all() for name, values in base.parameters.items())
    assert any(model.parameters[name].any() for name in model.program.trained if "lora_b" in name)
    text = run("sample", place.out, "--prompt", "1+1=", "--tokens", 5).output
    assert text == run("sample", snapshot, "--prompt", "1+1=", "--tokens", 5).output

    moved = place.folder / "moved"
    place.model.rename(moved)
    gone = run("sample", place.out, "--prompt", "1+1=", code=1).stderr
    assert "must still be there, for snapshots hold only what was trained" in gone and "--base" in gone
    assert run("sample", place.out, "--base", moved, "--prompt", "1+1=", "--tokens", 5).output == text
    assert "finished before" in run("finetune", "--out", place.out, "--model", moved, "--resume").output
    cllm.Model(TOY, seed=2).save_pretrained(place.model)
    for command in (["sample", place.out], ["finetune", "--out", place.out, "--resume", "--steps", 4]):
        assert f"base {place.model}: must be what it was when the run began; got other weights" in run(*command, code=1).stderr
    assert not (place.out / "step-000004").exists()


def find_tensors_of(file):
    from cllm.weights.header import read_header
    return read_header(file)[0]


HOW = {"lora": LORA, "some": ["--trainable", "*ln*,*fc1*"], "all": [], "half": ["--lora", 2, "--trainable", "*lora_b*"],
       "copied": [*LORA, "--copied"]}


@pytest.mark.parametrize("name, packing", [
    (name, packing) if (row + column) % 2 == 0 else whole(name, packing)
    for row, name in enumerate(HOW) for column, packing in enumerate(("--packing", "--no-packing"))])
def test_a_run_that_goes_on_equals_the_straight_one(name, packing, place, tmp_path):
    how = HOW[name]
    place.tune(*how, packing, "--steps", 4, "--warmup", 0, "--eval-every", 2, "--rate", "constant", out=tmp_path / "a")
    place.tune(*how, packing, "--steps", 6, "--warmup", 0, "--eval-every", 2, "--rate", "constant", out=tmp_path / "b")
    run("finetune", "--out", tmp_path / "a", "--resume", "--steps", 6)  # what was copied is mapped now
    a, b = (load_snapshot(tmp_path / run_ / "step-000006")[0] for run_ in "ab")
    assert all((values == b.parameters[name]).all() for name, values in a.parameters.items())
    assert (tmp_path / "a/step-000006/optimizer.safetensors").read_bytes() == (
        tmp_path / "b/step-000006/optimizer.safetensors").read_bytes()
    is_whole = not how
    assert (tmp_path / "a/step-000006/model.safetensors").exists() == is_whole
    assert [line["val_loss"] for line in read_lines(tmp_path / "a" / "metrics.jsonl") if line["event"] == "evaluation"] == [
        line["val_loss"] for line in read_lines(tmp_path / "b" / "metrics.jsonl") if line["event"] == "evaluation"]


def test_a_killed_run_and_ctrl_c_go_on_to_the_same_bits(place, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent)}
    more = [*LORA, "--warmup", 0, "--rate", "constant"]
    for number, end in enumerate((signal.SIGKILL, signal.SIGINT)):
        out = tmp_path / f"run{number}"
        command = place.command(*more, "--steps", 1_000_000, "--snapshot-every", 2, "--log-every", 1, out=out)
        process = subprocess.Popen([sys.executable, "-m", "cllm", *map(str, command)], env=env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in process.stdout:
            if line.startswith("step      9"):
                break
        process.send_signal(end)
        said, err = process.communicate(timeout=60)
        if end == signal.SIGINT:
            assert process.returncode == 0 and not err, err
            assert said.rstrip().endswith(f"go on with:\n  cllm finetune --out {out} --resume")
        steps = step_of(snapshots(out)[-1]) + 5
        run("finetune", "--out", out, "--resume", "--steps", steps)
        place.tune(*more, "--steps", steps, out=tmp_path / f"straight{number}")
        for name in ("trained.safetensors", "optimizer.safetensors"):
            assert (out / f"step-{steps:06d}" / name).read_bytes() == (
                tmp_path / f"straight{number}" / f"step-{steps:06d}" / name).read_bytes()


def test_merged_and_exported(place, tmp_path):
    place.tune(*LORA, "--steps", 3)
    run("merge", place.out, tmp_path / "whole", "--json", tmp_path / "a.json")
    before, after = find_tensors(place.model), find_tensors(tmp_path / "whole")
    assert {n: (t.code, t.shape) for n, t in before.items()} == {n: (t.code, t.shape) for n, t in after.items()}
    assert (tmp_path / "whole" / "LICENSE").read_text() == "free" and read(tmp_path / "a.json")["changed"] > 0
    run("merge", place.out, tmp_path / "wide", "--dtype", "float32")
    model, _ = load_snapshot(place.out / "step-000003")
    merged, wide = cllm.merge_adapter(model), cllm.from_pretrained(tmp_path / "wide")
    assert all((values == wide.parameters[name]).all() for name, values in merged.parameters.items())

    said = run("export", place.out, tmp_path / "adapter").output
    assert "cllm merge" in said
    again = cllm.load_adapter(cllm.from_pretrained(place.model), tmp_path / "adapter")
    ids = np.arange(20, dtype=np.int32)[None]
    logits = [cllm.Executor(one, 1, 20).logits(ids) for one in (model, again)]
    assert (logits[0] == logits[1]).all()
    assert "--dtype is of whole models" in run("export", place.out, tmp_path / "x", "--dtype", "bfloat16", code=2).stderr
    assert "must not be the place of the base" in run("merge", place.out, place.model, code=1).stderr
    assert "must be a model with adapters" in run("merge", place.model, tmp_path / "x", code=1).stderr

    place.tune("--steps", 2, "--trainable", "*fc1*", out=tmp_path / "part")
    run("export", tmp_path / "part", tmp_path / "tuned")
    assert find_tensors(tmp_path / "tuned").keys() == before.keys()


def test_a_file_of_ours_is_mapped_whole_and_shared(place, tmp_path):
    cllm.from_pretrained(place.model).save(tmp_path / "base")
    options = ["--data", place.data, *SIZES, *LORA, "--steps", 2]
    assert "must have a tokenizer beside it" in run("finetune", "--model", tmp_path / "base", *options, "--out", tmp_path / "x",
                                                    code=1).stderr
    said = run("finetune", "--model", tmp_path / "base", "--mapped", "--tokenizer", "bytes", *options, "--out",
               tmp_path / "x").output
    nbytes = sum(p.nbytes for p in cllm.load(tmp_path / "base").parameters.values())
    assert f"{nbytes / 1e6:,.1f} MB, {nbytes / 1e6:,.1f} of them mapped" in said
    place.tune(*LORA, "--steps", 2)
    first, second = (load_snapshot(out / "step-000002")[0] for out in (place.out, tmp_path / "x"))
    assert all((values == second.parameters[name]).all() for name, values in first.parameters.items())


def test_a_base_is_read_as_it_lies_in_its_file(place, tmp_path):
    steps = ["--steps", 2, "--dropout", 0]
    mapped, copied = place.tune(*LORA, *steps), place.tune(*LORA, *steps, "--copied", out=tmp_path / "copied")
    sizes = [sum(array.nbytes for n, array in model.parameters.items() if n in model.program.frozen) for model in (
        cllm.from_pretrained(place.model, mapped=True), cllm.from_pretrained(place.model, trainable=()))]
    for said, nbytes, words in ((mapped, sizes[0], ", in BF16"), (copied, sizes[1], "")):
        assert re.search(rf"frozen .* {nbytes / 1e6:,.1f} MB, .* mapped from the file{words}\n", said.output), said.output
    first, second = (read_state(snapshots(out)[-1]) for out in (place.out, tmp_path / "copied"))
    assert first["base"]["sha256"] == second["base"]["sha256"]
    assert (snapshots(place.out)[-1] / "trained.safetensors").read_bytes() == (
        snapshots(tmp_path / "copied")[-1] / "trained.safetensors").read_bytes()
    totals = []
    for more in ([], ["--mapped"]):
        run("plan", "--model", place.model, "--lora", 2, *SIZES, *more, "--json", tmp_path / "p.json")
        totals.append(read(tmp_path / "p.json")["total_bytes"])
    assert totals[0] - totals[1] == sizes[1] - sizes[0] > 0
    assert "--mapped is of a model in files" in run("plan", "--mapped", code=2).stderr


@pytest.mark.parametrize("lines, reason", [
    ('{"question": "a", "answer": "b"}\n', "line 1: must be an example"), ("", "must have an example a line; got none"),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n', "line 2"), ('{"prompt": "a"\n', "no JSON")])
def test_bad_examples_are_named_and_leave_nothing(lines, reason, place):
    place.data.write_text(lines)
    assert reason in place.tune(*LORA, code=1).stderr
    assert not place.out.exists()


def test_a_vocabulary_larger_than_the_models_is_refused(place, tmp_path):
    cllm.Model(Llama(vocab_size=60, n_layers=1, d_model=16, n_heads=4, d_ff=24, max_seq_len=64, n_kv_heads=2, tied=True),
               seed=1).save_pretrained(tmp_path / "small")
    place.model = tmp_path / "small"
    written(place.data, [{"prompt": "1+1 ", "completion": "2"}, {"prompt": "a", "completion": "b"}])
    found = place.tune(*LORA, code=1).stderr
    assert "train.jsonl, line 2: must have tokens below the model's vocab_size = 60; got 98" in found
    assert not place.out.exists()


@pytest.mark.parametrize("more, reason, code", [
    (["--lora", 0], "add_lora(rank=...)", 1), (["--lora", 2, "--targets", "z"], "'z'", 1), (["--alpha", 3], "give --lora", 2),
    (["--steps", 3, "--epochs", 2], "say the same", 2), (["--epochs", 0], "above 0", 2), (["--mapped"], "give --lora", 2),
    (["--lora", 2, "--memory-budget", "10KB"], "must be at least", 1), (["--trainable", "none"], "every pattern must", 1),
    (["--lora", 2, "--dropout", 2], "dropout", 1), (["--tokenizer", "/none"], "/none", 1), (["--valid", "/none"], "/none", 1),
    (["--batch-size", 0], "batch_size", 1)], ids=str)
def test_what_cannot_be_is_refused_before_anything_is_made(more, reason, code, place):
    assert reason in place.tune(*more, code=code).stderr
    assert not place.out.exists()


def test_what_begins_needs_a_model_and_examples(place):
    assert "--model is missing" in run("finetune", "--data", place.data, "--out", place.out, code=2).stderr
    assert "--data is missing" in run("finetune", "--model", place.model, "--out", place.out, code=2).stderr


@pytest.mark.parametrize("more, reason", [
    (["--lora", 4], "lora 2 there, 4 now"), (["--alpha", 3], "alpha 16.0 there, 3.0 now"),
    (["--no-packing"], "packing True there"), (["--seq-len", 30], "seq_len 24 there, 30 now"),
    (["--lr", 0.5], "lr 0.01 there, 0.5 now"), (["--targets", "q"], "targets")])
def test_a_run_goes_on_as_it_began_or_not_at_all(more, reason, place):
    place.tune(*LORA, "--steps", 1)
    assert reason in run("finetune", "--out", place.out, "--resume", "--steps", 2, *more, code=1).stderr


def test_other_examples_and_other_kinds_of_runs_are_refused(place, tmp_path):
    place.tune(*LORA, "--steps", 1)
    assert "must be a directory without a run" in place.tune(*LORA, "--steps", 1, code=1).stderr
    other = written(tmp_path / "other.jsonl", sums(30, seed=9))
    again = ["finetune", "--out", place.out, "--resume", "--steps", 2]
    assert "must be the batch with which the run began" in run(*again, "--data", other, code=1).stderr
    place.valid.unlink()
    assert "valid.jsonl" in run(*again, code=1).stderr  # said, not passed over
    run(*again, "--valid", other)
    assert "Use cllm finetune --resume" in run("train", "--out", place.out, "--resume", code=1).stderr
    run("train", "--preset", "tiny", "--out", tmp_path / "text", "--steps", 1, "--batch-size", 1, "--seq-len", 16)
    assert "must be a run that cllm finetune began" in run("finetune", "--out", tmp_path / "text", "--resume", code=1).stderr


def test_epochs_are_passes_and_rates_are_those_of_the_kind(place, tmp_path):
    place.tune("--lora", 2, "--epochs", 1.5, "--json", tmp_path / "a.json")
    data, result = cllm.FineTuningData(place.data, cllm.ByteTokenizer(), 2, 24), read(tmp_path / "a.json")
    assert result["step"] == -(-3 * len(data) // 2) and result["settings"]["lr"] == 2e-4
    place.tune("--json", tmp_path / "b.json", out=tmp_path / "all")
    assert read(tmp_path / "b.json")["step"] == len(data) and read(tmp_path / "b.json")["settings"]["lr"] == 2e-5


def test_samples_answer_the_first_example_held_back(place):
    first = read_line(place.valid)["prompt"]
    place.tune(*LORA, "--steps", 2, "--sample-every", 2)
    (sample,) = [line for line in read_lines(place.out / "metrics.jsonl") if line["event"] == "sample"]
    model, _ = load_snapshot(place.out / "step-000002")
    pieces = stream_text(model, cllm.ByteTokenizer(), first, 200, seed=2)
    assert sample["text"] == "".join(piece for _, piece in pieces)


def read_line(path):
    return json.loads(path.read_text().splitlines()[0])


def test_a_chat_is_tuned_sampled_and_merged_with_its_tokenizer(place, tmp_path):
    library = pytest.importorskip("tokenizers", reason="needs the extra hf")
    letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    made = library.Tokenizer(library.models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = library.pre_tokenizers.ByteLevel(add_prefix_space=False), library.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(place.model / "tokenizer.json"))
    model = cllm.Model(replace(TOY, d_model=32, d_ff=64), seed=1)
    model.parameters["tok_emb.weight"][...] *= 40  # a head that adapters alone can do something with
    model.save_pretrained(place.model)
    chats = [{"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 2}]}
             for word in ("cd",)]
    written(place.data, chats)
    said = run("finetune", "--model", place.model, "--data", place.data, "--out", place.out, "--lora", 8, "--targets", "all",
               "--lr", 1e-2, "--alpha", 32, "--batch-size", 2, "--seq-len", 64, "--threads", 1, "--epochs", 60,
               "--show-examples", 1, "--quiet", "--json", tmp_path / "a.json").output
    assert "train | c·d·c·d·<|im_end|>" in said
    asked = ["--chat", "--prompt", "say cd", "--temperature", 0, "--tokens", 20]
    answer = run("sample", place.out, *asked).output
    losses = read(tmp_path / "a.json")["losses"]
    assert answer.strip() == "cdcd" and losses[-1] < 0.2 * losses[0] and answer != run("sample", place.model, *asked).output
    run("merge", place.out, tmp_path / "whole", "--dtype", "float32")
    shutil.rmtree(place.model)
    assert run("sample", tmp_path / "whole", *asked).output == answer


def test_all_weights_of_a_file_of_ours_are_tuned_and_go_on(place, tmp_path):
    cllm.from_pretrained(place.model).save(tmp_path / "base")
    command = ["finetune", "--data", place.data, "--tokenizer", "bytes", *SIZES, "--out", tmp_path / "x"]
    run(*command, "--model", tmp_path / "base", "--steps", 2)
    (tmp_path / "base").unlink()
    assert "resumed after step 2" in run("finetune", "--out", tmp_path / "x", "--resume", "--steps", 3).output
    assert (tmp_path / "x" / "step-000003" / "model.safetensors").exists()
