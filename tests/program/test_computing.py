"""Computing in bfloat16: which values are such arrays, what they hold, what plans and files say of it, what is refused."""
import pickle
from dataclasses import dataclass, replace

import bfloat16_reference as reference
import numpy as np
import oracle
import pytest
from bfloat16_reference import r16, wide
from families import FAMILIES, LOSSLESS, fitting

import cllm
from cllm.errors import ConfigError, DeclarationError, NonFiniteError, PlanError, SnapshotError
from cllm.layers import AdaptedLinear, CrossEntropyHead, Embedding, GatedActivation, Linear, Residual, RMSNorm
from cllm.program.computing import with_compute
from cllm.program.packed import packed
from cllm.program.trained import with_trained
from cllm.proof.gradient_error import gradient_error
from cllm.sampling import Decoder, Rereader
from cllm.snapshot import load_snapshot, write_snapshot
from cllm.train import Trainer

SMALL = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 2})


def narrow(architecture):
    """Keys of the values that are bfloat16."""
    program = with_compute(architecture.program, "bfloat16")
    return {value.key for value in program.values.values() if value.dtype == "bfloat16"}


def test_values_that_enter_products_and_what_makes_them_are_bfloat16():
    assert narrow(SMALL) == {"ln1.y", "attn.qkv.y", "attn.y", "ln2.y", "mlp.fc1.y", "mlp.act.y", "ln_f.y"}
    assert narrow(FAMILIES["qwen3"].architecture) == {
        "ln1.y", "attn.qkv.y", "attn.qk_norm.y", "attn.y", "ln2.y", "mlp.fc1.y", "mlp.act.y", "ln_f.y"}
    crystalline = narrow(replace(SMALL, attention="crystalline"))
    assert "attn.qkv.y" not in crystalline and "attn.y" not in crystalline, "its kernel reads float32"
    assert all(value.dtype != "bfloat16" for value in SMALL.program.values.values())


@dataclass(frozen=True)
class Doubled(cllm.Layer):
    """A user's layer in NumPy, which knows nothing of all this."""

    C: int
    sites = (cllm.Site("y", "N C", "twice"),)
    reads = {"x": "N C"}

    def forward(self, x, *, y):
        assert x.dtype == np.float32
        np.multiply(x, 2, out=y)

    def backward(self, dy, *, dx):
        np.multiply(dy, 2, out=dx)


@dataclass(frozen=True)
class Mixed(cllm.Architecture):
    vocab_size: int = 13
    max_seq_len: int = 8

    def wire(self, w):
        x = w.add("embed", Embedding(V=13, C=8, P=8, kind="none"), {"weight": "tok_emb.weight"})
        with w.block(0):
            h = w.add("norm", RMSNorm(C=8), x=x)
            twice = w.add("twice", Doubled(C=8), x=h)
            h = w.add("fc", Linear(I=8, O=16), x=h)
            h = w.add("act", GatedActivation(F=8), x=h)
            h = w.add("sum", Residual(C=8), x=twice, branch=h)
            x = w.add("res", Residual(C=8), x=x, branch=h)
        w.add("head", CrossEntropyHead(V=13, C=8), {"weight": "tok_emb.weight"}, x=x)


def test_a_value_that_some_layer_does_not_read_as_bfloat16_stays_float32():
    assert narrow(Mixed()) == {"fc.y"}
    model = cllm.Model(Mixed(), compute="bfloat16")
    tokens = np.arange(16).reshape(2, 8) % 13
    losses = {cllm.Executor(model, 2, 8, strategy=s).loss_and_grad(tokens, tokens) for s in ("cache", "recompute", "cache@1")}
    assert len(losses) == 1


def test_only_inputs_and_sites_can_be_named():
    with pytest.raises(DeclarationError, match=r"Wrong.narrow: only inputs and sites of the workload's dtype"):
        class Wrong(Doubled):
            narrow = ("x", "z")


def test_every_value_is_what_its_layer_makes_of_the_rounded_ones():
    """Products to the bit; that they are read rounded is seen where a value is made from one that had to be rounded."""
    family = FAMILIES["in bfloat16"]
    model = family.model()
    executor = family.executor(model)
    feeds = family.draw()
    executor.loss(**feeds)
    found = {name: value.copy() for name, value in executor._forward.values()}
    program, checked = model.program, 0
    for step in program.steps[:-1]:
        for name, value in ((v, found[v]) for v in step.outputs.values() if v in found):
            assert (program.values[name].dtype == "bfloat16") == bool((wide(r16(value)) == value).all()), name
        if isinstance(step.layer, Linear):
            reference.assert_linear_step(reference.product, step, model, found)
            checked += 1
    assert checked == 4 * program.n_blocks


@pytest.mark.parametrize("time", [33, 50, 128])
def test_bits_depend_on_no_rows_of_the_head_and_no_cut_at_odd_lengths(time):
    config = cllm.ModelConfig(vocab_size=67, n_layers=1, d_model=12, n_heads=2, d_ff=20, max_seq_len=128)
    tokens, targets = np.random.default_rng(0).integers(0, 67, (2, 3, time))
    whole = cllm.plan(config, 3, time, "cache", compute="bfloat16")
    found = []
    changes = ({}, {"loss_rows": 7}, {"micro_batch": 1}, {"micro_batch": 2, "loss_rows": 11})
    for plan in (replace(whole, **change) for change in changes):
        model = cllm.Model(config, compute="bfloat16")
        loss = cllm.Executor(model, 3, time, strategy=plan, num_threads=2).loss_and_grad(tokens, targets)
        found.append({"loss": np.array(loss), **model.gradients})
    for other in found[1:]:
        oracle.assert_same_bits(other, found[0])


def test_the_arena_of_small_falls_to_less_than_sixty_and_sixty_five_hundredths():
    config = cllm.ModelConfig.preset("small")
    for strategy, most in (("cache", 0.60), ("selective", 0.65)):
        plans = [cllm.plan(config, 8, 256, strategy, num_threads=2, compute=compute) for compute in ("float32", "bfloat16")]
        assert plans[1].arena_bytes <= most * plans[0].arena_bytes
        assert plans[1].total_bytes - plans[1].arena_bytes == plans[0].total_bytes - plans[0].arena_bytes


def test_the_gradient_is_near_that_in_float32_layer_by_layer():
    family = FAMILIES["in bfloat16"]
    model = family.model(scale=0.1)
    errors = gradient_error(model, **family.draw(), against="float32", by_layer=True)
    assert errors.keys() == {name.rpartition(".")[0] for name in model.parameters}
    assert 1e-4 < max(errors.values()) < 0.05 and min(errors.values()) > 0, errors
    whole = gradient_error(model, **family.draw(), against="float32")
    assert min(errors.values()) <= whole <= max(errors.values())
    assert gradient_error(model, **family.draw()) == 0 and model.compute == "bfloat16"
    with pytest.raises(ConfigError, match=r"gradient_error\(against=...\): must be one of float32, bfloat16"):
        gradient_error(model, **family.draw(), against="half")


def test_the_gradient_of_packed_rows_is_compared_between_the_modes():
    family = FAMILIES["in bfloat16, packed"]
    assert 0 < gradient_error(family.model(scale=0.1), **family.draw(), against="float32") < 0.05


def test_a_plan_is_for_one_way_of_computing():
    plan = cllm.plan(SMALL, 2, 6, "selective", compute="bfloat16")
    model = cllm.Model(SMALL)
    assert plan.fingerprint == cllm.plan(cllm.Model(SMALL, compute="bfloat16"), 2, 6).fingerprint
    assert plan.fingerprint != cllm.plan(model, 2, 6).fingerprint
    assert cllm.plan(cllm.Model(SMALL, compute="bfloat16"), 2, 6, compute="float32").fingerprint == \
        cllm.plan(model, 2, 6).fingerprint
    with pytest.raises(PlanError, match="must be a plan made for this model and batch"):
        cllm.Executor(model, 2, 6, strategy=plan)
    model.compute = "bfloat16"
    assert cllm.Executor(model, 2, 6, strategy=plan).plan == plan


def test_it_may_be_changed_and_executors_keep_theirs():
    family = FAMILIES["in bfloat16"]
    model, feeds = family.model(), family.draw()
    before = family.executor(model)
    losses = [before.loss(**feeds)]
    model.compute = "float32"
    losses += [before.loss(**feeds), family.executor(model).loss(**feeds)]
    assert losses[0] == losses[1] != losses[2] and abs(losses[2] - losses[0]) < 0.05
    for copy in (pickle.loads(pickle.dumps(family.model())), family.model().copy()):
        assert copy.compute == "bfloat16" and family.executor(copy).loss(**feeds) == losses[0]
    assert family.model().copy("float64").compute == "float32"


def test_float64_and_unknown_words_are_refused():
    for call in (lambda: cllm.Model(SMALL, dtype="float64", compute="bfloat16"),
                 lambda: cllm.plan(SMALL, 2, 6, dtype="float64", compute="bfloat16"),
                 lambda: setattr(cllm.Model(SMALL, dtype="float64"), "compute", "bfloat16")):
        with pytest.raises(ConfigError, match="must be 'float32' where dtype is float64"):
            call()
    for call in (lambda: cllm.Model(SMALL, compute="float16"), lambda: cllm.plan(SMALL, 2, 6, compute=1),
                 lambda: setattr(cllm.Model(SMALL), "compute", None), lambda: cllm.GPT(SMALL, compute=["bfloat16"])):
        with pytest.raises(ConfigError, match="must be one of float32, bfloat16"):
            call()


@pytest.mark.parametrize("name", ["bf16", "int8", "int8-stochastic", "bf16:selective"])
def test_copies_leave_out_what_is_bfloat16_already(name):
    family = FAMILIES["in bfloat16"]
    model = family.model()
    executor = family.executor(model, name)
    packed = {b.value for b in executor.schedule.buffers if b.kind == "packed"}
    assert packed and not any(model.program.values[v].dtype == "bfloat16" for v in packed)
    executor.loss_and_grad(**family.draw())
    assert executor.high_water_bytes == executor.memory.arena_bytes
    for sites in (("act",), ("attn.qkv.y",)):
        with pytest.raises(PlanError, match="a value that is bfloat16 already may not be compressed"):
            cllm.plan(model, 5, 6, cllm.Compressed(sites=sites))


def test_a_budget_that_may_compress_does_so_to_other_values():
    family = FAMILIES["in bfloat16"]
    model = family.model()
    least = cllm.plan(model, 5, 6, "recompute@1").total_bytes
    plan = cllm.plan(model, 5, 6, cllm.MemoryBudget(least, ("cache", "recompute", "micro_batch", "bfloat16")))
    assert plan.total_bytes <= least


@pytest.mark.parametrize("make", [Decoder, Rereader])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("in bfloat16")])
def test_logits_token_by_token_are_those_of_the_full_forward(make, name):
    family = FAMILIES[name]
    model = family.model(scale=0.1)
    length = 9
    tokens = np.random.default_rng(0).integers(0, model.program.vocabulary, length)
    decoder = make(model, 2)
    found = np.concatenate([decoder.read(part) for part in (tokens[:4], tokens[4:5], tokens[5:])])
    expected = cllm.Executor(model, 1, length).logits(tokens[None])[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert len(cllm.generate(model, tokens[:3], 4)) in (4, 7)


def test_nan_in_a_value_of_bfloat16_is_named():
    family = FAMILIES["in bfloat16"]
    model = family.model()
    model.parameters["blocks.1.ln2.weight"][3] = 3e38
    with pytest.raises(NonFiniteError, match=r"value blocks\.1\.(ln2|mlp)\."):
        family.executor(model).loss(**family.draw())


def test_files_say_how_a_model_computes(tmp_path):
    model = cllm.Model(SMALL, compute="bfloat16")
    optimizer = cllm.AdamW(model)
    model.save(tmp_path / "model")
    assert cllm.load(tmp_path / "model").compute == "bfloat16"
    write_snapshot(tmp_path, 3, model, optimizer, {})
    place = tmp_path / "step-000003"
    assert load_snapshot(place)[0].compute == "bfloat16"
    with pytest.raises(SnapshotError, match="another compute"):
        load_snapshot(place, cllm.GPT(SMALL))


TEXT = np.frombuffer(cllm.corpus.embedded_text()[:20_000], np.uint8)
RUN = dict(steps=6, batch_size=3, seq_len=16, eval_every=5, eval_batches=2, snapshot_every=3, threads=2, lr=3e-3)


def trained(model, out=None, **changes):
    trainer = Trainer(model, TEXT, out, **{**RUN, **changes})
    trainer.run()
    return trainer


def new(**changes):
    return cllm.GPT(cllm.ModelConfig(256, 2, 32, 2, 64, 32, dropout=0.1), seed=1, **changes)


def test_a_run_in_bfloat16_goes_on_in_it_to_the_same_bits(tmp_path):
    straight = trained(new(), compute="bfloat16")
    assert straight.losses == trained(new(compute="bfloat16")).losses != trained(new()).losses
    begun = Trainer(new(), TEXT, tmp_path, compute="bfloat16", **RUN)
    begun.callbacks.append(_StopAfter(3))
    begun.run()
    with pytest.raises(ConfigError, match="compute 'bfloat16' there, 'float32' now"):
        Trainer(new(), TEXT, tmp_path, resume=True, compute="float32")
    resumed = Trainer(new(), TEXT, tmp_path, resume=True)
    resumed.run()
    assert resumed.model.compute == "bfloat16" and begun.losses + resumed.losses == straight.losses
    oracle.assert_same_bits(dict(resumed.model.parameters), dict(straight.model.parameters))


def test_a_run_in_float32_is_not_taken_up_by_a_model_in_bfloat16(tmp_path):
    trained(new(), tmp_path, steps=3)
    with pytest.raises(ConfigError, match="compute 'float32' there, 'bfloat16' now"):
        Trainer(new(compute="bfloat16"), TEXT, tmp_path, resume=True, steps=6)
    with pytest.raises(ConfigError, match=r"train\(compute=...\): must be one of float32, bfloat16"):
        Trainer(new(), TEXT, compute="half", **RUN)


class _StopAfter(cllm.train.Callback):
    def __init__(self, step):
        self.step = step

    def on_event(self, trainer, record):
        if record["event"] == "step" and record["step"] == self.step:
            trainer.stop()


def test_the_instruction_is_named():
    assert cllm.versions()["bfloat16"] in ("amx", "avx512_bf16", "emulated")


def test_the_laws_would_see_a_reader_of_what_was_not_rounded(monkeypatch):
    """Law 12: a norm that leaves float32 where it is rebuilt, and bfloat16 where it is kept, makes plans differ."""
    family = FAMILIES["in bfloat16"]
    strategy = fitting(LOSSLESS["recompute"], family)
    expected = family.train(strategy)
    from cllm import _kernels
    real, calls = _kernels.layernorm_forward, [0]

    def broken(x, weight, bias, eps, *, y, mean, rstd):
        real(x, weight, bias, eps, y=y, mean=mean, rstd=rstd)
        calls[0] += 1
        if calls[0] == 7:  # one value of one rebuild is the bfloat16 beside the nearest
            y[0, 0] ^= 1

    monkeypatch.setattr(_kernels, "layernorm_forward", broken)
    with pytest.raises(AssertionError):
        oracle.assert_same_bits(family.train(strategy), expected)


def test_forms_of_a_program_go_together():
    program, narrow_one = SMALL.program, with_compute(SMALL.program, "bfloat16")
    assert with_compute(program, "float32") is program and with_compute(narrow_one, "bfloat16") is narrow_one
    assert with_compute(narrow_one, "float32").digest == program.digest
    ways = (with_compute(packed(with_trained(program, "*.ln*")), "bfloat16"),
            packed(with_trained(narrow_one, "*.ln*")), with_trained(with_compute(packed(program), "bfloat16"), "*.ln*"))
    assert len({way.digest for way in ways}) == 1 and all(len(way.trained) == 8 for way in ways)
    assert with_compute(ways[0], "float32").digest == packed(with_trained(program, "*.ln*")).digest


def test_what_is_trained_and_the_mode_are_set_in_any_order():
    model = cllm.Model(SMALL, trainable="*.ln*")
    model.compute = "bfloat16"
    digest = model.program.digest
    model.trainable = None
    assert model.program.digest == cllm.Model(SMALL, compute="bfloat16").program.digest
    model.trainable = "*.ln*"
    assert model.program.digest == digest and model.program.frozen
    added = cllm.add_lora(cllm.Model(SMALL, compute="bfloat16"), 2)
    assert added.compute == "bfloat16" == cllm.merge_adapter(added).compute
    assert pickle.loads(pickle.dumps(added)).program.digest == added.program.digest


def test_operands_of_all_products_of_an_adapted_part_are_rounded():
    rng = np.random.default_rng(0)
    n, i, o, k = 5, 7, 6, 2
    x, weight, a, b, dy = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((n, i), (i, o), (k, i), (k, 3), (n, o)))
    layer = AdaptedLinear(i, o, k, k, 3, ((2, 5),), 0.5, bias=False).computing("bfloat16")
    room = {name: np.zeros(size, np.float32)
            for name, size in (("workspace", 1 << 16), ("low", n * k), ("spread", k * o), ("dropped", 0))}
    spread = np.zeros((k, o), np.float32)
    spread[:, 2:5] = b * np.float32(0.5)
    zero, product = np.float32(0), reference.product

    y = np.zeros((n, o), np.float32)
    layer.forward(x, weight, None, a, b, None, y=y, **room)
    u = product(a, x.T, zero)
    np.testing.assert_array_equal(y, product(u.T, spread, product(x, weight, zero)))

    dx = np.zeros_like(x)
    layer.backward(dy, weight, a, b, None, dx=dx, **room)
    g = product(dy, spread.T, zero)
    np.testing.assert_array_equal(dx, product(g, a, product(dy, weight.T, zero)))

    dweight, da, db = np.zeros_like(weight), np.ones_like(a), np.ones_like(b)
    layer.accumulate(dy, x, a, b, None, n, dweight=dweight, dbias=None, dlora_a=da, dlora_b=db, **room)
    np.testing.assert_array_equal(dweight, product(x.T, dy, zero))
    np.testing.assert_array_equal(da, product(g.T, x, np.float32(1)))
    np.testing.assert_array_equal(db, product((u * np.float32(0.5)), dy, np.float32(1))[:, 2:5])


def test_a_head_that_leaves_rows_out_reads_bfloat16():
    rng = np.random.default_rng(0)
    head = CrossEntropyHead(11, 8, compute="bfloat16")
    weight, x = rng.normal(0, 1, (11, 8)).astype(np.float32), r16(rng.normal(0, 1, (6, 8)))
    targets = np.array([3, -1, 0, 10, -1, 7], np.int32)

    def run(x, targets):
        loss, dx, dweight = np.zeros(1), np.full((len(x), 8), np.nan, np.float32), np.zeros_like(weight)
        room = {"chunk": np.zeros(4 * 11, np.float32), "losses": np.zeros(4), "workspace": np.zeros(1 << 16, np.float32)}
        head.backward(x, weight, None, targets, np.array([0.25]), None, len(x), loss=loss, dx=dx, dweight=dweight,
                      dbias=None, **room)
        told = np.zeros(1)
        head.evaluate(x, weight, None, targets, loss=told, **room)
        return loss, told, dx, dweight

    loss, told, dx, dweight = run(x, targets)
    assert loss > 0 and told > 0
    for found, wanted in zip((loss, told, dx, dweight), run(wide(x), targets), strict=True):
        np.testing.assert_array_equal(found, wanted)
    used = targets >= 0
    np.testing.assert_array_equal(dx[used], run(x[used], targets[used])[2])
    assert not dx[~used].any()
