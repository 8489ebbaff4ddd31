"""The family of the documents: lattice projections, crystalline attention, positions by the primes."""

from dataclasses import dataclass
from typing import ClassVar

from cllm.models.gpt import ModelConfig


@dataclass(frozen=True, slots=True)
class Crystalline(ModelConfig):
    """A `ModelConfig` that begins with what the documents name; every setting of it can be changed."""

    qkv: str = "lattice"
    qkv_bias: bool = False
    out_proj: bool = False
    positions: str = "prime"
    attention: str = "crystalline"

    family: ClassVar[str] = "crystalline"
    model_types: ClassVar[tuple[str, ...]] = ()
