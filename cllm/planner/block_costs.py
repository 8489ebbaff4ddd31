"""What a kind of block costs under every way to tape it, read off schedules of a program with one block."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from cllm.planner.costs import Speeds, op_step_seconds
from cllm.plans.plan import Plan
from cllm.plans.tree import Compress, Decision, Recompute, Segment, Tape
from cllm.program.dims import elements
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import live_bytes
from cllm.schedule.build import Schedule, build_schedule
from cllm.schedule.compression import PACKED
from cllm.schedule.operations import Buffer

Decisions = tuple[tuple[str, Decision], ...]
FORWARD_KINDS = ("forward", "compress")


@dataclass(frozen=True, slots=True)
class TapeCost:
    """One way to tape a block: bytes kept, highest bytes alive in forward and in backward, seconds of both in a step; and
    the peak and seconds where it is the last of an opened segment, whose forward leaves out what nobody needs."""

    decisions: Decisions
    kept: int
    forward_peak: int
    backward_peak: int
    seconds: float
    last_peak: int
    last_seconds: float


@dataclass(frozen=True, slots=True)
class BlockCost:
    """The tapes of a kind of block that are not beaten by another, and what a sweep through it costs."""

    tapes: tuple[TapeCost, ...]
    input_bytes: int
    sweep_peak: int
    sweep_seconds: float


@dataclass(frozen=True, slots=True)
class EndCost:
    """What surrounds the blocks: highest bytes of head and loss on top of what the blocks keep, of the input layers,
    of gradients that wait for the epilogue, and seconds in a step, the epilogue's apart."""

    loss_rows: int
    peak: int
    input_peak: int
    waiting_bytes: int
    seconds: float
    epilogue_seconds: float


class OneBlock:
    """Costs of the program with one block, at one size of micro-batch.

    `tables` is shared by the sizes of one workload: what was read off schedules for one of them serves the others.
    """

    def __init__(self, program: Program, workload: Workload, speeds: Speeds, micro_batch: int,
                 tables: "dict[tuple, _Tapes] | None" = None):
        self.program, self.workload, self.speeds, self.micro_batch = program, workload, speeds, micro_batch
        self._tables = {} if tables is None else tables

    def block(self, allow: Collection[str]) -> BlockCost:
        """Every tape worth having among those allowed."""
        sweep = self._run(Segment((Tape(0),)))
        first = sweep.ops("forward")
        input_bytes = next(b.nbytes for b in sweep.schedule.buffers if b.label == self.program.block_inputs[0])
        tapes = _unbeaten(self.tapes(tuple(self.decisions("recompute" in allow))))
        for dtype in (d for d in PACKED if d in allow):
            tapes = _unbeaten(tapes + self.tapes(tuple(d for t in tapes for d in self._narrower(t.decisions, dtype))))
        return BlockCost(tuple(tapes), input_bytes, sweep.peak(first), sweep.seconds(first))

    def ends(self, loss_rows: int) -> EndCost:
        """What the ends cost with that many rows of the head at once; of a program without blocks, all of it."""
        run = self._run(Tape(0) if self.program.n_blocks else None, loss_rows)
        mine = set(run.ops())
        outside = [i for i in range(run.schedule.epilogue) if i not in mine]
        before = {s.index for s in self.program.regions[0]}
        inputs = [i for i in outside if run.schedule.ops[i].step.index in before]
        after = [i for i in outside if run.schedule.ops[i].step.index not in before]
        waiting = sum(b.nbytes for b in run.schedule.buffers if b.kind == "stash")
        kept = run.kept() if self.program.n_blocks else 0
        return EndCost(loss_rows, run.peak(after) - kept, run.peak(inputs), waiting, run.seconds(outside),
                       run.seconds(range(run.schedule.epilogue, len(run.schedule.ops))))

    def tapes(self, choices: tuple[Decisions, ...]) -> list[TapeCost]:
        """What each of these ways to tape the block costs."""
        inside = {s.index for s in self.program.regions[1][0]}
        waits = self.micro_batch < self.workload.batch and bool(inside & self.program.waiting_steps)
        key = self.program.kind_of_block(0), waits, choices
        if key not in self._tables:
            self._tables[key] = _Tapes(choices, self._run)
        return self._tables[key].costs(self._run)

    def decisions(self, recompute: bool) -> Iterator[Decisions]:
        """All ways to drop: a step's values are kept or dropped together, since one rebuild makes them all. Sums of the
        residual stream stay: to make one again takes the branch, and deep nests of such rebuilds pack badly."""
        steps = []
        for step in self.program.regions[1][0]:
            values = [self.program.values[v] for v in step.outputs.values()]
            keys = tuple(v.key for v in values if self.program.readers[v.name] and not v.optional
                         and v.name not in self.program.block_inputs and v.group != "residual")
            if keys:
                steps.append(keys)
        for dropped in product((False, True), repeat=len(steps) if recompute else 0):
            yield tuple((key, Recompute()) for keys, drop in zip(steps, dropped, strict=False) if drop for key in keys)

    def _narrower(self, decisions: Decisions, dtype: str) -> Iterator[Decisions]:
        """The same with the largest value that is kept compressed, the two largest, and so on; never what the block is
        rebuilt from, and no row statistics."""
        decided = {key for key, _ in decisions}
        letters = self.workload.letters(1)
        kept = [(elements(v.shape, letters), v.key) for s in self.program.regions[1][0]
                for v in (self.program.values[name] for name in s.outputs.values())
                if self.program.readers[v.name] and not v.optional and v.name not in self.program.block_inputs
                and v.key not in decided and v.dtype is None and v.group != "statistics"]
        kept.sort(key=lambda pair: -pair[0])
        for count in range(1, len(kept) + 1):
            yield (*decisions, *((key, Compress(dtype)) for _, key in kept[:count]))

    def _run(self, child: Tape | Segment | None, loss_rows: int | None = None) -> "_Run":
        plan = Plan((child,) if child else (), self.micro_batch, loss_rows)
        return _Run(build_schedule(self.program, self.workload, plan), self)


class _Run:
    """A schedule of the one-block program, and sums over parts of it."""

    def __init__(self, schedule: Schedule, costs: OneBlock):
        self.schedule, self._costs = schedule, costs
        self.buffers = [b for b in schedule.buffers if b.kind != "stash"]

    @cached_property
    def _live(self) -> list[int]:
        return live_bytes(self.buffers, len(self.schedule.ops))

    def ops(self, kind: str | None = None, but: str | None = None) -> list[int]:
        """Positions of the block's operations, of one kind or of all but one."""
        return [i for i, op in enumerate(self.schedule.ops) if op.step.block == 0 and i < self.schedule.epilogue
                and kind in (None, op.kind) and op.kind != but]

    def peak(self, positions) -> int:
        """Highest bytes alive during these operations."""
        return max((self._live[i] for i in positions), default=0)

    def seconds(self, positions) -> float:
        """Seconds of these operations in a step, all micro-batches together."""
        return sum(self.op_seconds(i) for i in positions)

    def op_seconds(self, position: int) -> float:
        """Seconds of one operation in a step."""
        return op_step_seconds(self.schedule.ops[position], self.schedule, self._costs.workload, self._costs.speeds)

    def between(self) -> list[Buffer]:
        """Buffers that the block's forward leaves for its backward, its input among them."""
        last = max(i for i in self.ops() if self.schedule.ops[i].kind in FORWARD_KINDS and i < self._turn)
        return [b for b in self.buffers if b.first <= last and b.last >= self._turn]

    @cached_property
    def _turn(self) -> int:
        """Position of the block's first operation that belongs to its backward."""
        return min(i for i in self.ops() if self.schedule.ops[i].kind not in FORWARD_KINDS)

    def forward_ops(self) -> list[int]:
        """Positions of the block's forward: what stands before its backward."""
        return [i for i in self.ops() if i < self._turn]

    def backward_ops(self) -> list[int]:
        """Positions of the others."""
        return [i for i in self.ops() if i >= self._turn]

    def kept(self) -> int:
        """Bytes of `between`."""
        return sum(b.nbytes for b in self.between())


class _Tapes:
    """Schedules of some ways to tape a block, with a column for each buffer in place of its bytes and one for each
    operation in place of its seconds: in these terms they are the same at every size of micro-batch.

    `examples` are children whose schedules, together, hold every buffer and every operation.
    """

    def __init__(self, choices: tuple[Decisions, ...], run: Callable[[Tape | Segment], _Run]):
        self.choices = choices
        self.examples: list[Tape | Segment] = []
        self._buffers: dict[tuple, int] = {}
        self._ops: dict[tuple, int] = {}
        taped = [self._read(Tape(0, decisions), run) for decisions in choices]
        opened = [self._read(Segment((Tape(0, decisions),)), run) for decisions in choices]
        self._alive, self._parts, self._work = [], [], []
        kept = np.zeros((len(choices), len(self._buffers)), np.int64)
        for row, (one, two) in enumerate(zip(taped, opened, strict=True)):
            for found, positions in ((one, one.forward_ops()), (one, one.backward_ops()), (two, two.ops(but="forward"))):
                self._alive.append(self._lives(found)[positions])
                self._work.append(np.bincount([self._ops[_op_key(found, i)] for i in positions], minlength=len(self._ops)))
            np.add.at(kept[row], [self._buffers[_buffer_key(b)] for b in one.between()], 1)
        self._kept = kept
        self._starts = np.cumsum([0, *(len(rows) for rows in self._alive[:-1])])
        self._alive, self._work = np.concatenate(self._alive), np.array(self._work)

    def costs(self, run: Callable[[Tape | Segment], _Run]) -> list[TapeCost]:
        """The costs at the size of micro-batch at which `run` makes schedules."""
        nbytes, seconds = np.zeros(len(self._buffers), np.int64), np.zeros(len(self._ops))
        for child in self.examples:
            found = run(child)
            for b in found.buffers:
                nbytes[self._buffers[_buffer_key(b)]] = b.nbytes
            for i in found.ops():
                seconds[self._ops[_op_key(found, i)]] = found.op_seconds(i)
        peaks = np.maximum.reduceat(self._alive @ nbytes, self._starts).reshape(-1, 3)
        work = (self._work @ seconds).reshape(-1, 3)
        return [TapeCost(decisions, int(kept), int(forward), int(backward), float(first + second), int(last), float(alone))
                for decisions, kept, (forward, backward, last), (first, second, alone)
                in zip(self.choices, self._kept @ nbytes, peaks, work, strict=True)]

    def _read(self, child: Tape | Segment, run: Callable[[Tape | Segment], _Run]) -> _Run:
        found = run(child)
        size = len(self._buffers) + len(self._ops)
        for b in found.buffers:
            self._buffers.setdefault(_buffer_key(b), len(self._buffers))
        for i in found.ops():
            self._ops.setdefault(_op_key(found, i), len(self._ops))
        if len(self._buffers) + len(self._ops) > size:
            self.examples.append(child)
        return found

    def _lives(self, run: _Run) -> np.ndarray:
        """How many of each buffer are alive during each operation."""
        change = np.zeros((len(run.schedule.ops) + 1, len(self._buffers)), np.int64)
        column = [self._buffers[_buffer_key(b)] for b in run.buffers]
        np.add.at(change, ([b.first for b in run.buffers], column), 1)
        np.add.at(change, ([b.last + 1 for b in run.buffers], column), -1)
        return change.cumsum(axis=0)


def _buffer_key(buffer: Buffer) -> tuple:
    counted = buffer.kind in ("scratch", "packed")  # their shapes may be numbers, which the micro-batch changes
    return buffer.label, "" if counted else buffer.shape, buffer.whole


def _op_key(run: _Run, position: int) -> tuple:
    op, buffers = run.schedule.ops[position], run.schedule.buffers
    return op.kind, op.step.index, tuple((name, buffers[b].label) for name, b in (*op.reads, *op.writes))


def _unbeaten(tapes: list[TapeCost]) -> list[TapeCost]:
    """Those that no other equals or betters in everything."""
    costs = np.array([(t.kept, t.forward_peak, t.backward_peak, t.seconds, t.last_peak, t.last_seconds) for t in tapes])
    left = []
    for i, row in enumerate(costs):
        no_worse = (costs <= row).all(axis=1)
        better = no_worse & (costs < row).any(axis=1)
        twin = no_worse & (costs == row).all(axis=1)
        if not better.any() and not twin[:i].any():
            left.append(tapes[i])
    return left
