"""How memory and time grow with depth and with batch, by strategy.

    python profiling/depth.py
    python profiling/depth.py --depths 2,4,8 --batches 1,4 --set qkv=lattice --strategies cache,selective,budget:100MB

By default thin layers (C 128, F 512, T 256): 6 to 96 of them at batch 1 under strategies whose memory grows as L, sqrt L,
log L; and 6 of them at batch 1 to 32, whole and in micro-batches of 1. All is one library, so one process takes the bursts
in turn.
"""

import sys
from dataclasses import replace
from math import ceil, log2

import draw
import harness
import numpy as np
from jobs import models, options, record

from cllm import Executor, Model
from cllm.models.settings import setting_of

THIN = {"vocab_size": 256, "d_model": 128, "n_heads": 4, "d_ff": 512}
LOG_SLOTS = "binomial:log"  # ceil(log2 L) slots, whatever the depth
WORDS = {"cache": "CacheAll", "sqrt": "Sqrt", LOG_SLOTS: "Binomial(ceil(log2 L))", "recompute": "RecomputeAll",
         "cache@1": "CacheAll, micro-batch 1"}


def main() -> int:
    """Measure, write JSON and a picture."""
    parser = options.parser(__doc__.splitlines()[0], f"cache,sqrt,{LOG_SLOTS},recompute", rounds=5)
    parser.add_argument("--depths", type=_numbers, default="6,12,24,48,96", metavar="A,B,...", help="numbers of layers")
    parser.add_argument("--batches", type=_numbers, default="1,2,4,8,16,32", metavar="A,B,...",
                        help="batches, at the first depth, under the first strategy, whole and in micro-batches of 1")
    parser.add_argument("--depth-field", default="n_layers", metavar="FIELD", help="the model's setting that is its depth")
    parser.set_defaults(preset=None, batch_size=1)
    arguments = options.parsed(parser)
    model = models.asked(arguments, THIN)
    names = options.strategies_of(arguments)
    rows = []
    for depth in arguments.depths:
        slots = f"binomial:{max(1, ceil(log2(depth)))}"
        asked = {WORDS.get(name, name): (arguments.batch_size, name.replace(LOG_SLOTS, slots)) for name in names}
        rows += _measure(_of_depth(model, depth, arguments), asked, arguments, "depth")
    for batch in arguments.batches:
        both = dict.fromkeys((names[0], f"{names[0].partition('@')[0]}@1"))
        asked = {WORDS.get(name, name): (batch, name) for name in both}
        rows += _measure(_of_depth(model, arguments.depths[0], arguments), asked, arguments, "batch")
    path = record.write_result("depth", arguments.threads, {
        "time": arguments.seq_len, "base": model["config"], "family": model["family"], "model": model["model"], "rows": rows},
                                arguments.out)
    pictures = draw.draw(path)
    for row in rows:
        print(f"{row['sweep']:<6} L {row['layers']:>3} B {row['batch']:>3}  {row['name']:<24} "
              f"{row['arena_bytes'] / 1e6:>9.2f} MB  {row['seconds']['median']:.4f} s")
    print(draw.told(path, pictures))
    return 0


def _numbers(text: str) -> list[int]:
    return [options.positive(one) for one in text.split(",")]


def _of_depth(model: dict, depth: int, arguments):
    """The architecture with so many layers."""
    whole, field = models.architecture(model), arguments.depth_field
    return replace(whole, **{field: setting_of(type(whole), field, str(depth))})


def _measure(architecture, asked: dict[str, tuple[int, str]], arguments, sweep: str) -> list[dict]:
    model, depth = Model(architecture), architecture.program.n_blocks
    bursts, executors = {}, {}
    for name, (batch, strategy) in asked.items():
        feeds = architecture.example_batch(np.random.default_rng(0), batch, arguments.seq_len)
        executor = executors[name] = Executor(model, batch, arguments.seq_len, strategy=strategy,
                                              num_threads=arguments.threads)

        def step(executor=executor, feeds=feeds):
            model.zero_grad()
            executor.loss_and_grad(**feeds)

        step()
        bursts[name] = lambda step=step: harness.burst(step, 1)
    harness.say(f"{sweep}: {depth} layers")
    timings = harness.interleave(bursts, arguments.rounds)
    rows = []
    for name, (batch, strategy) in asked.items():
        executor = executors[name]
        if executor.high_water_bytes != executor.memory.arena_bytes:
            raise SystemExit(f"{name}: the arena's record is not what was predicted")
        rows.append({"sweep": sweep, "name": name, "strategy": strategy, "layers": depth, "batch": batch,
                     "arena_bytes": executor.memory.arena_bytes, "seconds": timings[name].to_dict()})
    return rows


if __name__ == "__main__":
    sys.exit(options.run(main))
