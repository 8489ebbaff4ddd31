"""Optimizers against their formulas, groups by name, clipping; and the state that is counted in total_bytes."""
import numpy as np
import oracle
import pytest

import cllm
from cllm.optim import (
    SGD,
    Adam,
    AdamW,
    Grouped,
    clip_each_grad_norm,
    clip_grad_norm,
    optimizer_kind,
    optimizer_named,
)

CONFIG = {**oracle.CONFIG, "tied": False}


@pytest.fixture
def model(new_model):
    made = new_model(CONFIG)
    fill_gradients(made, 0)
    return made


def fill_gradients(model, seed):
    rng = np.random.default_rng(seed)
    for gradient in model.gradients.values():
        gradient[...] = rng.normal(0, 0.3, gradient.shape)


def decays(name, array):
    return name.endswith(".weight") and array.ndim > 1


def run(model, make, reference, copies, steps=4):
    """Steps of an optimizer beside a reference that updates one array from its gradient, name and state."""
    optimizer = make(model)
    expected, state = copies(model.parameters), {name: {} for name in model.parameters}
    for step in range(1, steps + 1):
        fill_gradients(model, step)
        before = copies(model.gradients)
        for name, p in expected.items():
            reference(p, before[name], decays(name, p), state[name], step)
        optimizer.step()
        oracle.assert_same_bits(dict(model.gradients), before, "gradients: ")
    oracle.assert_near(dict(model.parameters), expected, 1e-13)
    assert optimizer.steps == steps


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_couples_its_decay(weight_decay, model, copies):
    def reference(p, g, decayed, state, t):
        g = g + (weight_decay * p if decayed else 0)
        state["m"] = 0.8 * state.get("m", 0) + 0.2 * g
        state["v"] = 0.7 * state.get("v", 0) + 0.3 * g * g
        p -= 1e-2 * state["m"] / (1 - 0.8**t) / (np.sqrt(state["v"] / (1 - 0.7**t)) + 1e-4)

    run(model, lambda m: Adam(m, lr=1e-2, betas=(0.8, 0.7), eps=1e-4, weight_decay=weight_decay), reference, copies)


def test_adamw_does_not(model, copies):
    def reference(p, g, decayed, state, t):
        state["m"] = 0.8 * state.get("m", 0) + 0.2 * g
        state["v"] = 0.7 * state.get("v", 0) + 0.3 * g * g
        p -= 1e-2 * ((0.3 * p if decayed else 0)
                     + state["m"] / (1 - 0.8**t) / (np.sqrt(state["v"] / (1 - 0.7**t)) + 1e-4))

    run(model, lambda m: AdamW(m, lr=1e-2, betas=(0.8, 0.7), eps=1e-4, weight_decay=0.3), reference, copies)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_gradient_descent(weight_decay, momentum, model, copies):
    def reference(p, g, decayed, state, t):
        state["v"] = momentum * state.get("v", 0) + g + (weight_decay * p if decayed else 0)
        p -= 1e-2 * state["v"]

    run(model, lambda m: SGD(m, 1e-2, momentum, weight_decay), reference, copies)


@pytest.mark.parametrize("make", [AdamW, lambda m: SGD(m, 0.1, 0.9)])
def test_what_a_step_binds_is_written_into_and_cannot_be_replaced(make, new_model, copies):
    """Arrays are bound at the first step: values that are put into them later count, other arrays in their stead are
    refused."""
    model, other = new_model(CONFIG), new_model(CONFIG)
    optimizer, fresh = make(model), make(other)
    fill_gradients(model, 0)
    optimizer.step()
    before = copies(optimizer.arrays())
    name = "ln_f.bias"
    for mapping in (model.parameters, model.gradients, optimizer.state):
        with pytest.raises(TypeError, match="assignment"):
            mapping[name] = mapping[name]
    for attribute in ("names", "state"):
        with pytest.raises(AttributeError):
            setattr(optimizer, attribute, getattr(optimizer, attribute))
    for array in (model.parameters[name], model.gradients[name], optimizer.arrays()[f"{name}.{optimizer.state_names[0]}"]):
        with pytest.raises(ValueError, match="resize"):
            array.resize(1)
    oracle.assert_same_bits(optimizer.arrays(), before)
    fresh.steps = optimizer.steps
    for m, o in ((model, optimizer), (other, fresh)):
        fill_gradients(m, 1)
        for k, array in enumerate((*m.parameters.values(), *o.arrays().values())):
            array[...] = np.random.default_rng(k).uniform(0.1, 1, array.shape)
        o.step()
    oracle.assert_same_bits(dict(model.parameters), dict(other.parameters))
    oracle.assert_same_bits(optimizer.arrays(), fresh.arrays())


def test_each_parameter_has_its_own_state(model):
    optimizer = AdamW(model)
    arrays = optimizer.arrays()
    assert list(arrays) == [f"{name}.{part}" for name in model.parameters for part in "mv"]
    optimizer.step()
    for name, array in arrays.items():
        assert array.any() and array.shape == model.parameters[name[:-2]].shape
        assert sum(np.shares_memory(array, other) for other in arrays.values()) == 1


def test_names_choose_parameters(model, copies):
    before = copies(model.parameters)
    optimizer = SGD(model, 0.1, names=("*emb.weight", "ln_f.*"))
    optimizer.step()
    moved = {n for n, p in model.parameters.items() if (p != before[n]).any()}
    assert moved == {"tok_emb.weight", "pos_emb.weight", "ln_f.weight", "ln_f.bias"} == set(optimizer.names)


@pytest.mark.parametrize("names", ["nothing.*", (), ("*", "nothing")])
def test_names_that_choose_nothing_are_refused(names, model):
    with pytest.raises(cllm.OptimizerError, match=r"SGD\(names=\.\.\.\)"):
        SGD(model, 0.1, names=names)


def test_groups_are_the_documents_first_form(new_model):
    """Adam for the embeddings, plain gradient descent for the rest: a line of configuration."""
    model, other = new_model(CONFIG), new_model(CONFIG)
    grouped = optimizer_named("*emb.weight=adam,sgd@30", model, lr=1e-3)
    embeddings = ("tok_emb.weight", "pos_emb.weight")
    alone = [Adam(other, 1e-3, names=embeddings),
             SGD(other, 0.03, names=tuple(n for n in other.parameters if n not in embeddings))]
    for step, factor in enumerate((1, 0.5, 2)):
        for m in (model, other):
            fill_gradients(m, step)
        grouped.lr = factor * 1e-3
        alone[0].lr, alone[1].lr = factor * 1e-3, factor * 0.03
        grouped.step()
        for optimizer in alone:
            optimizer.step()
    oracle.assert_near(dict(model.parameters), dict(other.parameters), 1e-13)
    assert grouped.kind == "*emb.weight=adam,sgd" == optimizer_kind("*emb.weight=adam,sgd@30")
    assert set(grouped.arrays()) == set(alone[0].arrays()) and grouped.steps == 3
    grouped.steps = 7
    assert all(group.steps == 7 for group in grouped.groups.values())


@pytest.mark.parametrize("groups, reason", [
    ({}, "must move every parameter"), ({"*emb*": (Adam, {})}, "must move every parameter; got nothing for blocks"),
    ({"*": (Adam, {}), "*emb*": (Adam, {})}, "still free; got '\\*emb\\*'"),
    ({"nothing": (Adam, {}), "*": (Adam, {})}, "still free; got 'nothing'")])
def test_groups_that_do_not_share_out_all_parameters_are_refused(groups, reason, model):
    with pytest.raises(cllm.OptimizerError, match=reason):
        Grouped(model, groups)


@pytest.mark.parametrize("name", ["adam ax", "", "sgd@fast", "none", "*emb.weight=adam,lion"])
def test_names_of_no_optimizer_are_refused(name, model):
    with pytest.raises(cllm.ConfigError):
        optimizer_named(name, model, 1e-3)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum", "*emb.weight=adam,sgd",
                                  "ln_f.*=sgd,*.bias=momentum,adamw"])
def test_total_bytes_counts_the_state_that_there_is(name, new_model):
    model = new_model(CONFIG, "float32")
    optimizer = optimizer_named(name, model, 1e-3)
    memory = cllm.Executor(model, 2, 5, optimizer=optimizer.kind).memory
    without = cllm.plan(model, 2, 5, optimizer="none").total_bytes
    state = sum(array.nbytes for array in optimizer.arrays().values())
    assert memory.optimizer_bytes == state == memory.total_bytes - without
    assert cllm.plan(model, 2, 5, "budget:1GB", optimizer=optimizer.kind).total_bytes <= 10**9
    fill_gradients(model, 0)
    optimizer.step()


@pytest.mark.parametrize("planned, used", [("none", "momentum"), ("momentum", "adam"),
                                           ("*emb.weight=adam,sgd", "adamw"), ("sgd", "*emb.weight=adam,sgd")])
def test_more_state_than_was_planned_is_refused(planned, used, new_model, copies):
    model = new_model(CONFIG, "float32")
    cllm.Executor(model, 2, 5, optimizer=planned)
    before = copies(model.parameters)
    with pytest.raises(cllm.OptimizerError, match="which the executor planned"):
        optimizer_named(used, model, 1e-3).step()
    oracle.assert_same_bits(dict(model.parameters), before)


@pytest.mark.parametrize("make", [AdamW, lambda m: SGD(m, 0.1),
                                  lambda m: optimizer_named("*emb.weight=adam,sgd", m, 0.1)])
def test_a_gradient_that_is_not_finite_moves_nothing(make, model, copies):
    optimizer = make(model)
    model.gradients["blocks.1.mlp.fc1.bias"][3] = np.nan
    before = copies(model.parameters)
    with pytest.raises(cllm.NonFiniteError, match=r"blocks\.1\.mlp\.fc1\.bias"):
        optimizer.step()
    oracle.assert_same_bits(dict(model.parameters), before)
    assert optimizer.steps == 0 and not any(a.any() for a in optimizer.arrays().values())


def test_clipping_each_gradient_by_its_own_norm(model, copies):
    before = copies(model.gradients)
    norms = clip_each_grad_norm(model, 0.5)
    assert 0.5 < max(norms.values()) and min(norms.values()) > 0
    for name, gradient in model.gradients.items():
        norm = np.linalg.norm(before[name])
        oracle.assert_near(norms[name], norm, 1e-12, name)
        oracle.assert_near(gradient, before[name] * min(1, 0.5 / norm), 1e-12, name)


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_each_grad_norm])
def test_clipping_names_what_is_not_finite(clip, model, copies):
    model.gradients["ln_f.bias"][0] = np.inf
    before = copies(model.gradients)
    with pytest.raises(cllm.NonFiniteError, match=r"ln_f\.bias"):
        clip(model, 1.0)
    oracle.assert_same_bits(dict(model.gradients), before)
