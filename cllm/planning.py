"""From what a user asks for to a plan: `plan()`, and the same decision inside an executor."""

from dataclasses import replace

from cllm.config import ModelConfig
from cllm.errors import ConfigError
from cllm.ledger import Ledger
from cllm.models.gpt import GPT
from cllm.models.wiring import wire
from cllm.plans import Plan
from cllm.strategies import parse
from cllm.workload import Workload


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
    return replace(strategy, estimate=ledger.evaluate(strategy)) if isinstance(strategy, Plan) else ledger.evaluate(strategy)


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
    workload = Workload(config, batch_size, seq_len, dtype or (model_or_config.dtype if is_model else "float32"), optimizer,
                        num_threads)
    return decide(strategy, Ledger(wire(config), workload))
