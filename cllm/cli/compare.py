"""``cllm compare``: the same training under several strategies, measured side by side."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cllm.cli.options import (
    calibrate_first,
    calibrate_option,
    config_of,
    json_option,
    model_options,
    size_options,
    writable,
    write_json,
)
from cllm.cli.tables import console, megabytes, seconds, table
from cllm.comparison.job import Job
from cllm.comparison.machine import describe_machine
from cllm.comparison.picture import caption, check_picture, draw
from cllm.comparison.runner import Runs, run_rounds
from cllm.comparison.summary import summarise
from cllm.corpus import read_text
from cllm.errors import CllmError
from cllm.strategies import parse
from cllm.workload import Workload

DEFAULT_STRATEGIES = "cache,recompute,every:2,selective,budget:450MB"
INTERRUPTED = 130  # what a shell reports for Ctrl-C


def named_strategies(_ctx, param: click.Parameter, text: str) -> tuple[str, ...]:
    """Split the list and refuse a name that is unknown or twice there, before any work."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise click.BadParameter("give at least one strategy, and each once", param=param)
    for name in names:
        try:
            parse(name)
        except CllmError as error:
            raise click.BadParameter(str(error), param=param) from error
    return names


@click.command("compare")
@click.option("--strategies", default=DEFAULT_STRATEGIES, callback=named_strategies, metavar="A,B,...",
              help="What to compare, by name.")
@click.option("--steps", type=click.IntRange(1), default=3, help="Timed steps of each run, after one that is not.")
@click.option("--rounds", type=click.IntRange(1), default=2, help="Fresh processes of each strategy.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@click.option("--text", type=click.Path(exists=True, dir_okay=False), default=None, show_default="the embedded text",
              help="Train on this file.")
@click.option("--seed", type=int, default=0, help="Of the weights and the batches.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="Draw step time, arena and process peak there, PNG or SVG by the ending.")
@calibrate_option
@json_option
def command(strategies, steps, rounds, batch_size, seq_len, dtype, threads, text, seed, plot, measure, json_path, **model):
    """Train one model on one text under several strategies and measure each.

    Each strategy runs in fresh processes, in turn, 1 + STEPS steps each. The table shows time and memory of the steady
    steps; equal gradient digests show that the strategies computed the same, to the last bit. Without options: the
    small preset on the embedded text, about a minute on two cores.
    """
    if plot is not None:
        check_picture(plot)
    if text is not None:
        read_text(text)  # an unusable text is one error here, not one in every row
    job = Job(config_of(model, seq_len), batch_size, seq_len, steps, dtype, threads, text, seed)
    if measure:
        calibrate_first(Workload(job.config, batch_size, seq_len, dtype, "adamw", threads), strategies)
    machine = describe_machine()

    def keep(runs: Runs) -> None:
        write_json(json_path, summarise(runs, machine))

    runs = _run_with_progress(job, strategies, rounds, keep)
    report = summarise(runs, machine)
    write_json(json_path, report)
    _print(report)
    if plot is not None:
        draw(report, plot)
    for problem in report["problems"]:
        click.echo(f"Error: {problem}", err=True)
    if report["problems"]:
        sys.exit(INTERRUPTED if runs.interrupted else 1)


def _run_with_progress(job: Job, strategies: tuple[str, ...], rounds: int, keep) -> Runs:
    per_run = 1 + job.steps
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
               TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=rounds * len(strategies) * per_run)

        def show(strategy: str, number: int, _step: int) -> None:
            progress.update(task, advance=1, description=f"round {number + 1} of {rounds}, {strategy}")

        def finished(runs: Runs) -> None:
            progress.update(task, completed=len(runs.done) * per_run)
            keep(runs)

        return run_rounds(job, strategies, rounds, show, finished)


def _print(report: dict) -> None:
    shown = table("strategy", "step min", "median", "max", "tokens/s", "vs cache", "arena MB", "total MB", "peak MB",
                  "last loss", "gradient digest", title=caption(report))
    for row in report["rows"]:
        if row["step_seconds"] is None:
            shown.add_row(row["strategy"], "failed", *["-"] * 9)
            continue
        step, slowdown = row["step_seconds"], row["slowdown_vs_cache"]
        shown.add_row(
            row["strategy"], seconds(step["min"]), seconds(step["median"]), seconds(step["max"]),
            f"{row['tokens_per_second']:,.0f}", "-" if slowdown is None else f"{slowdown:.2f}",
            megabytes(row["arena_bytes"]), megabytes(row["total_bytes"]), megabytes(row["rss_peak_bytes"]),
            f"{row['losses'][-1]:.4f}", row["grad_sha256"][:12] + ("" if row["exact"] else " (inexact)"))
    console().print(shown)
    exact = [row for row in report["rows"] if row["exact"]]
    if len(exact) > 1 and len({row["grad_sha256"] for row in exact}) == 1:
        click.echo(f"The gradients of all {len(exact)} exact strategies are equal to the last bit.")
