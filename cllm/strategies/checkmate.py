"""The optimal schedule by an integer program (Jain et al. 2020, *Checkmate*), solved by HiGHS."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from cllm.checks import checked_real, installing, keep
from cllm.errors import BuildError, PlanError
from cllm.planner.graph import Graph, Move, Node
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.limits import Attempt, UnderALimit
from cllm.strategies.writing import Writing


@dataclass(frozen=True, slots=True)
class Checkmate(UnderALimit):
    """Which step is rebuilt before which part of backward, and what is held from one to the next, of least seconds.

    A stage is a part of a step's backward that reads values. R[t, k] says that step k is rebuilt in stage t, at most once and
    in the order of forward; S[t, v] that value v is there when it begins; F[t, v, k] that v goes after step k of it. Bytes are
    those of the real schedule: gradients, scratch, and every value for its lifetime. Forward runs each step once. Within that
    no schedule is faster; with the gap, by no more than that.

    Parameters
    ----------
    limit : int or str
        Of total bytes, as of `MemoryBudget`.
    seconds : float
        Most that the solver may take for one program; what it has found by then is taken. Programs of more than three or four
        blocks want more than anybody has.
    gap : float
        Relative distance from the bound at which it stops.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    limit: int | str
    seconds: float = 60.0
    gap: float = 0.0
    micro_batch: int | None = None

    def __post_init__(self):
        UnderALimit.__post_init__(self)
        keep(self, "Checkmate", "seconds", checked_real, 0.0, inf, "()")
        keep(self, "Checkmate", "gap", checked_real)

    def attempts(self, ledger: Ledger) -> Attempt:
        graph = ledger.graph(self.micro_batch)

        def attempt(room: int) -> Plan | None:
            found = solve(graph, room, self.seconds, self.gap)
            if found.plan is None and not found.infeasible:
                raise PlanError(f"Checkmate(limit, seconds={self.seconds:g})", "must leave the solver time to find a schedule",
                                f"none after that time, for {found.variables:,} variables",
                                "Give it more seconds, fewer blocks, or ask MemoryBudget.")
            return found.plan

        return attempt


@dataclass(frozen=True, slots=True)
class Solved:
    """What the solver found: the plan, or None; seconds that it rebuilds and the bound below them; and whether it is proved
    that there is no plan."""

    plan: Plan | None
    seconds: float
    bound: float
    infeasible: bool
    variables: int


@dataclass(frozen=True, slots=True)
class _Stage:
    """A part of backward that reads values, its step's number, and the most bytes beside values until the next begins."""

    number: int
    move: Move
    idle: int


def solve(graph: Graph, room: int, seconds: float, gap: float = 0.0) -> Solved:
    """The best schedule within so many live bytes.

    Raises
    ------
    BuildError
        Without scipy.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise BuildError("Checkmate", "needs scipy's integer programming", "no scipy", installing("lab")) from error
    program = _Program(graph, room)
    if not program.feasible:
        return Solved(None, inf, inf, True, 0)
    rows, columns, entries = (np.array(line) for line in zip(*program.entries, strict=True))
    matrix = coo_array((entries, (rows, columns)), shape=(len(program.most), program.count)).tocsr()
    unit = max(program.cost.values(), default=1.0) or 1.0
    cost = np.zeros(program.count)
    cost[list(program.cost)] = np.array([*program.cost.values()]) / unit
    whole = np.zeros(program.count)
    whole[list(program.whole)] = 1
    answer = milp(cost, integrality=whole, bounds=Bounds(0, 1), constraints=[LinearConstraint(matrix, -inf, program.most)],
                  options={"time_limit": seconds, "mip_rel_gap": gap})
    bound = answer.mip_dual_bound if answer.mip_dual_bound is not None else 0.0
    if answer.x is None:
        return Solved(None, inf, bound * unit, answer.status == 2, program.count)
    return Solved(program.plan(answer.x), float(answer.fun) * unit, bound * unit, False, program.count)


class _Program:
    """The variables by what they mean, and rows of the form sum <= most."""

    def __init__(self, graph: Graph, room: int):
        self.graph, self.room = graph, room
        self.entries: list[tuple[int, int, float]] = []
        self.most: list[float] = []
        self.cost: dict[int, float] = {}
        self.whole: set[int] = set()
        self.count = 0
        self.feasible = True
        self.number = {node.name: i for i, node in enumerate(graph.nodes)}
        self.made_by = {v: self.number[node.name] for v, node in graph.maker.items()}
        self.readers: dict[str, list[int]] = {v: [] for v in graph.nbytes}
        for i, node in enumerate(graph.nodes):
            for v in dict.fromkeys(node.reads):
                self.readers[v].append(i)
        self.stages = list(self._stages())
        self.rebuilt: dict[tuple[int, int], int] = {}
        self.held: dict[tuple[int, str], int] = {}
        for t, stage in enumerate(self.stages):
            for i, node in enumerate(graph.nodes[:stage.number + 1]):
                if node.values:
                    self.rebuilt[t, i] = self._variable(node.seconds)
            for v, i in self.made_by.items():
                if i <= stage.number:
                    self.held[t, v] = self._variable()
        self._forward()
        for t in range(len(self.stages)):
            self._flow(t)
            self._memory(t)

    def _stages(self) -> Iterator[_Stage]:
        moves = [(i, move) for i in reversed(range(len(self.graph.nodes))) for move in self.graph.nodes[i].moves]
        starts = [n for n, (_, move) in enumerate(moves) if move.reads] + [len(moves)]
        self._before = max((m.beside for _, m in moves[:starts[0]]), default=0)
        for n, after in zip(starts, starts[1:], strict=False):
            yield _Stage(*moves[n], max((m.beside for _, m in moves[n + 1:after]), default=0))

    def _variable(self, cost: float | None = None, whole: bool = True) -> int:
        number, self.count = self.count, self.count + 1
        if cost is not None:
            self.cost[number] = cost
        if whole:
            self.whole.add(number)
        return number

    def _row(self, terms, most: float) -> None:
        """A row; one without variables that does not hold makes the whole infeasible."""
        terms = [(column, factor) for column, factor in terms if column is not None]
        if not terms:
            self.feasible = self.feasible and most >= 0
            return
        self.entries += [(len(self.most), column, factor) for column, factor in terms]
        self.most.append(most)

    def _bytes(self, terms, most: int) -> None:
        """A row of bytes, in parts of the room, so that its numbers are near one."""
        self._row([(column, nbytes / self.room) for column, nbytes in terms], most / self.room)

    def _forward(self) -> None:
        """Each step of forward runs beside what later ones read, and beside what the first stage is to find."""
        for i, node in enumerate(self.graph.nodes):
            if not node.values:
                continue
            fixed, terms = node.scratch, []
            for v, made in self.made_by.items():
                if made == i or made < i <= max(self.readers[v], default=-1):
                    fixed += self.graph.nbytes[v]
                elif made < i:
                    terms.append((self.held.get((0, v)), self.graph.nbytes[v]))
            self._bytes(terms, self.room - fixed)
        self._bytes([(self.held[0, v], self.graph.nbytes[v]) for v in self.made_by if (0, v) in self.held],
                    self.room - self._before)

    def _flow(self, t: int) -> None:
        """What is read is there; what is held was held or made before."""
        stage = self.stages[t]
        for v, i in self.made_by.items():
            held, made, later = self.held.get((t, v)), self.rebuilt.get((t, i)), self.held.get((t + 1, v))
            if held is None:
                continue
            self._row([(held, 1), (made, 1)], 1)  # never two copies
            if later is not None:
                self._row([(later, 1), (held, -1), (made, -1)], 0)
            if v in stage.move.reads:
                self._row([(held, -1), (made, -1)], -1)
            for reader in self.readers[v]:
                if (t, reader) in self.rebuilt:
                    self._row([(self.rebuilt[t, reader], 1), (held, -1), (made, -1)], 0)

    def _memory(self, t: int) -> None:
        """What is there at each rebuild of a stage, at its move, and until the next."""
        stage, graph = self.stages[t], self.graph
        alive = [(self.held[t, v], graph.nbytes[v]) for v in self.made_by if (t, v) in self.held]
        for i, node in enumerate(graph.nodes[:stage.number + 1]):
            made = self.rebuilt.get((t, i))
            if made is None:
                continue
            alive = [*alive, (made, sum(node.values.values()))]
            self._bytes([*alive[:-1], (made, alive[-1][1] + node.scratch)], self.room - stage.move.waiting)
            for v in dict.fromkeys((*node.reads, *node.values)):
                if v not in stage.move.reads:
                    alive = [*alive, (self._freed(t, v, i, made), -graph.nbytes[v])]
        self._bytes(alive, self.room - stage.move.beside)
        self._bytes([(self.held.get((t + 1, v)), graph.nbytes[v]) for v in self.made_by], self.room - stage.idle)

    def _freed(self, t: int, v: str, i: int, made: int) -> int:
        """The variable that says that a value goes after that step: it ran, none after it reads it, nor does a later stage."""
        freed = self._variable(whole=False)
        self._row([(freed, 1), (made, -1)], 0)
        if (t + 1, v) in self.held:
            self._row([(freed, 1), (self.held[t + 1, v], 1)], 1)
        for reader in self.readers[v]:
            if reader > i and (t, reader) in self.rebuilt:
                self._row([(freed, 1), (self.rebuilt[t, reader], 1)], 1)
        return freed

    def plan(self, x: np.ndarray) -> Plan:
        """The script of a solution."""
        chosen = {key for key, n in (*self.rebuilt.items(), *self.held.items()) if x[n] > 0.5}
        writing = Writing(self.graph)
        for node in self.graph.runs:
            writing.make(node)
        t = 0
        writing.free([v for v in writing.here if (0, v) not in chosen])
        for i in reversed(range(len(self.graph.nodes))):
            node: Node = self.graph.nodes[i]
            for move in (m for m in node.moves if m.reads):
                for k, rebuilt in enumerate(self.graph.nodes[:i + 1]):
                    if (t, k) in chosen:
                        writing.make(rebuilt)
                if move.word == "accumulate":
                    writing.backward(node, "accumulate")
                else:
                    writing.backward(node)
                t += 1
                writing.free([v for v in writing.here if (t, v) not in chosen])
            if not any(m.reads and m.word == "backward" for m in node.moves):
                writing.backward(node)
        return writing.plan()
