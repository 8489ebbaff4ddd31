"""N is rows of whatever kind: layers are wired to pooled values, to patches, to arrays by sequence and position.

That bits and gradients are right for them is the laws' to say (tests/laws): `Kinds` and `Grid` are among the families.
"""
from dataclasses import dataclass, replace

import numpy as np
import oracle
import pytest
from row_models import Grid, Kinds, Mean, Parts

import cllm
from cllm import layers
from cllm.program.dims import joined, product, with_rows
from cllm.program.workload import Workload


def step(architecture, time, strategy, dtype="float32", batch=5, threads=2):
    """Loss and bits of every gradient."""
    model = cllm.Model(architecture, seed=3, dtype=dtype)
    executor = cllm.Executor(model, batch, time, strategy=strategy, num_threads=threads, seed=8)
    loss = executor.loss_and_grad(**architecture.example_batch(np.random.default_rng(0), batch, time))
    assert executor.high_water_bytes == executor.memory.arena_bytes
    return loss, {name: g.copy() for name, g in model.gradients.items()}


def test_words_for_shapes():
    assert joined("B T 3") == "N 3" and joined("B T") == "N" and joined("B H T") == "B H T" and joined("B 2") == "B 2"
    assert product("B 16") == "16B" and product("N") == "N" and product("N 4 2") == "8N"
    assert with_rows("N 8", "B 16") == "B 16 8" and with_rows("B 8", "B 16") == "B 8"


def test_values_keep_the_axes_and_layers_are_handed_rows():
    program = Kinds().program
    shapes = {name: value.shape for name, value in program.values.items()}
    assert shapes["embed.y"] == "N 12" and shapes["blocks.0.parts.y"] == "B T 3 4"
    assert shapes["blocks.0.fc.y"] == "N 3 4" and shapes["blocks.0.norm.mean"] == "N 3"
    assert shapes["blocks.1.fc.y"] == "B 3 8" and shapes["blocks.2.fc.y"] == "B 6"
    rows = {step.name: step.rows for step in program.steps}
    assert rows["blocks.0.fc"] == "3N" and rows["blocks.1.fc"] == rows["blocks.1.res"] == "3B" and rows["head"] == "B"
    assert program.feeds["label"].shape == "B" and program.kinds_of_rows == ("3B", "3N", "B")
    assert program.steps[2].letters({"B": 2, "T": 5, "N": 10}) == {"B": 2, "N": 30, "C": 4}
    grid = Grid().program
    assert grid.feeds["label"].shape == "B 4" and not grid.has_time and grid.values["act.y"].shape == "B 4 6"
    assert cllm.ModelConfig.preset("tiny").program.kinds_of_rows == ()


def test_bits_of_compressed_values_depend_on_no_cut():
    whole = step(Kinds(), 6, "int8-stochastic:cache")
    for micro in (1, 2, 3):
        oracle.assert_same_bits(step(Kinds(), 6, f"int8-stochastic:cache@{micro}"), whole, f"{micro}: ")
    with pytest.raises(AssertionError):
        oracle.assert_same_bits(whole, step(Kinds(), 6, "cache"))
    oracle.assert_same_bits(step(Grid(), None, "int8-stochastic:cache"), step(Grid(), None, "cache"))  # nothing in blocks


def test_a_budget_of_a_program_without_blocks_is_kept_or_refused():
    frugal = cllm.plan(Grid(), 64, strategy="cache@1").total_bytes
    plan = cllm.plan(Grid(), 64, strategy=cllm.MemoryBudget(2 * frugal))
    assert plan.total_bytes <= 2 * frugal and 1 < plan.micro_batch < 64
    with pytest.raises(cllm.BudgetError, match="must be at least") as refusal:
        cllm.plan(Grid(), 64, strategy=cllm.MemoryBudget(frugal // 4))
    assert "a smaller model" in str(refusal.value) and "sequences" not in str(refusal.value)


def test_rows_of_the_head_may_be_chosen():
    for rows in (1, 5, 20):
        plan = replace(cllm.plan(Grid(), 5), loss_rows=rows)
        oracle.assert_same_bits(step(Grid(), None, plan), step(Grid(), None, "cache"))
    with pytest.raises(cllm.PlanError, match="from 1 to 20"):
        cllm.plan(Grid(), 5, strategy=replace(cllm.plan(Grid(), 5), loss_rows=21))
    with pytest.raises(cllm.PlanError, match="from 1 to 5"):
        cllm.plan(Kinds(), 5, 4, replace(cllm.plan(Kinds(), 5, 4), loss_rows=6))


def test_logits_have_the_axes_of_what_the_head_reads():
    for architecture, time, shape in ((Kinds(), 6, (5, 3)), (Grid(), None, (5, 4, 3))):
        batch = architecture.example_batch(np.random.default_rng(0), 5, time)
        model = cllm.Model(architecture)
        inputs = {name: array for name, array in batch.items() if name != "label"}
        whole = cllm.Executor(model, 5, time).logits(**inputs)
        assert whole.shape == shape
        assert whole.tobytes() == cllm.Executor(model, 5, time, strategy="cache@2").logits(**inputs).tobytes()
        shifted = whole - whole.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        expected = -np.take_along_axis(log_p, batch["label"][..., None], -1).mean()
        assert cllm.Executor(model, 5, time).loss(**batch) == pytest.approx(expected, rel=1e-5)


def test_the_divisor_counts_the_targets_by_whatever_name():
    model = cllm.Model(Grid())
    batch = Grid().example_batch(np.random.default_rng(0), 5, None)
    batch["label"][1:] = -1
    first = {name: array[:1] for name, array in batch.items()}
    assert cllm.Executor(model, 5).loss(**batch) == pytest.approx(cllm.Executor(model, 1).loss(**first), rel=1e-6)
    batch["label"][...] = -1
    with pytest.raises(cllm.TokenError, match="label: at least one must not be -1"):
        cllm.Executor(model, 5).loss(**batch)


@pytest.mark.parametrize("architecture, time", [(Kinds(), 6), (Grid(), None), (cllm.ModelConfig.preset("tiny"), 6)])
def test_what_a_step_is_handed_is_counted(architecture, time):
    executor = cllm.Executor(cllm.Model(architecture), 5, time, strategy="cache@2")
    arrays = {id(array): array.nbytes for held in (executor._feeds.whole, executor._feeds.part) for array in held.values()}
    assert executor.memory.batch_bytes == sum(arrays.values())


def test_blocks_over_other_rows_are_other_kinds():
    @dataclass(frozen=True)
    class Pyramid(cllm.Architecture):
        def wire(self, w):
            x = w.add("fc", layers.Linear(I=4, O=4), x=w.feed("cells", "B 9 4"))
            for number in range(3):
                with w.block(number):
                    x = w.add("norm", layers.LayerNorm(C=4), x=x)
                    x = w.add("mean", Mean(C=4), x=x)
            w.add("head", layers.CrossEntropyHead(V=3, C=4), x=x)

    kinds = [Pyramid().program.kind_of_block(number) for number in range(3)]
    assert kinds[1] == kinds[2] != kinds[0]


def test_a_value_by_position_is_one_by_sequence_and_time():
    """Through `Parts`, which declares B T, and without it: the same numbers, once looked at as 12 columns, once as 3 by 4."""
    @dataclass(frozen=True)
    class Twice(cllm.Layer):
        sites = (cllm.Site("y", "B T 12", "x doubled"),)
        reads = {"x": "B T 12"}

        def forward(self, x, *, y):
            assert x.ndim == 3
            np.multiply(x, 2, out=y)

        def backward(self, dy, *, dx):
            assert dy.ndim == 3
            np.multiply(dy, 2, out=dx)

    @dataclass(frozen=True)
    class Model(cllm.Architecture):
        def wire(self, w):
            x = w.add("embed", layers.Embedding(V=11, C=12, P=8, std=0.5))
            with w.block(0):
                y = w.add("twice", Twice(), x=x)
                x = w.add("res", layers.Residual(C=12), x=x, branch=y)
            w.add("head", layers.CrossEntropyHead(V=11, C=12, std=0.5), x=x)

    model = cllm.Model(Model(), seed=1)
    batch = Model().example_batch(np.random.default_rng(0), 3, 6)
    assert cllm.gradcheck(model, **batch).passed
    for strategy in ("cache@1", "recompute"):
        oracle.assert_same_bits(step(Model(), 6, strategy), step(Model(), 6, "cache"))


def test_a_feed_may_be_named_by_position_or_by_sequence_and_time():
    @dataclass(frozen=True)
    class Flat(layers.CrossEntropyHead):
        feeds = (cllm.Feed("tokens", "N", "int32", 0, "V"),)

        def evaluate(self, x, weight, bias, targets, tokens, *, loss, chunk, losses, workspace):
            assert tokens.shape == (len(x),)
            super().evaluate(x, weight, bias, targets, loss=loss, chunk=chunk, losses=losses, workspace=workspace)

        def backward(self, x, weight, bias, targets, scale, logits, sequence_rows, *, loss, dx, dweight, dbias, chunk, losses,
                     workspace):
            super().backward(x, weight, bias, targets, scale, logits, sequence_rows, loss=loss, dx=dx, dweight=dweight,
                             dbias=dbias, chunk=chunk, losses=losses, workspace=workspace)

    w = cllm.Wiring(longest=8)
    x = w.add("embed", layers.Embedding(V=11, C=12, P=8))
    w.add("head", Flat(V=11, C=12), x=x)
    assert w.program().feeds["tokens"].shape == "B T"
    assert w.program().steps[-1].shapes["tokens"] == "N"


@pytest.mark.parametrize("wire, match", [
    (lambda w, x: w.add("fc", layers.Linear(I=9, O=8), x=x), r"fc, input x: must have the shape N I, which is \(B 6 9\)"),
    (lambda w, x: w.add("fc", layers.Linear(I=8, O=8), x=w.feed("table", "3 8")), r"which is \(N 8\); got table"),
    (lambda w, x: w.add("a", layers.Attention(H=2, D=4, C=8), qkv=w.feed("qkv", "B 6 24")), r"input qkv: .*\(N 24\)"),
    (lambda w, x: w.add("res", layers.Residual(C=8), x=x, branch=w.feed("b", "B 8")), r"input branch: .*\(B 6 8\)"),
    (lambda w, x: w.add("parts", Parts(P=2, D=4, C=8), x=x), r"input x: .*\(B T 8\)")])
def test_rows_that_do_not_fit_are_refused(wire, match):
    w = cllm.Wiring()
    x = w.add("fold", layers.Linear(I=4, O=8), x=w.feed("cells", "B 6 4"))
    with pytest.raises(cllm.DeclarationError, match=match):
        wire(w, x)


def test_a_model_whose_layers_alone_speak_of_time_has_time_steps():
    @dataclass(frozen=True)
    class Model(cllm.Architecture):
        def wire(self, w):
            x = w.add("fc", layers.Linear(I=5, O=8, std=0.5), x=w.feed("rows", "N 5"))
            x = w.add("parts", Parts(P=2, D=4, C=8), x=x)
            w.add("class", layers.CrossEntropyHead(V=3, C=4, std=0.5), {"targets": "label"}, x=x)

    program = Model().program
    assert program.has_time and program.feeds["label"].shape == "N 2"
    with pytest.raises(cllm.ConfigError, match="seq_len"):
        Workload(2, None).check(program)
