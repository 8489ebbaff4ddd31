"""What a change to the code does to a step, operation by operation: two built source trees, in turn.

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python profiling/between.py --before ../before                                 # small, batch 8 x 256
    python profiling/between.py --before ../before --preset tiny --batch-size 4 --seq-len 32 --steps 300

Each round is one process of either tree, in alternating order. An operation's time is its least over all steps of all rounds,
added up over the operations of its kind: what other guests of the machine take is not the code's. `elsewhere` is the least
time of a whole step less the sum of these: Python between operations. The optimizer's step is measured apart.
"""

import json
import subprocess
import sys
from pathlib import Path

from jobs import models, options, record
from peers.process import ROOT, environment, pinned

CHILD = """
import collections, json, pathlib, sys, time
import numpy as np
import cllm
if pathlib.Path.cwd() not in pathlib.Path(cllm.__file__).resolve().parents:
    sys.exit("has no package cllm")
asked = json.loads(sys.argv[1])
model = cllm.GPT(cllm.ModelConfig(**asked["config"]), seed=0)
executor = cllm.Executor(model, asked["batch_size"], asked["seq_len"], strategy="cache", num_threads=asked["threads"])
optimizer = cllm.AdamW(model, lr=1e-4)
draw = np.random.default_rng(0).integers
tokens, targets = (draw(0, asked["config"]["vocab_size"], (asked["batch_size"], asked["seq_len"])) for _ in range(2))
ops = executor.schedule.whole_step(executor.schedule.ops)
least, step, update = np.full(len(ops), np.inf), np.inf, np.inf
for _ in range(asked["steps"]):
    least = np.minimum(least, executor.timed_step(tokens, targets))
    model.zero_grad()
    begun = time.perf_counter()
    executor.loss_and_grad(tokens, targets)
    step = min(step, time.perf_counter() - begun)
    begun = time.perf_counter()
    optimizer.step()
    update = min(update, time.perf_counter() - begun)
    model.zero_grad()
seconds = collections.defaultdict(float)
for op, one in zip(ops, least):
    layer = type(op.step.layer).__name__ if getattr(op, "step", None) is not None else ""
    seconds[f"{layer} {op.kind}".strip()] += one
print(json.dumps({**seconds, "elsewhere": step - least.sum(), "step": step, "optimizer": update}))
"""


def main() -> int:
    """Measure, write JSON and print a table."""
    parser = options.parser(__doc__.splitlines()[0], None, rounds=4)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="root of the other source tree, built")
    parser.add_argument("--after", type=Path, default=ROOT, metavar="DIR", help="root of the tree to hold against it")
    parser.add_argument("--steps", type=options.positive, default=8, help="steps in a round")
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    trees = {"before": arguments.before, "after": arguments.after}
    least: dict[str, dict[str, float]] = {name: {} for name in trees}
    asked = {**options.job_of(arguments, model), "steps": arguments.steps, "threads": arguments.threads}
    for turn in range(arguments.rounds):
        for name in list(trees)[::-1 if turn % 2 else 1]:
            for kind, seconds in _round(trees[name], asked).items():
                least[name][kind] = min(seconds, least[name].get(kind, seconds))
    commits = {name: record.commit(tree) for name, tree in trees.items()}
    path = record.write_result("between", arguments.threads, {**asked, "commits": commits, "least_seconds": least},
                               arguments.out)
    print(options.title(arguments, model))
    for kind, before in sorted(least["before"].items(), key=lambda item: -item[1]):
        after = least["after"].get(kind)
        print(f"{kind:32} {before * 1e6:12.1f} us" + (f" {after * 1e6:12.1f} us  {after / before:.3f}" if after else ""))
    print(f"\nwritten: {path}")
    return 0


def _round(tree: Path, asked: dict) -> dict[str, float]:
    surrounded = {**environment(asked["threads"]), "PYTHONPATH": str(tree.resolve())}
    done = subprocess.run([*pinned(asked["threads"]), sys.executable, "-c", CHILD, json.dumps(asked)], cwd=tree, text=True,
                          capture_output=True, check=False, env=surrounded)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(options.run(main))
