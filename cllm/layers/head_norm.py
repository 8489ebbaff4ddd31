"""RMS norm of queries and keys before they are turned (Henry et al. 2020): of each head, or of all heads of a row together."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.layers.rmsnorm import identity
from cllm.program.declare import Param, Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class HeadNorm(Layer):
    """Columns q | k | v of H, K and K heads of D channels; v is passed on as it is.

    q is normalised in X pieces of Q channels that share a weight, k in Y pieces of M.
    """

    H: int
    K: int
    D: int
    E: int  # H + 2 K, heads of a row
    Q: int
    X: int
    M: int
    Y: int
    eps: float = 1e-6
    unit_offset: bool = False

    sites = (
        Site("y", "N ED", "queries, keys and values, q and k normalised", group="attn"),
        Site("q_rstd", "N X", "reciprocal root mean square of each piece of q", group="statistics", dtype="float64",
             role="statistics"),
        Site("k_rstd", "N Y", "reciprocal root mean square of each piece of k", group="statistics", dtype="float64",
             role="statistics"),
    )
    costless = ("eps",)
    params = (Param("q_weight", "Q", identity), Param("k_weight", "M", identity))
    reads = {"qkv": "N ED"}
    in_order = True
    overwrites = ("dqkv",)
    spares = {"dq_weight": (), "dk_weight": ()}
    narrow = ("qkv", "y")

    @classmethod
    def of(cls, H: int, K: int, D: int, each: bool, **settings) -> "HeadNorm":
        """The norm of each head, or of all of a row together."""
        pieces = dict(Q=D, X=H, M=D, Y=K) if each else dict(Q=H * D, X=1, M=K * D, Y=1)
        return cls(H=H, K=K, D=D, E=H + 2 * K, **pieces, **settings)

    def forward(self, qkv, q_weight, k_weight, *, y, q_rstd, k_rstd):
        kernels.copy_values(qkv, y=y)
        for columns, weight, rstd in zip(self._columns(), (q_weight, k_weight), (q_rstd, k_rstd), strict=True):
            kernels.rmsnorm_forward(qkv, weight, self.eps, self.unit_offset, *columns, y=y, rstd=rstd)

    def backward(self, dy, qkv, q_rstd, k_rstd, q_weight, k_weight, *, dqkv, dq_weight, dk_weight):
        dqkv[...] = dy
        parts = zip(self._columns(), (q_weight, k_weight), (q_rstd, k_rstd), (dq_weight, dk_weight), strict=True)
        for columns, weight, rstd, dweight in parts:
            kernels.rmsnorm_backward(dy, qkv, rstd, weight, self.unit_offset, False, *columns, dx=dqkv, dweight=dweight)

    def _columns(self):
        """The first column of q and of k, and the one after their last."""
        queries = self.H * self.D
        return (0, queries), (queries, queries + self.K * self.D)
