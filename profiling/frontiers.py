"""What the planner finds for the models that are here: least bytes, and seconds under limits; and whether that of another
commit was better.

    python profiling/frontiers.py --out before.json
    python profiling/frontiers.py --before before.json

For every job and for sets of what may be decided, plans are made under limits that are spread evenly, in the logarithm, from
the least to the most of the frontier (with `--before`, under that file's limits), and their seconds are those of their
schedules at the declared speeds, so that they are the same on every machine. Seconds of planning are those of the processor.
With `--before` the largest ratios of seconds under equal limits, and of least bytes, are told; above 1 is worse.
"""

import argparse
import json
import sys
from pathlib import Path

import harness
import numpy as np
from jobs import options, record
from jobs.separate import Separate
from planning import LLAMA

import cllm
from cllm.models.families import FAMILIES
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.program.workload import Workload

EXACT = ("cache", "recompute", "micro_batch")
ALLOW = {"exact": EXACT, "no micro_batch": EXACT[:2], "no recompute": EXACT[::2], "bfloat16": (*EXACT, "bfloat16"),
         "both": (*EXACT, "bfloat16", "int8")}
LIMITS = 24
EQUAL = 1e-9  # sums of the same seconds in another order
GPT = cllm.ModelConfig


def models() -> dict[str, tuple]:
    """Architecture, sequences and time steps by the name of a job."""
    llama, neox = FAMILIES["llama"], FAMILIES["gpt_neox"]
    return {"tiny, 4 x 32": (GPT.preset("tiny"), 4, 32), "small, 8 x 256": (GPT.preset("small"), 8, 256),
            "small, 4 x 1024": (GPT.preset("small", max_seq_len=1024), 4, 1024),
            "small with dropout, 3 x 64": (GPT.preset("small", dropout=0.1), 3, 64),
            "gpt2, 2 x 256": (GPT.preset("gpt2"), 2, 256), "gpt2, 1 x 1024": (GPT.preset("gpt2"), 1, 1024),
            "crystalline, 4 x 32": (FAMILIES["crystalline"].preset("tiny"), 4, 32),
            "llama, 24 layers, 4 x 256": (llama(**LLAMA), 4, 256),
            "norms of heads, 6 layers, 4 x 256": (llama(**{**LLAMA, "n_layers": 6}, qk_norm="head", n_kv_heads=4), 4, 256),
            "norms after, 6 layers, 4 x 256": (llama(**{**LLAMA, "n_layers": 6}, norm_after=True), 4, 256),
            "separate products, 24 layers, 4 x 256": (Separate(), 4, 256),
            "parallel branches, 6 layers, 4 x 256": (neox(**{**LLAMA, "n_layers": 6}), 4, 256)}


def main() -> int:
    """Plan, write JSON, compare."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--before", type=Path, default=None, metavar="JSON", help="what this script wrote at another commit")
    made.add_argument("--only", default="", metavar="TEXT", help="jobs whose name holds this text")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    before = {} if arguments.before is None else {
        (row["job"], row["allow"]): row for row in json.loads(arguments.before.read_text(encoding="utf-8"))["rows"]}
    rows = []
    for job, (model, batch, time) in models().items():
        for name, allow in ALLOW.items() if arguments.only in job else ():
            known = before.get((job, name))
            rows.append({"job": job, "allow": name, **_planned(model, Workload(batch, time, threads=arguments.threads), allow,
                                                               known and known["limits"])})
            if known:
                rows[-1] |= against(known, rows[-1])
            print(told(rows[-1]), flush=True)
    path = record.write_result("frontiers", arguments.threads, {"rows": rows}, arguments.out)
    print(f"\nwritten: {path}")
    return 0


def _planned(model, workload: Workload, allow: tuple[str, ...], limits: list[int] | None) -> dict:
    """Least bytes of a job, and seconds of the plans under limits; None where none fits."""
    ledger = Ledger(model.program, workload, Speeds())
    frontier, spent = harness.processor_seconds(lambda: ledger.frontier(tuple(sorted(allow))))
    if limits is None:
        limits = np.geomspace(frontier.nbytes[0], frontier.nbytes[-1] * 1.001, LIMITS).astype(int).tolist()
    return {"planning_seconds": spent, "points": len(frontier), "least_bytes": int(frontier.nbytes[0]),
            "limits": limits, "seconds": [_seconds(ledger, limit, allow) for limit in limits]}


def _seconds(ledger: Ledger, limit: int, allow: tuple[str, ...]) -> float | None:
    try:
        return ledger.evaluate(cllm.MemoryBudget(limit, allow=allow).decide(ledger)).seconds
    except cllm.BudgetError:
        return None


def against(known: dict, row: dict) -> dict:
    """The largest ratio of seconds under equal limits, how many limits have more and how many fewer, and that of least bytes;
    a limit that was met and is not any more counts as without end."""
    pairs = [(now if now is not None else np.inf, then) for now, then in zip(row["seconds"], known["seconds"], strict=True)
             if then is not None]
    ratios = [now / then for now, then in pairs]
    return {"worst": max(ratios), "best": min(ratios), "slower": sum(r > 1 + EQUAL for r in ratios),
            "faster": sum(r < 1 - EQUAL for r in ratios), "least": row["least_bytes"] / known["least_bytes"],
            "planning_before": known["planning_seconds"]}


def told(row: dict) -> str:
    """A row of the table."""
    text = f"{row['job']:<37} {row['allow']:<15} {row['planning_seconds']:7.2f} s, {row['points']:>4} points"
    if "worst" in row:
        text += (f", was {row['planning_before']:.2f} s; seconds {row['best']:.4f} to {row['worst']:.4f} "
                 f"({row['slower']} slower, {row['faster']} faster), least {row['least']:.6f}")
    return text


if __name__ == "__main__":
    sys.exit(options.run(main))
