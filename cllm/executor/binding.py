"""From an operation to a call: arrays are cut from the slab once, and checked once, when an executor is made."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod

import numpy as np

from cllm import _kernels as kernels
from cllm.executor.feeds import key_name
from cllm.executor.spilling import SpillFile
from cllm.executor.updating import Updating
from cllm.program.declare import HANDED
from cllm.program.dims import resolve
from cllm.program.kinds import DISK, Kind
from cllm.program.parts import Step
from cllm.schedule.arena import Arena
from cllm.schedule.compression import compress_call, expand_call, round_call, stream_of
from cllm.schedule.operations import ITEMSIZES, Buffer, Op, Schedule, storage

Arrays = Mapping[str, np.ndarray]
Call = Callable[[], None]


class Binder:
    """Makes calls for the operations of one schedule.

    Parameters
    ----------
    schedule, arena : Schedule, Arena
    slab : array of bytes
        At least `arena.nbytes` long.
    letters : dict
        Shape letters of the micro-batch to bind for; a smaller last one uses the first part of each buffer.
    whole_letters : dict
        Those of a group: of the whole batch, unless it is cut into several.
    parameters, tables, gradients : arrays by name
        `gradients` is empty for a schedule without backward.
    feeds, whole_feeds : arrays by name
        A feed that is missing is bound to None.
    spill : SpillFile or None
        Needed by schedules that spill.
    updating : Updating or None
        Needed by schedules of a whole step.
    """

    def __init__(self, schedule: Schedule, arena: Arena, slab: np.ndarray, letters: Mapping[str, int],
                 whole_letters: Mapping[str, int], parameters: Arrays, tables: Arrays, gradients: Arrays,
                 feeds: Arrays, whole_feeds: Arrays, spill: SpillFile | None = None,
                 updating: Updating | None = None):
        self.schedule, self.arena, self.slab = schedule, arena, slab
        self.letters, self.whole_letters = letters, whole_letters
        self.parameters, self.tables, self.gradients = parameters, tables, gradients
        self.feeds, self.whole_feeds = feeds, whole_feeds
        self.spill, self.updating = spill, updating

    def array(self, buffer: Buffer) -> np.ndarray:
        """The buffer as an array of its shape."""
        shape = resolve(buffer.shape, self.whole_letters if buffer.whole else self.letters)
        start = self.arena.offsets[buffer.index]
        nbytes = prod(shape) * ITEMSIZES[buffer.dtype]
        return self.slab[start:start + nbytes].view(storage(buffer.dtype)).reshape(shape)

    def call(self, op: Op) -> Call:
        """What the operation does, ready to be called."""
        arrays = {name: self.array(self.schedule.buffers[b]) for name, b in (*op.reads, *op.writes)
                  if self.schedule.buffers[b].kind != "disk"}
        if op.kind.once:
            return self.updating.call(op, arrays)
        if op.kind == Kind.ZERO:
            return partial(kernels.fill_zero, x=kernels.ArrayList([arrays["dst"]]))
        if op.kind == Kind.ADD:
            return partial(kernels.add_in_place, arrays["src"].reshape(-1), y=arrays["dst"].reshape(-1))
        if op.kind == Kind.COPY:
            return partial(np.copyto, arrays["dst"], arrays["src"])
        if op.kind in (Kind.COMPRESS, Kind.EXPAND):
            return (compress_call if op.kind == Kind.COMPRESS else expand_call)(arrays["src"], arrays["dst"], self.letters["B"])
        if op.kind == Kind.ROUND:
            value = self.schedule.buffers[dict(op.reads)["src"]].value
            stream = stream_of(op.step.index, list(op.step.outputs.values()).index(value))
            rows = "B" if key_name("B") in self.feeds else "N"  # which of them makes no difference where N divides the value
            return round_call(arrays["src"], arrays["dst"], self.letters["B"], self.letters[rows],
                              self.feeds[key_name(rows)], stream)
        if op.kind in DISK:
            return self._spill(op, arrays)
        if op.kind == Kind.STASH:
            return partial(_stash, arrays["src"], arrays["dst"], self.feeds["key"], self.whole_letters["N"])
        layer = op.step.layer
        letters = self.whole_letters if op.whole else self.letters
        for own, array in arrays.items():
            if shape := op.step.shape_of(own):
                arrays[own] = array.reshape(resolve(shape, letters))
        method, flow = getattr(layer, op.kind.method), getattr(layer, op.kind.method + "_flow")
        feeds = self.whole_feeds if op.whole else self.feeds
        reads = [_read_only(self._argument(name, arrays, op.step, feeds, letters)) for name in flow.reads]
        writes = {name: self._argument(name, arrays, op.step, feeds, letters) for name in flow.writes}
        scratch = [arrays[name] for name, b in op.writes if self.schedule.buffers[b].kind == "scratch"]
        return kernels.BoundCall(method, reads, writes, scratch)

    def _spill(self, op: Op, arrays: Arrays) -> Call:
        way = "write" if op.kind in (Kind.SPILL_START, Kind.SPILL_WAIT) else "read"
        disk = next(b for _, b in (*op.reads, *op.writes) if self.schedule.buffers[b].kind == "disk")
        if op.kind in (Kind.SPILL_WAIT, Kind.FETCH_WAIT):
            return self.spill.wait_call(way, disk)
        start = self.spill.write_call if way == "write" else self.spill.read_call
        return start(disk, next(iter(arrays.values())))

    def poisoned(self, calls: list[Call]) -> list[Call]:
        """The same calls, each followed by NaN over what it frees, so that a read of freed memory shows."""
        return [partial(_then_poison, call, [self.bytes(self.schedule.buffers[b]) for b in op.frees])
                for call, op in zip(calls, self.schedule.ops, strict=True)]

    def bytes(self, buffer: Buffer) -> np.ndarray:
        """All bytes of the buffer's place in the slab."""
        start = self.arena.offsets[buffer.index]
        return self.slab[start:start + buffer.nbytes]

    def _argument(self, name: str, arrays: Arrays, step: Step, feeds: Arrays,
                  letters: Mapping[str, int]) -> np.ndarray | int | None:
        if name in arrays:
            return arrays[name]
        if name == "sequence_rows":
            return step.letters(letters)["N"] // letters["B"]
        if name in HANDED:
            return feeds.get(key_name(step.rows) if name == "key" else name)
        if name in step.feeds:
            array = feeds.get(step.feeds[name])
            return None if array is None else array.reshape(resolve(step.shapes[name], letters))
        if name in step.params:
            return self.parameters[step.params[name]]
        if name in step.tables:
            return self.tables[step.tables[name]]
        if name[1:] in step.params and name[0] == "d":
            return None if name[1:] in step.frozen else self.gradients[step.params[name[1:]]]
        return None


def _read_only(array: np.ndarray | int | None) -> np.ndarray | int | None:
    """A view through which nothing can be written: what a method reads it cannot change. What is stored is so already."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array


def _then_poison(call: Call, freed: list[np.ndarray]) -> None:
    call()
    for place in freed:
        place.fill(0xFF)  # every float of these bytes is NaN


def _stash(src: np.ndarray, dst: np.ndarray, key: np.ndarray, rows: int) -> None:
    """A micro-batch into its place in its group, which has so many rows."""
    first = int(key[2]) % rows * len(dst) // rows
    dst[first:first + len(src)] = src
