"""What a strategy may know: one entry per value that backward reads, and what any plan costs."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from cllm.planner.block_costs import BlockCost, BlockCosts, EndCost
from cllm.planner.costs import Speeds, schedule_seconds
from cllm.planner.frontier import Frontier
from cllm.planner.graph import Graph, graph_of
from cllm.plans.check import check_plan, head_rows
from cllm.plans.plan import Estimate, Plan
from cllm.plans.script import Script
from cllm.plans.tree import Tape
from cllm.program.dims import NARROW, elements
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.arena import lay_out
from cllm.schedule.build import ITEMSIZES, Schedule, build_schedule, default_loss_rows, scores_in_a_row
from cllm.schedule.report import MemoryReport, optimizer_bytes, report
from cllm.schedule.written import written_out


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
        Of one group: the whole batch, unless it is cut into several.
    whole : Workload
        With its groups, and the processes that share them.
    n_blocks : int
    fingerprint : str
        Of program and workload: a plan is for one of them.
    sums_in_order : bool
        Whether a cut of the batch changes no bit.
    entries : dict of Entry by name
    asked : dict
        What the caller decides besides the strategy, by the field of a plan: "states", "update_in_backward".
    whole_steps : dict
        What `strategies.whole_step` has priced.
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
        self.whole, self.workload = workload, workload.group
        self.held_bytes = held_bytes
        self.n_blocks = program.n_blocks
        self._tell = tell
        self.fingerprint = workload.fingerprint(program)
        self.sums_in_order = program.sums_in_order
        self._graphs: dict[tuple[int | None, int | None], Graph] = {}
        self._frontiers: dict[tuple[str, ...], Frontier] = {}
        self.asked: dict[str, object] = {}  # set by `planning.decide`
        self.whole_steps: dict = {}
        self._built: dict[Plan, tuple[Schedule, MemoryReport]] = {}
        self._estimates: dict[Plan, Estimate] = {}

    def shared_by(self, processes: int) -> "Ledger":
        """The same work, shared by so many processes."""
        other = Ledger(self._program, replace(self.whole, processes=processes), self._rates, self.held_bytes, self._tell)
        other.asked = {**self.asked, "states": "memory"}
        other._frontiers = self._frontiers  # they are of one group
        return other

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
        check_plan(self._program, self.whole, plan)
        if plan not in self._estimates:
            self._estimates[plan] = self._estimate(*self._build(plan))
        return self._estimates[plan]

    def price(self, plan: Plan) -> tuple[int, float, int]:
        """Total bytes, seconds, and bytes on disk of a plan, of which nothing is remembered."""
        schedule, memory = self._made(plan)
        estimate = self._estimate(schedule, memory)
        return estimate.total_bytes, estimate.seconds, memory.disk_bytes

    @property
    def asks_more(self) -> bool:
        """Whether the caller asks for more than one group, gradients that are kept and states in memory."""
        return self.whole.groups > 1 or any(value not in (False, "memory") for value in self.asked.values())

    @property
    def has_states(self) -> bool:
        """Whether the workload's optimizer keeps anything."""
        return optimizer_bytes(self._program, self.whole) > 0

    def _estimate(self, schedule: Schedule, memory: MemoryReport) -> Estimate:
        seconds = schedule_seconds(schedule, self._program, self.whole, self._rates)
        return Estimate(memory.arena_bytes, memory.total_bytes, seconds, self._rates.source,
                        schedule.updates_in_backward and self.workload.clip_by == "all")

    def build(self, plan: Plan) -> tuple[Schedule, MemoryReport]:
        """The schedule of a plan and its memory report."""
        check_plan(self._program, self.whole, plan)
        return self._build(plan)

    def _build(self, plan: Plan) -> tuple[Schedule, MemoryReport]:
        if plan not in self._built:
            self._built[plan] = self._made(plan)
        return self._built[plan]

    def _made(self, plan: Plan) -> tuple[Schedule, MemoryReport]:
        mode = "step" if self.whole.processes > 1 else plan.mode
        schedule = build_schedule(self._program, self.whole, plan, mode)
        return schedule, report(self._program, self.whole, schedule, lay_out(schedule))

    def frontier(self, allow: tuple[str, ...]) -> Frontier:
        """Every plan that is not beaten in bytes and seconds, within what is allowed; computed once."""
        if allow not in self._frontiers:
            self._frontiers[allow] = Frontier(self._program, self.workload, self._rates, allow, self._tell)
        return self._frontiers[allow]

    def graph(self, micro_batch: int | None = None, loss_rows: int | None = None) -> Graph:
        """The steps with bytes and seconds, for a strategy that writes a script; computed once."""
        if (micro_batch, loss_rows) not in self._graphs:
            self._graphs[micro_batch, loss_rows] = graph_of(self._program, self.workload, self._rates, micro_batch, loss_rows)
        return self._graphs[micro_batch, loss_rows]

    def chain(self, micro_batch: int | None = None) -> tuple[tuple[BlockCost, ...], EndCost]:
        """What each block costs that keeps everything, and what surrounds the blocks."""
        micro = micro_batch or self.workload.batch
        costs = BlockCosts(self._program, self.workload, self._rates)
        of_kind = {kind: costs.block(number, micro, ("cache",)) for number, kind in enumerate(costs.kinds)
                   if number == costs.kinds.index(kind)}
        rows = head_rows(self._program, self.workload, micro)
        rows = default_loss_rows(rows, scores_in_a_row(self._program), self.workload.itemsize)
        return tuple(of_kind[kind] for kind in costs.kinds), costs.ends(micro, rows)

    def written_out(self, plan: Plan) -> Script:
        """A plan as a script; errors as `cllm.schedule.written.written_out`."""
        return written_out(self._program, self.build(plan)[0])

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
