"""What layers hold constant, set apart: a model whose loss may be differentiated by shifting what is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from cllm.models.architecture import Architecture
from cllm.models.model import Model
from cllm.program.declare import Param
from cllm.program.parts import Step
from cllm.program.program import Program
from cllm.program.wiring import Wiring


@dataclass(frozen=True)
class _Apart(Architecture):
    """An architecture in which every step that holds something of a parameter constant reads a copy of its own."""

    of: Architecture

    def wire(self, w: Wiring) -> None:
        self.of.wire(w)

    def copies(self) -> list[tuple[Step, Param, str]]:
        """Each such step, what it declares, and the name of its copy."""
        return [(step, param, f"{step.params[param.name]}, as {step.name} reads it") for step in self.of.program.steps
                for param in step.layer.params if param.name in step.params and step.layer.held_rows(param) != slice(0)]

    @property
    def program(self) -> Program:
        found, parameters = self.of.program, dict(self.of.program.parameters)
        steps = list(found.steps)
        for step, param, name in self.copies():
            parameters[name] = replace(parameters[step.params[param.name]], name=name)
            wired = steps[step.index]
            steps[step.index] = replace(wired, params={**wired.params, param.name: name})
        return Program(tuple(steps), found.values, parameters, found.tables, found.feeds, found.longest)


class Shifting:
    """A model's parameters, element by element, wherever layers do not hold them constant.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    model : Model
        The same model, or one with copies of what is held.
    """

    def __init__(self, model: Model):
        apart = _Apart(model.architecture)
        copies = apart.copies()
        self.model = Model(apart, seed=None, dtype=model.dtype) if copies else model
        self._places = {name: [(self.model.parameters[name], slice(0))] for name in model.parameters}
        for name, parameter in model.parameters.items():
            self.model.parameters[name][...] = parameter
        for step, param, name in copies:
            of = step.params[param.name]
            self.model.parameters[name][...] = model.parameters[of]
            self._places[of].append((self.model.parameters[name], step.layer.held_rows(param)))

    @contextmanager
    def shifted(self, name: str, i: int, by: float) -> Iterator[None]:
        """Element number `i` of a parameter is larger by so much, in each place that does not hold it."""
        places = [(array, at) for array, held in self._places[name] for at in [np.unravel_index(i, array.shape)]
                  if at[0] not in range(*held.indices(len(array)))]
        kept = [array[at] for array, at in places]
        for array, at in places:
            array[at] += by
        try:
            yield
        finally:
            for (array, at), value in zip(places, kept, strict=True):
                array[at] = value
