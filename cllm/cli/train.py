"""``cllm train``: from a text to a model, interruptible at any moment."""

from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from cllm.cli.files import readable_twice
from cllm.cli.options import (
    FIELDS,
    architecture_from,
    asked_of,
    calibrate_option,
    json_option,
    model_options,
    place_of_weights,
)
from cllm.cli.processes import budget_for, leads, state_in, with_processes
from cllm.cli.training import (
    CONTINUED_RATE,
    checked_plot,
    run_and_tell,
    settings_in,
    settings_options,
    watchers,
    watching_options,
)
from cllm.errors import ConfigError
from cllm.models.architecture import Architecture
from cllm.models.choosing import model_in
from cllm.models.excerpt import Used
from cllm.models.families import FAMILIES, FIRST, architecture_of, family_of, kind_of, model_of
from cllm.models.settings import names_of
from cllm.optim import optimizer_kind
from cllm.planning import plan
from cllm.pretrained import Speech
from cllm.program.workload import Workload
from cllm.train import Trainer, TrainSettings, tokenizer_for
from cllm.train.drawn import check_reads_text
from cllm.train.keeper import Keeper


@click.command("train")
@click.option("--text", type=click.Path(path_type=Path), default=None, show_default="the embedded novel",
              help="A file, a directory of files, or a pipe; of .jsonl files, what stands under \"text\".")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Directory for snapshots, metrics and tokens.")
@click.option("--resume", is_flag=True, help="Go on from the latest snapshot in --out; without one, start.")
@click.option("--tokenizer", default=None, show_default="the model's, or bytes",
              help="bytes, bpe:4096 to learn one from the text, or a path to tokenizer.json or GPT-2's files.")
@model_options("small")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@settings_options()
@watching_options
@calibrate_option
@json_option
@click.pass_context
@with_processes
def command(ctx, team, text, out, resume, tokenizer, dtype, quiet, plot, measure, json_path, **options):
    """Train a model on a text.

    Writes snapshots, metrics.jsonl and the tokens into --out. Ctrl-C, a closed terminal or pipe, a full disk: the run ends
    with a snapshot; --resume goes on from the latest one, with the settings it began with, to the same bits as without
    the interruption. Under mpirun the processes share the --groups of each batch, to the same bits for any number of them.
    """
    checked_plot(plot)
    settings = settings_in(options)
    keeper = Keeper(out)
    state = state_in(keeper, resume, team)
    named = "" if options["model"] is None else f" --model {options['model']}"
    place = place_of_weights(options)
    if state is None:
        chosen = None
        if place is not None:
            settings.setdefault("lr", CONTINUED_RATE)
            chosen = Speech.beside(place).tokenizer if tokenizer is None else None
        if tokenizer not in (None, "bytes"):
            text = ctx.with_resource(readable_twice(text))
            chosen = tokenizer_for(tokenizer, text)
            if options["vocab_size"] is None and place is None:
                options["vocab_size"] = chosen.vocab_size
        wanted = TrainSettings(**settings)
        architecture = architecture_from(options, wanted.seq_len)
        check_reads_text(architecture.program)
        work = Workload(wanted.batch_size, wanted.seq_len, dtype, optimizer_kind(wanted.optimizer), wanted.threads)
        budget = budget_for(wanted, team, work, Used.of(architecture, wanted.trainable, wanted.compute), measure,
                            partial(plan, architecture, work.batch, work.time, optimizer=work.optimizer, dtype=dtype,
                                    num_threads=work.threads, trainable=wanted.trainable, compute=wanted.compute,
                                    processes=1 if team is None else team.size, **wanted.whole_step()))
        model = model_of(architecture, wanted.seed, dtype) if place is None else model_in(place, dtype, architecture)
    elif state["training"]["data"].get("data") is not None:
        raise ConfigError(f"resume of {out}", "must be a run on a text", "one on examples", "Use cllm finetune --resume.")
    else:
        architecture, dtype, budget = _of_run(ctx, state, options, dtype, out), state["dtype"], None
        model = model_of(architecture, None, dtype)
        chosen = _tokenizer_of_run(tokenizer, text, keeper, state)
    trainer = Trainer(model, text, out, resume=resume, tokenizer=chosen, callbacks=watchers(quiet, plot), budget=budget,
                      team=team, **settings)
    run_and_tell(trainer, json_path if leads(team) else None, f"cllm train --out {out} --resume{named}",
                 f"cllm sample {out}{named}")


def _tokenizer_of_run(name: str | None, text, keeper: Keeper, state: dict):
    """The tokenizer of a run that is resumed; another that is asked for is refused, None leaves it to the run."""
    there = state["training"]["data"]["tokenizer"]
    if name is None or name == there or name.startswith("bpe:") and (there or "").startswith(f"{name}:"):
        return None
    chosen = tokenizer_for(name, text if text is not None else state["training"]["data"]["text"])
    if chosen.name != there:
        raise ConfigError(f"resume of {keeper.out}", f"must go on with the tokenizer it began with, {there or 'none'}",
                          f"--tokenizer {name}, which is {chosen.name}", "Leave the option out, or start afresh in another "
                          "directory.")
    return chosen


def _of_run(ctx: click.Context, state: dict, options: dict, dtype: str, out: Path) -> Architecture:
    """The architecture of a run that is resumed; options that ask for another one are refused."""
    family = FAMILIES.get(family_of(state))
    if family is None and options["model"] is None:
        kind_of(state)  # tells what to pass
    kind, given = asked_of(options, family)
    architecture = architecture_of(state, kind)
    if ctx.get_parameter_source("preset") != ParameterSource.DEFAULT:
        preset = dict(zip(FIELDS, FIRST.presets[options["preset"]], strict=False))
        free = {"vocab_size", "max_seq_len"}  # a tokenizer or a longer --seq-len may have changed them
        given = {**{n: v for n, v in preset.items() if n in names_of(kind) and n not in free}, **given}
    differ = [f"{n} {getattr(architecture, n)!r} there, {v!r} now" for n, v in given.items() if getattr(architecture, n) != v]
    if ctx.get_parameter_source("dtype") != ParameterSource.DEFAULT and dtype != state["dtype"]:
        differ.append(f"dtype {state['dtype']} there, {dtype} now")
    if differ:
        raise ConfigError(f"resume of {out}", "must go on with the model it began with", ", ".join(differ),
                          "Leave these options out, or start afresh in another directory.")
    return architecture
