"""`Adapted`: an architecture whose linear parts have low-rank adapters (Hu et al. 2021)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, sqrt
from typing import ClassVar

import numpy as np

from cllm.checks import checked_flag, checked_real, checked_size
from cllm.errors import ConfigError
from cllm.layers import AdaptedLinear
from cllm.models.architecture import Architecture, checked_architecture, record_of
from cllm.models.linear_parts import chosen_parts
from cllm.program.parts import Parameter
from cllm.program.program import Program
from cllm.program.trained import Patterns, checked_patterns, with_trained
from cllm.program.wiring import Wiring
from cllm.weights.parts import Part

FIRST_STREAM = 1 << 30  # of the masks of adapters: those of the base lie below, those that round values above


@dataclass(frozen=True, slots=True)
class Adapted(Architecture):
    """`base` with an adapter of `rank` rows on each linear part that `targets` mean.

    Parameters
    ----------
    base : Architecture
    rank : int
    alpha : float
        What adapters add is scaled by alpha / rank.
    targets : tuple of str
        As of `linear_parts.LinearPart.matches`.
    rslora : bool
        Scale by alpha / sqrt(rank) (Kalajdzievski 2023).
    dropout : float
        Probability of dropping an element of what adapters read, in [0, 1).

    Raises
    ------
    ConfigError
        When a value is outside what it may be, or a target means no part.
    """

    base: Architecture
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    rslora: bool = False
    dropout: float = 0.0

    family: ClassVar[str] = "adapted"

    def __post_init__(self):
        refuse_adapted("add_lora", checked_architecture("add_lora(model)", self.base))
        object.__setattr__(self, "rank", checked_size("add_lora(rank=...)", self.rank))
        for name, low, high, ends in (("alpha", 0.0, inf, "()"), ("dropout", 0.0, 1.0, "[)")):
            object.__setattr__(self, name, checked_real(f"add_lora({name}=...)", getattr(self, name), low, high, ends))
        object.__setattr__(self, "rslora", checked_flag("add_lora(rslora=...)", self.rslora))
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, (tuple, list)) or not targets or not all(isinstance(t, str) for t in targets):
            raise ConfigError("add_lora(targets=...)", "must be words", repr(self.targets), 'Write for example ("q", "v").')
        object.__setattr__(self, "targets", tuple(targets))
        chosen_parts("add_lora(targets=...)", self.base, self.targets)

    @property
    def scale(self) -> float:
        """By which what adapters add is multiplied."""
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)

    @property
    def causal(self) -> bool:
        return self.base.causal

    @property
    def parameter_groups(self) -> Mapping[str, tuple[str, ...]]:
        return self.base.parameter_groups

    @property
    def max_seq_len(self) -> int | None:
        return getattr(self.base, "max_seq_len", None)

    @property
    def vocab_size(self) -> int | None:
        return getattr(self.base, "vocab_size", None)

    @property
    def program(self) -> Program:
        return _adapted(self)

    def wire(self, w: Wiring) -> None:
        self.base.wire(w)

    def example_batch(self, rng: np.random.Generator, batch_size: int, seq_len: int | None) -> dict[str, np.ndarray]:
        return self.base.example_batch(rng, batch_size, seq_len)

    def describe(self) -> str:
        return f"{self.base.describe()}, adapters of rank {self.rank} on {', '.join(self.targets)}"

    def to_dict(self) -> dict:
        """Every setting by name; the base by its family and settings."""
        return {"base": record_of(self.base), "rank": self.rank, "alpha": self.alpha, "targets": list(self.targets),
                "rslora": self.rslora, "dropout": self.dropout}

    def tensors(self, names: Collection[str] | None) -> dict[str, Part]:
        """None: the ecosystem's files hold a base, and its adapters beside it."""
        raise ConfigError("save_pretrained", "must be of a model without adapters", "one with some",
                          "Keep the adapters with cllm.save_adapter, or merge them with cllm.merge_adapter first.")


def trained_of(architecture: Architecture, trainable: Patterns) -> tuple[str, ...] | None:
    """What patterns train of an architecture, or of the base of one with adapters: patterns, or names; None is all."""
    if not isinstance(architecture, Adapted):
        return checked_patterns("trainable", trainable)
    return tuple(n for n in with_trained(architecture.program, trainable).trained if n in architecture.base.program.parameters)


def refuse_adapted(where: str, architecture: Architecture) -> None:
    """Refuse an architecture that has adapters."""
    if isinstance(architecture, Adapted):
        raise ConfigError(f"{where}(model)", "must have no adapters yet", "a model with some",
                          "Merge them with cllm.merge_adapter, or begin with the base.")


@lru_cache(maxsize=64)
def _adapted(architecture: Adapted) -> Program:
    """The base's program, its steps with adapters in place of those without."""
    base, rank = architecture.base.program, architecture.rank
    chosen: dict[str, list[tuple[int, int]]] = {}
    for part in chosen_parts("add_lora(targets=...)", architecture.base, architecture.targets):
        chosen.setdefault(part.step, []).append((part.start, part.stop))
    steps, parameters = list(base.steps), dict(base.parameters)
    for stream, (name, slices) in enumerate(chosen.items()):
        step = next(step for step in steps if step.name == name)
        layer = step.layer
        width, rows = sum(stop - start for start, stop in slices), rank * len(slices)
        local = {f"lora_{which}": f"{name}.lora_{which}.weight" for which in "ab"}
        adapted = AdaptedLinear(I=layer.I, O=layer.O, U=rows, K=rank, W=width, slices=tuple(slices), scale=architecture.scale,
                                rate=architecture.dropout, stream=FIRST_STREAM + stream, bias=layer.bias, group=layer.group,
                                std=layer.std)
        steps[step.index] = replace(step, layer=adapted, params={**step.params, **local})
        for parameter, shape, init in ((local["lora_a"], (rows, layer.I), "fan_in"), (local["lora_b"], (rank, width), "zeros")):
            parameters[parameter] = Parameter(parameter, shape, init, 0.0)
    return Program(tuple(steps), base.values, parameters, base.tables, base.feeds, base.longest)


