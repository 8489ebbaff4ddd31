"""Gradients of parameters as buffers, from the first operation that adds to one to the last that needs it."""

from collections.abc import Iterator, Sequence
from math import prod

from cllm.program.declare import Flow
from cllm.program.dims import aligned
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.finish import DraftBuffer, DraftOp


class GradientBuffers:
    """A buffer for the gradient of each trained parameter, appended to `buffers`.

    Parameters
    ----------
    ops : sequence of DraftOp
        Forward and backward.
    least : int
        Position that is the last at the earliest.
    reads : bool
        Whether an operation that reads the parameter needs its gradient where it is.

    Attributes
    ----------
    of : dict
        Buffer by the parameter's name.
    first : dict
        Position of the first operation that adds to it; nothing adds to those that are missing.
    last : dict
        Position of the last that needs it.
    """

    def __init__(self, program: Program, workload: Workload, buffers: list[DraftBuffer], ops: Sequence[DraftOp], least: int,
                 reads: bool):
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = dict.fromkeys(program.trained, least)
        for i, op in enumerate(ops):
            for name, written in _parameters_of(op):
                if written or reads:
                    self.last[name] = max(self.last[name], i)
                if written:
                    self.first.setdefault(name, i)
        self.of: dict[str, int] = {}
        for name in program.trained:
            shape = program.parameters[name].shape
            nbytes = aligned(prod(shape) * workload.itemsize)
            self.of[name] = len(buffers)
            buffers.append(DraftBuffer(f"d({name})", " ".join(map(str, shape)), workload.dtype, nbytes, "weights",
                                       ops[self.last[name]].step.block, True, ""))

    def begins(self) -> dict[int, list[str]]:
        """By position, those to which the operation there is the first to add."""
        return _by_position({name: self.first[name] for name in self.last if name in self.first})

    def ends(self) -> dict[int, list[str]]:
        """By position, those that the operation there is the last to need."""
        return _by_position(self.last)

    def added_by(self, op: DraftOp) -> DraftOp:
        """The operation, with the buffers to which it adds, by the names that its method has for them."""
        flow = _flow(op)
        if flow is None:
            return op
        mine = [("d" + own, self.of[name]) for own, name in op.step.params.items()
                if own not in op.step.frozen and "d" + own in flow.writes]
        return op._replace(writes=(*op.writes, *mine))


def _parameters_of(op: DraftOp) -> Iterator[tuple[str, bool]]:
    """The trained parameters that an operation reads, and those to whose gradient it adds, with whether it does."""
    flow = _flow(op)
    for own, name in op.step.params.items() if flow is not None else ():
        if own not in op.step.frozen and {own, "d" + own} & {*flow.reads, *flow.writes}:
            yield name, "d" + own in flow.writes


def _flow(op: DraftOp) -> Flow | None:
    """The data flow of the method that an operation calls; None where it calls none."""
    if op.kind in (Kind.ACCUMULATE, Kind.BACKWARD):
        return op.step.flow(op.kind)
    return getattr(op.step.layer, op.kind.method + "_flow") if op.kind.method else None


def _by_position(positions: dict[str, int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, position in positions.items():
        found.setdefault(position, []).append(name)
    return found
