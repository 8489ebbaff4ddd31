"""Layer norm of every row: y = (x - mean) rstd w + b, with the biased variance (Ba, Kiros and Hinton 2016)."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class LayerNorm(Layer):
    """Over C channels; `eps` is added to the variance inside the root."""

    C: int
    eps: float = 1e-5

    sites = (
        Site("y", "N C", "normalised rows", group="norm"),
        Site("mean", "N", "mean of each row", group="statistics", dtype="float64",
             role="statistics"),
        Site("rstd", "N", "reciprocal standard deviation of each row", group="statistics", dtype="float64",
             role="statistics"),
    )
    costless = ("eps",)
    params = (Param("weight", "C", "ones"), Param("bias", "C", "zeros"))
    reads = {"x": "N C"}
    in_order = True
    spares = {"dweight": (), "dbias": ()}
    narrow = ("y",)
    adds = ("dx",)  # its input is the residual stream, whose gradient already has the branch around it

    def forward(self, x, weight, bias, *, y, mean, rstd):
        kernels.layernorm_forward(x, weight, bias, self.eps, y=y, mean=mean, rstd=rstd)

    def backward(self, dy, x, mean, rstd, weight, *, dx, dweight, dbias):
        kernels.layernorm_backward(dy, x, mean, rstd, weight, dx=dx, dweight=dweight, dbias=dbias)
