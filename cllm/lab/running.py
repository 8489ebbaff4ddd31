"""Rounds of fresh processes that survive being killed: each run is a line of a file; what is there is not run again."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from cllm.comparison.job import Job
from cllm.comparison.parcel import pack
from cllm.comparison.runner import Run, run_once
from cllm.errors import DataError
from cllm.lab.contestants import Contestant
from cllm.plans.plan import Estimate, Plan

OURS = "budget"
RUNS = "runs.jsonl"
FORMAT = 1
BEGINNING = 1.5  # seconds of a fresh process before its first step, to begin with
LEFT_OUT = ("timeline", "plan")  # of a result: thousands of numbers that no page of the laboratory shows


@dataclass(slots=True)
class Record:
    """The file of runs: what was asked for, who takes part, and each run so far."""

    path: Path
    asked: dict
    contestants: list[Contestant]
    runs: list[Run]

    @staticmethod
    def of(folder: Path, asked: dict, make: Callable[[], list[Contestant]]) -> "Record":
        """The record in a folder, begun where there is none; `make` decides who takes part, once.

        Raises
        ------
        DataError
            When it was begun for something else, is damaged, or cannot be written.
        """
        path = folder / RUNS
        asked = json.loads(json.dumps(asked))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            lines = whole[:whole.rfind(b"\n") + 1]  # what was being written when the process was killed is run again
            if not lines:
                made = make()
                path.write_text(json.dumps({"lab": FORMAT, "asked": asked, "contestants": [_out(c) for c in made]}) + "\n",
                                encoding="utf-8")
                return Record(path, asked, made, [])
            head, *rest = [json.loads(line) for line in lines.splitlines()]
            if head["lab"] != FORMAT or head["asked"] != asked:
                differ = [k for k in {*asked, *head["asked"]} if asked.get(k) != head["asked"].get(k)] or ["its format"]
                raise DataError(f"{path}", "must have been begun for what is asked now", f"other {', '.join(sorted(differ))}",
                                "Choose another --out, or ask for the same.")
            if len(lines) < len(whole):
                os.truncate(path, len(lines))
            return Record(path, asked, [_in(c) for c in head["contestants"]],
                          [Run(line["strategy"], line["round"], line["result"], line["error"]) for line in rest])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}", "must be a record of the laboratory", f"{type(error).__name__}: {error}",
                            "Choose another --out.") from error

    def add(self, run: Run) -> None:
        """Keep a run: on disk before the next begins."""
        result = run.result and {k: v for k, v in run.result.items() if k not in LEFT_OUT}
        line = {"strategy": run.strategy, "round": run.round, "result": result, "error": run.error}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}", "must be writable", error.strerror or str(error), "Make room.") from error
        self.runs.append(Run(run.strategy, run.round, result, run.error))

    def left(self, number: int, among: set[str] | None = None) -> list[str]:
        """Names that have not been run in that round; of what failed, none."""
        known = {run.strategy for run in self.runs if run.round == number or run.error is not None}
        return [c.name for c in self.contestants if c.plan is not None and c.name not in known
                and (among is None or c.name in among)]

    def contenders(self, number: int, costs: Mapping[str, Estimate], slack: float) -> set[str]:
        """Who takes part in a round: under some limit at most so much slower than the quickest of those that keep it, by the
        rounds before, in the first as predicted; and the planner's plans.

        Parameters
        ----------
        costs : dict of Estimate by name
            What each contestant's plan is predicted to cost.
        slack : float
            Relative: 0.2 is a fifth.
        """
        measured: dict[str, list[float]] = {}
        for run in self.runs:
            if run.round < number and run.result:
                measured.setdefault(run.strategy, []).append(median(run.result["step_seconds"]))
        seconds = {name: median(found) for name, found in measured.items()} if number else {
            name: cost.seconds for name, cost in costs.items()}
        found = {c.same_as or c.name for c in self.contestants if c.kind == OURS}
        for limit in {c.limit for c in self.contestants if c.limit} or {max(cost.total_bytes for cost in costs.values())}:
            mine = {name: s for name, s in seconds.items() if costs[name].total_bytes <= limit}
            found |= {name for name, s in mine.items() if s <= min(mine.values()) * (1 + slack)}
        return found


def run_left(record: Record, job: Job, rounds: int, on_step: Callable[[str, int, int], None],
             costs: Mapping[str, Estimate] | None = None, slack: float | None = None, minutes: float | None = None) -> bool:
    """Run what is left, round by round; whether Ctrl-C cut it short.

    Parameters
    ----------
    costs : dict of Estimate by name, or None
        As of `Record.contenders`; needed for the others.
    slack : float or None
        Of the contenders; None lets all take part.
    minutes : float or None
        Begin no round, but the first, that would end after so many.
    """
    packed = pack("the model", job)
    plans = {c.name: c.plan for c in record.contestants}
    began, expected, spent = monotonic(), 0.0, 0.0
    try:
        for number in range(rounds):
            names = record.left(number, None if slack is None else record.contenders(number, costs, slack))
            if minutes is not None:
                ahead = sum(BEGINNING + (1 + job.steps) * costs[name].seconds for name in names)
                if number and (monotonic() - began + ahead * (spent / expected if expected else 1.0)) > 60 * minutes:
                    break
            for name in names:
                start = monotonic()
                record.add(run_once({"job": packed, "strategy": pack(name, plans[name])}, name, number, on_step))
                spent += monotonic() - start
                expected += BEGINNING + (1 + job.steps) * costs[name].seconds if costs else 0.0
    except KeyboardInterrupt:
        return True
    return False


def _out(contestant: Contestant) -> dict:
    plan = contestant.plan and contestant.plan.to_dict()
    return {"kind": contestant.kind, "name": contestant.name, "plan": plan, "refused": contestant.refused,
            "same_as": contestant.same_as, "limit": contestant.limit}


def _in(data: dict) -> Contestant:
    return Contestant(**{**data, "plan": data["plan"] and Plan.from_dict(data["plan"])})
