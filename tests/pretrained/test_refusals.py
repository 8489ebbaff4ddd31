"""What is no model, or one that is not built, is refused by name before anything is read; a header is never believed."""
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.pretrained import read_architecture
from cllm.weights.dtypes import narrowed, widened
from cllm.weights.header import read_header

HF = Path(__file__).parents[1] / "golden" / "hf"


@pytest.fixture
def directory(tmp_path):
    """A copy of a directory, and a way to change its config."""
    def make(name="qwen2", **changes):
        path = tmp_path / name
        if not path.exists():
            shutil.copytree(HF / name, path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))
        return path
    return make


@pytest.mark.parametrize("changes, match", [
    ({"model_type": "mamba"}, "model_type: must be one of gpt2"), ({"model_type": None}, "model_type"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"), ({"num_experts": 8}, "num_experts"),
    ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"), ({"text_config": {}}, "text_config"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type"),
    ({"hidden_act": "quick_gelu"}, "hidden_act"), ({"hidden_size": "48"}, "hidden_size"),
    ({"num_hidden_layers": 0}, "n_layers")])
def test_a_setting_that_is_not_built_is_refused_by_name(directory, changes, match):
    with pytest.raises(cllm.ConfigError, match=match):
        cllm.from_pretrained(directory(**changes))


def test_a_gpt2_that_scales_otherwise_is_refused(directory):
    with pytest.raises(cllm.ConfigError, match="scale_attn_by_inverse_layer_idx"):
        cllm.from_pretrained(directory("gpt2", scale_attn_by_inverse_layer_idx=True))


@pytest.mark.parametrize("changes, match", [
    ({"num_hidden_layers": 3, "layer_types": None}, "hold every parameter; got missing: .*layers.2"),
    ({"num_hidden_layers": 1, "layer_types": None}, "hold no unknown tensors; got unknown: .*layers.1"),
    ({"intermediate_size": 81}, "must be floats of shape"), ({"vocab_size": 100}, r"must be floats of shape \(100, 48\)")])
def test_tensors_that_do_not_belong_to_the_config_are_listed(directory, changes, match):
    with pytest.raises(cllm.SnapshotError, match=match):
        cllm.from_pretrained(directory(**changes))


def test_files_that_are_missing_damaged_or_pickled(directory, tmp_path):
    path = directory("llama_sharded")
    (path / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(cllm.SnapshotError, match="model-00003"):
        cllm.from_pretrained(path)
    shutil.copy(path / "model-00002-of-00005.safetensors", path / "model-00003-of-00005.safetensors")
    with pytest.raises(cllm.SnapshotError, match="as the index says"):
        cllm.from_pretrained(path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(cllm.SnapshotError, match="files of its own directory"):
        cllm.from_pretrained(path)
    path = directory("qwen2")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(cllm.SnapshotError, match="pickled"):
        cllm.from_pretrained(path)
    with pytest.raises(cllm.SnapshotError, match="config.json"):
        cllm.from_pretrained(tmp_path / "nowhere")


def test_an_adapter_alone_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(cllm.SnapshotError, match="an adapter"):
        cllm.from_pretrained(tmp_path)


def test_settings_of_phi_and_gemma_that_are_not_built_or_not_said(directory):
    with pytest.raises(cllm.ConfigError, match="qk_layernorm"):
        cllm.from_pretrained(directory("phi", qk_layernorm=True))
    with pytest.raises(cllm.ConfigError, match="use_bidirectional_attention"):
        cllm.from_pretrained(directory("gemma3", use_bidirectional_attention=True))
    more = {"gemma2": {}, "gemma3": {"sliding_window_pattern": 2, "use_bidirectional_attention": False}}
    second, third = (read_architecture(directory(name, layer_types=None, **more[name]))[0] for name in more)
    assert second.windowed == (True, False) and third.windowed == (True, False, True)


def described(**changes):
    """The header of one tensor of two floats, changed."""
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()


@pytest.mark.parametrize("header", [
    b"", b"[]", b"{", b"null", b'{"a": 1}', described(data_offsets=[0, 4]), described(shape=[1], data_offsets=[4, 8]),
    described(dtype="F31"), described(shape=[-2]), described(shape=[True, 2]), described(shape=[1], data_offsets=[0, 4]),
    described()[:-1] + b', "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'])
def test_a_header_that_does_not_describe_the_bytes_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(cllm.SnapshotError, match="whole safetensors file"):
        read_header(path)


def test_a_mutated_header_is_refused_or_means_whole_tensors(tmp_path):
    whole = (HF / "qwen2" / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    draw, refused = random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(8 + length)] = draw.randrange(256)
        if draw.random() < 0.3:
            data = data[:draw.randrange(len(data))]
        path = tmp_path / "m.safetensors"
        path.write_bytes(data)
        try:
            tensors, _ = read_header(path)
        except cllm.SnapshotError:
            refused += 1
        else:
            assert all(t.nbytes == 0 or t.start + t.nbytes <= len(data) for t in tensors.values())
    assert refused > 100


def test_bfloat16_is_rounded_to_nearest_even():
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32),
                             np.array([0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, 1e-40], np.float32)])
    got = widened(narrowed(values, "BF16", "x"), "BF16")
    bits = values.view(np.uint32).astype(np.uint64)
    for value, rounded, b in zip(values, got, bits, strict=True):
        if np.isnan(value):
            assert np.isnan(rounded)
        else:
            low, high = ((int(b) >> 16 << 16) + step for step in (0, 1 << 16))
            near = min((low, high), key=lambda k: (abs(k - int(b)), (k >> 16) & 1))
            assert rounded.view(np.uint32) == near, value
    with pytest.raises(cllm.SnapshotError, match="65504"):
        narrowed(np.array([1e6], np.float32), "F16", "x")


def test_saving_says_what_the_dtype_cannot_tell(tmp_path):
    model = cllm.from_pretrained(HF / "gpt2_bf16")
    weight = model.parameters["blocks.0.mlp.fc1.weight"]
    weight[0] *= 1 + 1e-6
    weight[1] *= 1.5
    saved = model.save_pretrained(tmp_path / "narrow")
    wide = model.save_pretrained(tmp_path / "wide", dtype="float32")
    assert saved.changed == wide.changed == 2 * weight.shape[1] and saved.lost == weight.shape[1] and wide.lost == 0
    assert "less than the dtype" in str(saved)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    again = cllm.from_pretrained(tmp_path / "wide")
    assert (again.parameters["blocks.0.mlp.fc1.weight"] == weight).all()
    with pytest.raises(cllm.ConfigError, match="save_pretrained"):
        model.save_pretrained(tmp_path, dtype="int8")


def test_a_family_without_such_files_says_what_keeps_it(tmp_path):
    for changes in ({"qkv": "lattice"}, {"loss": "mse"}):
        with pytest.raises(cllm.ConfigError, match="model.save"):
            cllm.GPT(cllm.ModelConfig.preset("tiny", **changes)).save_pretrained(tmp_path)


def test_a_head_that_differs_from_the_embedding_is_not_tied(tmp_path):
    model = cllm.from_pretrained(HF / "smollm2_head_repeated")
    assert model.architecture.tied
    model.save_pretrained(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    head = read_header(tmp_path / "model.safetensors")[0]["lm_head.weight"]
    data[head.start] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert not cllm.from_pretrained(tmp_path).architecture.tied


def test_a_loaded_model_is_saved_and_loaded_as_ours(tmp_path):
    for name in ("llama_yarn", "qwen3", "mistral_window5"):
        model = cllm.from_pretrained(HF / name)
        model.save(tmp_path / "model.safetensors")
        again = cllm.load(tmp_path / "model.safetensors")
        assert again.architecture == model.architecture and again.program.digest == model.program.digest
