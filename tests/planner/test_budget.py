"""`MemoryBudget`: more memory is never slower, no plan exceeds its limit, and what cannot be kept is refused at once."""
import dataclasses
import tracemalloc

import oracle
import pytest

import cllm
from cllm.models.architecture import program_of
from cllm.planner.costs import BYTES_PER_SECOND, Speeds
from cllm.planner.ledger import Ledger
from cllm.plans.tree import Compress, Segment, Tape
from cllm.program.workload import Workload
from cllm.strategies import memory_budget
from cllm.strategies.memory_budget import parse_limit

CONFIG = cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 3, "d_model": 32, "d_ff": 128, "n_heads": 4, "vocab_size": 61,
                             "max_seq_len": 40})
BATCH, TIME = 6, 40


def ledger_of(config=CONFIG, batch=BATCH, optimizer="adamw", **changes):
    config = dataclasses.replace(config, **changes)
    return Ledger(program_of(config), Workload(batch, TIME, optimizer=optimizer, threads=2), Speeds())


def least_of(ledger, **arguments):
    """The least limit, as the refusal of one byte names it."""
    with pytest.raises(cllm.BudgetError) as caught:
        cllm.MemoryBudget(1, **arguments).decide(ledger)
    return int("".join(filter(str.isdigit, caught.value.must)))


CASES = {"untied lattice with dropout": dict(tied=False, qkv="lattice", out_proj=False, dropout=0.1),
         "wide head": dict(vocab_size=2000)}


@pytest.mark.parametrize("case", CASES)
def test_200_limits_from_least_to_most(case):
    ledger = ledger_of(**CASES[case])
    least = least_of(ledger)
    most = ledger.evaluate(cllm.CacheAll().decide(ledger)).total_bytes
    before, seen = None, set()
    for k in range(200):
        limit = least + (int(most * 1.05) - least) * k // 199
        plan = cllm.MemoryBudget(limit).decide(ledger)
        cost = ledger.evaluate(plan)
        assert cost.total_bytes <= limit
        if before is not None:
            assert cost.seconds <= before.seconds * (1 + 1e-12), "more memory is slower"
            assert cost.total_bytes >= before.total_bytes, "less memory peaks higher"
        before = cost
        seen.add(plan)
    assert len(seen) > 10
    fastest = min(ledger.evaluate(cllm.CacheAll(micro_batch=m).decide(ledger)).seconds for m in (None, 1, 2, 3))
    assert before.seconds <= fastest * (1 + 1e-12)


@pytest.mark.parametrize("allow", [("cache", "recompute", "micro_batch"), ("cache", "recompute"), ("cache", "micro_batch"),
                                   ("cache",), (), ("recompute",), ["micro_batch"]], ids=str)
def test_below_the_least_is_refused_and_the_least_works(allow):
    ledger = ledger_of()
    least = least_of(ledger, allow=allow)
    plan = cllm.MemoryBudget(least, allow=allow).decide(ledger)
    assert ledger.evaluate(plan).total_bytes == least
    with pytest.raises(cllm.BudgetError, match=f"at least {least:,} bytes"):
        cllm.MemoryBudget(least - 1, allow=allow).decide(ledger)
    if "micro_batch" not in allow:
        assert plan.micro_batch in (None, BATCH)
    if "recompute" not in allow:
        assert all(isinstance(c, Tape) and not c.decisions for c in plan.children)


def test_what_is_allowed_lowers_the_least():
    ledger = ledger_of()
    every, segments, micro, nothing = (least_of(ledger, allow=a) for a in (
        ("cache", "recompute", "micro_batch"), ("cache", "recompute"), ("cache", "micro_batch"), ("cache",)))
    assert every < micro < nothing and every < segments < nothing
    assert nothing == ledger.evaluate(cllm.CacheAll().decide(ledger)).total_bytes


def test_the_refusal_says_what_would_help():
    def remedy(allow, **changes):
        with pytest.raises(cllm.BudgetError) as caught:
            cllm.MemoryBudget(1, allow=allow).decide(ledger_of(**changes))
        assert isinstance(caught.value, MemoryError) and caught.value.got == "1"
        return caught.value.do

    assert "'recompute'" in remedy(("cache", "micro_batch")) and "sgd" in remedy(("cache",))
    assert "'micro_batch'" in remedy(("cache", "recompute")) and "batch_size" in remedy(("cache", "recompute"))
    assert "batch_size" not in remedy(("cache", "recompute"), batch=1)
    assert "sgd" not in remedy(("cache",), optimizer="sgd") and "smaller model" in remedy(())


def test_at_the_least_a_step_runs_to_the_same_bits_in_what_was_promised():
    model, other = (cllm.GPT(CONFIG, seed=0) for _ in range(2))
    with pytest.raises(cllm.BudgetError) as caught:
        cllm.Executor(model, BATCH, TIME, strategy=cllm.MemoryBudget(1), num_threads=2)
    least = int("".join(filter(str.isdigit, caught.value.must)))
    ex = cllm.Executor(model, BATCH, TIME, strategy=f"budget:{least}B", num_threads=2)
    batch = oracle.draw_batch({**oracle.CONFIG, "vocab_size": 61}, BATCH, TIME)
    loss = ex.loss_and_grad(*batch)
    assert ex.memory.total_bytes == least and ex.high_water_bytes == ex.memory.arena_bytes
    assert any(isinstance(c, Segment) or c.decisions for c in ex.plan.children) or ex.plan.micro_batch < BATCH
    assert cllm.Executor(other, BATCH, TIME, strategy="cache", num_threads=2).loss_and_grad(*batch) == loss
    oracle.assert_same_bits(dict(model.gradients), dict(other.gradients))


def test_a_limit_decides_nothing_but_which_point_of_one_frontier(monkeypatch):
    made = []
    import cllm.planner.ledger as module
    original = module.Frontier
    monkeypatch.setattr(module, "Frontier", lambda *a: made.append(a) or original(*a))
    ledger = ledger_of()
    for limit in ("3MB", "4MB", "1GB"):
        cllm.MemoryBudget(limit).decide(ledger)
    assert len(made) == 1


def test_planning_makes_no_array_and_runs_no_kernel(monkeypatch):
    """A model of gigabytes is planned in megabytes, and a refusal comes before the executor has any memory."""
    from cllm import _kernels
    for name in ("linear_forward", "fill_zero", "embedding_forward", "cross_entropy_backward", "Threads"):
        monkeypatch.setattr(_kernels, name, lambda *a, **k: pytest.fail("a kernel runs"))
    config = cllm.ModelConfig.preset("gpt2", n_layers=4)
    tracemalloc.start()
    try:
        plan = cllm.plan(config, 8, 512, cllm.CacheAll(), num_threads=2)
        with pytest.raises(cllm.BudgetError):
            cllm.plan(config, 8, 512, cllm.MemoryBudget("1GB", allow=("cache", "micro_batch")), num_threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.total_bytes > 1.9e9 and peak < 1e8


def test_a_refused_executor_has_made_nothing(monkeypatch):
    model = cllm.GPT(CONFIG)
    tracemalloc.start()
    try:
        with pytest.raises(cllm.BudgetError):
            cllm.Executor(model, 4000, TIME, strategy=cllm.MemoryBudget("10MB", allow=("cache",)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e7 and "gradients" not in model._made


# compressed values

INEXACT = (*memory_budget.ALLOWED, "bfloat16")
WIDE = dataclasses.replace(CONFIG, n_layers=4, d_model=256, d_ff=1024)  # products dear enough that copies pay


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_compressed_values_are_faster_under_some_limit_and_kept_within_it(dtype):
    ledger = ledger_of(WIDE, batch=1)
    allow = (*memory_budget.ALLOWED, dtype)
    least, most = least_of(ledger), ledger.evaluate(cllm.CacheAll().decide(ledger)).total_bytes
    assert least_of(ledger, allow=allow) <= least
    inexact = 0
    for k in range(40):
        limit = least + (most - least) * k // 39
        plan, exact = (cllm.MemoryBudget(limit, allow=a).decide(ledger) for a in (allow, memory_budget.ALLOWED))
        assert ledger.evaluate(plan).total_bytes <= limit and exact.exact
        assert ledger.evaluate(plan).seconds <= ledger.evaluate(exact).seconds * 1.02  # packing aside
        inexact += not plan.exact
        for tape in plan.tapes():
            for key, decision in tape.decisions:
                assert not isinstance(decision, Compress) or (
                    decision.dtype == dtype and key != "input" and not key.endswith((".lse", ".mean", ".rstd")))
    assert inexact > 5


def test_frontier_points_with_compressed_values_cost_what_their_schedules_cost():
    ledger = ledger_of(WIDE, batch=1)
    frontier = ledger.frontier(tuple(sorted((*memory_budget.ALLOWED, "bfloat16", "int8"))))
    plans = [frontier.plan(i) for i in range(0, len(frontier), max(1, len(frontier) // 12))]
    assert any(not p.exact for p in plans)
    for i, plan in zip(range(0, len(frontier), max(1, len(frontier) // 12)), plans, strict=True):
        _, memory = ledger.build(plan)
        live = max(memory.arena.live_bytes)
        assert live + memory.total_bytes - memory.arena_bytes == frontier.nbytes[i]
        assert ledger.evaluate(plan).seconds == pytest.approx(frontier.seconds[i], rel=1e-9)


def inexact_limit(ledger):
    """A limit under which values are compressed, and under which an exact plan exists too."""
    least, most = least_of(ledger), ledger.evaluate(cllm.CacheAll().decide(ledger)).total_bytes
    return next(limit for limit in range(least, most, (most - least) // 40)
                if not cllm.MemoryBudget(limit, allow=INEXACT).decide(ledger).exact)


def test_the_gradient_error_is_bounded_as_measured_on_a_batch():
    model = cllm.GPT(WIDE, seed=0)
    batch = oracle.draw_batch({**oracle.CONFIG, "vocab_size": 61}, 1, TIME)
    limit = inexact_limit(ledger_of(WIDE, batch=1))
    free = cllm.plan(model, 1, TIME, cllm.MemoryBudget(limit, allow=INEXACT), num_threads=2)
    error = cllm.gradient_error(model, *batch, free, num_threads=2)
    assert 1e-5 < error < 1e-2
    assert cllm.gradient_error(model, *batch, "cache", num_threads=2) == 0.0

    def within(bound, **changes):
        budget = cllm.MemoryBudget(changes.get("limit", limit), allow=INEXACT, max_grad_error=bound)
        return cllm.plan_within_error(model, *batch, budget, num_threads=2)

    assert within(error) == free
    assert within(error / 2).exact
    with pytest.raises(cllm.BudgetError, match="with bfloat16"):  # what is exact and not recomputed needs more room
        cllm.plan_within_error(model, *batch, cllm.MemoryBudget(
            least_of(ledger_of(WIDE, batch=1), allow=("cache", "bfloat16")), ("cache", "bfloat16"), 1e-9), num_threads=2)


def test_a_bound_without_a_batch_is_refused():
    with pytest.raises(cllm.ConfigError, match="plan_within_error"):
        cllm.MemoryBudget("1GB", allow=INEXACT, max_grad_error=0.1).decide(ledger_of(WIDE, batch=1))
    assert cllm.MemoryBudget("1GB", max_grad_error=0.1).decide(ledger_of(WIDE, batch=1)).exact
    for bound in (-1, True, "small", float("nan"), float("inf")):
        with pytest.raises(cllm.ConfigError, match="max_grad_error"):
            cllm.MemoryBudget("1GB", max_grad_error=bound)
    with pytest.raises(cllm.ConfigError, match="max_grad_error"):
        cllm.plan_within_error(cllm.GPT(WIDE), *oracle.draw_batch({**oracle.CONFIG, "vocab_size": 61}, 1, TIME),
                               cllm.MemoryBudget("1GB"))


# limits

@pytest.mark.parametrize("limit, nbytes", [
    (1, 1), (12345, 12345), ("1B", 1), ("1kb", 1000), ("500MB", 500_000_000), ("512MiB", 2**29), ("1.5GiB", 3 * 2**29),
    (" 2 GB ", 2_000_000_000), ("0.5KiB", 512), ("7gib", 7 * 2**30),
    ("9007199254740993B", 9007199254740993), ("0.1KB", 100), (10**400, 10**400)],
    ids=lambda v: str(v)[:20])
def test_limits(limit, nbytes):
    assert parse_limit(limit) == nbytes


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None, "", "MB", "0MB", "-5MB", "5 M B", "1e3MB", "5MBs",
                                   "auto ", "0x5MB", b"5MB", ["5MB"], "5MB\n5MB",
                                   "0.1B", "0.0000001MB", "9" * 400 + "GB", "9" * 5000 + "B"],
                         ids=lambda v: repr(v)[:20])
def test_limits_that_are_none(limit):
    with pytest.raises(cllm.ConfigError, match="MemoryBudget"):
        cllm.MemoryBudget(limit)


@pytest.mark.parametrize("allow", ["cache", ("everything",), (None,), 5, ("cache", "Recompute")], ids=repr)
def test_allowances_that_are_none(allow):
    with pytest.raises(cllm.ConfigError, match="allow"):
        cllm.MemoryBudget("1GB", allow=allow)


def test_auto_takes_what_is_free(monkeypatch):
    ledger = ledger_of()
    least = least_of(ledger)
    for free in (least, least + 500_000, 10**12):
        monkeypatch.setattr(memory_budget, "free_bytes", lambda free=free: free)
        plan = cllm.MemoryBudget("auto").decide(ledger)
        assert ledger.evaluate(plan).total_bytes <= free
        assert plan == cllm.MemoryBudget(free).decide(ledger)
        assert plan.limit == free and f"within a limit of {free:,} bytes" in plan.table(), "it says what it took"
    monkeypatch.setattr(memory_budget, "free_bytes", lambda: least - 1)
    with pytest.raises(cllm.BudgetError, match="'auto' found free"):
        cllm.MemoryBudget("auto").decide(ledger)


def test_auto_is_less_than_the_machine_has():
    import psutil
    assert 0 < parse_limit("auto") < psutil.virtual_memory().total


def test_budgets_are_frozen_data():
    assert cllm.MemoryBudget("1GB") == cllm.MemoryBudget("1GB") != cllm.MemoryBudget("2GB")
    assert hash(cllm.MemoryBudget("1GB")) == hash(cllm.MemoryBudget("1GB"))
    with pytest.raises(AttributeError):
        cllm.MemoryBudget("1GB").limit = 5


def test_few_rows_of_the_head_at_once_cost_the_time_to_read_its_weights_again():
    config = cllm.ModelConfig(50257, 1, 256, 4, 512, 256)
    ledger = Ledger(program_of(config), Workload(1, 256, threads=2), Speeds())
    plan = cllm.CacheAll().decide(ledger)
    seconds = {rows: ledger.evaluate(dataclasses.replace(plan, loss_rows=rows)).seconds for rows in (256, 16)}
    again = 15 * 3 * 4 * 50257 * 256  # bytes: fifteen more runs, each reads E and its gradient and writes the latter
    assert seconds[16] - seconds[256] == pytest.approx(again / BYTES_PER_SECOND, rel=0.05)


@pytest.mark.parametrize("time", [9, 16])
def test_a_last_micro_batch_that_is_smaller_costs_its_own_seconds(time):
    """5 of 6 sequences at a time run twice, once over one sequence: two calls of each operation and not 6/5."""
    ledger = Ledger(program_of(CONFIG), Workload(6, time, threads=2), Speeds())

    def seconds(micro, batch=6):
        work = Workload(batch, time, threads=2)
        made = ledger if batch == 6 else Ledger(program_of(CONFIG), work, Speeds())
        return made.evaluate(cllm.CacheAll(micro_batch=micro).decide(made)).seconds

    update = Speeds().update_seconds(program_of(CONFIG), ledger.workload)
    five, one = (seconds(None, n) - update for n in (5, 1))
    calls = 2e-4  # the gradient that waits for the epilogue is put aside in a cut batch alone
    assert seconds(5) - update == pytest.approx(five + one, rel=0.02, abs=calls)
    assert seconds(5) >= seconds(3) * 0.999 >= seconds(None) * 0.99
    frontier = ledger.frontier(("cache", "micro_batch"))
    for index in range(len(frontier)):
        assert ledger.evaluate(frontier.plan(index)).seconds == pytest.approx(frontier.seconds[index], rel=1e-9)


def test_sizes_beyond_any_machine_are_refused():
    config = cllm.ModelConfig(1 << 24, 3, 1 << 24, 1, 1 << 24, 1 << 24)
    for strategy in ("cache", "budget:1GB"):
        with pytest.raises(cllm.ConfigError, match="2\\^53"):
            cllm.plan(config, 1 << 24, 1 << 24, strategy)
