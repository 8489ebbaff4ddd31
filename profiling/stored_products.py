"""What it costs a product to read its weights as they lie in a file, against reading an array of float32.

    python profiling/stored_products.py
    python profiling/stored_products.py --kinds BF16,Q4_1 --rows 1,16,512 --products 576x1536,2048x8192 --rounds 10

For each kind, number of rows N and product I x O: forward x W and backward dy W^T, W kept (out, in) as files have it, the same
numbers expanded to an array beside it, in bursts that take turns. The results have equal bits, which is checked first.
"""

import argparse
import sys
from functools import partial

import harness
import numpy as np
from jobs import options, record

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
ROWS = (1, 16, 128, 512)  # a token of a text, a short prompt, parts of a batch
PRODUCTS = ("576x576", "576x3072", "1536x576", "2048x8192")  # SmolLM2-135M's, and one of a model of 1.7e9


def main() -> int:
    """Measure, write JSON and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=options.positive, default=8, help="rounds of bursts")
    options.add_common(parser)
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B,...")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), metavar="N,N,...")
    parser.add_argument("--products", default=",".join(PRODUCTS), metavar="IxO,...")
    arguments = options.parsed(parser)
    from cllm import _kernels as kernels

    kernels.set_threads(arguments.threads)
    found = []
    for product in arguments.products.split(","):
        shape = tuple(map(int, product.split("x")))
        for n in map(int, arguments.rows.split(",")):
            harness.say(f"{product}, {n} rows")
            found += [measured(kernels, kind, n, shape, arguments.rounds) for kind in arguments.kinds.split(",")]
    path = record.write_result("stored_products", arguments.threads, {"rows": found}, arguments.out)
    print(f"{'kind':<6}{'N':>6}{'I x O':>12}  {'x W, time over float32':<34}dy W^T, time over float32")
    for row in found:
        print(f"{row['kind']:<6}{row['n']:>6}{row['product']:>12}  {row['forward']['words']:<34}{row['backward']['words']}")
    print(f"\nwritten: {path}")
    return 0


def measured(kernels, kind: str, n: int, shape: tuple[int, int], rounds: int) -> dict:
    """One row: both products, and how long each takes against the array."""
    from cllm.weights.stored import Stored

    inside, outside = shape
    rng = np.random.default_rng(0)
    nbytes, count = kernels.STORED_KINDS[kind]
    data = rng.integers(0, 60, (outside, inside // count * nbytes), np.uint8)  # halves of small numbers, none of them NaN
    matrix = Stored(((kind, data, None),), inside, turned=True)
    ways = {"stored": matrix, "array": np.ascontiguousarray(np.asarray(matrix))}
    found = {"kind": kind, "n": n, "product": f"{inside}x{outside}", "nbytes": matrix.nbytes}
    for which, width, results in (("forward", inside, outside), ("backward", outside, inside)):
        x, y = rng.normal(size=(n, width)).astype("float32"), {name: np.empty((n, results), "float32") for name in ways}
        room = np.empty(kernels.linear_workspace(n, inside, outside, kernels.get_threads(), 4), "float32")
        if which == "forward":
            calls = {name: partial(kernels.linear_forward, x, weight, None, y=y[name], workspace=room)
                     for name, weight in ways.items()}
        else:
            calls = {name: partial(kernels.linear_backward_input, x, weight, dx=y[name], workspace=room)
                     for name, weight in ways.items()}
        for call in calls.values():
            call()
        if y["stored"].tobytes() != y["array"].tobytes():
            raise SystemExit(f"{kind}, {which} of {inside}x{outside}: the results differ")
        repeats = harness.repeats_for(min(harness.burst(calls["array"], 3)))
        timings = harness.interleave({name: partial(harness.burst, call, repeats) for name, call in calls.items()}, rounds)
        against = harness.ratio(timings["stored"], timings["array"])
        found[which] = {**{name: timing.to_dict() for name, timing in timings.items()}, "ratio": against.to_dict(),
                        "words": str(against)}
    return found


if __name__ == "__main__":
    sys.exit(main())
