"""Several jobs one after the other, each under its strategies: a sweep is a list of them, a plain comparison has one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from cllm.comparison.job import Job
from cllm.comparison.runner import Runs, run_rounds
from cllm.comparison.summary import summarise

COUNTED = ("threads", "processes")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One job and what it is compared under.

    Parameters
    ----------
    job : Job
    strategies : dict of strategies by label
    setting : dict
        What makes it this point of a sweep: value by key; empty where nothing is swept.
    curve : list of dict or None
        The planner's whole curve (see `budgets.planned_curve`), where asked for.
    peers : list of dict
        Points of other libraries (see `peers.peers_of`).
    predicted_from : str or None
        What the predicted seconds rest on, in words (see `calibrate.source_of_seconds`).
    """

    job: Job
    strategies: Mapping[str, object]
    setting: dict = field(default_factory=dict)
    curve: list[dict] | None = None
    peers: list[dict] = field(default_factory=list)
    predicted_from: str | None = None

    @property
    def name(self) -> str:
        """``seq_len=128, dtype=float64``; empty where nothing is swept."""
        return setting_name(self.setting)


def setting_name(setting: dict) -> str:
    """A point of a sweep in words."""
    return ", ".join(f"{key}={'+'.join(value) if isinstance(value, (list, tuple)) else value}"
                     for key, value in setting.items())


def run_experiments(experiments: Sequence[Experiment], rounds: int,
                    on_step: Callable[[Experiment, str, int, int], None],
                    on_run: Callable[[list[Runs]], None]) -> list[Runs]:
    """The runs of each experiment. After Ctrl-C those of later ones are empty, and marked as interrupted too.

    `on_step` and `on_run` are those of `run_rounds`; the first is told the experiment as well, the second all runs.
    """
    done = [Runs(one.job, one.strategies) for one in experiments]
    for position, one in enumerate(experiments):
        if position and done[position - 1].interrupted:
            done[position].interrupted = True
            continue

        def finished(runs: Runs, position: int = position) -> None:
            done[position] = runs
            on_run(done)

        def stepped(strategy: str, number: int, step: int, one: Experiment = one) -> None:
            on_step(one, strategy, number, step)

        done[position] = run_rounds(one.job, one.strategies, rounds, stepped, finished)
    return done


def report_of(experiments: Sequence[Experiment], done: Sequence[Runs], machine: dict, swept: dict[str, list],
              command: str | None = None) -> dict:
    """The report as plain data; `command` is the line that asked for it, where there was one.

    Returns
    -------
    dict
        ``date``, ``command``, and where nothing is swept, all of `summarise`, with ``curve``, ``peers`` and
        ``predicted_from``. Else ``machine``, ``sweep`` (values by key), ``points`` (one such report for each point, with its
        ``setting``), ``interrupted`` and ``problems``; where threads or processes are swept, rows have ``speedup``, how many
        times as fast a step is as on the first number of them.
    """
    reports = [{**summarise(runs, machine), "setting": one.setting, "curve": one.curve, "peers": one.peers,
                "predicted_from": one.predicted_from} for one, runs in zip(experiments, done, strict=True)]
    asked = {"date": date.today().isoformat(), "command": command}
    if not swept:
        return {**asked, **reports[0]}
    problems, doubts = ([f"{one.name}: {sentence}" for one, report in zip(experiments, reports, strict=True)
                         for sentence in report[kind]] for kind in ("problems", "doubts"))
    for report in reports:
        del report["machine"]
    counted = counted_in(swept)
    if counted is not None:
        _add_speedups(reports, swept[counted][0], counted)
    problems += _differences(experiments, done)
    return {**asked, "machine": machine, "sweep": swept, "points": reports, "problems": problems, "doubts": doubts,
            "interrupted": any(runs.interrupted for runs in done)}


def counted_in(swept: Mapping) -> str | None:
    """What is swept of what makes steps faster and changes no bit, the first of it."""
    return next((key for key in COUNTED if key in swept), None)


def _differences(experiments: Sequence[Experiment], done: Sequence[Runs]) -> list[str]:
    """A sentence for points whose gradients differ, where threads and processes alone do."""
    found: dict[str, dict[str, str]] = {}
    for one, runs in zip(experiments, done, strict=True):
        same = {key: value for key, value in one.setting.items() if key not in COUNTED} | {"groups": one.job.groups}
        for run in runs.done:
            if run.result is not None and run.result["exact"]:
                found.setdefault(repr(same), {})[one.name] = run.result["grad_sha256"]
    return [f"The gradients of {'; '.join(by_point)} differ; on any number of threads and processes they must be equal to the "
            "last bit." for by_point in found.values() if len(set(by_point.values())) > 1]


def _add_speedups(points: list[dict], first: int, counted: str) -> None:
    """Fill in ``speedup`` of every row: None where it or that on the `first` number was not measured."""
    def medians(point: dict) -> dict[str, float]:
        return {row["strategy"]: row["step_seconds"]["median"] for row in point["rows"] if row["step_seconds"]}

    known = [(point["setting"], medians(point)) for point in points]
    for point, (setting, mine) in zip(points, known, strict=True):
        base = next(found for other, found in known if other == {**setting, counted: first})
        for row in point["rows"]:
            name = row["strategy"]
            row["speedup"] = base[name] / mine[name] if name in base and name in mine else None


def points_of(report: dict) -> list[dict]:
    """The reports of a sweep's points, each with its machine; of a plain comparison, itself alone."""
    if "points" not in report:
        return [report]
    return [{**point, "machine": report["machine"]} for point in report["points"]]
