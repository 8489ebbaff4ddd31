"""``cllm plan``: what a strategy or budget decides, without running; and the calibration that its seconds rest on."""

from pathlib import Path

import click

from cllm.calibrate import calibrate, source_of_seconds
from cllm.cli.files import writable, write_json
from cllm.cli.options import (
    architecture_from,
    json_option,
    model_options,
    optimizer_option,
    size_options,
    time_of,
    trainable_option,
)
from cllm.comparison.curve import draw_curve
from cllm.comparison.files import place_for
from cllm.comparison.machine import describe_machine
from cllm.comparison.picture import caption, check_picture
from cllm.comparison.series import Point, planned_curve
from cllm.comparison.tables import console, megabytes, seconds, table
from cllm.models.adapted import Adapted, trained_of
from cllm.models.adapters import TRAINED
from cllm.models.architecture import record_of
from cllm.models.choosing import forms_at, is_files
from cllm.models.excerpt import Used
from cllm.planner.costs import MESSAGE_BYTES_PER_SECOND
from cllm.planning import decide, ledger_of, pareto
from cllm.plans.plan import Plan
from cllm.program.workload import CLIP_BY, Workload
from cllm.schedule.report import MemoryReport
from cllm.strategies import MemoryBudget
from cllm.strategies.memory_budget import ALLOWED, INEXACT
from cllm.strategies.whole_step import WHOLE_STEP

# Of the bar, part by part.
LETTERS = {"weights": "W", "gradients": "G", "states": "S", "activations": "A", "scratch": "X", "messages": "M",
           "between buffers": ".", "batch and tables": "B"}


@click.command("plan")
@click.option("--strategy", default=None, show_default="cache",
              help="A strategy by name, such as recompute, every:2 or budget:450MB.")
@click.option("--memory-budget", default=None, help="The same as --strategy budget:LIMIT.")
@click.option("--pareto", "whole_curve", is_flag=True, help="Show the whole curve of memory against time.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="With --pareto: draw the curve there, PNG or SVG by the ending.")
@click.option("--calibrate", "measure", is_flag=True,
              help="First measure this machine for this model and batch, some seconds, and keep the result.")
@click.option("--states", default=None, metavar="memory|disk:DIR", show_default="memory",
              help="Where the optimizer's states are; as a budget decides unless given.")
@click.option("--update-in-backward/--keep-gradients", default=None, show_default="gradients are kept",
              help="Update each parameter in backward, gradients being room in the arena; as a budget decides unless given.")
@click.option("--allow", default=None, metavar="A,B,...", show_default=",".join(ALLOWED),
              help=f"What a budget or --pareto may decide: {', '.join((*ALLOWED, *WHOLE_STEP, *INEXACT))}, or all (of what is "
                   "exact).")
@click.option("--clip-by", type=click.Choice(["none", *CLIP_BY]), default="none",
              help="How steps clip gradients: the norm of all takes a second backward where parameters move in the first.")
@click.option("--lora", "rank", type=int, default=None, metavar="RANK",
              help="Of the model with adapters of this rank on q and v, which alone are trained unless --trainable says more.")
@click.option("--mapped", is_flag=True,
              help="Frozen weights are read from the files of --model as they lie there, as cllm finetune does.")
@click.option("--groups", type=int, default=None, show_default="as many as processes",
              help="Equal groups of the batch, a power of two, whose gradients are summed apart.")
@click.option("--processes", type=int, default=1, help="That share the groups: bytes and seconds are those of each.")
@click.option("--bandwidth", type=float, default=None, metavar="BYTES", show_default=f"{MESSAGE_BYTES_PER_SECOND:g}",
              help="Bytes a second from one process to another, for the seconds of messages.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@optimizer_option
@trainable_option
@json_option
def command(strategy, memory_budget, whole_curve, plot, measure, states, update_in_backward, allow, clip_by, groups,
            processes, bandwidth, batch_size, seq_len, dtype, compute, threads, optimizer, trainable, rank, mapped, json_path,
            **model):
    """Show what a strategy decides and what it costs, without running anything.

    No array is made and no kernel runs (but for --calibrate); the bytes are exact all the same, the seconds are a
    prediction.
    """
    if strategy is not None and memory_budget is not None:
        raise click.UsageError("--strategy and --memory-budget are the same: give one")
    strategy = f"budget:{memory_budget}" if memory_budget is not None else strategy or "cache"
    allowed = ALLOWED if allow is None else (*ALLOWED, *WHOLE_STEP) if allow == "all" else tuple(allow.split(","))
    if allow is not None and not whole_curve and not strategy.startswith("budget:"):
        raise click.UsageError("--allow is for a budget or --pareto")
    budget = strategy.startswith("budget:")
    deciding = MemoryBudget(strategy.removeprefix("budget:"), allowed) if budget else strategy
    clip_by = None if clip_by == "none" else clip_by
    place = model["model"]
    if mapped and not (place and is_files(place)):
        raise click.UsageError("--mapped is of a model in files: give its directory or GGUF file with --model")
    architecture = architecture_from(model, seq_len)
    stored = None
    if rank is not None:
        architecture, trainable = Adapted(architecture, rank), trainable or TRAINED
    if mapped:
        base = architecture.base if rank is not None else architecture
        stored = forms_at(place, base, trained_of(architecture, trainable)) if dtype == "float32" else {}
    seq_len = time_of(architecture, seq_len)
    if plot is not None:
        if not whole_curve:
            raise click.UsageError("--plot draws the curve of --pareto: give both")
        check_picture(plot)
    groups = processes if groups is None else groups
    if whole_curve and groups > 1:
        raise click.UsageError("--pareto is the curve of one group: leave --groups and --processes out")
    workload = Workload(batch_size, seq_len, dtype, optimizer, threads, groups=groups, processes=processes)
    used = Used.of(architecture, trainable, compute)
    if measure:
        path = calibrate(used, workload, lambda text: click.echo(f"measuring: {text}", err=True))
        click.echo(f"measured, kept in {path}")
    seconds_from = source_of_seconds(used, workload)
    job = {**record_of(architecture), "batch_size": batch_size, "seq_len": seq_len, "dtype": dtype,
           "compute": compute, "optimizer": optimizer, "trainable": trainable, "mapped": mapped, "groups": groups,
           "processes": processes, "seconds_from": seconds_from}
    if whole_curve:
        plans = pareto(architecture, batch_size, seq_len, optimizer, dtype, threads, allow=allowed, tell=_tell,
                       trainable=trainable, clip_by=clip_by, compute=compute, stored=stored)
        write_json(json_path, {**job, "plans": [_costs(made) for made in plans]})
        _print_curve(plans)
        click.echo(f"seconds: {seconds_from}")
        if plot is not None:
            about = caption({"model": architecture.describe(), "machine": describe_machine(),
                             "job": {"batch_size": batch_size, "seq_len": seq_len, "dtype": dtype, "threads": threads,
                                     "compute": compute}})
            curve = planned_curve(Point(p.total_bytes, p.predicted_seconds) for p in plans)
            with place_for(plot) as place:
                draw_curve([("", [curve])], place, f"{about}\nseconds: {seconds_from}")
        return
    ledger = ledger_of(architecture, batch_size, seq_len, optimizer, dtype, threads, _tell, trainable, clip_by=clip_by,
                       compute=compute, stored=stored, groups=groups, processes=processes, bandwidth=bandwidth)
    made = decide(deciding, ledger, states, update_in_backward)
    memory = ledger.build(made)[1]
    write_json(json_path, {**job, "strategy": strategy, **_costs(made), "disk_bytes": memory.disk_bytes,
                           "parts": [dict(zip(("what", "memory_bytes", "disk_bytes"), part, strict=True))
                                     for part in memory.parts()]})
    click.echo(f"{made.table()}\nseconds: {seconds_from}")
    _print_parts(memory)


def _print_parts(memory: MemoryReport) -> None:
    """Where every byte is: a table, and a bar of what is in memory."""
    parts = memory.parts()
    shown = table("where the bytes are", "in memory MB", "of the total", "on disk MB")
    for what, inside, on_disk in parts:
        shown.add_row(f"{LETTERS[what]} {what}", megabytes(inside), f"{inside / memory.total_bytes:.1%}", megabytes(on_disk))
    shown.add_row("total", megabytes(memory.total_bytes), "", megabytes(memory.disk_bytes))
    console().print(shown)
    click.echo(bar({what: inside for what, inside, _ in parts}))


def bar(sizes: dict[str, int], width: int = 72) -> str:
    """Letters in proportion to sizes, `width` of them, rounded so that none is off by more than one."""
    total, done, text = sum(sizes.values()), 0, ""
    for what, size in sizes.items():
        done += size
        text += LETTERS[what] * (round(width * done / total) - len(text))
    return f"[{text}]"


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _costs(made: Plan) -> dict:
    return {"plan": made.to_dict(), "arena_bytes": made.arena_bytes, "total_bytes": made.total_bytes,
            "predicted_seconds": made.predicted_seconds}


def _print_curve(plans: list[Plan]) -> None:
    made = table("total MB", "arena MB", "time of a step", "micro-batch", "gradients", "states", "activations")
    for p in plans:
        made.add_row(megabytes(p.total_bytes), megabytes(p.arena_bytes), seconds(p.predicted_seconds), str(p.micro_batch),
                     "in the arena" if p.update_in_backward else "kept", "on disk" if p.states_on_disk else "in memory",
                     "on disk too" if p.spills else "in memory")
    console().print(made)
