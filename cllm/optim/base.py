"""What every optimizer has: parameters by name, a rate, state; and the checks before a step.

Zeroing gradients belongs to the loop, never to a step: gradients may be added up over as many calls as one likes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from cllm import _kernels as kernels
from cllm.arrays import aligned_zeros
from cllm.checks import checked_real
from cllm.models.model import Model
from cllm.optim.checks import checked_model, matching, refuse_nonfinite, refuse_stale, refuse_unplanned


class Optimizer(ABC):
    """What every optimizer has: the parameters it moves, a rate that may change between steps, and its state.

    A step goes over the arrays of all parameters at once. They are bound at the first one, so neither `names` nor the
    entries of `state` can be replaced: write into the arrays.

    Attributes
    ----------
    lr : float
        May be changed between steps.
    steps : int
        Steps taken.
    names : tuple of str
        Parameters that it moves.
    state : Mapping
        By parameter name, arrays of the parameter's shape.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    couples_decay: ClassVar[bool] = True

    def __init__(self, model: Model, lr: float, weight_decay: float, names: str | tuple[str, ...] | None):
        kind = type(self).__name__
        self._model = checked_model(kind, model)
        self._revision = model.revision
        self.lr = checked_real(f"{kind}(lr=...)", lr)
        self.weight_decay = checked_real(f"{kind}(weight_decay=...)", weight_decay)
        self._names = matching(kind, model, names)
        self._state: dict[str, np.ndarray | tuple[np.ndarray, ...]] = {}
        self._decays = np.array([model.program.parameters[name].decays for name in self._names], np.float64)
        self.steps = 0

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(lr={self.lr:g}, weight_decay={self.weight_decay:g}, {len(self._names)} parameters, "
                f"{self.steps} steps taken)")

    def __getstate__(self) -> dict:
        """What it is made of; the lists that kernels go over are bound anew in a copy or another process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lists", "_revision")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._revision = self._model.revision

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def state(self) -> Mapping[str, np.ndarray | tuple[np.ndarray, ...]]:
        return MappingProxyType(self._state)

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name under which its state is counted: what `Executor` takes as ``optimizer``."""

    @abstractmethod
    def _update(self, grads: kernels.ArrayList, params: kernels.ArrayList, state: tuple[kernels.ArrayList, ...],
                weight_decay: np.ndarray) -> None:
        """Move `params`, and `state` by its parts; `weight_decay` of each array is 0 for those that do not decay."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All state as flat names, ``tok_emb.weight.m``; what a snapshot keeps beside `steps`."""
        return {f"{name}.{part}": array for name in self.names
                for part, array in zip(self.state_names, self._state_of(name), strict=False)}

    def step(self) -> None:
        """Update every parameter from its gradient; the gradients stay as they are.

        Raises
        ------
        OptimizerError
            When the executor planned memory for an optimizer of smaller state.
        NonFiniteError
            When a gradient is NaN or infinite. Nothing is changed.
        """
        with self._model.changed():
            refuse_stale(f"{type(self).__name__}.step()", self._model, self._revision)
            refuse_unplanned(self._model, self.kind, self.names)
            refuse_nonfinite(f"{type(self).__name__}.step()", self.names, self._lists[0])
            self._apply()

    def _apply(self) -> None:
        self.lr = checked_real(f"{type(self).__name__}.lr", self.lr)
        self.weight_decay = checked_real(f"{type(self).__name__}.weight_decay", self.weight_decay)
        self.steps += 1
        self._update(*self._lists, self.weight_decay * self._decays)

    @cached_property
    def _lists(self) -> tuple[kernels.ArrayList, kernels.ArrayList, tuple[kernels.ArrayList, ...]]:
        gradients, parameters = self._model.gradients, self._model.parameters
        parts = zip(*(self._state_of(name) for name in self.names), strict=True)
        return (kernels.ArrayList(gradients[name] for name in self.names),
                kernels.ArrayList(parameters[name] for name in self.names),
                tuple(kernels.ArrayList(part) for part in parts))

    def _state_of(self, name: str) -> tuple[np.ndarray, ...]:
        state = self._state.get(name, ())
        return state if isinstance(state, tuple) else (state,)


def zeros_like(model: Model, name: str) -> np.ndarray:
    """Zeros of a parameter's shape and dtype."""
    return aligned_zeros(model.parameters[name].shape, model.parameters[name].dtype)
