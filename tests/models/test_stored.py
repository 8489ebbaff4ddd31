"""Frozen matrices read as they lie in files: the numbers of their expanded copies, in the bytes that the files have."""
import mmap
import pickle
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.models.choosing import forms_at
from cllm.planning import decide, ledger_of
from cllm.program.stored import can_be_stored, with_stored
from cllm.snapshot.base import base_sha256
from cllm.weights.stored import Stored

HF = Path(__file__).parents[1] / "golden" / "hf"
PLACES = [("gpt2_bf16", "bfloat16"), ("llama", "bfloat16"), ("phi3", "float16"), ("gpt_neox", "float32"),
          ("gemma2", "bfloat16"), ("smollm2_head_repeated", "float16"), ("olmo2", "float32"), ("phi", "bfloat16")]


def bits(arrays):
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def of_a_file(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def tuned(base, compute="float32"):
    """Gradients of adapters on every product after a step, and the executor that made them."""
    adapted = cllm.add_lora(base, 2, targets="all")
    adapted.compute = compute
    tokens = np.random.default_rng(0).integers(0, base.architecture.vocab_size, (2, 3, 6))
    executor = cllm.Executor(adapted, 3, 6, cllm.RecomputeAll(micro_batch=2))
    for name, array in adapted.parameters.items():
        if "lora_b" in name:
            array[...] = np.random.default_rng(1).normal(0, 0.1, array.shape)
    executor.loss_and_grad(*tokens)
    return bits(adapted.gradients), executor


@pytest.mark.parametrize("name, dtype", PLACES)
def test_a_directory_is_mapped_in_its_own_dtype(name, dtype, tmp_path):
    place = HF / name
    if name != "gpt2_bf16" and dtype != "float32":
        cllm.from_pretrained(place).save_pretrained(tmp_path / "narrow", dtype=dtype)
        place = tmp_path / "narrow"
    before = {path: path.read_bytes() for path in place.glob("*.safetensors")}
    plain, mapped = cllm.from_pretrained(place), cllm.from_pretrained(place, mapped=True)
    matrices = can_be_stored(mapped.program)
    assert len(matrices) > 3 and not any(mapped.parameters[n].flags.writeable for n in matrices)
    narrow = {n for n in matrices if isinstance(mapped.parameters[n], Stored)}
    assert (narrow == matrices) == (dtype != "float32") and narrow
    plain.trainable = ()
    assert bits(mapped.parameters) == bits(plain.parameters) and base_sha256(mapped) == base_sha256(plain)
    assert all(of_a_file(data) for n in narrow for _, data, _ in mapped.parameters[n].parts)  # pages that processes share
    assert mapped.held_bytes == sum(array.nbytes for array in mapped.parameters.values())
    for compute in ("float32", "bfloat16"):
        (mine, executor), (theirs, reference) = (tuned(base, compute) for base in (mapped, plain))
        assert mine == theirs and any(array.strip(b"\0") for array in mine.values())
        assert executor.high_water_bytes == executor.memory.arena_bytes == reference.memory.arena_bytes
        saved = reference.memory.total_bytes - executor.memory.total_bytes
        assert saved == sum(plain.parameters[n].nbytes - mapped.parameters[n].nbytes for n in matrices)
        assert executor.plan.fingerprint != reference.plan.fingerprint
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def narrow(tmp_path):
    """A directory in bfloat16."""
    cllm.from_pretrained(HF / "llama").save_pretrained(tmp_path / "narrow", dtype="bfloat16")
    return tmp_path / "narrow"


def test_only_what_is_frozen_is_mapped_and_nothing_of_it_is_trained(narrow):
    model = cllm.from_pretrained(narrow, trainable=("*fc1*", "*ln*"), mapped=True)
    assert {n for n, array in model.parameters.items() if array.flags.writeable} >= set(model.gradients)
    stored = [n for n, array in model.parameters.items() if isinstance(array, Stored)]
    assert stored == ["tok_emb.weight", *(f"blocks.{i}.{n}.weight" for i in range(model.program.n_blocks)
                                          for n in ("attn.qkv", "attn.out", "mlp.fc2")), "head.weight"]
    tokens = np.zeros((2, 1, 4), np.int32)
    whole = cllm.from_pretrained(narrow)
    for one in (model, whole):
        cllm.Executor(one, 1, 4).loss_and_grad(*tokens)
    assert all(array.tobytes() == whole.gradients[n].tobytes() for n, array in model.gradients.items())
    for patterns in (None, "*qkv*"):
        with pytest.raises(cllm.ConfigError, match="model.trainable: must match no parameter that is mapped from a file; got "
                                                   "(blocks.0.attn.qkv|tok_emb).weight, stored in BF16"):
            model.trainable = patterns
    with pytest.raises(cllm.ConfigError, match=r"plan\(trainable=...\): must match no .* got tok_emb.weight, stored in BF16"):
        cllm.plan(model, 1, 4, trainable="tok_emb*")
    with pytest.raises(cllm.ConfigError, match="must store .* only matrices that every layer reads so; got ln_f.weight"):
        with_stored(model.program, {"ln_f.weight": model.parameters["tok_emb.weight"].form})


def test_a_plan_made_of_headers_is_that_of_the_model(narrow):
    architecture = cllm.from_pretrained(narrow, mapped=True).architecture
    for trainable in ((), "*ln*", ("*qkv*", "head*")):
        forms = forms_at(narrow, architecture, trainable)
        model = cllm.from_pretrained(narrow, trainable=trainable, mapped=True)
        if trainable:
            plan = decide("cache", ledger_of(architecture, 2, 6, trainable=trainable, stored=forms))
            assert plan.total_bytes == cllm.plan(model, 2, 6).total_bytes == cllm.Executor(model, 2, 6, plan).memory.total_bytes
        assert with_stored(model.program, forms).digest == model.program.digest


def test_copies_files_and_other_processes(narrow, tmp_path):
    model = cllm.from_pretrained(narrow, mapped=True)
    whole = bits(cllm.from_pretrained(narrow).parameters)
    copy, wide, sent = model.copy(), model.copy("float64"), pickle.loads(pickle.dumps(model))
    assert copy.parameters["head.weight"] is model.parameters["head.weight"]
    assert isinstance(sent.parameters["head.weight"], Stored)
    assert bits(copy.parameters) == bits(sent.parameters) == whole
    assert all(isinstance(array, np.ndarray) and array.astype("float32").tobytes() == whole[n] for n, array in
               wide.parameters.items())
    assert copy.program.digest == sent.program.digest == model.program.digest
    model.save(tmp_path / "ours")
    assert bits(cllm.load(tmp_path / "ours").parameters) == whole
    saved = model.save_pretrained(tmp_path / "again")
    assert saved.changed == 0
    for path in narrow.glob("*.safetensors"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    merged = cllm.merge_adapter(cllm.add_lora(model, 2, targets=("q", "v")))
    assert bits(merged.parameters) == whole
    assert isinstance(merged.parameters["head.weight"], Stored)
    assert merged.parameters["blocks.0.attn.qkv.weight"].flags.writeable


def test_text_is_that_of_the_expanded_copy_and_divergence_is_named(narrow):
    plain, mapped = (cllm.from_pretrained(narrow, mapped=mapped) for mapped in (False, True))
    assert np.array_equal(*(cllm.generate(model, [1, 2, 3], 5, temperature=0.0) for model in (plain, mapped)))
    model = cllm.add_lora(cllm.from_pretrained(narrow, mapped=True), 2)
    model.parameters["blocks.0.attn.qkv.lora_a.weight"][...] = np.nan
    model.parameters["blocks.0.attn.qkv.lora_b.weight"][...] = 1
    with pytest.raises(cllm.NonFiniteError, match="parameter blocks.0.attn.qkv.lora_a.weight"):
        cllm.Executor(model, 1, 4).loss_and_grad(*np.zeros((2, 1, 4), np.int32))


def test_an_optimizer_and_float64_take_none_of_it(narrow):
    wide = cllm.from_pretrained(narrow, "float64", mapped=True)
    assert not any(isinstance(array, Stored) for array in wide.parameters.values())
    with pytest.raises(cllm.ShapeError, match="must be float32 of shape"):
        cllm.Model(wide.architecture, trainable=(), arrays={"head.weight": cllm.from_pretrained(narrow, mapped=True).parameters[
            "tok_emb.weight"][:3]})
