"""The fastest plan whose total bytes stay within a limit, or a refusal."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from cllm.errors import BudgetError, ConfigError
from cllm.planner.free_memory import free_bytes
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.schedule.compression import PACKED

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
ALLOWED = ("cache", "recompute", "micro_batch")
INEXACT = PACKED
_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMG]?I?B)\s*\Z", re.IGNORECASE)


def parse_limit(limit: int | str) -> int:
    """Bytes of an int, "500MB" (10^6), "512MiB" (2^20) or "auto" (what the machine, its cgroup and its
    resource limits leave free, less a margin).

    Raises
    ------
    ConfigError
        When it is none of these.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return limit
    if limit == "auto":
        return free_bytes()
    match = _SIZE.match(limit) if isinstance(limit, str) else None
    nbytes = int(Fraction(match[1]) * UNITS.get(match[2].upper(), 0)) if match else 0
    if not nbytes:
        raise ConfigError("MemoryBudget(limit)", "must be a number of bytes, a size such as '500MB' or '512MiB', or 'auto'",
                          repr(limit), "Write for example MemoryBudget('1GB').")
    return nbytes


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
    max_grad_error : float or None
        Most that the gradient may be off, relative, in the Euclidean norm. It takes a batch to know that:
        `cllm.plan_within_error` plans with such a budget.
    """

    limit: int | str
    allow: tuple[str, ...] = ALLOWED
    max_grad_error: float | None = None

    def __post_init__(self):
        if self.limit != "auto":
            parse_limit(self.limit)
        if not isinstance(self.allow, (tuple, list)) or not all(name in (*ALLOWED, *INEXACT) for name in self.allow):
            raise ConfigError("MemoryBudget(allow=...)", f"must be a tuple of names among {', '.join((*ALLOWED, *INEXACT))}",
                              repr(self.allow), "Leave out what must not be decided.")
        bound = self.max_grad_error
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 <= bound < inf):
            raise ConfigError("MemoryBudget(max_grad_error=...)", "must be None or a number from 0", repr(bound),
                              "Write for example max_grad_error=1e-2.")

    def decide(self, ledger: Ledger) -> Plan:
        if self.max_grad_error is not None and any(name in INEXACT for name in self.allow):
            raise ConfigError("MemoryBudget(max_grad_error=...)", "needs a batch on which to measure the error",
                              "a plan without one", "Make the plan with cllm.plan_within_error(model, tokens, targets, budget) "
                              "and pass it as the strategy.")
        limit = parse_limit(self.limit)
        frontier = ledger.frontier(tuple(sorted(self.allow)))
        for index in reversed(range(len(frontier))):
            if frontier.nbytes[index] <= limit:
                plan = frontier.plan(index)
                if ledger.evaluate(plan).total_bytes <= limit:
                    return replace(plan, limit=limit)
        raise BudgetError("MemoryBudget(limit)", f"must be at least {self._least(ledger, frontier):,} bytes for this workload",
                          f"{limit:,}" + (", which is what 'auto' found free" if self.limit == "auto" else ""),
                          self._remedy(ledger))

    def _least(self, ledger: Ledger, frontier) -> int:
        """The least total of any plan on the frontier, packed."""
        least = ledger.evaluate(frontier.plan(0)).total_bytes
        for index in range(1, len(frontier)):
            if frontier.nbytes[index] >= least:
                break
            least = min(least, ledger.evaluate(frontier.plan(index)).total_bytes)
        return least

    def _remedy(self, ledger: Ledger) -> str:
        ways = [f"allow {name!r}" for name in ALLOWED if name not in self.allow and name != "cache"]
        ways += [f"allow {name!r} (not exact)" for name in INEXACT if name not in self.allow]
        if "micro_batch" not in self.allow and ledger.workload.batch > 1:
            ways.append("a smaller batch_size")
        if ledger.workload.optimizer in ("adam", "adamw"):
            ways.append("optimizer='sgd', which keeps no state")
        ways += ["a smaller model", *(["shorter sequences"] if ledger.workload.time is not None else [])]
        return f"Raise the limit, or lower what is needed: {', '.join(ways)}."
