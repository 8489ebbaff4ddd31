"""Rounds of fresh processes that survive being killed: each run is a line of a file; what is there is not run again."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cllm.comparison.job import Job
from cllm.comparison.parcel import pack
from cllm.comparison.runner import Run, run_once
from cllm.errors import DataError
from cllm.lab.contestants import Contestant
from cllm.plans.plan import Plan

RUNS = "runs.jsonl"
FORMAT = 1
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

    def left(self, rounds: int) -> list[tuple[int, str]]:
        """Rounds and names that have not been run; of what failed, none."""
        known = {(run.round, run.strategy) for run in self.runs}
        failed = {run.strategy for run in self.runs if run.error is not None}
        names = [c.name for c in self.contestants if c.plan is not None and c.name not in failed]
        return [(number, name) for number in range(rounds) for name in names if (number, name) not in known]


def run_left(record: Record, job: Job, rounds: int, on_step: Callable[[str, int, int], None]) -> bool:
    """Run what is left, round by round; whether Ctrl-C cut it short."""
    packed = pack("the model", job)
    plans = {c.name: c.plan for c in record.contestants}
    try:
        while left := record.left(rounds):
            number, name = left[0]
            record.add(run_once({"job": packed, "strategy": pack(name, plans[name])}, name, number, on_step))
    except KeyboardInterrupt:
        return True
    return False


def _out(contestant: Contestant) -> dict:
    plan = contestant.plan and contestant.plan.to_dict()
    return {"kind": contestant.kind, "name": contestant.name, "plan": plan, "refused": contestant.refused,
            "same_as": contestant.same_as, "limit": contestant.limit}


def _in(data: dict) -> Contestant:
    return Contestant(**{**data, "plan": data["plan"] and Plan.from_dict(data["plan"])})
