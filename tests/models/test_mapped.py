"""Parameters mapped read-only from files: the same numbers, shared pages, and nobody who writes into them."""
import re
from pathlib import Path

import numpy as np
import pytest

import cllm

HF = Path(__file__).parents[1] / "golden" / "hf"
CONFIG = cllm.ModelConfig(13, 2, 8, 2, 12, 9)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 3, 6))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_of_ours_is_mapped_whole_and_trained_by_adapters(dtype, tmp_path):
    model = cllm.Model(CONFIG, seed=4, dtype=dtype)
    model.save(tmp_path / "base")
    before = (tmp_path / "base").read_bytes()
    mapped = cllm.load(tmp_path / "base", mapped=True)
    assert mapped.trainable == () and not any(array.flags.writeable for array in mapped.parameters.values())
    assert all(array.tobytes() == model.parameters[n].tobytes() for n, array in mapped.parameters.items())
    tuned = []
    for base in (model, mapped):
        adapted = cllm.add_lora(base, 2, targets="all")
        executor, optimizer = cllm.Executor(adapted, 3, 6), cllm.AdamW(adapted, lr=1e-2)
        for _ in range(3):
            adapted.zero_grad()
            executor.loss_and_grad(*TOKENS)
            cllm.clip_grad_norm(adapted, 1.0)
            optimizer.step()
        assert executor.high_water_bytes == executor.memory.arena_bytes
        tuned.append(cllm.merge_adapter(adapted))
    assert all(array.tobytes() == tuned[0].parameters[n].tobytes() for n, array in tuned[1].parameters.items())
    assert (tmp_path / "base").read_bytes() == before
    copied = mapped.copy()
    copied.trainable = None
    cllm.Executor(copied, 3, 6).loss_and_grad(*TOKENS)


def test_what_is_mapped_is_not_trained(tmp_path):
    cllm.Model(CONFIG).save(tmp_path / "base")
    mapped = cllm.load(tmp_path / "base", mapped=True)
    for patterns in (None, "ln_f.*"):
        with pytest.raises(cllm.ConfigError, match="must match no parameter that is mapped from a file; got"):
            mapped.trainable = patterns
    some = cllm.load(tmp_path / "base", mapped=True, trainable="ln_f.*")
    assert {n for n, array in some.parameters.items() if array.flags.writeable} == {"ln_f.weight", "ln_f.bias"}
    assert all((array == mapped.parameters[n]).all() for n, array in some.parameters.items())
    with pytest.raises(cllm.ConfigError, match="every pattern must match a parameter; got 'lnf'"):
        cllm.load(tmp_path / "base", mapped=True, trainable="lnf")
    assert mapped.trainable == () and not mapped.gradients
    with pytest.raises(cllm.ConfigError, match="must have a parameter to train"):
        cllm.AdamW(mapped)


@pytest.mark.parametrize("name, copied", [("gpt2", ""), ("llama", ""), ("gpt2_bf16", "ln|bias|pos_emb")])
def test_tensors_are_mapped_but_for_narrow_vectors(name, copied):
    plain, mapped = cllm.from_pretrained(HF / name), cllm.from_pretrained(HF / name, mapped=True)
    for n, array in mapped.parameters.items():
        assert array.flags.writeable == bool(copied and re.search(copied, n)), n
        assert np.asarray(array).tobytes() == plain.parameters[n].tobytes()
    some = cllm.from_pretrained(HF / name, mapped=True, trainable="*ln*")
    assert all(some.parameters[n].flags.writeable for n in some.gradients) and some.gradients


def test_mapped_models_train_in_a_run_and_diverge_by_name(tmp_path):
    architecture = cllm.ModelConfig(256, 2, 8, 2, 12, 9)
    cllm.Model(architecture).save(tmp_path / "base")
    model = cllm.add_lora(cllm.load(tmp_path / "base", mapped=True))
    text = np.frombuffer(bytes(range(200)) * 5, np.uint8)
    result = cllm.Trainer(model, text, tmp_path / "run", steps=2, batch_size=2, seq_len=5).run()
    assert result.step == 2
    model.parameters["blocks.0.attn.qkv.lora_b.weight"][...] = np.nan
    with pytest.raises(cllm.NonFiniteError, match=r"parameter blocks.0.attn.qkv.lora_b.weight"):
        cllm.Executor(model, 3, 6).loss_and_grad(*TOKENS)


def test_a_file_of_another_model_or_damaged_is_refused(tmp_path):
    cllm.Model(CONFIG).save(tmp_path / "base")
    data = bytearray((tmp_path / "base").read_bytes())
    data[-3] ^= 1
    (tmp_path / "base").write_bytes(data)
    with pytest.raises(cllm.SnapshotError, match="another checksum"):
        cllm.load(tmp_path / "base", mapped=True)


@pytest.mark.parametrize("array", [np.zeros((13, 9), np.float32), np.zeros((13, 8)), np.zeros((8, 13), np.float32).T])
def test_arrays_that_are_none_of_the_model_are_refused(array):
    with pytest.raises(cllm.ShapeError, match="tok_emb.weight: must be float32 of shape .13, 8., C-contiguous"):
        cllm.Model(CONFIG, arrays={"tok_emb.weight": array})
