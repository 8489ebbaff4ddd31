"""What takes part: every strategy at every limit, or at every setting of its own, as plans; none twice."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, log2

from cllm.errors import CllmError, ConfigError
from cllm.planner.ledger import Ledger
from cllm.planning import decide
from cllm.plans.plan import Plan
from cllm.strategies import STRATEGIES, parse

UNDER_A_LIMIT = ("budget", "rotor", "dtr", "chen", "checkmate")
SOLVED = 40  # steps of a program up to which Checkmate takes part unless it is asked for by name
MEGABYTE_PARTS = 100  # names of limits are in hundredths of an MB
KINDS = ("cache", "selective", "recompute", "every", "binomial", "korthikanti", "products", "knapsack", *UNDER_A_LIMIT)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A strategy at one setting.

    Attributes
    ----------
    kind, name : str
        The word before the colon; the whole name, such as ``rotor:400.00MB``.
    plan : Plan or None
        None where it was refused, or runs what another runs.
    refused : str or None
        Why.
    same_as : str or None
        Name of the one that runs the same operations.
    limit : int or None
        In bytes, where it was asked to keep one.
    """

    kind: str
    name: str
    plan: Plan | None = None
    refused: str | None = None
    same_as: str | None = None
    limit: int | None = None


def limits_of(ledger: Ledger, count: int) -> list[int]:
    """So many limits of total bytes, evenly from the least of the planner's curve to what keeping everything takes."""
    frontier = ledger.frontier(("cache", "micro_batch", "recompute"))
    least = ledger.evaluate(frontier.plan(0)).total_bytes
    most = max(least, ledger.evaluate(parse("cache").decide(ledger)).total_bytes)
    part = 1_000_000 // MEGABYTE_PARTS
    return [ceil((least + (most - least) * n / max(1, count - 1)) / part) * part for n in range(count)]


def names_of(ledger: Ledger, kind: str, limits: Iterable[int]) -> dict[str, int | None]:
    """The settings at which a kind takes part: name and limit."""
    if kind in UNDER_A_LIMIT:
        return {f"{kind}:{limit / 1e6:.2f}MB": limit for limit in limits}
    blocks, batch = ledger.n_blocks, ledger.workload.batch
    cuts = [batch // 2 ** n for n in range(1, batch.bit_length()) if batch // 2 ** n]
    settings = {
        "cache": ["", *(f"@{cut}" for cut in cuts)], "recompute": ["", *(f"@{cut}" for cut in cuts[-1:])],
        "selective": ["", ":norm", ":norm+act+attn", ":norm+act+mlp"],
        "every": [f":{n}" for n in (2, 3, 4, 6, 8) if n < blocks],
        "binomial": [f":{n}" for n in dict.fromkeys((1, 2, 3, ceil(log2(blocks)) if blocks > 1 else 1)) if n <= blocks],
        "knapsack": [f":{share}" for share in (0, 0.25, 0.5, 0.75)]}
    return {f"{kind}{text}": None for text in settings.get(kind, [""])}


def contestants(ledger: Ledger, kinds: Iterable[str], limits: Iterable[int],
                more: Mapping[str, object] | None = None) -> list[Contestant]:
    """Every kind at all of its settings, then strategies of the user's by label.

    Raises
    ------
    ConfigError
        When a kind is unknown.
    """
    asked: list[tuple[str, str, object, int | None]] = []
    for kind in kinds:
        if kind not in STRATEGIES:
            raise ConfigError("strategies", f"must be among {', '.join(KINDS)}", repr(kind), "Check the spelling.")
        asked += [(kind, name, name, limit) for name, limit in names_of(ledger, kind, limits).items()]
    asked += [(label, label, strategy, None) for label, strategy in (more or {}).items()]
    made, seen = [], {}
    for kind, name, strategy, limit in asked:
        try:
            plan = decide(strategy, ledger)
        except CllmError as error:
            made.append(Contestant(kind, name, refused=str(error), limit=limit))
            continue
        key = _runs(ledger, plan)
        if key in seen:
            made.append(Contestant(kind, name, same_as=seen[key], limit=limit))
        else:
            seen[key] = name
            made.append(Contestant(kind, name, plan, limit=limit))
    return made


def _runs(ledger: Ledger, plan: Plan) -> tuple:
    """What a plan runs: equal for plans whose steps are the same operations on buffers of the same places."""
    schedule, _ = ledger.build(plan)
    return (schedule.micro_batch, schedule.loss_rows, plan.spill_directory,
            tuple((op.kind, op.step.index, op.reads, op.writes, op.frees) for op in schedule.ops))
