"""Where the time of a step goes: by strategy, and by step of the program.

    python profiling/speed.py
    python profiling/speed.py --preset tiny --strategies cache,recompute --rounds 9

The strategies take turns. In each round each takes whole steps without any instrument, then one that is timed operation
by operation (`Executor.timed_step`): both meet the same moods of a shared machine. Each figure is the median over the
rounds, so that the parts need not add up to the whole; where they are far from it, the result names it as a problem.
From the work that layers declare follow GFLOP/s and GB/s of every step, forward, rebuilt and backward, and its share of
what the machine can do (`machine/roofline.py`).
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import draw
import harness
from jobs import models, options, record
from machine import roofline
from machine.limits import Limits
from peers import process
from pictures.figure import in_order

APART = 1.25  # the sum of the parts over the whole step, or the other way round: beyond it they were not of the same step
AFTERWARDS = ("zero_grad", "clip", "adamw")


def main() -> int:
    """Measure, print, write; the exit code is 1 when a strategy failed. Parts that are far from their whole are named
    among the result's problems."""
    arguments = options.parsed(options.parser(__doc__.splitlines()[0], "cache,recompute,every:2,selective", rounds=5))
    model = models.asked(arguments)
    with options.trainings(arguments, model, options.strategies_of(arguments)) as (made, failed):
        parts: dict[str, list[dict]] = {name: [] for name in made}
        bursts = {name: _with_parts(peer, parts[name]) for name, (peer, _) in made.items()}
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
        work = {name: peer.ask("work") for name, (peer, _) in made.items()}
        step_bytes = max((facts["total_bytes"] for _, facts in made.values()), default=0)
    harness.say("")
    rows = [_row(name, timing, timings, parts[name]) for name, timing in timings.items()]
    with tempfile.TemporaryDirectory() as folder:
        roofs = roofline.measured_roofs(Limits(Path(folder), arguments.threads), step_bytes)
    points = _points(parts, work, roofs)
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()] + apart(rows)
    data = {**options.job_of(arguments, model), "rows": rows, "roofs": roofs, "points": points, "problems": problems}
    _print(arguments, model, data)
    path = record.write_result("speed", arguments.threads, data, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 1 if failed else 0


def _with_parts(peer: process.Peer, parts: list[dict]):
    """Bursts of whole steps, each followed by a step whose parts are put down in `parts`."""
    whole = options.bursts(peer)

    def burst() -> list[float]:
        seconds = whole()
        parts.append(peer.ask("parts"))
        return seconds

    return burst


def apart(rows: list[dict]) -> list[str]:
    """Which strategies' parts do not add up to anything like their whole step, in words."""
    shares = {row["name"]: sum(row["by_kind"].values()) / row["seconds"]["median"] for row in rows}
    return [f"{name}: the parts add up to {share:.2f} of the whole step" for name, share in shares.items()
            if not 1 / APART <= share <= APART]


def _points(parts: dict, work: dict, roofs: dict | None) -> list[dict]:
    """Every step of the first strategy, and what the first one that rebuilds has to rebuild."""
    made = []
    for name, steps in parts.items():
        operations = [step["operations"] for step in steps]
        if not made:
            made = roofline.points(name, operations, work[name], roofs)
        if not any(one["kind"] == "rebuild" for one in made):
            made += roofline.points(name, operations, work[name], roofs, ("rebuild",))
    return made


def _row(name: str, timing: harness.Timing, timings: dict, steps: list[dict]) -> dict:
    base = next(iter(timings))
    return {"name": name, "seconds": timing.to_dict(), "against": base,
            "ratio": harness.ratio(timing, timings[base]).to_dict(),
            "ratio_text": "1" if name == base else str(harness.ratio(timing, timings[base])),
            "by_kind": by_kind(steps)}


def by_kind(steps: list[dict]) -> dict[str, float]:
    """Median seconds by kind of operation: forward, rebuild, backward and the others, then what follows them."""
    sums = [_by_kind(step["operations"]) | {name: step[name] for name in AFTERWARDS}
            for step in steps]
    return _medians(sums)


def _by_kind(operations: list) -> dict[str, float]:
    sums: dict = defaultdict(float)
    for kind, _name, seconds in operations:
        sums[kind] += seconds
    return dict(sums)


def _medians(dicts: list[dict]) -> dict:
    return {key: median(one.get(key, 0.0) for one in dicts) for key in dicts[0]}


def _print(arguments, model: dict, data: dict) -> None:
    rows = data["rows"]
    print(options.title(arguments, model))
    kinds = in_order(kind for row in rows for kind in row["by_kind"])
    print(f"{'seconds':16s} {'min':>8s} {'median':>8s} {'max':>8s}  " + " ".join(f"{kind:>10s}" for kind in kinds)
          + f"  time against {rows[0]['name'] if rows else 'nothing'}: median of paired ratios (least to most)")
    for row in rows:
        seconds = row["seconds"]
        print(f"{row['name']:16s} {seconds['min']:8.4f} {seconds['median']:8.4f} {seconds['max']:8.4f}  "
              + " ".join(f"{row['by_kind'].get(kind, 0.0):10.4f}" for kind in kinds) + f"  {row['ratio_text']}")
    _print_points(data["points"], data["roofs"])
    for problem in data["problems"]:
        print(problem)


def _print_points(points: list[dict], roofs: dict | None) -> None:
    print("\nby step of the program, all blocks together, with the work that layers declare"
          + (f"; the machine: {roofs['flops'] / 1e9:.0f} GFLOP/s, memory {roofs['memory'] / 1e9:.0f} GB/s" if roofs else ""))
    print(f"{'strategy':12s} {'step':12s} {'kind':12s} {'calls':>6s} {'ms':>9s} {'flop/byte':>9s} {'GFLOP/s':>8s} {'GB/s':>7s} "
          f"{'share':>6s}")
    for one in points:
        share = "-" if one["share"] is None else f"{one['share']:.2f}"
        print(f"{one['strategy'][:12]:12s} {one['step'][:12]:12s} {one['kind']:12s} {one['calls']:6d} "
              f"{one['seconds'] * 1e3:9.2f} {one['flops'] / max(1, one['bytes']):9.1f} "
              f"{one['flops'] / one['seconds'] / 1e9:8.1f} {one['bytes'] / one['seconds'] / 1e9:7.1f} {share:>6s}")


if __name__ == "__main__":
    sys.exit(options.run(main))
