"""The residual stream: y = x + dropout(branch), or y = x + scale branch."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.errors import DeclarationError
from cllm.program.declare import Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class Residual(Layer):
    """`rate` is the probability of dropping an element of the branch, `stream` the number of its mask.

    Of `rate` and `scale` one is as it begins.
    """

    C: int
    rate: float = 0.0
    stream: int = 0
    scale: float = 1.0

    sites = (Site("y", "N C", "the stream after the branch", group="residual", role="stream"),)
    costless = ("stream",)
    reads = {"x": "N C", "branch": "N C"}
    passes = ("dx", "dbranch")

    def __post_init__(self):
        if self.rate and self.scale != 1.0:
            raise DeclarationError("Residual(rate=..., scale=...)", "must not both be given", f"{self.rate} and {self.scale}",
                                   "Add a Dropout before it.")

    def passed(self):
        return ("dx",) if self.rate or self.scale != 1.0 else self.passes

    def forward(self, x, branch, key, *, y):
        if self.rate and key is not None:
            kernels.residual_dropout_forward(x, branch, key, self.stream, self.rate, y=y)
        else:
            kernels.residual_forward(x, branch, self.scale, y=y)

    def backward(self, dy, key, *, dbranch):
        if self.rate:
            kernels.dropout_backward(dy, key, self.stream, self.rate, dx=dbranch)
        else:
            kernels.scale_and_cap(dy, self.scale, y=dbranch)
