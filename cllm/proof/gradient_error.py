"""How far a plan's gradient is from the exact one, as measured on a batch, and budgets that bound it."""

from dataclasses import replace
from math import inf
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from cllm.errors import BudgetError, ConfigError
from cllm.executor.batches import sizes_of
from cllm.executor.executor import Executor
from cllm.models.model import Model
from cllm.planning import decide, ledger_of
from cllm.plans.plan import Plan
from cllm.program.computing import checked_compute
from cllm.program.packed import fed_by
from cllm.proof.closeness import Closeness, closeness
from cllm.schedule.compression import PACKED
from cllm.strategies import MemoryBudget, RecomputeAll, StrategyLike


@overload
def gradient_error(model: Model, tokens: ArrayLike | None = ..., targets: ArrayLike | None = ..., strategy: StrategyLike = ...,
                   num_threads: int | None = ..., seed: int = ..., against: str | None = ..., by_layer: Literal[False] = ...,
                   **feeds: ArrayLike) -> float: ...
@overload
def gradient_error(model: Model, tokens: ArrayLike | None = ..., targets: ArrayLike | None = ..., strategy: StrategyLike = ...,
                   num_threads: int | None = ..., seed: int = ..., against: str | None = ..., *, by_layer: Literal[True],
                   **feeds: ArrayLike) -> dict[str, float]: ...
def gradient_error(model: Model, tokens: ArrayLike | None = None, targets: ArrayLike | None = None,
                   strategy: StrategyLike = "cache", num_threads: int | None = None, seed: int = 0,
                   against: str | None = None, by_layer: bool = False, **feeds: ArrayLike) -> float | dict[str, float]:
    """Relative error of the gradient: ``|g - exact| / |exact|`` in the Euclidean norm over all parameters, or those of each
    layer; infinite where the exact one is zero and the other is not.

    A copy of the model does the work, so `model` and its gradients stay as they are; it needs twice the gradients and an
    exact plan's arena while it runs.

    Parameters
    ----------
    model : Model
    tokens, targets, **feeds : arrays by name
        The batch on which it is measured, as `Executor.loss_and_grad` takes it.
    strategy : strategy, Plan or name
    num_threads, seed : as of `Executor`
    against : {"float32", "bfloat16", "bfloat16:units"} or None
        How the exact gradient is computed (`Model.compute`); None is as the model computes. So "float32" tells of a model in
        bfloat16 what that costs.
    by_layer : bool
        Return the error of each layer by its name, such as ``blocks.0.attn.qkv``, instead of one for all.

    Raises
    ------
    As `Executor` and `Executor.loss_and_grad`.
    """
    copy, batch = model.copy(), _batch(tokens, targets, feeds)
    program = fed_by(copy.program, batch)
    packed = program is not copy.program

    def gradients(of) -> dict[str, np.ndarray]:
        copy.zero_grad()
        executor = Executor(copy, *sizes_of(program, batch), strategy=of, num_threads=num_threads, seed=seed,
                            packed=packed)
        executor.loss_and_grad(**batch)
        return copy.gradients

    copy.compute = model.compute if against is None else checked_compute("gradient_error(against=...)", against, model.dtype)
    exact = {name: g.copy() for name, g in gradients(RecomputeAll(micro_batch=1)).items()}
    copy.compute = model.compute
    found = gradients(strategy)
    sums: dict[str, Closeness] = {}
    for name, g in exact.items():
        layer = name.rpartition(".")[0] if by_layer else ""
        sums[layer] = sums.get(layer, Closeness()) + closeness(g, found[name])
    errors = {layer: inf if pair.relative_error is None else pair.relative_error for layer, pair in sums.items()}
    return errors if by_layer else errors.get("", 0.0)


def plan_within_error(model: Model, tokens: ArrayLike | None = None, targets: ArrayLike | None = None,
                      budget: MemoryBudget | None = None, optimizer: str = "adamw",
                      num_threads: int | None = None, seed: int = 0, **feeds: ArrayLike) -> Plan:
    """The plan of a budget whose gradient error, measured on this batch, is within ``budget.max_grad_error``.

    If the fastest plan is too far off, int8 is no longer allowed, and then bfloat16.

    Parameters
    ----------
    model, tokens, targets, num_threads, seed, **feeds : as of `gradient_error`
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
    batch = _batch(tokens, targets, feeds)
    program = fed_by(model.program, batch)
    ledger = ledger_of(model, *sizes_of(program, batch), optimizer, num_threads=num_threads,
                       packed=program is not model.program)
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
        found = gradient_error(model, tokens, targets, plan, num_threads, seed, **feeds)
        if found <= budget.max_grad_error:
            return plan
        narrowest = next(dtype for dtype in reversed(PACKED) if dtype in allow)
        measured.append(f"{found:.2g} with {narrowest}")
        allow = tuple(name for name in allow if name != narrowest)


def _batch(tokens, targets, feeds: dict) -> dict:
    return {name: array for name, array in {"tokens": tokens, "targets": targets, **feeds}.items() if array is not None}
