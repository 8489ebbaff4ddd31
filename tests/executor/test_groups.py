"""Processes that share the groups of a batch, played by threads: every number of them gives the bits of one, each has its part
of gradients and states, and what goes wrong in one goes wrong in all, in the same words.

What MPI itself does is in tests/test_distributed.py.
"""
import threading

import numpy as np
import oracle
import pytest
from families import FAMILIES
from longer import whole
from team import processes

import cllm
from cllm.errors import CllmError, ConfigError, NonFiniteError, OptimizerError
from cllm.executor.groups import Groups
from cllm.optim import optimizer_named
from cllm.program import shards
from cllm.program.optimizer_states import CODE_BLOCK
from cllm.program.workload import Workload

BATCH, SEED = 8, 5
WIDE = cllm.ModelConfig(vocab_size=67, n_layers=2, d_model=96, n_heads=3, d_ff=400, max_seq_len=9, dropout=0.1)


def steps(name, groups, team=None, whole=True, spoil=None, micro=None, optimizer="adamw"):
    """Losses, norms, weights, and states by name, of three clipped steps; gradients of the first."""
    if name == "wide":
        model, time, packed = cllm.GPT(WIDE, seed=1), 9, False
        feeds = [oracle.draw_batch(oracle.CONFIG, BATCH, 9, seed=n) for n in range(3)]
        feeds = [dict(zip(("tokens", "targets"), pair, strict=True)) for pair in feeds]
    else:
        family = FAMILIES[name]
        model, time, packed = family.model(), family.time, family.packed
        feeds = [family.draw(step, BATCH) for step in range(3)]
    ex = cllm.Executor(model, BATCH, time, cllm.RecomputeAll(micro_batch=micro), num_threads=1, seed=SEED, packed=packed,
                       groups=groups, team=team, optimizer=optimizer)
    optimizer, seen = optimizer_named(optimizer, model, 1e-2), []
    for step, fed in enumerate(feeds):
        if spoil:
            spoil(step, team, model, fed)
        if whole:
            seen += [ex.train_step(**fed, optimizer=optimizer, clip_norm=0.5), ex.grad_norm]
            assert ex.high_water_bytes == ex.memory.arena_bytes == ex.plan.arena_bytes
        else:
            model.zero_grad()
            seen += [ex.loss_and_grad(**fed), cllm.clip_grad_norm(model, 0.5)]
            optimizer.step()
    if whole and team is not None:
        assert not model.has_gradients and ex.memory.gradient_bytes == 0
        held = sum(part.mine.base.nbytes for part in optimizer.stored().values())
        largest = [shards.largest(model.parameters[n].size, team.size) for n in model.program.trained]
        planned = sum(8 * n if optimizer.kind == "adamw" else 2 * n + 8 * -(-n // CODE_BLOCK) for n in largest)
        assert ex.memory.optimizer_bytes == planned <= held < planned + 64 * len(optimizer.stored()) + 1
    return {"seen": [*seen, ex.loss(**feeds[0])], "weights": dict(model.parameters)}


@pytest.mark.parametrize("name", [whole("wide"), "full tied dropout", "gpt with adapters", "rows of every kind"])
def test_any_number_of_processes_gives_the_bits_of_one(name):
    for turn, (groups, size) in enumerate([(2, 2), (4, 2), (4, 4), (8, 2), (8, 8)]):
        micro = 1 if turn % 2 else None
        reference = steps(name, groups, whole=turn % 2 == 0)
        for found in processes(size, lambda team, g=groups, t=turn, m=micro: steps(name, g, team, t != 2, micro=m)):
            oracle.assert_same_bits(found, reference, f"{groups} groups, {size} processes: ")


def test_states_in_a_byte_an_element_have_parts_too():
    """Elements that share a scale are in one part."""
    assert shards.CHUNK % CODE_BLOCK == 0
    reference = steps("wide", 4, whole=False, optimizer="adamw8bit")
    for size in (2, 4):
        for found in processes(size, lambda team: steps("wide", 4, team, optimizer="adamw8bit")):
            oracle.assert_same_bits(found, reference, f"{size} processes: ")


def test_a_sum_over_processes_is_that_of_a_binary_tree():
    """Numbers whose sum depends on the order, in arrays that parts cut unevenly."""
    for size in (2, 4, 8):
        for length in (1, shards.CHUNK - 1, shards.CHUNK + 1, 5 * shards.CHUNK + 7):
            arrays = [np.random.default_rng(rank).normal(size=length).astype(np.float32) * 10**rank for rank in range(size)]

            def work(team, arrays=arrays, length=length, size=size):
                groups, mine = Groups(Workload(8, 1, groups=8, processes=size), team), arrays[team.rank].copy()
                groups.reduce(mine, np.empty(1000, np.float32))
                groups.spread(mine)
                return mine

            expected, in_turn = list(arrays), sum(arrays[1:], arrays[0])
            while len(expected) > 1:
                expected = [a + b for a, b in zip(expected[::2], expected[1::2], strict=True)]
            for found in processes(size, work):
                np.testing.assert_array_equal(found, expected[0])
            assert size == 2 or length < 9 or (expected[0] != in_turn).any(), "the order would show"


class Waits:
    """A team of one of several processes, which waits ten seconds in every call, by a clock of its own."""

    def __init__(self, team, clock):
        self._team, self._clock, self.rank, self.size = team, clock, team.rank, team.size

    def __getattr__(self, name):
        def call(*arguments):
            self._clock.now += 10
            return getattr(self._team, name)(*arguments)

        return call


def test_own_work_is_told_from_waiting(monkeypatch):
    clock = threading.local()
    monkeypatch.setattr("cllm.executor.stopwatch.perf_counter", lambda: clock.now)

    def work(team):
        clock.now = 1000.0 * team.rank
        groups = Groups(Workload(2, 1, groups=2, processes=2), Waits(team, clock))
        for own in (1.0, 2.0):
            groups.watch.begin()
            groups.together("step", lambda: None)
            clock.now += own + team.rank
            array = np.ones(3 * shards.CHUNK, np.float32)
            groups.reduce(array, np.empty(100, np.float32))
            groups.spread(array)
            groups.total([0.0])
        return groups.seconds, groups.received_bytes

    received = [2 * 4 * (shards.CHUNK + 2 * shards.CHUNK), 2 * 4 * (2 * shards.CHUNK + shards.CHUNK)]
    assert processes(2, work) == [([2.0, 3.0], nbytes) for nbytes in received]


def test_losses_are_added_in_the_same_tree():
    """(1 + 1e16) + (-1e16 + 1) is 0 in float64, and one after the other is 1."""
    losses = [1.0, 1e16, -1e16, 1.0]

    def work(team, count):
        groups = Groups(Workload(4, 1, groups=4, processes=count), team)
        return groups.total([losses[number] for number in groups.own])

    assert work(None, 1) == 0.0
    for count in (2, 4):
        assert processes(count, lambda team, count=count: work(team, count)) == [0.0] * count


def test_parts_are_whole_chunks_each_of_one_process():
    for size in (0, 1, shards.CHUNK, 9 * shards.CHUNK + 1):
        for count in (1, 2, 4, 8):
            bounds = shards.cuts(size, count)
            assert bounds[0] == 0 and bounds[-1] == size and bounds == sorted(bounds)
            assert all(cut % shards.CHUNK == 0 for cut in bounds[:-1] if cut < size)
            assert sorted(shards.part_of(rank, count) for rank in range(count)) == list(range(count))


def test_memory_of_each_is_a_part():
    """States and sums of gradients exist once among all; the rest of a gradient only while backward is at its block."""
    config = cllm.ModelConfig(vocab_size=256, n_layers=8, d_model=256, n_heads=4, d_ff=1024, max_seq_len=16)
    one, four = (cllm.plan(config, 4, 16, groups=4, processes=count) for count in (1, 4))
    program = config.program
    ledger = [cllm.planning.ledger_of(config, 4, 16, groups=4, processes=count) for count in (1, 4)]
    whole, part = (led.build(plan)[1] for led, plan in zip(ledger, (one, four), strict=True))
    parameters = whole.parameter_bytes
    assert part.parameter_bytes == parameters == whole.gradient_bytes and whole.optimizer_bytes == 2 * parameters
    assert 2 * parameters / 4 <= part.optimizer_bytes < 2 * parameters / 4 * 1.02
    kinds = part.timeline_by_kind()
    block = sum(np.prod(p.shape) * 4 for name, p in program.parameters.items() if name.startswith("blocks.0."))
    tied = np.prod(program.parameters["tok_emb.weight"].shape) * 4
    assert max(kinds["weights"]) < 1.02 * parameters / 4 + 2 * block + tied
    assert four.total_bytes == part.total_bytes < one.total_bytes - 2 * parameters


def test_what_goes_wrong_in_one_is_told_in_all():
    def nan(step, team, model, fed):
        if step == 1:
            model.parameters["blocks.1.mlp.fc1.bias"][3] = np.nan

    (alone,) = processes(1, lambda team: steps("full tied dropout", 4, None, spoil=nan))
    found = processes(4, lambda team: steps("full tied dropout", 4, team, spoil=nan))
    assert isinstance(alone, NonFiniteError) and all(str(one) == str(alone) and type(one) is NonFiniteError for one in found)

    def bad_batch(step, team, model, fed):
        if step == 1 and team.rank == 2:
            fed["tokens"] = fed["tokens"] + 10**6

    found = processes(4, lambda team: steps("full tied dropout", 4, team, spoil=bad_batch))
    assert isinstance(found[2], cllm.TokenError)
    for other in (found[0], found[1], found[3]):
        assert isinstance(other, ConfigError)
        assert str(other).startswith("step, process 2: must be as in the others; got tokens: must be from 0 to")

    def other_batch(step, team, model, fed):
        if step == 1 and team.rank == 3:
            fed["tokens"] = fed["tokens"][::-1]

    for one in processes(4, lambda team: steps("full tied dropout", 4, team, spoil=other_batch)):
        assert "step: must be the same in all processes; got another in process 3 than in process 0: batch '" in str(one)

    def other_weights(step, team, model, fed):
        if team.rank == 1:
            model.parameters["ln_f.bias"][0] += 1

    for one in processes(2, lambda team: steps("full tied dropout", 2, team, spoil=other_weights)):
        assert "another in process 1 than in process 0: weights '" in str(one) and "Give all of them the same model" in str(one)


def test_an_infinite_gradient_is_named_as_in_one_process(monkeypatch):
    """Weights so large that squares of gradients overflow, in a part of one process alone."""
    def spoil(step, team, model, fed):
        model.parameters["ln_f.weight"][...] = 1e30
        model.parameters["tok_emb.weight"][...] *= 1e-25

    (alone,) = processes(1, lambda team: steps("full untied relu", 2, None, spoil=spoil))
    for one in processes(2, lambda team: steps("full untied relu", 2, team, spoil=spoil)):
        assert type(one) is type(alone)
        if isinstance(alone, CllmError):
            assert str(one) == str(alone)


def test_a_shared_state_is_stepped_by_its_executor_alone():
    def work(team):
        model = cllm.GPT(WIDE, seed=1)
        ex = cllm.Executor(model, 4, 9, groups=2, team=team, num_threads=1)
        optimizer = cllm.AdamW(model)
        optimizer.state["ln_f.weight"][0][...] = 7
        ex.train_step(*oracle.draw_batch(oracle.CONFIG, 4, 9), optimizer)
        owns = sum(len(arrays[0]) for arrays in optimizer.state.values())
        with pytest.raises(OptimizerError, match="must have its whole state; got a part of it, which 2 processes share. Call"):
            optimizer.step()
        return owns, [float(m[0]) for name, (m, _) in optimizer.state.items() if name == "ln_f.weight" and len(m)]

    found = processes(2, work)
    assert sum(owns for owns, _ in found) == sum(p.size for p in cllm.GPT(WIDE).parameters.values())
    assert sum([kept for _, kept in found], [])[0] > 6, "what was there is kept"


def test_a_budget_that_more_processes_would_keep_says_so():
    config = cllm.ModelConfig(vocab_size=256, n_layers=1, d_model=128, n_heads=4, d_ff=512, max_seq_len=8)
    least = [cllm.plan(config, 8, 8, cllm.MemoryBudget(10**9), groups=8, processes=count).total_bytes for count in (1, 2, 4)]
    assert least[2] < least[1] < least[0]
    with pytest.raises(cllm.BudgetError, match="Raise the limit, or lower what is needed: 4 processes, allow"):
        cllm.plan(config, 8, 8, cllm.MemoryBudget(least[2]), groups=8)
    with pytest.raises(cllm.BudgetError) as error:
        cllm.plan(config, 8, 8, cllm.MemoryBudget(1000), groups=8)
    assert "processes" not in str(error.value) and "update_in_backward" not in str(error.value)
    assert "allow 'spill_states'" in str(error.value)
    with pytest.raises(cllm.BudgetError) as error:
        cllm.plan(config, 8, 8, cllm.MemoryBudget(1000), groups=8, processes=8)
    assert "spill_states" not in str(error.value)
