"""What a change to the code or to the compiler's flags does to the products: two builds of the kernels in one process, in turn.

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python profiling/builds.py --before ../before
    python profiling/builds.py --before ../before --threads 1 --shapes 3000x640x640,512x64x64 --rounds 400

Both read and write the same arrays on the same threads, so that neither is luckier with its memory or its processor. Single
calls take turns, since a neighbour on the same core comes and goes within milliseconds: what one build loses beside it and
the other does not (a loop that lies badly, say) shows in the median and not in the least.
"""

import argparse
import importlib.util
import sys
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import mean, median
from types import ModuleType

import harness
import numpy as np
from jobs import options, record
from peers.inputs import aligned
from peers.process import ROOT

PRODUCTS = ("forward", "weight gradient", "input gradient")
SHAPES = "2048x512x2048,2048x512x512,512x64x64,3000x640x640,200x100x300,333x129x517"


def main() -> int:
    """Measure, write JSON and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="root of the other source tree, built")
    parser.add_argument("--after", type=Path, default=ROOT, metavar="DIR", help="root of the tree to hold against it")
    parser.add_argument("--shapes", default=SHAPES, metavar="NxIxO,...", help="rows, inputs and outputs of the products")
    parser.add_argument("--rounds", type=options.positive, default=200, help="pairs of calls")
    options.add_common(parser)
    arguments = options.parsed(parser)
    builds = [_kernels(tree) for tree in (arguments.before, arguments.after)]
    rows = [measured(builds, tuple(map(int, shape.split("x"))), product, arguments.threads, arguments.rounds)
            for shape in arguments.shapes.split(",") for product in PRODUCTS]
    commits = {"before": record.commit(arguments.before), "after": record.commit(arguments.after)}
    speed = exp(mean(log(row["speed"]) for row in rows))
    path = record.write_result("builds", arguments.threads, {"rounds": arguments.rounds, "commits": commits, "rows": rows,
                                                             "speed": speed}, arguments.out)
    print(f"{'N I O':<16}{'product':<18}{'GFLOP/s, best':>16}{'median':>16}   speed after / before, median of pairs")
    for row in rows:
        best, usual = (" ".join(f"{one:7.1f}" for one in row[name]) for name in ("best", "median"))
        print(f"{row['shape']:<16}{row['product']:<18}{best:>16}{usual:>16}   {row['speed']:.3f}")
    print(f"geometric mean {speed:.3f}\n\nwritten: {path}")
    return 0


def measured(builds: list[ModuleType], shape: tuple[int, int, int], product: str, threads: int, rounds: int) -> dict:
    """One row: 10^9 operations a second of both, best and median, and the median over pairs of how their speeds compare."""
    n, inside, outside = shape
    drawn = partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    x, weight, dy = (aligned(one) for one in (drawn((n, inside)), drawn((inside, outside)), drawn((n, outside))))
    arrays = (x, weight, dy), (aligned(np.zeros_like(dy)), aligned(np.zeros_like(x)), aligned(np.zeros_like(weight)))
    calls = [_call(kernels, product, *arrays, threads) for kernels in builds]
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(-1, rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            one, = harness.burst(calls[which], 1)
            if turn >= 0:  # the first pair finds cold caches
                seconds[which].append(one)
    work = 2e-9 * n * inside * outside
    return {"shape": "x".join(map(str, shape)), "product": product, "best": [work / min(one) for one in seconds],
            "median": [work / median(one) for one in seconds],
            "speed": median(before / after for before, after in zip(*seconds, strict=True))}


def _kernels(tree: Path) -> ModuleType:
    """The compiled module of a source tree, whatever of that name has been imported."""
    found = sorted((tree / "cllm").glob("_kernels.*.so"))
    if not found:
        raise SystemExit(f"{tree}: has no built cllm/_kernels")
    sys.modules.pop("cllm._kernels", None)
    spec = importlib.util.spec_from_file_location("cllm._kernels", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(kernels: ModuleType, product: str, given: tuple, written: tuple, threads: int):
    (x, weight, dy), (y, dx, dweight) = given, written
    kernels.set_threads(threads)
    room = aligned(np.zeros(max(1, kernels.linear_workspace(*x.shape, dy.shape[1], threads, 4)), np.float32))
    return {"forward": lambda: kernels.linear_forward(x, weight, None, y=y, workspace=room),
            "weight gradient": lambda: kernels.linear_backward_weight(x, dy, dweight=dweight, dbias=None, workspace=room),
            "input gradient": lambda: kernels.linear_backward_input(dy, weight, dx=dx, workspace=room)}[product]


if __name__ == "__main__":
    sys.exit(options.run(main))
