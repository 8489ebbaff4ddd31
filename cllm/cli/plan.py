"""``cllm plan``: what a strategy or budget decides, without running; and the calibration that its seconds rest on."""

from pathlib import Path

import click

from cllm.calibrate import calibrate, source_of_seconds
from cllm.cli.files import writable, write_json
from cllm.cli.options import architecture_from, json_option, model_options, optimizer_option, size_options, time_of
from cllm.comparison.curve import draw_curve
from cllm.comparison.files import place_for
from cllm.comparison.machine import describe_machine
from cllm.comparison.picture import caption, check_picture
from cllm.comparison.series import Point, planned_curve
from cllm.comparison.tables import console, megabytes, seconds, table
from cllm.models.architecture import record_of
from cllm.planning import pareto, plan
from cllm.plans.plan import Plan
from cllm.program.workload import Workload


@click.command("plan")
@click.option("--strategy", default=None, show_default="cache",
              help="A strategy by name, such as recompute, every:2 or budget:450MB.")
@click.option("--memory-budget", default=None, help="The same as --strategy budget:LIMIT.")
@click.option("--pareto", "whole_curve", is_flag=True, help="Show the whole curve of memory against time.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="With --pareto: draw the curve there, PNG or SVG by the ending.")
@click.option("--calibrate", "measure", is_flag=True,
              help="First measure this machine for this model and batch, some seconds, and keep the result.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@optimizer_option
@json_option
def command(strategy, memory_budget, whole_curve, plot, measure, batch_size, seq_len, dtype, compute, threads, optimizer,
            json_path, **model):
    """Show what a strategy decides and what it costs, without running anything.

    No array is made and no kernel runs (but for --calibrate); the bytes are exact all the same, the seconds are a
    prediction.
    """
    if strategy is not None and memory_budget is not None:
        raise click.UsageError("--strategy and --memory-budget are the same: give one")
    strategy = f"budget:{memory_budget}" if memory_budget is not None else strategy or "cache"
    architecture = architecture_from(model, seq_len)
    seq_len = time_of(architecture, seq_len)
    if plot is not None:
        if not whole_curve:
            raise click.UsageError("--plot draws the curve of --pareto: give both")
        check_picture(plot)
    workload = Workload(batch_size, seq_len, dtype, optimizer, threads)
    if measure:
        path = calibrate(architecture, workload, lambda text: click.echo(f"measuring: {text}", err=True))
        click.echo(f"measured, kept in {path}")
    seconds_from = source_of_seconds(architecture, workload)
    job = {**record_of(architecture), "batch_size": batch_size, "seq_len": seq_len, "dtype": dtype,
           "compute": compute, "optimizer": optimizer, "seconds_from": seconds_from}
    if whole_curve:
        plans = pareto(architecture, batch_size, seq_len, optimizer, dtype, threads, tell=_tell, compute=compute)
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
    made = plan(architecture, batch_size=batch_size, seq_len=seq_len, strategy=strategy, optimizer=optimizer, dtype=dtype,
                num_threads=threads, tell=_tell, compute=compute)
    write_json(json_path, {**job, "strategy": strategy, **_costs(made)})
    click.echo(f"{made.table()}\nseconds: {seconds_from}")


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _costs(made: Plan) -> dict:
    return {"plan": made.to_dict(), "arena_bytes": made.arena_bytes, "total_bytes": made.total_bytes,
            "predicted_seconds": made.predicted_seconds}


def _print_curve(plans: list[Plan]) -> None:
    made = table("total MB", "arena MB", "time of a step", "micro-batch")
    for p in plans:
        made.add_row(megabytes(p.total_bytes), megabytes(p.arena_bytes), seconds(p.predicted_seconds), str(p.micro_batch))
    console().print(made)
