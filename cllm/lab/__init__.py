"""The laboratory: every strategy under one roof, measured; and plans for graphs that are no program of ours.

`run` measures, `from_json` reads a graph, `to_json` writes one of ours in the same form.
"""

from cllm.lab.experiment import run
from cllm.lab.foreign import Graph, from_json, to_json

__all__ = ["Graph", "from_json", "run", "to_json"]
