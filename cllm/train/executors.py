"""Executors, one for each shape of batch, kept as far as the memory budget has room for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cllm.errors import BudgetError
from cllm.executor.batches import sizes_of
from cllm.executor.executor import Executor
from cllm.executor.groups import Team
from cllm.models.model import Model
from cllm.plans.plan import Plan
from cllm.program.packed import fed_by
from cllm.strategies import MemoryBudget, parse
from cllm.strategies.memory_budget import ALLOWED
from cllm.strategies.whole_step import WHOLE_STEP
from cllm.train.settings import TrainSettings

Shape = tuple[int, int | None] | tuple[int, int | None, bool]  # B, T, and True where rows are packed


def shape_of(model: Model, call: Mapping) -> Shape:
    """The shape of what a model is fed by name.

    Raises
    ------
    ShapeError
        As `sizes_of`.
    """
    program = fed_by(model.program, call)
    sizes = sizes_of(program, call)
    return sizes if program is model.program else (*sizes, True)


@dataclass(slots=True)
class Executors:
    """Makes executors at first use; parameters, gradients and the optimizer's state are the model's, once.

    Attributes
    ----------
    optimizer : str
        Kind whose state is counted.
    team : Team or None
        Other processes that share the groups of a batch; the first decides on the plan of each shape.
    budget : MemoryBudget or None
        That of the run, "auto" read: one limit for as long as the run goes on.
    kept : dict
        Shape -> Executor, the one used last at the end; T is None for a model without time steps.
    """

    model: Model
    settings: TrainSettings
    optimizer: str
    budget: MemoryBudget | None = None
    kept: dict[Shape, Executor] = field(default_factory=dict)
    team: Team | None = None

    @property
    def limit(self) -> int | None:
        """The budget in bytes; None without one."""
        return None if self.budget is None else self.budget.nbytes

    @property
    def total_bytes(self) -> int:
        """Bytes of everything that training holds: those of the largest executor, and the arenas of the others."""
        reports = sorted((ex.memory for ex in self.kept.values()), key=lambda m: m.total_bytes)
        return sum(m.arena_bytes + m.batch_bytes for m in reports[:-1]) + sum(m.total_bytes for m in reports[-1:])

    def of(self, batch: int, time: int | None, packed: bool = False) -> Executor:
        """The executor for B = `batch`, T = `time`.

        Raises
        ------
        BudgetError
            When no plan for this shape keeps the budget, not even alone.
        """
        shape = (batch, time, packed) if packed else (batch, time)
        found = self.kept.pop(shape, None) or self._make(batch, time, packed)
        self.kept[shape] = found
        return found

    def _make(self, batch: int, time: int | None, packed: bool) -> Executor:
        s = self.settings
        while True:
            taken = sum(ex.memory.arena_bytes + ex.memory.batch_bytes for ex in self.kept.values())
            strategy = s.strategy
            if self.budget is not None:  # the whole of it, and then what others leave of it
                strategy = self.budget if not taken else replace(self.budget, limit=max(1, self.limit - taken), found=None)
            try:
                return self._made(strategy, batch, time, packed)
            except BudgetError:
                if not self.kept:
                    raise
                self.kept.pop(next(iter(self.kept)))  # the one used longest ago

    def _made(self, strategy, batch: int, time: int | None, packed: bool) -> Executor:
        """An executor, in several processes of one plan: what they measured of their machines may differ."""
        s = self.settings

        def make(strategy) -> Executor:
            return Executor(self.model, batch, time, strategy, self.optimizer, s.threads, s.seed, packed=packed,
                            team=self.team, **s.whole_step())

        if self.team is None:
            return make(strategy)
        made = None
        try:
            made = make(strategy) if self.team.rank == 0 else None
        finally:  # None of a plan that could not be made: the others then find the same
            plan = self.team.tell(made and made.plan.to_dict())[0]
        return made or make(strategy if plan is None else Plan.from_dict(plan))


def least_budget(team: Team | None, budget: MemoryBudget | None) -> MemoryBudget | None:
    """A budget that "auto" has found, no larger than what any of several processes found."""
    if team is None or budget is None or budget.found is None:
        return budget
    return replace(budget, found=min(team.tell(budget.found)))


def budget_of(settings: TrainSettings) -> MemoryBudget | None:
    """The budget that decides in a run, asked for as such or as its strategy; None where another strategy decides."""
    if settings.memory_budget is not None:
        return MemoryBudget(settings.memory_budget, (*ALLOWED, *WHOLE_STEP))
    strategy = parse(settings.strategy) if isinstance(settings.strategy, str) else settings.strategy
    return strategy if isinstance(strategy, MemoryBudget) else None
