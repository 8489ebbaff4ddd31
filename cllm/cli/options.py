"""Options that several commands share: the model, the job, and where results go.

The options of the model are made from the fields of the first family, so a new setting is an option on the day it is
born. Other families take theirs by ``--set``.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
from click.core import ParameterSource

from cllm.calibrate import calibrate_where_wanted
from cllm.cli.files import json_place
from cllm.models.architecture import Architecture
from cllm.models.choosing import family_named, is_files, made, settings_in
from cllm.models.families import FAMILIES, FIRST
from cllm.models.settings import names_of, settings_of
from cllm.program.dims import COMPUTES
from cllm.program.optimizer_states import OPTIMIZER_STATES
from cllm.program.workload import ITEMSIZE, Workload

FIELDS = tuple(names_of(FIRST))
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
    """Options ``--model``, ``--set``, ``--preset`` and one for every field of the first family; read them with
    `architecture_from`."""

    def decorate(command):
        for name in reversed(FIELDS):
            command = _setting(name)(command)
        command = click.option("--preset", type=click.Choice(sorted(FIRST.presets)), default=default_preset,
                               help="Sizes to start from; the settings below change single ones.")(command)
        command = click.option("--set", "assigned", multiple=True, metavar="FIELD=VALUE",
                               help="A setting of the model by the name of its field; again for another.")(command)
        return family_option(command)

    return decorate


def family_option(command):
    """Option ``--model``: which family of models; without it the first, or that of the file that is read."""
    return click.option("--model", metavar="FAMILY|DIR|FILE.gguf|FILE.py:Class|module:Class", default=None,
                        help=f"Family of the model: {', '.join(FAMILIES)}; a directory with config.json and safetensors, or a "
                             "GGUF file; or a class of yours that derives from cllm.Architecture.")(command)


def _setting(name: str) -> Callable:
    spelled = spelling(name)
    example = getattr(FIRST.preset("tiny"), name)
    text = HELP.get(name, f"{name} of the model.")
    if isinstance(example, bool):
        return click.option(f"{spelled}/--no-{spelled[2:]}", name, default=None, help=text, show_default=False)
    if isinstance(example, tuple):
        return click.option(spelled, name, default=None, callback=_split, metavar="A,B,...", help=text)
    kind = click.Choice(FIRST.choices[name]) if name in FIRST.choices else type(example)
    return click.option(spelled, name, type=kind, default=None, help=text)


def _split(_ctx, _param, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part for part in value.split(",") if part)


def architecture_from(options: dict, seq_len: int | None = None, more: Mapping[str, object] | None = None,
                      family: type[Architecture] | None = None) -> Architecture:
    """Take the model's options out of `options` and make the architecture that they ask for.

    Parameters
    ----------
    options : dict
        What click handed to the command.
    seq_len : int or None
        As of `models.choosing.made`.
    more : dict or None
        Further settings by name of field, which go before.
    family : class or None
        The family where ``--model`` names none.

    Raises
    ------
    ConfigError, click.UsageError
    """
    kind, settings = asked_of(options, family)
    preset = options.pop("preset")
    if "preset" not in options_of(kind) and not _is_given("preset"):
        preset = None
    return made(kind, {**settings, **(more or {})}, preset, seq_len)


def asked_of(options: dict, family: type[Architecture] | None = None) -> tuple[type[Architecture], dict[str, object]]:
    """The family, and the settings by name that were given; takes all but ``preset`` out of `options`."""
    named = options.pop("model")
    kind = family_named(named) if named else family or FIRST
    if named and is_files(named) and _is_given("preset"):
        raise click.UsageError("--preset is for models that are made anew: leave it out with --model DIR")
    given = {name: value for name in FIELDS for value in [options.pop(name)] if value is not None}
    assigned = settings_of(kind, options.pop("assigned"))
    for name in given:
        if name not in options_of(kind):
            raise click.UsageError(f"{spelling(name)} is no setting of {kind.__name__}: it has {', '.join(names_of(kind))}")
        if name in assigned:
            raise click.UsageError(f"{spelling(name)} and --set {name}=... are the same: give one")
    return kind, {**(settings_in(named) if named else {}), **given, **assigned}


def place_of_weights(options: dict) -> Path | None:
    """Where ``--model`` says that weights are; None where it names a family or a class."""
    named = options["model"]
    return Path(named) if named and is_files(named) else None


def options_of(kind: type[Architecture]) -> list[str]:
    """Names of the options by which a family's settings may be given, besides ``--set``."""
    return [*(name for name in FIELDS if name in names_of(kind)), *(["preset"] if issubclass(kind, FIRST) else [])]


def spelling(name: str) -> str:
    """The option of a field of the first family."""
    return "--" + SPELLED.get(name, name).replace("_", "-")


def time_of(architecture: Architecture, seq_len: int) -> int | None:
    """T: None for a model without time steps, which is said when it was asked for one."""
    if architecture.program.has_time:
        return seq_len
    if _is_given("seq_len"):
        click.echo("--seq-len is not used: the model has no time steps", err=True)
    return None


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


class ThreadCounts(click.ParamType):
    """A number of threads, or several with commas between: then a tuple."""

    name = "N[,N...]"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        counts = tuple(click.INT.convert(one.strip(), param, ctx) for one in value.split(","))
        return counts if len(counts) > 1 else counts[0]


def size_options(batch_size: int, seq_len: int, several_threads: bool = False) -> Callable:
    """Options ``--batch-size``, ``--seq-len``, ``--dtype``, ``--compute`` and ``--threads``, which may take several numbers."""
    return _all(
        click.option("--batch-size", type=int, default=batch_size, help="Sequences in a batch, B."),
        click.option("--seq-len", type=int, default=seq_len, help="Time steps in a sequence, T; not used by a model without."),
        click.option("--dtype", type=click.Choice(list(ITEMSIZE)), default="float32"),
        click.option("--compute", type=click.Choice(COMPUTES), default=COMPUTES[0],
                     help="What products take; they sum in float32."),
        click.option("--threads", type=ThreadCounts() if several_threads else int, default=None,
                     show_default="as cllm info says", help="Threads of the kernels; results do not depend on it."
                     + several_threads * " Several numbers, such as 1,2,4,8,16, compare at each and show how steps scale."))


def compute_option(command):
    """Option ``--compute``: what products take, None where it is not given."""
    return click.option("--compute", type=click.Choice(COMPUTES), default=None, show_default="float32, or the model's",
                        help="What products take; they sum in float32.")(command)


def optimizer_option(command):
    """Option ``--optimizer``: whose state is counted."""
    return click.option("--optimizer", type=click.Choice(list(OPTIMIZER_STATES)), default="adamw",
                        help="Whose state is counted.")(command)


def patterns_in(text: str) -> tuple[str, ...]:
    """Patterns of parameter names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def trainable_option(command):
    """Option ``--trainable``: what is trained, None for all."""
    return click.option("--trainable", default=None,
                        callback=lambda _ctx, _param, text: None if text is None else patterns_in(text),
                        help="The parameters whose names match, such as '*.ln*,head.*'; all others are frozen.")(command)


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


def calibrate_first(architecture: Architecture, workload: Workload, strategies: Iterable[object], limit: int | None = None,
                    always: bool = False) -> None:
    """`calibrate_where_wanted`, told on standard error."""
    calibrate_where_wanted(architecture, workload, strategies, lambda text: click.echo(text, err=True), limit, always)
