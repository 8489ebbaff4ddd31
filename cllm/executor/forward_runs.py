"""Forward alone, without gradients, dropout or kept activations: for a loss, for logits, for a look at every value."""

from collections.abc import Iterator

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import aligned_empty, widened
from cllm.executor.binding import Binder, Call
from cllm.executor.feeds import Feeds
from cllm.executor.groups import Groups
from cllm.models.model import Model
from cllm.plans.plan import Plan
from cllm.program.dims import NARROW, resolve
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import Arena, lay_out
from cllm.schedule.build import Schedule, build_schedule


class ForwardRuns:
    """Runs of a model's forward, over the batch that the feeds hold.

    Parameters
    ----------
    model : Model
    program : Program
        The model's, or a form of it.
    workload : Workload
    plan : Plan
        Its micro-batch and rows of the head.
    slab : array of bytes
        That of training. A forward schedule lies in it, or in one of its own should it be too small.
    feeds : Feeds
    groups : Groups
    """

    def __init__(self, model: Model, program: Program, workload: Workload, plan: Plan, slab: np.ndarray, feeds: Feeds,
                 groups: Groups):
        self._model, self._program, self._workload, self._plan = model, program, workload.group, plan
        self._n_groups, self._groups = workload.groups, groups
        self._slab, self._feeds = slab, feeds
        self._schedules: dict[str, tuple[Schedule, Arena, np.ndarray]] = {}
        self._bound: dict[tuple[str, int], tuple[Binder, list[Call]]] = {}

    def loss(self) -> float:
        """The sum of the losses of all targets."""
        sums = []
        for group in self._groups.own:
            self._feeds.begin(group)
            for start, size in self._feeds.cuts():
                self._feeds.place(start, size)
                _, calls = self._bind("loss", size)
                kernels.call_each(calls)
            sums.append(float(self._feeds.part["loss"][0]))
        return self._groups.total(sums)

    def logits(self) -> np.ndarray:
        """What the head's forward makes of the whole batch; a first axis of N rows becomes B and T."""
        head, group = self._program.head, self._workload.batch
        letters = self._workload.letters(group * self._n_groups)
        shape = self._program.values[head.output].shape
        by_row = shape.startswith("N")
        out = np.empty(resolve(shape, letters), self._workload.dtype)
        for number, start, size in ((n, *cut) for n in range(self._n_groups) for cut in self._feeds.cuts()):
            if not start:
                self._feeds.begin(number)
            self._feeds.place(start, size)
            _, (*calls, last) = self._bind("logits", size)
            kernels.call_each(calls)
            first, stop = (self._workload.rows(number * group + n) if by_row else number * group + n
                           for n in (start, start + size))
            mine = resolve(head.shapes[head.layer.output], self._workload.letters(size))
            last.writing(**{head.layer.output: out[first:stop].reshape(mine)})()
        return out.reshape(resolve(f"B T{shape[1:]}", letters)) if by_row and "T" in letters else out

    def values(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every value that forward makes of this process's groups, by name, at the moment when it has been made."""
        for group, start, size in ((group, *cut) for group in self._groups.own for cut in self._feeds.cuts()):
            if not start:
                self._feeds.begin(group)
            self._feeds.place(start, size)
            binder, calls = self._bind("loss", size)
            for op, call in zip(binder.schedule.ops, calls, strict=True):
                call()
                for _, b in op.writes:
                    buffer = binder.schedule.buffers[b]
                    if buffer.kind != "scratch":
                        array = binder.array(buffer)
                        yield buffer.label, widened(array) if buffer.dtype == NARROW else array

    def _bind(self, mode: str, size: int) -> tuple[Binder, list[Call]]:
        """The calls for micro-batches of `size` sequences, made at first use."""
        if (mode, size) not in self._bound:
            schedule, arena, slab = self._schedule(mode)
            feeds = {name: array for name, array in self._feeds.of(size).items() if name not in self._feeds.keys}
            rows = {"R": schedule.loss_rows}
            binder = Binder(schedule, arena, slab, self._workload.letters(size) | rows, self._workload.letters() | rows,
                            self._model.parameters, self._model.tables, {}, feeds, self._feeds.whole)
            self._bound[mode, size] = binder, [binder.call(op) for op in schedule.ops]
        return self._bound[mode, size]

    def _schedule(self, mode: str) -> tuple[Schedule, Arena, np.ndarray]:
        if mode not in self._schedules:
            schedule = build_schedule(self._program, self._workload, self._plan, mode)
            arena = lay_out(schedule)
            fits = arena.nbytes <= len(self._slab)
            self._schedules[mode] = schedule, arena, self._slab if fits else aligned_empty(arena.nbytes, np.uint8)
        return self._schedules[mode]

