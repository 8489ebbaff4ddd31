"""A whole training run on the embedded text: the validation curve of cllm and, with --peer-python, of PyTorch.

    python profiling/training.py
    python profiling/training.py --peer-python /path/to/python/with/torch
    python profiling/training.py --seconds 20
    python profiling/training.py --model DIR --steps 50 --batch-size 1 --lr 1e-5 --rate constant    # from other people's files

Both train the same model from the same weights on the same windows at the same rates, for the same number of steps:
as many as cllm takes in the seconds asked for. They train in turn, a stretch between two evaluations at a time, each in
a process of its own, so that both meet the same machine. Evaluations are not in the times.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import draw
import harness
from jobs import models, record
from peers import process

TRIAL_STEPS = 12  # of which the first half warms up


def main() -> int:
    """Train, print, write; the exit code is 1 when the two ended more than half a per cent apart."""
    arguments = _arguments()
    model = models.asked(arguments, {
        "vocab_size": 256, "n_layers": arguments.layers, "d_model": arguments.d_model, "n_heads": arguments.heads,
        "d_ff": 4 * arguments.d_model, "max_seq_len": arguments.seq_len})
    settings = {"batch_size": arguments.batch_size, "seq_len": arguments.seq_len, "lr": arguments.lr, "seed": 0,
                "threads": arguments.threads, "eval_batches": arguments.eval_batches, "rate": arguments.rate,
                "betas": arguments.betas, "weight_decay": arguments.weight_decay}
    if arguments.memory_budget:
        settings["memory_budget"] = arguments.memory_budget
    settings["steps"] = arguments.steps or _steps_in(arguments, model, settings)
    with tempfile.TemporaryDirectory() as folder:
        files = {"weights": str(Path(folder) / models.file_form(model)), "data": str(Path(folder) / "data.npz")}
        peers = {"cllm": process.Peer("peers/cllm/run.py", arguments.threads)}
        facts = peers["cllm"].ask("make", model=model, settings=settings, files=files)
        if arguments.peer_python:
            peers["torch"] = process.Peer("peers/torch/run.py", arguments.threads, arguments.peer_python)
            facts |= peers["torch"].ask("make", config=model["config"], settings=facts["settings"], threads=arguments.threads,
                                        files=files)
        rows = _train(peers, settings["steps"], arguments.evaluations)
        for peer in peers.values():
            peer.close()
    data = {**models.recorded(model), **facts, "rows": rows}
    if len(rows) == 2:
        ours, theirs = (row["evaluations"][-1]["val_loss"] for row in rows)
        data["val_loss_difference"] = ours / theirs - 1
        data["largest_loss_difference"] = max(abs(one - other) for one, other in zip(*(row["losses"] for row in rows),
                                                                                     strict=True))
        data["time_ratio"] = rows[1]["seconds"] / rows[0]["seconds"]
    path = record.write_result("training", arguments.threads, data, arguments.out)
    _print(data)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return int(abs(data.get("val_loss_difference", 0.0)) > 0.005)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of training by cllm (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="instead of as many as fit into --seconds")
    parser.add_argument("--peer-python", default=None, metavar="PYTHON", help="interpreter that has PyTorch")
    for name, value in (("layers", 4), ("d-model", 256), ("heads", 8), ("batch-size", 8), ("seq-len", 256),
                        ("threads", 2), ("evaluations", 20), ("eval-batches", 20)):
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    models.add_options(parser, preset=None)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="highest rate (default: %(default)s)")
    parser.add_argument("--rate", default="cosine", choices=("cosine", "linear", "constant"), help="(default: %(default)s)")
    parser.add_argument("--betas", type=float, nargs=2, default=None, help="of AdamW (default: 0.9 0.95)")
    parser.add_argument("--weight-decay", type=float, default=None, help="of matrices (default: 0.1)")
    parser.add_argument("--memory-budget", default=None, help="limit such as 100MB; default: cache everything")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; the picture stands beside it")
    return parser.parse_args()


def _steps_in(arguments, model: dict, settings: dict) -> int:
    """Steps that cllm takes in the seconds asked for, from a short trial."""
    with process.Peer("peers/cllm/run.py", arguments.threads) as peer:
        peer.ask("make", model=model, settings={**settings, "steps": TRIAL_STEPS})
        seconds = median(peer.ask("stretch", steps=TRIAL_STEPS)["seconds"][TRIAL_STEPS // 2:])
    return max(1, int(arguments.seconds / seconds))


def _train(peers: dict, steps: int, evaluations: int) -> list[dict]:
    """All contestants in turn; losses and evaluations of each with the seconds that it had trained by then."""
    marks = sorted({round(steps * part / evaluations) for part in range(evaluations + 1)})
    rows = {name: {"name": name, "seconds": 0.0, "step_seconds": [], "losses": [], "evaluations": []} for name in peers}
    for number, (before, mark) in enumerate(zip([0, *marks], marks, strict=False)):
        for name in list(peers) if number % 2 == 0 else reversed(peers):
            harness.say(f"{name}: steps {before} to {mark} of {steps}")
            row, part = rows[name], peers[name].ask("stretch", steps=mark - before)
            row["seconds"] += sum(part["seconds"])
            row["step_seconds"] += part["seconds"]
            row["losses"] += part["losses"]
            row["evaluations"].append({"step": mark, "seconds": row["seconds"],
                                       "val_loss": peers[name].ask("evaluate")})
    harness.say("")
    for row in rows.values():
        times = row.pop("step_seconds")
        row["step_seconds"] = {"min": min(times), "median": median(times), "max": max(times)}
    return list(rows.values())


def _print(data: dict) -> None:
    print(f"{data['settings']['steps']} steps of {data['settings']['batch_size']} x {data['settings']['seq_len']}, "
          f"total {data['total_bytes'] / 1e6:.1f} MB")
    for row in data["rows"]:
        last, steps = row["evaluations"][-1], row["step_seconds"]
        print(f"{row['name']:<6} {row['seconds']:8.1f} s, step {steps['median']:.3f} s ({steps['min']:.3f} to "
              f"{steps['max']:.3f}), validation {last['val_loss']:.4f} nats per token")
    if "time_ratio" in data:
        print(f"validation of cllm over PyTorch's: {100 * data['val_loss_difference']:+.2f} %; "
              f"PyTorch's time over cllm's: {data['time_ratio']:.2f}; losses of steps differ by at most "
              f"{data['largest_loss_difference']:.1e}")


if __name__ == "__main__":
    sys.exit(main())
