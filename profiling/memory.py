"""Memory over one step: what was predicted, what the arena recorded, what the system saw.

    python profiling/memory.py
    python profiling/memory.py --strategies cache,recompute,every:2,selective

For each strategy, in a process of its own, one plot lays over each other: the timeline that the memory report predicts
for every operation of the schedule, the arena's own high-water mark, and memory_profiler's samples of the process from
outside. The x axis is the share of a step: every predicted operation stands where `Executor.timed_step` found it. The
samples are drawn over what was resident before the model was made, so all three share one zero.
"""

import sys
import threading
from itertools import accumulate

import harness
import jobs
import pictures

SAMPLE_SECONDS = 0.005


def main() -> int:
    """Measure, print, write; the exit code is 1 when a strategy failed or its record is not what was predicted."""
    parser = jobs.parser(__doc__.splitlines()[0], "cache,recompute", rounds=2)
    arguments = jobs.parsed(parser)
    try:
        import memory_profiler  # noqa: F401
    except ImportError:
        parser.exit(1, "memory_profiler is missing: pip install 'cllm[profile]'\n")
    config = jobs.config_of(arguments)
    rows, failed = [], {}
    for name in jobs.strategies_of(arguments):  # one after the other: each alone in memory
        with jobs.trainings(arguments, config, [name]) as (made, reasons):
            failed.update(reasons)
            for peer, facts in made.values():
                harness.say(f"watching {name}")
                rows.append(_watch(name, peer, facts, arguments.rounds))
    harness.say("")
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()]
    problems += [f"{row['name']}: predicted arena {row['arena_bytes']}, recorded {row['high_water_bytes']}"
                 for row in rows if row["arena_bytes"] != row["high_water_bytes"]]
    _print(arguments, config, rows, problems)
    path = harness.write_result("memory", arguments.threads, {**jobs.job_of(arguments, config), "rows": rows,
                                                              "problems": problems}, arguments.out)
    pictures.timelines(rows, jobs.title(arguments, config), path.with_suffix(".png"))
    print(f"\nwritten: {path} and its picture")
    return 1 if problems else 0


def _watch(name: str, peer: harness.Peer, facts: dict, steps: int) -> dict:
    parts = peer.ask("parts")
    timeline = peer.ask("timeline")
    samples, watched = _sampled(peer, steps)
    highest = max((nbytes for _, nbytes in samples), default=None)
    predicted = facts["rss_start_bytes"] and facts["rss_start_bytes"] + facts["total_bytes"]
    return {
        "name": name, "rss_start_bytes": facts["rss_start_bytes"], "arena_bytes": facts["arena_bytes"],
        "total_bytes": facts["total_bytes"], "high_water_bytes": watched["high_water_bytes"],
        "predicted_process_bytes": predicted, "sampled_process_bytes": highest,
        "sampled_over_predicted": highest / predicted if highest and predicted else None,
        "step_seconds": watched["seconds"],
        "timeline": {**timeline, "ends": ends(len(timeline["operations"]), parts)},
        "samples": [[moment - watched["begin"], nbytes] for moment, nbytes in samples],
    }


def ends(operations: int, parts: dict) -> list[float]:
    """Where each operation ends, as a share of all the time that operations take; evenly where that is not known."""
    durations = [seconds for _, _, seconds in parts["operations"]]
    if len(durations) != operations or not sum(durations):
        durations = [1.0] * operations
    return [one / sum(durations) for one in accumulate(durations)]


def _sampled(peer: harness.Peer, steps: int) -> tuple[list, dict]:
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


def _print(arguments, config: dict, rows: list[dict], problems: list[str]) -> None:
    print(jobs.title(arguments, config) + "; MB are 10^6 bytes")
    print(f"{'':16s} {'arena':>9s} {'recorded':>9s} {'total':>9s} {'base':>9s} {'base+total':>10s} {'sampled':>9s} "
          f"{'sampled/predicted':>17s}")
    for row in rows:
        keys = ("arena_bytes", "high_water_bytes", "total_bytes", "rss_start_bytes", "predicted_process_bytes",
                "sampled_process_bytes")
        cells = ["-" if row[key] is None else f"{row[key] / 1e6:.2f}" for key in keys]
        quotient = row["sampled_over_predicted"]
        print(f"{row['name']:16s} {cells[0]:>9s} {cells[1]:>9s} {cells[2]:>9s} {cells[3]:>9s} {cells[4]:>10s} "
              f"{cells[5]:>9s} {'-' if quotient is None else f'{quotient:.4f}':>17s}")
    for problem in problems:
        print(problem)


if __name__ == "__main__":
    sys.exit(main())
