"""Options that several commands share: the model, the job, and where results go.

The options of the model are made from the fields of `ModelConfig`, so a new setting is an option on the day it is
born.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import click

from cllm.calibrate import calibrate, is_calibrated, wants_seconds
from cllm.cli.files import json_place
from cllm.models.architecture import Architecture
from cllm.models.gpt import CHOICES, PRESETS, ModelConfig
from cllm.program.workload import ITEMSIZE, OPTIMIZER_STATES, Workload

# Names that differ from the field's: what people type.
SPELLED = {"n_layers": "layers", "n_heads": "heads"}

HELP = {
    "vocab_size": "Number of token ids, V.",
    "n_layers": "Number of blocks.",
    "d_model": "Channels of the residual stream, C.",
    "n_heads": "Attention heads, H.",
    "d_ff": "Channels of the feed-forward layer, F.",
    "max_seq_len": "Longest sequence the model takes; a longer --seq-len raises it.",
    "qkv": "One full product for q, k and v, or block-diagonal ones.",
    "qkv_bias": "A bias on q, k and v.",
    "out_proj": "A projection after attention.",
    "positions": "How a token's position enters.",
    "activation": "Between the two products of the feed-forward layer.",
    "tied": "The head shares the token embedding.",
    "attention": "Kind of attention.",
    "dropout": "Probability of dropping.",
    "norm_eps": "Added to the variance inside the root of a norm.",
    "loss": "What training minimises.",
    "crystalline": "Parts of crystalline attention that are on: rotation, distance, bias.",
}


def model_options(default_preset: str) -> Callable:
    """Options ``--preset`` and one for every field of `ModelConfig`; read them with `config_of`."""

    def decorate(command):
        for field in reversed(fields(ModelConfig)):
            command = _setting(field.name)(command)
        return click.option("--preset", type=click.Choice(sorted(PRESETS)), default=default_preset,
                            help="Sizes to start from; the settings below change single ones.")(command)

    return decorate


def _setting(name: str) -> Callable:
    spelled = SPELLED.get(name, name).replace("_", "-")
    example = getattr(ModelConfig.preset("tiny"), name)
    text = HELP.get(name, f"{name} of the model.")
    if isinstance(example, bool):
        return click.option(f"--{spelled}/--no-{spelled}", name, default=None, help=text, show_default=False)
    if isinstance(example, tuple):
        return click.option(f"--{spelled}", name, default=None, callback=_split, metavar="A,B,...", help=text)
    kind = click.Choice(CHOICES[name]) if name in CHOICES else type(example)
    return click.option(f"--{spelled}", name, type=kind, default=None, help=text)


def _split(_ctx, _param, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part for part in value.split(",") if part)


def config_of(options: dict, seq_len: int | None = None) -> ModelConfig:
    """Take the model's options out of `options` and make the configuration they ask for."""
    settings = {field.name: options.pop(field.name) for field in fields(ModelConfig)}
    changes = {name: value for name, value in settings.items() if value is not None}
    config = ModelConfig.preset(options.pop("preset"), **changes)
    if seq_len is not None and seq_len > config.max_seq_len and settings["max_seq_len"] is None:
        return ModelConfig(**{**config.to_dict(), "max_seq_len": seq_len})
    return config


def size_options(batch_size: int, seq_len: int) -> Callable:
    """Options ``--batch-size``, ``--seq-len``, ``--dtype`` and ``--threads``."""
    return _all(
        click.option("--batch-size", type=int, default=batch_size, help="Sequences in a batch, B."),
        click.option("--seq-len", type=int, default=seq_len, help="Tokens in a sequence, T."),
        click.option("--dtype", type=click.Choice(list(ITEMSIZE)), default="float32"),
        click.option("--threads", type=int, default=None, show_default="as cllm info says",
                     help="Threads of the kernels; results do not depend on it."))


def optimizer_option(command):
    """Option ``--optimizer``: whose state is counted."""
    return click.option("--optimizer", type=click.Choice(list(OPTIMIZER_STATES)), default="adamw",
                        help="Whose state is counted.")(command)


def json_option(command):
    """Option ``--json FILE``, passed on as ``json_path``."""
    return click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), default=None,
                        callback=json_place, help="Write the result there, as JSON; - is standard output.")(command)


def _all(*decorators: Callable) -> Callable:
    def decorate(command):
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def calibrate_option(command):
    """``--calibrate/--no-calibrate``: measure this machine first, should a budget have to be decided on."""
    return click.option("--calibrate/--no-calibrate", "measure", default=True,
                        help="Before the first run under a budget, measure this machine for this model and batch (some "
                             "20 s at most, kept for later runs), or decide by declared work.")(command)


def calibrate_first(architecture: Architecture, workload: Workload, strategies: Iterable[str], limit: int | None = None,
                    always: bool = False) -> None:
    """Calibrate for the workload, should a strategy (or the caller, `always`) decide by seconds and nothing be stored;
    say so."""
    if (always or any(wants_seconds(s) for s in strategies)) and not is_calibrated(architecture, workload):
        click.echo("measuring this machine once for this model and batch (--no-calibrate leaves it out) ...", err=True)
        try:
            calibrate(architecture, workload, lambda text: click.echo(f"  {text}", err=True), limit)
        except OSError as error:
            click.echo(f"measurements cannot be kept, so declared work decides: {error}", err=True)
