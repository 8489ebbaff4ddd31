"""Token and position embedding: y[b, t] = weight[token[b, t]] + positions[t]."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.declare import Layer, Param, Site


@dataclass(frozen=True, slots=True)
class Embedding(Layer):
    """V rows of C channels; `learned` says whether there are P rows of learned positions."""

    V: int
    C: int
    P: int
    learned: bool = True
    std: float = 0.02

    sites = (Site("y", "N C", "embedded tokens", group="residual"),)
    params = (Param("weight", "V C"), Param("positions", "P C", when="learned"))

    def forward(self, tokens, weight, positions, *, y):
        kernels.embedding_forward(tokens.reshape(-1), weight, positions, tokens.shape[1], y=y)

    def accumulate(self, dy, tokens, *, dweight, dpositions):
        kernels.embedding_backward(tokens.reshape(-1), dy, tokens.shape[1], dweight=dweight, dpositions=dpositions)
