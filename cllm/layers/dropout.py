"""Dropout (Srivastava et al. 2014) whose mask is a function of (seed, step, stream, index): nothing is stored."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.program.declare import Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class Dropout(Layer):
    """`rate` is the probability of dropping an element, `stream` the number of its mask."""

    C: int
    rate: float
    stream: int

    sites = (Site("y", "N C", "kept elements, scaled by 1 / (1 - rate)", group="residual", role="stream"),)
    costless = ("stream",)
    reads = {"x": "N C"}
    overwrites = ("dx",)

    def forward(self, x, key, *, y):
        if key is None:
            y[...] = x
        else:
            kernels.dropout_forward(x, key, self.stream, self.rate, y=y)

    def backward(self, dy, key, *, dx):
        kernels.dropout_backward(dy, key, self.stream, self.rate, dx=dx)
