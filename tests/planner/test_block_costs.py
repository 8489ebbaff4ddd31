"""Parts of a block, joined, cost what the whole block costs, whatever is dropped or copied; no way to tape the whole is better
than all that are found; and the planner sees roles, not words."""
import dataclasses

import numpy as np
import oracle
import pytest
import toys
from longer import whole
from toys import CHAIN, CUT, FREE, OWN, ROUGH, WIDE, A, Add, Mix, Scale, Square, Sum, Tanh

import cllm
from cllm.models.architecture import program_of
from cllm.models.families import FAMILIES
from cllm.planner import ways as ways_module
from cllm.planner.block_costs import MOST_TAPES, BlockCosts
from cllm.planner.costs import Speeds, signature
from cllm.planner.frontier import Frontier
from cllm.planner.parts import parts_of, whole_block
from cllm.planner.region_costs import TapeCost
from cllm.planner.ways import LEAST_WIDTH, MOST_GROUPS, SWEEPS, thinned, ways_to_drop
from cllm.planning import pareto
from cllm.plans.tree import Compress, Recompute
from cllm.program.kinds import Kind
from cllm.program.workload import Workload

RATES = Speeds()
EXACT = ("cache", "recompute")
COPIES = (*EXACT, "bfloat16", "int8")
LINES = {"cut": CUT, "chain": CHAIN, "free": FREE, "wide": WIDE, "one": A, "own": OWN, "rough": ROUGH}
SIZES = {"vocab_size": 61, "n_layers": 3, "d_model": 32, "n_heads": 4, "d_ff": 64, "max_seq_len": 16}
MODELS = {"gpt": cllm.ModelConfig(**oracle.CONFIG), "dropout": cllm.ModelConfig(**{**oracle.CONFIG, "dropout": 0.1}),
          "crystalline": FAMILIES["crystalline"].preset("tiny"), "llama": FAMILIES["llama"](**SIZES),
          "qwen": FAMILIES["llama"](**SIZES, qk_norm="head", n_kv_heads=2), "olmo": FAMILIES["llama"](**SIZES, norm_after=True),
          "neox": FAMILIES["gpt_neox"](**SIZES)}


def drawn(name):
    """A program and a workload."""
    if name in LINES:
        return toys.wire([LINES[name]], width=9), toys.workload(4, 5, 9)
    if name in ("gated", "parallel", "sums"):
        add = Sum if name == "sums" else Add
        return toys.wire_gated(2, 6, 10, add=add, parallel=name == "parallel"), toys.workload(4, 5, 6)
    return program_of(MODELS[name]), Workload(4, 9, threads=2)


def test_where_blocks_are_cut():
    def cuts(program):
        return [program.values[p.left].key for p in parts_of(program, 0, False)]

    assert cuts(drawn("gpt")[0]) == ["res1.y", "res2.y"] == cuts(drawn("llama")[0])
    assert cuts(drawn("gated")[0]) == ["res1.y", "res2.y"] == cuts(drawn("sums")[0])
    assert cuts(drawn("parallel")[0]) == ["res2.y"]
    assert cuts(drawn("cut")[0]) == ["s3.y", "s7.y"]
    assert cuts(drawn("chain")[0]) == ["s0.y", "s1.y", "s2.y", "s3.y"]
    assert cuts(drawn("own")[0]) == ["s3.y"], "backward of tanh reads its own output and not its input"


def test_parts_reach_over_cuts_that_may_be_dropped():
    spans = [(p.start, p.stop) for p in parts_of(drawn("chain")[0], 0, True)]
    assert spans == [(a, b) for a in range(4) for b in range(a + 1, 5)]
    assert [(p.start, p.stop) for p in parts_of(drawn("cut")[0], 0, True)] == [(0, 1), (1, 2)], "a running sum stays"
    assert (0, 2) in [(p.start, p.stop) for p in parts_of(drawn("sums")[0], 0, True)]


@pytest.mark.parametrize("name, allow", [
    *((name, EXACT) for name in (*LINES, "gated", "parallel", *MODELS)), whole("sums", EXACT),
    *((name, COPIES) for name in (*LINES, "gpt", "dropout", "crystalline", "llama")),
    *(whole(name, COPIES) for name in ("gated", "qwen", "olmo", "neox"))],
    ids=lambda v: v if isinstance(v, str) else v[-1])
def test_joined_parts_cost_what_the_whole_block_costs(name, allow):
    program, work = drawn(name)
    costs = BlockCosts(program, work, RATES)
    for micro in (4, 1):
        found = costs.block(0, micro, allow).tapes
        whole = costs.tapes(0, micro, [t.decisions for t in found])
        np.testing.assert_allclose([t.costs for t in found], [t.costs for t in whole], rtol=1e-9, atol=0)
        assert len(found) > 1 and len({t.decisions for t in found}) == len(found)


@pytest.mark.parametrize("name", [*LINES, "gated", whole("parallel"), whole("sums"), *MODELS])
def test_no_way_to_tape_the_whole_is_better_than_all_that_are_found(name):
    program, work = drawn(name)
    costs = BlockCosts(program, work, RATES)
    found = np.array([t.costs for t in costs.block(0, 2, EXACT).tapes]) * (1 + 1e-9)
    for tape in costs.tapes(0, 2, whole_block(program, 0).every()):
        assert (found.min(axis=0) <= np.array(tape.costs) * (1 + 2e-9)).all()
        assert (found <= np.array(tape.costs) * (1 + 2e-9)).all(axis=1).any(), tape


@pytest.mark.parametrize("name", ["gated", "parallel", "wide", "qwen"])
def test_a_search_finds_nearly_what_trying_all_finds(name, monkeypatch):
    program, work = drawn(name)
    every = BlockCosts(program, work, RATES).block(0, 4, EXACT).tapes
    monkeypatch.setattr(ways_module, "MOST_TRIED", 1)
    monkeypatch.setattr(ways_module, "MOST_DROPS", 0)
    found = BlockCosts(program, work, RATES).block(0, 4, EXACT).tapes
    best, near = np.array([t.costs for t in every]), np.array([t.costs for t in found])
    assert (near.min(axis=0) <= best.min(axis=0) * (1 + 1e-9)).all()
    assert all((near <= row * 1.01).all(axis=1).any() for row in best)


# Thirty steps in a row, whose results are all added up in the end: no single value passes between any two of them.
ROW = [((Mix, Tanh, Square, Scale)[i % 4], i, 0) for i in range(30)]
LONG = [*ROW, *((Sum, 29 + k, k) for k in range(1, 30)), (Add, 59, 0)]


def test_what_cannot_be_cut_and_has_many_steps_is_searched_within_the_stated_bound(monkeypatch):
    monkeypatch.setattr(ways_module, "MOST_SCHEDULED", 1 << 13)
    program, work = toys.wire([LONG]), toys.workload(2, 2)
    part = whole_block(program, 0)
    assert len(part.drops) > ways_module.MOST_DROPS and len(parts_of(program, 0, True)) == 1
    tried = []
    price = BlockCosts(program, work, RATES)._region(part, 2).tapes
    found = ways_to_drop(part, lambda choices: (tried.extend(choices), price(choices))[1])
    groups = min(len(part.drops), MOST_GROUPS)
    width = max(LEAST_WIDTH, ways_module.MOST_SCHEDULED // (len(part.steps) * SWEEPS * groups))
    assert 2 + groups < len(tried) <= 2 + SWEEPS * groups * width and len(set(tried)) == len(tried)
    assert min(t.kept for t in found) < max(t.kept for t in found)
    assert min(t.seconds for t in found) == pytest.approx(price([()])[0].seconds)


def test_thinning_keeps_the_best_of_each_cost():
    rng = np.random.default_rng(0)
    tapes = [TapeCost(((str(i), Recompute()),), *rng.integers(0, 10_000, 6).tolist()) for i in range(3 * MOST_TAPES)]
    left = thinned(tapes, MOST_TAPES)
    assert len(left) == MOST_TAPES and thinned(left, MOST_TAPES) == left
    for column in range(6):
        assert min(t.costs[column] for t in left) == min(t.costs[column] for t in tapes)


def renamed(program, group):
    """The same program, the groups of all values another word."""
    other = dataclasses.replace
    program.values.update({n: other(v, group=group) for n, v in program.values.items()})
    return program


@pytest.mark.parametrize("group", ["", "residual", "statistics"])
def test_the_planner_reads_roles_and_not_the_words_of_groups(group):
    config = cllm.ModelConfig(**{**oracle.CONFIG, "d_model": 256, "d_ff": 1024, "max_seq_len": 40})  # copies pay
    work = Workload(1, 40, threads=2)
    one, two = (Frontier(p, work, RATES, (*COPIES, "micro_batch")) for p in (
        program_of(config), renamed(program_of(config).with_blocks(range(config.n_layers)), group)))
    assert one.nbytes.tolist() == two.nbytes.tolist() and one.seconds.tolist() == two.seconds.tolist()
    decided = [(key, decision) for plan in map(two.plan, range(0, len(two), 7)) for tape in plan.tapes()
               for key, decision in tape.decisions]
    assert any(isinstance(d, Compress) for _, d in decided) and any(isinstance(d, Recompute) for _, d in decided)
    assert not any(isinstance(d, Compress) for key, d in decided if key.endswith((".lse", ".mean", ".rstd")))
    assert not any(isinstance(d, Recompute) for key, d in decided if key in ("res1.y", "res2.y"))


def test_what_was_measured_of_one_layer_is_not_taken_for_another():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Residual(cllm.layers.Residual):
        pass

    def named(layer):
        w = cllm.Wiring()
        x = w.add("x", toys.Source(V=5, C=3))
        step = w.add("sum", layer, x=x, branch=x)
        w.add("head", toys.Head(V=5, C=3), x=step)
        return signature(Kind.FORWARD, w.program().steps[1], {"B": 2, "T": 3, "N": 6, "C": 3}, 64)

    mine = cllm.layers.Residual
    names = [named(layer) for layer in (mine(C=3), mine(C=3, rate=0.1), mine(C=3, stream=7), Residual(C=3))]
    assert len({*names}) == 3 and names[0] == names[2]


def test_a_batch_that_cannot_be_cut_is_planned_whole():
    shared = ((Mix, 0, 0, "one"), (Mix, 1, 0, "one"), (Tanh, 2, 0), (Add, 3, 0))
    program, work = toys.wire([shared, shared]), toys.workload(3, 2)
    assert not program.can_be_cut and program_of(MODELS["gpt"]).can_be_cut
    frontier = Frontier(program, work, RATES, (*EXACT, "micro_batch"))
    assert {frontier.plan(i).micro_batch for i in range(len(frontier))} == {3}


@pytest.mark.parametrize("name", ["llama", "qwen", "olmo", whole("neox"), "crystalline"])
def test_planned_peaks_are_arena_and_highest_byte_written(name):
    model = cllm.Model(dataclasses.replace(MODELS[name]), seed=0)
    for allow in ((*EXACT, "micro_batch"), (*COPIES, "micro_batch")):
        plans = pareto(model, 3, 9, optimizer="none", num_threads=2, most=5, allow=allow)
        assert len(plans) == 5
        for plan in plans:
            ex = cllm.Executor(model, batch_size=3, seq_len=9, strategy=plan, optimizer="none", num_threads=2)
            ex.loss_and_grad(**model.architecture.example_batch(np.random.default_rng(0), 3, 9))
            assert ex.high_water_bytes == ex.memory.arena_bytes == plan.arena_bytes
            model.zero_grad()


def test_many_blocks_are_planned_with_word_of_it(monkeypatch):
    monkeypatch.setattr("cllm.planner.frontier.MANY", 3)
    config, heard = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 3}), []
    cllm.plan(config, 4, 9, cllm.MemoryBudget("1GB"), tell=heard.append)
    assert heard == [f"planning 3 blocks: micro-batch of {size}, {n} of 3" for n, size in enumerate((4, 2, 1), 1)]
    heard.clear()
    pareto(config, 4, 9, most=2, tell=heard.append)
    assert len(heard) == 3
    monkeypatch.setattr("cllm.planner.frontier.MANY", 4)
    cllm.plan(config, 4, 9, cllm.MemoryBudget("1GB"), tell=lambda text: pytest.fail(text))
