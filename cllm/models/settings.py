"""Settings of an architecture as text, ``n_layers=4``: read by the types of its fields."""

import types
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Literal, Union, get_args, get_origin, get_type_hints

from cllm.errors import ConfigError
from cllm.models.architecture import Architecture

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def settings_of(kind: type[Architecture], texts: Iterable[str]) -> dict[str, object]:
    """Values by name of texts such as ``n_layers=4``; a tuple's parts are joined by ``+``, ``none`` is None.

    Raises
    ------
    ConfigError
        When the family has no such field, a value does not fit it, or one is given twice.
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name in found:
            raise ConfigError(f"--set {text}", "must be FIELD=VALUE, each field once", "no =" if not equals else "it twice",
                              "Write for example --set n_layers=4.")
        found[name] = setting_of(kind, name, value)
    return found


def setting_of(kind: type[Architecture], name: str, text: str):
    """One value: `text` as the field `name` of the family takes it; errors as `settings_of`."""
    if name not in names_of(kind):
        raise ConfigError(f"--set {name}=...", f"must be a field of {kind.__name__}", repr(name),
                          f"It has {', '.join(names_of(kind)) or 'none'}.")
    wanted = _types(kind)[name]
    try:
        return _read(wanted, text)
    except (ValueError, KeyError) as error:
        words = getattr(wanted, "__name__", str(wanted)) if get_origin(wanted) is None else str(wanted)
        raise ConfigError(f"--set {name}=...", f"must be a value of {words}", repr(text),
                          "Numbers, texts, true or false, none, and tuples of them, a+b, can be written.") from error


def names_of(kind: type[Architecture]) -> list[str]:
    """Names of the settings of a family."""
    return [field.name for field in fields(kind) if field.init]


def _types(kind: type[Architecture]) -> dict[str, object]:
    """Types by name of field; of what is annotated with a name that is not there, that of the default."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {field.name: type(_default(field)) for field in fields(kind)}


def _default(field: Field):
    return field.default_factory() if field.default is MISSING and field.default_factory is not MISSING else field.default


def _read(wanted, text: str):
    if get_origin(wanted) in (Union, types.UnionType):
        return _first(sorted(get_args(wanted), key=_strictness), text)
    if get_origin(wanted) is Literal:
        return {str(value): value for value in get_args(wanted)}[text]
    if get_origin(wanted) is tuple or wanted is tuple:
        parts, kinds = [part for part in text.split("+") if part], get_args(wanted) or (str, ...)
        kinds = kinds[:1] * len(parts) if kinds[-1] is ... else kinds
        return tuple(_read(one, part) for one, part in zip(kinds, parts, strict=True))
    if wanted is type(None):
        return {"none": None}[text.lower()]
    if wanted is bool:
        return TRUTH[text.lower()]
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return wanted[text]
    if wanted in (int, float, str):
        return wanted(text)
    raise ValueError(wanted)


def _first(kinds: list, text: str):
    """The value by the first of several types that takes it."""
    for wanted in kinds:
        with suppress(ValueError, KeyError):
            return _read(wanted, text)
    raise ValueError(text)


def _strictness(wanted) -> int:
    """The order in which types are tried: a text is whatever is nothing else."""
    order = [type(None), int, float, bool]
    return order.index(wanted) if wanted in order else len(order) + (wanted is str)
