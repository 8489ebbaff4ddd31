"""What a schedule is made of: `Buffer`, `Op`, `Schedule`, pure data."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cllm.program.dims import NARROW
from cllm.program.kinds import Kind
from cllm.program.parts import Step
from cllm.program.workload import ITEMSIZE

ITEMSIZES = {**ITEMSIZE, "int32": 4, "int64": 8, "uint64": 8, "uint16": 2, "uint8": 1, NARROW: 2}


def storage(dtype: str) -> str:
    """NumPy's dtype of arrays of that dtype."""
    return "uint16" if dtype == NARROW else dtype


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room in the arena: what it holds, how large it is, and the first and last operation that name it.

    `kind` is "kept" (made in forward, read in backward), "packed" (a compressed copy), "rebuilt" (expanded and fetched
    values too), "passing" (read in the same sweep only), "gradient", "stash" (a gradient that waits for the epilogue),
    "scratch", "disk" (no bytes in the arena), "weights" (a parameter's gradient), "states" (a window on its optimizer's),
    "partial" (a sum of the gradients of some groups) or "message" (what another process sends).
    `value` is the program's value that it holds or is a copy of.
    """

    index: int
    label: str
    shape: str
    dtype: str
    nbytes: int
    kind: str
    block: int | None
    whole: bool = False
    first: int = -1
    last: int = -1
    value: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `reads` and `writes` pair argument names with buffers; `frees` are the buffers that no later operation
    names. `whole` operations run once, on the whole batch. Those on parameters name them, all where there are none, and the
    elements of the one that they move, as (start, stop)."""

    kind: Kind
    step: Step
    reads: tuple[tuple[str, int], ...]
    writes: tuple[tuple[str, int], ...]
    frees: tuple[int, ...] = ()
    whole: bool = False
    params: tuple[str, ...] = ()
    piece: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Kind and step, or parameter: ``backward blocks.0.attn``, ``update blocks.0.mlp.fc1.weight``."""
        if not self.kind.once or self.kind == Kind.CHECK_LOSS:
            return f"{self.kind} {self.step.name}"
        return f"{self.kind} {', '.join(self.params) or 'all parameters'}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Operations in four sections: the prologue, run once per group, the body, once per micro-batch, the epilogue, once per
    group, and the finale, once. Where the batch is one group, there are a body and an epilogue alone.

    Where `updates_in_backward`, gradients of parameters are buffers; where `states_on_disk`, so are windows on the optimizer's
    states.
    """

    ops: tuple[Op, ...]
    epilogue: int  # position of its first operation
    buffers: tuple[Buffer, ...]
    micro_batch: int
    n_micro: int  # micro-batches of a group
    loss_rows: int
    updates_in_backward: bool = False
    states_on_disk: bool = False
    prologue: int = 0  # number of its operations
    finale: int = 0  # number of its operations
    n_groups: int = 1  # of this process

    def whole_step(self, once: Sequence) -> list:
        """What belongs to the operations, such as `ops` or their names, once for each time that a step runs them."""
        prologue, body, epilogue, finale = self.sections(once)
        return [*prologue, *[*body] * self.n_micro, *epilogue] * self.n_groups + [*finale]

    def sections(self, once: Sequence) -> tuple[Sequence, ...]:
        """What belongs to the operations, parted into that of the prologue, the body, the epilogue and the finale."""
        cuts = (0, self.prologue, self.epilogue, len(self.ops) - self.finale, None)
        return tuple(once[start:stop] for start, stop in pairwise(cuts))

    def count(self, kind: str, step: str | None = None) -> int:
        """How many operations of that kind (and step) one micro-batch runs."""
        return sum(op.kind == kind and step in (None, op.step.name) for op in self.ops)
