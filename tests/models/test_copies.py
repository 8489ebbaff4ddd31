"""Models and optimizers can be copied and sent to other processes: the copy is equal, whole, and its own."""
import copy
import pickle

import numpy as np
import oracle
import pytest

import cllm
from cllm.optim import optimizer_named

TOKENS = np.random.default_rng(0).integers(0, 13, (2, 9))


def step(model, opt):
    model.zero_grad()
    loss = cllm.Executor(model, 2, 8, num_threads=1).loss_and_grad(TOKENS[:, :-1], TOKENS[:, 1:])
    opt.step()
    return loss


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)),
                                  lambda m: pickle.loads(pickle.dumps(m, 5))], ids=["deepcopy", "copy", "pickle", "pickle 5"])
@pytest.mark.parametrize("config", [{}, {"positions": "sinusoidal", "tied": False}], ids=str)
def test_a_copied_model_is_equal_and_its_own(make, config, copies):
    model = cllm.GPT(cllm.ModelConfig(**{**oracle.CONFIG, **config}), seed=2)
    step(model, cllm.AdamW(model))
    before = copies(model.parameters)
    twin = make(model)
    assert twin.config == model.config and twin.dtype == model.dtype and twin.planned_optimizer == "adamw"
    for mine, its in ((model.parameters, twin.parameters), (model.gradients, twin.gradients)):
        oracle.assert_same_bits(dict(its), dict(mine))
        assert list(its) == list(mine) and not any(np.shares_memory(mine[n], its[n]) for n in mine)
        assert all(a.ctypes.data % 64 == 0 and a.flags.c_contiguous and a.flags.writeable for a in its.values())
    assert step(twin, cllm.AdamW(twin)) == step(model, cllm.AdamW(model))
    oracle.assert_same_bits(dict(twin.parameters), dict(model.parameters))
    assert any((before[n] != twin.parameters[n]).any() for n in before)


@pytest.mark.parametrize("name", ["adamw", "momentum", "*emb.weight=adam,sgd@30"])
def test_an_optimizer_goes_with_its_model(name):
    model = cllm.GPT(cllm.ModelConfig(**oracle.CONFIG), seed=2)
    opt = optimizer_named(name, model, 1e-2)
    step(model, opt)
    twin, its = copy.deepcopy((model, opt))
    again, once_more = pickle.loads(pickle.dumps((model, opt)))
    for _ in range(2):
        assert step(model, opt) == step(twin, its) == step(again, once_more)
    for other in (twin, again):
        oracle.assert_same_bits(dict(other.parameters), dict(model.parameters))


def test_things_print_as_what_they_are():
    model = cllm.GPT(cllm.ModelConfig(**oracle.CONFIG))
    count = sum(p.size for p in model.parameters.values())
    assert f"{count:,} parameters, float32" in repr(model) and "d_model=16" in repr(model)
    executor = cllm.Executor(model, 2, 8, num_threads=3)
    assert repr(executor).startswith("Executor(2 x 8, micro-batch 2, 3 threads: arena ") and "with adamw" in repr(executor)
    words = f"AdamW(lr=0.001, weight_decay=0.1, {len(model.parameters)} parameters, 0 steps taken)"
    assert repr(cllm.AdamW(model, lr=1e-3)) == words
    assert repr(optimizer_named("*emb.weight=adam,sgd", model, 0.5)).startswith("Grouped('*emb.weight': Adam(lr=0.5")
