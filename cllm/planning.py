"""From what a user asks for to a plan: `plan()`, and the same decision inside an executor."""

from dataclasses import replace

from cllm.config import ModelConfig
from cllm.errors import ConfigError, PlanError
from cllm.models.gpt import GPT
from cllm.models.wiring import wire
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.program.workload import Workload
from cllm.strategies import parse
from cllm.strategies.memory_budget import ALLOWED


def decide(strategy, ledger: Ledger) -> Plan:
    """The plan of a strategy, a name, or a plan itself, with what it costs.

    Raises
    ------
    ConfigError
        When it is none of these.
    """
    if isinstance(strategy, str):
        strategy = parse(strategy)
    if not isinstance(strategy, Plan):
        if not callable(getattr(strategy, "decide", None)) or isinstance(strategy, type):
            raise ConfigError("strategy", "must be a strategy, a Plan or a name", repr(strategy),
                              "Pass for example cllm.CacheAll(), 'every:2', or an object with decide(ledger).")
        strategy = strategy.decide(ledger)
    estimate = ledger.evaluate(strategy)
    mine = ledger.workload.fingerprint
    if strategy.fingerprint not in (None, mine):
        raise PlanError("strategy", f"must be a plan made for this model and batch (fingerprint {mine})",
                        f"one for another ({strategy.fingerprint})", "Plan again with cllm.plan.")
    return replace(strategy, estimate=estimate, fingerprint=mine)


def plan(model_or_config: GPT | ModelConfig, batch_size: int, seq_len: int, strategy="cache", optimizer: str = "adamw",
         dtype: str | None = None, num_threads: int | None = None) -> Plan:
    """Decide without running anything: no array is made and no kernel runs.

    Parameters
    ----------
    model_or_config : GPT or ModelConfig
    batch_size, seq_len : int
    strategy : strategy, Plan or name
    optimizer, num_threads : as of `Executor`
    dtype : str or None
        None takes the model's, or float32.

    Returns
    -------
    Plan
        With ``arena_bytes``, ``total_bytes`` and ``predicted_seconds``.

    Raises
    ------
    ConfigError, PlanError, BudgetError
    """
    is_model = isinstance(model_or_config, GPT)
    config = model_or_config.config if is_model else model_or_config
    if dtype is None:
        dtype = model_or_config.dtype if is_model else "float32"
    workload = Workload(config, batch_size, seq_len, dtype, optimizer, num_threads)
    return decide(strategy, Ledger(wire(config), workload, held_bytes=model_or_config.held_bytes if is_model else 0))


def saved_values(model_or_config: GPT | ModelConfig, batch_size: int, seq_len: int, strategy="cache",
                 dtype: str | None = None) -> list[tuple[str, str, int, tuple[str, ...]]]:
    """What a plan keeps from forward to backward: (value, how, bytes, steps whose backward reads it), largest first.

    Parameters and errors are those of `plan`; bytes are of one micro-batch.
    """
    made = plan(model_or_config, batch_size, seq_len, strategy, dtype=dtype)
    config = model_or_config.config if isinstance(model_or_config, GPT) else model_or_config
    workload = Workload(config, batch_size, seq_len, dtype or getattr(model_or_config, "dtype", "float32"))
    ledger = Ledger(wire(config), workload)
    schedule, _ = ledger.build(made)
    rows = []
    for buffer in schedule.buffers:
        if buffer.kind in ("kept", "packed", "disk"):
            name = buffer.label.partition(" ")[0]
            how = {"kept": "kept", "disk": "on disk"}.get(buffer.kind, buffer.label.rpartition(" ")[2])
            rows.append((name, how, buffer.nbytes, ledger.entries[name].readers))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def print_saved_values(model_or_config: GPT | ModelConfig, batch_size: int, seq_len: int, strategy="cache",
                       dtype: str | None = None) -> None:
    """Print `saved_values` as a table, with the total."""
    rows = saved_values(model_or_config, batch_size, seq_len, strategy, dtype)
    width = max([len(name) for name, *_ in rows], default=5)
    print(f"{'value':<{width}}  {'how':<9}{'bytes':>14}  read by backward of")
    for name, how, nbytes, readers in rows:
        print(f"{name:<{width}}  {how:<9}{nbytes:>14,}  {', '.join(readers)}")
    print(f"{'total':<{width}}  {'':<9}{sum(row[2] for row in rows):>14,}")


def pareto(config: ModelConfig, batch_size: int, seq_len: int, optimizer: str = "adamw", dtype: str = "float32",
           num_threads: int | None = None, most: int = 40, allow: tuple[str, ...] = ALLOWED) -> list[Plan]:
    """Plans from least memory to least time, none beaten in both; errors are those of `plan`.

    Parameters
    ----------
    most : int
        At most so many, spread evenly over the frontier, both ends among them.
    allow : tuple of str
        As of `MemoryBudget`.
    """
    ledger = Ledger(wire(config), Workload(config, batch_size, seq_len, dtype, optimizer, num_threads))
    frontier = ledger.frontier(tuple(sorted(allow)))
    count = min(most, len(frontier))
    chosen = sorted({round(i * (len(frontier) - 1) / max(1, count - 1)) for i in range(count)})
    return [decide(frontier.plan(index), ledger) for index in chosen]
