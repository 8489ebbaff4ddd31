"""GGUF files: blocks expanded as their formulas say, rows put back, and a model, tokenizer and template out of one file."""
import json
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.models.choosing import forms_at
from cllm.models.gguf import halves, shortest
from cllm.models.llama import Llama
from cllm.program.stored import forms_of
from cllm.weights.blocks import BYTES, expanded
from cllm.weights.gguf import read_gguf
from cllm.weights.stored import Stored

HF = Path(__file__).parents[1] / "golden" / "hf"
THEIRS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_BLOCK = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
            "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def test_blocks_are_what_their_formulas_say():
    rng = np.random.default_rng(0)
    d, m = np.float16(0.37), np.float16(-1.5)
    q8 = rng.integers(-127, 128, 32).astype(np.int8)
    raw = np.frombuffer(d.tobytes() + q8.tobytes(), np.uint8)[None]
    assert (expanded(raw, "Q8_0")[0] == np.float32(d) * q8).all()
    q4 = rng.integers(0, 16, 32).astype(np.uint8)
    packed = (q4[:16] | q4[16:] << 4).tobytes()
    raw = np.frombuffer(d.tobytes() + packed, np.uint8)
    assert (expanded(raw, "Q4_0") == np.float32(d) * (q4.astype(np.float32) - 8)).all()
    raw = np.frombuffer(d.tobytes() + m.tobytes() + packed, np.uint8)
    assert (expanded(np.stack([raw, raw]), "Q4_1") == np.float32(d) * q4 + np.float32(m)).all()
    assert all(expanded(np.zeros((3, 2 * size), np.uint8), kind).shape == (3, 64) for kind, size in BYTES.items())


def test_rows_of_neighbours_become_halves():
    rows = np.arange(12)[:, None]  # two heads of six channels, neighbours turn together
    assert halves(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert shortest(float(np.float32(1e-5))) == 1e-5 and shortest(100000.0) == 1e5


@pytest.fixture
def write(tmp_path):
    """A GGUF file of a directory's model, as llama.cpp writes it."""
    gguf = pytest.importorskip("gguf", reason="needs the extra hf")

    def make(directory, kind="F32", arch=None, leave=(), **more):
        model = cllm.from_pretrained(directory)
        c, config = model.architecture, json.loads((Path(directory) / "config.json").read_text())
        arch = arch or {"mistral": "llama"}.get(config["model_type"], config["model_type"])
        path = tmp_path / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        for add, value in ((writer.add_block_count, c.n_layers), (writer.add_context_length, c.max_seq_len),
                           (writer.add_embedding_length, c.d_model), (writer.add_feed_forward_length, c.d_ff),
                           (writer.add_head_count, c.n_heads), (writer.add_head_count_kv, c.n_kv_heads),
                           (writer.add_key_length, c.head_dim), (writer.add_rope_freq_base, c.rope.theta),
                           (writer.add_layer_norm_rms_eps, c.norm_eps)):
            add(value)
        for key, value in more.items():
            key = key.replace("__", ".")
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool,
             list: writer.add_array}[type(value)](key, value)
        for name, part in c.tensors(None).items():
            values = np.ascontiguousarray(part.read(model.parameters[part.parameter]))
            stem, _, ending = name.rpartition(".")
            block = stem.split(".")[2] if ".layers." in stem else None
            ours = THEIRS.get(stem) or f"blk.{block}.{IN_BLOCK[stem.split('.', 3)[3]]}"
            if arch == "llama" and ours.endswith(("attn_q", "attn_k")):
                heads = c.n_heads if ours.endswith("_q") else c.n_kv_heads
                values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            if ours in leave:
                continue
            if kind == "F32" or values.ndim == 1:
                writer.add_tensor(f"{ours}.{ending}", values)
            else:
                code = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(f"{ours}.{ending}", gguf.quants.quantize(values, code), raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
    return make


@pytest.mark.parametrize("name, more", [
    ("smollm2", {}), ("qwen2", {}), ("qwen3", {}), ("mistral_window5", {"llama__attention__sliding_window": 5})])
def test_a_file_gives_the_reference(write, name, more, tmp_path):
    model = cllm.from_gguf(write(HF / name, **more), dtype="float64")
    golden = np.load(HF / name / "golden.npz")
    logits = cllm.Executor(model, *golden["tokens"].shape).logits(golden["tokens"])
    assert np.abs(logits - golden["logits"]).max() <= 1e-10 * np.abs(golden["logits"]).max()
    model.save_pretrained(tmp_path / "again")  # a directory of its own
    again = cllm.from_pretrained(tmp_path / "again", dtype="float64")
    assert again.architecture == model.architecture
    for parameter, values in model.parameters.items():
        assert (again.parameters[parameter] == values).all()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_blocks_of_a_file_equal_the_librarys_own(write, tmp_path, kind):
    gguf = pytest.importorskip("gguf", reason="needs the extra hf")
    made = cllm.Model(Llama(vocab_size=64, n_layers=1, d_model=64, n_heads=4, d_ff=96, max_seq_len=8, n_kv_heads=2), seed=3)
    made.save_pretrained(tmp_path / "whole")
    path = write(tmp_path / "whole", kind)
    model = cllm.from_gguf(path)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "blk.0.ffn_down.weight":
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(64, 96)
            assert (model.parameters["blocks.0.mlp.fc2.weight"] == expected.T).all()
            error = np.abs(expected.T - made.parameters["blocks.0.mlp.fc2.weight"]).max() / np.abs(expected).max()
            assert 0 < error < 0.1


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_read_as_they_lie_in_a_file_that_is_mapped(write, tmp_path, kind):
    made = cllm.Model(Llama(vocab_size=64, n_layers=2, d_model=64, n_heads=4, d_ff=96, max_seq_len=8, n_kv_heads=2), seed=3)
    made.save_pretrained(tmp_path / "whole")
    path = write(tmp_path / "whole", kind)
    before, plain, mapped = path.read_bytes(), cllm.from_gguf(path), cllm.from_gguf(path, mapped=True)
    for name, array in mapped.parameters.items():
        assert np.asarray(array).tobytes() == plain.parameters[name].tobytes(), name
        as_it_stands = kind == "F32" and name in ("tok_emb.weight", "head.weight")
        assert isinstance(array, Stored) == (array.ndim == 2 and not as_it_stands) and not array.flags.writeable
    tokens = np.random.default_rng(0).integers(0, 64, (2, 3, 6))
    found = []
    for base in (plain, mapped):
        adapted = cllm.add_lora(base, 2, targets="all")
        for name in adapted.gradients:
            adapted.parameters[name][...] = np.random.default_rng(1).normal(0, 0.1, adapted.parameters[name].shape)
        executor = cllm.Executor(adapted, 3, 6)
        found.append((executor.loss_and_grad(*tokens), [gradient.tobytes() for gradient in adapted.gradients.values()]))
        assert executor.high_water_bytes == executor.memory.arena_bytes
    assert found[0] == found[1] and path.read_bytes() == before
    assert executor.memory.parameter_bytes == sum(array.nbytes for array in adapted.parameters.values())
    orders = 4 * 2 * (64 + 32)  # rows of q and k, in two blocks
    held = sum(array.nbytes for array in mapped.parameters.values() if array.ndim == 2) - orders
    assert held == sum(t.data.nbytes for n, t in read_gguf(path).tensors.items() if "norm" not in n)
    assert forms_at(path, mapped.architecture, ()) == forms_of(mapped.program)
    got = "tok_emb.weight" + (", stored in" if kind != "F32" else "")
    with pytest.raises(cllm.ConfigError, match=f"mapped from a file; got {got}"):
        mapped.trainable = "tok_emb*"
    assert cllm.from_gguf(path, trainable="*fc1*", mapped=True).parameters["blocks.0.mlp.fc1.weight"].flags.writeable


@pytest.mark.parametrize("more, error, match", [
    ({"arch": "mamba"}, cllm.ConfigError, "general.architecture: must be one of llama"),
    ({"llama__expert_count": 8}, cllm.ConfigError, "expert_count"),
    ({"llama__rope__scaling__type": "yarn"}, cllm.ConfigError, "yarn"),
    ({"llama__rope__dimension_count": 4}, cllm.ConfigError, "rope.dimension_count"),
    ({"leave": ("blk.0.attn_v",)}, cllm.SnapshotError, "hold every parameter; got model.layers.0.self_attn.v_proj.weight")])
def test_what_is_not_built_is_refused_by_name(write, more, error, match):
    with pytest.raises(error, match=match):
        cllm.from_gguf(write(HF / "smollm2", **more))


def test_other_kinds_of_blocks_and_damaged_files_are_refused(write, tmp_path):
    path = write(HF / "smollm2")
    data = bytearray(path.read_bytes())
    place = data.index(b"blk.0.attn_norm.weight") + len("blk.0.attn_norm.weight") + 4 + 8
    data[place:place + 4] = (16).to_bytes(4, "little")  # IQ2_XXS
    (tmp_path / "other.gguf").write_bytes(data)
    (tmp_path / "cut.gguf").write_bytes(data[:300])
    (tmp_path / "none.gguf").write_bytes(b"nothing")
    for name in ("other", "cut", "none", "missing"):
        with pytest.raises(cllm.SnapshotError, match="IQ2|whole GGUF|can be read"):
            cllm.from_gguf(tmp_path / f"{name}.gguf")


def test_tokenizer_and_template_come_out_of_the_file(write, tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    from cllm.pretrained import Speech

    letters = [chr(ord("Ā") + n) if n <= 32 or n in (127, 129, 141, 143, 144, 157, 160, 173) else chr(n) for n in range(90)]
    tokens = ["<|im_start|>", "<|im_end|>", *letters[:90], "he", "hel", "lo", "hello", "Ġ", "x" * 3, "12", "y" * 3, "zz"][:101]
    more = {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "smollm", "tokenizer__ggml__tokens": tokens,
            "tokenizer__ggml__token_type": [3, 3] + [1] * (len(tokens) - 2), "tokenizer__ggml__merges": ["1 2"],
            "tokenizer__ggml__eos_token_id": 1, "tokenizer__ggml__bos_token_id": 0,
            "tokenizer__chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"}
    path = write(HF / "smollm2", **more)
    speech = Speech.beside(path)
    assert speech.stops == (1,) and speech.special["bos_token"] == "<|im_start|>"
    assert speech.tokenizer.encode("12<|im_end|>").tolist() == [tokens.index("1"), tokens.index("2"), 1]  # digits stay apart
    cllm.from_gguf(path).save_pretrained(tmp_path / "saved")
    assert Speech.beside(tmp_path / "saved").tokenizer.definition == speech.tokenizer.definition
    assert Speech.beside(tmp_path / "saved").template == speech.template
    other = write(HF / "smollm2", **{**more, "tokenizer__ggml__pre": "jais"})
    with pytest.raises(cllm.DataError, match="tokenizer.json"):
        Speech.beside(other)
