"""What PyTorch's memory budget does: a knapsack of values that know nothing of one another."""

from dataclasses import dataclass

import numpy as np

from cllm.checks import checked_real, keep
from cllm.planner.graph import Graph
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.writing import Writing

SLOTS = 4096  # of the dynamic program


@dataclass(frozen=True, slots=True)
class Knapsack:
    """A stand-in for ``torch._functorch.config.activation_memory_budget``, on this project's arrays and kernels.

    Of the values that backward reads, those are kept whose steps take the most seconds in all within a share of the bytes
    of them all, each weighed for itself; the others are made again when backward first needs them, once, and stay to
    their last reader. Chains of dropped values, and what lives at once while they are rebuilt, are not looked at: so the
    true peak may rise where the share falls, which is what this strategy is here to show.

    Parameters
    ----------
    share : float
        From 0, nothing is kept, to 1, everything is.
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    share: float
    micro_batch: int | None = None

    def __post_init__(self):
        keep(self, "Knapsack", "share", checked_real, 0.0, 1.0, "[]")

    def decide(self, ledger: Ledger) -> Plan:
        graph = ledger.graph(self.micro_batch)
        read = {v for node in graph.nodes for move in node.moves for v in move.reads}
        wanted = [v for v in graph.nbytes if v in read]
        return dropping(graph, set(graph.nbytes) - _kept(graph, wanted, self.share)).plan()


def dropping(graph: Graph, dropped: set[str]) -> Writing:
    """A script that lets these values go when forward has read them, the head's part of it among that, and rebuilds each when
    backward first needs it."""
    writing = Writing(graph)
    last = {v: node.name for node in graph.nodes for v in node.reads}
    for node in graph.runs:
        writing.make(node)
        writing.free([v for v in writing.here if v in dropped and last.get(v, node.name) == node.name])
    for node in reversed(graph.nodes):
        writing.have(v for move in node.moves for v in move.reads)
        writing.backward(node)
        writing.free([v for v in writing.here if not node.values and v in dropped and last.get(v) == node.name])
    return writing


def _kept(graph: Graph, values: list[str], share: float) -> set[str]:
    """The knapsack: most seconds in a share of the bytes, by dynamic programming over slots, sizes rounded up."""
    most = sum(graph.nbytes[v] for v in values) * share
    slot = max(1.0, most / SLOTS)
    room = int(most / slot)
    best, taken = np.zeros(room + 1), []
    for v in values:
        size, gain = -int(-graph.nbytes[v] // slot), graph.maker[v].seconds
        with_it = np.concatenate((np.full(min(size, room + 1), -np.inf), best[:max(0, room + 1 - size)] + gain))
        taken.append(with_it > best)
        best = np.maximum(best, with_it)
    kept = set()
    for v, chosen in zip(reversed(values), reversed(taken), strict=True):
        if chosen[room]:
            kept.add(v)
            room -= -int(-graph.nbytes[v] // slot)
    return set(values) if share == 1 else kept
