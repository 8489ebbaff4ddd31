"""``cllm lab``: all strategies at a row of limits, measured; a run that was killed goes on."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cllm.cli.files import write_json
from cllm.cli.options import (
    architecture_from,
    calibrate_option,
    json_option,
    model_options,
    place_of_weights,
    size_options,
    time_of,
)
from cllm.comparison.job import Job
from cllm.comparison.peers import peers_of, read_peers
from cllm.comparison.tables import console
from cllm.errors import DataError
from cllm.lab.contestants import KINDS
from cllm.lab.experiment import run
from cllm.lab.printed import print_lab

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def _kinds(_ctx, param: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    kinds = [word.strip() for word in text.split(",") if word.strip()]
    if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(KINDS):
        raise click.BadParameter(f"must be some of {', '.join(KINDS)}, each once", param=param)
    return kinds


@click.command("lab")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("lab"),
              help="Folder of the record, lab.json, lab.csv and lab.png; a run that was killed goes on there.")
@click.option("--strategies", "kinds", default=None, callback=_kinds, metavar="A,B,...", show_default="all",
              help=f"Which of {', '.join(KINDS)}; checkmate takes part by itself where the program is small.")
@click.option("--limits", type=click.IntRange(2), default=6, help="Limits, evenly over the planner's curve.")
@click.option("--rounds", type=click.IntRange(1), default=4, help="Fresh processes of each contestant, in turn.")
@click.option("--slack", type=click.FloatRange(0.0), default=None, metavar="SHARE", show_default="all take part in all rounds",
              help="Leave out of a round what is more than this share slower than the quickest within the same bytes, by the "
                   "rounds before, in the first as predicted.")
@click.option("--minutes", type=click.FloatRange(0.0), default=None, show_default="as long as it takes",
              help="Begin no round, but the first, that would end after so many.")
@click.option("--steps", type=click.IntRange(1), default=3, help="Timed steps of each run, after one that is not.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@click.option("--text", type=click.Path(exists=True, dir_okay=False), default=None, show_default="the embedded text",
              help="Train on this file.")
@click.option("--seed", type=int, default=0, help="Of the weights and the batches.")
@click.option("--peers", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="Show PyTorch's points of this result of profiling/compare.py in the picture.")
@calibrate_option
@json_option
def command(out, kinds, limits, rounds, slack, minutes, steps, batch_size, seq_len, dtype, threads, text, seed, peers, measure,
            json_path, **model):
    """Measure every strategy at a row of limits, and the planner beside them.

    Each contestant runs in fresh processes, in turn. Every run is kept as soon as it has ended: after Ctrl-C, or a kill, the
    same command goes on where it was. What runs the same operations as another is measured once.
    """
    place = place_of_weights(model)
    architecture = architecture_from(model, seq_len)
    job = Job(architecture, batch_size, time_of(architecture, seq_len), steps, dtype, threads, text, seed,
              weights=None if place is None else str(place.absolute()))
    points = [found for path in peers if (found := peers_of(job, read_peers(path)))]
    if len(points) < len(peers):
        raise DataError("--peers", "must have measured this model, batch and threads", ", ".join(map(str, peers)),
                        "Measure again with profiling/compare.py and the same settings.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("beginning", total=None)

        def tell(words: str) -> None:
            count = words.partition(" ")[0]
            progress.update(task, description=words, total=int(count) if count.isdecimal() else None)

        def show(name: str, number: int, step: int) -> None:
            progress.update(task, advance=int(step == job.steps), description=f"round {number + 1} of {rounds}, {name}")

        report = run(job, out, kinds, limits, rounds, None, points, measure, slack, minutes, tell, show)
    print_lab(report, console())
    write_json(json_path, report)
    made = ", ".join(name for name in ("runs.jsonl", "lab.json", "lab.csv", "lab.png") if (out / name).exists())
    click.echo(f"{out}: {made}" + ("; interrupted: the same command goes on" if report["interrupted"] else ""), err=True)
    for problem in report["problems"]:
        click.echo(f"Error: {problem}", err=True)
    if report["problems"] or report["interrupted"]:
        sys.exit(INTERRUPTED if report["interrupted"] else 1)
