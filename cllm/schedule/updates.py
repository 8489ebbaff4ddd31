"""What a whole step does to parameters, added to the operations of forward and backward.

Where gradients are kept, all are clipped and used after the last micro-batch:

    forward, backward ... | clip all | update all

Where parameters are updated in backward, a gradient is a buffer like others. It lives from the first operation that adds to it
to the update, which comes after the last that adds to it or reads the parameter:

    ... zero d(w), accumulate d(w), backward (reads w), clip d(w), update w ...

Where the optimizer's states are on disk, an array is updated piece by piece, and each piece has a window: room for its
states, loaded while earlier work runs and stored while later work does. Pieces are as many elements at most as make little
of the room, and of the time that nothing hides.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from cllm.program.dims import aligned
from cllm.program.kinds import Kind
from cllm.program.optimizer_states import Part, piece_elements, state_parts
from cllm.program.parts import Step
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.finish import DraftBuffer, DraftOp
from cllm.schedule.gradients import GradientBuffers

PIECE = 1 << 20  # elements of an array that are updated at a time where states are on disk: transfers of some MiB are as quick
#                  as longer ones (profiling/disk.py)
AHEAD = 2  # windows of the largest piece that may be loading, beside the one at work,
BEHIND = 1  # and storing
EARLY = 4  # operations before the first update, when the first load begins


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a parameter that are updated at a time, and the bytes of their states."""

    name: str
    start: int
    stop: int
    nbytes: int


def state_pieces(program: Program, workload: Workload) -> dict[str, list[Piece]]:
    """The pieces of each parameter."""
    found = {}
    for name in program.trained:
        shape, parts = program.parameters[name].shape, state_parts(workload.optimizer, name)
        size, most = prod(shape), piece_elements(parts, shape, PIECE)
        cuts = [(start, min(start + most, size)) for start in range(0, size, most)]
        found[name] = [Piece(name, *cut, _bytes_of(parts, shape, *cut, workload.dtype)) for cut in cuts]
    return found


def _bytes_of(parts: tuple[Part, ...], shape: tuple[int, ...], start: int, stop: int, dtype: str) -> int:
    """Of the states that belong to a run of elements."""
    cuts = [(part, part.cut(shape, start, stop)) for part in parts]
    return sum(part.bytes_of(cut.stop - cut.start, dtype) for part, cut in cuts)


class Updates:
    """Adds operations on parameters to a schedule.

    Parameters
    ----------
    buffers : list of DraftBuffer
        Those of gradients and windows are appended.
    in_backward, on_disk : bool
        Whether parameters are updated in backward; whether states are on disk.
    n_micro : int
        1 where parameters are updated in backward.
    sums : dict
        Buffers of parts of gradients by the parameter's name, where each of several processes updates its part.
    """

    def __init__(self, program: Program, workload: Workload, buffers: list[DraftBuffer], in_backward: bool, on_disk: bool,
                 n_micro: int, sums: Mapping[str, int]):
        self.program, self.workload, self.buffers = program, workload, buffers
        self.in_backward, self.on_disk, self.n_micro, self.sums = in_backward, on_disk, n_micro, sums
        self.head = program.steps[-1]
        self.pieces = state_pieces(program, workload) if on_disk else dict.fromkeys(program.trained, (None,))
        self.gradients: Mapping[str, int] = sums
        self.windows: dict[Piece, int] = {}

    def add(self, ops: list[DraftOp], epilogue: int) -> tuple[list[DraftOp], int]:
        """The operations with those on parameters among them, and the position of the epilogue."""
        if self.in_backward:
            ops = self._into_backward(ops)
            epilogue = len(ops)
        elif self.sums:
            every = tuple((name, b) for name, b in self.sums.items())
            clip = DraftOp(Kind.CLIP, self.head, every, every, False)
            ops = [*ops, clip, *self._updates_of(self.program.trained), self.op(Kind.GATHER, self.head)]
        else:
            after = list(self._updates_of(self.program.trained)) if self.on_disk else [self.op(Kind.UPDATE, self.head)]
            ops = [*ops, self.op(Kind.CLIP, self.head), *after]
        return self._with_windows(ops, epilogue) if self.on_disk else (ops, epilogue)

    def op(self, kind: Kind, step: Step, name: str = "", piece: Piece | None = None) -> DraftOp:
        """One operation on a parameter, or on all, with the buffers that the table of kinds says."""
        buffers = {"gradient": self.gradients.get(name), "states": self.windows.get(piece)}
        reads, writes = ([(role, buffers[role]) for role in roles if buffers[role] is not None]
                         for roles in (kind.reads, kind.writes))
        return DraftOp(kind, step, tuple(reads), tuple(writes), False, (name,) if name else (),
                       None if piece is None else (piece.start, piece.stop))

    # in backward

    def _into_backward(self, ops: list[DraftOp]) -> list[DraftOp]:
        last_of_head = max(i for i, op in enumerate(ops) if op.step is self.head)  # none moves before the loss is checked
        gradients = GradientBuffers(self.program, self.workload, self.buffers, ops, last_of_head, reads=True)
        self.gradients = gradients.of
        begins, ends = gradients.begins(), gradients.ends()
        out: list[DraftOp] = []
        for i, op in enumerate(ops):
            out += [self.op(Kind.ZERO_GRADIENT, op.step, name) for name in begins.get(i, ())]
            out.append(gradients.added_by(op))
            if i == last_of_head:
                out.append(self.op(Kind.CHECK_LOSS, self.head))
            for name in ends.get(i, ()):
                if name not in gradients.first:  # nothing adds to it
                    out.append(self.op(Kind.ZERO_GRADIENT, op.step, name))
                out += self._updates_of([name], op.step, clip=True)
        return out

    def _updates_of(self, names, step: Step | None = None, clip: bool = False) -> Iterator[DraftOp]:
        for name in names:
            if clip:
                yield self.op(Kind.CLIP, step or self.head, name)
            for piece in self.pieces[name]:
                if piece is not None and piece.nbytes:
                    self.buffers.append(DraftBuffer(f"states of {name} from {piece.start}", str(piece.nbytes), "uint8",
                                                    aligned(piece.nbytes), "states", None, True, ""))
                    self.windows[piece] = len(self.buffers) - 1
                yield self.op(Kind.UPDATE, step or self.head, name, piece)

    # windows on states

    def _with_windows(self, ops: list[DraftOp], epilogue: int) -> tuple[list[DraftOp], int]:
        """Loads begin as early, and stores end as late, as the windows allow that may be alive at once."""
        places = [i for i, op in enumerate(ops) if op.kind == Kind.UPDATE and op.reads and op.reads[-1][0] == "states"]
        if not places:
            return ops, epilogue
        sizes = [self.buffers[ops[i].reads[-1][1]].nbytes for i in places]
        ends = list(accumulate(sizes))
        most = max(sizes)
        turn = places[0] if self.workload.groups > 1 else epilogue if self.n_micro > 1 else next(
            (i for i, op in enumerate(ops) if op.kind in (Kind.ACCUMULATE, Kind.BACKWARD)), places[0])
        before: dict[int, list[DraftOp]] = {}
        after: dict[int, list[DraftOp]] = {}
        loaded = stored = 0
        for number, i in enumerate(places):
            done = ends[number] - sizes[number]  # bytes of the windows before
            while stored < number and done - ends[stored] >= BEHIND * most:
                before.setdefault(i, []).append(self._move(Kind.STORE_WAIT, ops[places[stored]]))
                stored += 1
            reach = max(number + 1, bisect_left(ends, ends[number] + AHEAD * most + 1))
            at = before.setdefault(i if number else min(i, max(turn, i - EARLY)), [])
            at += [self._move(Kind.LOAD_START, ops[places[k]]) for k in range(loaded, reach)]
            loaded = max(loaded, reach)
            before.setdefault(i, []).append(self._move(Kind.LOAD_WAIT, ops[i]))
            after[i] = [self._move(Kind.STORE_START, ops[i])]
        out: list[DraftOp] = []
        start = None
        for i, op in enumerate(ops):
            if i == epilogue:
                start = len(out)
            out += [*before.get(i, ()), op, *after.get(i, ())]
        out += [self._move(Kind.STORE_WAIT, ops[i]) for i in places[stored:]]
        return out, len(out) if start is None else start

    def _move(self, kind: Kind, update: DraftOp) -> DraftOp:
        window = update.reads[-1]
        return DraftOp(kind, update.step, (window,) if kind.reads else (), (window,) if kind.writes else (), False,
                       update.params, update.piece)

