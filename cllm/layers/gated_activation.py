"""A gated activation (Shazeer 2020): y = act(gate) * up, of the columns gate | up side by side."""

from dataclasses import dataclass
from typing import ClassVar

from cllm import _kernels as kernels
from cllm.layers.activation import Activation
from cllm.program.declare import Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class GatedActivation(Layer):
    """`kind` as of `Activation`; F columns of y, 2 F of x."""

    F: int
    kind: str = "silu"

    codes: ClassVar[dict[str, int]] = Activation.codes

    sites = (Site("y", "N F", "act(gate) * up", group="act"),)
    reads = {"x": "N 2F"}
    narrow = ("x", "y")

    def forward(self, x, *, y):
        kernels.gated_forward(x, self.codes[self.kind], y=y)

    def backward(self, dy, x, *, dx):
        kernels.gated_backward(dy, x, self.codes[self.kind], dx=dx)
