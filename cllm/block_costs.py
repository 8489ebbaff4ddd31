"""What a kind of block costs under every way to tape it, read off schedules of a program with one block."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from cllm.arena import live_bytes
from cllm.costs import Rates
from cllm.plans import Plan
from cllm.program import Program
from cllm.schedule import Schedule, build_schedule
from cllm.segments import Decision, Recompute, Segment, Tape
from cllm.workload import Workload

Decisions = tuple[tuple[str, Decision], ...]


@dataclass(frozen=True, slots=True)
class TapeCost:
    """One way to tape a block: bytes kept, highest bytes alive in forward and in backward, seconds of both; and the
    peak and seconds where it is the last of an opened segment, whose forward leaves out what nobody needs."""

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
    of gradients that wait for the epilogue, and seconds per micro-batch and per step."""

    loss_rows: int
    peak: int
    input_peak: int
    waiting_bytes: int
    seconds: float
    epilogue_seconds: float


class OneBlock:
    """Costs of the program with one block, at one size of micro-batch."""

    def __init__(self, program: Program, workload: Workload, rates: Rates, micro_batch: int):
        self.program, self.workload, self.rates, self.micro_batch = program, workload, rates, micro_batch

    def block(self, recompute: bool) -> BlockCost:
        """Every tape worth having; with `recompute` false, the one that caches everything."""
        sweep = self._run(Segment((Tape(0),)))
        first = sweep.ops("forward")
        input_bytes = next(b.nbytes for b in sweep.schedule.buffers if b.label == self.program.block_inputs[0])
        tapes = [self._tape(decisions) for decisions in self._decisions(recompute)]
        return BlockCost(tuple(_unbeaten(tapes)), input_bytes, sweep.peak(first), sweep.seconds(first))

    def ends(self, loss_rows: int) -> EndCost:
        """What the ends cost with that many rows of the head at once."""
        run = self._run(Tape(0), loss_rows)
        outside = [i for i in range(run.schedule.epilogue) if i not in set(run.ops())]
        before = {s.index for s in self.program.regions[0]}
        inputs = [i for i in outside if run.schedule.ops[i].step.index in before]
        after = [i for i in outside if run.schedule.ops[i].step.index not in before]
        waiting = sum(b.nbytes for b in run.schedule.buffers if b.kind == "stash")
        return EndCost(loss_rows, run.peak(after) - run.kept(), run.peak(inputs), waiting, run.seconds(outside),
                       run.seconds(range(run.schedule.epilogue, len(run.schedule.ops))))

    def _tape(self, decisions: Decisions) -> TapeCost:
        taped, opened = self._run(Tape(0, decisions)), self._run(Segment((Tape(0, decisions),)))
        forward, backward = taped.ops("forward"), taped.ops(but="forward")
        last = opened.ops(but="forward")
        return TapeCost(decisions, taped.kept(), taped.peak(forward), taped.peak(backward), taped.seconds(taped.ops()),
                        opened.peak(last), opened.seconds(last))

    def _decisions(self, recompute: bool) -> Iterator[Decisions]:
        """All ways to drop: a step's values are kept or dropped together, since one rebuild makes them all."""
        steps = []
        for step in self.program.regions[1][0]:
            values = [self.program.values[v] for v in step.outputs.values()]
            keys = tuple(v.key for v in values if self.program.readers[v.name] and not v.optional
                         and v.name not in self.program.block_inputs)
            if keys:
                steps.append(keys)
        for dropped in product((False, True), repeat=len(steps) if recompute else 0):
            yield tuple((key, Recompute()) for keys, drop in zip(steps, dropped, strict=False) if drop for key in keys)

    def _run(self, child: Tape | Segment, loss_rows: int | None = None) -> "_Run":
        plan = Plan((child,), self.micro_batch, loss_rows)
        return _Run(build_schedule(self.program, self.workload, plan), self)


class _Run:
    """A schedule of the one-block program, and sums over parts of it."""

    def __init__(self, schedule: Schedule, costs: OneBlock):
        self.schedule, self._costs = schedule, costs
        buffers = [b for b in schedule.buffers if b.kind != "stash"]
        self._live = live_bytes(buffers, len(schedule.ops))

    def ops(self, kind: str | None = None, but: str | None = None) -> list[int]:
        """Positions of the block's operations, of one kind or of all but one."""
        return [i for i, op in enumerate(self.schedule.ops) if op.step.block == 0 and i < self.schedule.epilogue
                and kind in (None, op.kind) and op.kind != but]

    def peak(self, positions) -> int:
        """Highest bytes alive during these operations."""
        return max((self._live[i] for i in positions), default=0)

    def seconds(self, positions) -> float:
        """Seconds of these operations."""
        rates, workload = self._costs.rates, self._costs.workload
        return sum(rates.op_seconds(self.schedule.ops[i], self.schedule, workload) for i in positions)

    def kept(self) -> int:
        """Bytes that the block's forward leaves for its backward, its input among them."""
        last = max(self.ops("forward"))
        first = min(self.ops(but="forward"))
        return sum(b.nbytes for b in self.schedule.buffers if b.first <= last and b.last >= first and b.kind != "stash")


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
