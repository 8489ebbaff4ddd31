"""What lattice projections, position tables and crystalline attention do to the loss: one small model, many variants.

    python profiling/crystalline.py
    python profiling/crystalline.py --quick

Every variant is trained on the embedded text for the same number of steps, on the same batches, with the same rate;
what a variant has fewer or more parameters than the plain model is made up for in the width of the feed-forward layer.
The figure is the loss on the last tenth of the text, which no variant is trained on. Differences are taken seed by
seed; one that has not the same sign under every seed is called none. Nothing is timed, so the load does not matter.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import draw
import harness
import numpy as np
from jobs import record
from peers import process
from views.losses import variants
from words import aligned

import cllm
from cllm import corpus
from cllm.models.architecture import program_of
from cllm.optim.rate import Rate

SIZES = dict(vocab_size=256, n_layers=4, d_model=128, n_heads=4, d_ff=512, max_seq_len=128)
QUICK = dict(vocab_size=256, n_layers=2, d_model=32, n_heads=2, d_ff=64, max_seq_len=32)
CRYSTALLINE = {"attention": "crystalline"}
VARIANTS = {
    "plain": {},
    "lattice": {"qkv": "lattice"},
    **{f"positions {kind}": {"positions": kind} for kind in ("sinusoidal", "spiral", "clock", "prime", "none")},
    **{f"crystalline {part}": {**CRYSTALLINE, "crystalline": (part,)} for part in ("rotation", "distance", "bias")},
    "crystalline": CRYSTALLINE,
    "crystalline, no positions": {**CRYSTALLINE, "positions": "none"},
    "lattice, crystalline": {**CRYSTALLINE, "qkv": "lattice"},
    "lattice, crystalline, prime": {**CRYSTALLINE, "qkv": "lattice", "positions": "prime"},
}


def main() -> int:
    """Train, print, write."""
    arguments = _arguments()
    sizes = QUICK if arguments.quick else SIZES
    names = arguments.variants.split(",") if arguments.variants else list(VARIANTS)
    target = parameters_of(cllm.ModelConfig(**sizes))
    configs = {name: matched(sizes, VARIANTS[name], target) for name in names}
    runs = [(name, seed) for name in names for seed in range(arguments.seeds)]
    losses = {}
    with ProcessPoolExecutor(arguments.threads, get_context("spawn")) as pool:
        waiting = {pool.submit(trained, configs[name], arguments, seed): (name, seed) for name, seed in runs}
        for done in as_completed(waiting):
            losses[waiting[done]] = done.result()
            harness.say(f"{len(losses)} of {len(runs)}")
    harness.say("")
    rows = [{"name": name, "config": config.to_dict(), "parameters": parameters_of(config),
             "losses": [losses[name, seed] for seed in range(arguments.seeds)]} for name, config in configs.items()]
    judge(rows)
    data = {"steps": arguments.steps, "batch_size": arguments.batch_size, "lr": arguments.lr, "rows": rows}
    print(aligned(*variants(data)))
    path = record.write_result("crystalline", 1, data, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 0


def parameters_of(config: cllm.ModelConfig) -> int:
    """Parameters of a model, a fixed table not being one."""
    return sum(int(np.prod(p.shape)) for p in program_of(config).parameters.values())


def matched(sizes: dict, changes: dict, target: int) -> cllm.ModelConfig:
    """The variant with the width of feed-forward layer that brings its parameters nearest to `target`."""
    config = cllm.ModelConfig(**{**sizes, **changes})
    each = config.n_layers * (2 * config.d_model + 1)
    d_ff = config.d_ff + round((target - parameters_of(config)) / each)
    return cllm.ModelConfig(**{**sizes, **changes, "d_ff": d_ff})


def trained(config: cllm.ModelConfig, arguments: argparse.Namespace, seed: int) -> float:
    """Loss on the validation part after training, on one thread."""
    text = np.frombuffer(corpus.embedded_text(), np.uint8)
    train, validation = corpus.split(text, 0.1, config.max_seq_len)
    model = cllm.GPT(config, seed=seed)
    B, T, steps = arguments.batch_size, config.max_seq_len, arguments.steps
    ex = cllm.Executor(model, batch_size=B, seq_len=T, num_threads=1)
    opt = cllm.AdamW(model, lr=arguments.lr)
    rate = Rate(arguments.lr, total=steps, warmup=max(1, steps // 20), min_lr=arguments.lr / 10)
    for step in range(steps):
        opt.lr = rate(step)
        model.zero_grad()
        ex.loss_and_grad(*corpus.batch(train, B, T, step, seed=seed))
        cllm.clip_grad_norm(model, 1.0)
        opt.step()
    starts = corpus.even_starts(len(validation), T, most=16 * B)
    parts = [starts[i:i + B] for i in range(0, len(starts) - B + 1, B)]
    return mean(ex.loss(*corpus.gather(validation, part, T)) for part in parts)


def judge(rows: list[dict]) -> None:
    """Add to each row its differences from the plain model, seed by seed, and what they say."""
    plain = next((row["losses"] for row in rows if row["name"] == "plain"), None)
    for row in rows:
        row["mean"] = mean(row["losses"])
        row["differences"] = plain and [a - b for a, b in zip(row["losses"], plain, strict=True)]
        row["says"] = "-" if plain is None or row["name"] == "plain" else verdict(row["differences"])


def verdict(differences: list[float]) -> str:
    """One word for differences of a loss, where less is better."""
    if all(d < 0 for d in differences):
        return "helps"
    return "harms" if all(d > 0 for d in differences) else "none"


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a tiny model and few steps, to see that all runs")
    made.add_argument("--variants", default="", help="some of them, separated by commas; 'plain' must be among them to "
                                                     "compare")
    made.add_argument("--seeds", type=int, default=None, help="3, or 2 with --quick")
    made.add_argument("--steps", type=int, default=None, help="400, or 20 with --quick")
    made.add_argument("--batch-size", type=int, default=None, help="16, or 4 with --quick")
    made.add_argument("--lr", type=float, default=2e-3)
    made.add_argument("--threads", type=int, default=len(process.processors(1 << 10) or "1"),
                      help="runs at a time, each on one thread (default: %(default)s)")
    made.add_argument("--out", type=Path, default=None, help="JSON file; the picture goes beside it")
    arguments = made.parse_args()
    for name, usual, quick in (("seeds", 3, 2), ("steps", 400, 20), ("batch_size", 16, 4)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else usual)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
