"""`Binomial`: as many advances as the closed form says, and never more block inputs at once than there are slots."""
from math import comb

import pytest

import cllm
from cllm.models.architecture import program_of
from cllm.planner.ledger import Ledger
from cllm.program.workload import Workload
from cllm.strategies.binomial import advances


def closed_form(n, slots):
    """r n - C(c + r, r - 1), r the least with C(c + r, c) >= n (Griewank and Walther 2000)."""
    r = next(r for r in range(n + 1) if comb(slots + r, slots) >= n)
    return r * n - comb(slots + r, r - 1) if r else 0


def schedule_of(n, strategy):
    config = cllm.ModelConfig(13, n, 4, 1, 4, 4)
    ledger = Ledger(program_of(config), Workload(1, 2, threads=1))
    return ledger.build(strategy.decide(ledger))[0]


def advances_of(schedule, n):
    """Runs of a block's last step: one for each time the block's output is made, but for the last block's own tape."""
    return sum(schedule.count(kind, f"blocks.{b}.res2") for b in range(n) for kind in ("forward", "rebuild")) - 1


def inputs_stored(schedule, n):
    """For each operation, how many blocks' inputs lie in the arena beside the state at hand.

    The state at hand is what a sweep carries along, or the input of the block on the tape: no slot is needed for it.
    """
    number = {"embed.y": 0, **{f"blocks.{b}.res2.y": b + 1 for b in range(n - 1)}}
    stored = []
    for position, op in enumerate(schedule.ops):
        alive = {number[b.label] for b in schedule.buffers if b.label in number and b.first <= position <= b.last}
        block = {"embed": 0}.get(op.step.name, n - 1) if op.step.block is None else op.step.block
        at_hand = {block, block + 1} if op.kind in ("forward", "rebuild") else {block}
        stored.append(len(alive - at_hand))
    return stored


@pytest.mark.parametrize("n, slots, expected", [(12, 3, 21), (24, 4, 51), (48, 5, 116)])
def test_the_known_figures(n, slots, expected):
    assert closed_form(n, slots) == advances(n, slots)[0] == expected
    assert advances_of(schedule_of(n, cllm.Binomial(slots)), n) == expected


def test_the_recursion_is_the_closed_form():
    for slots in range(1, 12):
        for n in range(1, 60):
            assert advances(n, slots)[0] == closed_form(n, slots), (n, slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 14])
def test_the_schedule_advances_no_more_and_stores_no_more(n, slots):
    schedule = schedule_of(n, cllm.Binomial(slots))
    assert advances_of(schedule, n) == closed_form(n, min(slots, n))
    assert max(inputs_stored(schedule, n)) <= min(slots, n)


def test_the_figures_can_be_wrong():
    """Law 12: other strategies neither advance nor store as little."""
    assert advances_of(schedule_of(12, cllm.Sqrt()), 12) != closed_form(12, 4)
    assert max(inputs_stored(schedule_of(12, cllm.RecomputeAll()), 12)) == 11
    assert advances_of(schedule_of(12, cllm.Binomial(2)), 12) > advances_of(schedule_of(12, cllm.Binomial(3)), 12)


def test_every_block_is_taped_once_and_its_last_product_is_not_redone():
    schedule = schedule_of(9, cllm.Binomial(2))
    for block in range(9):
        assert schedule.count("backward", f"blocks.{block}.mlp.fc1") == 1
        runs = schedule.count("forward", f"blocks.{block}.mlp.fc2") + schedule.count("rebuild", f"blocks.{block}.mlp.fc2")
        outputs = schedule.count("forward", f"blocks.{block}.res2") + schedule.count("rebuild", f"blocks.{block}.res2")
        assert runs == outputs


def test_memory_grows_as_the_slots_and_not_as_the_depth():
    """With slots = ceil(log2 L) the arena grows by the same step whenever the depth doubles."""
    def arena(n):
        return cllm.plan(cllm.ModelConfig(64, n, 32, 2, 64, 64), 1, 64, cllm.Binomial(max(1, (n - 1).bit_length())),
                         num_threads=1).arena_bytes

    sizes = [arena(n) for n in (8, 16, 32, 64)]
    steps = [b - a for a, b in zip(sizes, sizes[1:], strict=False)]
    assert max(steps) == min(steps) == 64 * 32 * 4


@pytest.mark.parametrize("slots", [0, -1, 1.5, "3", None, True])
def test_slots_that_are_none(slots):
    with pytest.raises(cllm.ConfigError):
        cllm.Binomial(slots)
