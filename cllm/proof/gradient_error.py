"""How far a plan's gradient is from the exact one, as measured on a batch, and budgets that bound it."""

from dataclasses import replace
from math import inf

import numpy as np

from cllm.errors import BudgetError, ConfigError
from cllm.executor.executor import Executor
from cllm.models.gpt import GPT
from cllm.planner.ledger import Ledger
from cllm.planning import decide
from cllm.plans.plan import Plan
from cllm.program.workload import Workload
from cllm.proof.closeness import Closeness, closeness
from cllm.schedule.compression import PACKED
from cllm.strategies import MemoryBudget, RecomputeAll


def gradient_error(model: GPT, tokens, targets, strategy, num_threads: int | None = None, seed: int = 0) -> float:
    """Relative error of the whole gradient: ``|g - exact| / |exact|`` in the Euclidean norm over all parameters;
    infinite where the exact one is zero and the other is not.

    A copy of the model does the work, so `model` and its gradients stay as they are; it needs twice the gradients and an
    exact plan's arena while it runs.

    Parameters
    ----------
    model : GPT
    tokens, targets : integer arrays of shape B T
        The batch on which it is measured.
    strategy : strategy, Plan or name
    num_threads, seed : as of `Executor`

    Raises
    ------
    As `Executor` and `Executor.loss_and_grad`.
    """
    copy = GPT(model.config, dtype=model.dtype)
    for name, parameter in model.parameters.items():
        copy.parameters[name][...] = parameter

    def gradients(of) -> dict[str, np.ndarray]:
        copy.zero_grad()
        executor = Executor(copy, *np.shape(tokens), strategy=of, num_threads=num_threads, seed=seed)
        executor.loss_and_grad(tokens, targets)
        return copy.gradients

    exact = {name: g.copy() for name, g in gradients(RecomputeAll(micro_batch=1)).items()}
    found = gradients(strategy)
    error = sum((closeness(g, found[name]) for name, g in exact.items()), Closeness()).relative_error
    return inf if error is None else error


def plan_within_error(model: GPT, tokens, targets, budget: MemoryBudget, optimizer: str = "adamw",
                      num_threads: int | None = None, seed: int = 0) -> Plan:
    """The plan of a budget whose gradient error, measured on this batch, is within ``budget.max_grad_error``.

    If the fastest plan is too far off, int8 is no longer allowed, and then bfloat16.

    Parameters
    ----------
    model, tokens, targets, num_threads, seed : as of `gradient_error`
    budget : MemoryBudget
        With ``max_grad_error``.
    optimizer : str
        As of `Executor`.

    Raises
    ------
    BudgetError
        When no plan keeps both bounds; it names the errors that were measured.
    """
    if not isinstance(budget, MemoryBudget) or budget.max_grad_error is None:
        raise ConfigError("plan_within_error(budget)", "must be a MemoryBudget with max_grad_error", repr(budget),
                          "Write MemoryBudget(limit, allow=(..., 'bfloat16'), max_grad_error=1e-2).")
    workload = Workload(model.config, *np.shape(tokens), model.dtype, optimizer, num_threads)
    ledger = Ledger(model.program, workload, held_bytes=model.held_bytes)
    budget = budget.read(ledger.held_bytes)  # once, for all the plans below
    allow, measured = tuple(budget.allow), []
    while True:
        try:
            plan = decide(replace(budget, allow=allow, max_grad_error=None), ledger)
        except BudgetError as error:
            if not measured:
                raise
            raise BudgetError("MemoryBudget(limit, max_grad_error)",
                              f"must leave room for a plan whose gradient error is at most {budget.max_grad_error:g}",
                              f"{'; '.join(measured)}; and without: {error.got} bytes, where it {error.must}",
                              "Raise the limit or max_grad_error.") from error
        if plan.exact:
            return plan
        found = gradient_error(model, tokens, targets, plan, num_threads, seed)
        if found <= budget.max_grad_error:
            return plan
        narrowest = next(dtype for dtype in reversed(PACKED) if dtype in allow)
        measured.append(f"{found:.2g} with {narrowest}")
        allow = tuple(name for name in allow if name != narrowest)
