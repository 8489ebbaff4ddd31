"""The oracle itself: against the golden files, and its backward against central differences of its forward.

The assertion helpers that all other tests lean on are shown to be able to fail (law 12).
"""
import json

import numpy as np
import oracle
import pytest

GOLDEN = ["gpt2_like", "lattice", "clock_relu_untied", "prime_tanh_mse", "crystalline"]

VARIANTS = {
    "full": {},
    "lattice": dict(qkv="lattice", qkv_bias=False, out_proj=False),
    "lattice with bias": dict(qkv="lattice"),
    "untied, no positions, no qkv_bias": dict(tied=False, positions="none", qkv_bias=False),
    "untied mse": dict(tied=False, loss="mse", positions="sinusoidal", out_proj=False),
    "tanh spiral mse": dict(activation="tanh", positions="spiral", loss="mse"),
    "relu clock": dict(activation="relu", positions="clock"),
    "prime crystalline": dict(positions="prime", attention="crystalline"),
    "crystalline distance only": dict(attention="crystalline", crystalline=("distance",)),
    "one head, one layer": dict(n_heads=1, n_layers=1),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_oracle_equals_the_golden_file(name):
    config, arrays = oracle.read_golden(name)
    logits, loss, gradients = oracle.run(config, oracle.under(arrays, "param/"), arrays["tokens"], arrays["targets"])
    oracle.assert_near(logits, arrays["logits"], 1e-12, "logits")
    oracle.assert_near(loss, arrays["loss"], 1e-12, "loss")
    oracle.assert_near(gradients, oracle.under(arrays, "grad/"), 1e-12)
    assert {k: v.shape for k, v in oracle.under(arrays, "param/").items()} == oracle.shapes(config)


def test_oracle_repeats_the_golden_adamw_run():
    config, arrays = oracle.read_golden("gpt2_like")
    hyper = json.loads(str(arrays["adamw/hyper"]))
    parameters = {k: v.copy() for k, v in oracle.under(arrays, "param/").items()}
    state = {}
    for step, (tokens, targets) in enumerate(zip(arrays["adamw/tokens"], arrays["adamw/targets"], strict=True)):
        lr = oracle.rate(step, *(hyper[k] for k in ("lr", "warmup", "total", "min_lr")))
        _, loss, gradients = oracle.run(config, parameters, tokens, targets)
        norm = oracle.clip(gradients, hyper["clip"])
        oracle.adamw(parameters, gradients, state, lr, hyper["beta1"], hyper["beta2"], hyper["eps"],
                     hyper["weight_decay"])
        for got, key in ((loss, "loss"), (norm, "grad_norm"), (lr, "lr")):
            oracle.assert_near(got, arrays[f"adamw/{key}"][step], 1e-9, f"step {step} {key}")
    oracle.assert_near(parameters, oracle.under(arrays, "adamw/final/"), 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_oracle_gradient_equals_central_differences(variant):
    """Along drawn directions of each parameter, in which every element has a part."""
    config = {**oracle.CONFIG, "max_seq_len": 5, "vocab_size": 7, "d_model": 8, "d_ff": 6, **VARIANTS[variant]}
    parameters = oracle.draw_parameters(config, seed=3)
    if config["loss"] == "mse":  # the target's row is held constant, so no target's row may be looked up as a token
        tokens, targets = np.array([[0, 1, 2, 0], [1, 2, 3, 2]]), np.array([[4, 5, -1, 6], [6, 6, 5, 4]])
        untestable = {"tok_emb.weight": np.arange(7) >= 4}
    else:
        tokens, targets = oracle.draw_batch(config, B=2, T=4)
        untestable = {}
    _, _, gradients = oracle.run(config, parameters, tokens, targets, num_targets=5)
    rng = np.random.default_rng(0)
    for name, array in parameters.items():
        for _ in range(2):
            direction, step, losses = rng.normal(0, 1, array.shape), 1e-5, []
            direction[untestable.get(name, np.zeros(array.shape[0], bool))] = 0
            direction /= np.linalg.norm(direction)
            for sign in (1, -1):
                moved = {**parameters, name: array + sign * step * direction}
                losses.append(oracle.run(config, moved, tokens, targets, num_targets=5)[1])
            a, n = (gradients[name] * direction).sum(), (losses[0] - losses[1]) / (2 * step)
            assert abs(a - n) <= 1e-6 * max(abs(a), abs(n)) + 1e-9, f"{name}: {a} against {n}"


def test_oracle_mse_holds_the_target_row_constant():
    config = {**oracle.CONFIG, "loss": "mse"}
    parameters = oracle.draw_parameters(config)
    _, _, gradients = oracle.run(config, parameters, np.array([[0, 1]]), np.array([[5, 6]]))
    assert not gradients["tok_emb.weight"][5:].any() and gradients["tok_emb.weight"][:2].any()


def test_assert_near_can_fail():
    reference = np.array([1.0, -2.0])
    oracle.assert_near(reference + 1e-12, reference, 1e-10)
    for wrong in (reference + 1e-8, reference[:1], reference[None], np.array([1.0, np.nan]), np.array([np.inf, -2.0])):
        with pytest.raises(AssertionError):
            oracle.assert_near(wrong, reference, 1e-10)
    with pytest.raises(AssertionError):
        oracle.assert_near(np.array([1e-30]), np.array([0.0]), 1e-10)
    with pytest.raises(AssertionError):
        oracle.assert_near({"a": reference}, {"a": reference, "b": reference}, 1e-10)
    with pytest.raises(AssertionError):
        oracle.assert_near({"a": reference, "b": 2 * reference}, {"a": reference, "b": reference}, 1e-10)


def test_assert_same_bits_can_fail():
    reference = np.array([1.0, 0.0, 3.0], dtype=np.float32)
    oracle.assert_same_bits(reference.copy(), reference)
    oracle.assert_same_bits([{"a": reference.copy()}, 1.5], [{"a": reference}, 1.5])
    for wrong in (np.nextafter(reference, np.float32(9)), reference.astype(float), reference[:2], reference[None],
                  np.array([1.0, -0.0, 3.0], dtype=np.float32)):
        with pytest.raises(AssertionError):
            oracle.assert_same_bits(wrong, reference)
    for wrong, right in (({"a": reference}, {"b": reference}), ([1.5], [1.5, 1.5]), ([1.5, 2.0], [1.5, 1.5]),
                         (1.5, np.nextafter(1.5, 2))):
        with pytest.raises(AssertionError):
            oracle.assert_same_bits(wrong, right)
    nan = np.array([np.nan])
    oracle.assert_same_bits(nan, nan.copy())
    with pytest.raises(AssertionError):
        oracle.assert_same_bits(nan, -nan)
