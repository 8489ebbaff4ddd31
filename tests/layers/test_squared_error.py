"""loss="mse": the squared distance from the target's embedding, which is held constant."""
import numpy as np
import oracle
import pytest

import cllm

MSE = {**oracle.CONFIG, "loss": "mse"}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def executor(request, new_model):
    model = new_model({**MSE, "tied": request.param}, scale=0.2)
    return model, cllm.Executor(model, batch_size=2, seq_len=5, strategy=cllm.CacheAll(micro_batch=1))


def test_loss_logits_and_gradients_equal_the_oracle(executor):
    model, ex = executor
    config = model.config.to_dict()
    tokens, targets = oracle.draw_batch(config, 2, 5)
    logits, loss, gradients = oracle.run(config, model.parameters, tokens, targets)
    oracle.assert_near(ex.loss_and_grad(tokens, targets), loss, 1e-12)
    oracle.assert_near(dict(model.gradients), gradients, 1e-10)
    oracle.assert_near(ex.loss(tokens, targets), loss, 1e-12)
    oracle.assert_near(ex.logits(tokens), logits, 1e-10)


def test_the_row_of_the_target_is_held_constant(executor):
    model, ex = executor
    ex.loss_and_grad(np.zeros((2, 5), int), np.full((2, 5), 7))
    assert not model.gradients["tok_emb.weight"][1:].any() and model.gradients["tok_emb.weight"][0].any()


def test_an_untied_head_gets_no_gradient_but_makes_the_logits(new_model):
    model = new_model({**MSE, "tied": False})
    ex = cllm.Executor(model, batch_size=2, seq_len=5)
    tokens, targets = oracle.draw_batch(MSE, 2, 5)
    ex.loss_and_grad(tokens, targets)
    assert not model.gradients["head.weight"].any()
    before = ex.logits(tokens)
    model.parameters["head.weight"][...] *= 2
    oracle.assert_same_bits(ex.logits(tokens), 2 * before)


def test_ignored_targets_change_nothing(executor, copies):
    model, ex = executor
    tokens, targets = oracle.draw_batch(MSE, 2, 5, ignored=0)
    targets[1] = -1
    loss = ex.loss_and_grad(tokens, targets)
    gradients = copies(model.gradients)
    model.zero_grad()
    half = cllm.Executor(model, batch_size=1, seq_len=5)
    assert half.loss_and_grad(tokens[:1], targets[:1]) == loss
    for name, gradient in model.gradients.items():
        assert np.array_equal(gradient, gradients[name]), name


def test_training_lowers_it():
    model = cllm.GPT(cllm.ModelConfig(**MSE))
    ex, opt = cllm.Executor(model, batch_size=2, seq_len=5), cllm.AdamW(model, lr=1e-2)
    tokens, targets = oracle.draw_batch(MSE, 2, 5)
    losses = []
    for _ in range(30):
        model.zero_grad()
        losses.append(ex.loss_and_grad(tokens, targets))
        opt.step()
    assert losses[-1] < 0.5 * losses[0]
