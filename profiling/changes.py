"""Seconds of a step foretold under change: this machine is calibrated at one size, other sizes are predicted from that.

    python profiling/changes.py --out profiling/results/changes.json
    python profiling/changes.py --preset tiny --rounds 3

The calibration is of one batch, length and depth, in a folder of its own (what users have stored is neither read nor changed).
Then that size itself, half and twice the batch, half and twice the length, and half and twice the depth are measured: at each,
every strategy, in a process of its own, takes bursts of whole steps in turn, and the medians stand beside the prediction.
"""

import argparse
import sys
from dataclasses import replace
from statistics import median

import harness
from jobs import models, options, record

STRATEGIES = "cache,recompute,selective,cache@2"
CLOSE = 0.05  # what predictions are to be within


def main() -> int:
    """Calibrate once, measure every size, print, write; the exit code is 1 when a strategy failed."""
    parser = options.parser(__doc__.splitlines()[0], STRATEGIES, rounds=5)
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    rows, problems = [], []
    with options.calibrated(arguments, model) as spent:
        for change, asked, changed in changes(arguments, model):
            found, failed = _measured(change, asked, changed)
            rows += found
            problems += [f"{change}, {name} failed: {reason}" for name, reason in failed.items()]
    harness.say("")
    data = {**options.job_of(arguments, model), "calibration_seconds": spent, "rows": rows, "problems": problems}
    _print(data)
    print(f"\nwritten: {record.write_result('changes', arguments.threads, data, arguments.out)}")
    return 1 if problems else 0


def changes(arguments: argparse.Namespace, model: dict) -> list[tuple[str, argparse.Namespace, dict]]:
    """The size itself and those beside it: what is changed, the arguments, and the model."""
    whole = models.architecture(model)
    blocks = whole.program.n_blocks
    found = [("none", arguments, model)]
    for word, field in (("batch", "batch_size"), ("length", "seq_len")):
        now = getattr(arguments, field)
        for other in (now // 2, 2 * now) if now and now > 1 else ():
            found.append((f"{word} {other}", argparse.Namespace(**{**vars(arguments), field: other}), model))
    for other in (blocks // 2, 2 * blocks) if blocks > 1 and hasattr(whole, "n_layers") else ():
        found.append((f"depth {other}", arguments, models.told(replace(whole, n_layers=other), model["source"])))
    return found


def _measured(change: str, arguments: argparse.Namespace, model: dict) -> tuple[list[dict], dict[str, str]]:
    """A row for each strategy at one size, and those that failed with their reasons."""
    with options.trainings(arguments, model, options.strategies_of(arguments)) as (made, failed):
        bursts = {name: options.bursts(peer) for name, (peer, _) in made.items()}
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
        predicted = {name: facts["predicted_seconds"] for name, (_, facts) in made.items()}
    return [{"change": change, "name": name, "seconds": timing.to_dict(), "predicted_seconds": predicted[name],
             "error": predicted[name] / timing.median - 1} for name, timing in timings.items()], failed


def _print(data: dict) -> None:
    print(f"calibrated at {data['batch_size']} x {data['seq_len']} in {data['calibration_seconds']:.0f} s")
    for row in data["rows"]:
        print(f"{row['change']:12s} {row['name']:12s} predicted {row['predicted_seconds']:9.4f}, measured "
              f"{row['seconds']['median']:9.4f}, {row['error']:+7.1%}")
    errors = [abs(row["error"]) for row in data["rows"] if row["change"] != "none"]
    if errors:
        print(f"under change: {median(errors):.1%} in the median, {max(errors):.1%} at most, "
              f"{sum(error <= CLOSE for error in errors)} of {len(errors)} within {CLOSE:.0%}")


if __name__ == "__main__":
    sys.exit(options.run(main))
