"""From what a user asks for to a plan: `plan()`, and the same decision inside an executor."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from cllm.checks import checked_real, shown
from cllm.errors import ConfigError, PlanError
from cllm.models.architecture import Architecture, checked_architecture
from cllm.models.model import Model
from cllm.planner.costs import MESSAGE, Speeds
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan, checked_states
from cllm.plans.script import Script
from cllm.program.computing import checked_compute, with_compute
from cllm.program.packed import packed as packed_form
from cllm.program.parts import StoredForm
from cllm.program.stored import refuse_trained, with_stored
from cllm.program.trained import Patterns, refuse_untrained, with_trained
from cllm.program.workload import Workload
from cllm.strategies import StrategyLike, parse
from cllm.strategies.memory_budget import ALLOWED
from cllm.strategies.whole_step import WHOLE_STEP, whole_steps


def decide(strategy: StrategyLike, ledger: Ledger, states: str | None = None, update_in_backward: bool | None = None) -> Plan:
    """The plan of a strategy, a name, a script, or a plan itself, with what it costs.

    Parameters
    ----------
    states, update_in_backward : as of `Executor`

    Raises
    ------
    ConfigError
        When it is none of these.
    """
    if isinstance(strategy, str):
        strategy = parse(strategy)
    if isinstance(strategy, Script):
        strategy = Plan(strategy)
    if states is not None:
        checked_states("states", states)
    if update_in_backward is not None and not isinstance(update_in_backward, bool):
        raise ConfigError("update_in_backward", "must be True, False or None", shown(update_in_backward), "Pass one of these.")
    asked = {"states": states, "update_in_backward": update_in_backward}
    ledger.asked = {name: value for name, value in asked.items() if value is not None}
    if ledger.whole.groups > 1:
        ledger.asked = {"update_in_backward": False} | ledger.asked
    if ledger.whole.processes > 1:
        ledger.asked = {"states": "memory"} | ledger.asked
    if not isinstance(strategy, Plan):
        if not callable(getattr(strategy, "decide", None)) or isinstance(strategy, type):
            raise ConfigError("strategy", "must be a strategy, a Plan or a name", repr(strategy),
                              "Pass for example cllm.CacheAll(), 'every:2', or an object with decide(ledger).")
        strategy = strategy.decide(ledger)
    if isinstance(strategy, Plan):
        strategy = replace(strategy, **ledger.asked)
    estimate = ledger.evaluate(strategy)
    if strategy.fingerprint not in (None, ledger.fingerprint):
        raise PlanError("strategy", f"must be a plan made for this model and batch (fingerprint {ledger.fingerprint})",
                        f"one for another ({strategy.fingerprint})", "Plan again with cllm.plan.")
    cut = strategy.micro_batch not in (None, ledger.workload.batch)
    return replace(strategy, estimate=estimate, fingerprint=ledger.fingerprint,
                   cut_is_exact=ledger.sums_in_order or not cut)


def ledger_of(model: Model | Architecture, batch_size: int, seq_len: int | None, optimizer: str = "adamw",
              dtype: str | None = None, num_threads: int | None = None, tell: Callable[[str], None] = lambda text: None,
              trainable: Patterns = None, packed: bool = False, clip_by: str | None = None,
              compute: str | None = None, stored: Mapping[str, StoredForm] | None = None, groups: int = 1, processes: int = 1,
              bandwidth: float | None = None) -> Ledger:
    """The ledger of a model, or of an architecture, in these sizes; parameters are those of `plan`, and how frozen matrices
    will be stored, where that is an architecture's (`cllm.models.choosing.forms_at`).

    Raises
    ------
    ConfigError
    """
    if isinstance(model, Model):
        program, usual, held = model.program, model.dtype, model.held_bytes
    else:
        program, usual, held = checked_architecture("model_or_architecture", model).program, "float32", 0
    if trainable is not None:
        program = with_trained(program, trainable)
    program = program if stored is None else with_stored(program, stored, "plan(trainable=...)")
    refuse_trained("plan(trainable=...)", program)
    refuse_untrained("plan", program)
    program = packed_form(program) if packed else program
    dtype = usual if dtype is None else dtype
    if compute is not None:
        program = with_compute(program, checked_compute("plan(compute=...)", compute, dtype))
    work = Workload(batch_size, seq_len, dtype, optimizer, num_threads, clip_by, groups, processes)
    speeds = Speeds.stored(work)
    if bandwidth is not None:
        speeds.measured[MESSAGE] = 1 / checked_real("plan(bandwidth=...)", bandwidth, ends="()")
    return Ledger(program, work, speeds, held_bytes=held, tell=tell)


def plan(model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
         strategy: StrategyLike = "cache", optimizer: str = "adamw", dtype: str | None = None, num_threads: int | None = None,
         tell: Callable[[str], None] = lambda text: None, trainable: Patterns = None, packed: bool = False,
         states: str | None = None, update_in_backward: bool | None = None, clip_by: str | None = None,
         compute: str | None = None, groups: int = 1, processes: int = 1, bandwidth: float | None = None) -> Plan:
    """Decide without running anything: no array is made and no kernel runs.

    Parameters
    ----------
    model_or_architecture : Model or Architecture
    batch_size : int
    seq_len : int or None
        None for a model without time steps.
    strategy : strategy, Plan or name
    optimizer, num_threads, packed : as of `Executor`
    dtype : str or None
        None takes the model's, or float32.
    tell : callable
        Hears how far it is, where a budget for hundreds of blocks takes a while.
    trainable : str, several of them, or None
        Patterns as of `Model.trainable`; None is the model's.
    states, update_in_backward, clip_by : as of `Executor`
    compute : {"float32", "bfloat16", "bfloat16:units"} or None
        As of `Model`; None takes the model's, or float32.
    groups : int
        As of `Executor`.
    processes : int
        That share the groups, as of `cllm.distributed.Executor`; bytes are of each.
    bandwidth : float or None
        Bytes a second between processes; None is a round figure of one machine.

    Returns
    -------
    Plan
        With ``arena_bytes``, ``total_bytes`` and ``predicted_seconds``.

    Raises
    ------
    ConfigError, PlanError, BudgetError
    """
    return decide(strategy, ledger_of(model_or_architecture, batch_size, seq_len, optimizer, dtype, num_threads, tell,
                                      trainable, packed, clip_by, compute, groups=groups, processes=processes,
                                      bandwidth=bandwidth),
                  states, update_in_backward)


def saved_values(model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
                 strategy: StrategyLike = "cache", dtype: str | None = None, trainable: Patterns = None,
                 compute: str | None = None) -> list[tuple[str, str, int, tuple[str, ...]]]:
    """What a plan keeps from forward to backward: (value, how, bytes, steps whose backward reads it), largest first.

    Parameters and errors are those of `plan`; bytes are of one micro-batch.
    """
    ledger = ledger_of(model_or_architecture, batch_size, seq_len, dtype=dtype, trainable=trainable, compute=compute)
    schedule, _ = ledger.build(decide(strategy, ledger))
    rows = []
    for buffer in schedule.buffers:
        if buffer.kind in ("kept", "packed", "disk"):
            how = {"kept": "kept", "disk": "on disk"}.get(buffer.kind, buffer.label.rpartition(" ")[2])
            rows.append((buffer.value, how, buffer.nbytes, ledger.entries[buffer.value].readers))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def print_saved_values(model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
                       strategy: StrategyLike = "cache", dtype: str | None = None, trainable: Patterns = None,
                       compute: str | None = None) -> None:
    """Print `saved_values` as a table, with the total."""
    rows = saved_values(model_or_architecture, batch_size, seq_len, strategy, dtype, trainable, compute)
    width = max([len(name) for name, *_ in rows], default=5)
    print(f"{'value':<{width}}  {'how':<9}{'bytes':>14}  read by backward of")
    for name, how, nbytes, readers in rows:
        print(f"{name:<{width}}  {how:<9}{nbytes:>14,}  {', '.join(readers)}")
    print(f"{'total':<{width}}  {'':<9}{sum(row[2] for row in rows):>14,}")


def pareto(model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
           optimizer: str = "adamw", dtype: str | None = None, num_threads: int | None = None, most: int = 40,
           allow: tuple[str, ...] = ALLOWED, tell: Callable[[str], None] = lambda text: None,
           trainable: Patterns = None, clip_by: str | None = None, directory: str | None = None,
           compute: str | None = None, stored: Mapping[str, StoredForm] | None = None) -> list[Plan]:
    """Plans from least memory to least time, none beaten in both; errors are those of `plan`.

    Parameters
    ----------
    most : int
        At most so many, spread evenly over the frontier, both ends among them.
    allow : tuple of str
        As of `MemoryBudget`.
    tell, trainable, clip_by, compute : as of `plan`
    directory : as of `MemoryBudget`
    stored : as of `ledger_of`
    """
    ledger = ledger_of(model_or_architecture, batch_size, seq_len, optimizer, dtype, num_threads, tell, trainable,
                       clip_by=clip_by, compute=compute, stored=stored)
    if set(allow) & set(WHOLE_STEP):
        points = whole_steps(ledger, allow, directory)
        plan_of, length = (lambda index: points[index].plan), len(points)
    else:
        frontier = ledger.frontier(tuple(sorted(allow)))
        plan_of, length = frontier.plan, len(frontier)
    count = min(most, length)
    chosen = sorted({round(i * (length - 1) / max(1, count - 1)) for i in range(count)})
    return [decide(plan_of(index), ledger) for index in chosen]
