"""Block-diagonal projections ("lattice" weights): head h sees only its own D channels."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.dims import COMPUTES
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.block_linear_workspace(letters["N"], layer.S, layer.H, layer.D, threads, itemsize, bool(layer.rounds))


@dataclass(frozen=True, slots=True)
class BlockLinear(Layer):
    """S products for each of H heads, D x D each: y[n, s, h, d] = sum_i weight[s, h, d, i] x[n, h, i] + bias[s, h, d]."""

    S: int
    H: int
    D: int
    O: int  # noqa: E741 (S * H * D: the letter of the shape)
    bias: bool = True
    group: str = ""
    std: float = 0.02
    compute: str = "float32"

    sites = (Site("y", "N O", "the S products side by side"),)
    costless = ("group", "std")
    params = (Param("weight", "S H D D"), Param("bias", "O", "zeros", when="bias"))
    scratch = (Scratch("workspace", _workspace),)
    reads = {"x": "N HD"}
    in_order = True
    spares = {"dweight": ("x",), "dbias": ()}
    narrow = ("x", "y")

    @property
    def rounds(self) -> int:
        return COMPUTES.index(self.compute)

    def forward(self, x, weight, bias, *, y, workspace):
        kernels.block_linear_forward(x, weight, bias, self.rounds, y=y, workspace=workspace)

    def accumulate(self, dy, x, sequence_rows, *, dweight, dbias, workspace):
        if dweight is not None:
            kernels.block_linear_backward_weight(x, dy, self.rounds, sequence_rows, dweight=dweight, dbias=dbias,
                                                 workspace=workspace)
        elif dbias is not None:
            kernels.linear_backward_bias(dy, dbias=dbias)

    def backward(self, dy, weight, *, dx, workspace):
        kernels.block_linear_backward_input(dy, weight, self.rounds, dx=dx, workspace=workspace)

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.S * self.H * self.D * self.D

    def spared_flops(self, gradient, letters):
        return self.forward_flops(letters) if gradient == "dweight" else 0.0
