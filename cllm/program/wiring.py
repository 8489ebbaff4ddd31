"""`Wiring`, which builds a program line by line: what the file of a model uses."""

from collections.abc import Mapping
from contextlib import contextmanager

from cllm.errors import DeclarationError
from cllm.program.declare import Layer
from cllm.program.dims import resolve
from cllm.program.program import Constant, Parameter, Program, Step, Value


class Wiring:
    """Builds a `Program` line by line; what a model file uses."""

    def __init__(self):
        self._steps: list[Step] = []
        self._values: dict[str, Value] = {}
        self._parameters: dict[str, Parameter] = {}
        self._tables: dict[str, Constant] = {}
        self._block: int | None = None

    @contextmanager
    def block(self, number: int):
        """Steps added inside belong to block `number`, and their names begin with ``blocks.{number}.``"""
        self._block = number
        yield
        self._block = None

    def add(self, name: str, layer: Layer, letters: Mapping[str, int], params: Mapping[str, str] | None = None,
            **inputs: str) -> str:
        """Append a layer and return the name of its output value.

        Parameters
        ----------
        name : str
            Its name inside the block; parameters and tables are called ``name.param`` unless `params` names them
            otherwise.
        letters : dict
            The model's shape letters.
        **inputs : str
            For each input of the layer, the value that feeds it.
        """
        prefix = "" if self._block is None else f"blocks.{self._block}."
        full = prefix + name
        readable = all(v in self._values and self._steps[self._values[v].step].output == v for v in inputs.values())
        if set(inputs) != set(layer.inputs) or not readable:
            raise DeclarationError(full, f"needs the inputs {', '.join(layer.inputs) or 'none'}, outputs of earlier steps",
                                   str(inputs), "Wire each input to the output of a step added before.")
        if any(s.name == full for s in self._steps):
            raise DeclarationError(full, "names of steps must differ", "the name twice", "Choose another name.")
        mine = {**letters, **layer.letters}
        named = {p.name: (params or {}).get(p.name, f"{full}.{p.name}") for p in (*layer.params, *layer.tables)
                 if layer.has(p)}
        for param in filter(layer.has, layer.params):
            self._declare(self._parameters, Parameter(named[param.name], resolve(param.shape, mine), param.init,
                                                      getattr(layer, "std", 0.0)))
        for table in filter(layer.has, layer.tables):
            self._declare(self._tables, Constant(named[table.name], resolve(table.shape, mine), table, layer))
        local, constant = ({p.name: named[p.name] for p in kind if p.name in named}
                           for kind in (layer.params, layer.tables))
        outputs = {}
        for site in layer.sites:
            value = f"{full}.{site.name}"
            shape = " ".join(str(mine[p]) if p in layer.letters else p for p in site.shape.split())
            self._values[value] = Value(value, shape, site.dtype, len(self._steps), self._block, f"{name}.{site.name}",
                                        site.group or getattr(layer, "group", ""), site.optional, site.meaning)
            outputs[site.name] = value
        self._steps.append(Step(len(self._steps), full, layer, dict(inputs), outputs, local, constant, self._block))
        return outputs[layer.output]

    @staticmethod
    def _declare(known: dict, new: Parameter | Constant) -> None:
        first = known.setdefault(new.name, new)
        if first.shape != new.shape:
            raise DeclarationError(new.name, f"has the shape {first.shape} where it was named first", str(new.shape),
                                   "Share a parameter or table only between steps that agree on its shape.")

    def program(self) -> Program:
        """The finished program."""
        return Program(tuple(self._steps), self._values, self._parameters, self._tables)
