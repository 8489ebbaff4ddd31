"""Directories of the ecosystem: logits, loss and every gradient equal an independent reference, every byte comes back."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.pretrained import file_names, read_architecture
from cllm.weights.directory import find_tensors

HF = Path(__file__).parents[1] / "golden" / "hf"
NAMES = sorted(path.name for path in HF.iterdir() if (path / "config.json").exists())
BUFFERS = (".attn.bias", ".attn.masked_bias")


def near(got, expected, tolerance):
    return np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def gradient_of(model, names, name):
    parameter, part = names[name if name in names else name.removeprefix("transformer.")]
    return part.read(model.gradients[parameter])


@pytest.mark.parametrize("dtype, logits_tolerance, gradient_tolerance", [("float64", 1e-10, 1e-9), ("float32", 2e-5, 2e-4)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_every_gradient(name, dtype, logits_tolerance, gradient_tolerance):
    golden = np.load(HF / name / "golden.npz")
    model = cllm.from_pretrained(HF / name, dtype=dtype)
    executor = cllm.Executor(model, *golden["tokens"].shape, strategy="selective", num_threads=2)
    assert near(executor.logits(golden["tokens"]), golden["logits"], logits_tolerance)
    loss = executor.loss_and_grad(golden["tokens"], golden["targets"])
    assert near(np.array(loss), golden["loss"], logits_tolerance) and executor.high_water_bytes == executor.memory.arena_bytes
    names = file_names(model)
    checked = [key.removeprefix("grad/") for key in golden.files if key.startswith("grad/")]
    for tensor in checked:
        assert near(gradient_of(model, names, tensor), golden[f"grad/{tensor}"], gradient_tolerance), tensor
    assert len(checked) >= len(model.parameters)


@pytest.mark.parametrize("dtype, logits_tolerance, gradient_tolerance", [("float64", 1e-10, 1e-9), ("float32", 2e-5, 2e-4)])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rows_of_several_documents(name, dtype, logits_tolerance, gradient_tolerance):
    golden = np.load(HF / f"packed_{name}" / "golden.npz")
    model = cllm.from_pretrained(HF / name, dtype=dtype)
    executor = cllm.Executor(model, *golden["tokens"].shape, strategy="selective@1", num_threads=2, packed=True)
    feeds = {key: golden[key] for key in ("tokens", "targets", "positions")}
    assert near(executor.logits(feeds["tokens"], positions=feeds["positions"]), golden["logits"], logits_tolerance)
    assert near(np.array(executor.loss_and_grad(**feeds)), golden["loss"], logits_tolerance)
    names = file_names(model)
    checked = [key.removeprefix("grad/") for key in golden.files if key.startswith("grad/")]
    for tensor in checked:
        assert near(gradient_of(model, names, tensor), golden[f"grad/{tensor}"], gradient_tolerance), tensor
    assert len(checked) >= len(model.parameters) and executor.high_water_bytes == executor.memory.arena_bytes


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_comes_back(name, tmp_path):
    model = cllm.from_pretrained(HF / name)
    saved = model.save_pretrained(tmp_path)
    before, after = find_tensors(HF / name), find_tensors(tmp_path)
    assert set(after) == {n for n in before if not n.endswith(BUFFERS)} and saved.changed == saved.lost == 0
    for tensor, there in after.items():
        assert there.raw().tobytes() == before[tensor].raw().tobytes(), tensor
        first = before[tensor]
        assert (there.code, there.shape, there.file.name) == (first.code, first.shape, first.file.name)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((HF / name / "config.json").read_text())
    if (HF / name / "generation_config.json").exists():
        assert (tmp_path / "generation_config.json").read_bytes() == (HF / name / "generation_config.json").read_bytes()


@pytest.mark.parametrize("name", [name for name in NAMES if (HF / name / "config_v4.json").exists()])
def test_both_generations_of_keys_say_the_same(name, tmp_path):
    shutil.copytree(HF / name, tmp_path / name)
    shutil.copy(HF / name / "config_v4.json", tmp_path / name / "config.json")
    assert read_architecture(tmp_path / name)[0] == read_architecture(HF / name)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_written_anew_means_the_same(name, tmp_path):
    """Without what was loaded, the family's own config.json and names are written, and read back to the same model."""
    model = cllm.from_pretrained(HF / name)
    model.source = None
    model.save_pretrained(tmp_path)
    again = cllm.from_pretrained(tmp_path)
    assert again.architecture == model.architecture
    for parameter, values in model.parameters.items():
        assert values.tobytes() == again.parameters[parameter].tobytes()


@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_five_steps_of_adamw(name):
    """Weight decay is on matrices and embeddings."""
    golden = np.load(HF / f"adamw_{name}" / "golden.npz")
    model = cllm.from_pretrained(HF / name, dtype="float64")
    optimizer = cllm.AdamW(model, lr=float(golden["lr"]), betas=tuple(golden["betas"]), eps=float(golden["eps"]),
                           weight_decay=float(golden["weight_decay"]))
    executor = cllm.Executor(model, *golden["tokens"].shape[1:], strategy="recompute@1")
    for tokens, targets, loss in zip(golden["tokens"], golden["targets"], golden["losses"], strict=True):
        model.zero_grad()
        assert executor.loss_and_grad(tokens, targets) == pytest.approx(float(loss), rel=1e-9)
        optimizer.step()
    names = file_names(model)
    for key in golden.files:
        if key.startswith("final/"):
            parameter, part = names[key.removeprefix("final/")]
            assert near(part.read(model.parameters[parameter]), golden[key], 1e-9), key


@pytest.mark.parametrize("name", NAMES)
def test_sampling_step_by_step_equals_the_whole_forward(name):
    from cllm.sampling import Decoder

    model = cllm.from_pretrained(HF / name, dtype="float64")
    tokens = np.load(HF / name / "golden.npz")["tokens"][0]
    whole = cllm.Executor(model, 1, len(tokens)).logits(tokens[None])[0]
    decoder = Decoder(model)
    parts = [decoder.read(tokens[:5]), *(decoder.read(tokens[i:i + 1]) for i in range(5, 11)), decoder.read(tokens[11:])]
    assert near(np.concatenate(parts), whole, 1e-12)
