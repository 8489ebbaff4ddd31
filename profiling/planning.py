"""How long planning takes, and what thinning costs deep networks.

    python profiling/planning.py
    python profiling/planning.py --model mine.py:Mine --batch-size 8 --seq-len 128

Seconds of one `cllm.plan` under a budget in the middle of the frontier, and of a refusal, least of a few rounds; and for
40 thin layers the frontier thinned as deep networks are, against the whole one: the most by which a limit's seconds grow,
and the most by which they grow if the limit may be one percent larger.
"""

import argparse
import sys
from pathlib import Path

import harness
import numpy as np
from jobs import models, options, record
from jobs.separate import Separate

import cllm
from cllm.models.architecture import program_of
from cllm.models.families import FAMILIES
from cllm.planner import frontier
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.program.workload import Workload

THIN = {"vocab_size": 256, "d_model": 128, "n_heads": 4, "d_ff": 512, "max_seq_len": 256}
LLAMA = {"vocab_size": 4096, "n_layers": 24, "d_model": 512, "n_heads": 8, "d_ff": 1408, "max_seq_len": 256}
LONG = 1000  # blocks from which on one round is enough
JOBS = {"96 thin layers, 1 x 256": (cllm.ModelConfig(n_layers=96, **THIN), 1, 256),
        "96 thin layers, 8 x 256": (cllm.ModelConfig(n_layers=96, **THIN), 8, 256),
        "200 thin layers, 8 x 256": (cllm.ModelConfig(n_layers=200, **THIN), 8, 256),
        "3,000 thin layers, 8 x 256": (cllm.ModelConfig(n_layers=3000, **THIN), 8, 256),
        "llama, 24 layers, 4 x 256": (FAMILIES["llama"](**LLAMA), 4, 256),
        "separate products, 4 x 256": (Separate(), 4, 256),
        "small, 8 x 256": (cllm.ModelConfig.preset("small"), 8, 256),
        "small, 4 x 1024": (cllm.ModelConfig.preset("small"), 4, 1024),
        "gpt2, 2 x 256": (cllm.ModelConfig.preset("gpt2"), 2, 256),
        "gpt2, 1 x 1024": (cllm.ModelConfig.preset("gpt2"), 1, 1024)}
THINNED_LAYERS = 40
LIMITS = 2000


def main() -> int:
    """Measure and write JSON."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models.add_options(made, preset=None)
    made.add_argument("--batch-size", type=int, default=8, help="of the model that is named")
    made.add_argument("--seq-len", type=int, default=256, help="of the model that is named")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    jobs = JOBS
    if models.is_asked(arguments):
        model = models.asked(arguments)
        time = "" if arguments.seq_len is None else f" x {arguments.seq_len}"
        jobs = {f"{model['model']}, {arguments.batch_size}{time}": (models.architecture(model), arguments.batch_size,
                                                                    arguments.seq_len)}
    rows = [_times(name, *job, arguments) for name, job in jobs.items()]
    thinned = _thinned(arguments.threads)
    path = record.write_result("planning", arguments.threads, {"rows": rows, "thinned": thinned}, arguments.out)
    for row in rows:
        print(f"{row['job']:<26} plan {row['plan_seconds']:.3f} s, refusal {row['refusal_seconds']:.3f} s, "
              f"{row['points']} points")
    print(f"thinned, {THINNED_LAYERS} layers: {thinned['worst']:.4f} of the seconds at most, {thinned['worst_near']:.4f} with "
          f"a limit 1 % larger, median {thinned['median']:.4f}\n\nwritten: {path}")
    return 0


def _times(name: str, model: cllm.Architecture, batch: int, time: int | None, arguments) -> dict:
    ledger = Ledger(program_of(model), Workload(batch, time, threads=arguments.threads))
    whole = ledger.frontier(tuple(sorted(cllm.MemoryBudget(1).allow)))
    limit = int(whole.nbytes[len(whole) // 2] * 1.01)

    def plan():
        cllm.plan(model, batch, time, cllm.MemoryBudget(limit), num_threads=arguments.threads)

    def refuse():
        try:
            cllm.plan(model, batch, time, cllm.MemoryBudget(1), num_threads=arguments.threads)
        except cllm.BudgetError:
            return
        raise AssertionError("one byte must not be enough")

    rounds = 1 if ledger.n_blocks >= LONG else arguments.rounds
    return {"job": name, "points": len(whole), "plan_seconds": min(harness.burst(plan, rounds)),
            "refusal_seconds": min(harness.burst(refuse, rounds))}


def _thinned(threads: int) -> dict:
    config = cllm.ModelConfig(n_layers=THINNED_LAYERS, **THIN)
    program, workload = program_of(config), Workload(1, 256, threads=threads)

    def make():
        return frontier.Frontier(program, workload, Speeds(), ("cache", "recompute"))

    thin = make()
    kept, frontier.DEEP, frontier.MOST = (frontier.DEEP, frontier.MOST), THINNED_LAYERS, 10**6
    try:
        whole = make()
    finally:
        frontier.DEEP, frontier.MOST = kept
    limits = np.geomspace(thin.nbytes[0], whole.nbytes[-1], LIMITS)
    exact = whole.seconds[np.searchsorted(whole.nbytes, limits, "right") - 1]
    same, near = (thin.seconds[np.searchsorted(thin.nbytes, limits * room, "right") - 1] / exact for room in (1, 1.01))
    return {"layers": THINNED_LAYERS, "points": len(thin), "points_unthinned": len(whole), "worst": float(same.max()),
            "worst_near": float(near.max()), "median": float(np.median(same)),
            "least_bytes": float(thin.nbytes[0] / whole.nbytes[0])}


if __name__ == "__main__":
    sys.exit(options.run(main))
