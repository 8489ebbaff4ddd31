"""The arena: buffers alive at once never overlap, and packing wastes next to nothing."""
import dataclasses

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from longer import whole

import cllm
from cllm.models.architecture import program_of
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.program.dims import ALIGNMENT
from cllm.program.workload import Workload
from cllm.schedule.arena import lay_out, live_bytes
from cllm.schedule.operations import Buffer, Schedule

STRATEGIES = {
    "cache": cllm.CacheAll(), "optional": cllm.CacheAll(also=("probs", "logits")), "recompute": cllm.RecomputeAll(),
    "every:2": cllm.EveryNth(2), "sqrt": cllm.Sqrt(), "binomial:4": cllm.Binomial(4), "selective": cllm.Selective(),
    "selective:all": cllm.Selective(("norm", "act", "attn", "mlp")), "bf16": cllm.Compressed(),
    "int8:sqrt": cllm.Compressed("int8", base=cllm.Sqrt()), "spill": cllm.Spill("/somewhere"),
    "spill:selective": cllm.Spill("/somewhere", base=cllm.Selective()),
    "per block": cllm.PerBlock({range(0, 2): cllm.RecomputeAll(), range(3, 5): cllm.Selective()})}
# B, T, C, H, V
SIZES = [(2, 8, 16, 2, 13), (1, 256, 128, 4, 256), (4, 32, 64, 4, 256), (8, 64, 128, 4, 1000), (1, 64, 256, 8, 5000)]


def assert_no_overlap(schedule, arena):
    """Any two buffers that are alive during the same operation lie apart; checked operation by operation."""
    buffers = schedule.buffers
    start = np.array(arena.offsets)
    nbytes = np.array([b.nbytes for b in buffers])
    first, last = (np.array([getattr(b, n) for b in buffers]) for n in ("first", "last"))
    assert (start % ALIGNMENT == 0).all() and (start >= 0).all() and (start + nbytes <= arena.nbytes).all()
    for position in {*first.tolist()}:  # a new clash begins where a buffer does
        alive = np.flatnonzero((first <= position) & (last >= position) & (nbytes > 0))
        alive = alive[np.argsort(start[alive])]
        assert (start[alive][1:] >= (start + nbytes)[alive][:-1]).all()


def lay(strategy, n_layers, B, T, C, H, V, threads=2):
    config = cllm.ModelConfig(V, n_layers, C, H, 4 * C, T)
    ledger = Ledger(program_of(config), Workload(B, T, threads=threads))
    schedule, report = ledger.build(strategy.decide(ledger))
    return schedule, report.arena


@pytest.mark.parametrize("name, size", [
    (name, size) if (row + column) % 2 == 0 else whole(name, size)
    for row, name in enumerate(STRATEGIES) for column, size in enumerate(SIZES)], ids=str)
def test_packing_wastes_at_most_a_percent_and_nothing_overlaps(name, size):
    n_layers = (6, 12)[(list(STRATEGIES).index(name) + SIZES.index(size)) % 2]
    for micro_batch in {None, 1 if size[0] > 1 else None}:
        schedule, arena = lay(dataclasses.replace(STRATEGIES[name], micro_batch=micro_batch), n_layers, *size)
        assert_no_overlap(schedule, arena)
        assert max(arena.live_bytes) <= arena.nbytes <= 1.01 * max(arena.live_bytes)


@pytest.mark.parametrize("n_layers", [1, 2, whole(24), 96])
@pytest.mark.parametrize("name", ["cache", "recompute", "sqrt", "binomial:4", "int8:sqrt"])
def test_packing_at_other_depths(name, n_layers):
    schedule, arena = lay(STRATEGIES[name], n_layers, 1, 256, 128, 4, 256)
    assert_no_overlap(schedule, arena)
    assert max(arena.live_bytes) <= arena.nbytes <= 1.01 * max(arena.live_bytes)


# Found among drawn workloads: first fit alone wastes 4 to 7 % on plans of these.
HARD = {"crystalline": (cllm.ModelConfig(1000, 3, 64, 2, 193, 512, qkv_bias=False, out_proj=False, positions="none",
                                         attention="crystalline", dropout=0.1, loss="mse", crystalline=("distance", "bias")),
                        dict(batch=8, time=512, threads=1)),
        "lattice": (cllm.ModelConfig(61, 2, 24, 3, 96, 517, qkv="lattice", qkv_bias=False, activation="relu", tied=False,
                                     dropout=0.1, loss="mse"), dict(batch=6, time=512, dtype="float64", threads=2))}


@pytest.mark.parametrize("name", HARD)
def test_plans_of_the_planner_pack_where_first_fit_does_not(name):
    config, sizes = HARD[name]
    ledger = Ledger(program_of(config), Workload(**sizes), Speeds())
    frontier = ledger.frontier(("cache", "micro_batch", "recompute"))
    for index in range(0, len(frontier), 4):
        schedule, report = ledger.build(frontier.plan(index))
        assert_no_overlap(schedule, report.arena)
        assert report.arena_bytes <= 1.01 * max(report.arena.live_bytes)


def hand_made(intervals):
    """A schedule of nothing but buffers: (first, last, units of 64 bytes)."""
    n = 1 + max((last for _, last, _ in intervals), default=0)
    buffers = tuple(Buffer(i, f"b{i}", "1", "float32", 64 * units, "kept", None, False, first, last)
                    for i, (first, last, units) in enumerate(intervals))
    return Schedule((None,) * n, n, buffers, 1, 1, 1)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9)), max_size=40))
def test_any_lifetimes_are_laid_out_apart(drawn):
    schedule = hand_made([(min(a, b), max(a, b), units) for a, b, units in drawn])
    arena = lay_out(schedule)
    assert_no_overlap(schedule, arena)
    by_hand = [sum(b.nbytes for b in schedule.buffers if b.first <= i <= b.last) for i in range(len(schedule.ops))]
    assert list(arena.live_bytes) == by_hand == live_bytes(schedule.buffers, len(schedule.ops))
    assert arena.nbytes >= max(by_hand, default=0)
    ends = [offset + b.nbytes for offset, b in zip(arena.offsets, schedule.buffers, strict=True)]
    assert arena.nbytes == max(ends, default=0)


@pytest.mark.parametrize("intervals, units", [
    ([], 0), ([(0, 0, 3)], 3), ([(0, 1, 3), (1, 2, 4)], 7), ([(0, 0, 3), (1, 1, 4)], 4),
    ([(0, 3, 1), (0, 1, 5), (2, 3, 5), (4, 4, 6)], 6),  # a stack
    ([(0, 9, 2), (1, 8, 2), (2, 7, 2), (3, 3, 4), (4, 4, 4)], 10)])  # a tape
def test_easy_lifetimes_are_packed_without_waste(intervals, units):
    assert lay_out(hand_made(intervals)).nbytes == 64 * units


def test_the_layout_is_the_same_each_time():
    one, two = (lay(cllm.Sqrt(), 9, 2, 16, 32, 4, 50)[1] for _ in range(2))
    assert one == two


def test_overlap_is_seen():
    """Law 12."""
    schedule, arena = lay(cllm.CacheAll(), 2, 2, 8, 16, 2, 13)
    kept = [b.index for b in schedule.buffers if b.kind == "kept" and b.nbytes][:2]
    offsets = list(arena.offsets)
    offsets[kept[0]] = offsets[kept[1]]
    with pytest.raises(AssertionError):
        assert_no_overlap(schedule, dataclasses.replace(arena, offsets=tuple(offsets)))


def test_toy_programs_pack_without_overlap():
    block = ((toys.Scale, 0, 0), (toys.Mix, 1, 0), (toys.Tanh, 2, 0), (toys.Add, 3, 0))
    program, work = toys.wire([block] * 4), toys.workload()
    _, _, schedule = toys.run(program, work, toys.cache_all(program), toys.draw_parameters(program), *toys.draw_batch(work))
    assert_no_overlap(schedule, lay_out(schedule))
