"""What strategies under a limit share: a limit of total bytes, and plans tried until one keeps it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from cllm.errors import BudgetError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.program.dims import ALIGNMENT
from cllm.strategies.memory_budget import MemoryBudget, checked_limit

TRIES = 6  # packing takes a per cent at most: what a plan was too large is taken off, and another asked for
HALVINGS = 10  # of the room between nothing and what keeping everything takes, to find the least that works

Attempt = Callable[[int], Plan | None]


class UnderALimit(ABC):
    """Plans for any number of live bytes; decides on one whose total bytes keep `limit`, as of `MemoryBudget`.

    Its `decide` raises `BudgetError` when none does, with the least limit that works: to within a thousandth of what keeping
    everything takes.
    """

    __slots__ = ()
    limit: int | str
    micro_batch: int | None

    def __post_init__(self):
        object.__setattr__(self, "limit", checked_limit(self.limit, f"{type(self).__name__}(limit)"))

    @abstractmethod
    def attempts(self, ledger: Ledger) -> Attempt:
        """What gives a plan for a number of live bytes in the arena, or None."""

    def decide(self, ledger: Ledger) -> Plan:
        most = MemoryBudget(self.limit).read(ledger.held_bytes).nbytes
        attempt = self.attempts(ledger)
        found = fitting(most, ledger, most - ledger.graph(self.micro_batch).fixed_bytes, attempt)
        if found is not None:
            return replace(found, limit=most)
        least = least_total(ledger, self.micro_batch, attempt)
        must = (f"must be at least {least:,} bytes for this workload" if least else
                "must be kept by some plan of this strategy: it found none, whatever the limit")
        raise BudgetError(f"{type(self).__name__}(limit)", must, f"{most:,}", "Raise the limit, cut the batch "
                          "(micro_batch=...), or ask MemoryBudget, which knows more ways.", least)


def fitting(most: int, ledger: Ledger, room: int, attempt: Attempt) -> Plan | None:
    """An attempt's plan of at most so many total bytes, packed."""
    for _ in range(TRIES):
        plan = attempt(room) if room > 0 else None
        if plan is None:
            return None
        over = ledger.evaluate(plan).total_bytes - most
        if over <= 0:
            return plan
        room -= over
    return None


def least_total(ledger: Ledger, micro_batch: int | None, attempt: Attempt) -> int | None:
    """About the least limit that an attempt keeps; None where it keeps none."""
    fixed, high = ledger.graph(micro_batch).fixed_bytes, room_for_all(ledger, micro_batch)
    low, least = 0, None
    while True:
        room = high if least is None else (low + high) // 2
        plan = attempt(room)
        limit = plan and max(room + fixed, ledger.evaluate(plan).total_bytes)
        if limit and fitting(limit, ledger, limit - fixed, attempt) is not None:
            high, least = room, limit if least is None else min(least, limit)
        elif least is None:
            return None
        else:
            low = room
        if high - low <= high >> HALVINGS:
            return least


def room_for_all(ledger: Ledger, micro_batch: int | None) -> int:
    """Bytes in which everything can be kept, and more."""
    graph = ledger.graph(micro_batch)
    beside = max((m.beside for node in graph.nodes for m in node.moves), default=0)
    return sum(graph.nbytes.values()) + max(beside, max((node.scratch for node in graph.nodes), default=0)) + ALIGNMENT
