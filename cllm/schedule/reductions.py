"""What becomes of the gradients of groups, added to the operations of forward and backward of one of them.

A group's gradient is a buffer like others, from zero. After the last operation that adds to it, it is added to those of the
groups before, in the order of a binary tree: the first group's is kept as a partial sum, the second's added to it, the third's
kept, the fourth's added to it and both to the sum of the first two, and so on, so a partial sum for each level of the tree is
enough. The last group's completes the sum:

    zero d(w) | accumulate d(w), ... | reduce w          of each group

With several processes, each goes through its own groups so. In the last one the tree goes on between processes: neighbours
swap halves of their sums and add what comes to what they keep, then neighbours of pairs swap halves of these. Each is
left with its part of the whole sum, by which it updates its part of the parameter:

    reduce w | clip all | update part of w | gather all
"""

from math import prod

from cllm.program.dims import aligned
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.shards import largest
from cllm.program.workload import Workload
from cllm.schedule.finish import DraftBuffer, DraftOp
from cllm.schedule.gradients import GradientBuffers

MESSAGE = 1 << 20  # elements that are sent at a time: it bounds the room for what comes, and 4 MB are as quick as all at once


class Reductions:
    """Adds reductions to a schedule.

    Parameters
    ----------
    workload : Workload
        The whole one.
    buffers : list of DraftBuffer
        Those of gradients, partial sums and messages are appended.
    n_micro : int
        Micro-batches of a group.

    Attributes
    ----------
    sums : dict
        Buffer of a process's part of the sum by the parameter's name, in a whole step of several processes.
    """

    def __init__(self, program: Program, workload: Workload, buffers: list[DraftBuffer], n_micro: int):
        self.program, self.workload, self.buffers, self.n_micro = program, workload, buffers, n_micro
        self.head = program.steps[-1]
        self.sums: dict[str, int] = {}

    def add(self, ops: list[DraftOp], epilogue: int, whole_step: bool) -> tuple[list[DraftOp], int, int]:
        """The operations with the reductions among them, the number of those of the prologue, the position of the epilogue."""
        cut = self.n_micro > 1
        gradients = GradientBuffers(self.program, self.workload, self.buffers, ops, epilogue - 1 if cut else 0, reads=False)
        rooms = {name: self._room(name) for name in self.program.trained}
        if whole_step and self.workload.processes > 1:  # the last: without them the others have the same places
            self.sums = {name: self._buffer(f"sum of d({name})", "weights", largest(size, self.workload.processes))
                         for name, size in self._sizes().items()}
        begins, ends = gradients.begins(), gradients.ends()
        zeros = [self._op(Kind.ZERO_GRADIENT, (), [("gradient", b)], name) for name, b in gradients.of.items()]
        out = zeros if cut else [zero for zero in zeros if zero.params[0] not in gradients.first]
        before = len(out) if cut else 0
        start = epilogue
        for i, op in enumerate(ops):
            if not cut:
                out += [zero for name in begins.get(i, ()) for zero in zeros if zero.params == (name,)]
            out.append(gradients.added_by(op))
            if cut and i == epilogue - 1:
                start = len(out)
            for name in ends.get(i, ()):
                gradient = ("gradient", gradients.of[name])
                mine = [("sum", self.sums[name])] if name in self.sums else []
                out.append(self._op(Kind.REDUCE, [gradient, *rooms[name]], [gradient, *rooms[name], *mine], name))
        return out, before, start if cut else len(out)

    def _room(self, name: str) -> list[tuple[str, int]]:
        """Buffers of partial sums, one a level, and of what other processes send."""
        size, work = self._sizes()[name], self.workload
        levels = work.own_groups.bit_length() - 1
        found = [(f"partial {level}", self._buffer(f"sum of d({name}) over {1 << level}", "partial", size))
                 for level in range(levels)]
        if work.processes > 1:
            found.append(("message", self._buffer(f"message of d({name})", "message", min(MESSAGE, size))))
        return found

    def _sizes(self) -> dict[str, int]:
        return {name: prod(self.program.parameters[name].shape) for name in self.program.trained}

    def _buffer(self, label: str, kind: str, size: int) -> int:
        work = self.workload
        self.buffers.append(DraftBuffer(label, str(size), work.dtype, aligned(size * work.itemsize), kind, None, True, ""))
        return len(self.buffers) - 1

    def _op(self, kind: Kind, reads, writes, name: str) -> DraftOp:
        return DraftOp(kind, self.head, tuple(reads), tuple(writes), False, (name,))
