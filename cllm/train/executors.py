"""Executors, one for each shape of batch, kept as far as the memory budget has room for them."""

from dataclasses import dataclass, field

from cllm.errors import BudgetError
from cllm.executor.executor import Executor
from cllm.models.model import Model
from cllm.strategies.memory_budget import MemoryBudget, parse_limit
from cllm.train.settings import TrainSettings


@dataclass(slots=True)
class Executors:
    """Makes executors at first use; parameters, gradients and the optimizer's state are the model's, once.

    Attributes
    ----------
    optimizer : str
        Kind whose state is counted.
    kept : dict
        (B, T) -> Executor, the one used last at the end.
    """

    model: Model
    settings: TrainSettings
    optimizer: str
    kept: dict[tuple[int, int], Executor] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        """The budget in bytes; None without one."""
        budget = self.settings.memory_budget
        return None if budget is None else parse_limit(budget)

    @property
    def total_bytes(self) -> int:
        """Bytes of everything that training holds: those of the largest executor, and the arenas of the others."""
        reports = sorted((ex.memory for ex in self.kept.values()), key=lambda m: m.total_bytes)
        return sum(m.arena_bytes + m.batch_bytes for m in reports[:-1]) + sum(m.total_bytes for m in reports[-1:])

    def of(self, batch: int, time: int) -> Executor:
        """The executor for B = `batch`, T = `time`.

        Raises
        ------
        BudgetError
            When no plan for this shape keeps the budget, not even alone.
        """
        shape = batch, time
        found = self.kept.pop(shape, None) or self._make(batch, time)
        self.kept[shape] = found
        return found

    def _make(self, batch: int, time: int) -> Executor:
        s, limit = self.settings, self.limit
        while True:
            taken = sum(ex.memory.arena_bytes + ex.memory.batch_bytes for ex in self.kept.values())
            try:
                strategy = s.strategy if limit is None else MemoryBudget(max(1, limit - taken))
                return Executor(self.model, batch, time, strategy, self.optimizer, s.threads, s.seed)
            except BudgetError:
                if not self.kept:
                    raise
                self.kept.pop(next(iter(self.kept)))  # the one used longest ago
