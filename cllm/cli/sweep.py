"""``--sweep KEY=V1,V2,...``: keys are the command's own options for sizes and the model, values are read as theirs are."""

from dataclasses import fields
from itertools import product

import click

from cllm.models.gpt import ModelConfig

SIZES = ("batch_size", "seq_len", "dtype", "threads", "preset")


def swept(ctx: click.Context, texts: tuple[str, ...]) -> dict[str, list]:
    """Values by parameter name.

    Raises
    ------
    click.BadParameter
        For a key that is no size or setting of the model, a value that its option would refuse, or either one twice.
    """
    options = _sweepable(ctx.command)
    found: dict[str, list] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        option = options.get(key.strip().replace("-", "_"))
        if option is None or not equals:
            known = ", ".join(sorted({_spelling(one) for one in options.values()}))
            raise click.BadParameter(f"{text!r} must be KEY=V1,V2,... with one of the keys {known}", param_hint="--sweep")
        if option.name in found:
            raise click.BadParameter(f"{key!r} is swept twice", param_hint="--sweep")
        found[option.name] = [_value(ctx, option, value.strip()) for value in values.split(",")]
        if any(value in found[option.name][:position] for position, value in enumerate(found[option.name])):
            raise click.BadParameter(f"{text!r} has a value twice", param_hint="--sweep")
    return found


def settings(values: dict[str, list]) -> list[dict]:
    """Every combination of the swept values, the last key fastest; one empty setting where nothing is swept."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _sweepable(command: click.Command) -> dict[str, click.Option]:
    """The options that may be swept, by the names of their parameters and by what people type."""
    names = {*SIZES, *(field.name for field in fields(ModelConfig))}
    found = {}
    for option in command.params:
        if option.name in names:
            found[option.name] = found[_spelling(option)] = option
    return found


def _spelling(option: click.Parameter) -> str:
    return option.opts[0].lstrip("-").replace("-", "_")


def _value(ctx: click.Context, option: click.Option, text: str):
    kind = click.BOOL if option.is_flag else option.type
    try:
        value = kind.convert(text, option, ctx)
    except click.BadParameter as error:
        raise click.BadParameter(f"{_spelling(option)}={text!r}: {error.message}", param_hint="--sweep") from error
    return tuple(part for part in value.split("+") if part) if option.name == "crystalline" else value
