"""transformers and PEFT read what we save, family by family: equal logits, loss and gradients. Needs the extra interop."""
import numpy as np
import pytest

import cllm
from cllm.layers import Rope
from cllm.models.families import model_of
from cllm.models.gemma import Gemma
from cllm.models.llama import Llama, Multipliers
from cllm.models.neox import NeoX
from cllm.models.phi import Phi
from cllm.pretrained import file_names

SIZES = dict(vocab_size=97, n_layers=3, d_model=32, n_heads=4, d_ff=48, max_seq_len=32)
KINDS = {
    "gpt2": cllm.ModelConfig(**SIZES),
    "llama": Llama(**SIZES, n_kv_heads=2, head_dim=12, rope=Rope(kind="llama3", factor=8.0, original=16), tied=True),
    "mistral": Llama(**SIZES, n_kv_heads=1, window=6, model_type="mistral"),
    "qwen2": Llama(**SIZES, n_kv_heads=2, qkv_bias=True, window=5, windowed=(False, True, True), model_type="qwen2"),
    "qwen3": Llama(**SIZES, n_kv_heads=2, head_dim=16, qk_norm="head", model_type="qwen3"),
    "smollm3": Llama(**SIZES, n_kv_heads=2, turned=(True, False, True), tied=True, model_type="smollm3"),
    "phi3": Llama(**SIZES, n_kv_heads=2, rotary=6, window=7, model_type="phi3"),
    "olmo2": Llama(**SIZES, n_kv_heads=2, norm_after=True, qk_norm="row", model_type="olmo2"),
    "granite": Llama(**SIZES, n_kv_heads=2, multipliers=Multipliers(3.0, 0.4, 0.22, 2.5), tied=True, model_type="granite"),
    "granite, biases": Llama(**SIZES, n_kv_heads=2, qkv_bias=True, out_bias=True, mlp_bias=True, model_type="granite",
                             multipliers=Multipliers(12.0, 0.015, 0.22, 8.0)),
    "gemma2": Gemma(**SIZES, n_kv_heads=2, head_dim=16, window=5, windowed=(True, False, True), query_scalar=24,
                    attn_softcap=5.0, logit_softcap=8.0, pad=0),
    "gemma3": Gemma(**SIZES, n_kv_heads=1, head_dim=16, window=5, windowed=(True, True, False), local_rope=Rope(1e4),
                    rope=Rope(1e6, kind="linear", factor=8.0), qk_norm=True, query_scalar=24, pad=0, model_type="gemma3_text"),
    "neox": NeoX(**SIZES, rotary=2), "phi": Phi(**SIZES, n_kv_heads=2, rotary=4), "phi, tied": Phi(**SIZES, tied=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_save(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra interop")
    transformers = pytest.importorskip("transformers", reason="needs the extra interop")
    model, rng = model_of(KINDS[kind], seed=2), np.random.default_rng(3)
    for values in model.parameters.values():
        values += rng.normal(0, 0.15, values.shape).astype(np.float32)
    model.save_pretrained(tmp_path)
    tokens = rng.integers(1, 97, (2, 20)).astype(np.int32)
    targets = np.roll(tokens, -1, axis=1)
    targets[:, -1] = -1
    ours = model.copy("float64")
    executor = cllm.Executor(ours, *tokens.shape)
    logits, loss = executor.logits(tokens), executor.loss_and_grad(tokens, targets)

    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True,
                                                                     attn_implementation="eager")
    theirs.eval()
    assert not any(said.values()), said
    out = theirs(torch.from_numpy(tokens).long()).logits
    assert np.abs(out.detach().numpy() - logits).max() <= 5e-6 * np.abs(logits).max()
    aims = torch.from_numpy(targets).long().flatten()
    their_loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), aims, ignore_index=-1)
    assert float(their_loss.detach()) == pytest.approx(loss, rel=5e-6)
    their_loss.backward()
    names = file_names(ours)
    names |= {"lm_head.weight": names["embed_out.weight"]} if kind == "neox" else {}  # so called once it is loaded
    seen = {name: value.grad.numpy() for name, value in theirs.named_parameters() if name in names}
    assert {names[name][0] for name in seen} == set(ours.parameters)
    for name, gradient in seen.items():
        parameter, part = names[name]
        expected = part.read(ours.gradients[parameter])
        assert np.abs(gradient - expected).max() <= 2e-5 * np.abs(expected).max(), name


TARGETS = (("q", "v"), "all", ("qkv", "o"), ("q", "fc2"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_we_save_and_we_what_it_saves(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra interop")
    transformers = pytest.importorskip("transformers", reason="needs the extra interop")
    peft = pytest.importorskip("peft", reason="needs the extra interop")
    base, rng = model_of(KINDS[kind], seed=2), np.random.default_rng(3)
    base.save_pretrained(tmp_path / "base")
    number = list(KINDS).index(kind)
    model = cllm.add_lora(base, 4, 6, TARGETS[number % len(TARGETS)], rslora=number % 3 == 0)
    for name in model.gradients:
        model.parameters[name][...] = rng.normal(0, 0.15, model.parameters[name].shape)
    cllm.save_adapter(model, tmp_path / "adapter")
    tokens = rng.integers(1, 97, (2, 20)).astype(np.int32)
    logits = cllm.Executor(model.copy("float64"), *tokens.shape).logits(tokens)

    def theirs(directory):
        found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32,
                                                                  attn_implementation="eager")
        return peft.PeftModel.from_pretrained(found, directory).eval()

    read = theirs(tmp_path / "adapter")
    out = read(torch.from_numpy(tokens).long()).logits.detach().numpy()
    assert np.abs(out - logits).max() <= 5e-6 * np.abs(logits).max()
    assert np.abs(cllm.Executor(base, *tokens.shape).logits(tokens) - logits).max() > 1e-2 * np.abs(logits).max()
    merged = read.merge_and_unload().state_dict()
    ours = cllm.merge_adapter(model)
    for name, part in base.architecture.tensors(None).items():
        if name != base.architecture.head:  # GPT-NeoX's has another name in memory than in files
            assert np.abs(part.read(ours.parameters[part.parameter]) - merged[name].numpy()).max() <= 1e-6, name

    theirs(tmp_path / "adapter").save_pretrained(tmp_path / "again")
    again = cllm.load_adapter(base, tmp_path / "again")
    got = cllm.Executor(again.copy("float64"), *tokens.shape).logits(tokens)
    assert np.abs(got - logits).max() <= 1e-9 * np.abs(logits).max()
