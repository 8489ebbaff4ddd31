"""Memory over one step: what was predicted, what the arena recorded, what the system saw.

    python profiling/memory.py
    python profiling/memory.py --strategies cache,recompute,every:2,selective

For each strategy, in a process of its own, one plot lays over each other: the timeline that the memory report predicts
for every operation of the schedule, the arena's own high-water mark, and memory_profiler's samples of the process from
outside. The x axis is the share of a step: every predicted operation stands where `Executor.timed_step` found it. The
samples are drawn over what was resident before the model was made, so all three share one zero. A table says what is
alive at the peak, by site and block.
"""

import sys
import threading
from itertools import accumulate

import draw
import harness
from jobs import models, options, record
from peers import process
from views.steps import by_site

from cllm.comparison.resident import forget_peak, peak_resident_bytes

SAMPLE_SECONDS = 0.005

# What is asked of a prediction: memory_profiler's highest sample this near to base and predicted total; the system's own
# record of the peak this near to the predicted total, where that is worth speaking of.
SAMPLED_WITHIN = 0.03
GROWTH_WITHIN = 0.01
GROWTH_BYTES = 4 << 20


def main() -> int:
    """Measure, print, write; the exit code is 1 when a strategy failed or its record is not what was predicted."""
    parser = options.parser(__doc__.splitlines()[0], "cache,recompute", rounds=2)
    parser.add_argument("--draw", default=None, metavar="A,B,...", help="strategies of the picture (default: all)")
    arguments = options.parsed(parser)
    try:
        import memory_profiler  # noqa: F401
    except ImportError:
        parser.exit(1, "memory_profiler is missing: pip install '.[profile]'\n")
    model = models.asked(arguments)
    rows, failed = [], {}
    for name in options.strategies_of(arguments):  # one after the other: each alone in memory
        with options.trainings(arguments, model, [name]) as (made, reasons):
            failed.update(reasons)
            for peer, facts in made.values():
                harness.say(f"watching {name}")
                rows.append(_watch(name, peer, facts, arguments.rounds))
    harness.say("")
    for row in rows:
        row["held"] = verdicts(row)
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()]
    problems += [f"{row['name']}: predicted arena {row['arena_bytes']}, recorded {row['high_water_bytes']}"
                 for row in rows if row["arena_bytes"] != row["high_water_bytes"]]
    _print(arguments, model, rows, problems)
    drawn = [row["name"] for row in rows] if arguments.draw is None else arguments.draw.split(",")
    for row in rows:
        if row["name"] not in drawn:  # the picture's alone, and most of the file
            del row["timeline"], row["samples"]
    path = record.write_result("memory", arguments.threads, {**options.job_of(arguments, model), "rows": rows,
                                                              "drawn": drawn, "problems": problems}, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 1 if problems else 0


def _watch(name: str, peer: process.Peer, facts: dict, steps: int) -> dict:
    parts = peer.ask("parts")
    timeline = peer.ask("timeline")
    peak = timeline.pop("peak")
    peak_is_ours = forget_peak(peer.pid)
    samples, watched = _sampled(peer, steps)
    resident = peak_resident_bytes(peer.pid) if peak_is_ours else None
    grown = resident and resident - facts["rss_start_bytes"]
    highest = max((nbytes for _, nbytes in samples), default=None)
    predicted = facts["rss_start_bytes"] and facts["rss_start_bytes"] + facts["total_bytes"]
    return {
        "name": name, "rss_start_bytes": facts["rss_start_bytes"], "arena_bytes": facts["arena_bytes"],
        "total_bytes": facts["total_bytes"], "high_water_bytes": watched["high_water_bytes"],
        "predicted_process_bytes": predicted, "sampled_process_bytes": highest,
        "sampled_over_predicted": highest / predicted if highest and predicted else None,
        "growth_bytes": grown, "peak": peak,
        "step_seconds": watched["seconds"],
        "timeline": {**timeline, "ends": ends(len(timeline["operations"]), parts)},
        "samples": changes([[moment - watched["begin"], nbytes] for moment, nbytes in samples]),
    }


def changes(samples: list[list]) -> list[list]:
    """The samples without those inside a run of equal sizes: their line is the same."""
    return [one for place, one in enumerate(samples)
            if place in (0, len(samples) - 1) or not samples[place - 1][1] == one[1] == samples[place + 1][1]]


def ends(operations: int, parts: dict) -> list[float]:
    """Where each operation ends, as a share of all the time that operations take; evenly where that is not known."""
    durations = [seconds for _, _, seconds in parts["operations"]]
    if len(durations) != operations or not sum(durations):
        durations = [1.0] * operations
    return [one / sum(durations) for one in accumulate(durations)]


def _sampled(peer: process.Peer, steps: int) -> tuple[list, dict]:
    """memory_profiler's samples of the process, ``(moment, bytes)``, while it takes some steps."""
    from memory_profiler import memory_usage

    taken, stop = [], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            taken.extend(memory_usage(peer.pid, interval=SAMPLE_SECONDS, timeout=20 * SAMPLE_SECONDS,
                                      timestamps=True))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        watched = peer.ask("watched_burst", repeats=steps)
    finally:
        stop.set()
        sampler.join()
    mebibyte = 2 ** 20  # memory_profiler's MB
    within = [(moment, int(size * mebibyte)) for size, moment in taken if watched["begin"] <= moment <= watched["end"]]
    return within, watched


def verdicts(row: dict) -> dict[str, bool | None]:
    """Whether the prediction held: the arena to the byte, the process as sampled, the resident growth as the system
    counted it; None where that is not known, or the total too small to ask."""
    sampled, grown, total = row["sampled_over_predicted"], row["growth_bytes"], row["total_bytes"]
    return {"arena": row["arena_bytes"] == row["high_water_bytes"],
            "sampled": None if sampled is None else abs(sampled - 1) <= SAMPLED_WITHIN,
            "growth": None if grown is None or total < 100e6 else
            abs(grown - total) <= GROWTH_WITHIN * total + GROWTH_BYTES}


def _print(arguments, model: dict, rows: list[dict], problems: list[str]) -> None:
    print(options.title(arguments, model) + "; MB are 10^6 bytes")
    print(f"{'':16s} {'arena':>9s} {'recorded':>9s} {'total':>9s} {'growth':>9s} {'base':>9s} {'base+total':>10s} "
          f"{'sampled':>9s} {'sampled/predicted':>17s}  held")
    for row in rows:
        keys = ("arena_bytes", "high_water_bytes", "total_bytes", "growth_bytes", "rss_start_bytes",
                "predicted_process_bytes", "sampled_process_bytes")
        cells = ["-" if row[key] is None else f"{row[key] / 1e6:.2f}" for key in keys]
        quotient = row["sampled_over_predicted"]
        held = ", ".join(f"{name} {'-' if held is None else 'yes' if held else 'NO'}" for name, held in row["held"].items())
        print(f"{row['name']:16s} {cells[0]:>9s} {cells[1]:>9s} {cells[2]:>9s} {cells[3]:>9s} {cells[4]:>9s} "
              f"{cells[5]:>10s} {cells[6]:>9s} {'-' if quotient is None else f'{quotient:.4f}':>17s}  {held}")
    for row in rows:
        _print_peak(row)
    for problem in problems:
        print(problem)


def _print_peak(row: dict) -> None:
    blocks, sites = by_site(row["peak"]["alive"])
    print(f"\n{row['name']}: alive at the peak, during {row['peak']['operation']}, MB by block")
    heads = ["" if block is None else str(block) for block in blocks]
    print(f"  {'site':32s} {'kind':9s} " + " ".join(f"{head or 'ends':>7s}" for head in heads) + f" {'all':>8s}")
    for site, kind, sizes, total in sites:
        cells = [f"{sizes[block] / 1e6:7.2f}" if block in sizes else f"{'':7s}" for block in blocks]
        print(f"  {site[:32]:32s} {kind:9s} " + " ".join(cells) + f" {total / 1e6:8.2f}")


if __name__ == "__main__":
    sys.exit(options.run(main))
