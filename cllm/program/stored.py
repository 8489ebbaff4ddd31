"""A program whose frozen matrices are stored as they lie in files: in a narrow dtype, or in quantised blocks.

The layers that read them hand them to products, which widen them while they pack their operands. So nothing else of a program
changes: neither a value, nor an operation, nor a bit. What follows is how many bytes the parameters take, and that a plan is
for one way to store them.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from cllm.errors import ConfigError
from cllm.program.parts import StoredForm
from cllm.program.program import Program


def can_be_stored(program: Program) -> frozenset[str]:
    """Names of the parameters that all layers which have them read as they lie in files, too."""
    found, others = set(), set()
    for step in program.steps:
        for param in step.layer.params:
            if param.name in step.params:
                (found if param.stored else others).add(step.params[param.name])
    return frozenset(found - others)


def with_stored(program: Program, forms: Mapping[str, StoredForm], where: str = "stored") -> Program:
    """The program in which these frozen parameters, and no others, are stored so.

    Raises
    ------
    ConfigError
        When one of them is trained, or a layer reads arrays alone.
    """
    if forms == forms_of(program):
        return program
    for name in sorted(forms.keys() - can_be_stored(program)):
        raise ConfigError(where, "must store as they lie in files only matrices that every layer reads so", name,
                          "Expand it: numpy.asarray(array).")
    found = _stored(program, tuple(sorted(forms.items(), key=lambda item: item[0])))
    refuse_trained(where, found)
    return found


@lru_cache(maxsize=64)  # equal ones share one, and what is known of it
def _stored(program: Program, forms: tuple[tuple[str, StoredForm], ...]) -> Program:
    known = dict(forms)
    parameters = {name: replace(p, stored=known.get(name)) for name, p in program.parameters.items()}
    return Program(program.steps, program.values, parameters, program.tables, program.feeds, program.longest)


def forms_of(program: Program) -> dict[str, StoredForm]:
    """How each parameter is stored that is no array of the workload's dtype."""
    return {name: p.stored for name, p in program.parameters.items() if p.stored is not None}


def refuse_trained(where: str, program: Program) -> None:
    """Refuse to train what is stored as it lies in a file.

    Raises
    ------
    ConfigError
    """
    for name, form in forms_of(program).items():
        if name not in program.frozen:
            raise ConfigError(where, "must match no parameter that is mapped from a file", f"{name}, stored in {form.kinds}",
                              "Train others, such as adapters, or load the model without mapped=True.")
