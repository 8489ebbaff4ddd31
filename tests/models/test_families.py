"""What families of other people's models promise beside the laws, to which tests/families.py holds each of them."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES as OF_LAWS

import cllm
from cllm.models.families import FAMILIES, architecture_of, model_of
from cllm.models.gemma import Gemma
from cllm.models.llama import Multipliers
from cllm.models.phi import Phi

HF = Path(__file__).parents[1] / "golden" / "hf"
SIZES = dict(vocab_size=13, n_layers=2, d_model=8, n_heads=4, d_ff=6, max_seq_len=9)
TOYS = {name: family.architecture for name, family in OF_LAWS.items() if type(family.architecture) in FAMILIES.values()}


@pytest.fixture(params=TOYS)
def toy(request):
    return TOYS[request.param]


def test_settings_are_plain_data_and_come_back(toy):
    record = json.loads(json.dumps({"family": toy.family, "config": toy.to_dict()}))
    again = architecture_of(record)
    assert again == toy and again.program.digest == toy.program.digest


def test_norms_of_one_plus_w_begin_as_they_should():
    """With w at zero a norm leaves lengths as they are: the factor is 1 + w."""
    parameters = model_of(TOYS["gemma3_text"]).parameters
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
