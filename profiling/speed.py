"""Where the time of a step goes: by strategy, and by step of the program.

    python profiling/speed.py
    python profiling/speed.py --preset tiny --strategies cache,recompute --rounds 9

Whole steps of all strategies are timed in turn, without any instrument. Then some steps are timed operation by
operation (`Executor.timed_step`); each figure is the median over these, so that the parts need not add up to the whole.
"""

import sys
from collections import defaultdict
from statistics import median

import harness
import jobs
import pictures

INSTRUMENTED_STEPS = 3
AFTERWARDS = ("zero_grad", "clip", "adamw")


def main() -> int:
    """Measure, print, write; the exit code is 1 when a strategy failed."""
    arguments = jobs.parsed(jobs.parser(__doc__.splitlines()[0], "cache,recompute,every:2,selective", rounds=5))
    config = jobs.config_of(arguments)
    with jobs.trainings(arguments, config, jobs.strategies_of(arguments)) as (made, failed):
        bursts = {name: _bursts(peer) for name, (peer, _) in made.items()}
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
        parts = {name: [peer.ask("parts") for _ in range(INSTRUMENTED_STEPS)] for name, (peer, _) in made.items()}
    harness.say("")
    rows = [_row(name, timing, timings, parts[name]) for name, timing in timings.items()]
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()]
    _print(arguments, config, rows, problems)
    path = harness.write_result("speed", arguments.threads, {**jobs.job_of(arguments, config), "rows": rows,
                                                             "problems": problems}, arguments.out)
    pictures.step_parts(rows, jobs.title(arguments, config), path.with_suffix(".png"))
    print(f"\nwritten: {path} and its picture")
    return 1 if problems else 0


def _bursts(peer: harness.Peer):
    repeats = harness.repeats_for(peer.ask("burst", repeats=1)[0])
    return lambda: peer.ask("burst", repeats=repeats)


def _row(name: str, timing: harness.Timing, timings: dict, steps: list[dict]) -> dict:
    base = next(iter(timings))
    return {"name": name, "seconds": timing.to_dict(), "against": base,
            "ratio": harness.ratio(timing, timings[base]).to_dict(),
            "ratio_text": "1" if name == base else str(harness.ratio(timing, timings[base])),
            "by_kind": by_kind(steps), "by_step": by_step(steps)}


def by_kind(steps: list[dict]) -> dict[str, float]:
    """Median seconds by kind of operation: forward, rebuild, backward and the others, then what follows them."""
    sums = [_summed(step["operations"], lambda kind, name: kind) | {name: step[name] for name in AFTERWARDS}
            for step in steps]
    return _medians(sums)


def by_step(steps: list[dict]) -> dict[str, dict[str, float]]:
    """Median seconds by step of the program, blocks taken together, then by kind."""
    flat = _medians([_summed(step["operations"], lambda kind, name: (without_block(name), kind)) for step in steps])
    nested: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, kind), seconds in flat.items():
        nested[name][kind] = seconds
    return dict(nested)


def without_block(name: str) -> str:
    """``blocks.3.attn.qkv`` as ``attn.qkv``: what all blocks have in common."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" and len(parts) > 2 else name


def _summed(operations: list, key) -> dict:
    sums: dict = defaultdict(float)
    for kind, name, seconds in operations:
        sums[key(kind, name)] += seconds
    return dict(sums)


def _medians(dicts: list[dict]) -> dict:
    return {key: median(one.get(key, 0.0) for one in dicts) for key in dicts[0]}


def _print(arguments, config: dict, rows: list[dict], problems: list[str]) -> None:
    print(jobs.title(arguments, config))
    kinds = pictures.in_order(kind for row in rows for kind in row["by_kind"])
    print(f"{'seconds':16s} {'min':>8s} {'median':>8s} {'max':>8s}  " + " ".join(f"{kind:>10s}" for kind in kinds)
          + f"  time against {rows[0]['name'] if rows else 'nothing'}: median of paired ratios (least to most)")
    for row in rows:
        seconds = row["seconds"]
        print(f"{row['name']:16s} {seconds['min']:8.4f} {seconds['median']:8.4f} {seconds['max']:8.4f}  "
              + " ".join(f"{row['by_kind'].get(kind, 0.0):10.4f}" for kind in kinds) + f"  {row['ratio_text']}")
    for row in rows[:1]:
        print(f"\nby step of the program, all blocks together, {row['name']}:")
        for name, by in sorted(row["by_step"].items(), key=lambda item: -sum(item[1].values())):
            print(f"  {name:24s} " + "  ".join(f"{kind} {seconds * 1e3:8.2f} ms" for kind, seconds in by.items()))
    for problem in problems:
        print(problem)


if __name__ == "__main__":
    sys.exit(main())
