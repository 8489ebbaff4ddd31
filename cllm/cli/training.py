"""What commands that train share: an option for every setting, who watches, and how the end is told."""

import resource
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path

import click

from cllm.cli.curve import LossCurve
from cllm.cli.files import writable, write_json
from cllm.cli.options import patterns_in
from cllm.comparison.picture import check_picture
from cllm.models.architecture import record_of
from cllm.train import Callback, Trainer, TrainResult, TrainSettings, progress

CONTINUED_RATE = 2e-5  # usual for weights that are trained already; that of fresh ones would undo them

HELP = {
    "steps": "Steps of the whole run; a longer run may be asked for when resuming.",
    "hours": "Instead of --steps: as many as fit into this time.",
    "batch_size": "Sequences in one call, B.",
    "seq_len": "Tokens in a sequence, T.",
    "accumulate": "Calls whose gradients are added up for one step.",
    "groups": "Equal groups of a call's sequences, a power of two, whose gradients are summed apart and added in a tree: so "
              "many processes, or fewer, may share them. Results depend on it.",
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
    "states": "Where the optimizer's states are: memory, or disk:DIR; as a budget decides unless given.",
    "threads": "Threads of the kernels, by default as many as cllm info says. Results do not depend on it.",
    "snapshot_every": "Steps between snapshots.",
    "keep": "Last snapshots to keep; the best one is kept besides.",
    "max_bad_steps": "So many steps in a row with NaN or infinity end the run.",
    "log_every": "Steps between plain lines of progress.",
    "stop_when_worse": "So many evaluations in a row without a new best end the run.",
    "sample_every": "Steps between samples of text.",
    "sample_prompt": "What the samples continue; a line break unless given.",
    "compute": "What products take: float32, or bfloat16, summed in float32, with :units in units of 32 as AMX does.",
    "trainable": "Train the parameters whose names match, such as '*.ln*,head.*', and freeze all others.",
}
KINDS = {"memory_budget": str, "states": str, "min_lr": float, "weight_decay": float, "warmup": int, "threads": int,
         "clip": float, "hours": float, "stop_when_worse": int, "sample_every": int, "trainable": str}


def settings_options(without: Collection[str] = (), help: Mapping[str, str] | None = None) -> Callable:
    """An option for every field of `TrainSettings` but some; None stands for "not given". Read them with `settings_in`.

    Parameters
    ----------
    without : collection of str
    help : dict or None
        Words of a command's own, by field; its default is then told by them.
    """
    defaults, words = TrainSettings(), help or {}

    def decorate(command):
        for field in reversed([field for field in fields(TrainSettings) if field.name not in without]):
            spelled = "--" + field.name.replace("_", "-")
            shown = False if field.name in words or field.default in (None, "\n") else str(field.default)
            more = {"nargs": 2, "type": float} if field.name == "betas" else {
                "type": KINDS.get(field.name, type(getattr(defaults, field.name)))}
            text = words.get(field.name, HELP[field.name])
            command = click.option(spelled, field.name, default=None, show_default=shown, help=text, **more)(command)
        return command

    return decorate


def settings_in(options: dict, without: Collection[str] = ()) -> dict:
    """The settings that were given, by name; takes all of them out of `options`."""
    names = [field.name for field in fields(TrainSettings) if field.name not in without]
    found = {name: value for name in names for value in [options.pop(name)] if value is not None}
    if "clip" in found:
        found["clip"] = found["clip"] or None
    if "trainable" in found:
        found["trainable"] = patterns_in(found["trainable"])
    return found


def watching_options(command):
    """Options ``--quiet`` and ``--plot``; hand them to `watchers`."""
    command = click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
                           help="Draw the loss there while it runs, at every evaluation; PNG or SVG by the ending.")(command)
    return click.option("--quiet", is_flag=True, help="Plain lines, without those of single steps.")(command)


def checked_plot(plot: Path | None) -> Path | None:
    """The place of a picture, refused before the work where it is none."""
    if plot is not None:
        check_picture(plot)
    return plot


def watchers(quiet: bool, plot: Path | None) -> list[Callback]:
    """Who hears of the run."""
    return [progress(quiet)] + ([] if plot is None else [LossCurve(plot)])


def run_and_tell(trainer: Trainer, json_path: Path | None, again: str, then: str, more: Mapping | None = None) -> TrainResult:
    """Run, write the result as JSON, and say how it ended.

    Parameters
    ----------
    trainer : Trainer
    json_path : Path or None
    again, then : str
        Commands by which an interrupted run goes on, and by which a finished one is used.
    more : dict or None
        What the JSON has besides.
    """
    first = trainer.step
    result = trainer.run()
    write_json(json_path, {
        **record_of(trainer.model.architecture), "settings": trainer.settings.to_dict(), "data": trainer.source.describe(),
        "first_step": first, "step": result.step, "loss": result.loss, "losses": trainer.losses,
        "val_loss": result.val_loss, "best": {"step": result.best_step, "val_loss": result.best_val_loss},
        "snapshot": str(result.snapshot), "interrupted": result.interrupted, "seconds": result.seconds,
        "tokens": result.tokens, "total_bytes": trainer.executors.total_bytes, "budget_bytes": trainer.executors.limit,
        "rss_peak_bytes": _peak_bytes(), **(more or {}),
    })
    if result.interrupted:
        click.echo(f"stopped after step {result.step} of {trainer.settings.steps}; go on with:\n  {again}")
    elif first == result.step:
        click.echo(f"finished before: {result.step} steps are taken, the last snapshot is {result.snapshot}")
    else:
        best = "" if result.best_step is None else f", best {result.best_val_loss:.4f} at step {result.best_step}"
        click.echo(f"finished: {result.step} steps in {result.seconds:.1f} s{best}; the model is in {result.snapshot}\n"
                   f"  {then}")
    return result


def _peak_bytes() -> int | None:
    """Peak resident memory of this process, where the system tells."""
    unit = {"linux": 1024, "darwin": 1}.get(sys.platform)
    return unit and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
