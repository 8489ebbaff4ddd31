"""What a run of steps costs under every way to tape it, read off schedules of the program in which it stands alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cllm.planner.costs import Speeds, op_step_seconds
from cllm.plans.plan import Plan
from cllm.plans.tree import Decision, Segment, Tape
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import live_bytes
from cllm.schedule.build import build_schedule
from cllm.schedule.operations import Buffer, Schedule

Decisions = tuple[tuple[str, Decision], ...]
FORWARD_KINDS = (Kind.FORWARD, Kind.COMPRESS)
OPENED = Segment((Tape(0),))


@dataclass(frozen=True, slots=True)
class TapeCost:
    """One way to tape steps: bytes kept, highest bytes alive in forward and in backward, seconds of both in a step; and
    the peak and seconds where they are the last of an opened segment, whose forward leaves out what nobody needs."""

    decisions: Decisions
    kept: int
    forward_peak: int
    backward_peak: int
    seconds: float
    last_peak: int
    last_seconds: float

    @property
    def costs(self) -> tuple[float, ...]:
        """All but the decisions."""
        return self.kept, self.forward_peak, self.backward_peak, self.seconds, self.last_peak, self.last_seconds


class RegionCosts:
    """Costs of the one block of a program (see `cllm.program.alone`), at one size of micro-batch.

    `readings` are shared by the sizes of one workload: what was read off schedules at one of them serves the others.
    """

    def __init__(self, program: Program, workload: Workload, speeds: Speeds, micro_batch: int, readings: "Readings"):
        self.program, self.workload, self.speeds, self.micro_batch = program, workload, speeds, micro_batch
        self._readings = readings
        self._priced = 0
        self._nbytes: dict[int, int] = {}
        self._seconds: dict[int, float] = {}

    def tapes(self, choices: list[Decisions]) -> list[TapeCost]:
        """What each of these ways to tape the steps costs."""
        readings = [self._readings.of(decisions, self.run) for decisions in choices]
        for child in self._readings.examples[self._priced:]:
            self._price(self.run(child))
        self._priced = len(self._readings.examples)
        nbytes = np.array([self._nbytes[n] for n in range(len(self._nbytes))], float)
        seconds = np.array([self._seconds[n] for n in range(len(self._seconds))])
        return [r.cost(decisions, nbytes, seconds) for decisions, r in zip(choices, readings, strict=True)]

    @cached_property
    def swept(self) -> "Run":
        """The schedule in which the steps are swept and opened."""
        return self.run(OPENED)

    def end_bytes(self) -> tuple[int, int]:
        """Bytes of what the steps read from outside, and of what leaves them."""
        nbytes = {b.label: b.nbytes for b in self.swept.schedule.buffers}
        given, left = self.program.block_inputs
        return nbytes[given], nbytes[left]

    def run(self, child: Tape | Segment) -> "Run":
        """The schedule of that child."""
        plan = Plan((child,), self.micro_batch)
        return Run(build_schedule(self.program, self.workload, plan), self.workload, self.speeds, around=False)

    def _price(self, run: "Run") -> None:
        for b in run.buffers:
            self._nbytes[self._readings.buffers[_buffer_key(b)]] = b.nbytes
        for i in run.ops():
            column = self._readings.ops[_op_key(run, i)]
            if column not in self._seconds:
                self._seconds[column] = run.op_seconds(i)


class Run:
    """A schedule of a program with one block, and sums over parts of it.

    Parameters
    ----------
    around : bool
        Whether buffers count that are there before the block and after it: what the steps before it keep for themselves.
    """

    def __init__(self, schedule: Schedule, workload: Workload, speeds: Speeds, around: bool = True):
        self.schedule, self._workload, self._speeds = schedule, workload, speeds
        mine = self._own
        self.buffers = [b for b in schedule.buffers if b.kind != "stash"
                        and (around or b.first >= mine[0] or b.last <= mine[-1])]

    @cached_property
    def _own(self) -> list[int]:
        return [i for i, op in enumerate(self.schedule.ops[:self.schedule.epilogue]) if op.step.block == 0]

    @cached_property
    def _live(self) -> list[int]:
        return live_bytes(self.buffers, len(self.schedule.ops))

    def ops(self, kind: str | None = None, but: str | None = None) -> list[int]:
        """Positions of the block's operations, of one kind or of all but one; copies of its input are its own, and so is what
        makes it again."""
        ops, again = self.schedule.ops[:self.schedule.epilogue], set(self.made_again())
        return [i for i, op in enumerate(ops) if (op.step.block == 0 or op.kind in (Kind.COMPRESS, Kind.EXPAND) or i in again)
                and kind in (None, op.kind) and op.kind != but]

    def made_again(self) -> list[int]:
        """Positions of what makes the block's input again."""
        ops, mine = self.schedule.ops, self._own
        return [i for i in range(mine[0], mine[-1]) if ops[i].kind == Kind.REBUILD
                and ops[i].step.index < ops[mine[0]].step.index] if mine else []

    def peak(self, positions) -> int:
        """Highest bytes alive during these operations."""
        return max((self._live[i] for i in positions), default=0)

    def passing_peak(self, positions: list[int], given: str) -> int:
        """The same, were that value let go when the last of them that reads it has run."""
        buffer = next(b for b in self.buffers if b.value == given)
        last = max(i for i in positions if buffer.index in {b for _, b in self.schedule.ops[i].reads})
        return max(self._live[i] - (buffer.nbytes if i > last else 0) for i in positions)

    def waiting_through(self, positions: list[int]) -> int:
        """Bytes of gradients that wait during all of these operations."""
        return sum(b.nbytes for b in self.buffers if b.kind == "gradient" and b.first < positions[0] and b.last > positions[-1])

    def seconds(self, positions) -> float:
        """Seconds of these operations in a step, all micro-batches together."""
        return sum(self.op_seconds(i) for i in positions)

    def op_seconds(self, position: int) -> float:
        """Seconds of one operation in a step."""
        return op_step_seconds(self.schedule.ops[position], self.schedule, self._workload, self._speeds)

    def waiting_bytes(self) -> int:
        """Bytes of gradients of the whole batch that wait for the epilogue."""
        return sum(b.nbytes for b in self.schedule.buffers if b.kind == "stash")

    def epilogue_seconds(self) -> float:
        """Seconds of what runs once, on the whole batch."""
        return self.seconds(range(self.schedule.epilogue, len(self.schedule.ops)))

    def between(self) -> list[Buffer]:
        """Buffers that the block's forward leaves for its backward, its input among them."""
        last = self.forward_ops()[-1]
        return [b for b in self.buffers if b.first <= last and b.last >= self._turn]

    @cached_property
    def _turn(self) -> int:
        """Position of the block's first operation that belongs to its backward; past the end where it has none."""
        later = (i for i in self.ops() if self.schedule.ops[i].kind not in FORWARD_KINDS)
        return min(later, default=len(self.schedule.ops))

    def forward_ops(self) -> list[int]:
        """Positions of the block's forward: what stands before its backward."""
        return [i for i in self.ops() if i < self._turn]

    def backward_ops(self) -> list[int]:
        """Positions of the others."""
        return [i for i in self.ops() if i >= self._turn]


@dataclass(frozen=True, slots=True)
class _Lives:
    """A schedule's buffers: the column of each, its first operation, and the one after its last."""

    columns: np.ndarray
    first: np.ndarray
    after: np.ndarray
    count: int

    def peak(self, positions: np.ndarray, nbytes: np.ndarray) -> int:
        """Highest bytes alive during these operations."""
        mine = nbytes[self.columns]  # floats: sums of whole numbers below 2^53 are exact
        change = np.bincount(self.first, mine, self.count) - np.bincount(self.after, mine, self.count)
        return int(change.cumsum()[positions].max(initial=0))


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to tape: the columns of the buffers that are kept, and for forward, backward and where opened, the schedule,
    positions in it, and the columns of their operations."""

    kept: np.ndarray
    parts: tuple[tuple[_Lives, np.ndarray, np.ndarray], ...]

    def cost(self, decisions: Decisions, nbytes: np.ndarray, seconds: np.ndarray) -> TapeCost:
        forward, backward, last = (lives.peak(positions, nbytes) for lives, positions, _ in self.parts)
        first, second, opened = (float(seconds[work].sum()) for _, _, work in self.parts)
        return TapeCost(decisions, int(nbytes[self.kept].sum()), forward, backward, first + second, last, opened)


class Readings:
    """What schedules of a region say, with a column for each buffer in place of its bytes and one for each operation in
    place of its seconds: in these terms they are the same at every size of micro-batch.

    `examples` are children whose schedules, together, hold every buffer and every operation.
    """

    def __init__(self):
        self.examples: list[Tape | Segment] = []
        self.buffers: dict[tuple, int] = {}
        self.ops: dict[tuple, int] = {}
        self._known: dict[Decisions, _Reading] = {}

    def of(self, decisions: Decisions, run: Callable[[Tape | Segment], Run]) -> _Reading:
        """What is read of one way to tape; `run` makes schedules."""
        if decisions not in self._known:
            taped, opened = Tape(0, decisions), Segment((Tape(0, decisions),))
            one, two = run(taped), run(opened)
            (first, first_ops), (second, second_ops) = self._read(taped, one), self._read(opened, two)
            parts = ((first, one.forward_ops(), first_ops), (first, one.backward_ops(), first_ops),
                     (second, two.ops(but="forward"), second_ops))
            kept = np.array([self.buffers[_buffer_key(b)] for b in one.between()], np.int64)
            self._known[decisions] = _Reading(kept, tuple(
                (lives, np.array(positions, np.int64), np.array([columns[i] for i in positions], np.int64))
                for lives, positions, columns in parts))
        return self._known[decisions]

    def _read(self, child: Tape | Segment, run: Run) -> tuple[_Lives, dict[int, int]]:
        """The lifetimes of a schedule's buffers, and the column of each of the block's operations by its position."""
        size = len(self.buffers) + len(self.ops)
        columns = [self.buffers.setdefault(_buffer_key(b), len(self.buffers)) for b in run.buffers]
        ops = {i: self.ops.setdefault(_op_key(run, i), len(self.ops)) for i in run.ops()}
        if len(self.buffers) + len(self.ops) > size:
            self.examples.append(child)
        return _Lives(np.array(columns, np.int64), np.array([b.first for b in run.buffers], np.int64),
                      np.array([b.last + 1 for b in run.buffers], np.int64), len(run.schedule.ops) + 1), ops


def _buffer_key(buffer: Buffer) -> tuple:
    counted = buffer.kind in ("scratch", "packed")  # their shapes may be numbers, which the micro-batch changes
    return buffer.label, "" if counted else buffer.shape, buffer.whole


def _op_key(run: Run, position: int) -> tuple:
    op, buffers = run.schedule.ops[position], run.schedule.buffers
    return op.kind, op.step.index, tuple((name, buffers[b].label) for name, b in (*op.reads, *op.writes))
