"""The last pass over a schedule: what nobody needs is dropped, lifetimes are read off.

From the end of a draft, an operation that only moves values and whose results nobody reads is dropped. A buffer lives from
the operation that first names it to the last.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cllm.errors import ConfigError
from cllm.program.kinds import DROPPABLE, READS_KEPT
from cllm.program.parts import Step
from cllm.schedule.operations import Buffer, Op
from cllm.schedule.overlap import overlap_disk

LARGEST_BYTES = 1 << 53  # of all buffers together: below, sums of bytes are exact in 64 bits and in a float


class DraftBuffer(NamedTuple):
    """A buffer before its lifetime is known; plain tuples are made in a fraction of the time of frozen dataclasses."""

    label: str
    shape: str
    dtype: str
    nbytes: int
    kind: str
    block: int | None
    whole: bool
    value: str


class DraftOp(NamedTuple):
    """An operation that may be dropped yet."""

    kind: str
    step: Step
    reads: tuple[tuple[str, int], ...]
    writes: tuple[tuple[str, int], ...]
    whole: bool
    params: tuple[str, ...] = ()
    piece: tuple[int, int] | None = None


class Cuts(NamedTuple):
    """Number of operations of the prologue, and where epilogue and finale begin."""

    prologue: int
    epilogue: int
    finale: int


# Adds operations on parameters to those that are needed: (operations, position of the epilogue) -> operations and cuts.
Adds = Callable[[list[DraftOp], int], tuple[list[DraftOp], Cuts]]


def finish(ops: Sequence[DraftOp], epilogue: int, buffers: Sequence[DraftBuffer], spills: bool,
           add: Adds | None = None) -> tuple[tuple[Op, ...], Cuts, tuple[Buffer, ...]]:
    """The operations that are needed, where their sections are cut, and the buffers that they name.

    Parameters
    ----------
    add : callable or None
        Adds what becomes of gradients of groups, and what a whole step does to parameters; it may make buffers.

    Raises
    ------
    ConfigError
        When these are beyond any machine.
    """
    needed: set[int] = set()
    kept: list[tuple[int, DraftOp]] = []
    for position in reversed(range(len(ops))):
        op = ops[position]
        if op.kind in DROPPABLE:
            for _, b in op.writes:
                if b in needed:
                    break
            else:
                continue
        for _, b in op.reads:
            needed.add(b)
        kept.append((position, op))
    kept.reverse()
    if spills:
        kept = overlap_disk(kept, [b.nbytes for b in buffers])
    epilogue = sum(position < epilogue for position, _ in kept)
    needed_ops = [op for _, op in kept]
    cuts = Cuts(0, epilogue, len(needed_ops))
    if add is not None:
        needed_ops, cuts = add(needed_ops, epilogue)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    crosses: set[int] = set()
    for index, op in enumerate(needed_ops):
        into_backward = op.kind in READS_KEPT
        for _, b in op.reads:
            if into_backward:
                crosses.add(b)
            if b not in first:
                first[b] = index
            last[b] = index
        for _, b in op.writes:
            if b not in first:
                first[b] = index
            last[b] = index
    for b in first:  # what waits from one micro-batch or group to another
        if buffers[b].kind in ("stash", "partial"):
            first[b] = 0
        if buffers[b].kind == "partial":
            last[b] = cuts.finale - 1
    number = {old: new for new, old in enumerate(sorted(first))}
    lasting = []
    frees: dict[int, list[int]] = {}
    for b, new in number.items():
        label, shape, dtype, nbytes, kind, block, whole, value = buffers[b]
        if kind == "forward":
            kind = "kept" if b in crosses else "passing"
        elif kind == "rebuild":
            kind = "rebuilt"
        lasting.append(Buffer(new, label, shape, dtype, nbytes, kind, block, whole, first[b], last[b], value))
        if kind != "partial":  # the next group needs it, too
            frees.setdefault(last[b], []).append(new)
    total = sum(b.nbytes for b in lasting)
    if total >= LARGEST_BYTES:
        raise ConfigError("batch_size, seq_len", "must be small enough that all arrays of a step take less than 2^53 bytes",
                          f"{total:,} bytes", "Check the sizes of batch and model.")
    made = tuple([Op(op.kind, op.step, tuple([(n, number[b]) for n, b in op.reads]),
                    tuple([(n, number[b]) for n, b in op.writes]), tuple(frees.get(index, ())), op.whole,
                    op.params, op.piece) for index, op in enumerate(needed_ops)])
    return made, cuts, tuple(lasting)
