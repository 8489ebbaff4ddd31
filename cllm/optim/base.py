"""What every optimizer has: parameters by name, a rate, state; and the checks before a step.

Zeroing gradients belongs to the loop, never to a step: gradients may be added up over as many calls as one likes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from cllm import _kernels as kernels
from cllm.checks import checked_real
from cllm.errors import OptimizerError
from cllm.executor.spilling import StoredArray
from cllm.models.model import Model
from cllm.models.torn import Torn
from cllm.optim.checks import checked_model, matching, refuse_nonfinite, refuse_stale, refuse_unplanned
from cllm.optim.states import States
from cllm.plans.plan import checked_states
from cllm.program.optimizer_states import OPTIMIZER_STATES, Part
from cllm.tensors import Shard


class Optimizer(ABC):
    """What every optimizer has: the parameters it moves, a rate that may change between steps, and its state.

    A step goes over the arrays of all parameters at once. They are bound at the first one, so neither `names` nor the
    entries of `state` can be replaced: write into the arrays. States are made at first use, or where `keep_states` says.

    Attributes
    ----------
    lr : float
        May be changed between steps.
    steps : int
        Steps taken.
    names : tuple of str
        Parameters that it moves.
    state : Mapping
        By parameter name, the arrays that `parts` tells of.
    """

    couples_decay: ClassVar[bool] = True

    def __init__(self, model: Model, lr: float, weight_decay: float, names: str | tuple[str, ...] | None):
        kind = type(self).__name__
        self._model = checked_model(kind, model)
        self._revision = model.revision
        self.lr = checked_real(f"{kind}(lr=...)", lr)
        self.weight_decay = checked_real(f"{kind}(weight_decay=...)", weight_decay)
        self._names = matching(kind, model, names)
        self._states: States | None = None
        self.torn = Torn(f"the state of {kind}")
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
        return MappingProxyType({name: self._presented(parts) for name, parts in self.states.arrays().items() if parts})

    @property
    def states(self) -> States:
        """Where the state is."""
        if self._states is None:
            self._states = States(self._model, self.names, self.parts)
        return self._states

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays that it keeps for each parameter."""
        return OPTIMIZER_STATES[self.kind]

    @property
    def state_names(self) -> tuple[str, ...]:
        """What these are called."""
        return tuple(part.name for part in self.parts)

    @property
    def model(self) -> Model:
        """Whose parameters it moves."""
        return self._model

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name under which its state is counted: what `Executor` takes as ``optimizer``."""

    @abstractmethod
    def _update(self, names: tuple[str, ...], grads: kernels.ArrayList, params: kernels.ArrayList,
                state: tuple[kernels.ArrayList | kernels.CodeList, ...], weight_decay: np.ndarray) -> None:
        """Move `params`, those of `names`, and `state` by its parts; `weight_decay` of each array is 0 for those that do not
        decay."""

    def arrays(self) -> dict[str, np.ndarray | Part]:
        """All state as flat names, ``tok_emb.weight.m``; what a snapshot keeps beside `steps`."""
        self.torn.refuse()
        return self._flat(self.states.arrays())

    def stored(self) -> dict[str, np.ndarray | StoredArray | Shard]:
        """The same, where arrays on disk are read and written by calls (`StoredArray`)."""
        self.torn.refuse()
        return self._flat(self.states.stored())

    def keep_states(self, where: str) -> None:
        """Keep the state in memory ("memory"), or in a file without a name in a directory ("disk:DIR"); what there is moves.

        Raises
        ------
        PlanError, SpillError
            The state is where it was.
        """
        if self.states.move(checked_states(f"{type(self).__name__}.keep_states(where)", where)):
            self.__dict__.pop("_lists", None)

    def share_states(self, processes: int, part: Callable[[int, int], tuple[int, int]]) -> None:
        """Keep this process's part of the state from now on, see `States.share`: steps are those of an executor then."""
        if self.states.share(processes, part):
            self.__dict__.pop("_lists", None)

    def by_name(self) -> dict[str, "Optimizer"]:
        """Which optimizer moves each parameter."""
        return dict.fromkeys(self.names, self)

    def update(self, name: str, grad: np.ndarray, param: np.ndarray, state: tuple[np.ndarray, ...]) -> None:
        """Move one parameter, or a run of its elements, in the step that `begin_step` began.

        Parameters
        ----------
        grad, param : arrays of one length
        state : tuple of arrays
            What of its parts belongs to these elements.
        """
        decay = np.array([self.weight_decay * self._model.program.parameters[name].decays])
        self._update((name,), kernels.ArrayList([grad]), kernels.ArrayList([param]), tuple(_bound([s]) for s in state), decay)

    def check_step(self, planned: bool = False) -> None:
        """Refuse a step that cannot be taken; nothing is changed.

        Parameters
        ----------
        planned : bool
            Its memory is known to be planned for.

        Raises
        ------
        OptimizerError, TornError, ConfigError
        """
        self.torn.refuse()
        refuse_stale(f"{type(self).__name__}.step()", self._model, self._revision)
        if not planned:
            if self._states is not None and self._states.shared:
                raise OptimizerError(f"{type(self).__name__}.step()", "must have its whole state",
                                     f"a part of it, which {self._states.processes} processes share",
                                     "Call train_step of the executor.")
            refuse_unplanned(self._model, self.kind, self.names)
        self.lr = checked_real(f"{type(self).__name__}.lr", self.lr)
        self.weight_decay = checked_real(f"{type(self).__name__}.weight_decay", self.weight_decay)

    def begin_step(self) -> None:
        """Count the step whose updates follow."""
        self.steps += 1

    def update_all(self) -> None:
        """Move every parameter by its gradient in the model, in the step that `begin_step` began."""
        self._update(self._names, *self._lists, self.weight_decay * self._decays)

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
            self.check_step()
            refuse_nonfinite(f"{type(self).__name__}.step()", self.names, self._lists[0])
            self.begin_step()
            self.update_all()

    @cached_property
    def _lists(self) -> tuple[kernels.ArrayList, kernels.ArrayList, tuple[kernels.ArrayList | kernels.CodeList, ...]]:
        gradients, parameters = self._model.gradients, self._model.parameters
        states = self.states.arrays()
        parts = zip(*(states[name] for name in self.names), strict=True)
        return (kernels.ArrayList(gradients[name] for name in self.names),
                kernels.ArrayList(parameters[name] for name in self.names),
                tuple(_bound(part) for part in parts))

    def _flat(self, states: Mapping[str, tuple]) -> dict:
        return {f"{name}.{part}": array for name, arrays in states.items()
                for part, array in zip(self.state_names, arrays, strict=True)}

    def _presented(self, parts: tuple[np.ndarray, ...]) -> np.ndarray | tuple[np.ndarray, ...]:
        return parts if len(parts) > 1 else parts[0]


def _bound(arrays: Sequence[np.ndarray]) -> kernels.ArrayList | kernels.CodeList:
    """Arrays of one part as the list that kernels take."""
    return (kernels.CodeList if arrays and arrays[0].dtype == np.uint8 else kernels.ArrayList)(arrays)
