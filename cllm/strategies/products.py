"""What PyTorch's usual policy of selective checkpointing does: keep what products made, rebuild the rest block by block."""

from dataclasses import dataclass

from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.strategies.writing import Writing


@dataclass(frozen=True, slots=True)
class KeepProducts:
    """A stand-in for ``create_selective_checkpoint_contexts`` with a policy that saves every matrix product and attention.

    Each block keeps its input and what its products made; when backward reaches it, all the rest of the block that backward
    reads is made again at once, before the first gradient: so a whole block's values are there at the same time. What
    surrounds the blocks is kept.

    Parameters
    ----------
    micro_batch : int or None
        Sequences at a time; None is the whole batch.
    """

    micro_batch: int | None = None

    def decide(self, ledger: Ledger) -> Plan:
        graph = ledger.graph(self.micro_batch)
        writing = Writing(graph)
        outside = {v for node in graph.nodes for v in node.reads if graph.maker[v].block != node.block}
        dropped = [v for v, node in graph.maker.items()
                   if node.block is not None and not node.is_product and v not in outside]
        read = {v: node.name for node in graph.runs for v in node.reads}
        for node in graph.runs:
            writing.make(node)
            writing.free([v for v in dropped if v in writing.here and read.get(v, node.name) == node.name])
        block = None
        for node in reversed(graph.nodes):
            if node.block is not None and node.block != block:
                block = node.block
                mine = [n for n in graph.nodes if n.block == block]
                writing.have(v for n in mine for move in n.moves for v in move.reads)
            writing.backward(node)
        return writing.plan()
