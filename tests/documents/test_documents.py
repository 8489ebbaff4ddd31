"""The integration tests of the documents that the project was asked for with, under their own names.

Each runs on the documents' model (lattice projections, no bias on q, k and v, no output projection, squared error) and
on the usual one (full projections, cross entropy); the mathematics itself is held by the golden files and the laws.
"""
import itertools

import numpy as np
import oracle
import pytest

import cllm

USUAL = dict(vocab_size=16, n_layers=2, d_model=16, n_heads=4, d_ff=32, max_seq_len=12)
LATTICE = {**USUAL, "qkv": "lattice", "qkv_bias": False, "out_proj": False}
MODELS = {
    "lattice": LATTICE,
    "lattice, crystalline, mse": {**LATTICE, "attention": "crystalline", "positions": "prime", "loss": "mse"},
    "usual": {**USUAL, "tied": False},
}
# What the documents call the weights, and the ends of their names here.
KINDS = {"embeddings": ("tok_emb.weight",), "Q, K, V": ("attn.qkv.weight",), "W1": ("fc1.weight",),
         "W2": ("fc2.weight",), "both biases": ("fc1.bias", "fc2.bias"),
         "gamma": ("ln1.weight", "ln2.weight", "ln_f.weight"), "beta": ("ln1.bias", "ln2.bias", "ln_f.bias")}
A, B, C, D = range(4)


@pytest.fixture(params=MODELS)
def model(request):
    return cllm.GPT(cllm.ModelConfig(**MODELS[request.param]), seed=0)


def batches(count, seed=0):
    """Sequences whose next token is the one after the last: learnable from tokens alone."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = (rng.integers(0, 16, (2, 1)) + np.arange(6)) % 16
        yield tokens, (tokens + 1) % 16


def train(model, data, lr=1e-2):
    """Loss of each step; gradients are zeroed between batches."""
    data = iter(data)
    first = next(data)
    ex = cllm.Executor(model, *first[0].shape)
    opt = cllm.AdamW(model, lr=lr, weight_decay=0.0)
    losses = []
    for tokens, targets in itertools.chain([first], data):
        model.zero_grad()
        losses.append(ex.loss_and_grad(tokens, targets))
        cllm.clip_grad_norm(model, 1.0)
        opt.step()
    return losses


def test_known_inputs():
    """dW of two rows by hand: a full product, and the same per head for lattice weights."""
    x = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]], dtype="float32")
    dy = np.array([[1.0, 0, 2, 0], [0, 1, 0, -1]], dtype="float32")
    full = cllm.accumulate_weight_gradient(x, dy, out=np.zeros((4, 4), "float32"))
    assert full.tolist() == [[1, 5, 2, -5], [2, 6, 4, -6], [3, 7, 6, -7], [4, 8, 8, -8]]
    lattice = cllm.accumulate_weight_gradient(x, dy, out=np.zeros((2, 2, 2), "float32"))
    assert lattice.tolist() == [[[1, 2], [5, 6]], [[6, 8], [-7, -8]]]


def test_shapes(model):
    config = model.config.to_dict()
    assert {name: p.shape for name, p in model.parameters.items()} == oracle.shapes(config)
    opt = cllm.AdamW(model)
    for name, p in model.parameters.items():
        assert model.gradients[name].shape == p.shape and [s.shape for s in opt.state[name]] == [p.shape] * 2
    if config["qkv"] == "lattice":
        assert model.parameters["blocks.0.attn.qkv.weight"].shape == (3, 4, 4, 4)
    ex = cllm.Executor(model, batch_size=2, seq_len=6)
    assert ex.logits(np.zeros((2, 6), int)).shape == (2, 6, 16)


def test_accumulation_over_batches(model, copies):
    """dW += over batches: the sum of two batches' gradients is what one call after the other leaves."""
    first, second = batches(2)
    ex = cllm.Executor(model, batch_size=2, seq_len=6)
    alone = []
    for batch in (first, second):
        model.zero_grad()
        ex.loss_and_grad(*batch)
        alone.append(copies(model.gradients))
    model.zero_grad()
    ex.loss_and_grad(*first)
    ex.loss_and_grad(*second)
    for name, gradient in model.gradients.items():
        together = alone[0][name] + alone[1][name]
        assert np.abs(gradient - together).max() <= 1e-5 * np.abs(together).max() + 1e-9, name
        assert name == "head.weight" or name.endswith("alpha") or gradient.any(), name


def test_zeroing_between_batches(model, copies):
    first, second = batches(2)
    ex = cllm.Executor(model, batch_size=2, seq_len=6)
    ex.loss_and_grad(*second)
    fresh = copies(model.gradients)
    model.zero_grad()
    assert not any(g.any() for g in model.gradients.values())
    ex.loss_and_grad(*first)
    model.zero_grad()
    ex.loss_and_grad(*second)
    oracle.assert_same_bits(dict(model.gradients), fresh)


@pytest.mark.parametrize("name", MODELS)
def test_a_b_c_gives_b_c_d(name):
    model = cllm.GPT(cllm.ModelConfig(**{**MODELS[name], "loss": "cross_entropy"}), seed=0)
    train(model, [(np.array([[A, B, C]]), np.array([[B, C, D]]))] * 60)
    ex = cllm.Executor(model, batch_size=1, seq_len=3)
    assert ex.logits(np.array([[A, B, C]])).argmax(-1).tolist() == [[B, C, D]]


def test_loss_falls(model):
    losses = train(model, [next(batches(1))] * 30)
    assert losses[-1] < 0.7 * losses[0]
    assert losses[29] < losses[19] < losses[9] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_change(kind, model, copies):
    before = copies(model.parameters)
    train(model, batches(2))
    mine = [name for name in model.parameters if name.endswith(KINDS[kind])]
    assert len(mine) >= (1 if kind == "embeddings" else 2)
    for name in mine:
        if kind == "embeddings":  # rows of tokens that never came stay as they are where the head is not tied
            assert (model.parameters[name] != before[name]).any(axis=1).sum() >= 6
        else:
            assert (model.parameters[name] != before[name]).mean() > 0.95, name


@pytest.mark.parametrize("name", MODELS)
def test_near_zero_loss_on_one_example(name):
    model = cllm.GPT(cllm.ModelConfig(**{**MODELS[name], "loss": "cross_entropy"}), seed=1)
    tokens = np.array([[3, 1, 4, 1, 5, 9]])
    losses = train(model, [(tokens, np.roll(tokens, -1, 1))] * 200)
    assert losses[0] > 2 and losses[-1] < 1e-3


def test_several_batches(model):
    losses = train(model, batches(120))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_gradient_flows_through_every_layer(model, new_model):
    """From wide weights: every array of every block has a gradient, and not a vanishing one."""
    config = model.config.to_dict()
    model = new_model(config, "float64", scale=0.3)
    ex = cllm.Executor(model, batch_size=2, seq_len=6)
    ex.loss_and_grad(*oracle.draw_batch(config, 2, 6))
    for name, gradient in model.gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4, name
    for i in range(config["n_layers"]):
        assert sum(name.startswith(f"blocks.{i}.") for name in model.gradients) >= 9


@pytest.mark.parametrize("name", MODELS)
def test_numerical_check(name, new_model):
    """Analytic against central differences: relative error below 1e-5 (`gradcheck` itself holds 1e-6)."""
    config = MODELS[name]
    model = new_model({**oracle.CONFIG, **config}, "float64", scale=0.3)
    tokens, targets = np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]), np.array([[8, 9, 10, 11, -1, 13]] * 2)
    result = cllm.gradcheck(model, tokens, targets, elements=6)
    for row in result.rows:  # the target's row is held constant by mse, so its differences would not be the gradient
        if not (config.get("loss") == "mse" and row.name == "tok_emb.weight"):
            assert row.passed, str(result)
    again = cllm.Executor(model, batch_size=2, seq_len=6)
    model.zero_grad()
    again.loss_and_grad(tokens, targets)
    weight, gradient = (arrays["tok_emb.weight"] for arrays in (model.parameters, model.gradients))
    for i in ((0, 1), (3, 7), (5, 15)):  # rows that are no target
        here, losses = weight[i], []
        for step in (1e-5, -1e-5):
            weight[i] = here + step
            losses.append(again.loss(tokens, targets))
        weight[i] = here
        assert gradient[i] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9)
