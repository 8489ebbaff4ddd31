"""Strategies of the literature: what each does and refuses; none beats what is proved to be the best."""
import functools
import itertools
import sys
from dataclasses import replace

import oracle
import pytest
import toys
from longer import whole
from toys import FEW, ONE, ROUGH, WIDE, A, B

import cllm
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Segment, Tape
from cllm.program.workload import Workload
from cllm.strategies.checkmate import solve
from cllm.strategies.chen import _segments
from cllm.strategies.limits import least_total
from cllm.strategies.rotor import _Chain

LIMITED = [cllm.ChenGreedy, cllm.Rotor, cllm.DTR, cllm.Checkmate]
CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 6, "d_model": 32, "d_ff": 128, "max_seq_len": 32})


def ledger_of(program, workload):
    return Ledger(program, workload, Speeds())


@functools.cache
def gpt(layers=6):
    return ledger_of(replace(CONFIG, n_layers=layers).program, Workload(4, 32, threads=2))


@functools.cache
def toy(number):
    return ledger_of(toys.wire([[A, A], [A, B], [WIDE, B], [FEW, ONE, ONE], [A], [],
                                [ROUGH, ROUGH]][number], width=9), toys.workload(3, 7, 9))


def live(ledger, plan):
    """Most bytes alive in the arena."""
    return max(ledger.build(plan)[1].arena.live_bytes)


def totals(ledger):
    """Totals of keeping everything and of rebuilding every block."""
    return [ledger.evaluate(s.decide(ledger)).total_bytes for s in (cllm.CacheAll(), cllm.RecomputeAll())]


@pytest.mark.parametrize("kind", LIMITED[:3])
def test_a_limit_is_kept_and_more_room_is_not_slower(kind):
    ledger = gpt()
    most, least = totals(ledger)
    limits = [least + (most - least) * k // 8 for k in range(1, 9)]
    costs = [ledger.evaluate(kind(limit).decide(ledger)) for limit in limits]
    frontier = ledger.frontier(("cache", "recompute"))
    for limit, cost in zip(limits, costs, strict=True):
        assert cost.total_bytes <= limit
        if kind is not cllm.DTR:  # scripts say more than trees
            assert frontier.seconds[frontier.nbytes <= limit].min() <= cost.seconds * (1 + 1e-9)
    assert costs[0].seconds > costs[-1].seconds
    if kind is not cllm.DTR:
        assert all(a.seconds >= b.seconds * (1 - 1e-9) for a, b in itertools.pairwise(costs))
    if kind is not cllm.Rotor:  # which rounds bytes up
        assert costs[-1].seconds == pytest.approx(ledger.evaluate(cllm.CacheAll().decide(ledger)).seconds, rel=1e-9)


@pytest.mark.parametrize("kind", LIMITED)
def test_what_cannot_be_kept_is_refused_with_the_least_that_can(kind):
    ledger = toy(4) if kind is cllm.Checkmate else gpt()
    with pytest.raises(cllm.BudgetError, match=rf"{kind.__name__}\(limit\): must be at least ([\d,]+) bytes") as caught:
        kind(1000).decide(ledger)
    least = caught.value.least
    assert type(least) is int and f"{least:,} bytes" in caught.value.must
    assert ledger.evaluate(kind(least).decide(ledger)).total_bytes <= least < totals(ledger)[0]


@pytest.mark.parametrize("kind", LIMITED)
@pytest.mark.parametrize("limit", ["", "much", -1, 0, None, "1e3"])
def test_a_limit_that_is_none_is_refused(kind, limit):
    with pytest.raises(cllm.ConfigError, match=rf"{kind.__name__}\(limit\): must be a number of bytes"):
        kind(limit)


def test_where_no_plan_exists_it_says_so():
    assert least_total(gpt(), None, lambda room: None) is None


@pytest.mark.parametrize("wrong", [dict(slots=0), dict(slots=2.5)])
def test_slots_are_checked(wrong):
    with pytest.raises(cllm.ConfigError, match="slots"):
        cllm.Rotor("1GB", **wrong)


@pytest.mark.parametrize("wrong", [dict(seconds=0), dict(seconds=-1.0), dict(gap=-0.1), dict(gap="small")])
def test_time_and_gap_are_checked(wrong):
    with pytest.raises(cllm.ConfigError, match="Checkmate"):
        cllm.Checkmate("1GB", **wrong)


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", None, float("nan")])
def test_a_share_is_checked(share):
    with pytest.raises(cllm.ConfigError, match=r"Knapsack\(share=...\): must be a number in \[0, 1\]"):
        cllm.Knapsack(share)


@pytest.mark.parametrize("name, strategy", [
    ("chen:400MB", cllm.ChenGreedy("400MB")), ("rotor:1GiB@2", cllm.Rotor(2 ** 30, micro_batch=2)),
    ("dtr:auto", cllm.DTR("auto")), ("checkmate:5MB", cllm.Checkmate(5_000_000)), ("knapsack:0.5", cllm.Knapsack(0.5)),
    ("korthikanti", cllm.KorthikantiSelective()), ("products@1", cllm.KeepProducts(1))])
def test_names(name, strategy):
    assert cllm.strategies.parse(name) == strategy


# Chen

def test_segments_end_where_the_budget_is_passed():
    assert _segments([5, 5, 5, 5, 5], 9) == (Segment((Tape(0), Tape(1))), Segment((Tape(2), Tape(3))), Tape(4))
    assert _segments([9, 1, 1, 1, 9], 2) == (Segment((Tape(0),)), Segment((Tape(1), Tape(2), Tape(3))), Tape(4))
    assert _segments([1, 1], 9) == (Tape(0), Tape(1)) and _segments([], 0) == ()


# rotor

@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 6])
def test_rotor_is_the_best_of_all_trees_of_whole_tapes(number):
    ledger = toy(number)
    blocks, end = ledger.chain()
    base = ledger.graph().fixed_bytes

    def trees(chosen, inside=False):
        if not chosen:
            yield ()
        for size in range(1, len(chosen) + 1):
            for rest in trees(chosen[size:]):
                if size == 1:
                    yield (Tape(chosen[0]), *rest)
                if not (inside and size == len(chosen)):
                    yield from ((Segment(children), *rest) for children in trees(chosen[:size], True))

    every = [Plan(nodes) for nodes in trees(tuple(range(ledger.n_blocks)))]
    points = [(live(ledger, plan), ledger.evaluate(plan).seconds) for plan in every]
    for room in sorted({nbytes for nbytes, _ in points}):
        nodes = _Chain(blocks, end, room - end.kept, 10**6).nodes()
        found = ledger.evaluate(Plan(nodes))
        assert live(ledger, Plan(nodes)) <= room and found.total_bytes >= base
        assert found.seconds == pytest.approx(min(seconds for nbytes, seconds in points if nbytes <= room), rel=1e-9)
    assert _Chain(blocks, end, min(points)[0] - end.kept - 64, 10**6).nodes() is None


# Checkmate

@pytest.mark.parametrize("number", [whole(0), 1, 2, 4, 5])
def test_nothing_beats_the_integer_program_and_it_costs_what_it_says(number):
    """Every tree of the frontier, DTR and the stand-ins are schedules that it could have chosen."""
    ledger = toy(number)
    graph = ledger.graph()
    cache = ledger.evaluate(cllm.CacheAll().decide(ledger)).seconds
    frontier = ledger.frontier(("cache", "recompute"))
    some = (replace(frontier.plan(n), loss_rows=None) for n in range(0, len(frontier), 1 + len(frontier) // 9))
    others = [Plan(ledger.written_out(plan)) for plan in some]
    others += [cllm.DTR(limit).decide(ledger) for limit in {totals(ledger)[0], sum(totals(ledger)) // 2 + 64}]
    others += [cllm.KeepProducts().decide(ledger), cllm.Knapsack(0.5).decide(ledger)]
    points = sorted({(live(ledger, plan), ledger.evaluate(plan).seconds) for plan in others})
    for room, _ in points[::1 + len(points) // 4]:
        found = solve(graph, room, 60.0)
        assert live(ledger, found.plan) <= room
        assert ledger.evaluate(found.plan).seconds == pytest.approx(cache + found.seconds, rel=1e-9)
        assert found.bound == pytest.approx(found.seconds, abs=1e-4 * cache)
        assert cache + found.seconds <= min(s for nbytes, s in points if nbytes <= room) * (1 + 1e-6)
    too_little = solve(graph, 64, 60.0)
    assert too_little.plan is None and too_little.infeasible


def test_checkmate_without_time_or_scipy_says_so(monkeypatch):
    ledger = gpt()
    with pytest.raises(cllm.PlanError, match="must leave the solver time to find a schedule"):
        cllm.Checkmate(sum(totals(ledger)) // 2, seconds=1e-3).decide(ledger)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(cllm.BuildError, match=r"cllm-train\[lab\]"):
        cllm.Checkmate("1MB").decide(ledger)


# DTR

def test_dtr_drops_nothing_where_there_is_room_and_what_is_cheap_where_there_is_not():
    ledger = gpt()
    most, least = totals(ledger)
    assert cllm.DTR(most).decide(ledger).script.rebuilt() == {}
    rebuilt = cllm.DTR(most - (most - least) // 3).decide(ledger).script.rebuilt()
    seconds = {node.name: node.seconds for node in ledger.graph().nodes}
    names = [name if block < 0 else f"blocks.{block}.{name}" for block, name in rebuilt]
    assert names and max(seconds[n] for n in names) < max(seconds.values())


def test_dtr_takes_what_is_stale_first():
    """Of equal steps the one that was read longest ago goes: blocks in front, before those behind."""
    ledger = gpt()
    most, least = totals(ledger)
    blocks = [block for block, _ in cllm.DTR(most - (most - least) // 8).decide(ledger).script.rebuilt()]
    assert blocks and max(blocks) < 3


# stand-ins for PyTorch

def test_products_are_kept_and_all_else_of_a_block_is_rebuilt_at_once():
    ledger = gpt(2)
    script = cllm.KeepProducts().decide(ledger).script
    assert script.rebuilt() == {(block, name): 1 for block in range(2) for name in ("ln1", "res1", "ln2", "mlp.act")}
    names = [line[1] for line in script.order if line[0] in ("rebuild", "backward")]
    first = names.index("blocks.1.res2")  # backward of the last block begins when all of it is there
    assert {*names[:first]} >= {f"blocks.1.{name}" for name in ("ln1", "res1", "ln2", "mlp.act")}


def test_a_knapsack_of_independent_items_may_peak_higher_with_less():
    ledger = gpt()
    peaks = {share: live(ledger, cllm.Knapsack(share).decide(ledger)) for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)}
    assert peaks[1.0] == live(ledger, cllm.CacheAll().decide(ledger))
    assert not all(peaks[a] <= peaks[b] for a, b in itertools.pairwise(sorted(peaks))), peaks
    seconds = {share: ledger.evaluate(cllm.Knapsack(share).decide(ledger)).seconds for share in peaks}
    assert seconds[0.0] == max(seconds.values()) > 1.2 * seconds[1.0], "forward runs all the same, since the loss is wanted"
    counts = [len(cllm.Knapsack(share).decide(ledger).script.rebuilt()) for share in sorted(peaks)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_the_knapsack_is_the_best_of_all_choices_within_a_slot():
    graph = toy(4).graph()
    read = {v for node in graph.nodes for move in node.moves for v in move.reads}
    values = [v for v in graph.nbytes if v in read]
    gains = {v: graph.maker[v].seconds for v in values}
    for share in (0.2, 0.5, 0.8):
        room = share * sum(graph.nbytes[v] for v in values)
        every = (chosen for n in range(len(values) + 1) for chosen in itertools.combinations(values, n))
        best = max(sum(gains[v] for v in chosen) for chosen in every if sum(graph.nbytes[v] for v in chosen) <= room)
        order = cllm.Knapsack(share).decide(toy(4)).script.order
        again = next(i for i, line in enumerate(order) if line[0] == "rebuild" or line == ("backward", "blocks.0.s3"))
        dropped = {line[1] for line in order[:again] if line[0] == "free"}
        kept = [v for v in values if v not in dropped]
        assert sum(graph.nbytes[v] for v in kept) <= room + 64 and sum(gains[v] for v in kept) == pytest.approx(best)


# Korthikanti

def test_selective_recompute_of_attention_is_what_cache_keeps():
    ledger = gpt()
    plan = cllm.KorthikantiSelective().decide(ledger)
    assert ledger.evaluate(plan) == ledger.evaluate(cllm.CacheAll().decide(ledger))
    assert live(ledger, plan) < live(ledger, cllm.CacheAll(also=("probs",)).decide(ledger))


# what the graph says

@pytest.mark.parametrize("ledger", [toy(1), toy(2), gpt(2)])
def test_the_graph_adds_up_to_the_schedule(ledger):
    graph, cache = ledger.graph(), cllm.CacheAll().decide(ledger)
    schedule, memory = ledger.build(cache)
    forward = sum(node.seconds for node in graph.nodes)
    backward = sum(move.seconds for node in graph.nodes for move in node.moves)
    assert forward + backward <= ledger.evaluate(cache).seconds * (1 + 1e-9)
    assert graph.fixed_bytes == memory.total_bytes - memory.arena_bytes
    largest = max(max((m.beside for m in node.moves), default=0) for node in graph.nodes)
    assert 0 < largest <= live(ledger, cache)
    for node in graph.nodes[:-1]:
        for move in node.moves:  # the gradient of what comes after waits, and is there while the move runs
            assert 0 < move.waiting <= move.beside, (node.name, move)
    assert all(move.waiting == 0 for move in graph.nodes[-1].moves[:1])
