"""The memory report: folds over the schedule that runs, not an estimate beside it."""

from collections import defaultdict
from dataclasses import dataclass
from math import prod

import numpy as np

from cllm.program.declare import HANDED_ARRAYS
from cllm.program.dims import elements
from cllm.program.optimizer_states import state_parts
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import Arena
from cllm.schedule.operations import ITEMSIZES, Buffer, Schedule


def parameter_bytes(program: Program, workload: Workload) -> int:
    """Bytes of all parameters."""
    return sum(p.nbytes(workload.itemsize) for p in program.parameters.values())


def gradient_bytes(program: Program, workload: Workload) -> int:
    """Bytes of the gradients of those that are trained."""
    return sum(prod(program.parameters[name].shape) for name in program.trained) * workload.itemsize


def optimizer_bytes(program: Program, workload: Workload) -> int:
    """Bytes of the state that the workload's optimizer keeps, in each process: of those that share it, the largest part."""
    return sum(part.bytes_of(part.share(program.parameters[name].shape, workload.processes), workload.dtype)
               for name in program.trained for part in state_parts(workload.optimizer, name))


def table_bytes(program: Program, workload: Workload) -> int:
    """Bytes of the tables of constants."""
    return sum(elements(" ".join(map(str, t.shape)), {}) * ITEMSIZES[t.table.dtype or workload.dtype]
               for t in program.tables.values())


def batch_bytes(program: Program, workload: Workload, micro_batch: int) -> int:
    """Bytes of the feeds: a group's, of those that are cut a micro-batch's too, and what the executor hands in."""
    whole, micro = workload.group.letters(), workload.letters(micro_batch)
    total = sum(elements(shape, {}) * ITEMSIZES[dtype] for shape, dtype in HANDED_ARRAYS.values())
    total += len(program.kinds_of_rows) * elements(HANDED_ARRAYS["key"][0], {}) * ITEMSIZES[HANDED_ARRAYS["key"][1]]
    for feed in program.feeds.values():
        sizes = (whole, micro) if feed.is_cut else (whole,)
        total += sum(elements(feed.shape, letters) for letters in sizes) * np.dtype(feed.dtype or workload.dtype).itemsize
    return total


# What a buffer's kind is to who asks where the bytes are.
PARTS = {**dict.fromkeys(("kept", "packed", "rebuilt", "passing", "gradient", "stash", "disk"), "activations"),
         "weights": "gradients", "partial": "gradients", "states": "states", "scratch": "scratch", "message": "messages"}


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a training step needs, in bytes, known before it runs.

    Attributes
    ----------
    arena_bytes : int
        Activations, their gradients and scratch: the size of the slab, and the peak.
    parameter_bytes, gradient_bytes, optimizer_bytes, batch_bytes, table_bytes : int
        Gradients that are buffers of the arena, and states on disk, count for nothing here.
    disk_bytes, spilled_bytes : int
        On disk: of states and activations, and of activations alone.
    processes : int
        That share the work; bytes are of each.
    """

    schedule: Schedule
    arena: Arena
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    table_bytes: int
    disk_bytes: int = 0
    spilled_bytes: int = 0
    processes: int = 1

    @property
    def arena_bytes(self) -> int:
        return self.arena.nbytes

    @property
    def total_bytes(self) -> int:
        """Everything above together."""
        return (self.arena_bytes + self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes
                + self.batch_bytes + self.table_bytes)

    def timeline(self) -> list[tuple[str, int]]:
        """For each operation of one micro-batch and the epilogue: its name and the bytes alive while it runs."""
        return [(op.name, n) for op, n in zip(self.schedule.ops, self.arena.live_bytes, strict=True)]

    def timeline_by_kind(self) -> dict[str, list[int]]:
        """The timeline parted by kind of buffer: kept, packed, rebuilt, passing, gradient, ..."""
        parts = {kind: [0] * len(self.schedule.ops)
                 for kind in PARTS}
        for b in self.schedule.buffers:
            for position in range(b.first, b.last + 1):
                parts[b.kind][position] += b.nbytes
        return parts

    @property
    def peak(self) -> int:
        """Position of the operation during which most bytes are alive."""
        return max(range(len(self.arena.live_bytes)), key=self.arena.live_bytes.__getitem__)

    def alive_at_peak(self) -> list[tuple[str, int | None, str, int]]:
        """Every buffer that is alive at the peak: (site, block or None outside blocks, kind, bytes), largest first."""
        rows = [(_site(b), b.block, b.kind, b.nbytes) for b in self.schedule.buffers
                if b.first <= self.peak <= b.last]
        return sorted(rows, key=lambda row: (-row[3], row[0], -1 if row[1] is None else row[1]))

    def at_peak(self) -> list[tuple[str, str, int, int]]:
        """What is alive at the peak: (site, kind, how many, bytes), largest first; blocks are folded together."""
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for site, _block, kind, nbytes in self.alive_at_peak():
            found[site, kind].append(nbytes)
        rows = [(site, kind, len(sizes), sum(sizes)) for (site, kind), sizes in found.items()]
        return sorted(rows, key=lambda row: (-row[3], row[0]))

    def parts(self) -> list[tuple[str, int, int]]:
        """Where every byte is, at the peak: (what, bytes in memory, bytes on disk); their sums are the total and what is on
        disk. What packing leaves empty at the peak is a part of its own."""
        arena = dict.fromkeys(PARTS.values(), 0)
        for _site, _block, kind, nbytes in self.alive_at_peak():
            arena[PARTS[kind]] += nbytes
        states_on_disk = self.disk_bytes - self.spilled_bytes
        return [("weights", self.parameter_bytes, 0), ("gradients", self.gradient_bytes + arena["gradients"], 0),
                ("states", self.optimizer_bytes + arena["states"], states_on_disk),
                ("activations", arena["activations"], self.spilled_bytes), ("scratch", arena["scratch"], 0),
                *([("messages", arena["messages"], 0)] if self.processes > 1 else []),
                ("between buffers", self.arena_bytes - sum(arena.values()), 0),
                ("batch and tables", self.batch_bytes + self.table_bytes, 0)]

    def table(self) -> str:
        """The report in words: what is alive at the peak by site, then the totals."""
        rows = [(site, kind, str(count), f"{nbytes:,}") for site, kind, count, nbytes in self.at_peak()]
        rows.insert(0, ("alive at the peak", "kind", "count", "bytes"))
        totals = [("arena", self.arena_bytes), ("parameters", self.parameter_bytes), ("gradients", self.gradient_bytes),
                  ("optimizer", self.optimizer_bytes), ("batch", self.batch_bytes), ("tables", self.table_bytes),
                  ("total", self.total_bytes)]
        rows += [(name, "", "", f"{nbytes:,}") for name, nbytes in totals]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        peak = self.schedule.ops[self.peak].name
        groups = f" in each of {self.schedule.n_groups} groups" if self.schedule.n_groups > 1 else ""
        lines.insert(0, f"peak during {peak}, micro-batch {self.schedule.micro_batch}, {self.schedule.n_micro} of them{groups}")
        return "\n".join(lines)


def report(program: Program, workload: Workload, schedule: Schedule, arena: Arena) -> MemoryReport:
    """The report of a schedule and its arena."""
    states, on_disk = optimizer_bytes(program, workload), schedule.states_on_disk
    in_arena = schedule.updates_in_backward or workload.processes > 1
    return MemoryReport(schedule, arena, parameter_bytes(program, workload),
                        0 if in_arena else gradient_bytes(program, workload), 0 if on_disk else states,
                        batch_bytes(program, workload, schedule.micro_batch), table_bytes(program, workload),
                        (spilled := spilled_bytes(schedule, workload)) + (states if on_disk else 0), spilled,
                        workload.processes)


def spilled_bytes(schedule: Schedule, workload: Workload) -> int:
    """Bytes on disk of the activations that a schedule spills."""
    letters = {**workload.letters(schedule.micro_batch), "R": schedule.loss_rows}
    return sum(elements(b.shape, letters) * ITEMSIZES[b.dtype] for b in schedule.buffers if b.kind == "disk")


def _site(buffer: Buffer) -> str:
    """Its label, the same for every block."""
    return buffer.label if buffer.block is None else buffer.label.replace(f"blocks.{buffer.block}.", "blocks.*.")
