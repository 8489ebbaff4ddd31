"""Adapters in PEFT's files: golden logits, loss, gradients and merged weights; every byte back; what is refused, by name."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.layers import AdaptedLinear
from cllm.models.adapter_files import PREFIX, _adapters_of, _modules
from cllm.weights.header import read_header

HF = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("gpt2", "llama")
WEIGHTS = "adapter_model.safetensors"


def near(got, expected, tolerance):
    return np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def in_files(model, arrays):
    """Arrays of a model's adapters as the files name and order them."""
    modules, found = _modules(model.architecture.base, model.source), {}
    for step in model.program.steps:
        if isinstance(step.layer, AdaptedLinear):
            mine = {name: part for name, part in modules.items() if part.parameter == step.params["weight"]}
            for module, pair in _adapters_of(step, mine, *(arrays[step.params[f"lora_{w}"]] for w in "ab")).items():
                found |= {f"{PREFIX}{module}.lora_{w}.weight": array for w, array in zip("AB", pair, strict=True)}
    return found


def loaded(name, dtype="float32"):
    return cllm.load_adapter(cllm.from_pretrained(HF / name, dtype=dtype), HF / f"lora_{name}")


@pytest.mark.parametrize("dtype, logits_tolerance, gradient_tolerance", [("float64", 1e-10, 1e-9), ("float32", 2e-5, 2e-4)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_gradients(name, dtype, logits_tolerance, gradient_tolerance):
    golden, model = np.load(HF / f"lora_{name}" / "golden.npz"), loaded(name, dtype)
    executor = cllm.Executor(model, *golden["tokens"].shape, strategy="selective", num_threads=2)
    assert near(executor.logits(golden["tokens"]), golden["logits"], logits_tolerance)
    loss = executor.loss_and_grad(golden["tokens"], golden["targets"])
    assert near(np.array(loss), golden["loss"], logits_tolerance) and executor.high_water_bytes == executor.memory.arena_bytes
    gradients = {key.removeprefix("grad/"): golden[key] for key in golden.files if key.startswith("grad/")}
    ours = in_files(model, model.gradients)
    assert ours.keys() == gradients.keys() and len(model.gradients) == 4
    for tensor, expected in gradients.items():
        assert near(ours[tensor], expected, gradient_tolerance), tensor


@pytest.mark.parametrize("name", NAMES)
def test_merged_weights(name, tmp_path):
    golden, model = np.load(HF / f"lora_{name}" / "golden.npz"), loaded(name)
    before = {n: parameter.copy() for n, parameter in model.parameters.items()}
    merged = cllm.merge_adapter(model)
    assert not any("lora" in n for n in merged.parameters) and merged.trainable is None
    tensors = merged.architecture.tensors(None)
    for key in (key for key in golden.files if key.startswith("merged/")):
        part = tensors[key.removeprefix("merged/")]
        assert np.abs(part.read(merged.parameters[part.parameter]) - golden[key]).max() <= 1e-6, key
    assert near(cllm.Executor(merged, *golden["tokens"].shape).logits(golden["tokens"]), golden["logits"], 2e-5)
    saved = merged.save_pretrained(tmp_path)
    again = cllm.from_pretrained(tmp_path)
    assert saved.changed and again.architecture == merged.architecture
    for n, parameter in merged.parameters.items():
        assert parameter.tobytes() == again.parameters[n].tobytes()
    for n, parameter in model.parameters.items():
        assert parameter.tobytes() == before[n].tobytes()  # merging leaves the model as it was


def test_merged_weights_are_saved_in_the_dtype_of_the_base(tmp_path):
    model = cllm.add_lora(cllm.from_pretrained(HF / "gpt2_bf16"), targets="qkv", rank=2)
    for name in model.gradients:
        model.parameters[name][...] = np.random.default_rng(0).normal(0, 0.3, model.parameters[name].shape)
    cllm.merge_adapter(model).save_pretrained(tmp_path)
    header, _ = read_header(tmp_path / "model.safetensors")
    assert {tensor.code for tensor in header.values()} == {"BF16"}


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_comes_back(name, tmp_path):
    assert cllm.save_adapter(loaded(name), tmp_path) == tmp_path
    before, after = (read_header(directory / WEIGHTS)[0] for directory in (HF / f"lora_{name}", tmp_path))
    assert before.keys() == after.keys()
    for tensor in before:
        assert before[tensor].raw().tobytes() == after[tensor].raw().tobytes() and after[tensor].code == "F32"
    first, second = (json.loads((d / "adapter_config.json").read_text()) for d in (HF / f"lora_{name}", tmp_path))
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "fan_in_fan_out",
                "lora_dropout", "inference_mode"):
        assert first[key] == second[key], key
    assert sorted(first["target_modules"]) == second["target_modules"]
    assert second["base_model_name_or_path"] == str(HF / name)


@pytest.fixture
def directory(tmp_path):
    """A copy of an adapter's directory, and a way to change its settings."""
    def make(name="llama", **changes):
        path = tmp_path / f"lora_{name}"
        shutil.copytree(HF / f"lora_{name}", path, dirs_exist_ok=True)
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        return path
    return make


@pytest.mark.parametrize("name, value", [
    ("peft_type", "IA3"), ("use_dora", True), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 2}),
    ("alpha_pattern", {"q_proj": 2}), ("bias", "all"), ("lora_bias", True), ("layers_to_transform", [0]),
    ("init_lora_weights", "pissa"), ("trainable_token_indices", [3]), ("target_parameters", ["experts"]),
    ("loftq_config", {"bits": 4}), ("use_qalora", True), ("r", 0), ("r", "4"), ("lora_alpha", None), ("lora_alpha", -1)])
def test_what_is_not_built_is_refused_by_name(name, value, directory):
    with pytest.raises(cllm.SnapshotError, match=f"adapter_config.json, {name}: must be"):
        cllm.load_adapter(cllm.from_pretrained(HF / "llama"), directory(**{name: value}))


def test_an_adapter_of_another_model_or_shape_is_refused(directory, tmp_path):
    llama, gpt2 = (cllm.from_pretrained(HF / name) for name in ("llama", "gpt2"))
    for model, path, match in ((gpt2, directory(), r"must adapt linear modules .*layers.0.self_attn.q_proj"),
                               (llama, directory("gpt2"), r"must adapt linear modules .*h.0.attn.c_attn"),
                               (llama, directory(r=3), r"floats of shape \(3, 48\).*lora_A.weight; got F32 of shape \(4, 48\)"),
                               (llama, tmp_path, "must be a directory with adapter_config.json")):
        with pytest.raises(cllm.SnapshotError, match=match):
            cllm.load_adapter(model, path)
    path = directory()
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(cllm.SnapshotError, match="whole safetensors file"):
        cllm.load_adapter(llama, path)
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(cllm.SnapshotError, match="must be a JSON object"):
        cllm.load_adapter(llama, path)


@pytest.mark.parametrize("change, match", [
    (lambda pairs: pairs.pop(next(name for name in pairs if "lora_B" in name)), "must hold floats of shape .*lora_B"),
    (lambda pairs: pairs.update({"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}), "tensors named"),
    (lambda pairs: pairs.clear(), "must hold adapters")])
def test_tensors_that_are_no_adapters_are_refused(change, match, directory):
    from cllm.weights.directory import Write, write_adapter
    path = directory()
    pairs = {name: np.array(tensor.raw()) for name, tensor in read_header(path / WEIGHTS)[0].items()}
    change(pairs)
    writes = [Write(name, "F32", array.shape, WEIGHTS, lambda array=array: array) for name, array in pairs.items()]
    write_adapter(path, json.loads((path / "adapter_config.json").read_text()), WEIGHTS, writes)
    with pytest.raises(cllm.SnapshotError, match=match):
        cllm.load_adapter(cllm.from_pretrained(HF / "llama"), path)


def test_an_adapter_is_no_model_and_says_what_to_do():
    with pytest.raises(cllm.SnapshotError, match="load_adapter"):
        cllm.from_pretrained(HF / "lora_llama")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cllm.SnapshotError, match="save_adapter.*must be a place that can be written"):
        cllm.save_adapter(loaded("llama"), tmp_path / "file" / "out")


@pytest.mark.parametrize("name, targets, rslora", [
    ("gpt2", ("q", "v", "mlp.c_proj"), False), ("gpt2", ("q", "v", "mlp.c_proj"), True), ("phi3", ("q", "v", "down"), False),
    ("phi3", "all", True), ("gpt_neox", ("q", "v"), False), ("gpt_neox", "all", False), ("llama", ("qkv", "gate"), False),
    ("qwen2", "all", False), ("gemma3", ("blocks.1.*.q", "up"), True), ("phi", "all", False), ("olmo2", ("o", "down"), False)])
def test_what_is_saved_computes_the_same_when_it_is_loaded(name, targets, rslora, tmp_path):
    """Also where one module of the files holds several parts, or a part spans several modules."""
    base = cllm.from_pretrained(HF / name, dtype="float64")
    model, rng = cllm.add_lora(base, 3, 5, targets, rslora), np.random.default_rng(0)
    for n in model.gradients:
        model.parameters[n][...] = rng.normal(0, 0.2, model.parameters[n].shape).astype(np.float32)
    again = cllm.load_adapter(base, cllm.save_adapter(model, tmp_path))
    tokens = np.load(HF / name / "golden.npz")["tokens"]
    logits = [cllm.Executor(m, *tokens.shape).logits(tokens) for m in (model, again, base, cllm.merge_adapter(model))]
    assert near(logits[1], logits[0], 1e-12) and near(logits[3], logits[0], 1e-12)
    assert not near(logits[2], logits[0], 1e-2)
    if "qkv" not in targets and name not in ("gpt2", "phi3", "gpt_neox"):
        assert again.parameters.keys() == model.parameters.keys()
        assert all(again.parameters[n].tobytes() == model.parameters[n].tobytes() for n in model.gradients)
