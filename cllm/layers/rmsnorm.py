"""RMS norm of every row: y = x rstd w, rstd = 1 / sqrt(mean of squares + eps) (Zhang and Sennrich 2019)."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Site
from cllm.program.layer import Layer


def identity(layer) -> str:
    """How a weight starts that leaves what is normalised as it is."""
    return "zeros" if layer.unit_offset else "ones"


@dataclass(frozen=True, slots=True)
class RMSNorm(Layer):
    """Over C channels; with `unit_offset` the factor is 1 + weight, which then starts at zero (Gemma)."""

    C: int
    eps: float = 1e-6
    unit_offset: bool = False

    sites = (
        Site("y", "N C", "normalised rows", group="norm"),
        Site("rstd", "N", "reciprocal root mean square of each row", group="statistics", dtype="float64",
             role="statistics"),
    )
    costless = ("eps",)
    params = (Param("weight", "C", identity),)
    reads = {"x": "N C"}
    in_order = True
    spares = {"dweight": ()}
    narrow = ("y",)
    adds = ("dx",)  # its input is the residual stream, whose gradient already has the branch around it

    def forward(self, x, weight, *, y, rstd):
        kernels.rmsnorm_forward(x, weight, self.eps, self.unit_offset, y=y, rstd=rstd[:, None])

    def backward(self, dy, x, rstd, weight, *, dx, dweight):
        kernels.rmsnorm_backward(dy, x, rstd[:, None], weight, self.unit_offset, dx=dx, dweight=dweight)
