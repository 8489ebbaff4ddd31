"""Crystalline attention in the model: its settings, its parameters, and what is left when it is switched off."""
import itertools

import numpy as np
import oracle
import pytest

import cllm
from cllm.layers.lattice import lattice_coordinates

PARTS = ("rotation", "distance", "bias")
ON = {**oracle.CONFIG, "attention": "crystalline"}


def test_coordinates_are_those_of_the_formula():
    phi, primes = (1 + 5 ** 0.5) / 2, (2, 3, 5, 7, 11, 13)
    for t, (x, y, z) in enumerate(lattice_coordinates(6)):
        a = t * 2 * np.pi / phi ** 2
        expected = t ** 0.5 * np.cos(a), t ** 0.5 * np.sin(a), np.log(primes[t] + 1)
        assert (x, y, z) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("parts", [c for n in range(4) for c in itertools.combinations(PARTS, n)], ids="+".join)
def test_each_part_brings_its_own_parameters(parts):
    model = cllm.GPT(cllm.ModelConfig(**ON, crystalline=parts))
    assert ("blocks.0.attn.alpha" in model.parameters) == ("distance" in parts)
    assert ("blocks.1.attn.beta" in model.parameters) == ("bias" in parts)
    assert list(model.tables) == (["lattice.coordinates"] if "distance" in parts else [])


def test_parameters_start_as_declared_and_do_not_decay():
    model = cllm.GPT(cllm.ModelConfig(**ON))
    alpha, beta = (model.parameters[f"blocks.0.attn.{name}"] for name in ("alpha", "beta"))
    assert (alpha == -4).all() and alpha.shape == (2,)
    assert not beta.any() and beta.shape == (2, 12)
    assert not any(p.decays for n, p in model.program.parameters.items() if n.endswith(("alpha", "beta")))


def trained(config, copies):
    """Losses, gradients and weights of two steps."""
    model = cllm.GPT(cllm.ModelConfig(**config), seed=3)
    ex, opt = cllm.Executor(model, batch_size=2, seq_len=9), cllm.AdamW(model, lr=1e-2)
    losses = []
    for step in range(2):
        model.zero_grad()
        losses.append(ex.loss_and_grad(*oracle.draw_batch(config, 2, 9, seed=step)))
        opt.step()
    return losses, copies(model.gradients), copies(model.parameters)


@pytest.mark.parametrize("qkv", ["full", "lattice"])
def test_without_parts_it_is_plain_attention_to_the_last_bit(qkv, copies):
    off = trained({**ON, "qkv": qkv, "crystalline": ()}, copies)
    oracle.assert_same_bits(list(off), list(trained({**oracle.CONFIG, "qkv": qkv}, copies)))


def test_each_part_changes_the_logits(new_model):
    tokens, _ = oracle.draw_batch(oracle.CONFIG, 2, 9)
    seen = []
    for parts in ((), ("rotation",), ("distance",), ("bias",), PARTS):
        model = new_model({**ON, "crystalline": parts})
        seen.append(cllm.Executor(model, batch_size=2, seq_len=9).logits(tokens))
    for one, other in itertools.combinations(seen, 2):
        assert np.abs(one - other).max() > 1e-3


def test_training_moves_alpha_and_beta():
    model = cllm.GPT(cllm.ModelConfig(**ON))
    ex, opt = cllm.Executor(model, batch_size=4, seq_len=9), cllm.AdamW(model, lr=1e-2)
    for step in range(5):
        model.zero_grad()
        ex.loss_and_grad(*oracle.draw_batch(ON, 4, 9, seed=step))
        opt.step()
    for i in range(2):
        assert (model.parameters[f"blocks.{i}.attn.alpha"] != -4).all()
        assert (model.parameters[f"blocks.{i}.attn.beta"] != 0).mean() > 0.9


def test_a_model_is_saved_and_loaded_with_its_parts(tmp_path, new_model):
    model = new_model({**ON, "crystalline": ("distance", "bias")}, "float32")
    model.save(tmp_path / "m.safetensors")
    loaded = cllm.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config and loaded.config.crystalline == ("distance", "bias")
    oracle.assert_same_bits(dict(loaded.parameters), dict(model.parameters))


def test_parts_are_kept_in_order_and_once():
    assert cllm.ModelConfig(**ON, crystalline=["bias", "rotation", "bias"]).crystalline == ("rotation", "bias")


@pytest.mark.parametrize("parts", ["rotation", ("turn",), (1,), None, {"bias": True}])
def test_other_parts_are_refused(parts):
    with pytest.raises(cllm.ConfigError, match="rotation, distance, bias"):
        cllm.ModelConfig(**ON, crystalline=parts)


def test_rotation_needs_an_even_number_of_channels():
    odd = {**ON, "d_model": 6, "n_heads": 2}
    with pytest.raises(cllm.ConfigError, match="even number of channels"):
        cllm.ModelConfig(**odd)
    cllm.ModelConfig(**odd, crystalline=("distance", "bias"))
    cllm.ModelConfig(**{**odd, "attention": "softmax"})


def test_nothing_is_stored_for_each_pair_of_tokens():
    """The arena grows by as much from 2T to 4T as twice from T to 2T: no array is T x T."""
    sizes = []
    for T in (576, 1152, 2304):  # whole tiles
        config = cllm.ModelConfig(**{**ON, "max_seq_len": T})
        plan = cllm.plan(config, batch_size=1, seq_len=T, strategy=cllm.RecomputeAll(), num_threads=2)
        sizes.append(plan.arena_bytes)
    assert abs((sizes[2] - sizes[1]) - 2 * (sizes[1] - sizes[0])) < 4096
