"""Law 1 for whole models: in float64 the gradients of every family equal central differences, dropout included."""
from dataclasses import replace

import numpy as np
import pytest
from families import FAMILIES

import cllm

STEP = 1e-5


@pytest.mark.parametrize("name", [name for name, f in FAMILIES.items() if not getattr(f.architecture, "dropout", 0)])
def test_gradients_are_those_of_central_differences(name):
    family = FAMILIES[name]
    found = cllm.gradcheck(family.model(scale=0.2), strategy="recompute", elements=2, **family.draw(batch=2))
    assert found.passed, str(found)
    assert {row.name for row in found.rows} == set(family.program.trained)


@pytest.mark.parametrize("name, pad, trained", [("llama", 0, False), ("qwen3", 2, True)])
def test_a_row_that_a_lookup_holds_constant_is_trained_by_a_tied_head_alone(name, pad, trained):
    family = replace(FAMILIES[name], architecture=replace(FAMILIES[name].architecture, n_layers=1))
    model, feeds = family.model("float64", scale=0.2), family.draw(batch=2)
    feeds["tokens"][0, :3] = pad
    found = cllm.gradcheck(model, elements=None, **feeds)
    assert found.passed and {row.name for row in found.rows} == set(model.parameters), str(found)
    family.executor(model, batch=2).loss_and_grad(**feeds)
    assert model.gradients["tok_emb.weight"][pad].any() == trained


@pytest.mark.parametrize("name", [name for name, f in FAMILIES.items() if getattr(f.architecture, "dropout", 0)])
def test_gradients_under_one_mask_are_those_of_central_differences(name):
    """Along one drawn direction of each parameter; the same step draws the same masks."""
    family, rng = FAMILIES[name], np.random.default_rng(3)
    model = family.model("float64", scale=0.2)
    executor = family.executor(model, "recompute", batch=2)
    feeds = family.draw(batch=2)

    def loss():
        executor.step = 0
        return executor.loss_and_grad(**feeds)

    loss()
    gradients = {parameter: gradient.copy() for parameter, gradient in model.gradients.items()}
    for parameter in gradients:
        array = model.parameters[parameter]
        direction, kept = rng.normal(0, array.size ** -0.5, array.shape), array.copy()
        losses = []
        for shift in (STEP, -STEP):
            array[...] = kept + shift * direction
            losses.append(loss())
        array[...] = kept
        numeric, exact = (losses[0] - losses[1]) / (2 * STEP), float((gradients[parameter] * direction).sum())
        assert abs(numeric - exact) <= 1e-6 * max(abs(numeric), abs(exact)) + 1e-8, parameter
