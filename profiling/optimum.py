"""How far the planner's curve is from the best schedule that there is, on small programs, where an integer program finds it.

    python profiling/optimum.py --out profiling/results/optimum.json

For each program and each of a dozen limits of live bytes, spread evenly from the least of the planner's curve to what keeping
everything takes, the integer program of `cllm.Checkmate` is solved: with the rows of the head that our plan has there, and with
those of the default; then once more with the value that the first block reads held throughout, as the planner's trees hold it.
Seconds are predicted at the declared speeds, so they are the same on every machine, and hold neither the
optimizer nor anything else that no plan changes. What the solver could not prove within its time has a gap above 0. The file is
written after every program, and points that it holds already are not solved again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from jobs import options, record

import cllm
from cllm.models.families import FAMILIES
from cllm.planner.costs import Speeds
from cllm.planner.graph import Graph
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.program.workload import Workload
from cllm.strategies.checkmate import solve

LIMITS = 12
SECONDS = 600.0  # of the solver for one program
PROVED = 1e-4  # gap of what is not solved again: the solver's own tolerance
NEVER = 1e3  # seconds of what is not to be made again
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
    made.add_argument("--threads", type=int, default=2, help="for which seconds are predicted")
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    path = arguments.out or record.result_path("optimum", ".json")
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["program"]: row for row in known}
    for name in (name for name in PROGRAMS if arguments.only in name):
        ledger = Ledger(PROGRAMS[name]().program, Workload(BATCH, TIME, optimizer="none", threads=arguments.threads), Speeds())
        rows[name] = compared(ledger, name, arguments.seconds, rows.get(name, {}).get("points", []))
        print(told(rows[name]), flush=True)
        data = {"batch_size": BATCH, "seq_len": TIME, "solver_seconds": arguments.seconds,
                "rows": [rows[n] for n in PROGRAMS if n in rows]}
        record.write_result("optimum", arguments.threads, data, path)
    print(f"\nwritten: {path}")
    return 0


def live(ledger: Ledger, plan: Plan) -> int:
    """Most bytes alive in the arena."""
    return max(ledger.build(plan)[1].arena.live_bytes)


def compared(ledger: Ledger, name: str, seconds: float, known: list[dict], limits: int = LIMITS) -> dict:
    """A program's points: at each limit seconds of ours, of the best that was found, and the bound below both."""
    frontier = ledger.frontier(WHOLE)
    fixed = ledger.graph().fixed_bytes
    curve = frontier.nbytes - fixed
    base = ledger.evaluate(cllm.CacheAll().decide(ledger))
    most = live(ledger, cllm.CacheAll().decide(ledger))
    least = int(curve[0])
    before = {point["limit"]: point for point in known
              if point["held_seconds"] and max(point["gap"], point["held_gap"]) <= PROVED}
    points = []
    for limit in np.linspace(least, most, limits).astype(int).tolist():
        index = int(curve.searchsorted(limit, "right")) - 1
        plan = frontier.plan(index)
        if limit in before:
            points.append(before[limit])
            continue
        ours = float(frontier.seconds[index])
        choices = tuple(dict.fromkeys((plan.loss_rows, None)))
        best, bound, chosen = best_of(ledger, choices, limit, seconds)
        held, held_bound, _ = best_of(ledger, choices, limit, seconds, holding=True)
        reach = np.flatnonzero(frontier.seconds <= best * (1 + 1e-9))
        points.append({"limit": limit, "ours_seconds": ours, "best_seconds": best if chosen else None, "bound_seconds": bound,
                       "gap": gap(best, bound), "held_seconds": held if np.isfinite(held) else None,
                       "held_gap": gap(held, held_bound),
                       "ours_live_bytes": int(curve[index]), "best_live_bytes": live(ledger, chosen) if chosen else None,
                       "ours_live_bytes_at_its_seconds": int(curve[reach[0]]) if len(reach) else None})
        print(f"  {name}: {points[-1]}", flush=True)
    return {"program": name, "steps": len(ledger.graph().nodes), "cache_seconds": base.seconds, "cache_live_bytes": most,
            "least_live_bytes": least, "points": points}


def best_of(ledger: Ledger, choices: tuple[int | None, ...], limit: int, seconds: float,
            holding: bool = False) -> tuple[float, float, Plan | None]:
    """Seconds of the best schedule with any of these rows of the head, the bound below, and the schedule; `holding` what the
    first block reads, by making it again no choice."""
    best, bound, chosen = np.inf, np.inf, None
    for rows in choices:
        graph = ledger.graph(None, rows)
        if holding:
            held = {v for node in graph.nodes if node.block == 0 for v in node.reads if graph.maker[v].block is None}
            nodes = tuple(replace(node, seconds=NEVER) if held & set(node.values) else node for node in graph.nodes)
            graph = Graph(nodes, graph.micro_batch, graph.loss_rows, graph.fixed_bytes)
        found = solve(graph, limit, seconds)
        whole = ledger.evaluate(Plan(cllm.CacheAll().decide(ledger).children, None, rows)).seconds
        bound = min(bound, whole + found.bound)
        if found.plan is not None and whole + found.seconds < min(best, NEVER):
            best, chosen = whole + found.seconds, found.plan
    return best, bound, chosen


def gap(best: float, bound: float) -> float | None:
    """Relative distance of what was found from its bound; None where nothing was."""
    return max(0.0, round((best - bound) / best, 6)) if np.isfinite(best) else None


def told(row: dict) -> str:
    """A line for people."""
    found = [point for point in row["points"] if point["best_seconds"]]
    slower = [point["ours_seconds"] / point["best_seconds"] - 1 for point in found]
    return (f"{row['program']}: {len(found)} of {len(row['points'])} limits solved, ours slower by "
            f"{max(slower, default=0):.2%} at most, {np.median(slower) if slower else 0:.2%} in the median; "
            f"{sum(point['gap'] <= PROVED for point in found)} proved")


if __name__ == "__main__":
    sys.exit(options.run(main))
