"""Compressed activations: what is packed, what stays, how far gradients are, and that memory is still exact."""
import dataclasses
import functools

import numpy as np
import oracle
import pytest
from longer import whole

import cllm
from cllm.models.architecture import program_of
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Compress, Tape
from cllm.schedule.compression import SITES_OF_A_STEP, stream_of
from cllm.strategies import parse

CONFIG = {**oracle.CONFIG, "n_layers": 4, "d_model": 32, "d_ff": 128, "n_heads": 4, "vocab_size": 61, "max_seq_len": 40}
B, T = 4, 40
COPIES = {"bfloat16": {"dtype": "bfloat16"}, "int8": {"dtype": "int8"},
          "int8-stochastic": {"dtype": "int8", "rounding": "stochastic"}}
LEAST_COSINE = {"bfloat16": 0.9999, "int8": 0.999, "int8-stochastic": 0.998}
BASES = {"cache": cllm.CacheAll(), "optional": cllm.CacheAll(also=("probs", "logits")), "selective": cllm.Selective(),
         "recompute": cllm.RecomputeAll(), "sqrt": cllm.Sqrt(), "binomial": cllm.Binomial(2)}


def step(strategy, seed=1, threads=2, scale=None, new_model=None, **changes):
    model = cllm.GPT(cllm.ModelConfig(**{**CONFIG, **changes}), seed=0)
    ex = cllm.Executor(model, B, T, strategy=strategy, num_threads=threads, seed=seed)
    loss = ex.loss_and_grad(*oracle.draw_batch(CONFIG, B, T))
    return ex, loss, {name: g.copy() for name, g in model.gradients.items()}


@functools.cache
def exact_step(base, micro_batch):
    """That of a base itself, made once for all copies."""
    ex, loss, gradients = step(dataclasses.replace(BASES[base], micro_batch=micro_batch))
    assert ex.plan.exact
    return loss, gradients


def cosine(a, b):
    a, b = (np.concatenate([g.ravel() for g in x.values()]).astype("float64") for x in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("copy, base", [
    (copy, base) if (row + column) % 2 == 0 else whole(copy, base)
    for row, copy in enumerate(COPIES) for column, base in enumerate(BASES)])
def test_gradients_are_close_the_loss_is_equal_and_the_peak_is_exact(copy, base):
    for micro_batch, threads in ((None, 1), (3, 3)):
        strategy = cllm.Compressed(**COPIES[copy], base=BASES[base], micro_batch=micro_batch)
        ex, loss, gradients = step(strategy)
        assert not ex.plan.exact
        expected_loss, expected = exact_step(base, micro_batch)
        assert loss == expected_loss, "forward reads what is not compressed"
        assert LEAST_COSINE[copy] < cosine(gradients, expected) < 1
        assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
        again = step(strategy, threads=threads)
        assert again[1] == loss
        oracle.assert_same_bits(again[2], gradients)


@pytest.mark.parametrize("copy, base, seq_len", [
    (copy, base, (T, 13)[(row + column + turn) % 2]) if turn == 0 else whole(copy, base, (T, 13)[(row + column + turn) % 2])
    for turn in (0, 1) for row, copy in enumerate(COPIES) for column, base in enumerate(("cache", "sqrt", "optional"))])
def test_no_cut_of_the_batch_changes_a_bit(copy, base, seq_len):
    """13 rows of 32 channels are no whole number of groups: a group never holds two sequences."""
    found = []
    for micro_batch, threads in ((None, 2), (1, 1), (3, 2), (2, 3)):
        model = cllm.GPT(cllm.ModelConfig(**{**CONFIG, "dropout": 0.1}), seed=0)
        strategy = cllm.Compressed(**COPIES[copy], base=BASES[base], micro_batch=micro_batch)
        ex = cllm.Executor(model, B, seq_len, strategy=strategy, num_threads=threads, seed=5)
        ex.step = 11
        ex.loss_and_grad(*oracle.draw_batch(CONFIG, B, seq_len))
        assert ex.high_water_bytes == ex.memory.arena_bytes
        found.append({name: g.copy() for name, g in model.gradients.items()})
    for one in found[1:]:
        oracle.assert_same_bits(one, found[0])


def test_rounding_at_random_follows_the_seed_and_the_step_and_nothing_else():
    def gradients(seed, at, rounding="stochastic"):
        model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0)
        ex = cllm.Executor(model, B, T, strategy=cllm.Compressed("int8", rounding=rounding), num_threads=2, seed=seed)
        ex.step = at
        ex.loss_and_grad(*oracle.draw_batch(CONFIG, B, T))
        return np.concatenate([g.ravel() for g in model.gradients.values()]).tobytes()

    assert gradients(1, 0) == gradients(1, 0)
    assert len({gradients(seed, at) for seed, at in ((1, 0), (2, 0), (1, 1), (2, 1))}) == 4
    assert gradients(1, 0, "nearest") == gradients(2, 1, "nearest")


def test_the_mean_over_seeds_comes_nearer_to_the_exact_gradient():
    """One seed errs more than rounding to nearest does; the mean over sixteen errs less than a third of one."""
    sites = ("act",)  # its reader's gradient is linear in the copy, so the mean over seeds is the exact gradient
    name = "blocks.1.mlp.fc2.weight"

    def gradient(strategy, seed=1):
        return step(strategy, seed=seed)[2][name].astype("float64")

    exact = gradient(cllm.CacheAll())
    drawn = [gradient(cllm.Compressed("int8", sites, rounding="stochastic"), seed) for seed in range(16)]
    apart = [np.linalg.norm(one - exact) for one in drawn]
    assert np.linalg.norm(np.mean(drawn, axis=0) - exact) < min(apart) / 3
    assert np.linalg.norm(gradient(cllm.Compressed("int8", sites)) - exact) < min(apart)


def test_streams_are_of_one_value_each_and_none_of_dropout():
    program = program_of(cllm.ModelConfig(**{**CONFIG, "dropout": 0.1, "n_layers": 12}))
    streams = [stream_of(s.index, i) for s in program.steps for i in range(len(s.outputs))]
    assert len(set(streams)) == len(streams) and max(streams) < 2**32
    assert max(len(s.outputs) for s in program.steps) <= SITES_OF_A_STEP
    assert min(streams) > max(s.layer.stream for s in program.steps if hasattr(s.layer, "stream"))


def test_names_of_compressed_strategies():
    assert parse("int8-stochastic:selective@2") == cllm.Compressed("int8", base=cllm.Selective(), rounding="stochastic",
                                                                   micro_batch=2)
    assert parse("int8") == cllm.Compressed("int8")


@pytest.mark.parametrize("dtype, share", [("bfloat16", 0.75), ("int8", 0.6)])
def test_the_arena_shrinks(dtype, share):
    whole, packed = (step(s)[0].memory.arena_bytes for s in (cllm.CacheAll(), cllm.Compressed(dtype)))
    assert packed < share * whole


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_row_statistics_are_never_compressed(dtype):
    ex = step(cllm.Compressed(dtype))[0]
    packed = {op.step.name + " " + ex.schedule.buffers[op.reads[0][1]].label for op in ex.schedule.ops if op.kind == "compress"}
    assert packed and not [p for p in packed if p.endswith((".mean", ".rstd", ".lse"))]
    labels = {p.split(" ")[1].split(".", 2)[-1] for p in packed if "blocks." in p.split(" ")[1]}
    assert labels == {"ln1.y", "attn.qkv.y", "attn.y", "res1.y", "ln2.y", "mlp.fc1.y", "mlp.act.y", "res2.y"}


@pytest.mark.parametrize("sites, labels", [
    (("act",), {"mlp.act.y"}), (("norm",), {"ln1.y", "ln2.y"}), (("input",), {"res2.y", "embed.y"}), (("ln1.y", "act"),
                                                                                                   {"ln1.y", "mlp.act.y"})])
def test_only_the_named_sites_are_compressed(sites, labels):
    ex = step(cllm.Compressed(sites=sites))[0]
    packed = [ex.schedule.buffers[op.reads[0][1]].label for op in ex.schedule.ops if op.kind == "compress"]
    assert {p.split(".", 2)[2] if p.startswith("blocks.") else p for p in packed} == labels
    assert len(packed) == 4 * len(labels - {"embed.y"})


def test_a_leaf_alone_touches_the_gradients_of_its_readers_alone():
    """mlp.act.y is read by fc2's weight gradient and nobody else."""
    _, _, gradients = step(cllm.Compressed(sites=("act",)))
    _, _, expected = step(cllm.CacheAll())
    differ = {name for name in gradients if (gradients[name] != expected[name]).any()}
    assert differ == {f"blocks.{b}.mlp.fc2.weight" for b in range(4)}


def test_an_optional_site_may_be_compressed():
    """A decision that is named is carried out, for optional values too."""
    plan = Plan(tuple(Tape(b, (("attn.probs", Compress()),)) for b in range(4)))
    ex, loss, gradients = step(plan)
    assert ex.schedule.count("compress") == ex.schedule.count("expand") == 4
    kept, expected_loss, expected = step(Plan(tuple(Tape(b, (("attn.probs", Cache()),)) for b in range(4))))
    assert loss == expected_loss and 0.9999 < cosine(gradients, expected) < 1
    assert ex.memory.arena_bytes < kept.memory.arena_bytes


def test_the_report_has_a_place_for_copies():
    ex = step(cllm.Compressed())[0]
    parts = ex.memory.timeline_by_kind()
    assert max(parts["packed"]) > 0
    assert [sum(column) for column in zip(*parts.values(), strict=True)] == [n for _, n in ex.memory.timeline()]


def test_dropout_and_compression_are_exact_beside_each_other():
    one, two = (step(cllm.Compressed(micro_batch=m), dropout=0.2)[2] for m in (None, 2))
    oracle.assert_same_bits(one, two)


def test_training_with_compression_falls_like_exact_training():
    config = cllm.ModelConfig(**CONFIG)

    def losses(strategy):
        model = cllm.GPT(config, seed=0)
        ex, opt, out = cllm.Executor(model, B, T, strategy=strategy), cllm.AdamW(model, lr=3e-3), []
        for _ in range(30):
            model.zero_grad()
            out.append(ex.loss_and_grad(*oracle.draw_batch(CONFIG, B, T)))
            opt.step()
        return np.array(out)

    exact = losses(cllm.CacheAll())
    for strategy, far in ((cllm.Compressed(), 0.02), (cllm.Compressed("int8"), 0.05),
                          (cllm.Compressed("int8", rounding="stochastic"), 0.1)):
        assert np.abs(losses(strategy) - exact).max() < far
    assert exact[-1] < exact[0] - 0.5


@pytest.mark.parametrize("arguments, match", [
    (dict(rounding="stochastic"), "must be one of nearest for bfloat16"), (dict(dtype="int8", rounding="up"), "rounding"),
    (dict(dtype="float16"), "must be one of"), (dict(dtype=None), "must be one of"), (dict(base="cache"), "strategy"),
    (dict(base=cllm.CacheAll), "strategy"), (dict(sites="act"), "tuple"), (dict(sites=("nonsense",)), "nonsense"),
    (dict(sites=("probs",)), "probs")])
def test_what_compressed_refuses(arguments, match):
    with pytest.raises(cllm.ConfigError, match=match):
        step(cllm.Compressed(**arguments))


def test_float64_may_be_compressed():
    model = cllm.GPT(cllm.ModelConfig(**CONFIG), seed=0, dtype="float64")
    ex = cllm.Executor(model, B, T, strategy=cllm.Compressed("int8", base=cllm.Sqrt()))
    ex.loss_and_grad(*oracle.draw_batch(CONFIG, B, T))
    assert ex.high_water_bytes == ex.memory.arena_bytes
