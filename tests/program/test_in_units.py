"""Computing in bfloat16 in units of 32: what no cut may show, which sums are in units, what plans, files and runs say of it."""
from dataclasses import replace

import bfloat16_reference as reference
import numpy as np
import oracle
import pytest
from bfloat16_reference import r16, wide
from families import FAMILIES
from row_models import Kinds

import cllm
from cllm import _kernels as kernels
from cllm.errors import ConfigError, PlanError, SnapshotError
from cllm.layers import AdaptedLinear, BlockLinear, CrossEntropyHead, Linear
from cllm.layers.cross_entropy import _cuts
from cllm.program.dims import COMPUTES, UNITS
from cllm.snapshot import load_snapshot, write_snapshot
from cllm.train import Trainer

SMALL = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 2})
ODD = cllm.ModelConfig(vocab_size=67, n_layers=1, d_model=12, n_heads=2, d_ff=20, max_seq_len=128)


def steps_of(config, batch, time, feeds, changes, compute=UNITS, start="cache"):
    """Loss and gradients of one step under a plan with each of the changes."""
    whole = cllm.plan(config, batch, time, start, compute=compute)
    for number, change in enumerate(changes):
        model = cllm.Model(config, compute=compute)
        plan = cllm.plan(model, batch, time, change) if isinstance(change, str) else replace(whole, **change)
        executor = cllm.Executor(model, batch, time, strategy=plan, num_threads=1 + number % 3)
        loss = executor.loss_and_grad(**feeds)
        assert executor.high_water_bytes == executor.memory.arena_bytes
        yield {"loss": np.array(loss), **{name: gradient.copy() for name, gradient in model.gradients.items()}}


@pytest.mark.parametrize("time", [33, 50, 128])
@pytest.mark.parametrize("ignored", [False, True])
def test_bits_depend_on_no_rows_of_the_head_and_no_cut(time, ignored):
    tokens, targets = np.random.default_rng(0).integers(0, 67, (2, 4, time))
    if ignored:
        targets[1, [0, 7, time - 1]] = targets[2, 32:] = -1
    changes = ({}, {"loss_rows": 7}, {"micro_batch": 1}, {"micro_batch": 3, "loss_rows": 33}, {"loss_rows": 65}, "cache@1",
               "recompute", {"loss_rows": 101, "micro_batch": 2})
    first, *others = steps_of(ODD, 4, time, {"tokens": tokens, "targets": targets}, changes)
    for other in others:
        oracle.assert_same_bits(other, first)
    chains = next(steps_of(ODD, 4, time, {"tokens": tokens, "targets": targets}, ({},), "bfloat16"))
    assert chains["loss"] != first["loss"] and abs(chains["loss"] - first["loss"]) < 1e-3


def test_gradients_of_parts_of_a_batch_add_up_in_order():
    """A sequence's part of a gradient depends on nothing that stands before it: two batches after each other are one."""
    tokens, targets = np.random.default_rng(1).integers(0, 67, (2, 3, 50))
    found = []
    for cuts in ([(0, 3)], [(0, 1), (1, 3)]):
        model = cllm.Model(replace(ODD, tied=False), compute=UNITS)
        for start, end in cuts:
            cllm.Executor(model, end - start, 50).loss_and_grad(tokens[start:end], targets[start:end], num_targets=150)
        found.append(dict(model.gradients))
    oracle.assert_same_bits(*found)


@pytest.mark.parametrize("count, sequence, step, cuts", [
    (0, 0, 32, []), (20, 20, 32, [20]), (100, 20, 64, [60, 100]), (100, 50, 32, [32, 50, 82, 100]), (64, 64, 32, [32, 64]),
    (70, 70, 32, [32, 64, 70]), (9, 3, 32, [9])])
def test_runs_end_where_sequences_or_units_do(count, sequence, step, cuts):
    runs = list(_cuts(count, sequence, step))
    assert [run.stop for run in runs] == cuts and [run.start for run in runs] == [0, *cuts][:len(cuts)]


@pytest.mark.parametrize("rows, wanted, kept", [(100, 7, 32), (100, 33, 64), (12, 7, 12), (64, 64, 64)])
def test_the_head_has_room_for_whole_units_and_no_more_than_all_rows(rows, wanted, kept):
    head = CrossEntropyHead(11, 8, compute=UNITS)
    room = {s.name: s.elements(head, {"N": rows, "R": wanted, **head.letters}, 1, 4) for s in head.scratch}
    assert (room["chunk"], room["losses"]) == (11 * kept, kept)


@pytest.mark.parametrize("step, left_out", [(64, True), (32, True), (150, True), (32, False)])
def test_the_head_adds_whole_sequences_in_units_and_others_in_chains(step, left_out):
    """Whether rows without a target are left out, as where the gradient of x is wanted, or stand there as zeros."""
    rng, time, rounds = np.random.default_rng(0), 50, COMPUTES.index(UNITS)
    head = CrossEntropyHead(11, 8, compute=UNITS)
    weight, x = rng.normal(0, 1, (11, 8)).astype(np.float32), r16(rng.normal(0, 1, (4 * time, 8)))
    targets = rng.integers(0, 11, 4 * time).astype(np.int32)
    targets[[60, 99]] = targets[100:150] = -1  # two of the second sequence, and all of the third
    room = {"chunk": np.zeros(step * 11, np.float32), "losses": np.zeros(step), "workspace": np.zeros(1 << 16, np.float32)}
    loss, dweight = np.zeros(1), np.full_like(weight, 0.25)
    dx = np.zeros((4 * time, 8), np.float32) if left_out else None
    head.backward(x, weight, None, targets, np.array([0.25]), None, time, loss=loss, dx=dx, dweight=dweight, dbias=None, **room)

    dlogits = np.empty((4 * time, 11), np.float32)
    kernels.linear_backward_input(x, weight, None, rounds, dx=dlogits, workspace=room["workspace"])
    kernels.cross_entropy_backward(targets, np.array([0.25]), 1.0, None, logits=dlogits, losses=np.zeros(4 * time))
    expected = np.full_like(weight, 0.25)
    for first, sum_up in ((0, reference.product_in_units), (50, reference.product), (150, reference.product_in_units)):
        rows = np.arange(first, first + time)
        rows = rows[targets[rows] >= 0]
        expected = sum_up(dlogits[rows].T, wide(x[rows]), expected)
    oracle.assert_same_bits({"dweight": dweight}, {"dweight": expected})
    if left_out:
        oracle.assert_same_bits({"dx": dx[targets >= 0]},
                                {"dx": reference.product_in_units(dlogits[targets >= 0], weight, np.float32(0))})


def test_all_products_of_an_adapted_part_are_in_units():
    rng = np.random.default_rng(0)
    time, i, o, k = 35, 40, 36, 34
    n, product = 2 * time, reference.product_in_units
    x, weight, a, b, dy = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((n, i), (i, o), (k, i), (k, 3), (n, o)))
    layer = AdaptedLinear(i, o, k, k, 3, ((2, 5),), 0.5, bias=False).computing(UNITS)
    room = {name: np.zeros(size, np.float32)
            for name, size in (("workspace", 1 << 18), ("low", n * k), ("spread", k * o), ("dropped", 0))}
    spread, zero = np.zeros((k, o), np.float32), np.float32(0)
    spread[:, 2:5] = b * np.float32(0.5)
    y, dx = np.zeros((n, o), np.float32), np.zeros_like(x)
    layer.forward(x, weight, None, a, b, None, y=y, **room)
    u = product(a, x.T, zero)
    np.testing.assert_array_equal(y, product(u.T, spread, product(x, weight, zero)))
    layer.backward(dy, weight, a, b, None, dx=dx, **room)
    g = product(dy, spread.T, zero)
    np.testing.assert_array_equal(dx, product(g, a, product(dy, weight.T, zero)))
    dweight, da, db = np.zeros_like(weight), np.ones_like(a), np.ones_like(b)
    layer.accumulate(dy, x, a, b, None, time, dweight=dweight, dbias=None, dlora_a=da, dlora_b=db, **room)
    np.testing.assert_array_equal(dweight, product(x.T, dy, zero, time))
    np.testing.assert_array_equal(da, product(g.T, x, np.float32(1), time))
    np.testing.assert_array_equal(db, product(u * np.float32(0.5), dy, np.float32(1), time)[:, 2:5])


def test_every_layer_is_told_the_rows_of_a_sequence(monkeypatch):
    """Of time steps, of several rows a sequence, and of one."""
    family, told = FAMILIES["rows of every kind"], {}
    for kind in (Linear, BlockLinear):
        def noted(self, dy, x, sequence_rows, *, accumulate=kind.accumulate, **writes):
            told[len(x)] = sequence_rows
            accumulate(self, dy, x, sequence_rows, **writes)
        monkeypatch.setattr(kind, "accumulate", noted)
    assert isinstance(family.architecture, Kinds)
    family.executor(family.model()).loss_and_grad(**family.draw())
    assert told == {rows * family.batch: rows for rows in (1, 3, 3 * family.time)}


def test_rows_of_every_kind_are_cut_between_sequences():
    family = replace(FAMILIES["rows of every kind"], compute=UNITS)
    first, *others = (family.train(cllm.CacheAll(), micro_batch=micro, num_threads=2) for micro in (None, 1, 2))
    for other in others:
        oracle.assert_same_bits(other, first)


def test_every_product_of_a_forward_is_in_units():
    family = FAMILIES["in bfloat16, in units"]
    model = family.model()
    executor = family.executor(model)
    executor.loss(**family.draw())
    found, program, checked = {name: value.copy() for name, value in executor._forward.values()}, model.program, 0
    for step in program.steps:
        if isinstance(step.layer, Linear):
            reference.assert_linear_step(reference.product_in_units, step, model, found)
            checked += 1
    assert checked == 3 * program.n_blocks


def test_a_mode_of_its_own_in_plans_files_and_snapshots(tmp_path):
    plans = {compute: cllm.plan(SMALL, 2, 6, "selective", compute=compute) for compute in COMPUTES}
    assert len({plan.fingerprint for plan in plans.values()}) == 3
    assert plans[UNITS].arena_bytes == plans["bfloat16"].arena_bytes
    model = cllm.Model(SMALL, compute="bfloat16")
    with pytest.raises(PlanError, match="must be a plan made for this model and batch"):
        cllm.Executor(model, 2, 6, strategy=plans[UNITS])
    model.compute = UNITS
    assert cllm.Executor(model, 2, 6, strategy=plans[UNITS]).plan == plans[UNITS]
    model.save(tmp_path / "model")
    assert cllm.load(tmp_path / "model").compute == UNITS
    write_snapshot(tmp_path, 3, model, cllm.AdamW(model), {})
    assert load_snapshot(tmp_path / "step-000003")[0].compute == UNITS
    with pytest.raises(SnapshotError, match="another compute"):
        load_snapshot(tmp_path / "step-000003", cllm.GPT(SMALL, compute="bfloat16"))
    with pytest.raises(ConfigError, match="must be 'float32' where dtype is float64"):
        cllm.Model(SMALL, dtype="float64", compute=UNITS)
    model.compute = "float32"
    assert model.program.digest == SMALL.program.digest


def test_a_run_goes_on_in_it_and_in_no_other(tmp_path):
    text = np.frombuffer(cllm.corpus.embedded_text()[:20_000], np.uint8)
    run = dict(steps=4, batch_size=3, seq_len=18, eval_every=5, eval_batches=2, snapshot_every=3, threads=2, lr=3e-3)

    def trained(out, stop=None, **changes):
        model = cllm.GPT(cllm.ModelConfig(256, 1, 32, 2, 64, 32, dropout=0.1), seed=1)
        trainer = Trainer(model, text, out, **{**run, **changes})
        trainer.callbacks += [_StopAfter(stop)] if stop else []
        trainer.run()
        return trainer

    straight = trained(None, compute=UNITS)
    trained(tmp_path, 3, compute=UNITS)
    for other in ("bfloat16", "float32"):
        with pytest.raises(ConfigError, match=f"compute 'bfloat16:units' there, '{other}' now"):
            trained(tmp_path, resume=True, compute=other)
    resumed = trained(tmp_path, resume=True)
    assert resumed.model.compute == UNITS
    oracle.assert_same_bits(dict(resumed.model.parameters), dict(straight.model.parameters))


class _StopAfter(cllm.train.Callback):
    def __init__(self, step):
        self.step = step

    def on_event(self, trainer, record):
        if record["event"] == "step" and record["step"] == self.step:
            trainer.stop()
