"""Schedules: rebuilds redo nothing that nobody reads, any tree of segments runs to the same bits, freed is never read."""
import collections
import dataclasses

import numpy as np
import oracle
import pytest
import toys
from drawn import GPT_KEYS, TOY_BLOCKS, assert_sound, decisions, poisoned, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Mix, Square, Tanh

import cllm
from cllm.models.architecture import program_of
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Compress, OnDisk, Recompute, Segment, Tape
from cllm.program.workload import Workload
from cllm.schedule.arena import lay_out
from cllm.schedule.build import build_schedule, default_loss_rows

BLOCK = ("ln1", "attn.qkv", "attn", "attn.out", "res1", "ln2", "mlp.fc1", "mlp.act", "mlp.fc2", "res2")
LAST = ("mlp.fc2", "res2")  # of a block that is only taped: its output is read by no backward
CONFIG = {**oracle.CONFIG, "n_layers": 6}
BEFORE = ((), ((Mix, 0, 0), (Tanh, 1, 0)), ((Square, 0, 0), (Mix, 1, 0), (Square, 2, 0)))  # the blocks


def schedule_of(strategy, config=CONFIG, batch=4, time=6, **changes):
    config = cllm.ModelConfig(**{**config, **changes})
    ledger = Ledger(program_of(config), Workload(batch, time, threads=2))
    plan = strategy if isinstance(strategy, Plan) else strategy.decide(ledger)
    return ledger.build(plan)[0]


def rebuilds(schedule):
    """Step inside its block -> in which blocks it is rebuilt, each as often as it is."""
    found = collections.defaultdict(list)
    for op in schedule.ops:
        if op.kind == "rebuild":
            found[op.step.name.split(".", 2)[2] if op.step.block is not None else op.step.name].append(op.step.block)
    return {name: sorted(blocks) for name, blocks in found.items()}


# kernel calls, strategy by strategy

def test_cache_all_rebuilds_nothing():
    schedule = schedule_of(cllm.CacheAll())
    assert schedule.count("rebuild") == 0
    assert schedule.count("forward") == 2 + 6 * 10 and schedule.count("backward", "head") == 1
    assert rebuilds(schedule_of(cllm.CacheAll(also=("probs", "logits")))) == {}


def test_recompute_all_rebuilds_each_block_once_but_for_its_last_product():
    schedule = schedule_of(cllm.RecomputeAll())
    assert rebuilds(schedule) == {name: [0, 1, 2, 3, 4, 5] for name in BLOCK if name not in LAST}
    assert schedule.count("forward") == 2 + 6 * 10


@pytest.mark.parametrize("n, segments", [(2, [[0, 1], [2, 3], [4, 5]]), (4, [[0, 1, 2, 3], [4, 5]]), (6, [[*range(6)]])])
def test_a_segment_of_n_blocks_rebuilds_its_last_product_only_where_the_next_block_needs_it(n, segments):
    schedule = schedule_of(cllm.EveryNth(n))
    inner = [b for segment in segments for b in segment[:-1]]
    assert rebuilds(schedule) == {name: inner if name in LAST else [0, 1, 2, 3, 4, 5] for name in BLOCK}


def test_sqrt_is_every_third_of_seven():
    assert rebuilds(schedule_of(cllm.Sqrt(), n_layers=7)) == rebuilds(schedule_of(cllm.EveryNth(3), n_layers=7))


@pytest.mark.parametrize("what, steps", [
    (("norm",), ["ln1", "ln2"]), (("act",), ["mlp.act"]), (("norm", "act"), ["ln1", "ln2", "mlp.act"]),
    (("ln2.y",), ["ln2"]), (("mlp.fc1.y",), ["mlp.fc1"]), (("mlp",), ["mlp.fc1"]), (("res1.y",), ["attn.out", "res1"]),
    (("attn",), ["attn.qkv", "attn"]), (("norm", "mlp", "act"), ["ln1", "ln2", "mlp.fc1", "mlp.act"])],
    ids=lambda v: "+".join(v))
def test_selective_rebuilds_what_it_names_once_in_each_block(what, steps):
    assert rebuilds(schedule_of(cllm.Selective(recompute=what))) == {name: [*range(6)] for name in BLOCK if name in steps}


def test_what_only_a_rebuild_reads_is_not_kept_for_it():
    """Without its own value, the residual sum is made from the branch, which is made again too: so dropping it saves."""
    whole, less = (schedule_of(cllm.Selective(what)) for what in ((), ("res1.y",)))
    kept = [{b.label for b in s.buffers if b.kind == "kept"} for s in (whole, less)]
    assert kept[1] == kept[0] - {f"blocks.{b}.res1.y" for b in range(6)}


def test_row_statistics_of_a_rebuilt_norm_are_not_kept_twice():
    """A rebuilt norm writes mean and rstd again; the kept ones are read, and the new ones are freed at once."""
    schedule = schedule_of(cllm.Selective(("norm",)))
    for buffer in schedule.buffers:
        if buffer.kind == "rebuilt" and buffer.label.endswith((".mean", ".rstd")):
            assert buffer.first == buffer.last


def test_per_block_mixes():
    schedule = schedule_of(cllm.PerBlock({range(0, 2): cllm.RecomputeAll(), 3: cllm.Selective(("act",))}))
    expected = {name: [0, 1] for name in BLOCK if name not in LAST}
    assert rebuilds(schedule) == {**expected, "mlp.act": [0, 1, 3]}


def test_a_micro_batch_changes_no_operation_but_the_epilogue():
    whole, cut = (schedule_of(cllm.RecomputeAll(micro_batch=m)) for m in (None, 2))
    names = [op.name for op in whole.ops]
    assert whole.epilogue == len(names) and whole.n_micro == 1 and cut.n_micro == 2
    assert [op.name for op in cut.ops] == [*names[:-1], "stash embed", "accumulate embed"]
    assert cut.epilogue == len(names) and cut.ops[-1].whole
    untied = schedule_of(cllm.RecomputeAll(micro_batch=2), tied=False)
    assert [op.name for op in untied.ops] == names, "nothing shares its gradient: nothing waits"


@pytest.mark.parametrize("mode", ["loss", "logits"])
def test_without_gradients_each_step_runs_once_and_nothing_is_kept(mode):
    config = cllm.ModelConfig(**CONFIG)
    program, workload = program_of(config), Workload(4, 6, threads=2)
    for plan in (toys.cache_all(program), schedule_plan(cllm.Binomial(2))):
        schedule = build_schedule(program, workload, plan, mode)
        assert [op.step.index for op in schedule.ops] == [*range(len(program.steps))]
        assert {b.kind for b in schedule.buffers} <= {"passing", "scratch"}
        assert schedule.ops[-1].kind == {"loss": "evaluate", "logits": "logits"}[mode]


def schedule_plan(strategy):
    config = cllm.ModelConfig(**CONFIG)
    return strategy.decide(Ledger(program_of(config), Workload(4, 6, threads=2)))


# what must hold of every schedule

def test_every_schedule_is_sound(lossless):
    for micro_batch in (None, 3):
        assert_sound(schedule_of(dataclasses.replace(lossless, micro_batch=micro_batch), dropout=0.1))


@pytest.mark.parametrize("strategy", [cllm.Compressed(), cllm.Compressed("int8", base=cllm.Sqrt()), cllm.Spill("/somewhere"),
                                      cllm.Spill("/somewhere", base=cllm.Binomial(2)),
                                      cllm.Spill("/somewhere", base=cllm.Selective(), micro_batch=1)], ids=repr)
def test_schedules_with_copies_are_sound(strategy):
    schedule = schedule_of(strategy)
    assert_sound(schedule)
    for start, wait in (("spill_start", "spill_wait"), ("fetch_start", "fetch_wait")):
        assert schedule.count(start) == schedule.count(wait) == (schedule.count("spill_start"))
    assert schedule.count("compress") == schedule.count("expand")
    flying = set()
    for op in schedule.ops:  # never a wait before its start, and nothing in flight at the end of a micro-batch
        key = op.kind.split("_")[0], next((b for _, b in (*op.reads, *op.writes) if schedule.buffers[b].kind == "disk"), None)
        if op.kind.endswith("_start"):
            assert key not in flying
            flying.add(key)
        if op.kind.endswith("_wait"):
            flying.remove(key)
        if op.kind == "fetch_start":
            assert ("spill", key[1]) not in flying, "a value is fetched before it has landed"
    waiting = schedule.count("accumulate", "embed") if schedule.n_micro > 1 else 0
    assert not flying and schedule.epilogue == len(schedule.ops) - waiting


# drawn plans

@settings(max_examples=100)
@given(data=st.data(), order=st.lists(st.sampled_from(range(len(TOY_BLOCKS))), min_size=1, max_size=6),
       micro_batch=st.sampled_from([None, 1, 2, 3]), tied=st.booleans(), before=st.sampled_from(BEFORE))
def test_drawn_plans_over_drawn_programs_give_equal_bits_and_read_nothing_freed(data, order, micro_batch, tied, before):
    """Every buffer is NaN until it is written and again once it is freed; optional values are kept or not."""
    program, work = toys.wire([TOY_BLOCKS[i] for i in order], tied=tied, before=before), toys.workload()
    parameters, batch = toys.draw_parameters(program), toys.draw_batch(work)

    def decide(block):
        keys = [program.values[v].key for s in program.regions[1][block] for v in s.outputs.values()
                if program.readers[v] and v not in program.block_inputs]
        return decisions(keys, [Cache(), Recompute()]) if keys else st.just(())

    children = data.draw(trees(range(program.n_blocks), decide), label="tree")
    plan = Plan(children, micro_batch, data.draw(st.sampled_from([None, 1, 2])))
    loss, gradients, schedule = toys.run(program, work, plan, parameters, *batch)
    assert_sound(schedule)
    expected_loss, expected, _ = toys.run(program, work, toys.cache_all(program), parameters, *batch, poison=False)
    assert loss == expected_loss
    oracle.assert_same_bits(gradients, expected)


@settings(max_examples=40)
@given(data=st.data(), n=st.integers(1, 5), micro_batch=st.sampled_from([None, 1, 2]), loss_rows=st.sampled_from([None, 1, 5]),
       dropout=st.sampled_from([0.0, 0.2]), logits=st.booleans())
def test_drawn_plans_over_the_model_give_equal_bits_and_read_nothing_freed(data, n, micro_batch, loss_rows, dropout, logits):
    config = {**oracle.CONFIG, "n_layers": n, "dropout": dropout}
    children = data.draw(trees(range(n), lambda b: decisions(GPT_KEYS, [Cache(), Recompute()])), label="tree")
    end = {"ln_f.y": Recompute(), **({"head.logits": Cache()} if logits else {})}
    plan = Plan(children, micro_batch, loss_rows, tuple(end.items()))
    tokens, targets = oracle.draw_batch(config, 3, 5)

    def gradients(strategy, poison):
        model = cllm.GPT(cllm.ModelConfig(**config), seed=1)
        ex = cllm.Executor(model, 3, 5, strategy=strategy, num_threads=2)
        if poison:
            for size in {size for _, size in ex._feeds.cuts()}:
                ex._calls["train", size] = poisoned(ex, ex._bound(size))
            ex._slab.bytes.fill(toys.POISON)
        loss = ex.loss_and_grad(tokens, targets)
        return {"loss": np.float64(loss), **{name: g.copy() for name, g in model.gradients.items()}}

    oracle.assert_same_bits(gradients(plan, True), gradients(cllm.CacheAll(), False))


def test_the_poison_is_seen():
    """Law 12: a buffer freed one operation too early makes the gradients NaN."""
    program, work = toys.wire([TOY_BLOCKS[0]]), toys.workload()
    parameters, batch = toys.draw_parameters(program), toys.draw_batch(work)
    plan = toys.cache_all(program)
    schedule = build_schedule(program, work, plan)
    kept = next(b for b in schedule.buffers if b.kind == "kept" and b.label.endswith("s0.twice"))
    arena = lay_out(schedule)
    start = arena.offsets[kept.index]
    assert kept.nbytes
    hit = []

    def watch(op, position):
        if position == kept.last - 1:
            hit.append(position)
            slab = watch.slab
            slab[start:start + kept.nbytes] = toys.POISON

    original = toys.aligned_empty

    def grab(nbytes, dtype):
        watch.slab = original(nbytes, dtype)
        return watch.slab

    toys.aligned_empty = grab
    try:
        _, gradients, _ = toys.run(program, work, plan, parameters, *batch, watch=watch)
    finally:
        toys.aligned_empty = original
    assert hit and not all(np.isfinite(g).all() for g in gradients.values())


# refusals

TAPES = tuple(Tape(b) for b in range(6))
BAD = {
    "a block left out": (Plan(TAPES[:5]), "must cover blocks 0 to 5 once, in order"),
    "a block twice": (Plan((*TAPES, Tape(5))), "must cover blocks"),
    "blocks out of order": (Plan((TAPES[1], TAPES[0], *TAPES[2:])), "must cover blocks"),
    "out of order inside a segment": (Plan((Segment((TAPES[1], TAPES[0])), *TAPES[2:])), "must cover blocks"),
    "no children": (Plan(()), "must cover blocks"),
    "a segment of nothing": (Plan((Segment(()), *TAPES)), "at least one"),
    "a segment of nothing inside": (Plan((Segment((Segment(()), *TAPES)),)), "at least one"),
    "a child that is no node": (Plan((*TAPES[:5], 5)), "a tuple of Tape and Segment"),
    "children in a list": (Plan(list(TAPES)), "a tuple of Tape and Segment"),
    "a segment's children in a list": (Plan((Segment(list(TAPES)),)), "a tuple of Tape and Segment"),
    "decisions in a dict": (Plan((Tape(0, {"ln1.y": Recompute()}), *TAPES[1:])), "a tuple of Tape and Segment"),
    "micro_batch 0": (Plan(TAPES, 0), "micro_batch"),
    "micro_batch beyond the batch": (Plan(TAPES, 5), "from 1 to 4"),
    "micro_batch a float": (Plan(TAPES, 2.0), "micro_batch"),
    "micro_batch a bool": (Plan(TAPES, True), "micro_batch"),
    "loss_rows 0": (Plan(TAPES, None, 0), "loss_rows"),
    "loss_rows beyond the rows": (Plan(TAPES, None, 25), "from 1 to 24"),
    "a name that is none": (Plan((Tape(0, (("ln9.y", Recompute()),)), *TAPES[1:])), "ln9.y"),
    "a value that no backward reads": (Plan((Tape(0, (("attn.out.y", Recompute()),)), *TAPES[1:])), "attn.out.y"),
    "the output of a block": (Plan((Tape(0, (("res2.y", Recompute()),)), *TAPES[1:])), "decided by the segments"),
    "the input to be rebuilt": (Plan((TAPES[0], Tape(1, (("input", Recompute()),)), *TAPES[2:])), "cannot be rebuilt inside"),
    "a segment's input to be rebuilt": (Plan((TAPES[0], Segment(TAPES[1:3], Recompute()), *TAPES[3:])), "must be kept"),
    "statistics compressed": (Plan((Tape(0, (("ln1.mean", Compress()),)), *TAPES[1:])), "statistics"),
    "log-sum-exp compressed": (Plan((Tape(0, (("attn.lse", Compress("int8")),)), *TAPES[1:])), "statistics"),
    "an unknown decision": (Plan((Tape(0, (("ln1.y", "cache"),)), *TAPES[1:])), "decision must be"),
    "an unknown format": (Plan((Tape(0, (("ln1.y", Compress("float8")),)), *TAPES[1:])), "decision must be"),
    "an unknown rounding": (Plan((Tape(0, (("ln1.y", Compress("bfloat16", "stochastic")),)), *TAPES[1:])), "decision must be"),
    "an end that is none": (Plan(TAPES, ends=(("embed.z", Cache()),)), "embed.z"),
    "a spill without a directory": (Plan((Tape(0, (("ln1.y", OnDisk()),)), *TAPES[1:])), "spill_directory"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(what):
    plan, match = BAD[what]
    with pytest.raises(cllm.PlanError, match=match):
        schedule_of(plan)


@pytest.mark.parametrize("plan", [None, (), "cache", Tape(0)])
def test_what_is_no_plan_is_refused(plan):
    config = cllm.ModelConfig(**CONFIG)
    with pytest.raises(cllm.PlanError, match="Plan"):
        build_schedule(program_of(config), Workload(4, 6), plan)


def test_a_shared_parameter_that_needs_more_than_the_batch_cannot_be_cut():
    program, work = toys.wire([((Mix, 0, 0, "one"), (Mix, 1, 0, "one"))]), toys.workload()
    build_schedule(program, work, toys.cache_all(program))
    with pytest.raises(cllm.PlanError, match="Do not tie this parameter"):
        build_schedule(program, work, Plan((Tape(0),), 1))


@pytest.mark.parametrize("rows, vocabulary, itemsize, expected", [
    (2048, 256, 4, 2048), (512, 50257, 4, 320), (100, 50257, 4, 100), (4096, 10**7, 4, 64), (10, 10**7, 4, 10)])
def test_rows_of_the_head_where_a_plan_leaves_them_open(rows, vocabulary, itemsize, expected):
    assert default_loss_rows(rows, vocabulary, itemsize) == expected
