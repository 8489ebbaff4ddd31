"""A workload's steps as a graph of values with bytes and seconds: what strategies that plan step by step are told."""

from collections.abc import Mapping
from dataclasses import dataclass

from cllm.planner.costs import Speeds, op_step_seconds
from cllm.plans.plan import Plan
from cllm.plans.tree import Tape
from cllm.program.kinds import Kind
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.schedule.build import build_schedule
from cllm.schedule.report import batch_bytes, gradient_bytes, optimizer_bytes, parameter_bytes, table_bytes


@dataclass(frozen=True, slots=True)
class Move:
    """A part of a step's backward, during which nothing can be rebuilt.

    Attributes
    ----------
    word : str
        The line of a `Script` in which it runs: accumulate or backward.
    reads : tuple of str
        Values.
    seconds : float
        In a step, all micro-batches together.
    waiting, beside : int
        Bytes of gradients that wait when it begins, and of gradients and scratch while it runs.
    """

    word: str
    reads: tuple[str, ...]
    seconds: float
    waiting: int
    beside: int


@dataclass(frozen=True, slots=True)
class Node:
    """A step.

    Attributes
    ----------
    name : str
    block : int or None
    values : dict of int by str
        Bytes of what it makes, the optional left out.
    reads : tuple of str
        Values that forward reads.
    seconds : float
        Of forward in a step, all micro-batches together; 0 where forward makes nothing that anybody reads.
    scratch : int
        Bytes that forward needs beside values; of gradients that wait for the end of the step, too.
    is_product : bool
        Whether arithmetic bounds it, not memory: as it declares.
    moves : tuple of Move
        Its backward, in order.
    """

    name: str
    block: int | None
    values: Mapping[str, int]
    reads: tuple[str, ...]
    seconds: float
    scratch: int
    is_product: bool
    moves: tuple[Move, ...]


class Graph:
    """Nodes in the order of forward, at one size of micro-batch.

    Attributes
    ----------
    nodes : tuple of Node
    micro_batch, loss_rows : int or None
        Of its plans.
    fixed_bytes : int
        Of a plan's total, what is not in the arena.
    nbytes : dict of int by value
    maker : dict of Node by value
    """

    def __init__(self, nodes: tuple[Node, ...], micro_batch: int | None, loss_rows: int | None, fixed_bytes: int):
        self.nodes, self.micro_batch, self.loss_rows, self.fixed_bytes = nodes, micro_batch, loss_rows, fixed_bytes
        self.nbytes = {v: n for node in nodes for v, n in node.values.items()}
        self.maker = {v: node for node in nodes for v in node.values}

    @property
    def runs(self) -> tuple[Node, ...]:
        """The nodes that run forward."""
        return tuple(node for node in self.nodes if node.values)


def graph_of(program: Program, workload: Workload, speeds: Speeds, micro_batch: int | None, loss_rows: int | None) -> Graph:
    """The graph, read off the schedule that keeps everything."""
    schedule = build_schedule(program, workload, Plan(tuple(map(Tape, range(program.n_blocks))), micro_batch, loss_rows))
    beside, waiting = _beside(schedule)
    forward, moves = {}, {step.name: [] for step in program.steps}
    for position, op in enumerate(schedule.ops[:schedule.epilogue]):
        seconds = op_step_seconds(op, schedule, workload, speeds)
        if op.kind == Kind.FORWARD:
            forward[op.step.name] = seconds, beside[position], {b.value: b.nbytes for b in (
                schedule.buffers[n] for _, n in op.writes) if b.value}
        else:
            named = {schedule.buffers[b].value for _, b in op.reads} - {""}
            first = op.kind in (Kind.ACCUMULATE, Kind.STASH)
            moves[op.step.name].append(Move("accumulate" if first else "backward", tuple(sorted(named)), seconds,
                                            waiting[position], beside[position]))
    letters = {**workload.letters(schedule.micro_batch), "R": schedule.loss_rows}
    made = {v for _, _, values in forward.values() for v in values}
    nodes = []
    for step in program.steps:
        seconds, scratch, values = forward.get(step.name, (0.0, 0, {}))
        nodes.append(Node(step.name, step.block, values, tuple(v for v in step.inputs.values() if v in made), seconds, scratch,
                          step.layer.forward_flops(step.letters(letters)) > 0, tuple(moves[step.name])))
    fixed = (sum(of(program, workload) for of in (parameter_bytes, gradient_bytes, optimizer_bytes, table_bytes))
             + batch_bytes(program, workload, schedule.micro_batch))
    return Graph(tuple(nodes), micro_batch, loss_rows, fixed)


def _beside(schedule) -> tuple[list[int], list[int]]:
    """For each operation, bytes of gradients and scratch alive while it runs, and of gradients that are there before it."""
    beside, waiting = ([0] * (len(schedule.ops) + 1) for _ in range(2))
    for b in schedule.buffers:
        if b.kind in ("gradient", "stash", "scratch"):
            beside[b.first] += b.nbytes
            beside[b.last + 1] -= b.nbytes
        if b.kind == "stash" or b.kind == "gradient" and b.last > b.first:
            waiting[b.first + (b.kind == "gradient")] += b.nbytes
            waiting[b.last + 1] -= b.nbytes
    for line in (beside, waiting):
        for i in range(1, len(line)):
            line[i] += line[i - 1]
    return beside, waiting
