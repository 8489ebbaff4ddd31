"""Scripts: any that reads what is there runs to the same bits up to its predicted peak; any other is refused, saying why."""
import dataclasses

import numpy as np
import oracle
import pytest
import toys
from drawn import GPT_KEYS, TOY_BLOCKS, assert_sound, decisions, poisoned, trees
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from longer import examples

import cllm
from cllm.plans.check import check_plan
from cllm.plans.plan import Plan
from cllm.plans.script import Script
from cllm.plans.tree import Cache, Recompute
from cllm.program.workload import Workload
from cllm.schedule.arena import live_bytes
from cllm.schedule.build import build_schedule
from cllm.schedule.written import written_out


def read_by(program, word, step):
    """Values that a line reads, but for optional ones."""
    flows = {"accumulate": ("accumulate_flow",), "backward": ("accumulate_flow", "backward_flow")}
    values = step.inputs.values() if word in ("forward", "rebuild") else [
        v for flow in flows[word] for v in program.values_of(step, getattr(step.layer, flow))]
    return [v for v in values if not program.values[v].optional]


def drawn_script(program, flip):
    """A script that drops whatever it feels like, whenever, and rebuilds it when it is asked for."""
    lines, here = [], set()

    def drop(keep=()):
        for v in sorted(here - set(keep)):
            if flip():
                lines.append(("free", v))
                here.discard(v)

    def make(step, word, optional=()):
        outputs = [v for v in step.outputs.values() if not program.values[v].optional or v in optional]
        for v in outputs:
            if v in here:
                lines.append(("free", v))
        lines.append((word, step.name, *optional))
        here.update(outputs)

    def have(values):
        for v in values:
            if v not in here:
                step = program.steps[program.values[v].step]
                have(read_by(program, "rebuild", step))
                make(step, "rebuild")

    for step in program.steps[:-1]:
        have(read_by(program, "forward", step))
        make(step, "forward", [v for v in step.outputs.values() if program.values[v].optional and flip()])
        drop()
    for step in reversed(program.steps):
        split = flip()
        have(read_by(program, "accumulate" if split else "backward", step))
        if split:
            lines.append(("accumulate", step.name))
            drop()
            have(v for v in program.values_of(step, step.layer.backward_flow) if not program.values[v].optional)
        lines.append(("backward", step.name))
        drop()
    return Script(tuple(lines))


def flips(data):
    """A coin with a drawn bias and a drawn seed: long scripts need more flips than are worth drawing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999), label="seed"))
    share = data.draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]), label="share")
    return lambda: rng.random() < share


@settings(max_examples=60)
@given(data=st.data(), order=st.lists(st.sampled_from(range(len(TOY_BLOCKS))), min_size=0, max_size=5),
       micro_batch=st.sampled_from([None, 1, 2, 3]), tied=st.booleans())
def test_drawn_scripts_over_drawn_programs_give_equal_bits_and_read_nothing_freed(data, order, micro_batch, tied):
    """Every buffer is NaN until it is written and again once it is freed."""
    program, work = toys.wire([TOY_BLOCKS[i] for i in order], tied=tied), toys.workload()
    parameters, batch = toys.draw_parameters(program), toys.draw_batch(work)
    plan = Plan(drawn_script(program, flips(data)), micro_batch, data.draw(st.sampled_from([None, 1, 2])))
    loss, gradients, schedule = toys.run(program, work, plan, parameters, *batch)
    assert_sound(schedule)
    expected_loss, expected, _ = toys.run(program, work, toys.cache_all(program), parameters, *batch, poison=False)
    assert loss == expected_loss
    oracle.assert_same_bits(gradients, expected)


SHORT = [name for name in FAMILIES if "longer" not in name]


@settings(max_examples=examples(8, 20))
@given(data=st.data(), name=st.sampled_from(SHORT), micro_batch=st.sampled_from([None, 1, 2]))
def test_drawn_scripts_over_every_family_give_equal_bits_and_write_up_to_the_peak(data, name, micro_batch):
    family = FAMILIES[name]
    program = family.architecture.program
    plan = Plan(drawn_script(program, flips(data)), micro_batch and min(micro_batch, family.batch))

    def gradients(strategy, poison):
        model = family.model("float32")
        ex = family.executor(model, strategy)
        if poison:
            for size in {size for _, size in ex._feeds.cuts()}:
                ex._calls["train", size] = poisoned(ex, ex._bound(size))
            ex._slab.bytes.fill(toys.POISON)
        loss = ex.loss_and_grad(**family.draw(0))
        if not poison:
            assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
        return {"loss": np.float64(loss), **{n: g.copy() for n, g in model.gradients.items()}}

    expected = gradients(cllm.CacheAll(), False)
    oracle.assert_same_bits(gradients(plan, True), expected)
    oracle.assert_same_bits(gradients(plan, False), expected)


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 5), micro_batch=st.sampled_from([None, 1, 2]), logits=st.booleans())
def test_a_tree_written_out_runs_the_same_in_no_more_room(data, n, micro_batch, logits):
    config = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": n})
    program, work = config.program, Workload(3, 5, threads=2)
    tree = data.draw(trees(range(n), lambda b: decisions(GPT_KEYS, [Cache(), Recompute()])), label="tree")
    plan = Plan(tree, micro_batch, 5, (("head.logits", Cache()),) if logits else ())
    whole = build_schedule(program, work, plan)
    script = written_out(program, whole)
    again = build_schedule(program, work, Plan(script, micro_batch, 5))
    peaks = [max(live_bytes(s.buffers, len(s.ops))) for s in (whole, again)]
    assert peaks[1] <= peaks[0]
    left = iter(op.name for op in whole.ops if op.kind != "zero")
    assert all(op.name in left for op in again.ops if op.kind != "zero"), "the same operations in the same order, or fewer"


def mutations(program, script):
    """Scripts that each do one thing wrong: (what, script)."""
    order = script.order
    for i, (word, name, *_) in enumerate(order):
        without = order[:i] + order[i + 1:]
        if word in ("forward", "rebuild", "backward"):
            yield f"no {word} {name}", without
        if word in ("forward", "backward"):
            yield f"{word} {name} twice", (*order[:i], order[i], *order[i:])
        if word == "rebuild":
            yield f"forward for rebuild {name}", (*order[:i], ("forward", name), *order[i + 1:])
        if word == "free":
            value = program.values[name]
            back = range(i - 1, -1, -1)
            maker = program.steps[value.step].name
            made = next(k for k in back if order[k][0] in ("forward", "rebuild") and order[k][1] == maker)
            readers = [k for k in range(made + 1, i) if order[k][0] != "free" and not value.optional and name in read_by(
                program, order[k][0], next(s for s in program.steps if s.name == order[k][1]))]
            if readers and order[readers[-1]][0] != "backward":
                yield f"free {name} too early", (*without[:readers[-1]], order[i], *without[readers[-1]:])
            if not value.optional and any(order[k][0] == "rebuild" and order[k][1] == maker for k in range(i, len(order))):
                yield f"{name} not freed", without


@settings(max_examples=25)
@given(data=st.data(), order=st.lists(st.sampled_from(range(len(TOY_BLOCKS))), min_size=0, max_size=2))
def test_a_script_with_one_thing_wrong_is_refused(data, order):
    program, work = toys.wire([TOY_BLOCKS[i] for i in order]), toys.workload()
    script = drawn_script(program, flips(data))
    check_plan(program, work, Plan(script))
    for what, wrong in mutations(program, script):
        try:
            check_plan(program, work, Plan(Script(wrong)))
        except cllm.PlanError:
            continue
        raise AssertionError(f"runs: {what}")


CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 2})
GOOD = written_out(CONFIG.program, build_schedule(CONFIG.program, Workload(4, 6), cllm.RecomputeAll().decide(
    type("", (), {"n_blocks": 2})))).order
AT = {line: number for number, line in enumerate(GOOD)}


def before(line, *new):
    return (*GOOD[:AT[line]], *new, *GOOD[AT[line]:])


def without(line):
    return GOOD[:AT[line]] + GOOD[AT[line] + 1:]


BAD = {
    "no lines": ((), "must go backward through every step"),
    "lines that are none": (("forward",), "must be a tuple of lines"), "no tuple": ({}, "must be a tuple of lines"),
    "numbers": ((("forward", 3),), "must be a tuple of lines"),
    "an unknown word": ((("skip", "embed"), *GOOD), "must be one of forward, rebuild"),
    "an unknown step": ((("forward", "emb"), *GOOD), "a step of the program"),
    "an unknown value": (before(("backward", "head"), ("free", "embed.z")), "a value of the program"),
    "values behind backward": ((*GOOD[:-1], (*GOOD[-1], "embed.y")), "must be one of"),
    "a value freed twice": (before(("backward", "head"), ("free", "blocks.0.ln1.y")), "needs blocks.0.ln1.y; got freed"),
    "an optional value freed that is not": (before(("backward", "head"), ("free", "blocks.0.attn.probs")),
                                            "frees what is there"),
    "no optional value": ((("forward", "embed", "embed.y"), *GOOD[1:]), "may stand its optional values"),
    "a second forward": (before(("backward", "head"), ("forward", "embed")), "a second forward"),
    "a rebuild before": ((("rebuild", "embed"), *GOOD), "a rebuild before it ran"),
    "a second copy": (before(("backward", "head"), ("rebuild", "ln_f")), "ln_f.y, ln_f.mean, ln_f.rstd must have been freed"),
    "no rebuild": (without(("rebuild", "blocks.1.attn.qkv")), "needs blocks.1.attn.qkv.y"),
    "another order of backward": (without(("backward", "head")), "must be backward head"),
    "backward after the end": ((*GOOD, ("backward", "embed")), "must be the end"),
    "gradients of parameters twice": (before(("backward", "ln_f"), ("accumulate", "ln_f"), ("accumulate", "ln_f")),
                                      "must be backward ln_f"),
    "an early end": (GOOD[:-1], "an end before embed"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_script_that_does_not_fit_is_refused_with_the_reason(what):
    order, match = BAD[what]
    with pytest.raises(cllm.PlanError, match=match):
        cllm.plan(CONFIG, 4, 6, cllm.Script(order))


@pytest.mark.parametrize("more", [dict(ends=(("head.logits", Cache()),)), dict(spill_directory="/somewhere")])
def test_a_script_has_nothing_beside_it(more):
    with pytest.raises(cllm.PlanError, match="must be empty beside a script"):
        cllm.plan(CONFIG, 4, 6, Plan(Script(GOOD), **more))


def test_a_forward_that_is_left_out_is_refused():
    with pytest.raises(cllm.PlanError, match="Script line 1, backward head: needs source.y"):
        build_schedule(toys.wire([]), toys.workload(), Plan(Script((("accumulate", "head"), ("backward", "head")))))


def test_an_optional_value_that_is_freed_is_not_read():
    """Backward then makes it again inside its kernel, as where it was never there."""
    probs = "blocks.0.attn.probs"
    line = ("forward", "blocks.0.attn")
    kept = tuple((*one, probs) if one == line else one for one in drawn_script(CONFIG.program, lambda: False).order)
    at = kept.index((*line, probs)) + 1
    for order, expected in ((kept, True), ((*kept[:at], ("free", probs), *kept[at:]), False)):
        schedule = build_schedule(CONFIG.program, Workload(4, 6), Plan(Script(order)))
        assert any(b.value == probs and b.kind == "kept" for b in schedule.buffers) == expected


def test_copies_cannot_be_written_out():
    program, work = CONFIG.program, Workload(4, 6)
    plan = cllm.plan(CONFIG, 4, 6, "bf16")
    with pytest.raises(cllm.PlanError, match="neither compressed"):
        written_out(program, build_schedule(program, work, plan))


def test_a_script_is_passed_as_a_strategy_and_survives_as_json(tmp_path):
    made = cllm.plan(CONFIG, 4, 6, cllm.Script([list(line) for line in GOOD]))
    made.to_json(tmp_path / "plan.json")
    back = cllm.Plan.from_json(tmp_path / "plan.json")
    assert back == made and back.script == Script(GOOD) and back.fingerprint == made.fingerprint and hash(back) == hash(made)
    again = cllm.plan(CONFIG, 4, 6, back)
    assert again.arena_bytes == made.arena_bytes <= cllm.plan(CONFIG, 4, 6, "recompute").arena_bytes
    assert again.exact and not again.spills and not list(again.tapes()) and not list(again.decisions())
    model = cllm.GPT(CONFIG)
    ex = cllm.Executor(model, 4, 6, strategy=cllm.Script(GOOD), determinism_check="bits")
    ex.loss_and_grad(*oracle.draw_batch(oracle.CONFIG, 4, 6))
    assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
    assert ex.loss(*oracle.draw_batch(oracle.CONFIG, 4, 6)) > 0
    with pytest.raises(cllm.PlanError, match="made for this model"):
        cllm.plan(dataclasses.replace(CONFIG, d_ff=40), 4, 6, back)
    with pytest.raises(cllm.ConfigError, match="must be a strategy that plans a tree"):
        cllm.plan(CONFIG, 4, 6, cllm.Compressed(base=type("Mine", (), {"decide": lambda self, ledger: Plan(Script(GOOD))})()))


def test_what_it_says_in_words():
    made = cllm.plan(CONFIG, 4, 6, Script(GOOD))
    lines = made.table().splitlines()
    assert lines[1] == (f"a script of {len(GOOD)} lines: 22 forward, 16 rebuild, 23 backward, "
                        f"{sum(line[0] == 'free' for line in GOOD)} free")
    assert lines[2] == "blocks 0-1: rebuild ln1, attn.qkv, attn, attn.out, res1, ln2, mlp.fc1, mlp.act"
    tree = cllm.plan(CONFIG, 4, 6, "recompute")
    assert made.explain(tree).splitlines()[0] == "a script -> a tree" and tree.explain(made).startswith("a tree -> a script")
    other = cllm.plan(CONFIG, 4, 6, Script(drawn_script(CONFIG.program, lambda: False).order))
    assert "blocks 0-1 mlp.act: rebuilt 1 -> 0 times" in made.explain(other).splitlines()
    assert made.explain(made).startswith("the plans decide the same")
    later = Plan(Script((*GOOD[:3], *GOOD[4:5], *GOOD[3:4], *GOOD[5:])))
    assert "at other times" in Plan(Script(GOOD)).explain(later)
