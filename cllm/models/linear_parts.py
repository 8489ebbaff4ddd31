"""The linear parts of a model, by the words that choose them: q, k and v of a fused product apart, gate and up, out, ...

A part is some columns of a `Linear` step. Its words are the step's own name, those of the slices that the layer after it makes
of the product, and what the family's files call it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cllm.errors import ConfigError
from cllm.layers import GatedActivation, Linear
from cllm.models.architecture import Architecture
from cllm.program.parts import Step
from cllm.program.program import Program

ALSO = {"out": "o", "fc2": "down"}  # what others call a step


@dataclass(frozen=True, slots=True)
class LinearPart:
    """Columns `start` to `stop` of a step's product.

    Attributes
    ----------
    step, word : str
        The first of its words; ``step.word`` is its whole name.
    words : frozenset of str
    """

    step: str
    word: str
    start: int
    stop: int
    words: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.step}.{self.word}"

    def matches(self, target: str) -> bool:
        """Whether a target means it: one of its words, or a pattern of whole names such as ``blocks.[01].*.q``."""
        return target in self.words or fnmatchcase(self.name, target)


def linear_parts(architecture: Architecture) -> list[LinearPart]:
    """Every part of every `Linear` step, the whole product of each among them."""
    program = architecture.program
    endings = _endings(architecture, program)
    found = []
    for step in program.steps:
        if type(step.layer) is not Linear:
            continue
        word, width = step.name.rpartition(".")[2], step.layer.O
        slices = _slices(program, step)
        ways = [(name, start, stop, {name}) for name, (start, stop) in slices.items()]
        other = ALSO.get(word, "up" if word == "fc1" and not slices else word)
        ways.append((word, 0, width, {word, other}))
        for name, start, stop, words in ways:
            words |= {ending for ending, at in endings.get(step.params["weight"], ()) if at == (start, stop)}
            found.append(LinearPart(step.name, name, start, stop, frozenset(words)))
    return found


def chosen_parts(where: str, architecture: Architecture, targets: Iterable[str]) -> list[LinearPart]:
    """The parts that targets mean, in order.

    Raises
    ------
    ConfigError
        When a target means none, or two of them the same columns.
    """
    parts = linear_parts(architecture)
    chosen: dict[tuple[str, int, int], LinearPart] = {}
    for target in targets:
        mine = _smallest(parts) if target == "all" else [part for part in parts if part.matches(target)]
        if not mine:
            words = sorted({word for part in parts for word in part.words})
            raise ConfigError(where, "must each mean a linear part of the model", repr(target),
                              f"There are {', '.join(words)}, and 'all'." if words else "It has no Linear layer.")
        chosen |= {(part.step, part.start, part.stop): part for part in mine}
    place = {step.name: step.index for step in architecture.program.steps}
    found = sorted(chosen.values(), key=lambda part: (place[part.step], part.start, part.stop))
    for first, second in zip(found, found[1:], strict=False):
        if first.step == second.step and second.start < first.stop:
            raise ConfigError(where, "must not mean the same columns twice", f"{first.name} and {second.name}",
                              "Choose a fused product, or its parts.")
    return found


def _smallest(parts: list[LinearPart]) -> list[LinearPart]:
    """All columns once: the slices of a product that has some, else the whole."""
    widths = {}
    for part in parts:
        widths.setdefault(part.step, []).append(part.stop - part.start)
    return [part for part in parts if len(widths[part.step]) == 1 or part.stop - part.start < max(widths[part.step])]


def _slices(program: Program, step: Step) -> dict[str, tuple[int, int]]:
    """What the layer that reads a product takes it apart into: queries, keys and values of heads, or a gate and what it lets
    through."""
    for reader in program.steps[step.index + 1:]:
        inputs = [name for name, value in reader.inputs.items() if value == step.output]
        if not inputs:
            continue
        layer, letters, width = reader.layer, reader.layer.letters, step.layer.O
        if isinstance(layer, GatedActivation):
            return {"gate": (0, width // 2), "up": (width // 2, width)}
        if inputs == ["qkv"] and {"H", "D"} <= letters.keys():
            q, k = letters["H"] * letters["D"], letters.get("K", letters["H"]) * letters["D"]
            return {"q": (0, q), "k": (q, q + k), "v": (q + k, q + 2 * k)} if q + 2 * k == width else {}
        return {}
    return {}


def _endings(architecture: Architecture, program: Program) -> dict[str, list[tuple[str, tuple[int, int]]]]:
    """For each parameter, the last words of the tensors that hold it in the family's files, and of which columns each."""
    found: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    if not architecture.model_types:
        return found
    for name, part in architecture.tensors(None).items():
        parameter = program.parameters.get(part.parameter)  # None of settings that the family's files cannot hold
        if name.endswith(".weight") and parameter is not None and len(parameter.shape) == 2:
            shape = parameter.shape
            whole = part.columns is None or len(part.columns) > 2
            module = name.removesuffix(".weight").split(".")
            at = (0, shape[-1]) if whole else tuple(part.columns)
            found.setdefault(part.parameter, []).extend((".".join(module[-count:]), at) for count in (1, 2))
    return found
