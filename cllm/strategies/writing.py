"""Writing a script line by line, with what is in memory at each of them."""

from collections.abc import Iterable

from cllm.planner.graph import Graph, Node
from cllm.plans.plan import Plan
from cllm.plans.script import Line, Script


class Writing:
    """The lines of a script, and the values that are there after the last of them.

    Attributes
    ----------
    here : dict of None by value
        In the order in which they were made.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.lines: list[Line] = []
        self.here: dict[str, None] = {}
        self._ran: set[str] = set()

    def make(self, node: Node) -> None:
        """Run a step, the first time or again; what it makes and is there already goes before."""
        self.free(v for v in node.values if v in self.here)
        self.lines.append(("rebuild" if node.name in self._ran else "forward", node.name))
        self._ran.add(node.name)
        self.here.update(dict.fromkeys(node.values))

    def have(self, values: Iterable[str]) -> None:
        """Rebuild what is not there, from what is."""
        missing = [v for v in values if v not in self.here]
        while missing:
            value = missing[-1]
            node = self.graph.maker[value]
            if value in self.here:
                missing.pop()
            elif before := [v for v in node.reads if v not in self.here]:
                missing += before
            else:
                self.make(node)

    def free(self, values: Iterable[str]) -> None:
        """Drop values that are there."""
        for value in list(values):
            del self.here[value]
            self.lines.append(("free", value))

    def backward(self, node: Node, word: str = "backward") -> None:
        """Run a step's backward, or the part of it that `word` says."""
        self.lines.append((word, node.name))

    def plan(self) -> Plan:
        """The plan of the script."""
        return Plan(Script(tuple(self.lines)), self.graph.micro_batch, self.graph.loss_rows)
