"""``cllm compare``: the same training under several strategies, measured side by side."""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cllm.calibrate import source_of_seconds
from cllm.cli.files import STANDARD_OUTPUT, writable, write_json
from cllm.cli.options import (
    architecture_from,
    asked_of,
    calibrate_first,
    calibrate_option,
    json_option,
    model_options,
    place_of_weights,
    size_options,
    time_of,
)
from cllm.cli.processes import refuse_others
from cllm.cli.sweep import SIZES, settings, swept
from cllm.comparison.budgets import budget_strategies, planned_curve
from cllm.comparison.contestants import labelled
from cllm.comparison.data import check_data
from cllm.comparison.drawing import draw_report
from cllm.comparison.experiment import Experiment, report_of, run_experiments
from cllm.comparison.files import write_whole
from cllm.comparison.html import page
from cllm.comparison.job import Job
from cllm.comparison.machine import describe_machine
from cllm.comparison.peers import peers_of, read_peers
from cllm.comparison.picture import check_picture
from cllm.comparison.printed import print_report
from cllm.comparison.runner import Runs, command_of
from cllm.comparison.tables import console
from cllm.distributed import LAUNCHER
from cllm.errors import CllmError, DataError
from cllm.files import is_stream

DEFAULT_STRATEGIES = "cache,recompute,every:2,selective,budget:450MB"
INTERRUPTED = 130  # what a shell reports for Ctrl-C
BUDGETS = 6  # of --pareto without a number


def named_strategies(_ctx, param: click.Parameter, text: str) -> dict[str, str]:
    """Split the list and refuse a name that is unknown or twice there, before any work."""
    try:
        return labelled([name.strip() for name in text.split(",") if name.strip()])
    except CllmError as error:
        raise click.BadParameter(str(error), param=param) from error


@click.command("compare")
@click.option("--strategies", default=DEFAULT_STRATEGIES, callback=named_strategies, metavar="A,B,...",
              help="What to compare, by name.")
@click.option("--steps", type=click.IntRange(1), default=3, help="Timed steps of each run, after one that is not.")
@click.option("--rounds", type=click.IntRange(1), default=2, help="Fresh processes of each strategy.")
@model_options("small")
@size_options(batch_size=8, seq_len=256, several_threads=True)
@click.option("--groups", type=int, default=None, show_default="as many as processes",
              help="Equal groups of the batch, a power of two, whose gradients are summed apart; results depend on it.")
@click.option("--processes", type=int, default=1,
              help="That share every run, started anew for it by --launcher (extra mpi); bytes and --threads are of each.")
@click.option("--launcher", default=None, metavar="COMMAND", show_default=LAUNCHER,
              help="Starts processes, with -n N and a program after it: mpirun, mpiexec or srun, and options of theirs.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False), default=None, show_default="the embedded text",
              help="Train on this file.")
@click.option("--seed", type=int, default=0, help="Of the weights and the batches.")
@click.option("--sweep", multiple=True, metavar="KEY=V1,V2,...",
              help="Compare at each value of a size or setting, such as seq_len=128,256; again for every combination.")
@click.option("--pareto", type=click.IntRange(2), is_flag=False, flag_value=BUDGETS, default=None, metavar="[N]",
              help=f"Add N budgets, {BUDGETS} if not said, evenly over the planner's curve; fewer where plans are equal.")
@click.option("--peers", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="Show PyTorch's points of this result of profiling/compare.py beside ours.")
@click.option("--by-parameter", is_flag=True, help="Print the gradient error of inexact strategies by parameter.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="Draw step time, arena and process peak there (with --pareto memory against time, with --sweep the "
                   "course of each strategy), PNG or SVG by the ending.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), callback=writable, default=None,
              help="Write everything there as one page: tables, memory against time, timelines, plans.")
@calibrate_option
@json_option
@click.pass_context
def command(ctx, strategies, steps, rounds, text, seed, launcher, sweep, pareto, peers, by_parameter, plot, html, measure,
            json_path, **sizes):
    """Train one model on one text under several strategies and measure each.

    Each strategy runs in fresh processes, in turn, 1 + STEPS steps each. The table shows time and memory of the steady
    steps; equal gradient digests show that the strategies computed the same, to the last bit. Without options: the
    small preset on the embedded text, about a minute on two cores.
    """
    refuse_others("cllm compare", "cllm compare --processes")
    if plot is not None:
        check_picture(plot)
    if isinstance(sizes["threads"], tuple):  # a sweep by another name
        sweep, sizes["threads"] = (*sweep, f"threads={','.join(map(str, sizes['threads']))}"), None
    values = swept(ctx, sweep, asked_of(dict(sizes))[0])
    jobs = [(setting, _job(sizes, setting, steps, text, seed, launcher)) for setting in settings(values)]
    if pareto is not None and any(job.groups > 1 for _, job in jobs):
        raise click.UsageError("--pareto is the curve of one group: leave --groups and --processes out")
    for _, job in jobs if measure else ():
        calibrate_first(job.used, job.workload, strategies, always=pareto is not None)
    points = _with_peers([_experiment(job, strategies, setting, pareto) for setting, job in jobs], peers)
    machine, asked = describe_machine(), shlex.join(["cllm", *sys.argv[1:]])

    def keep(done: list[Runs]) -> None:
        if json_path not in (None, STANDARD_OUTPUT) and not is_stream(json_path):
            with suppress(DataError):  # a full disk ends no measurement; the last writing tells of it
                write_json(json_path, report_of(points, done, machine, values, asked))

    done = _run_with_progress(points, rounds, keep)
    report = report_of(points, done, machine, values, asked)
    print_report(report, by_parameter, console())
    doubts = report["doubts"]
    if "points" in report and doubts:  # a sweep has a few for every point
        doubts = [f"{len(doubts)} things speak against these seconds; --json and --html have them."]
    for doubt in doubts:
        click.echo(f"Note: {doubt}", err=True)
    problems = report["problems"] + _written({
        json_path: lambda path: write_json(path, report), html: lambda path: write_whole(path, page.render(report)),
        plot: lambda path: draw_report(report, path)})
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    if problems:
        sys.exit(INTERRUPTED if report["interrupted"] else 1)


def _written(files: dict[Path | None, Callable[[Path], None]]) -> list[str]:
    """Write each file that was asked for; what cannot be written keeps no other from it. Returns what went wrong."""
    problems = []
    for path, write in files.items():
        if path is not None:
            try:
                write(path)
            except DataError as error:
                problems.append(str(error))
    return problems


def _job(sizes: dict, setting: dict, steps: int, text: str | None, seed: int, launcher: str | None) -> Job:
    options = {**sizes, **{name: value for name, value in setting.items() if name in sizes}}
    fields = {name: value for name, value in setting.items() if name not in sizes}
    batch_size, seq_len, dtype, threads, compute, groups, processes = (options.pop(name) for name in SIZES)
    place = place_of_weights(options)
    architecture = architecture_from(options, seq_len, fields)
    time = time_of(architecture, seq_len)
    if time is None and "seq_len" in setting:
        raise click.UsageError("--sweep seq_len=...: the model has no time steps")
    job = Job(architecture, batch_size, time, steps, dtype, threads, text, seed,
              weights=None if place is None else str(place.absolute()), compute=compute,
              groups=processes if groups is None else groups, processes=processes, launcher=launcher)
    check_data(job)
    command_of(job)  # refused before anything runs
    return job


def _experiment(job: Job, strategies: dict[str, str], setting: dict, pareto: int | None) -> Experiment:
    curve = None if pareto is None else planned_curve(job)
    budgets = {} if curve is None else {name: name for name in budget_strategies(job, curve, pareto, strategies.values())}
    seconds_from = source_of_seconds(job.used, job.workload)
    return Experiment(job, strategies | budgets, setting, curve, predicted_from=seconds_from)


def _with_peers(points: list[Experiment], paths: tuple[Path, ...]) -> list[Experiment]:
    """The experiments with the points of other libraries that belong to them.

    Raises
    ------
    DataError
        When a file belongs to none.
    """
    for path in paths:
        measured = read_peers(path)
        found = [peers_of(one.job, measured) for one in points]
        if not any(found):
            raise DataError("--peers", "must have measured the model, batch and threads that are compared", str(path),
                            "Measure again with profiling/compare.py and the same settings.")
        points = [one if peers is None else replace(one, peers=[*one.peers, peers])
                  for one, peers in zip(points, found, strict=True)]
    return points


def _run_with_progress(points: list[Experiment], rounds: int, keep) -> list[Runs]:
    per_run = 1 + points[0].job.steps
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
               TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = rounds * sum(len(one.strategies) for one in points) * per_run
        task = progress.add_task("starting", total=total)

        def show(one: Experiment, strategy: str, number: int, _step: int) -> None:
            place = f"{one.name}, " if one.setting else ""
            progress.update(task, advance=1, description=f"{place}round {number + 1} of {rounds}, {strategy}")

        def finished(done: list[Runs]) -> None:
            progress.update(task, completed=sum(len(runs.done) for runs in done) * per_run)
            keep(done)

        return run_experiments(points, rounds, show, finished)
