"""One frontier over all that a whole step may do: what is kept, cut or rebuilt, where gradients and states live, what goes to
disk.

Plans of activations come from the frontier of `cllm.planner`, evenly spread over it, and from `Spill`; each is tried with every
way to keep gradients and states. What each costs is read off its schedule, packed, so bytes are exact and seconds are those
that the plan is shown with; what another beats in both is dropped. Nothing here depends on a limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from shutil import disk_usage

from cllm.errors import SpillError
from cllm.planner.disks import SPARE_BYTES, check_directory, usual_directory
from cllm.planner.frontier import micro_batches
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.spill import Spill

WHOLE_STEP = ("update_in_backward", "spill_states", "spill")
ON_DISK = ("spill_states", "spill")
MOST = ((24, 24), (64, 12), (1 << 62, 6))  # plans of activations that are tried with each way, by the number of blocks


@dataclass(frozen=True, slots=True)
class Point:
    """A plan, and what it costs."""

    plan: Plan
    nbytes: int
    seconds: float
    disk_bytes: int


def whole_steps(ledger: Ledger, allow: tuple[str, ...], directory: str | None) -> list[Point]:
    """The frontier: bytes rising, seconds falling. Plans that need more room on disk than there is are left out.

    Parameters
    ----------
    allow : tuple of str
        As of `MemoryBudget`.
    directory : str or None
        For what goes to disk; None takes the usual one, or does without where that is in memory.

    Raises
    ------
    SpillError
        When the directory is named and cannot be used.
    """
    place = disk_for(allow, directory)
    allow = allow if place is not None else tuple(name for name in allow if name not in ON_DISK)
    key = tuple(sorted(allow)), place, tuple(sorted(ledger.asked.items()))
    if key not in ledger.whole_steps:
        ledger.whole_steps[key] = [Point(plan, *ledger.price(plan)) for plan in dict.fromkeys(_plans(ledger, allow, place))]
    room = 0 if place is None else disk_usage(place).free - SPARE_BYTES
    return _unbeaten([point for point in ledger.whole_steps[key] if not point.disk_bytes or point.disk_bytes <= room
                      or ledger.asked.get("states")])


def disk_for(allow: tuple[str, ...], directory: str | None) -> str | None:
    """The directory for what goes to disk; None where nothing may, or the usual one is in memory.

    Raises
    ------
    SpillError
        When the directory is named and cannot be used.
    """
    if not set(allow) & set(ON_DISK):
        return None
    place = usual_directory() if directory is None else directory
    try:
        check_directory("MemoryBudget(directory=...)", place, 0)
    except SpillError:
        if directory is not None:
            raise
        return None
    return place


def _plans(ledger: Ledger, allow: tuple[str, ...], place: str | None) -> Iterator[Plan]:
    batch = ledger.workload.batch
    updates = (False, True) if "update_in_backward" in allow else (False,)
    states = ("memory", f"disk:{place}") if "spill_states" in allow and ledger.has_states else ("memory",)
    updates, states = ((ledger.asked[name],) if name in ledger.asked else usual
                       for name, usual in (("update_in_backward", updates), ("states", states)))
    inside = tuple(sorted(set(allow) - set(WHOLE_STEP)))
    for update, where in product(updates, states):
        allowed = tuple(name for name in inside if name != "micro_batch") if update else inside
        frontier = ledger.frontier(allowed)
        most = next(count for blocks, count in MOST if ledger.n_blocks <= blocks)
        count = min(most, len(frontier))
        plans = [frontier.plan(round(i * (len(frontier) - 1) / max(1, count - 1))) for i in range(count)]
        if "spill" in allow and ledger.n_blocks > 1:
            cuts = micro_batches(batch) if "micro_batch" in allowed else (batch,)
            plans += [Spill(place, micro_batch=cut).decide(ledger) for cut in {cuts[0], cuts[len(cuts) // 2], cuts[-1]}]
        for plan in plans:
            yield replace(plan, update_in_backward=update, states=where)


def _unbeaten(points: list[Point]) -> list[Point]:
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nbytes, p.seconds)):
        if not found or point.seconds < found[-1].seconds:
            found.append(point)
    return found
