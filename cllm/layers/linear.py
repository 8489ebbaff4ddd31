"""Affine map of every row: y = x W + b."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.dims import COMPUTES
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.linear_workspace(letters["N"], layer.I, layer.O, threads, itemsize, bool(layer.rounds))


@dataclass(frozen=True, slots=True)
class Linear(Layer):
    """I columns to O columns; `std` is the standard deviation of the initial weights, `compute` the dtype of operands."""

    I: int  # noqa: E741 (the letter of the shape)
    O: int  # noqa: E741
    bias: bool = True
    group: str = ""
    std: float = 0.02
    compute: str = "float32"

    sites = (Site("y", "N O", "x W + b"),)
    costless = ("group", "std")
    params = (Param("weight", "I O", stored=True), Param("bias", "O", "zeros", when="bias"))
    scratch = (Scratch("workspace", _workspace),)
    reads = {"x": "N I"}
    in_order = True
    spares = {"dweight": ("x",), "dbias": ()}
    narrow = ("x", "y")

    @property
    def rounds(self) -> int:
        return COMPUTES.index(self.compute)

    def forward(self, x, weight, bias, *, y, workspace):
        kernels.linear_forward(x, weight, bias, self.rounds, y=y, workspace=workspace)

    def accumulate(self, dy, x, sequence_rows, *, dweight, dbias, workspace):
        if dweight is not None:
            kernels.linear_backward_weight(x, dy, self.rounds, sequence_rows, dweight=dweight, dbias=dbias,
                                           workspace=workspace)
        elif dbias is not None:
            kernels.linear_backward_bias(dy, dbias=dbias)

    def backward(self, dy, weight, *, dx, workspace):
        kernels.linear_backward_input(dy, weight, None, self.rounds, dx=dx, workspace=workspace)

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.I * self.O

    def spared_flops(self, gradient, letters):
        return self.forward_flops(letters) if gradient == "dweight" else 0.0
