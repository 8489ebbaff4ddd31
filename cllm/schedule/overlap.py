"""Spread disk traffic over the schedule, so that it runs while kernels do.

A schedule is first written with every wait right behind its start. Here waits for writes move later, and starts of
reads move earlier, as far as a window of bytes in flight allows: a value whose write has not ended still has its room,
and one that is being read has it already, so the window is what overlapping costs in memory.
"""

from collections.abc import Sequence
from typing import Any

from cllm.program.kinds import Kind

WINDOW_VALUES = 2  # the window holds the largest spilled value twice: one in flight while the next is made

Entry = tuple[int, Any]  # position in the schedule as first written, operation


def overlap_disk(entries: list[Entry], nbytes: Sequence[int]) -> list[Entry]:
    """The same operations, waits and starts moved; `nbytes` gives the size of each buffer."""
    spilled = [op for _, op in entries if op.kind == Kind.SPILL_START]
    if not spilled:
        return entries
    window = WINDOW_VALUES * max(nbytes[_source(op)] for op in spilled)
    return _fetch_early(_wait_late(entries, nbytes, window), nbytes, window)


def _wait_late(entries: list[Entry], nbytes: Sequence[int], window: int) -> list[Entry]:
    out: list[Entry] = []
    flying: list[Entry] = []

    def land() -> None:
        out.append(flying.pop(0))

    for entry in entries:
        op = entry[1]
        if op.kind == Kind.SPILL_WAIT:
            flying.append(entry)
            continue
        if op.kind == Kind.SPILL_START:
            while flying and sum(nbytes[_source(f[1])] for f in flying) + nbytes[_source(op)] > window:
                land()
        if op.kind == Kind.FETCH_START:
            while any(_target(f[1]) == _source(op) for f in flying):
                land()
        out.append(entry)
    return out + flying


def _fetch_early(entries: list[Entry], nbytes: Sequence[int], window: int) -> list[Entry]:
    starts = [e for e in entries if e[1].kind == Kind.FETCH_START]
    others = [e for e in entries if e[1].kind != Kind.FETCH_START]
    turn = next((i for i, (_, op) in enumerate(others) if op.kind in (Kind.ZERO, Kind.ACCUMULATE, Kind.BACKWARD)), len(others))
    landed = {_target(op): i for i, (_, op) in enumerate(others) if op.kind == Kind.SPILL_WAIT}
    waits = [i for i, (_, op) in enumerate(others) if op.kind == Kind.FETCH_WAIT]
    behind: dict[int, list[Entry]] = {}
    for number, entry in enumerate(starts):
        before, room = number, window
        while before and room >= nbytes[_target(starts[before][1])] + nbytes[_target(starts[before - 1][1])]:
            room -= nbytes[_target(starts[before][1])]
            before -= 1
        place = min(waits[before - 1] if before else turn - 1, waits[number] - 1)
        behind.setdefault(max(place, landed[_source(entry[1])]), []).append(entry)
    out: list[Entry] = behind.get(-1, [])
    for i, entry in enumerate(others):
        out += [entry, *behind.get(i, ())]
    return out


def _source(op) -> int:
    return dict(op.reads)["src"]


def _target(op) -> int:
    return dict(op.writes)["dst"]
