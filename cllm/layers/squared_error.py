"""The squared-error head: the mean of |x - embedding[target]|^2, the target's row held constant.

Its logits, x W^T, take no part in the loss: they are made only when somebody asks for them, and `weight` gets no
gradient.
"""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Param, Scratch, Site
from cllm.program.dims import COMPUTES
from cllm.program.layer import Layer


def _workspace(layer, letters, threads, itemsize):
    return kernels.linear_workspace(letters["N"], layer.V, layer.C, threads, itemsize)


def _losses(layer, letters, threads, itemsize):
    return letters["N"]


@dataclass(frozen=True, slots=True)
class SquaredErrorHead(Layer):
    """V rows of weights over C channels; `embedding` holds the rows that are aimed at."""

    V: int
    C: int
    std: float = 0.02
    compute: str = "float32"

    sites = (Site("logits", "N V", "scores of every token", group="logits", optional=True),)
    costless = ("std",)
    params = (Param("weight", "V C", constant=True), Param("embedding", "V C", constant=True))
    scratch = (Scratch("workspace", _workspace), Scratch("losses", _losses, "float64"))
    reads = {"x": "N C"}
    in_order = True

    def forward(self, x, weight, *, logits, workspace):
        kernels.linear_backward_input(x, weight, None, COMPUTES.index(self.compute), dx=logits, workspace=workspace)

    def evaluate(self, x, embedding, targets, *, loss, losses):
        kernels.squared_error_forward(x, embedding, targets.reshape(-1), losses=losses[:len(x)])
        kernels.accumulate_losses(losses[:len(x)], loss=loss)

    def backward(self, x, embedding, targets, scale, *, loss, dx, losses):
        kernels.squared_error_backward(x, embedding, targets.reshape(-1), scale, dy=dx, losses=losses[:len(x)])
        kernels.accumulate_losses(losses[:len(x)], loss=loss)

    def forward_flops(self, letters):
        return 2.0 * letters["N"] * self.V * self.C

    def backward_flops(self, letters):
        return 0.0
