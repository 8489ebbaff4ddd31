"""What a strategy may know: one entry per value that backward reads, and what any plan costs."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cllm.planner.costs import Speeds, schedule_seconds
from cllm.planner.frontier import Frontier
from cllm.plans.check import check_plan
from cllm.plans.plan import Estimate, Plan
from cllm.plans.tree import Tape
from cllm.program.dims import NARROW, elements
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import lay_out
from cllm.schedule.build import ITEMSIZES, Schedule, build_schedule
from cllm.schedule.report import MemoryReport, report


@dataclass(frozen=True, slots=True)
class Entry:
    """One value that some backward reads.

    Attributes
    ----------
    name, key : str
        The value's full name, and its name inside its block, by which a `Tape` decides it.
    block : int or None
    group : str
        norm, act, attn, mlp, residual, statistics, probs, logits, or "".
    nbytes : int
        Bytes for one sequence.
    seconds : float
        To run the step that makes it, for the whole batch.
    needs : tuple of str
        Values that this step reads.
    readers : tuple of str
        Steps whose backward reads the value.
    optional : bool
        Exists only when a plan names it.
    is_block_output : bool
        Kept or dropped by the tree of segments, not by a decision.
    meaning : str
    role : str
        "stream" (a running sum), "statistics" (small, never compressed), or "".
    narrow : bool
        It is bfloat16 already: not to be compressed.
    """

    name: str
    key: str
    block: int | None
    group: str
    nbytes: int
    seconds: float
    needs: tuple[str, ...]
    readers: tuple[str, ...]
    optional: bool
    is_block_output: bool
    meaning: str
    role: str = ""
    narrow: bool = False


class Ledger:
    """The costs of a workload; the only door by which a strategy, ours or a user's, learns what a plan costs.

    Attributes
    ----------
    workload : Workload
    n_blocks : int
    fingerprint : str
        Of program and workload: a plan is for one of them.
    sums_in_order : bool
        Whether a cut of the batch changes no bit.
    entries : dict of Entry by name
    held_bytes : int
        Of what a plan's total counts, what is in memory already: a model's arrays. "auto" does not count them twice.

    Parameters
    ----------
    tell : callable
        Hears how far planning is, where it takes a while.
    """

    def __init__(self, program: Program, workload: Workload, speeds: Speeds | None = None, held_bytes: int = 0,
                 tell: Callable[[str], None] = lambda text: None):
        workload.check(program)
        self._program = program
        self._rates = speeds or Speeds.stored(workload)
        self.workload = workload
        self.held_bytes = held_bytes
        self.n_blocks = program.n_blocks
        self._tell = tell
        self.fingerprint = workload.fingerprint(program)
        self.sums_in_order = program.sums_in_order
        self._frontiers: dict[tuple[str, ...], Frontier] = {}
        self._built: dict[Plan, tuple[Schedule, MemoryReport]] = {}
        self._estimates: dict[Plan, Estimate] = {}

    def in_block(self, block: int) -> tuple[Entry, ...]:
        """The entries of one block that a `Tape` may decide."""
        return self._by_block.get(block, ())

    @cached_property
    def _by_block(self) -> dict[int | None, tuple[Entry, ...]]:
        found = defaultdict(list)
        for entry in self.entries.values():
            if not entry.is_block_output:
                found[entry.block].append(entry)
        return {block: tuple(entries) for block, entries in found.items()}

    def evaluate(self, plan: Plan) -> Estimate:
        """What a plan costs: arena bytes and total bytes exactly, seconds as predicted.

        Raises
        ------
        PlanError
            When the plan does not fit the model or the batch.
        """
        check_plan(self._program, self.workload, plan)
        if plan not in self._estimates:
            schedule, memory = self._build(plan)
            seconds = schedule_seconds(schedule, self._program, self.workload, self._rates)
            self._estimates[plan] = Estimate(memory.arena_bytes, memory.total_bytes, seconds, self._rates.source)
        return self._estimates[plan]

    def build(self, plan: Plan) -> tuple[Schedule, MemoryReport]:
        """The schedule of a plan and its memory report."""
        check_plan(self._program, self.workload, plan)
        return self._build(plan)

    def _build(self, plan: Plan) -> tuple[Schedule, MemoryReport]:
        if plan not in self._built:
            schedule = build_schedule(self._program, self.workload, plan)
            self._built[plan] = schedule, report(self._program, self.workload, schedule, lay_out(schedule))
        return self._built[plan]

    def frontier(self, allow: tuple[str, ...]) -> Frontier:
        """Every plan that is not beaten in bytes and seconds, within what is allowed; computed once."""
        if allow not in self._frontiers:
            self._frontiers[allow] = Frontier(self._program, self.workload, self._rates, allow, self._tell)
        return self._frontiers[allow]

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """The entries by name, made when first asked for: planning under a budget needs none."""
        program, workload = self._program, self.workload
        plan = Plan(tuple(Tape(b) for b in range(program.n_blocks)))
        schedule = build_schedule(program, workload, plan)
        seconds = {op.step.index: self._rates.op_seconds(op, schedule, workload)
                   for op in schedule.ops if op.kind == Kind.FORWARD}
        entries = {}
        letters = {**workload.letters(1), "R": schedule.loss_rows}
        for value in program.values.values():
            readers = program.readers[value.name]
            if readers:
                step = program.steps[value.step]
                nbytes = elements(value.shape, letters) * ITEMSIZES[value.dtype or workload.dtype]
                entries[value.name] = Entry(value.name, value.key, value.block, value.group, nbytes,
                                            seconds.get(value.step, 0.0), tuple(step.inputs.values()),
                                            tuple(s.name for s in readers), value.optional,
                                            value.name in program.passed_between, value.meaning, value.role,
                                            value.dtype == NARROW)
        return entries
