"""Elementwise nonlinearity: GELU (Hendrycks and Gimpel 2016; tanh form and exact), ReLU, tanh or SiLU."""

from dataclasses import dataclass
from typing import ClassVar

from cllm import _kernels as kernels
from cllm.program.declare import Site
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class Activation(Layer):
    """`kind` is "gelu" (tanh form), "relu", "tanh", "silu" or "gelu_erf" (exact form); F columns."""

    F: int
    kind: str = "gelu"

    codes: ClassVar[dict[str, int]] = {"gelu": 0, "relu": 1, "tanh": 2, "silu": 3, "gelu_erf": 4}

    sites = (Site("y", "N F", "act(x)", group="act"),)
    reads = {"x": "N F"}
    overwrites = ("dx",)
    narrow = ("x", "y")

    def forward(self, x, *, y):
        kernels.activation_forward(x, self.codes[self.kind], y=y)

    def backward(self, dy, x, *, dx):
        kernels.activation_backward(dy, x, self.codes[self.kind], dx=dx)
