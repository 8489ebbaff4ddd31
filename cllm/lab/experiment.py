"""The laboratory: all strategies at a row of limits on one workload, measured in rounds that may be killed and go on."""

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path

from cllm.calibrate import calibrate_where_wanted, source_of_seconds
from cllm.checks import checked_real, checked_size
from cllm.comparison.budgets import planned_curve
from cllm.comparison.data import check_data
from cllm.comparison.files import place_for, write_json, write_whole
from cllm.comparison.job import Job
from cllm.comparison.machine import describe_machine
from cllm.comparison.picture import check_picture
from cllm.errors import DataError
from cllm.lab.contestants import KINDS, SOLVED, UNDER_A_LIMIT, contestants, limits_of
from cllm.lab.picture import draw_lab
from cllm.lab.printed import csv_of
from cllm.lab.report import report_of
from cllm.lab.running import Record, run_left
from cllm.planning import ledger_of


def run(job: Job, out: Path, kinds: Iterable[str] | None = None, limits: int = 6, rounds: int = 4,
        more: Mapping[str, object] | None = None, peers: Iterable[dict] = (), calibrate: bool = True,
        slack: float | None = None, minutes: float | None = None, tell: Callable[[str], None] = lambda text: None,
        on_step: Callable[[str, int, int], None] = lambda *_: None) -> dict:
    """Measure what has not been measured yet, and write ``lab.json``, ``lab.csv`` and ``lab.png``.

    Parameters
    ----------
    job : Job
        What is trained, with the timed steps of each run.
    out : Path
        A folder: a run that was killed goes on there.
    kinds : iterable of str or None
        Strategies by the word before the colon; None is all (Checkmate where the program is small).
    limits : int
        So many, evenly from the least of the planner's curve to what keeping everything takes.
    rounds : int
        Fresh processes of each contestant, in turn.
    more : dict of strategies by label
        The user's own.
    peers : iterable of dict
        Points of other libraries (see `cllm.comparison.peers`).
    calibrate : bool
        Measure this machine first where nothing is stored.
    slack : float or None
        Leave out of a round what is more than this share slower than the quickest within the same bytes, by the rounds before,
        in the first as predicted; None lets everybody take part. The planner's plans always do.
    minutes : float or None
        Begin no round, but the first, that would end after so many.
    tell, on_step : callables
        Hear how far it is.

    Returns
    -------
    dict
        The report; ``interrupted`` after Ctrl-C, when the folder holds what was measured by then.

    Raises
    ------
    ConfigError, DataError
    """
    out, limits, rounds = Path(out), checked_size("lab(limits)", limits), checked_size("lab(rounds)", rounds)
    slack, minutes = (None if value is None else checked_real(f"lab({name})", value, 0.0)
                      for name, value in (("slack", slack), ("minutes", minutes)))
    check_data(job)
    steps = len(job.architecture.program.steps)
    kinds = [k for k in KINDS if k != "checkmate" or steps <= SOLVED] if kinds is None else list(kinds)
    if calibrate and any(kind in (*UNDER_A_LIMIT, "knapsack") for kind in kinds):
        calibrate_where_wanted(job.used, job.workload, (), tell, always=True)
    ledger = ledger_of(job.architecture, job.batch_size, job.seq_len, dtype=job.dtype, num_threads=job.threads,
                       compute=job.compute)
    asked = {"job": job.to_dict(), "kinds": kinds, "limits": limits, "more": {k: repr(v) for k, v in (more or {}).items()}}

    def make():
        tell("planning")
        return contestants(ledger, kinds, limits_of(ledger, limits), more)

    record = Record.of(out, asked, make)
    costs = {c.name: ledger.evaluate(c.plan) for c in record.contestants if c.plan is not None}
    among = None if slack is None else record.contenders(0, costs, slack)
    left = sum(len(record.left(number, among)) for number in range(rounds))
    tell(f"{left} runs to go" + (" at most" if slack is not None or minutes is not None else "")
         + (f", {len(record.runs)} are there" if record.runs else ""))
    interrupted = run_left(record, job, rounds, on_step, costs, slack, minutes)
    around = {"date": date.today().isoformat(), "machine": describe_machine(),
              "rounds": 1 + max((run.round for run in record.runs), default=-1), "slack": slack,
              "predicted_from": source_of_seconds(job.used, job.workload), "curve": planned_curve(job),
              "peers": list(peers), "interrupted": interrupted}
    asked_limits = sorted({c.limit for c in record.contestants if c.limit})
    report = report_of(job, record.contestants, record.runs, asked_limits, around)
    write_json(out / "lab.json", report)
    write_whole(out / "lab.csv", csv_of(report))
    if any(row["step_seconds"] for row in report["rows"]):
        try:
            check_picture(out / "lab.png")
        except DataError as error:
            tell(f"no picture: {error}")
        else:
            with place_for(out / "lab.png") as place:
                draw_lab(report, place)
    return report
