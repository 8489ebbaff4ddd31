"""``--sweep KEY=V1,V2,...``: keys are the command's own options for sizes and the model, whose values are read as theirs
are, and other fields of the model's family, whose values are read as those of ``--set``."""

from collections.abc import Callable
from functools import partial
from itertools import product

import click

from cllm.cli.options import options_of
from cllm.errors import ConfigError
from cllm.models.architecture import Architecture
from cllm.models.settings import names_of, setting_of

SIZES = ("batch_size", "seq_len", "dtype", "threads", "compute", "groups", "processes")


def swept(ctx: click.Context, texts: tuple[str, ...], kind: type[Architecture]) -> dict[str, list]:
    """Values by parameter name, or by field of the family `kind`.

    Raises
    ------
    click.BadParameter
        For a key that is no size or setting of the model, a value that its option would refuse, or either one twice.
    """
    keys = _sweepable(ctx, kind)
    found: dict[str, list] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        name, read = keys.get(key.strip().replace("-", "_"), (None, None))
        if name is None or not equals:
            known = ", ".join(sorted({name: spelled for spelled, (name, _) in keys.items()}.values()))  # typed ones go last
            raise click.BadParameter(f"{text!r} must be KEY=V1,V2,... with one of the keys {known}", param_hint="--sweep")
        if name in found:
            raise click.BadParameter(f"{key!r} is swept twice", param_hint="--sweep")
        found[name] = [read(value.strip()) for value in values.split(",")]
        if any(value in found[name][:position] for position, value in enumerate(found[name])):
            raise click.BadParameter(f"{text!r} has a value twice", param_hint="--sweep")
    return found


def settings(values: dict[str, list]) -> list[dict]:
    """Every combination of the swept values, the last key fastest; one empty setting where nothing is swept."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _sweepable(ctx: click.Context, kind: type[Architecture]) -> dict[str, tuple[str, Callable[[str], object]]]:
    """Name and reader of what may be swept, by that name and by what people type."""
    found = {name: (name, partial(_of_field, kind, name)) for name in names_of(kind)}
    for option in ctx.command.params:
        if option.name in (*SIZES, *options_of(kind)):
            found[option.name] = found[_spelling(option)] = option.name, partial(_of_option, ctx, option)
    return found


def _spelling(option: click.Parameter) -> str:
    return option.opts[0].lstrip("-").replace("-", "_")


def _of_option(ctx: click.Context, option: click.Option, text: str):
    kind = click.BOOL if option.is_flag else option.type
    try:
        value = kind.convert(text, option, ctx)
    except click.BadParameter as error:
        raise click.BadParameter(f"{_spelling(option)}={text!r}: {error.message}", param_hint="--sweep") from error
    return tuple(part for part in value.split("+") if part) if option.name == "crystalline" else value


def _of_field(kind: type[Architecture], name: str, text: str):
    try:
        return setting_of(kind, name, text)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--sweep") from error
