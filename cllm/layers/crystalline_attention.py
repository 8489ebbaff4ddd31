"""Attention whose scores know where tokens stand on a lattice: rotation, distance and bias, each switched by itself.

score = q . k / sqrt(D) - softplus(alpha) ln(1 + distance) + beta[(group of query - group of key) mod 12], with q and k
turned by the angle of their token's group. With none of the three it is `Attention`, bit for bit.
"""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.layers.lattice import lattice_coordinates
from cllm.program.declare import Feed, Param, Scratch, Site, Table
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.attention_workspace(letters["B"], letters["T"], layer.H, layer.D, threads, itemsize, layer.distance,
                                       layer.bias, bounded=layer.packed)


def _coordinates(layer):
    return lattice_coordinates(layer.V)


@dataclass(frozen=True, slots=True)
class CrystallineAttention(Layer):
    """H heads of D channels over V token ids; `rotation`, `distance` and `bias` say which terms there are.

    `packed`: sequences hold several documents, in each of which `positions` count from 0.
    """

    H: int
    D: int
    C: int  # H * D
    V: int
    rotation: bool = True
    distance: bool = True
    bias: bool = True
    packed: bool = False

    sites = (
        Site("y", "N C", "attended values", group="attn"),
        Site("lse", "B H T", "log-sum-exp of each row of scores", group="statistics", role="statistics"),
        Site("probs", "B H T T", "attention probabilities", group="probs", optional=True),
    )
    params = (Param("alpha", "H", -4.0, when="distance"), Param("beta", "H 12", "zeros", when="bias"))
    tables = (Table("coordinates", "V 3", _coordinates, when="distance"),)
    scratch = (Scratch("workspace", _workspace),)
    feeds = (Feed("positions", "N", "int32", 0, when="packed"),)
    reads = {"qkv": "N 3C"}
    across = True
    in_order = True

    def forward(self, qkv, tokens, coordinates, alpha, beta, positions=None, *, y, lse, probs, workspace):
        batch, terms = lse.shape[0], (tokens.reshape(-1), coordinates, alpha, beta, self.rotation)
        where = {"positions": positions, "documents": self.packed}
        kernels.attention_forward(qkv, batch, self.H, *terms, **where, y=y, lse=lse, workspace=workspace)
        if probs is not None:
            kernels.attention_probabilities(qkv, lse, batch, self.H, *terms, **where, probs=probs, workspace=workspace)

    def backward(self, dy, qkv, y, lse, probs, tokens, coordinates, alpha, beta, positions=None, *, dqkv, dalpha, dbeta,
                 workspace):
        kernels.attention_backward(dy, qkv, y, lse, lse.shape[0], self.H, probs, tokens.reshape(-1), coordinates, alpha,
                                   beta, self.rotation, positions=positions, documents=self.packed, dqkv=dqkv,
                                   dalpha=dalpha, dbeta=dbeta, workspace=workspace)

    def forward_flops(self, letters):
        # two products over the causal half of T x T, twelve channels more for the bias, about twenty for the distance
        channels = self.C + self.H * (6 * self.bias + 10 * self.distance)
        return 2.0 * letters["B"] * letters["T"] * (letters["T"] + 1) * channels

    def backward_flops(self, letters):
        return 2.5 * self.forward_flops(letters)
