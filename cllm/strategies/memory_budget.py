"""The fastest plan whose total bytes stay within a limit, or a refusal."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from cllm.checks import checked_real, checked_size, keep, real_number, shown, whole_number
from cllm.errors import BudgetError, ConfigError
from cllm.planner.free_memory import free_bytes
from cllm.planner.frontier import Frontier
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.schedule.compression import PACKED
from cllm.strategies.whole_step import ON_DISK, WHOLE_STEP, disk_for, whole_steps

UNITS = {"": 1, **{letter: 10 ** (3 * power) for power, letter in enumerate("KMGT", 1)},
         **{f"{letter}I": 2 ** (10 * power) for power, letter in enumerate("KMGT", 1)}}
ALLOWED = ("cache", "recompute", "micro_batch")
INEXACT = PACKED
_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*((?:[KMGT]I?)?)B?\s*\Z", re.IGNORECASE)


def checked_limit(limit, where: str = "MemoryBudget(limit)") -> int | str:
    """A limit as bytes; "auto" stays the word, to be read where memory is to be taken.

    Parameters
    ----------
    limit : int, float or str
        A whole number of bytes (6e6 is one), the same in digits, a size such as "500MB" or "500M" (10^6) and "512MiB"
        (2^20), up to terabytes, or "auto".

    Raises
    ------
    ConfigError
        When it is none of these.
    """
    if isinstance(limit, str):
        if limit == "auto":
            return "auto"
        match = _SIZE.match(limit)
        nbytes = Fraction(match[1]) * UNITS[match[2].upper()] if match else Fraction(0)
        nbytes = int(nbytes) if match and match[2] or nbytes.denominator == 1 else 0
    else:
        real = real_number(limit)
        nbytes = whole_number(limit) or (int(real) if real is not None and real.is_integer() else 0)
    if nbytes <= 0:
        raise ConfigError(where, "must be a number of bytes, a whole one, a size such as '500MB', or "
                          "'auto'", shown(limit), "Write for example 1GB.")
    return nbytes


def parse_limit(limit: int | str) -> int:
    """Bytes of what `checked_limit` takes; for "auto" what the machine, its cgroup and its resource limits leave free now,
    less a margin."""
    checked = checked_limit(limit)
    return free_bytes() if checked == "auto" else checked


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Decides micro-batch, loss rows, segments and every value.

    The frontier of a workload does not depend on the limit, and a limit picks its fastest plan that fits, ties going to
    fewer bytes: so more memory is never slower, and less memory never peaks higher.

    Parameters
    ----------
    limit : int or str
        Of ``total_bytes``; see `parse_limit`.
    allow : tuple of str
        What may be decided: "cache" always, "recompute", "micro_batch"; and, for gradients that are close instead of equal,
        "bfloat16" and "int8" copies of values inside blocks (never of what a block is rebuilt from, nor of row statistics).
        For `Executor.train_step` alone, "update_in_backward": each parameter is updated in backward, and gradients are room in
        the arena; "spill_states": the optimizer's states are on disk. "spill": activations may be.
    max_grad_error : float or None
        Most that the gradient may be off, relative, in the Euclidean norm. It takes a batch to know that:
        `cllm.plan_within_error` plans with such a budget.
    found : int or None
        Of "auto": the bytes that it was found to be, see `read`; None reads them when deciding.
    directory : str or None
        For what goes to disk; None is that in ``CLLM_SPILL_DIR``, or else the current folder, or none where that is in memory.
    """

    limit: int | str
    allow: tuple[str, ...] = ALLOWED
    max_grad_error: float | None = None
    found: int | None = None
    directory: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "limit", checked_limit(self.limit))
        if self.found is not None:
            keep(self, "MemoryBudget", "found", checked_size, 1, inf)
        known = (*ALLOWED, *WHOLE_STEP, *INEXACT)
        if self.directory is not None and (not isinstance(self.directory, str) or not self.directory):
            raise ConfigError("MemoryBudget(directory=...)", "must name a directory, or be None", shown(self.directory),
                              "Pass a path on a disk.")
        if not isinstance(self.allow, (tuple, list)) or not all(isinstance(n, str) and n in known for n in self.allow):
            raise ConfigError("MemoryBudget(allow=...)", f"must be a tuple of names among {', '.join(known)}",
                              repr(self.allow), "Leave out what must not be decided.")
        if self.max_grad_error is not None:
            keep(self, "MemoryBudget", "max_grad_error", checked_real)

    @property
    def nbytes(self) -> int | None:
        """The limit in bytes; None of "auto" that has not been read."""
        return self.found or (None if self.limit == "auto" else self.limit)

    def read(self, held_bytes: int = 0) -> "MemoryBudget":
        """This budget, "auto" read once and for all: what is free now and, of what it limits, what is held already."""
        if self.limit != "auto" or self.found is not None:
            return self
        return replace(self, found=free_bytes() + held_bytes)

    def decide(self, ledger: Ledger) -> Plan:
        if self.max_grad_error is not None and any(name in INEXACT for name in self.allow):
            raise ConfigError("MemoryBudget(max_grad_error=...)", "needs a batch on which to measure the error",
                              "a plan without one", "Make the plan with cllm.plan_within_error(model, tokens, targets, budget) "
                              "and pass it as the strategy.")
        limit = self.read(ledger.held_bytes).nbytes
        whole = set(self.allow) & set(WHOLE_STEP) or ledger.asks_more
        found = [*self._of_activations(ledger, limit), *(self._of_whole_steps(ledger, limit) if whole else ())]
        if found:
            _, _, plan = min(found, key=lambda entry: entry[:2])
            return replace(plan, limit=limit)
        least = self._least(ledger)
        raise BudgetError("MemoryBudget(limit)", f"must be at least {least:,} bytes for this workload",
                          f"{limit:,}" + (", which is what 'auto' found free" if self.limit == "auto" else ""),
                          self._remedy(ledger, limit), least)

    def _of_activations(self, ledger: Ledger, limit: int) -> Iterator[tuple[float, int, Plan]]:
        """Seconds, bytes and plan of the fastest that fits, gradients kept and states in memory."""
        if ledger.asks_more:
            return
        frontier = self._frontier(ledger)
        for index in reversed(range(len(frontier))):
            if frontier.nbytes[index] <= limit:
                plan = frontier.plan(index)
                estimate = ledger.evaluate(plan)
                if estimate.total_bytes <= limit:
                    yield estimate.seconds, estimate.total_bytes, plan
                    return

    def _of_whole_steps(self, ledger: Ledger, limit: int) -> Iterator[tuple[float, int, Plan]]:
        """The same of any whole step."""
        for point in reversed(whole_steps(ledger, self.allow, self.directory)):
            if point.nbytes <= limit:
                yield point.seconds, point.nbytes, point.plan
                return

    def _frontier(self, ledger: Ledger) -> Frontier:
        return ledger.frontier(tuple(sorted(set(self.allow) - set(WHOLE_STEP))))

    def _least(self, ledger: Ledger) -> int:
        """The least total of any plan, packed."""
        found = []
        if set(self.allow) & set(WHOLE_STEP) or ledger.asks_more:
            found += [point.nbytes for point in whole_steps(ledger, self.allow, self.directory)[:1]]
        if not ledger.asks_more:
            frontier = self._frontier(ledger)
            least = ledger.evaluate(frontier.plan(0)).total_bytes
            for index in range(1, len(frontier)):
                if frontier.nbytes[index] >= least:
                    break
                least = min(least, ledger.evaluate(frontier.plan(index)).total_bytes)
            found.append(least)
        return min(found)

    def _processes(self, ledger: Ledger, limit: int) -> int | None:
        """The least number of processes that, each within the limit, would share the work."""
        most, count = ledger.whole.groups, 2 * ledger.whole.processes
        while count <= most:
            if self._least(ledger.shared_by(count)) <= limit:
                return count
            count *= 2
        return None

    def _remedy(self, ledger: Ledger, limit: int) -> str:
        enough = self._processes(ledger, limit)
        ways = [] if enough is None else [f"{enough} processes"]
        ways += [f"allow {name!r}" for name in ALLOWED if name not in self.allow and name != "cache"]
        whole = (("update_in_backward", ledger.whole.groups), ("spill_states", ledger.whole.processes))  # each of one alone
        ways += [f"allow {name!r} (with train_step)" for name, count in whole if name not in self.allow and count == 1]
        if set(self.allow) & set(ON_DISK) and disk_for(self.allow, self.directory) is None:
            ways.append("name a directory on a disk (CLLM_SPILL_DIR)")
        ways += [f"allow {name!r} (not exact)" for name in INEXACT if name not in self.allow]
        if "micro_batch" not in self.allow and ledger.workload.batch > 1:
            ways.append("a smaller batch_size")
        if ledger.workload.optimizer in ("adam", "adamw"):
            ways.append("optimizer='sgd', which keeps no state")
        ways += ["a smaller model", *(["shorter sequences"] if ledger.workload.time is not None else [])]
        return f"Raise the limit, or lower what is needed: {', '.join(ways)}."
