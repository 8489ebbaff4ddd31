"""Every family at a toy size: gradients proved by differences, bits under every plan, its settings as plain data."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm.layers import Rope
from cllm.models.families import FAMILIES, architecture_of, model_of
from cllm.models.gemma import Gemma
from cllm.models.llama import Llama, Multipliers
from cllm.models.neox import NeoX
from cllm.models.phi import Phi

HF = Path(__file__).parents[1] / "golden" / "hf"
SIZES = dict(vocab_size=13, n_layers=2, d_model=8, n_heads=4, d_ff=6, max_seq_len=9)
TOYS = {
    "llama": Llama(**SIZES, n_kv_heads=2, head_dim=6, rotary=4, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm="head",
                   window=3, windowed=(True, False), turned=(False, True)),
    "llama, norms after, tied": Llama(**SIZES, n_kv_heads=1, norm_after=True, qk_norm="row", activation="gelu_erf", tied=True,
                                      rope=Rope(kind="yarn", factor=4.0, original=4), pad=2),
    "granite": Llama(**SIZES, n_kv_heads=2, multipliers=Multipliers(3.0, 0.4, 0.22, 2.5), tied=True, model_type="granite"),
    "gemma 2": Gemma(**SIZES, n_kv_heads=2, head_dim=4, window=3, windowed=(True, False), query_scalar=5, attn_softcap=2.0,
                     logit_softcap=3.0, pad=0),
    "gemma 3": Gemma(**SIZES, n_kv_heads=1, head_dim=6, window=2, windowed=(True, False), rope=Rope(1e6), local_rope=Rope(1e4),
                     qk_norm=True, attention_bias=True, tied=False, model_type="gemma3_text"),
    "neox": NeoX(**SIZES, rotary=2),
    "neox, one after the other": NeoX(**SIZES, rotary=2, parallel=False, attention_bias=False, tied=True, activation="silu"),
    "phi": Phi(**SIZES, n_kv_heads=2, rotary=2),
    "phi, tied": Phi(**SIZES, rotary=0, tied=True, activation="relu", pad=1),
}


def feeds(architecture, batch=3, time=7):
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(0, architecture.vocab_size, (batch, time)).astype(np.int32) for _ in range(2))
    targets[0, 2] = -1
    return tokens, targets


@pytest.fixture(params=TOYS)
def toy(request):
    return TOYS[request.param]


def test_every_family_is_here():
    assert {type(toy) for toy in TOYS.values()} == set(FAMILIES.values()) - {cllm.ModelConfig, FAMILIES["crystalline"]}


def test_gradients_equal_central_differences(toy):
    model = model_of(toy, seed=1, dtype="float64")
    rng = np.random.default_rng(2)
    for values in model.parameters.values():  # nothing stays at zero or one
        values += rng.normal(0, 0.2, values.shape)
    tokens, targets = feeds(toy, 2, 6)
    tokens[tokens == getattr(toy, "pad", None)] = 5  # whose row no lookup trains
    found = cllm.gradcheck(model, strategy="selective", elements=6, tokens=tokens, targets=targets)
    assert found.passed, str(found)


def test_bits_depend_on_no_plan_cut_or_thread_count(toy, lossless_strategies):
    tokens, targets = feeds(toy)
    found = {}
    for number, (name, strategy) in enumerate({**lossless_strategies, "cache@2": "cache@2", "sqrt@1": "sqrt@1"}.items()):
        model = model_of(toy)
        executor = cllm.Executor(model, *tokens.shape, strategy=strategy, num_threads=1 + number % 3)
        loss = executor.loss_and_grad(tokens, targets)
        assert executor.high_water_bytes == executor.memory.arena_bytes and executor.plan.exact
        found[name] = loss, b"".join(g.tobytes() for g in model.gradients.values())
    assert {name for name in found if found[name] != found["cache"]} == set()


def test_a_later_token_changes_no_earlier_logit_and_sampling_sees_the_same(toy):
    from cllm.sampling import Decoder

    model = model_of(toy, dtype="float64")
    tokens, _ = feeds(toy, 1, 8)
    executor = cllm.Executor(model, 1, 8)
    whole = executor.logits(tokens)[0]
    changed = tokens.copy()
    changed[0, 5:] = (changed[0, 5:] + 1) % toy.vocab_size
    assert executor.logits(changed)[0, :5].tobytes() == whole[:5].tobytes()
    decoder = Decoder(model)
    parts = [decoder.read(tokens[0, :3]), *(decoder.read(tokens[0, i:i + 1]) for i in range(3, 8))]
    assert np.abs(np.concatenate(parts) - whole).max() <= 1e-12 * np.abs(whole).max()


def test_settings_are_plain_data_and_come_back(toy):
    record = json.loads(json.dumps({"family": toy.family, "config": toy.to_dict()}))
    again = architecture_of(record)
    assert again == toy and again.program.digest == toy.program.digest


def test_norms_of_one_plus_w_begin_as_they_should():
    """With w at zero a norm leaves lengths as they are: the factor is 1 + w."""
    parameters = model_of(TOYS["gemma 3"]).parameters
    norms = [values for name, values in parameters.items() if "ln" in name or "norm" in name]
    assert norms and not any(values.any() for values in norms)
    assert (model_of(TOYS["llama"]).parameters["blocks.0.ln1.weight"] == 1).all()


def test_granite_is_llama_with_its_multipliers_folded_into_the_weights(tmp_path):
    """Against the reference of llama: weights divided by what Granite multiplies by give its logits, loss and gradients."""
    source, by = HF / "llama", {"embedding_multiplier": 3.0, "attention_multiplier": 0.7, "residual_multiplier": 0.22,
                                "logits_scaling": 6.0}
    shutil.copytree(source, tmp_path / "granite")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "granite" / "config.json").write_text(json.dumps({**config, "model_type": "granite", **by}))
    model, plain = cllm.from_pretrained(tmp_path / "granite", dtype="float64"), cllm.from_pretrained(source, dtype="float64")
    queries = plain.architecture.n_heads * plain.architecture.head_dim
    factors = {"tok_emb.weight": 1 / 3.0, "head.weight": 6.0}
    for name in model.parameters:
        factor = np.array(factors.get(name, 1 / 0.22 if name.endswith(("attn.out.weight", "mlp.fc2.weight")) else 1.0))
        if name.endswith("attn.qkv.weight"):
            factor = np.ones(model.parameters[name].shape[1])
            factor[:queries] = plain.architecture.head_dim ** -0.5 / 0.7
        factors[name] = factor
        model.parameters[name][...] *= factor
    golden = np.load(source / "golden.npz")
    runs = [cllm.Executor(m, *golden["tokens"].shape) for m in (model, plain)]
    logits = runs[0].logits(golden["tokens"])
    assert np.abs(logits - golden["logits"]).max() <= 1e-10 * np.abs(golden["logits"]).max()
    losses = [run.loss_and_grad(golden["tokens"], golden["targets"]) for run in runs]
    assert losses[0] == pytest.approx(float(golden["loss"]), rel=1e-10) and losses[1] == pytest.approx(losses[0], rel=1e-10)
    for name, gradient in model.gradients.items():
        expected = plain.gradients[name]  # proved equal to the reference elsewhere
        assert np.abs(gradient * factors[name] - expected).max() <= 1e-9 * np.abs(expected).max(), name
    model.source = None
    model.save_pretrained(tmp_path / "again")
    again = cllm.from_pretrained(tmp_path / "again", dtype="float64")
    assert again.architecture == model.architecture


@pytest.mark.parametrize("kind, settings, match", [
    (Gemma, {"n_kv_heads": 3}, "n_kv_heads"), (Gemma, {"head_dim": 5}, "head_dim"), (Gemma, {"windowed": (True,)}, "windowed"),
    (Gemma, {"activation": "tanh"}, "activation"),
    (Gemma, {"query_scalar": 24.0}, "query_scalar"), (Gemma, {"attn_softcap": 0.0}, "attn_softcap"),
    (Gemma, {"model_type": "gemma"}, "model_type"), (Phi, {"n_heads": 3}, "n_heads"), (Phi, {"n_kv_heads": 3}, "n_kv_heads"),
    (Phi, {"rotary": 1}, "rotary"), (Phi, {"activation": "tanh"}, "activation"), (Phi, {"pad": 13}, "pad")])
def test_a_setting_outside_what_it_may_be_is_refused(kind, settings, match):
    more = dict(n_kv_heads=2, head_dim=4, window=3) if kind is Gemma else {}
    with pytest.raises(cllm.ConfigError, match=match):
        kind(**{**SIZES, **more, **settings})


def test_a_multiplier_is_above_zero():
    with pytest.raises(cllm.ConfigError, match="Multipliers.logits"):
        Multipliers(logits=0.0)


def test_a_scaled_branch_is_not_dropped():
    with pytest.raises(cllm.DeclarationError, match="must not both be given"):
        cllm.layers.Residual(C=4, rate=0.1, scale=0.5)
