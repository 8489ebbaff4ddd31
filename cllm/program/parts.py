"""What a program consists of: `Step`, `Value`, `Parameter` and its `StoredForm`, `Constant`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from cllm.program.declare import Flow, Table
from cllm.program.dims import elements
from cllm.program.layer import Layer


@dataclass(frozen=True, slots=True)
class Value:
    """What one step leaves at one site: ``blocks.3.ln1.y``."""

    name: str
    shape: str
    dtype: str | None
    step: int
    block: int | None
    key: str
    group: str
    optional: bool
    meaning: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer in its place: the value that is each input, the parameter, table or feed that each local name is.

    `shapes` are those in which the layer is handed its inputs, sites and feeds, by local name; `rows` is what it takes for N:
    "N", or for example "16B". `frozen` are local names of parameters that are not trained, `unwanted` those of inputs below
    which nothing is.
    """

    index: int
    name: str
    layer: Layer
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: Mapping[str, str]
    tables: Mapping[str, str]
    feeds: Mapping[str, str]
    block: int | None
    shapes: Mapping[str, str]
    rows: str = "N"
    frozen: frozenset[str] = frozenset()
    unwanted: frozenset[str] = frozenset()

    @property
    def trains(self) -> frozenset[str]:
        """Local names of the parameters to whose gradients it adds."""
        layer = self.layer
        return frozenset(p.name for p in layer.params if layer.has(p) and p.name not in self.frozen
                         and "d" + p.name in layer.parameter_gradients())

    @property
    def is_still(self) -> bool:
        """Whether backward has nothing to do here: it trains nothing, and nobody wants the gradient of an input."""
        return bool(self.frozen or self.unwanted) and not self.trains and all(
            name in self.unwanted or name in self.feeds for name in self.layer.inputs)

    @property
    def sums_in_order(self) -> bool:
        """Whether a cut of the batch can change no bit here."""
        return bool(self.layer.in_order) or not (self.trains or self.layer.evaluate_flow.exists)

    @property
    def spared(self) -> frozenset[str]:
        """Names of the gradients that its layer is not to make, and leaves out."""
        return frozenset({"d" + name for name in (*self.frozen, *self.unwanted)} & self.layer.spares.keys())

    def flow(self, method: str) -> Flow:
        """The data flow of "accumulate" or "backward" here: what is left of it where something is frozen."""
        whole = getattr(self.layer, method + "_flow")
        if not self.frozen and not self.unwanted:
            return whole
        return _remaining(type(self.layer), method, self.frozen, self.unwanted)

    @property
    def output(self) -> str:
        """Name of the value that other steps read."""
        return self.outputs[self.layer.output]

    def letters(self, batch: Mapping[str, int]) -> dict[str, int]:
        """The layer's own letters, and those of the batch at hand as it sees them."""
        found = {**batch, **self.layer.letters, "N": elements(self.rows, batch)}
        if self.rows != "N":
            found.pop("T", None)  # its rows are no time steps
        if "R" in found:
            found["R"] = min(found["R"], found["N"])
        return found

    def shape_of(self, name: str) -> str | None:
        """The shape in which the layer is handed an array by that name, a gradient's that of what it belongs to; None where
        it stands nowhere."""
        if name == "dy":
            name = self.layer.output
        return self.shapes.get(name) or (self.shapes.get(name[1:]) if name[0] == "d" else None)


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How a frozen matrix is stored, as it lies in files: of each piece its kind, rows, bytes of a row, and whether it comes
    with an order of its rows, an int32 each."""

    pieces: tuple[tuple[str, int, int, bool], ...]

    @property
    def nbytes(self) -> int:
        return sum(rows * (row_bytes + 4 * ordered) for _, rows, row_bytes, ordered in self.pieces)

    @property
    def kinds(self) -> str:
        """In words: ``Q4_1 and Q8_0``."""
        return " and ".join(dict.fromkeys(kind for kind, *_ in self.pieces))


@dataclass(frozen=True, slots=True)
class Parameter:
    """An array that training changes: name, lengths, how it starts, whether weight decay applies, and how it is stored if not
    as an array of the workload's dtype."""

    name: str
    shape: tuple[int, ...]
    init: str | float
    std: float
    stored: StoredForm | None = None

    def nbytes(self, itemsize: int) -> int:
        """Bytes that it takes."""
        return prod(self.shape) * itemsize if self.stored is None else self.stored.nbytes

    @property
    def decays(self) -> bool:
        """Weight decay applies to weights with two or more axes."""
        return self.name.endswith(".weight") and len(self.shape) > 1


@dataclass(frozen=True, slots=True)
class Constant:
    """An array that nothing changes: name, lengths, and the layer whose table it is."""

    name: str
    shape: tuple[int, ...]
    table: Table
    layer: Layer

    def values(self) -> np.ndarray:
        """Make it: a float64 array of that shape."""
        return self.table.make(self.layer)


@lru_cache(maxsize=1024)
def _remaining(layer: type[Layer], method: str, frozen: frozenset[str], unwanted: frozenset[str]) -> Flow:
    """What is left of a method's data flow. Of gradients that nobody wants, those stay that the layer does not spare."""
    whole, gone = getattr(layer, method + "_flow"), {"d" + name for name in (*frozen, *unwanted)}
    gradients = {"d" + name for name in (*layer.inputs, *(p.name for p in layer.params))}
    made = [name for name in whole.writes if name in gradients]
    if gone.issuperset(made) and "loss" not in whole.writes:
        return Flow(exists=False)
    spared = gone & layer.spares.keys()
    wanted = {read for name in made if name not in spared for read in layer.spares.get(name, ())}
    needless = {read for name in spared for read in layer.spares[name]} - wanted
    return Flow(tuple(n for n in whole.reads if n not in needless), tuple(n for n in whole.writes if n not in spared))
