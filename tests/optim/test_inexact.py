"""Optimizers that say they are inexact: formulas over a model, bytes, whole steps wherever states live, snapshots, refusals."""
from dataclasses import replace

import numpy as np
import oracle
import pytest

import cllm
from cllm import snapshot
from cllm.errors import ConfigError, OptimizerError
from cllm.executor import executor as executors
from cllm.optim import Adafactor, AdamW8bit, optimizer_named
from cllm.planner import disks
from cllm.schedule import updates

B, T = 3, 6
CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "d_model": 24, "n_heads": 3, "d_ff": 100})  # matrices of more than a block
BATCHES = [oracle.draw_batch(CONFIG.to_dict(), B, T, seed=step) for step in range(4)]
MAKE = {"adamw8bit": lambda model: AdamW8bit(model, lr=1e-2),
        "adafactor": lambda model: Adafactor(model, lr=3e-2, weight_decay=0.1),
        "grouped": lambda model: optimizer_named("*emb.weight=adafactor@3,*.bias=adamw,adamw8bit", model, 1e-2)}


@pytest.fixture
def disk(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("needs a directory on a disk")
    return tmp_path


def plain(name, steps=3, num_threads=1):
    model = cllm.GPT(CONFIG)
    optimizer = MAKE[name](model)
    ex = cllm.Executor(model, B, T, optimizer=optimizer.kind, num_threads=num_threads)
    for step in range(steps):
        model.zero_grad()
        ex.loss_and_grad(*BATCHES[step])
        optimizer.step()
    return model, optimizer, ex


def state_of(model, optimizer):
    return {name: np.array(array) for name, array in {**model.parameters, **optimizer.arrays()}.items()}


@pytest.mark.parametrize("name", MAKE)
def test_state_is_counted_to_the_byte_and_trains(name):
    model, optimizer, ex = plain(name)
    held = sum(array.nbytes for array in optimizer.arrays().values())
    assert ex.memory.optimizer_bytes == held < 0.6 * 2 * sum(p.nbytes for p in model.parameters.values())
    assert ex.loss(*BATCHES[0]) < cllm.Executor(cllm.GPT(CONFIG), B, T).loss(*BATCHES[0])
    weight = "blocks.0.mlp.fc1.weight"
    shapes = {part: optimizer.arrays()[f"{weight}.{part}"].shape for part in optimizer.by_name()[weight].state_names}
    assert shapes == ({"row": (24,), "column": (100,)} if name == "adafactor" else
                      {"m_scale": (2,), "v_scale": (2,), "m": (24, 100), "v": (24, 100)})


@pytest.mark.parametrize("name", MAKE)
def test_bits_are_the_same_wherever_gradients_and_states_live(name, disk, monkeypatch):
    monkeypatch.setattr(updates, "PIECE", 50)
    monkeypatch.setattr(executors, "DEBUG", True)
    expected = state_of(*plain(name)[:2])
    for way in (dict(), dict(update_in_backward=True), dict(states=f"disk:{disk}"),
                dict(update_in_backward=True, states=f"disk:{disk}", strategy="recompute")):
        model = cllm.GPT(CONFIG)
        optimizer = MAKE[name](model)
        ex = cllm.Executor(model, B, T, optimizer=optimizer.kind, num_threads=2, **way)
        for step in range(3):
            ex.train_step(*BATCHES[step], optimizer)
            assert ex.high_water_bytes == ex.memory.arena_bytes
        assert ex.memory.disk_bytes == (sum(a.nbytes for a in optimizer.arrays().values()) if "states" in way else 0)
        oracle.assert_same_bits(state_of(model, optimizer), expected, f"{way}: ")
    optimizer.keep_states("memory")
    oracle.assert_same_bits(state_of(model, optimizer), expected, "back in memory: ")


@pytest.mark.parametrize("name", MAKE)
def test_a_snapshot_goes_on_to_the_same_bits(name, disk):
    straight = state_of(*plain(name, 4)[:2])
    model, optimizer, _ = plain(name)
    path = snapshot.write_snapshot(disk, 3, model, optimizer)
    for where in ("memory", f"disk:{disk}"):
        model = cllm.GPT(CONFIG, seed=1)
        optimizer = MAKE[name](model)
        optimizer.keep_states(where)
        snapshot.load_snapshot(path, model, optimizer)
        ex = cllm.Executor(model, B, T, optimizer=optimizer.kind, num_threads=1, states=where)
        ex.train_step(*BATCHES[3], optimizer)
        oracle.assert_same_bits(state_of(model, optimizer), straight, f"{where}: ")


def test_adafactor_over_a_model_is_its_formula():
    model = cllm.GPT(CONFIG, dtype="float64")
    optimizer = Adafactor(model, lr=0.02, weight_decay=0.1)
    rng, state = np.random.default_rng(0), {}
    expected = {name: p.copy() for name, p in model.parameters.items()}
    for step in range(1, 4):
        for name, gradient in model.gradients.items():
            gradient[...] = rng.normal(0, 0.3, gradient.shape)
            g, keep = gradient.reshape(-1, gradient.shape[-1] if gradient.ndim > 1 else 1), 1 - step**-0.8
            row, column = ((keep * old + (1 - keep) * (g**2 + 1e-30).mean(axis)) for axis, old in
                           zip((1, 0), state.get(name, (0.0, 0.0)), strict=True))
            state[name] = row, column
            u = g / np.sqrt(np.outer(row, column) / row.mean())
            p = expected[name]
            scale = max(1e-3, np.sqrt((p**2).mean())) / max(1, np.sqrt((u**2).mean()))
            decay = 0.1 if name.endswith(".weight") and p.ndim > 1 else 0
            p -= 0.02 * (scale * u.reshape(p.shape) + decay * p)
        optimizer.step()
    oracle.assert_near(dict(model.parameters), expected, 1e-12)


def test_what_these_cannot_do_is_refused(disk):
    with pytest.raises(ConfigError, match=r"AdamW8bit\(model\): must be a model of float32; got float64. Use AdamW"):
        AdamW8bit(cllm.GPT(CONFIG, dtype="float64"))
    with pytest.raises(ConfigError, match="optimizer: must be another than adamw8bit where the dtype is float64"):
        cllm.plan(CONFIG, B, T, optimizer="adamw8bit", dtype="float64")
    model = cllm.GPT(CONFIG)
    for wrong in (dict(clip_threshold=0.0), dict(decay_exponent=0.0), dict(decay_exponent=1.5), dict(scale_by_parameter=1)):
        with pytest.raises(ConfigError, match=r"Adafactor\("):
            Adafactor(model, **wrong)
    ex = cllm.Executor(model, B, T, optimizer="adamw", states=f"disk:{disk}")
    with pytest.raises(OptimizerError, match="must be what was planned for tok_emb.weight; got adafactor. Make the executor"):
        ex.train_step(*BATCHES[0], Adafactor(model))
    small = cllm.Executor(model, B, T, optimizer="adafactor")
    with pytest.raises(OptimizerError, match="bytes for tok_emb.weight, as planned"):
        small.train_step(*BATCHES[0], AdamW8bit(model))
    with pytest.raises(OptimizerError, match="which the executor planned"):
        model.gradients["ln_f.bias"][...] = 1
        AdamW8bit(model).step()


def test_a_frozen_model_keeps_state_of_what_is_trained():
    model = cllm.GPT(CONFIG)
    model.trainable = ("*.mlp.*",)
    optimizer = AdamW8bit(model, lr=1e-2)
    plan = cllm.plan(model, B, T, optimizer="adamw8bit")
    ex = cllm.Executor(model, B, T, replace(plan, update_in_backward=True), optimizer="adamw8bit")
    ex.train_step(*BATCHES[0], optimizer)
    assert set(optimizer.state) == set(model.program.trained)
    assert cllm.plan(model, B, T, optimizer="none").total_bytes + sum(
        a.nbytes for a in optimizer.arrays().values()) == plan.total_bytes
