"""Strategies against each other and, with --peers, against PyTorch's steps of the same model.

    python profiling/compare.py
    python profiling/compare.py --peers --peer-python /path/to/python/with/torch

Every contestant is a process of its own that made the model, its optimizer and its first step; then all take bursts of
whole steps (zero, loss and gradients, clip, AdamW) in turn. Equal first losses show that all train the same model.
Growth is the peak resident memory of the steady steps over what was resident when the model had just been made.
"""

import sys
import tempfile
from pathlib import Path

import harness
import jobs
import pictures

from cllm.comparison.resident import forget_peak, peak_resident_bytes

PEERS = "eager,checkpoint,micro:2,compile"

# Two libraries add the same numbers in different orders; float32 sums of this length agree to about 1e-6.
LOSS_TOLERANCE = 2e-5


def main() -> int:
    """Measure, print, write; the exit code is 1 when a contestant failed or trained something else."""
    parser = jobs.parser(__doc__.splitlines()[0], "cache,recompute,every:2,selective", rounds=5)
    parser.add_argument("--peers", nargs="?", const=PEERS, default="", metavar="A,B,...",
                        help=f"PyTorch's modes to compare with; without a value: {PEERS}")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter that has PyTorch (default: this one)")
    arguments = jobs.parsed(parser)
    config = jobs.config_of(arguments)
    with jobs.trainings(arguments, config, jobs.strategies_of(arguments)) as (made, failed):
        _add_peers(arguments, config, made, failed)
        bursts = {name: _bursts(peer) for name, (peer, _) in made.items()}
        watched = {name for name, (peer, _) in made.items() if forget_peak(peer.pid)}
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
        growth = {name: _growth(peer, facts) if name in watched else None for name, (peer, facts) in made.items()}
        facts = {name: one for name, (_, one) in made.items()}
    harness.say("")
    rows = _rows(timings, growth, facts)
    problems = [f"{name} failed: {reason}" for name, reason in failed.items()] + _different_losses(rows)
    _print(arguments, config, rows, problems)
    path = harness.write_result("compare", arguments.threads, {**jobs.job_of(arguments, config), "rows": rows,
                                                               "problems": problems}, arguments.out)
    pictures.memory_against_time(rows, jobs.title(arguments, config), path.with_suffix(".png"))
    print(f"\nwritten: {path} and its picture")
    return 1 if problems else 0


def _add_peers(arguments, config: dict, made: dict, failed: dict) -> None:
    modes = [mode for mode in arguments.peers.split(",") if mode]
    if not modes:
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {"weights": str(Path(folder) / "weights.npz"), "data": str(Path(folder) / "data.npz")}
        with harness.Peer("cllm_peer.py", arguments.threads) as ours:
            ours.ask("export", config=config, batch_size=arguments.batch_size, seq_len=arguments.seq_len, **files)
        for mode in modes:
            harness.say(f"making PyTorch {mode}")
            name, peer = f"torch {mode}", harness.Peer("torch_peer.py", arguments.threads, arguments.peer_python)
            try:
                made[name] = (peer, peer.ask("make", config=config, mode=mode, threads=arguments.threads, **files))
            except harness.PeerError as error:
                failed[name] = str(error)
                peer.close()


def _bursts(peer: harness.Peer):
    # The second step shows how long a step is; the first allocated and, in some modes, compiled.
    repeats = harness.repeats_for(peer.ask("burst", repeats=2)[-1])
    return lambda: peer.ask("burst", repeats=repeats)


def _growth(peer: harness.Peer, facts: dict) -> int | None:
    peak = peak_resident_bytes(peer.pid)
    return None if peak is None or facts["rss_model_bytes"] is None else peak - facts["rss_model_bytes"]


def _rows(timings: dict, growth: dict, facts: dict) -> list[dict]:
    if not timings:
        return []
    base = next(iter(timings))
    return [{"name": name, "seconds": timing.to_dict(), "against": base,
             "ratio": harness.ratio(timing, timings[base]).to_dict(),
             "ratio_text": "1" if name == base else str(harness.ratio(timing, timings[base])),
             "growth_bytes": growth[name], **facts[name]} for name, timing in timings.items()]


def _different_losses(rows: list[dict]) -> list[str]:
    return [f"{row['name']} trains something else: first loss {row['loss']}, not {rows[0]['loss']}"
            for row in rows if abs(row["loss"] - rows[0]["loss"]) > LOSS_TOLERANCE * abs(rows[0]["loss"])]


def _print(arguments, config: dict, rows: list[dict], problems: list[str]) -> None:
    print(jobs.title(arguments, config))
    print(f"{'':18s} {'min':>9s} {'median':>9s} {'max':>9s}  {'growth MB':>9s} {'arena MB':>9s}  {'first loss':>10s}  "
          f"time against {rows[0]['name'] if rows else 'nothing'}: median of paired ratios (least to most)")
    for row in rows:
        seconds = row["seconds"]
        growth = "-" if row["growth_bytes"] is None else f"{row['growth_bytes'] / 1e6:.0f}"
        arena = f"{row['arena_bytes'] / 1e6:.1f}" if "arena_bytes" in row else "-"
        print(f"{row['name']:18s} {seconds['min']:9.4f} {seconds['median']:9.4f} {seconds['max']:9.4f}  {growth:>9s} "
              f"{arena:>9s}  {row['loss']:10.6f}  {row['ratio_text']}")
    for problem in problems:
        print(problem)


if __name__ == "__main__":
    sys.exit(main())
