"""Different optimizers for different parameters, chosen by patterns of names."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import numpy as np

from cllm.checks import checked_real
from cllm.errors import ConfigError, OptimizerError
from cllm.models.model import Model
from cllm.models.torn import Torn
from cllm.optim.base import Optimizer
from cllm.optim.checks import checked_model, refuse_nonfinite, refuse_unplanned
from cllm.program.trained import refuse_untrained


class Grouped:
    """Several optimizers as one: each parameter belongs to the first whose pattern its name matches.

    ``Grouped(model, {"*emb.weight": (cllm.Adam, {"lr": 1e-3}), "*": (cllm.SGD, {"lr": 0.1})})`` moves the embeddings by
    Adam and the rest by gradient descent.

    Parameters
    ----------
    model : Model
    groups : dict
        ``pattern -> (class, keyword arguments)``. Together they must cover every parameter that is trained, none in vain.

    lr : float or None
        The common rate; None takes that of the first group. Setting `lr` later scales the rates of all groups alike.
    """

    def __init__(self, model: Model, groups: Mapping[str, tuple[type[Optimizer], dict]], lr: float | None = None):
        refuse_untrained("Grouped", checked_model("Grouped", model).program)
        left = list(model.program.trained)
        self._model = model
        self.groups: dict[str, Optimizer] = {}
        for pattern, (make, settings) in groups.items():
            mine = tuple(n for n in left if fnmatchcase(n, pattern))
            if not mine:
                raise OptimizerError("Grouped(groups)", "every pattern must match a parameter that is still free",
                                     repr(pattern), "See model.parameters for the names; the first match counts.")
            left = [n for n in left if n not in mine]
            self.groups[pattern] = group = make(model, names=mine, **settings)
            group.torn = next(iter(self.groups.values())).torn
        if left:
            raise OptimizerError("Grouped(groups)", "must move every parameter", f"nothing for {', '.join(left)}",
                                 'Add a last group with the pattern "*".')
        self._lr = checked_real("Grouped(lr=...)", next(iter(self.groups.values())).lr if lr is None else lr)
        if not self._lr:
            raise ConfigError("Grouped(lr=...)", "must be above 0", "0", "Pass the rate at which the groups' own hold.")
        self._factors = {pattern: group.lr / self._lr for pattern, group in self.groups.items()}

    def __repr__(self) -> str:
        return f"Grouped({', '.join(f'{pattern!r}: {group!r}' for pattern, group in self.groups.items())})"

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = checked_real("Grouped.lr", value)
        for pattern, group in self.groups.items():
            group.lr = self._factors[pattern] * self._lr

    @property
    def steps(self) -> int:
        """Steps taken."""
        return next(iter(self.groups.values())).steps

    @steps.setter
    def steps(self, value: int) -> None:
        for group in self.groups.values():
            group.steps = value

    @property
    def kind(self) -> str:
        """``*emb.weight=adam,sgd``: what `Executor` takes as ``optimizer``."""
        return ",".join(group.kind if pattern == "*" else f"{pattern}={group.kind}"
                        for pattern, group in self.groups.items())

    def arrays(self) -> dict[str, np.ndarray]:
        """State of all groups by flat names."""
        return {name: array for group in self.groups.values() for name, array in group.arrays().items()}

    def stored(self) -> dict:
        """The same, where arrays on disk are read and written by calls; as `Optimizer.stored`."""
        return {name: array for group in self.groups.values() for name, array in group.stored().items()}

    @property
    def model(self) -> Model:
        """Whose parameters they move."""
        return self._model

    @property
    def torn(self) -> Torn:
        """The mark of all groups: a step moves them together."""
        return next(iter(self.groups.values())).torn

    def keep_states(self, where: str) -> None:
        """Where the states of all groups are kept; as `Optimizer.keep_states`."""
        for group in self.groups.values():
            group.keep_states(where)

    def share_states(self, processes: int, part: Callable[[int, int], tuple[int, int]]) -> None:
        """Keep this process's part of all groups' states; as `Optimizer.share_states`."""
        for group in self.groups.values():
            group.share_states(processes, part)

    def by_name(self) -> dict[str, Optimizer]:
        """Which optimizer moves each parameter."""
        return {name: group for group in self.groups.values() for name in group.names}

    def check_step(self, planned: bool = False) -> None:
        """Refuse a step that cannot be taken; as `Optimizer.check_step`."""
        if not planned:
            refuse_unplanned(self._model, self.kind, self._model.program.trained)
        for group in self.groups.values():
            group.check_step(planned=True)

    def begin_step(self) -> None:
        """Count the step whose updates follow."""
        for group in self.groups.values():
            group.begin_step()

    def update_all(self) -> None:
        """Move every parameter by its gradient in the model."""
        for group in self.groups.values():
            group.update_all()

    def step(self) -> None:
        """Update every parameter; as `Optimizer.step`."""
        with self._model.changed():
            self.check_step()
            refuse_nonfinite("Grouped.step()", self._model.program.trained, self._model.gradient_list)
            self.begin_step()
            self.update_all()
