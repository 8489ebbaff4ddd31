"""Analytic gradients against central differences in float64, for every parameter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cllm.checks import LARGEST_SEED, checked_size
from cllm.executor.batches import sizes_of
from cllm.executor.executor import Executor
from cllm.models.model import Model
from cllm.program.packed import fed_by
from cllm.proof.held import Shifting
from cllm.strategies import StrategyLike

STEP = 1e-5  # of the differences: the error of order STEP^2 and the rounding of order 1e-16 / STEP are alike
RELATIVE, ABSOLUTE = 1e-6, 1e-9


@dataclass(frozen=True, slots=True)
class GradcheckRow:
    """One parameter: elements checked, and the worst difference as a multiple of what is allowed."""

    name: str
    checked: int
    size: int
    worst: float

    @property
    def passed(self) -> bool:
        return self.worst <= 1.0


@dataclass(frozen=True, slots=True)
class GradcheckResult:
    """A table by parameter; its `str` is for people."""

    rows: tuple[GradcheckRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'parameter':<{width}}  {'checked':>9}  worst / allowed"]
        lines += [f"{r.name:<{width}}  {f'{r.checked}/{r.size}':>9}  {r.worst:.3f}{'' if r.passed else '  FAILED'}"
                  for r in self.rows]
        return "\n".join(lines)


def gradcheck(model: Model, tokens: ArrayLike | None = None, targets: ArrayLike | None = None,
              strategy: StrategyLike = "cache", elements: int | None = 32, seed: int = 0,
              **feeds: ArrayLike) -> GradcheckResult:
    """Compare analytic gradients with (loss(p + h) - loss(p - h)) / 2h.

    The model is copied to float64; it is not changed. Allowed: |a - n| <= 1e-6 max(|a|, |n|) + 1e-9. What a layer declares
    to hold constant (`Param.constant`) stays at p there.

    Parameters
    ----------
    model : Model
    tokens, targets, **feeds : arrays by name
        A batch, as `Executor.loss_and_grad` takes it.
    strategy : as of `Executor`
    elements : int or None
        Elements of each parameter to check, drawn at random; None checks all.

    Returns
    -------
    GradcheckResult

    Raises
    ------
    CllmError
        As `Executor` does.
    """
    seed = checked_size("gradcheck(seed=...)", seed, 0, LARGEST_SEED)
    if elements is not None:
        elements = checked_size("gradcheck(elements=...)", elements)
    batch = {name: np.asarray(array) for name, array in {"tokens": tokens, "targets": targets, **feeds}.items()
             if array is not None}
    copy = model.copy("float64")
    program = fed_by(copy.program, batch)
    sizes, packed = sizes_of(program, batch), program is not copy.program
    executor = Executor(copy, *sizes, strategy=strategy, packed=packed)
    executor.loss_and_grad(**batch)
    shifting = Shifting(copy)
    look = executor if shifting.model is copy else Executor(shifting.model, *sizes, packed=packed)
    generator = np.random.default_rng(seed)
    rows = []
    for name, gradient in copy.gradients.items():
        analytic = gradient.reshape(-1)
        count = analytic.size if elements is None else min(elements, analytic.size)
        worst = 0.0
        for i in generator.choice(analytic.size, count, replace=False):
            numeric = _difference(look, batch, shifting, name, i)
            allowed = RELATIVE * max(abs(analytic[i]), abs(numeric)) + ABSOLUTE
            worst = max(worst, abs(analytic[i] - numeric) / allowed)
        rows.append(GradcheckRow(name, count, analytic.size, float(worst)))
    return GradcheckResult(tuple(rows))


def _difference(executor: Executor, batch: dict, shifting: Shifting, name: str, i: int) -> float:
    losses = []
    for shift in (STEP, -STEP):
        with shifting.shifted(name, i, shift):
            losses.append(executor.loss(**batch))
    return (losses[0] - losses[1]) / (2 * STEP)
