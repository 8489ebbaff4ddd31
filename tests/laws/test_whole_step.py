"""Laws 3, 4, 5 and 15 of a whole step: where gradients and states live, and when parameters move, changes no bit.

Two or three steps of every family by `train_step` are held against `loss_and_grad`, clipping and ``optimizer.step()``: losses,
norms, weights and states; each step writes up to the predicted peak, freed memory is poisoned, and gradients are zero again.
"""
from dataclasses import replace

import numpy as np
import oracle
import pytest
from families import FAMILIES

import cllm
from cllm.executor import executor as executors
from cllm.planner import disks
from cllm.schedule import updates

WAYS = {
    "gradients kept": dict(),
    "kept, cut": dict(strategy=cllm.CacheAll(micro_batch=2)),
    "in backward": dict(update_in_backward=True),
    "in backward, recomputed": dict(strategy=cllm.RecomputeAll(), update_in_backward=True),
    "states on disk": dict(states="disk"),
    "states on disk, cut": dict(strategy=cllm.RecomputeAll(micro_batch=2), states="disk"),
    "both": dict(update_in_backward=True, states="disk"),
    "both, every second": dict(strategy=cllm.EveryNth(2), update_in_backward=True, states="disk"),
}
CLIPS = [(None, "all"), (0.5, "all"), (0.05, "each")]
OPTIMIZERS = {
    "adamw": lambda model: cllm.AdamW(model, lr=1e-2),
    "momentum": lambda model: cllm.SGD(model, lr=0.1, momentum=0.9, weight_decay=0.01),
    "grouped": lambda model: cllm.Grouped(model, {model.program.trained[0]: (cllm.Adam, {"lr": 1e-2}),
                                                  "*": (cllm.SGD, {"lr": 0.1})}),
    "some": lambda model: cllm.AdamW(model, lr=1e-2, names=model.program.trained[-1]),
}


def plain(family, dtype, optimizer, clip_norm, clip_by):
    model = family.model(dtype)
    moving = OPTIMIZERS[optimizer](model)
    ex, seen = family.executor(model, num_threads=1), []
    for step in range(family.steps):
        model.zero_grad()
        seen.append(ex.loss_and_grad(**family.draw(step)))
        squares = [float((g.astype(np.float64) ** 2).sum()) for g in model.gradients.values()]
        if clip_norm is not None:
            (cllm.clip_grad_norm if clip_by == "all" else cllm.clip_each_grad_norm)(model, clip_norm)
        seen.append(sum(squares) ** 0.5)
        moving.step()
    return seen, {**model.parameters, **moving.arrays()}


def whole(family, dtype, optimizer, clip_norm, clip_by, way, place, num_threads=2):
    model = family.model(dtype)
    moving = OPTIMIZERS[optimizer](model)
    way = {**way, **({"states": f"disk:{place}"} if "states" in way else {})}
    if "strategy" in way and way["strategy"].micro_batch:
        way["strategy"] = replace(way["strategy"], micro_batch=min(2, family.batch))
    ex = cllm.Executor(model, family.batch, family.time, num_threads=num_threads, seed=family.seed, packed=family.packed,
                       optimizer="adamw" if optimizer == "some" else moving.kind, **way)
    seen = []
    for step in range(family.steps):
        seen.append(ex.train_step(**family.draw(step), optimizer=moving, clip_norm=clip_norm, clip_by=clip_by))
        seen.append(ex.grad_norm)
        assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
    assert model.has_gradients != ex.plan.update_in_backward
    assert not any(g.any() for g in model.gradients.values())
    held = sum(a.nbytes for a in model.parameters.values())
    moved = sum(model.parameters[name].nbytes for name in model.program.trained)
    states = 2 * moved if optimizer == "some" else sum(a.nbytes for a in moving.arrays().values())
    on_disk = ex.plan.states_on_disk
    assert (ex.memory.parameter_bytes, ex.memory.gradient_bytes) == (held, 0 if ex.plan.update_in_backward else moved)
    assert (ex.memory.optimizer_bytes, ex.memory.disk_bytes) == ((0, states) if on_disk else (states, 0))
    return seen, {**model.parameters, **moving.arrays()}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Windows of a few elements, so that small models have many; and NaN over what is freed."""
    monkeypatch.setattr(updates, "PIECE", 50)
    monkeypatch.setattr(executors, "DEBUG", True)


@pytest.fixture
def disk(tmp_path):
    if disks.file_system(tmp_path) in disks.MEMORY_BACKED:
        pytest.skip("needs a directory on a disk")
    return tmp_path


def cells(name, everything=False):
    """For a family, two of the ways, or all, each with a clip, an optimizer and a dtype: over all families each meets each."""
    ways, row = list(WAYS), list(FAMILIES).index(name)
    for number in range(len(ways) if everything else 2):
        turn, column = divmod(2 * row + number, len(ways))
        yield (ways[column], CLIPS[(turn + column) % len(CLIPS)], list(OPTIMIZERS)[(turn + column) % len(OPTIMIZERS)],
               ("float32", "float64")[(turn // 2 + column) % 2])


@pytest.mark.parametrize("name", FAMILIES)
def test_where_gradients_and_states_live_changes_no_bit(name, disk, pytestconfig):
    family = FAMILIES[name]
    for way, (clip_norm, clip_by), optimizer, dtype in cells(name, pytestconfig.getoption("whole")):
        if "cut" in way and not family.program.can_be_cut:
            continue
        losses, arrays = whole(family, dtype, optimizer, clip_norm, clip_by, WAYS[way], disk)
        expected, reference = plain(family, dtype, optimizer, clip_norm, clip_by)
        about = f"{way}, {clip_norm} by {clip_by}, {optimizer}, {dtype}: "
        assert losses[::2] == expected[::2], about
        np.testing.assert_allclose(losses[1::2], expected[1::2], rtol=1e-6, err_msg=about)
        oracle.assert_same_bits(arrays, reference, about)


def test_every_way_meets_every_clip_every_optimizer_and_every_dtype():
    met = [cell for name in FAMILIES for cell in cells(name)]
    assert {(w, c) for w, c, *_ in met} == {(w, c) for w in WAYS for c in CLIPS}
    assert {(w, o) for w, _, o, _ in met} == {(w, o) for w in WAYS for o in OPTIMIZERS}
    assert {(w, d) for w, *_, d in met} == {(w, d) for w in WAYS for d in ("float32", "float64")}
