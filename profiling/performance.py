"""How fast cllm is on this processor: products, attention and whole steps beside NumPy's and PyTorch's, in one result.

    python profiling/performance.py --out profiling/results/performance-PROCESSOR.json
    python profiling/performance.py --peer-python PYTHON_WITH_TORCH --out profiling/results/performance-PROCESSOR.json

Products at eight shapes of models, at small and at odd ones, on one thread and on --threads; attention over 1,024 positions;
whole steps at four sizes, in bfloat16 as well, beside PyTorch's as it is, compiled, and in its bfloat16. Without PyTorch its
columns stay empty. What is finished is kept beside the result (NAME.part): the same command goes on where it was ended.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import compare
import harness
import kernels
import words
from jobs import models, options, record
from jobs.resumed import Parts
from machine.limits import Limits
from peers import process
from views.performance import VIEWS

PRODUCTS = ("linear_forward", "linear_backward_input", "linear_backward_weight")
OTHER_SHAPES = ((200, 100, 300), (2048, 96, 96), (3000, 640, 640), (1000, 333, 777), (77, 1024, 1024), (4096, 64, 1000))
BLOCKS = "block_backward_weight"
ATTENTION = (("attention", (4, 8, 1024, 64)), ("grouped_attention", (1, 9, 3, 1024, 64)))
STEPS = (("small", 8, 256), ("small", 4, 1024), ("gpt2", 2, 256), ("tiny", 4, 32))
OURS = ("cache", "cache+bfloat16")
THEIRS = ("torch eager", "torch compile", "torch autocast")


def main() -> int:
    """Measure, print, write; the exit code is 1 when something failed or computed something else."""
    arguments = _arguments()
    place = arguments.out or record.result_path("performance", ".json")
    theirs = THEIRS if process.has_torch(arguments.peer_python) else ()
    parts = Parts(place, {"threads": arguments.threads, "rounds": arguments.rounds, "contestants": theirs}, arguments.fresh)
    shapes = (*kernels.PRODUCTS, *OTHER_SHAPES)
    cases = [*((kernel, shape) for kernel in PRODUCTS for shape in shapes),
             *((BLOCKS, shape) for shape in kernels.SHAPES[BLOCKS])]
    made = {f"products on {words.count(n, 'thread')}": (_kernels, n, cases) for n in sorted({1, arguments.threads})}
    made["attention"] = _kernels, arguments.threads, ATTENTION
    made |= {f"{preset} {batch} x {time}": (_steps, (preset, batch, time), theirs) for preset, batch, time in STEPS}
    found = {}
    for name, (measure, *what) in made.items():
        harness.say(name)
        found[name] = parts.part(name, lambda measure=measure, what=what: measure(arguments, *what))
    harness.say("")
    data = {"rounds": arguments.rounds, "dtype": "float32",
            "kernels": {name: one["rows"] for name, one in found.items() if made[name][0] is _kernels},
            "steps": {name: one["rows"] for name, one in found.items() if made[name][0] is _steps},
            "limit": max(one["limit"] for one in found.values() if "limit" in one) or None,
            "problems": [f"{name}: {problem}" for name, one in found.items() for problem in one["problems"]]}
    path = record.write_result("performance", arguments.threads, data, arguments.out)
    parts.finish()
    print("\n\n".join(words.aligned(*view(data)) for view in VIEWS.values()), *data["problems"], f"written: {path}", sep="\n")
    return int(bool(data["problems"]))


def _kernels(arguments, threads: int, cases) -> dict:
    """Rows of `kernels.py`."""
    rows, problems = kernels.measure(argparse.Namespace(**{**vars(arguments), "threads": threads}), list(cases))
    return {"rows": rows, "problems": problems}


def _steps(arguments, job: tuple[str, int, int], theirs: tuple[str, ...]) -> dict:
    """Rows of `compare.py`, each with its time over that of PyTorch's plain step, and the machine's rate of multiply-adds."""
    from cllm.models.gpt import ModelConfig

    preset, batch, time = job
    architecture = ModelConfig.preset(preset, max_seq_len=max(time, ModelConfig.preset(preset).max_seq_len))
    asked = argparse.Namespace(**{**vars(arguments), "batch_size": batch, "seq_len": time})
    rows, failed = compare.measure(asked, models.told(architecture), [*OURS, *theirs])
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(Path(folder), arguments.threads)
        limits.look()
    return {"rows": rows, "limit": limits.flops() or 0.0,
            "problems": [f"{name} failed: {reason}" for name, reason in failed.items()] + compare.different_losses(rows)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter that has PyTorch (default: this one)")
    parser.add_argument("--rounds", type=options.positive, default=7, help="rounds of bursts")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever is finished")
    options.add_common(parser)
    parser.set_defaults(float64=False)
    return options.parsed(parser)


if __name__ == "__main__":
    sys.exit(options.run(main))
