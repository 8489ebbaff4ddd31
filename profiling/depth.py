"""How memory and time grow with depth and with batch, by strategy.

    python profiling/depth.py

Thin layers (C 128, F 512, T 256): 6 to 96 of them at batch 1 under strategies whose memory grows as L, sqrt L, log L;
and 6 of them at batch 1 to 32 with micro-batches of 1. All is one library, so one process takes the bursts in turn.
"""

import argparse
import sys
from math import ceil, log2
from pathlib import Path

import draw
import harness
import numpy as np

from cllm import GPT, Executor, ModelConfig

DEPTHS = (6, 12, 24, 48, 96)
BATCHES = (1, 2, 4, 8, 16, 32)
TIME = 256


def strategies(depth: int) -> dict[str, str]:
    """The strategies of the picture, by the name in its legend."""
    return {"CacheAll": "cache", "Sqrt": "sqrt", "Binomial(ceil(log2 L))": f"binomial:{ceil(log2(depth))}",
            "RecomputeAll": "recompute"}


def main() -> int:
    """Measure, write JSON and a picture."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, default=None)
    arguments = made.parse_args()
    rows = []
    for depth in DEPTHS:
        rows += _measure(depth, {name: (1, strategy) for name, strategy in strategies(depth).items()}, arguments, "depth")
    for batch in BATCHES:
        names = {"CacheAll": (batch, "cache"), "CacheAll, micro-batch 1": (batch, "cache@1")}
        rows += _measure(6, names, arguments, "batch")
    path = harness.write_result("depth", arguments.threads, {"time": TIME, "rows": rows}, arguments.out)
    draw.draw(path)
    for row in rows:
        print(f"{row['sweep']:<6} L {row['layers']:>3} B {row['batch']:>3}  {row['name']:<24} "
              f"{row['arena_bytes'] / 1e6:>9.2f} MB  {row['seconds']['median']:.4f} s")
    print(f"\nwritten: {path} and its picture")
    return 0


def _measure(depth: int, jobs: dict[str, tuple[int, str]], arguments, sweep: str) -> list[dict]:
    config = ModelConfig(vocab_size=256, n_layers=depth, d_model=128, n_heads=4, d_ff=512, max_seq_len=TIME)
    model = GPT(config)
    bursts, executors = {}, {}
    for name, (batch, strategy) in jobs.items():
        tokens, targets = np.random.default_rng(0).integers(0, 256, (2, batch, TIME))
        executor = executors[name] = Executor(model, batch, TIME, strategy=strategy, num_threads=arguments.threads)

        def step(executor=executor, tokens=tokens, targets=targets):
            model.zero_grad()
            executor.loss_and_grad(tokens, targets)

        step()
        bursts[name] = lambda step=step: harness.burst(step, 1)
    timings = harness.interleave(bursts, arguments.rounds)
    rows = []
    for name, (batch, strategy) in jobs.items():
        executor = executors[name]
        if executor.high_water_bytes != executor.memory.arena_bytes:
            raise SystemExit(f"{name}: the arena's record is not what was predicted")
        rows.append({"sweep": sweep, "name": name, "strategy": strategy, "layers": depth, "batch": batch,
                     "arena_bytes": executor.memory.arena_bytes, "seconds": timings[name].to_dict()})
    return rows


if __name__ == "__main__":
    sys.exit(main())
