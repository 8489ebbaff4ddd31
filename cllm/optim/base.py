"""What every optimizer has: parameters by name, a rate, state; and the checks before a step.

Zeroing gradients belongs to the loop, never to a step: gradients may be added up over as many calls as one likes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from cllm.arrays import aligned_zeros
from cllm.models.gpt import GPT
from cllm.optim.checks import checked_model, matching, real, refuse_nonfinite, refuse_unplanned

PIECE = 1 << 16  # elements in work at once where decay is coupled: gradient, parameter and state stay in the L2 cache


class Optimizer(ABC):
    """What every optimizer has: the parameters it moves, a rate that may change between steps, and its state.

    Attributes
    ----------
    lr : float
        May be changed between steps.
    steps : int
        Steps taken.
    names : tuple of str
        Parameters that it moves.
    state : dict
        By parameter name, arrays of the parameter's shape.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    couples_decay: ClassVar[bool] = True

    def __init__(self, model: GPT, lr: float, weight_decay: float, names: str | tuple[str, ...] | None):
        kind = type(self).__name__
        self._model = checked_model(kind, model)
        self.lr = real(f"{kind}(lr=...)", lr)
        self.weight_decay = real(f"{kind}(weight_decay=...)", weight_decay)
        self.names = matching(kind, model, names)
        self.steps = 0

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name under which its state is counted: what `Executor` takes as ``optimizer``."""

    @abstractmethod
    def _update(self, decays: bool, grad: np.ndarray, param: np.ndarray, state: tuple[np.ndarray, ...]) -> None:
        """Move `param` and `state`, flat arrays."""

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
        refuse_unplanned(self._model, self.kind, self.names)
        refuse_nonfinite(self._model, self.names, f"{type(self).__name__}.step()")
        self._apply()

    def _apply(self) -> None:
        real(f"{type(self).__name__}.lr", self.lr)
        real(f"{type(self).__name__}.weight_decay", self.weight_decay)
        self.steps += 1
        for name in self.names:
            decays = self._model.program.parameters[name].decays and self.weight_decay > 0
            arrays = (self._model.gradients[name], self._model.parameters[name], *self._state_of(name))
            for grad, param, *state in self._pieces([a.reshape(-1) for a in arrays], decays and self.couples_decay):
                self._update(decays, grad, param, tuple(state))

    def _pieces(self, arrays: list[np.ndarray], coupled: bool) -> Iterator[list[np.ndarray]]:
        """Gradient, parameter and state; with coupled decay piece by piece, the gradient plus weight_decay * param."""
        if not coupled:
            yield arrays
            return
        room = np.empty(min(PIECE, arrays[0].size), arrays[0].dtype)
        for start in range(0, arrays[0].size, PIECE):
            grad, param, *state = (a[start:start + PIECE] for a in arrays)
            decayed = np.multiply(param, self.weight_decay, out=room[:grad.size])
            decayed += grad
            yield [decayed, param, *state]

    def _state_of(self, name: str) -> tuple[np.ndarray, ...]:
        state = self.state.get(name, ())
        return state if isinstance(state, tuple) else (state,)


def zeros_like(model: GPT, name: str) -> np.ndarray:
    """Zeros of a parameter's shape and dtype."""
    return aligned_zeros(model.parameters[name].shape, model.parameters[name].dtype)
