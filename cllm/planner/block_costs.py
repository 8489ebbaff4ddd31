"""What a kind of block costs under every way to tape it that is worth having, put together from parts of the block.

Where the value that passes a cut is kept, each side is decided for itself, and the costs of both join as those of two
blocks do (`_joined`). Where it is dropped, both sides are one part. Running sums are never dropped: to make one again
takes its branch, and deep nests of such rebuilds pack badly. The best ways are found from the block's end, as the frontier
finds them for the network: what no other beats is joined with what no other beats.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from cllm.planner.costs import Speeds
from cllm.planner.parts import INPUT, Part, parts_of, whole_block
from cllm.planner.region_costs import Decisions, Readings, RegionCosts, Run, TapeCost
from cllm.planner.ways import best_rows, best_tapes, thinned, ways_to_drop, ways_to_narrow
from cllm.plans.plan import Plan
from cllm.plans.tree import Tape
from cllm.program.alone import alone, without_blocks
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.build import build_schedule
from cllm.schedule.compression import PACKED

MOST_TAPES = 1024  # of a block, or of its end: blocks of our models have 30 to 50 that are exact, up to 660 with copies


@dataclass(frozen=True, slots=True)
class BlockCost:
    """The tapes of a kind of block that are not beaten by another, and what a sweep through it costs: its peak while its input
    stays, as that of a segment does, and where the input goes when it was last read; bytes of gradients that wait for the
    epilogue, and seconds of the latter. Of the first block, where something may be made again, what it costs to make its input
    again while it is opened: bytes beside the gradient of the output, and seconds."""

    tapes: tuple[TapeCost, ...]
    input_bytes: int
    output_bytes: int
    sweep_peak: int
    passing_peak: int
    sweep_seconds: float
    waiting_bytes: int = 0
    epilogue_seconds: float = 0.0
    again_peak: int = 0
    again_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EndCost:
    """What surrounds the blocks: highest bytes of head and loss on top of what stands before them, of the input layers, and
    seconds in a step, the epilogue's apart; bytes that the input layers keep, of gradients that wait for the epilogue."""

    loss_rows: int
    peak: int
    input_peak: int
    kept: int
    waiting_bytes: int
    seconds: float
    epilogue_seconds: float


class BlockCosts:
    """Costs of a program's blocks and of what surrounds them, at any size of micro-batch; `kinds` are those of the blocks."""

    def __init__(self, program: Program, workload: Workload, speeds: Speeds):
        self.program, self.workload, self.speeds = program, workload, speeds
        self.kinds = tuple(program.kind_of_block(number) for number in range(program.n_blocks))
        self._ends = without_blocks(program)
        self._alone: dict[tuple, tuple[Program, Readings]] = {}
        self._regions: dict[tuple, RegionCosts] = {}

    def block(self, number: int, micro_batch: int, allow: Collection[str], makes_input: bool = False) -> BlockCost:
        """Every tape worth having among those allowed; of the first block, where its input may be made again, those, too."""
        region = self._region(whole_block(self.program, number), micro_batch)
        run, (given, left) = region.swept, region.end_bytes()
        first = run.ops(Kind.FORWARD)
        cost = BlockCost(tuple(self._best(number, micro_batch, allow, left, makes_input)), given, left, run.peak(first),
                         run.passing_peak(first, region.program.block_inputs[0]), run.seconds(first), run.waiting_bytes(),
                         run.epilogue_seconds())
        if not makes_input:
            return cost
        plan = Plan((Tape(0, (INPUT,)),), micro_batch)
        program = without_blocks(self.program, reading=True)
        again = Run(build_schedule(program, self.workload, plan), self.workload, self.speeds, around=False)
        made = again.made_again()
        return replace(cost, again_peak=again.peak(made) - again.waiting_through(made), again_seconds=again.seconds(made))

    def tapes(self, number: int, micro_batch: int, choices: Iterable[Decisions]) -> list[TapeCost]:
        """What each of these ways to tape a block costs, read off schedules of the whole block."""
        return self._region(whole_block(self.program, number), micro_batch).tapes(list(choices))

    def ends(self, micro_batch: int, loss_rows: int) -> EndCost:
        """What the ends cost with that many rows of the head at once."""
        program, has_blocks = self._ends, self._ends.n_blocks > 0
        plan = Plan((Tape(0),) if has_blocks else (), micro_batch, loss_rows)
        run = Run(build_schedule(program, self.workload, plan), self.workload, self.speeds)
        body = range(run.schedule.epilogue)
        before = {s.index for s in program.regions[0]} if has_blocks else set()
        first = [i for i in body if run.schedule.ops[i].step.index in before]
        blocks = run.ops() if has_blocks else []
        after = sorted({*body} - {*first, *blocks})
        kept = sum(b.nbytes for b in run.buffers if blocks and b.first < blocks[0] and b.last > blocks[-1])
        return EndCost(loss_rows, run.peak(after) - kept, run.peak(first), kept, run.waiting_bytes(),
                       run.seconds([*first, *after]), run.epilogue_seconds())

    def _best(self, number: int, micro_batch: int, allow: Collection[str], output_bytes: int,
              makes_input: bool) -> list[TapeCost]:
        """The tapes of a block: its parts' joined from its end."""
        parts = parts_of(self.program, number, "recompute" in allow)
        parts += [part.without_input() for part in parts if makes_input and part.start == 0]
        end = max(p.stop for p in parts)
        long = sum(p.stop - p.start > 1 for p in parts)
        found: dict[int, list[TapeCost]] = {}
        for start in reversed(range(end)):
            ways = []
            for part in (p for p in parts if p.start == start):
                mine = self._ways(part, micro_batch, allow, long)
                ways += mine if part.stop == end else _joined(mine, found[part.stop], output_bytes)
            found[start] = thinned(best_tapes(ways), MOST_TAPES)
        return found[0]

    def _ways(self, part: Part, micro_batch: int, allow: Collection[str], long: int) -> list[TapeCost]:
        """The tapes of a part worth having, by the names of the block's values."""
        price = self._region(part, micro_batch).tapes
        ways = ways_to_drop(part, price, long if part.stop - part.start > 1 else 1) if "recompute" in allow else price([()])
        for dtype in (d for d in PACKED if d in allow):
            ways = ways_to_narrow(self.program, part, ways, price, dtype, self.workload.letters(1))
        given = self.program.values[part.given].key
        if part.start == 0:
            return ways
        return [TapeCost(tuple((given if key == "input" else key, d) for key, d in w.decisions), *w.costs) for w in ways]

    def _region(self, part: Part, micro_batch: int) -> RegionCosts:
        kind = self.program.kind_of(part.steps), part.makes_input
        if kind not in self._alone:
            before = self.program.regions[0] if part.makes_input else ()
            self._alone[kind] = alone(self.program, part.steps, part.given, part.left, before), Readings()
        if (kind, micro_batch) not in self._regions:
            program, readings = self._alone[kind]
            self._regions[kind, micro_batch] = RegionCosts(program, self.workload, self.speeds, micro_batch, readings)
        return self._regions[kind, micro_batch]


def _joined(first: list[TapeCost], second: list[TapeCost], output_bytes: int) -> list[TapeCost]:
    """The tapes of a part followed by those of the rest of its block, each with each, but for those beaten.

    In an opened block the forward of the first runs whole, while the gradient of the block's output waits.
    """
    a = np.array([t.costs for t in first], float)[:, None]
    b = np.array([t.costs for t in second], float)[None]
    kept = a[..., 0]
    costs = np.stack((
        kept + b[..., 0],
        np.maximum(a[..., 1], kept + b[..., 1]),
        np.maximum(a[..., 2], kept + b[..., 2]),
        a[..., 3] + b[..., 3],
        np.maximum(np.maximum(a[..., 1] + output_bytes, a[..., 2]), kept + b[..., 4]),
        a[..., 3] + b[..., 5]), axis=-1).reshape(-1, 6)
    found = []
    for n in best_rows(costs):
        one, two = divmod(int(n), len(second))
        kept, forward, backward, seconds, last, alone_seconds = costs[n].tolist()
        found.append(TapeCost(first[one].decisions + second[two].decisions, int(kept), int(forward), int(backward), seconds,
                              int(last), alone_seconds))
    return found
