"""``cllm train``: from a text to a model, interruptible at any moment."""

import resource
import sys
from dataclasses import fields
from pathlib import Path

import click
from click.core import ParameterSource

from cllm.cli.curve import LossCurve
from cllm.cli.files import readable_twice, writable, write_json
from cllm.cli.options import (
    FIELDS,
    architecture_from,
    asked_of,
    calibrate_first,
    calibrate_option,
    json_option,
    model_options,
    place_of_weights,
)
from cllm.comparison.picture import check_picture
from cllm.errors import ConfigError
from cllm.models.architecture import Architecture, record_of
from cllm.models.choosing import model_in
from cllm.models.families import FAMILIES, FIRST, architecture_of, family_of, kind_of, model_of
from cllm.models.settings import names_of
from cllm.optim import optimizer_kind
from cllm.planning import plan
from cllm.pretrained import Speech
from cllm.program.workload import Workload
from cllm.train import Trainer, TrainSettings, progress, tokenizer_for
from cllm.train.drawn import check_reads_text
from cllm.train.executors import budget_of
from cllm.train.guard import refuse_if_running
from cllm.train.keeper import Keeper

CONTINUED_RATE = 2e-5  # usual for weights that are trained already; that of fresh ones would undo them

HELP = {
    "steps": "Steps of the whole run; a longer run may be asked for when resuming.",
    "hours": "Instead of --steps: as many as fit into this time.",
    "batch_size": "Sequences in one call, B.",
    "seq_len": "Tokens in a sequence, T.",
    "accumulate": "Calls whose gradients are added up for one step.",
    "optimizer": "adamw, adam, sgd, momentum, or by names of parameters: '*emb.weight=adam,sgd@30'.",
    "lr": f"Highest learning rate; {CONTINUED_RATE:g} with --model DIR unless given.",
    "min_lr": "The rate's floor; a tenth of --lr unless given.",
    "warmup": "Steps of the rate's rise; a tenth of --steps up to 100 unless given.",
    "rate": "How the rate falls: cosine, linear or constant.",
    "betas": "Of Adam and AdamW.",
    "eps": "Of Adam and AdamW.",
    "weight_decay": "Decoupled for AdamW, coupled for the others; the optimizer's own unless given.",
    "clip": "Scale gradients down to this norm; 0 for never.",
    "clip_by": "The norm of all gradients together, or of each by itself: all, each.",
    "seed": "Of the initial weights, the order of the text, and dropout.",
    "val_fraction": "Share of the text, at its end, kept for validation.",
    "eval_every": "Steps between evaluations.",
    "eval_batches": "Batches of an evaluation.",
    "strategy": "What to cache and what to recompute, by name.",
    "memory_budget": "Limit such as 1GB for everything training holds; chooses the strategy.",
    "threads": "Threads of the kernels, by default as many as cllm info says. Results do not depend on it.",
    "compute": "What products take, float32 or bfloat16; they sum in float32.",
    "snapshot_every": "Steps between snapshots.",
    "keep": "Last snapshots to keep; the best one is kept besides.",
    "max_bad_steps": "So many steps in a row with NaN or infinity end the run.",
    "log_every": "Steps between plain lines of progress.",
    "stop_when_worse": "So many evaluations in a row without a new best end the run.",
    "sample_every": "Steps between samples of text.",
    "sample_prompt": "What the samples continue; a line break unless given.",
}
KINDS = {"memory_budget": str, "min_lr": float, "weight_decay": float, "warmup": int, "threads": int, "clip": float,
         "hours": float, "stop_when_worse": int, "sample_every": int}


def _settings_options(command):
    """An option for every field of `TrainSettings`; None stands for "not given"."""
    defaults = TrainSettings()
    for field in reversed(fields(TrainSettings)):
        spelled = "--" + field.name.replace("_", "-")
        default = field.default
        shown = False if default in (None, "\n") else str(default)
        more = {"nargs": 2, "type": float} if field.name == "betas" else {
            "type": KINDS.get(field.name, type(getattr(defaults, field.name)))}
        command = click.option(spelled, field.name, default=None, show_default=shown, help=HELP[field.name],
                               **more)(command)
    return command


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
@_settings_options
@click.option("--quiet", is_flag=True, help="Plain lines, without those of single steps.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="Draw the loss there while it runs, at every evaluation; PNG or SVG by the ending.")
@calibrate_option
@json_option
@click.pass_context
def command(ctx, text, out, resume, tokenizer, dtype, quiet, plot, measure, json_path, **options):
    """Train a model on a text.

    Writes snapshots, metrics.jsonl and the tokens into --out. Ctrl-C, a closed terminal or pipe, a full disk: the run ends
    with a snapshot; --resume goes on from the latest one, with the settings it began with, to the same bits as without
    the interruption.
    """
    refuse_if_running(out)
    if plot is not None:
        check_picture(plot)
    names = [field.name for field in fields(TrainSettings)]
    settings = {n: v for n, v in ((n, options.pop(n)) for n in names) if v is not None}
    if "clip" in settings:
        settings["clip"] = settings["clip"] or None
    keeper = Keeper(out)
    state = keeper.find() if resume else None
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
        budget = budget_of(wanted)
        budget = None if budget is None else budget.read()  # once, while nothing is held
        strategy = budget or wanted.strategy
        plan(architecture, work.batch, work.time, strategy, work.optimizer, dtype, work.threads,
             compute=wanted.compute)  # refused before any array
        if measure:
            calibrate_first(architecture, work, [strategy], None if budget is None else budget.nbytes)
        model = model_of(architecture, wanted.seed, dtype) if place is None else model_in(place, dtype, architecture)
    else:
        architecture, dtype, budget = _of_run(ctx, state, options, dtype, out), state["dtype"], None
        model = model_of(architecture, None, dtype)
        chosen = _tokenizer_of_run(tokenizer, text, keeper, state)
    watching = [progress(quiet)] + ([] if plot is None else [LossCurve(plot)])
    trainer = Trainer(model, text, out, resume=resume, tokenizer=chosen,
                      callbacks=watching, budget=budget, **settings)
    first = trainer.step
    result = trainer.run()
    write_json(json_path, {
        **record_of(architecture), "settings": trainer.settings.to_dict(), "data": trainer.source.describe(),
        "first_step": first, "step": result.step, "loss": result.loss, "losses": trainer.losses,
        "val_loss": result.val_loss, "best": {"step": result.best_step, "val_loss": result.best_val_loss},
        "snapshot": str(result.snapshot), "interrupted": result.interrupted, "seconds": result.seconds,
        "tokens": result.tokens, "total_bytes": trainer.executors.total_bytes, "budget_bytes": trainer.executors.limit,
        "rss_peak_bytes": _peak_bytes(),
    })
    if result.interrupted:
        click.echo(f"stopped after step {result.step} of {trainer.settings.steps}; go on with:\n"
                   f"  cllm train --out {out} --resume{named}")
    elif first == result.step:
        click.echo(f"finished before: {result.step} steps are taken, the last snapshot is {result.snapshot}")
    else:
        best = "" if result.best_step is None else f", best {result.best_val_loss:.4f} at step {result.best_step}"
        click.echo(f"finished: {result.step} steps in {result.seconds:.1f} s{best}; the model is in {result.snapshot}\n"
                   f"  cllm sample {out}{named}")


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


def _peak_bytes() -> int | None:
    """Peak resident memory of this process, where the system tells."""
    unit = {"linux": 1024, "darwin": 1}.get(sys.platform)
    return unit and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
