"""How far the planner's curve is from the best schedule that there is, on small programs, where an integer program finds it.

    python profiling/optimum.py --out profiling/results/optimum.json
    python profiling/optimum.py --seconds 600 --out profiling/results/optimum.json

For each program and each of a dozen limits of live bytes, spread evenly from the least of the planner's curve to what keeping
everything takes, the integer program of `cllm.Checkmate` is solved: with the rows of the head that our plan has there, and with
those of the default. Seconds are predicted at the declared speeds, so they are the same on every machine, and hold neither the
optimizer nor anything else that no plan changes. What the solver could not prove within its time has a gap above 0; where it
found nothing quicker than our plan, that is the best that is known.

Each limit is a line of OUT.part as soon as it is solved. A run that was stopped goes on there if its commit, its programs and
its limits of time are the same, and begins anew if not; the result is of one commit and one command.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from jobs import options, record

import cllm
from cllm.models.families import FAMILIES
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.program.workload import Workload
from cllm.strategies.checkmate import solve

LIMITS = 12
SECONDS = 180.0  # of the solver for one integer program
PROVED = 1e-4  # gap: the solver's own tolerance
WHOLE = ("cache", "recompute")  # of one micro-batch: the same schedule is asked of both
GPT = dict(vocab_size=256, d_model=512, n_heads=8, d_ff=2048, max_seq_len=256)
LLAMA = dict(vocab_size=256, d_model=512, n_heads=8, n_kv_heads=2, d_ff=1408, max_seq_len=256)
PROGRAMS = {"GPT, 1 block": lambda: cllm.ModelConfig(n_layers=1, **GPT),
            "GPT, 2 blocks": lambda: cllm.ModelConfig(n_layers=2, **GPT),
            "LLaMA, 2 blocks": lambda: FAMILIES["llama"](n_layers=2, **LLAMA),
            "GPT, 3 blocks": lambda: cllm.ModelConfig(n_layers=3, **GPT)}
BATCH, TIME = 8, 256


def main() -> int:
    """Solve, compare, write JSON."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--only", default="", metavar="TEXT", help="programs whose name holds this text")
    made.add_argument("--seconds", type=float, default=SECONDS, help="of the solver for one program (default: %(default)g)")
    made.add_argument("--limits", type=int, default=LIMITS, help="for each program (default: %(default)d)")
    made.add_argument("--threads", type=int, default=2, help="for which seconds are predicted")
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    path = arguments.out or record.result_path("optimum", ".json")
    asked = {"commit": record.commit(), "only": arguments.only, "solver_seconds": arguments.seconds, "limits": arguments.limits,
             "threads": arguments.threads}
    part = Part(path.with_name(path.name + ".part"), asked)
    rows = []
    for name in (name for name in PROGRAMS if arguments.only in name):
        ledger = Ledger(PROGRAMS[name]().program, Workload(BATCH, TIME, optimizer="none", threads=arguments.threads), Speeds())
        rows.append(compared(ledger, name, arguments.seconds, arguments.limits, part))
        print(told(rows[-1]), flush=True)
    data = {"command": " ".join(["python profiling/optimum.py", *sys.argv[1:]]), "batch_size": BATCH, "seq_len": TIME,
            "solver_seconds": arguments.seconds, "rows": rows}
    record.write_result("optimum", arguments.threads, data, path)
    part.path.unlink()
    print(f"\nwritten: {path}")
    return 0


class Part:
    """A run's points as lines of a file, the first line what was asked for; those of another run are none."""

    def __init__(self, path: Path, asked: dict):
        self.path = path
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        self.known = {(line["program"], line["limit"]): line["point"] for line in lines[1:]} if lines[:1] == [asked] else {}
        if not self.known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asked) + "\n", encoding="utf-8")

    def add(self, program: str, point: dict) -> None:
        """Keep a point."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"program": program, "limit": point["limit"], "point": point}) + "\n")


def live(ledger: Ledger, plan: Plan) -> int:
    """Most bytes alive in the arena."""
    return max(ledger.build(plan)[1].arena.live_bytes)


def compared(ledger: Ledger, name: str, seconds: float, limits: int, part: Part) -> dict:
    """A program's points: at each limit seconds of ours, of the best that is known, and the bound below both."""
    frontier = ledger.frontier(WHOLE)
    curve = frontier.nbytes - ledger.graph().fixed_bytes
    base = ledger.evaluate(cllm.CacheAll().decide(ledger))
    least, most = int(curve[0]), live(ledger, cllm.CacheAll().decide(ledger))
    points = []
    for limit in np.linspace(least, most, limits).astype(int).tolist():
        if (name, limit) not in part.known:
            index = int(curve.searchsorted(limit, "right")) - 1
            ours, mine = frontier.plan(index), float(frontier.seconds[index])
            best, bound, plan = best_of(ledger, tuple(dict.fromkeys((ours.loss_rows, None))), limit, seconds)
            if best >= mine:
                best, plan = mine, ours
            reach = np.flatnonzero(frontier.seconds <= best * (1 + 1e-9))
            part.add(name, part.known.setdefault((name, limit), {
                "limit": limit, "ours_seconds": mine, "best_seconds": best, "bound_seconds": bound, "gap": gap(best, bound),
                "ours_live_bytes": int(curve[index]), "best_live_bytes": live(ledger, plan),
                "ours_live_bytes_at_its_seconds": int(curve[reach[0]]) if len(reach) else None}))
        points.append(part.known[name, limit])
        print(f"  {name}: {points[-1]}", flush=True)
    return {"program": name, "steps": len(ledger.graph().nodes), "cache_seconds": base.seconds, "cache_live_bytes": most,
            "least_live_bytes": least, "points": points}


def best_of(ledger: Ledger, choices: tuple[int | None, ...], limit: int, seconds: float) -> tuple[float, float, Plan | None]:
    """Seconds of the best schedule with any of these rows of the head, the bound below, and the schedule."""
    best, bound, chosen = np.inf, np.inf, None
    for rows in choices:
        found = solve(ledger.graph(None, rows), limit, seconds)
        whole = ledger.evaluate(Plan(cllm.CacheAll().decide(ledger).children, None, rows)).seconds
        bound = min(bound, whole + found.bound)
        if found.plan is not None and whole + found.seconds < best:
            best, chosen = whole + found.seconds, found.plan
    return best, bound, chosen


def gap(best: float, bound: float) -> float:
    """Relative distance of the best that is known from the bound."""
    return max(0.0, round((best - bound) / best, 6))


def told(row: dict) -> str:
    """A line for people."""
    points = row["points"]
    slower = [point["ours_seconds"] / point["best_seconds"] - 1 for point in points]
    return (f"{row['program']}: ours slower by {max(slower):.2%} at most, {np.median(slower):.2%} in the median, at "
            f"{len(points)} limits; {sum(point['gap'] <= PROVED for point in points)} proved")


if __name__ == "__main__":
    sys.exit(options.run(main))
