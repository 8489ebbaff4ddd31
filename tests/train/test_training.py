"""Training as a user does it: small tasks are learned, losses fall on real text, gradients add up over calls."""
import numpy as np
import oracle
import pytest

import cllm
from cllm import corpus

TINY = dict(vocab_size=16, n_layers=2, d_model=16, n_heads=2, d_ff=32, max_seq_len=12)
STRATEGIES = {"cache": cllm.CacheAll(), "recompute": cllm.RecomputeAll(), "every:2, micro_batch=1":
              cllm.EveryNth(2, micro_batch=1)}


def fit(model, ex, batches, lr):
    """Losses of AdamW steps over the batches."""
    opt = cllm.AdamW(model, lr=lr, weight_decay=0.0)
    losses = []
    for tokens, targets in batches:
        model.zero_grad()
        losses.append(ex.loss_and_grad(tokens, targets))
        cllm.clip_grad_norm(model, 1.0)
        opt.step()
    return losses


@pytest.mark.parametrize("strategy_name", STRATEGIES)
@pytest.mark.parametrize("qkv", ["full", "lattice"])
def test_a_b_c_becomes_b_c_d(qkv, strategy_name):
    model = cllm.GPT(cllm.ModelConfig(**TINY, qkv=qkv), seed=0)
    ex = cllm.Executor(model, batch_size=1, seq_len=3, strategy=STRATEGIES[strategy_name])
    tokens, targets = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])
    losses = fit(model, ex, [(tokens, targets)] * 60, lr=1e-2)
    assert losses[0] > 2.0
    assert ex.loss(tokens, targets) < 0.01
    assert ex.logits(tokens).argmax(-1).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("tied", [True, False])
def test_one_example_is_overfitted(tied):
    model = cllm.GPT(cllm.ModelConfig(**TINY, tied=tied), seed=1)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 16, (1, 12)), rng.integers(0, 16, (1, 12))
    ex = cllm.Executor(model, batch_size=1, seq_len=12, strategy=cllm.RecomputeAll())
    losses = fit(model, ex, [(tokens, targets)] * 200, lr=1e-2)
    assert losses[0] > 2.0 and losses[-1] < 0.001


def test_losses_fall_on_the_embedded_text():
    text = corpus.embedded_text()
    data = np.frombuffer(text if isinstance(text, bytes) else text.encode(), dtype=np.uint8)
    assert len(data) > 600_000
    config = cllm.ModelConfig(vocab_size=256, n_layers=2, d_model=32, n_heads=4, d_ff=64, max_seq_len=24)
    model = cllm.GPT(config, seed=0)
    ex = cllm.Executor(model, batch_size=8, seq_len=24, strategy=cllm.Selective())
    rng = np.random.default_rng(0)

    def batches(n):
        for _ in range(n):
            rows = data[rng.integers(0, len(data) - 25, 8)[:, None] + np.arange(25)].astype(np.int64)
            yield rows[:, :-1], rows[:, 1:]

    held_out = list(batches(4))
    before = np.mean([ex.loss(*batch) for batch in held_out])
    losses = fit(model, ex, batches(150), lr=1e-2)
    after = np.mean([ex.loss(*batch) for batch in held_out])
    assert abs(losses[0] - np.log(256)) < 0.1, "a fresh model knows nothing: its loss is ln V"
    assert after < 0.6 * before and np.mean(losses[-20:]) < np.mean(losses[20:40]) < losses[0]


def test_gradients_add_over_calls(new_model, copies):
    model = new_model(oracle.CONFIG)
    ex = cllm.Executor(model, batch_size=2, seq_len=5, strategy=cllm.CacheAll())
    first, second = (oracle.draw_batch(oracle.CONFIG, 2, 5, seed=s) for s in (0, 1))
    model.zero_grad()
    assert all(not g.any() for g in model.gradients.values())
    ex.loss_and_grad(*first)
    once = copies(model.gradients)
    ex.loss_and_grad(*second)
    expected = {name: sum(oracle.run(oracle.CONFIG, model.parameters, *b)[2][name] for b in (first, second))
                for name in once}
    oracle.assert_near(dict(model.gradients), expected, 1e-10)
    model.zero_grad()
    ex.loss_and_grad(*first)
    oracle.assert_same_bits(dict(model.gradients), once, "after zero_grad: ")


def test_a_step_moves_every_parameter_and_only_a_step(new_model, copies):
    config = {**oracle.CONFIG, "tied": False}
    model = new_model(config, "float32")
    start = copies(model.parameters)
    tokens, targets = np.arange(18).reshape(2, 9) % 13, np.arange(1, 19).reshape(2, 9) % 13
    ex = cllm.Executor(model, batch_size=2, seq_len=9, strategy=cllm.RecomputeAll())
    opt = cllm.AdamW(model, lr=1e-3)
    model.zero_grad()
    ex.loss_and_grad(tokens, targets)
    ex.loss(tokens, targets)
    ex.logits(tokens)
    cllm.clip_grad_norm(model, 1.0)
    oracle.assert_same_bits(dict(model.parameters), start, "before step(): ")
    opt.step()
    for name, array in model.parameters.items():
        moved = array != start[name]
        if name.endswith("qkv.bias"):  # the middle third is the key's: softmax does not see it, its gradient is zero
            moved = moved[np.r_[:16, 32:48]]
        assert moved.mean() > 0.99, f"{name}: parts of it did not move"


@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_clip_returns_the_norm_before_and_scales_by_at_most_one(max_norm, new_model, copies):
    model = new_model(oracle.CONFIG)
    ex = cllm.Executor(model, batch_size=2, seq_len=5, strategy=cllm.CacheAll())
    model.zero_grad()
    ex.loss_and_grad(*oracle.draw_batch(oracle.CONFIG, 2, 5))
    expected = copies(model.gradients)
    norm = oracle.clip(expected, max_norm)
    oracle.assert_near(cllm.clip_grad_norm(model, max_norm), norm, 1e-12, "norm")
    oracle.assert_near(dict(model.gradients), expected, 1e-12)


def test_adamw_equals_the_oracle_and_decays_matrices_only(new_model, copies):
    config = {**oracle.CONFIG, "qkv": "lattice"}
    model = new_model(config)
    ex = cllm.Executor(model, batch_size=2, seq_len=5, strategy=cllm.CacheAll())
    opt = cllm.AdamW(model, lr=1e-2, betas=(0.8, 0.7), eps=1e-4, weight_decay=0.5)
    expected, state = copies(model.parameters), {}
    for step in range(4):
        model.zero_grad()
        ex.loss_and_grad(*oracle.draw_batch(config, 2, 5, seed=step))
        oracle.adamw(expected, model.gradients, state, 1e-2, 0.8, 0.7, 1e-4, 0.5)
        opt.step()
    oracle.assert_near(dict(model.parameters), expected, 1e-12)


def test_initial_weights_have_the_declared_distribution():
    config = cllm.ModelConfig(vocab_size=256, n_layers=8, d_model=64, n_heads=4, d_ff=256, max_seq_len=64, tied=False)
    for dtype in ("float32", "float64"):
        model = cllm.GPT(config, seed=3, dtype=dtype)
        for name, array in model.parameters.items():
            assert array.dtype == dtype
            if name.endswith("bias"):
                assert not array.any(), name
            elif array.ndim == 1:
                assert (array == 1).all(), name
            else:
                std = 0.02 / (4 if name.endswith(("attn.out.weight", "mlp.fc2.weight")) else 1)
                z = array.ravel() / std
                n = z.size  # five standard errors of each statistic of a normal distribution
                assert abs(z.mean()) < 5 / n ** 0.5, name
                assert abs((z ** 2).mean() - 1) < 5 * (2 / n) ** 0.5, name
                assert abs((z ** 4).mean() - 3) < 5 * (96 / n) ** 0.5, name
                assert len(np.unique(array)) > 0.9 * n, name
    flat = [np.concatenate([a.ravel() for n, a in cllm.GPT(config, seed=s).parameters.items() if a.ndim > 1])
            for s in (0, 0, 1)]
    oracle.assert_same_bits(flat[1], flat[0])
    assert (flat[2] != flat[0]).mean() > 0.99
    first, second = (cllm.GPT(config, seed=0).parameters[f"blocks.{i}.mlp.fc1.weight"] for i in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05, "two blocks start with related weights"
