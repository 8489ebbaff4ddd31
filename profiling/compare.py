"""Strategies against each other and, with --peers, against PyTorch's steps of the same model.

    python profiling/compare.py
    python profiling/compare.py --peers --peer-python /path/to/python/with/torch
    python profiling/compare.py --batch-size 4 --seq-len 1024 --strategies cache,spill:DIR
    python profiling/compare.py --batch-size 1 --strategies cache,cache+update

Every contestant is a process of its own that made the model, its optimizer and its first step; then all take bursts of
whole steps (zero, loss and gradients, clip, AdamW) in turn; NAME+update is the plan of NAME with gradients that pass away, each
parameter updated in backward, without clipping, NAME+bfloat16 and NAME+bfloat16:units compute products in bfloat16. Equal first
losses show that all train the same model.
The peak is the greatest resident memory of the steady steps, growth is that over what was resident when the model had just
been made. For
strategies that spill, the bandwidth of their directory is measured before and written beside them.
"""

import sys
import tempfile
from pathlib import Path

import disk
import draw
import harness
from jobs import models, options, record
from peers import process

from cllm.comparison.resident import forget_peak, peak_resident_bytes

PEERS = "eager,checkpoint,micro:2,compile"

# Two libraries add the same numbers in different orders; float32 sums of this length agree to about 1e-6.
LOSS_TOLERANCE = 2e-5
NARROW_TOLERANCE = 5e-3  # of products in bfloat16, whose operands have eight bits


def main() -> int:
    """Measure, print, write; the exit code is 1 when a contestant failed or trained something else."""
    parser = options.parser(__doc__.splitlines()[0], "cache,recompute,every:2,selective", rounds=5)
    parser.add_argument("--peers", nargs="?", const=PEERS, default="", metavar="A,B,...",
                        help=f"PyTorch's modes to compare with; without a value: {PEERS}")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter that has PyTorch (default: this one)")
    parser.add_argument("--together", type=int, default=None, metavar="N",
                        help="contestants alive at once, where memory does not hold all of them (default: all); the first "
                             "one stands in every group, and ratios to it are of the same group")
    parser.add_argument("--lora", type=options.positive, default=None, metavar="RANK",
                        help=f"train adapters of this rank on {' and '.join(models.TARGETS)} alone, of a model in other "
                             "people's files; cllm maps the base from a file, PyTorch's side is PEFT's")
    arguments = options.parsed(parser)
    with tempfile.TemporaryDirectory() as folder:
        return compare(arguments, models.asked(arguments), Path(folder))


def compare(arguments, model: dict, folder: Path) -> int:
    """Measure, print, write; `folder` is for the weights of the base."""
    if arguments.lora is not None:
        if models.file_form(model).endswith(".npz"):
            raise SystemExit("--lora: name a model in other people's files, --model DIR")
        model = models.adapted(model, arguments.lora, str(folder / "base"))
    names = options.strategies_of(arguments) + [f"torch {mode}" for mode in arguments.peers.split(",") if mode]
    disks = [disk.bandwidth(folder) for folder in spill_directories(names) if Path(folder).is_dir()]
    rows, problems = [], []
    for group in _groups(names, arguments.together or len(names)):
        measured, failed = measure(arguments, model, group)
        rows += [row for row in measured if row["name"] not in {one["name"] for one in rows}]
        problems += [f"{name} failed: {reason}" for name, reason in failed.items()]
    problems += different_losses(rows)
    _judge(rows)
    _print(arguments, model, rows, problems)
    for number, one in enumerate(disks, 1):
        print(f"disk {number}: {disk.in_words(one)}")
    data = {**options.job_of(arguments, model), "rows": rows, "disks": disks, "problems": problems}
    path = record.write_result("compare", arguments.threads, data, arguments.out)
    pictures = draw.draw(path)
    print(draw.told(path, pictures))
    return 1 if problems else 0


def spill_directories(names: list[str]) -> list[str]:
    """The directories that strategies put values into, each once."""
    return list(dict.fromkeys(name.partition(":")[2].partition("@")[0] for name in names if name.startswith("spill:")))


def _groups(names: list[str], most: int) -> list[list[str]]:
    """The contestants in groups of at most `most`, the first one in every group."""
    base, *others = names
    each = max(1, most - 1)
    return [[base, *others[start:start + each]] for start in range(0, max(1, len(others)), each)]


def measure(arguments, model: dict, names: list[str]) -> tuple[list[dict], dict[str, str]]:
    """Rows of these contestants, all alive at once, and the reasons of those that failed."""
    ours = [name for name in names if not name.startswith("torch ")]
    with options.trainings(arguments, model, ours) as (made, failed):
        _add_peers(arguments, model, [name for name in names if name not in ours], made, failed)
        bursts = {name: _bursts(peer) for name, (peer, _) in made.items()}
        watched = {name for name, (peer, _) in made.items() if forget_peak(peer.pid)}
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
        peaks = {name: peak_resident_bytes(peer.pid) if name in watched else None for name, (peer, _) in made.items()}
        facts = {name: one for name, (_, one) in made.items()}
    harness.say("")
    return _rows(timings, peaks, facts), failed


def _judge(rows: list[dict]) -> None:
    """Tell of each of PyTorch's rows which plans of cllm are faster with no more growth."""
    for row in rows:
        if row["name"].startswith("torch ") and row["growth_bytes"] is not None:
            row["beaten_by"] = [one["name"] for one in rows if not one["name"].startswith("torch ")
                                and one["growth_bytes"] is not None and one["growth_bytes"] <= row["growth_bytes"]
                                and one["ratio"]["value"] < row["ratio"]["value"]]


def _add_peers(arguments, model: dict, names: list[str], made: dict, failed: dict) -> None:
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {"weights": str(Path(folder) / models.file_form(model)), "data": str(Path(folder) / "data.npz")}
        with process.Peer("peers/cllm/steps.py", arguments.threads) as ours:
            ours.ask("export", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, **files)
        for name in names:
            mode = name.removeprefix("torch ")
            harness.say(f"making PyTorch {mode}")
            peer = process.Peer("peers/torch/steps.py", arguments.threads, arguments.peer_python)
            try:
                made[name] = (peer, peer.ask("make", config=model["config"], mode=mode, threads=arguments.threads, **files))
            except process.PeerError as error:
                failed[name] = str(error)
                peer.close()


def _bursts(peer: process.Peer):
    # The second step shows how long a step is; the first allocated and, in some modes, compiled.
    repeats = harness.repeats_for(peer.ask("burst", repeats=2)[-1])
    return lambda: peer.ask("burst", repeats=repeats)


def _growth(peak: int | None, facts: dict) -> int | None:
    return None if peak is None or facts["rss_model_bytes"] is None else peak - facts["rss_model_bytes"]


def _rows(timings: dict, peaks: dict, facts: dict) -> list[dict]:
    if not timings:
        return []
    base = next(iter(timings))
    return [{"name": name, "seconds": timing.to_dict(), "against": base,
             "ratio": harness.ratio(timing, timings[base]).to_dict(),
             "ratio_text": "1" if name == base else str(harness.ratio(timing, timings[base])),
             "growth_bytes": _growth(peaks[name], facts[name]), "peak_bytes": peaks[name], **facts[name]}
            for name, timing in timings.items()]


def different_losses(rows: list[dict]) -> list[str]:
    """Which contestants' first loss is not that of the first one."""
    return [f"{row['name']} trains something else: first loss {row['loss']}, not {rows[0]['loss']}"
            for row in rows if abs(row["loss"] - rows[0]["loss"]) > tolerance(row["name"]) * abs(rows[0]["loss"])]


def tolerance(name: str) -> float:
    """How far a contestant's first loss may be from the first one's, as a share."""
    return NARROW_TOLERANCE if name.endswith(("bfloat16", "bfloat16:units", "autocast")) else LOSS_TOLERANCE


def _print(arguments, model: dict, rows: list[dict], problems: list[str]) -> None:
    print(options.title(arguments, model))
    print(f"{'':18s} {'min':>9s} {'median':>9s} {'max':>9s}  {'growth MB':>9s} {'peak MB':>9s} {'arena MB':>9s}  "
          f"{'first loss':>10s}  "
          f"time against {rows[0]['name'] if rows else 'nothing'}: median of paired ratios (least to most)")
    for row in rows:
        seconds = row["seconds"]
        growth, peak = ("-" if row[name] is None else f"{row[name] / 1e6:.0f}" for name in ("growth_bytes", "peak_bytes"))
        arena = f"{row['arena_bytes'] / 1e6:.1f}" if "arena_bytes" in row else "-"
        print(f"{row['name']:18s} {seconds['min']:9.4f} {seconds['median']:9.4f} {seconds['max']:9.4f}  {growth:>9s} "
              f"{peak:>9s} {arena:>9s}  {row['loss']:10.6f}  {row['ratio_text']}")
    for row in rows:
        if "beaten_by" in row:
            print(f"no more growth than {row['name']}, and faster: {', '.join(row['beaten_by']) or 'none'}")
    for problem in problems:
        print(problem)


if __name__ == "__main__":
    sys.exit(options.run(main))
