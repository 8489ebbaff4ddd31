"""Gradients as room in the arena, optimizer states on disk: bytes, bits and seconds of whole steps beside the plain one.

    python profiling/whole_step.py --states-to DIR
    python profiling/whole_step.py --states-to DIR --preset135 --seq-len 1024
    python profiling/whole_step.py --states-to DIR --huge --limit 10000000000

Each way trains in a process of its own: the plain step; updates in backward; states on disk; both; both, recomputed; each
without clipping and, with --clip, by the norm of all. Of each: predicted total against what is allocated and against the
growth of the process, the digest of weights and states after the last step, seconds. Then the least total of budgets that
may decide less or more, and their whole curve as planned.

--huge trains a model of 1.7 billion parameters (24 layers, C 2048, F 8192, V 49152) inside --limit bytes, which the system
enforces on the process (RLIMIT_DATA), and is refused where the disk has no room for states and a snapshot.
"""

import shutil
import sys
from pathlib import Path

import harness
from jobs import models, options, record
from peers import process

PEER = "peers/cllm/whole_step.py"
SMALL = {"vocab_size": 256, "d_model": 512, "n_heads": 8, "d_ff": 2048, "n_layers": 6}
LLAMA_135M = {"vocab_size": 49152, "n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "d_ff": 1536,
              "max_seq_len": 2048, "tied": True}
LLAMA_1700M = {"vocab_size": 49152, "n_layers": 24, "d_model": 2048, "n_heads": 32, "n_kv_heads": 32, "head_dim": 64,
               "d_ff": 8192, "max_seq_len": 2048, "tied": True}
CLASSIC = ["cache", "recompute", "micro_batch"]
BUDGETS = {"activations alone": CLASSIC, "states on disk": [*CLASSIC, "spill_states"],
           "gradients in the arena": [*CLASSIC, "update_in_backward"],
           "both": [*CLASSIC, "spill_states", "update_in_backward"],
           "both, activations on disk": [*CLASSIC, "spill_states", "update_in_backward", "spill"]}


def main() -> int:
    """Measure, print, write."""
    arguments = _arguments()
    if arguments.huge:
        return _huge(arguments)
    model = _llama(LLAMA_135M) if arguments.preset135 else models.asked(arguments, SMALL)
    architecture, rows = models.architecture(model), []
    where = f"disk:{arguments.states_to}"
    ways = {"plain": {}, "in backward": {"update_in_backward": True}, "states on disk": {"states": where},
            "both": {"update_in_backward": True, "states": where},
            "both, recomputed": {"update_in_backward": True, "states": where, "strategy": "recompute"}}
    for clip in (None, 1.0) if arguments.clip else (None,):
        for name, way in ways.items():
            harness.say(f"{name}, clip {clip}")
            rows.append({"name": name, "clip": clip, **_trained(arguments, model, {**way, "clip_norm": clip})})
    for row in rows:
        plain = next(r for r in rows if r["name"] == "plain" and r["clip"] == row["clip"])
        row["same_bits"] = row["digest"] == plain["digest"] and row["losses"] == plain["losses"]
    harness.say("")
    budgets = _budgets(architecture, arguments)
    path = record.write_result("whole_step", arguments.threads, {
        **options.job_of(arguments, model), "steps": arguments.steps, "rows": rows, "budgets": budgets}, arguments.out)
    _print(rows, budgets)
    print(f"\nwritten: {path}")
    return int(not all(row["same_bits"] and row["total_bytes"] == row["allocated_bytes"] for row in rows))


def _trained(arguments, model: dict, way: dict) -> dict:
    """One process: a step that warms up, then the others."""
    with process.Peer(PEER, arguments.threads) as peer:
        made = peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                        threads=arguments.threads, **way)
        ran = [peer.ask("train", first=first, count=count) for first, count in ((0, 1), (1, arguments.steps - 1))]
        held = peer.ask("held")
    if ran[1]["high_water_bytes"] != made["arena_bytes"]:
        raise SystemExit("the arena's record is not what was predicted")
    return {**made, **held, "losses": ran[0]["losses"] + ran[1]["losses"], "first_seconds": ran[0]["seconds"][0],
            "seconds": ran[1]["seconds"]}


def _budgets(architecture, arguments) -> list[dict]:
    """The least total of each budget, and its curve as planned."""
    from cllm.planning import pareto

    found = []
    for clip_by in (None, "all"):
        for name, allow in BUDGETS.items():
            plans = pareto(architecture, arguments.batch_size, arguments.seq_len, num_threads=arguments.threads, most=60,
                           allow=tuple(allow), clip_by=clip_by, directory=str(arguments.states_to))
            found.append({"name": name, "clip_by": clip_by, "least_bytes": plans[0].total_bytes,
                          "curve": [[plan.total_bytes, plan.predicted_seconds] for plan in plans]})
    return found


def _print(rows: list[dict], budgets: list[dict]) -> None:
    for row in rows:
        plain = next(r for r in rows if r["name"] == "plain" and r["clip"] == row["clip"])
        middle = sorted(row["seconds"])[len(row["seconds"]) // 2]
        usual = sorted(plain["seconds"])[len(plain["seconds"]) // 2]
        growth = row["peak_growth_bytes"]
        shown = "unknown" if growth is None else f"{growth / row['total_bytes']:.3f}"
        allocated = "same" if row["allocated_bytes"] == row["total_bytes"] else row["allocated_bytes"]
        print(f"{row['name']:18s} clip {row['clip'] or 'none':>4}  total {row['total_bytes'] / 1e6:9.1f} MB  allocated "
              f"{allocated}  process/total {shown}  disk {row['disk_bytes'] / 1e6:8.1f} MB  {middle:8.3f} s "
              f"({middle / usual:.2f})  bits {'same' if row['same_bits'] else 'DIFFER'}")
    for one in budgets:
        first = next(b for b in budgets if b["clip_by"] == one["clip_by"])
        print(f"least, {one['name']:26s} clip by {one['clip_by']}: {one['least_bytes'] / 1e6:9.1f} MB "
              f"({one['least_bytes'] / first['least_bytes']:.3f})")


def _huge(arguments) -> int:
    """Three steps of a model that does not fit otherwise, and a snapshot."""
    from cllm.program.workload import Workload
    from cllm.schedule.report import optimizer_bytes, parameter_bytes

    model = _llama(LLAMA_1700M, arguments.settings)
    program, work = models.architecture(model).program, Workload(arguments.batch_size, arguments.seq_len)
    states, weights = optimizer_bytes(program, work), parameter_bytes(program, work)
    needed, free = 2 * states + weights, shutil.disk_usage(arguments.states_to).free
    print(f"{weights // 4:,} parameters: {states / 1e9:.1f} GB of states and a snapshot of {(states + weights) / 1e9:.1f} GB "
          f"on disk, {free / 1e9:.1f} GB are free; at most {arguments.limit / 1e9:.1f} GB in memory")
    if free < needed:
        print(f"whole_step.py: {arguments.states_to} must have {needed:,} bytes free; got {free:,}.", file=sys.stderr)
        return 2
    with process.Peer(PEER, arguments.threads) as peer:
        harness.say("planning and making the model")
        made = peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                        threads=arguments.threads, limit=int(arguments.limit * 0.97), allow=BUDGETS["both"],
                        states=f"disk:{arguments.states_to}", hard_limit=arguments.limit)
        ran = []
        for step in range(arguments.steps):
            left = "" if not ran else f", about {ran[-1]['seconds'][0] * (arguments.steps - step):.0f} s to go"
            harness.say(f"[{'#' * step}{'.' * (arguments.steps - step)}] step {step + 1} of {arguments.steps}{left}")
            ran.append(peer.ask("train", first=step, count=1))
        held = peer.ask("held")
        harness.say("writing a snapshot")
        folder = arguments.states_to / "whole-step-snapshot"
        kept = peer.ask("snapshot", directory=str(folder))
        shutil.rmtree(folder)
    harness.say("")
    seconds = [one["seconds"][0] for one in ran]
    path = record.write_result("whole_step_huge", arguments.threads, {
        **options.job_of(arguments, model), "limit": arguments.limit, **made, **held, "snapshot": kept, "seconds": seconds,
        "losses": [one["losses"][0] for one in ran]}, arguments.out)
    print(f"total {made['total_bytes'] / 1e9:.2f} GB, process grew by {(held['peak_growth_bytes'] or 0) / 1e9:.2f} GB, "
          f"steps {', '.join(f'{one:.1f}' for one in seconds)} s, snapshot {kept['seconds']:.1f} s\nwritten: {path}")
    return 0


def _llama(sizes: dict, settings: list[str] = ()) -> dict:
    from cllm.models.llama import Llama
    from cllm.models.settings import settings_of

    return models.told(Llama(**{**sizes, **settings_of(Llama, settings)}))


def _arguments():
    made = options.parser(__doc__.splitlines()[0], None, rounds=1)
    made.add_argument("--states-to", type=Path, required=True, metavar="DIR", help="on a disk, for states")
    made.add_argument("--steps", type=options.positive, default=None, help="of each way (default: 20, or 3 with --huge)")
    made.add_argument("--clip", action="store_true", help="also with clipping by the norm of all gradients")
    made.add_argument("--preset135", action="store_true", help="the shape of a LLaMA of 135 million parameters")
    made.add_argument("--huge", action="store_true", help="the model of 1.7 billion parameters instead")
    made.add_argument("--limit", type=int, default=10**10, help="bytes, with --huge")
    made.set_defaults(preset=None, batch_size=1)
    arguments = options.parsed(made)
    arguments.steps = arguments.steps or (3 if arguments.huge else 20)
    return arguments


if __name__ == "__main__":
    sys.exit(options.run(main))
