"""Which parameters of a program are trained, and the same program with the others frozen.

What is frozen has no gradient and no state of an optimizer, and backward stops where nothing is trained below. Steps say so
(`Step.frozen`, `Step.unwanted`); what is kept, scheduled and counted follows from their data flow.
"""

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache

from cllm.errors import ConfigError
from cllm.program.program import Program

Patterns = str | Iterable[str] | None


def checked_patterns(where: str, patterns: Patterns) -> tuple[str, ...] | None:
    """Patterns as a tuple; None, which trains all, stays None.

    Raises
    ------
    ConfigError
        When they are neither text nor several texts.
    """
    found = (patterns,) if isinstance(patterns, str) else patterns
    if found is None:
        return None
    try:
        found = tuple(found)
    except TypeError:
        found = (None,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise ConfigError(where, "must be patterns of parameter names, or None for all", repr(patterns),
                          'Write for example "*lora*", or ("*.ln*", "head.*").')
    return found


def with_trained(program: Program, patterns: Patterns, where: str = "trainable") -> Program:
    """The program in which the parameters that one of the patterns matches are trained, and no others.

    Parameters
    ----------
    program : Program
    patterns : str, several of them, or None
        As of `fnmatch`; None trains all, none at all freezes all.
    where : str
        What an error begins with.

    Raises
    ------
    ConfigError
        When a pattern matches no parameter.
    """
    patterns = checked_patterns(where, patterns)
    if patterns is None:
        return program if not program.frozen else _trained(program, frozenset(program.parameters))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in program.parameters):
            near = get_close_matches(pattern, program.parameters, 3, 0.3)
            raise ConfigError(where, "every pattern must match a parameter", repr(pattern),
                              f"The nearest names are {', '.join(near)}." if near else "See model.parameters for the names.")
    return _trained(program, frozenset(name for name in program.parameters if any(fnmatchcase(name, p) for p in patterns)))


def refuse_untrained(where: str, program: Program) -> None:
    """Refuse to train a program of which all is frozen.

    Raises
    ------
    ConfigError
    """
    if program.parameters and not program.trained:
        raise ConfigError(where, "must have a parameter to train", "a model of which all is frozen",
                          'Say which with trainable, such as trainable="*lora*"; None trains all.')


@lru_cache(maxsize=64)  # equal ones share one, and what is known of it
def _trained(program: Program, names: frozenset[str]) -> Program:
    if names == frozenset(program.trained):
        return program
    steps, still = [], set()
    for step in program.steps:
        frozen = unwanted = frozenset()
        if not names.issuperset(program.parameters):  # a parameter that an instance does not have is trained nowhere
            frozen = frozenset(param.name for param in step.layer.params if step.params.get(param.name) not in names)
            unwanted = frozenset(name for name in step.layer.inputs if name in step.feeds or step.inputs[name] in still)
        steps.append(replace(step, frozen=frozen, unwanted=unwanted))
        if steps[-1].is_still:
            still.update(step.outputs.values())
    return Program(tuple(steps), program.values, program.parameters, program.tables, program.feeds, program.longest)
