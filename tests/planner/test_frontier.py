"""The planner's frontier: equal to exhaustive search on small programs, to a closed form on uniform chains, and never
beaten by an independent solver; its bytes are those of the real schedule."""
import functools
import itertools
from math import comb

import numpy as np
import oracle
import pytest
import toys
from longer import whole
from scipy.optimize import Bounds, LinearConstraint, milp
from toys import CHAIN, CUT, FEW, FREE, ONE, WIDE, A, B, Mix, Scale, Square

import cllm
from cllm.models.architecture import program_of
from cllm.planner import frontier as frontier_module
from cllm.planner.block_costs import BlockCost, BlockCosts, EndCost, TapeCost
from cllm.planner.costs import Speeds, schedule_seconds
from cllm.planner.frontier import Chain, Frontier, Pairs, micro_batches
from cllm.planner.ledger import Ledger
from cllm.planner.parts import whole_block
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Recompute, Segment, Tape
from cllm.program.trained import with_trained
from cllm.program.workload import Workload
from cllm.schedule.arena import live_bytes
from cllm.schedule.build import build_schedule, default_loss_rows
from cllm.schedule.report import batch_bytes, gradient_bytes, optimizer_bytes, parameter_bytes, table_bytes

DEAR = ((Mix, 0, 0), (Scale, 1, 0), (Square, 2, 0))  # stands before the blocks, keeps values of its own
EVERYTHING = ("cache", "micro_batch", "recompute")
RATES = Speeds()


def cost(program, workload, plan):
    """Total bytes before packing, and seconds, of a plan: read off its whole schedule."""
    schedule = build_schedule(program, workload, plan)
    live = max(live_bytes(schedule.buffers, len(schedule.ops)))
    fixed = sum(of(program, workload) for of in (parameter_bytes, gradient_bytes, optimizer_bytes, table_bytes))
    fixed += batch_bytes(program, workload, schedule.micro_batch)
    return live + fixed, schedule_seconds(schedule, program, workload, RATES)


def unbeaten(points):
    """Points that no other equals or betters in both, by rising bytes; seconds rounded to a millionth of themselves."""
    best, out = np.inf, []
    for nbytes, seconds in sorted(points):
        if seconds < best * (1 - 1e-9):
            out.append((nbytes, seconds))
            best = seconds
    return out


def trees(blocks, inside=False):
    """Every way to cover some blocks with tapes and segments, nested; a segment of one segment alone is left out."""
    if not blocks:
        yield ()
    for size in range(1, len(blocks) + 1):
        for rest in trees(blocks[size:]):
            if size == 1:
                yield (blocks[0], *rest)
            if not (inside and size == len(blocks)):
                yield from ((children, *rest) for children in trees(blocks[:size], inside=True))


def nodes(tree, decisions, dropped=()):
    """The plan's nodes of a tree of numbers, block b decided by decisions[b]; `dropped` says of each node that begins with
    the first block, the outermost first, whether its input is made again."""
    made = []
    for number, node in enumerate(tree):
        first, *inside = dropped if dropped and number == 0 else (False,)
        kept = Recompute() if first else Cache()
        if isinstance(node, tuple):
            made.append(Segment(nodes(node, decisions, inside), kept))
        else:
            made.append(Tape(node, (*decisions[node], ("input", kept)) if first else decisions[node]))
    return tuple(made)


def depth(tree):
    """How many nodes begin with the first block."""
    return 1 + (depth(tree[0]) if isinstance(tree[0], tuple) else 0)


def loss_rows(program, workload, micro):
    rows = default_loss_rows(micro * workload.time, program.head.layer.V, workload.itemsize)
    out = [rows]
    while rows > frontier_module.LEAST_LOSS_ROWS:
        rows = -(-rows // 2)
        out.append(rows)
    return out


def exhaustive(program, workload):
    """Costs of every tree with every decision at every micro-batch and number of rows."""
    points = []
    choices = [list(whole_block(program, b).every()) for b in range(program.n_blocks)]
    for micro in micro_batches(workload.batch):
        for rows in loss_rows(program, workload, micro):
            for tree in trees(tuple(range(program.n_blocks))):
                for dropped in itertools.product((False, True), repeat=depth(tree)):
                    for decisions in itertools.product(*choices):
                        points.append(cost(program, workload, Plan(nodes(tree, decisions, dropped), micro, rows)))
    return points


def test_trees_are_all_there():
    assert [len(list(trees(tuple(range(n))))) for n in (1, 2, 3)] == [2, 8, 48]
    assert len({str(t) for t in trees((0, 1, 2))}) == 48


@pytest.mark.parametrize("blocks, batch, time, width, tied, threads, trainable, before", [
    ([A], 3, 2, 3, False, 1, None, ()), whole([A, A], 3, 7, 3, True, 1, None, ()),
    whole([A, B], 2, 20, 9, False, 2, None, DEAR), whole([WIDE, B], 3, 5, 17, False, 1, None, ()),
    ([ONE, ONE, ONE], 1, 10, 7, True, 1, None, ()),
    whole([FEW, ONE, ONE], 1, 12, 30, False, 2, None, ()), ([CUT], 2, 5, 9, False, 1, None, DEAR),
    ([FREE], 3, 4, 7, False, 1, None, ()), whole([CHAIN, CHAIN], 1, 10, 9, False, 1, None, ()),
    ([CHAIN, FEW], 1, 8, 5, True, 1, None, DEAR), ([A, A], 1, 10, 3, True, 1, "blocks.0.*", ()),
    ([A, B], 2, 20, 9, False, 2, "blocks.1.s1.*", DEAR), whole([A, A], 2, 10, 3, True, 1, "table", ()),
    ([CUT], 2, 5, 9, False, 1, "*.s5.*", ())],
    ids=lambda v: str(len(v)) if isinstance(v, (list, tuple)) else str(v))
def test_the_frontier_equals_exhaustive_search(blocks, batch, time, width, tied, threads, trainable, before):
    program = with_trained(toys.wire(blocks, width=width, tied=tied, before=before), trainable)
    work = toys.workload(batch, time, width, threads)
    frontier = Frontier(program, work, RATES, EVERYTHING)
    found = list(zip(frontier.nbytes.tolist(), frontier.seconds.tolist(), strict=True))
    expected = unbeaten(exhaustive(program, work))
    assert [n for n, _ in found] == [n for n, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-9)


GPT = {
    "full": (dict(n_layers=2), 4, 9), "dropout untied": (dict(n_layers=3, dropout=0.1, tied=False), 3, 9),
    "lattice": (dict(n_layers=1, qkv="lattice", out_proj=False), 5, 3),
    "wide head": (dict(n_layers=2, vocab_size=3000), 4, 9), "wide": (dict(n_layers=5, d_model=64, d_ff=256), 2, 9),
    "deep": (dict(n_layers=26), 2, 9),
    "mse, table": (dict(n_layers=2, loss="mse", positions="clock"), 2, 9),
    "biases alone": (dict(n_layers=2), 4, 9, "*bias"), "last blocks": (dict(n_layers=5), 4, 9, ("blocks.[34].*", "*ln_f*")),
    "a norm below": (dict(n_layers=3, dropout=0.1, tied=False), 3, 9, "blocks.0.ln2.weight")}


@functools.cache
def gpt(name):
    changes, batch, time, *trainable = GPT[name]
    config = cllm.ModelConfig(**{**oracle.CONFIG, **changes})
    program, work = with_trained(program_of(config), *(trainable or [None])), Workload(batch, time, threads=2)
    return program, work, Frontier(program, work, RATES, EVERYTHING)


@pytest.mark.parametrize("name", GPT)
def test_frontier_points_cost_what_their_schedules_cost(name):
    program, work, frontier = gpt(name)
    assert len(frontier) > 3
    assert (np.diff(frontier.nbytes) > 0).all() and (np.diff(frontier.seconds) < 0).all()
    step = max(1, len(frontier) // 8)
    for index in {*range(0, len(frontier), step), len(frontier) - 1}:
        nbytes, seconds = cost(program, work, frontier.plan(index))
        assert nbytes == frontier.nbytes[index]
        assert seconds == pytest.approx(frontier.seconds[index], rel=1e-9)


@pytest.mark.parametrize("name", GPT)
def test_no_drawn_plan_and_no_strategy_beats_the_frontier(name):
    program, work, frontier = gpt(name)
    rng = np.random.default_rng(0)
    ledger = Ledger(program, work, RATES)
    plans = [s.decide(ledger) for s in (cllm.CacheAll(), cllm.RecomputeAll(), cllm.EveryNth(2), cllm.Sqrt(), cllm.Binomial(2),
                                        cllm.Binomial(3), cllm.Selective(), cllm.Selective(("norm",)))]
    choices = list(whole_block(program, 0).every())

    def kept(start):
        return Recompute() if start == 0 and rng.random() < 0.5 else Cache()

    def draw(start, stop, depth):
        out = []
        while start < stop:
            if depth and rng.random() < 0.4:
                end = int(rng.integers(start + 1, stop + 1))
                out.append(Segment(draw(start, end, depth - 1), kept(start)))
                start = end
            else:
                out.append(Tape(start, (*choices[rng.integers(len(choices))], ("input", kept(start)))))
                start += 1
        return tuple(out)

    for _ in range(40 if program.n_blocks < 10 else 10):
        micro = int(rng.choice(micro_batches(work.batch)))
        plans.append(Plan(draw(0, program.n_blocks, 3), micro, int(rng.choice(loss_rows(program, work, micro)))))
    slack = 1 if program.n_blocks < frontier_module.DEEP else 1.02  # deep networks are thinned
    for plan in plans:
        nbytes, seconds = cost(program, work, plan)
        fits = frontier.nbytes <= nbytes * slack
        assert fits.any(), f"{plan.table()} needs less than the least of the frontier"
        assert frontier.seconds[fits].min() <= seconds * slack * (1 + 1e-9), plan.table()


def test_what_is_not_allowed_is_not_decided():
    program, work, _ = gpt("full")
    only = Frontier(program, work, RATES, ("cache",))
    assert len(only) == 1 and only.plan(0).micro_batch == work.batch
    assert all(isinstance(c, Tape) and not c.decisions for c in only.plan(0).children)
    micro = Frontier(program, work, RATES, ("cache", "micro_batch"))
    assert {micro.plan(i).micro_batch for i in range(len(micro))} >= {1, 4}
    assert all(isinstance(c, Tape) and not c.decisions for i in range(len(micro)) for c in micro.plan(i).children)
    whole = Frontier(program, work, RATES, ("cache", "recompute"))
    assert {whole.plan(i).micro_batch for i in range(len(whole))} == {work.batch}


@pytest.mark.parametrize("batch, expected", [(1, (1,)), (4, (4, 2, 1)), (8, (8, 4, 3, 2, 1)), (5, (5, 3, 2, 1))])
def test_micro_batches_differ_in_their_number(batch, expected):
    assert micro_batches(batch) == expected


# an independent solver

@pytest.mark.parametrize("name, n", [("full", 7), ("wide", 9)])
def test_an_integer_program_finds_nothing_better(name, n):
    """Without nesting the choice is linear: x[i, o] = 1 where block i is treated in way o, under a limit M at each block:
    sum over earlier blocks of what they keep + the peak of block i <= M, and at the end, all they keep + the head's."""
    changes, batch, time = GPT[name]
    config = cllm.ModelConfig(**{**oracle.CONFIG, **changes, "n_layers": n})
    program, work = program_of(config), Workload(batch, time, threads=2)
    frontier = Frontier(program, work, RATES, ("cache", "recompute"))
    costs = BlockCosts(program, work, RATES)
    rng = np.random.default_rng(1)
    every = list(whole_block(program, 0).every())
    some = [every[0], *(every[i] for i in rng.choice(len(every), 20, replace=False))]
    rows = default_loss_rows(batch * time, config.vocab_size, 4)
    ways = []  # kept, peak, seconds, node
    base = Plan(tuple(Tape(b) for b in range(n)), batch, rows)
    whole, base_seconds = cost(program, work, base)
    for decisions in some:
        taped = costs.tapes(0, batch, [decisions])[0]
        ways.append((taped.kept, max(taped.forward_peak, taped.backward_peak), taped.seconds,
                     lambda b, d=decisions: Tape(b, d)))
    block = costs.block(0, batch, ("cache",))
    opened = costs.tapes(0, batch, [()])[0]
    ways.append((block.input_bytes, max(opened.last_peak, block.sweep_peak), opened.last_seconds + block.sweep_seconds,
                 lambda b: Segment((Tape(b),))))
    kept, peak, seconds = (np.array([w[k] for w in ways], float) for k in range(3))
    end = costs.ends(batch, rows)
    fixed = whole - max(live_bytes((s := build_schedule(program, work, base)).buffers, len(s.ops)))
    count = len(ways)
    chosen_once = np.kron(np.eye(n), np.ones(count))
    least, most = frontier.nbytes[0], frontier.nbytes[-1]
    solved = 0
    for limit in np.linspace(least, most, 9)[1:]:
        room = limit - fixed
        lines = np.zeros((n + 1, n * count))
        for i in range(n):
            lines[i, i * count:(i + 1) * count] = peak
            lines[i, :i * count] = np.tile(kept, i)
        lines[n] = np.tile(kept, n)
        answer = milp(np.tile(seconds, n), integrality=np.ones(n * count), bounds=Bounds(0, 1), constraints=[
            LinearConstraint(chosen_once, 1, 1),
            LinearConstraint(lines, -np.inf, np.append(np.full(n, room), room - end.peak))])
        fits = frontier.nbytes <= limit
        if not answer.success:
            continue
        solved += 1
        picks = np.round(answer.x).astype(int).reshape(n, count).argmax(axis=1)
        plan = Plan(tuple(ways[w][3](b) for b, w in enumerate(picks)), batch, rows)
        nbytes, real = cost(program, work, plan)
        assert nbytes <= limit, "the solver's plan is what it says"
        assert frontier.seconds[fits].min() <= real * (1 + 1e-9)
    assert solved >= 5


# uniform chains

def closed_form(n, slots):
    r = next(r for r in range(n + 1) if comb(slots + r, slots) >= n)
    return r * n - comb(slots + r, r - 1) if r else 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 12, 16, 20])
def test_sweeps_of_a_uniform_chain_match_the_closed_form(n):
    """A tape so large that only one fits at a time, inputs of one byte, sweeps of one second, all else free."""
    tape = 10_000
    block = BlockCost((TapeCost((), tape, 0, tape, 0.0, tape, 0.0),), 1, 1, 0, 0, 1.0)
    chain = Chain([block] * n, [EndCost(1, 0, 0, 0, 0, 0.0, 0.0)], True)
    for slots in range(1, n + 2):
        # the tape holds the input of its own block; with c slots, c others may lie beside it
        assert chain.top.seconds[chain.top.peak <= tape + slots].min() == closed_form(n, min(slots, n))


# pairs

def test_pairs_keep_what_is_not_beaten():
    made = np.arange(18).reshape(6, 3)
    pairs = Pairs.best([(np.array([5., 3., 3., 9., 1., 5.]), np.array([2., 4., 3., 1., 9., 2.]), made)], 100)
    assert pairs.peak.tolist() == [1, 3, 5, 9] and pairs.seconds.tolist() == [9, 3, 2, 1]
    assert pairs.made[:, 0].tolist() == [12, 6, 0, 9]


def test_thinning_keeps_both_ends_and_order():
    peak = np.arange(1.0, 5001.0)
    pairs = Pairs.best([(peak, -peak, np.zeros((5000, 3), int))], 50)
    assert 2 <= len(pairs.peak) <= 50 and pairs.peak[0] == 1 and pairs.peak[-1] == 5000
    assert (np.diff(pairs.peak) > 0).all() and (np.diff(pairs.seconds) < 0).all()


def test_thinning_uses_the_places_it_has():
    """Many pairs close together far above the least: what heads of large vocabularies do."""
    peak = np.concatenate(([1e3], 1e9 + np.arange(2050.0) * 64))
    pairs = Pairs.best([(peak, -np.arange(2051.0), np.zeros((2051, 3), int))], 2000)
    assert len(pairs.peak) == 2000 and pairs.peak[0] == peak[0] and pairs.peak[-1] == peak[-1]


def test_a_deep_network_is_planned_with_bounded_work(monkeypatch):
    """96 blocks: what goes through the recursion stays below a bound, whatever the machine's speed."""
    through = []
    best = Pairs.best
    monkeypatch.setattr(frontier_module.Pairs, "best", staticmethod(
        lambda parts, most=None: (through.append(sum(len(p[0]) for p in parts)), best(parts, most))[1]))
    config = cllm.ModelConfig.preset("tiny", n_layers=96)
    program, work = program_of(config), Workload(2, 64, threads=2)
    frontier = Frontier(program, work, RATES, EVERYTHING)
    assert len(frontier) > 20 and sum(through) < 2e7
    for index in (0, len(frontier) // 2, len(frontier) - 1):
        nbytes, seconds = cost(program, work, frontier.plan(index))
        assert nbytes == frontier.nbytes[index] and seconds == pytest.approx(frontier.seconds[index], rel=1e-9)
    assert frontier.nbytes[0] < frontier.nbytes[-1]
