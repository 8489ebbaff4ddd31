"""The residual stream: y = x + dropout(branch)."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Layer, Site


@dataclass(frozen=True, slots=True)
class Residual(Layer):
    """`rate` is the probability of dropping an element of the branch, `stream` the number of its mask."""

    C: int
    rate: float = 0.0
    stream: int = 0

    sites = (Site("y", "N C", "the stream after the branch", group="residual", role="stream"),)
    costless = ("stream",)
    reads = {"x": "N C", "branch": "N C"}
    passes = ("dx", "dbranch")

    def passed(self):
        return ("dx",) if self.rate else self.passes

    def forward(self, x, branch, key, *, y):
        if self.rate and key is not None:
            kernels.residual_dropout_forward(x, branch, key, self.stream, self.rate, y=y)
        else:
            kernels.residual_forward(x, branch, y=y)

    def backward(self, dy, key, *, dbranch):
        kernels.dropout_backward(dy, key, self.stream, self.rate, dx=dbranch)
