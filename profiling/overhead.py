"""What a step costs beyond its kernels: the interpreter's share, and that of profiling.

    python profiling/overhead.py
    python profiling/overhead.py --preset small --batch-size 8 --seq-len 256 --strategies cache --rounds 9

By default a tiny model, where Python weighs most. For each strategy, in one process, the same step is taken in several
ways, a step of each in turn:

* as users take it;
* with profiling on: `Executor.timed_step`, which takes the seconds of every operation;
* without the witness: the pattern that a step lays into the arena, so that the highest byte written can be found, is
  left out;
* in Python alone: every kernel is replaced by a call that does nothing. What is left are the executor's loop over bound
  calls, the layers' methods, the checks of a batch.

What profiling adds is the median of the ratios round by round, with its 95 % interval: many short rounds, since a
shared machine drifts by more than is looked for.
"""

import sys

import harness
from jobs import models, options, record
from peers import process

BURST_SECONDS = 0.03
ADDS_AT_MOST = 0.02
WAYS = ("plain", "profiled", "without the witness", "Python alone")


def main() -> int:
    """Measure and write JSON; the exit code is 1 when a strategy failed. Where profiling adds more than 2 % beyond doubt,
    the result names it among its problems."""
    parser = options.parser(__doc__.splitlines()[0], "cache,recompute,cache@1", rounds=101)
    parser.set_defaults(preset="tiny", batch_size=4, seq_len=32)
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    rows, reasons = [], []
    for name in options.strategies_of(arguments):
        with options.trainings(arguments, model, [name], "peers/cllm/overhead.py") as (made, failed):
            reasons += [f"{one} failed: {reason}" for one, reason in failed.items()]
            for peer, facts in made.values():
                rows += _rows(name, peer, facts, arguments.rounds)
    harness.say("")
    problems = reasons + [f"{row['strategy']}: profiling adds {row['adds_text']}" for row in rows
                 if row["what"] == "profiled" and row["adds"][1] > ADDS_AT_MOST]
    path = record.write_result("overhead", arguments.threads, {**options.job_of(arguments, model), "rows": rows,
                                                                "problems": problems}, arguments.out)
    print(options.title(arguments, model))
    for row in rows:
        print(f"{row['strategy']:<16} {row['what']:<20} {row['operations']:>5} operations  "
              f"{row['seconds']['median'] * 1e3:9.4f} ms a step  {row['adds_text']}")
    for problem in problems:
        print(problem)
    print(f"\nwritten: {path}")
    return 1 if reasons else 0


def _rows(name: str, peer: process.Peer, facts: dict, rounds: int) -> list[dict]:
    first = peer.ask("turns", ways=list(WAYS), repeats=2)
    taken: dict[str, list] = {way: [] for way in WAYS}
    for ways in (WAYS[:-1], WAYS[-1:]):  # a step without kernels leaves other things in the processor's caches
        repeats = harness.repeats_for(sum(first[way][-1] for way in ways), BURST_SECONDS)
        for number in range(rounds):
            harness.say(f"{name}: round {number + 1} of {rounds}")
            for way, seconds in peer.ask("turns", ways=list(ways), repeats=repeats).items():
                taken[way].append(tuple(seconds))
    timings = {way: harness.Timing(tuple(one)) for way, one in taken.items()}
    rows = []
    for way, timing in timings.items():
        adds = [value - 1 for value in harness.median_interval(harness.paired(timing, timings["plain"]))]
        text = "" if way == "plain" else f"{adds[0]:+.2%} ({adds[1]:+.2%} to {adds[2]:+.2%})"
        rows.append({"strategy": name, "what": way, "operations": facts["operations"], "adds": adds, "adds_text": text,
                     "seconds": {"min": timing.min, "median": timing.median, "max": timing.max,
                                 "by_round": list(timing.by_round)}})
    return rows


if __name__ == "__main__":
    sys.exit(options.run(main))
