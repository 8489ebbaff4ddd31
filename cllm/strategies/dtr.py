"""Dynamic tensor rematerialization (Kirisame et al. 2021): drop what is cheap, large and stale when room runs out."""

from collections.abc import Iterable
from dataclasses import dataclass

from cllm.planner.graph import Graph, Node
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.limits import Attempt, UnderALimit
from cllm.strategies.writing import Writing


@dataclass(frozen=True, slots=True)
class DTR(UnderALimit):
    """A cache of values, driven over the program once, before the first step; what it did is the plan.

    Where a step needs room, the value of the least h = (c + e) / (m s) goes: c the seconds of its step, m its bytes, s the
    seconds since it was made or read last, e the seconds of the dropped values that hang together with it (h_DTR-eq of the
    paper: classes of neighbours that are joined when dropped; a class loses a value's seconds when it is made again). What a
    step needs and is not there is made again, recursively. A value that no later step reads for itself goes at once.

    Parameters
    ----------
    limit : int or str
        Of total bytes, as of `MemoryBudget`.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    limit: int | str
    micro_batch: int | None = None

    def attempts(self, ledger: Ledger) -> Attempt:
        graph = ledger.graph(self.micro_batch)
        return lambda room: _driven(graph, room)


class _Full(Exception):
    """Nothing that may go is left."""


def _driven(graph: Graph, room: int) -> Plan | None:
    try:
        return _Cache(graph, room).drive()
    except _Full:
        return None


class _Cache:
    """The state while the program is gone through."""

    def __init__(self, graph: Graph, room: int):
        self.graph, self.room = graph, room
        self.writing = Writing(graph)
        self.clock = 0.0
        self.used_at: dict[str, float] = {}
        self.bytes = 0
        self.uses = {v: 0 for v in graph.nbytes}
        self.neighbours = {v: [*node.reads] for v, node in graph.maker.items()}
        for node in graph.runs:
            for v in node.reads:
                self.uses[v] += 1
                self.neighbours[v] += list(node.values)
        for v in (v for node in graph.nodes for move in node.moves for v in move.reads):
            self.uses[v] += 1
        self.classes: dict[str, int] = {}  # of what was dropped
        self.parent: list[int] = []
        self.seconds: list[float] = []

    def drive(self) -> Plan:
        """Forward, then backward."""
        graph = self.graph
        for node in graph.runs:
            self.have(node.reads, 0)
            self.make(node, 0, set(node.reads))
            self.done(node.reads)
        for node in reversed(graph.nodes):
            for word in ("accumulate", "backward"):
                moves = [move for move in node.moves if move.word == word]
                reads = {v for move in moves for v in move.reads}
                if moves:
                    self.have(reads, moves[0].waiting)
                    self.make_room(max(move.beside for move in moves), reads)
                    self.clock += sum(move.seconds for move in moves)
                if word == "backward" or reads:
                    self.writing.backward(node, word)
                self.done([v for move in moves for v in move.reads])
        return self.writing.plan()

    def have(self, values: Iterable[str], waiting: int) -> None:
        """Make again what is not there; what is needed for that, and what was asked for, stays meanwhile."""
        asked = list(values)
        missing = [v for v in asked if v not in self.writing.here]
        while missing:
            node = self.graph.maker[missing[-1]]
            if missing[-1] in self.writing.here:
                missing.pop()
            elif before := [v for v in node.reads if v not in self.writing.here]:
                missing += before
            else:
                held = {*asked, *(u for v in missing for u in self.graph.maker[v].reads), *missing}
                self.make(node, waiting, held)
        for v in asked:
            self.used_at[v] = self.clock

    def make(self, node: Node, waiting: int, held: set[str]) -> None:
        """Run a step, after room was made for it."""
        for v in [v for v in node.values if v in self.writing.here]:
            self.go(v)
        self.make_room(waiting + node.scratch + sum(node.values.values()), held)
        self.writing.make(node)
        self.clock += node.seconds
        for v, nbytes in node.values.items():
            self.bytes += nbytes
            self.used_at[v] = self.clock
            if v in self.classes:
                self.seconds[self.root(v)] -= node.seconds
                del self.classes[v]
        for v in node.reads:
            self.used_at[v] = self.clock

    def make_room(self, nbytes: int, held: set[str]) -> None:
        """Drop values until so many bytes are free beside those that stay."""
        while self.bytes + nbytes > self.room:
            choice = [v for v in self.writing.here if v not in held]
            if not choice:
                raise _Full
            self.drop(min(choice, key=self.worth))

    def worth(self, value: str) -> float:
        """h: the less, the sooner it goes."""
        classes = {self.root(u) for u in self.neighbours[value] if u in self.classes}
        seconds = self.graph.maker[value].seconds + sum(self.seconds[c] for c in classes)
        stale = self.clock - self.used_at[value]
        return seconds / (self.graph.nbytes[value] * stale) if stale > 0 and self.graph.nbytes[value] else float("inf")

    def drop(self, value: str) -> None:
        """Let a value go; it joins the class of its neighbours that went before."""
        self.go(value)
        self.classes[value] = mine = len(self.parent)
        self.parent.append(mine)
        self.seconds.append(self.graph.maker[value].seconds)
        for other in {self.root(u) for u in self.neighbours[value] if u in self.classes} - {mine}:
            self.parent[other] = mine
            self.seconds[mine] += self.seconds[other]

    def go(self, value: str) -> None:
        """Free a value."""
        self.writing.free([value])
        self.bytes -= self.graph.nbytes[value]

    def root(self, value: str) -> int:
        """The class of a value that was dropped."""
        number = self.classes[value]
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def done(self, values: Iterable[str]) -> None:
        """These were read; what nobody reads for itself any more goes."""
        for v in values:
            self.uses[v] -= 1
            if not self.uses[v] and v in self.writing.here:
                self.drop(v)
