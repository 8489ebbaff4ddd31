"""Gradients as room in the arena, optimizer states on disk: bytes, bits and seconds of whole steps beside the plain one.

    python profiling/whole_step.py --states-to DIR
    python profiling/whole_step.py --states-to DIR --preset135 --seq-len 1024 --peer-python /path/to/python/with/torch
    python profiling/whole_step.py --states-to DIR --huge --limit 10000000000

Each way is a process of its own: the plain step; gradients in the arena; states on disk; both; both, recomputed; each without
clipping and, with --clip, by the norm of all. In this order:

* The disk's bandwidth, past the page cache where that can be done, before everything and after it.
* Twenty steps (--steps) of each way: predicted total against what is allocated and against the growth of the process, and
  the digest of weights and states afterwards against the plain way's.
* Rounds of fresh processes in turn, with PyTorch's eager and checkpointed steps of the same weights and batch among them where
  --peer-python names an interpreter that has it: seconds, and growth over what was resident when the model had been made. A
  way's seconds are judged against the greater of the plain way's and the time in which the disk moves its bytes.
* The least total of budgets that may decide less or more, their whole curve as planned at this machine's speeds, and some
  plans of the whole curve (--points) measured.
* One step of three ways, operation by operation, for the picture of memory.

What is finished is kept beside the result (NAME.part) until all is: the same command again goes on where it was killed.

--huge trains a model of 1.7 billion parameters inside --limit bytes that the system enforces (see `jobs/huge_step.py`).
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import disk
import draw
import harness
from jobs import huge_step, models, options, record, whole_steps
from jobs.resumed import Parts
from jobs.whole_steps import BUDGETS, PLAIN
from peers import process
from predictions import spread
from views.whole_steps import summary

PEER = "peers/cllm/whole_step.py"
TORCH = "torch "
MODES = ("eager", "checkpoint")
CURVE_POINTS = 60
WITHIN = 0.03  # of the predicted total, the growth of the process
LOSS_TOLERANCE = 2e-5  # as of compare.py
DRAWN = (PLAIN, "states on disk", "both, recomputed")


def main() -> int:
    """Measure, print, write; the exit code is 1 when bits, bytes or first losses are not what they must be."""
    arguments = _arguments()
    if arguments.huge:
        return huge_step.run(arguments, PEER)
    model = whole_steps.llama(whole_steps.LLAMA_135M, arguments.settings) if arguments.preset135 else models.asked(
        arguments, whole_steps.SMALL)
    place = arguments.out or record.result_path("whole_step", ".json")
    job = {**options.job_of(arguments, model), "steps": arguments.steps}
    parts = Parts(place, {**job, "threads": arguments.threads, "clip": arguments.clip, "points": arguments.points,
                          "peers": arguments.peer_python is not None}, arguments.fresh)
    if len(parts):
        print(f"going on with {parts.folder}, where {len(parts)} parts are finished", file=sys.stderr)
    data = {**job, **_measured(arguments, model, parts)}
    problems = problems_of(data)
    path = record.write_result("whole_step", arguments.threads, {**data, "problems": problems}, place)
    parts.finish()
    print(f"{options.title(arguments, model)}\n\n{summary(data)}", *problems, sep="\n")
    print(draw.told(path, draw.draw(path)))
    return int(bool(problems))


def _measured(arguments, model: dict, parts: Parts) -> dict:
    """All parts, those that are there already read."""
    ways, clips = whole_steps.ways(str(arguments.states_to)), (None, 1.0) if arguments.clip else (None,)
    before = parts.part("disk before", lambda: disk.to_the_device(str(arguments.states_to)))
    rows = [{"name": name, "clip": clip, **parts.part(f"bits, {name}, clip {clip}", lambda way=way, clip=clip, name=name: (
        _trained(arguments, model, f"{name}, clip {clip}", {**way, "clip_norm": clip})))}
        for clip in clips for name, way in ways.items()]
    with tempfile.TemporaryDirectory(dir=parts.folder) as folder:
        in_turn = [one for clip in clips for one in _in_turn(arguments, model, ways, clip, parts, Path(folder))]
    os.environ["CLLM_CACHE_DIR"] = str(parts.folder)  # what users have stored is neither read nor changed
    os.environ["CLLM_SPILL_DIR"] = str(arguments.states_to)
    parts.part("calibration", lambda: _calibrated(arguments, model))
    architecture = models.architecture(model)
    budgets = [{"name": name, "clip_by": clip_by, **parts.part(f"curve, {name}, clip by {clip_by}", (
        lambda allow=allow, clip_by=clip_by, name=name: _curve(arguments, architecture, name, allow, clip_by)))}
        for clip_by in (None, "all") for name, allow in BUDGETS.items()]
    whole = [one for one in budgets if one["clip_by"] is None][-1]
    points = [parts.part(f"point {one['total_bytes']}", lambda one=one: _point(arguments, model, one))
              for one in spread(whole["curve"], arguments.points)]
    timelines = [{"name": name, **parts.part(f"timeline, {name}", lambda name=name: (
        _timeline(arguments, model, name, ways[name])))} for name in DRAWN]
    after = parts.part("disk after", lambda: disk.to_the_device(str(arguments.states_to)))
    harness.say("")
    disks = [before, after]
    judge(rows, in_turn, disks)
    return {"disks": disks, "rows": rows, "in_turn": in_turn, "budgets": budgets, "points": points, "timelines": timelines}


def _trained(arguments, model: dict, about: str, way: dict) -> dict:
    """One process: a step that warms up, then the others."""
    harness.say(f"{about}: {arguments.steps} steps")
    with process.Peer(PEER, arguments.threads) as peer:
        made = _made(peer, arguments, model, way)
        ran = [peer.ask("train", first=first, count=count) for first, count in ((0, 1), (1, arguments.steps - 1)) if count]
        held = peer.ask("held")
    if ran[-1]["high_water_bytes"] != made["arena_bytes"]:
        raise process.PeerError("the arena's record is not what was predicted")
    return {**made, **held, "losses": [loss for one in ran for loss in one["losses"]]}


def _made(peer: process.Peer, arguments, model: dict, way: dict) -> dict:
    return peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                    threads=arguments.threads, **way)


# in turn, with PyTorch among them

def _in_turn(arguments, model: dict, ways: dict, clip: float | None, parts: Parts, folder: Path) -> list[dict]:
    """Seconds and growth of every contestant, from rounds of fresh processes; every second round goes backwards."""
    modes = [TORCH + mode for mode in MODES] if arguments.peer_python else []
    names, found = [*ways, *modes], {name: [] for name in (*ways, *modes)}
    files = {"weights": str(folder / models.file_form(model)), "data": str(folder / "data.npz")}
    exported = False
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            def fresh(name=name, number=number) -> dict:
                nonlocal exported
                harness.say(f"{name}, clip {clip}: round {number + 1} of {arguments.rounds}")
                if name in ways:
                    return _our_round(arguments, model, {**ways[name], "clip_norm": clip})
                if not exported:
                    with process.Peer("peers/cllm/steps.py", arguments.threads) as ours:
                        ours.ask("export", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, **files)
                    exported = True
                return _their_round(arguments, model, name.removeprefix(TORCH), clip is not None, files)

            found[name].append(parts.part(f"round {number}, {name}, clip {clip}", fresh))
    return [{"name": name, "clip": clip, "rounds": rounds, "loss": rounds[0]["loss"],
             "seconds": _spread([s for one in rounds for s in one["seconds"]]),
             "growth_bytes": max((one["growth_bytes"] for one in rounds if one["growth_bytes"] is not None), default=None)}
            for name, rounds in found.items()]


def _our_round(arguments, model: dict, way: dict) -> dict:
    """A step that warms up, then those that count."""
    with process.Peer(PEER, arguments.threads) as peer:
        made = _made(peer, arguments, model, way)
        first = peer.ask("train", first=0, count=1)["losses"][0]
        return _steady(peer, first, made["rss_model_bytes"],
                       lambda: peer.ask("train", first=1, count=arguments.round_steps)["seconds"])


def _their_round(arguments, model: dict, mode: str, clips: bool, files: dict) -> dict:
    with process.Peer("peers/torch/steps.py", arguments.threads, arguments.peer_python) as peer:
        made = peer.ask("make", config=model["config"], mode=mode, threads=arguments.threads, clips=clips, **files)
        return _steady(peer, made["loss"], made["rss_model_bytes"], lambda: peer.ask("burst", repeats=arguments.round_steps))


def _steady(peer: process.Peer, loss: float, before: int | None, run) -> dict:
    """Seconds of steps, and the peak of the process in them over what was resident when the model had been made."""
    from cllm.comparison.resident import forget_peak, peak_resident_bytes

    watched = forget_peak(peer.pid)
    seconds = run()
    peak = peak_resident_bytes(peer.pid) if watched else None
    return {"loss": loss, "seconds": seconds, "growth_bytes": None if None in (peak, before) else peak - before}


def _spread(seconds: list[float]) -> dict:
    return {"min": min(seconds), "median": median(seconds), "max": max(seconds)}


# the planner's curves

def _calibrated(arguments, model: dict) -> float:
    harness.say("calibrating")
    with process.Peer("peers/cllm/steps.py", arguments.threads) as peer:
        return peer.ask("calibrate", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                        threads=arguments.threads)


def _curve(arguments, architecture, name: str, allow: list[str], clip_by: str | None) -> dict:
    """The least total of a budget, and its curve as planned."""
    from cllm.planning import pareto

    harness.say(f"planning {name}, clip by {clip_by}")
    plans = pareto(architecture, arguments.batch_size, arguments.seq_len, num_threads=arguments.threads, most=CURVE_POINTS,
                   allow=tuple(allow), clip_by=clip_by, directory=str(arguments.states_to))
    return {"least_bytes": plans[0].total_bytes,
            "curve": [{"total_bytes": plan.total_bytes, "seconds": plan.predicted_seconds} for plan in plans]}


def _point(arguments, model: dict, one: dict) -> dict:
    """A plan of the whole curve, measured."""
    harness.say(f"a plan of {one['total_bytes'] / 1e6:,.0f} MB")
    budget = {"limit": one["total_bytes"], "allow": BUDGETS["both, activations on disk"], "directory": str(arguments.states_to)}
    with process.Peer(PEER, arguments.threads) as peer:
        made = _made(peer, arguments, model, budget)
        peer.ask("train", first=0, count=1)
        seconds = peer.ask("train", first=1, count=arguments.round_steps)["seconds"]
    return {"total_bytes": made["total_bytes"], "disk_bytes": made["disk_bytes"], "moved_bytes": made["moved_bytes"],
            "predicted_seconds": made["predicted_seconds"], "seconds": _spread(seconds)}


def _timeline(arguments, model: dict, name: str, way: dict) -> dict:
    harness.say(f"operations of {name}")
    with process.Peer(PEER, arguments.threads) as peer:
        made = _made(peer, arguments, model, way)
        peer.ask("train", first=0, count=2)
        return {"total_bytes": made["total_bytes"], "arena_bytes": made["arena_bytes"], "parts": made["parts"],
                "timeline": peer.ask("timeline")}


# what must hold

def judge(rows: list[dict], in_turn: list[dict], disks: list[dict]) -> None:
    """Add to rows whether bits are the plain way's, and their growth over the total; to those in turn, time over the plain
    way's and over the greater of that and the disk's. The disk is taken as the slower of its two records."""
    rate = {way: min(one[way] for one in disks) for way in ("write", "read")}
    for row in rows:
        plain = next(r for r in rows if r["name"] == PLAIN and r["clip"] == row["clip"])
        row["same_bits"] = row["digest"] == plain["digest"] and row["losses"] == plain["losses"]
        grown = row["peak_growth_bytes"]
        row["growth_over_total"] = None if grown is None else grown / row["total_bytes"]
        row["disk_seconds"] = sum(row["moved_bytes"][way] / rate[way] for way in rate)
    for one in in_turn:
        plain = next(r for r in in_turn if r["name"] == PLAIN and r["clip"] == one["clip"])["seconds"]["median"]
        mine = next((r for r in rows if r["name"] == one["name"] and r["clip"] == one["clip"]), None)
        one["over_plain"] = one["seconds"]["median"] / plain
        one["over_bound"] = None if mine is None else one["seconds"]["median"] / max(plain, mine["disk_seconds"])


def problems_of(data: dict) -> list[str]:
    """What is not as it must be."""
    found = []
    for row in data["rows"]:
        name = f"{row['name']}, clip {row['clip']}"
        if not row["same_bits"]:
            found.append(f"{name}: other bits than the plain step's")
        if row["allocated_bytes"] != row["total_bytes"]:
            found.append(f"{name}: {row['allocated_bytes']:,} bytes are allocated, {row['total_bytes']:,} were predicted")
        if row["growth_over_total"] is not None and abs(row["growth_over_total"] - 1) > WITHIN:
            found.append(f"{name}: the process grew by {row['growth_over_total']:.3f} of the predicted total")
    for one in data["in_turn"]:
        plain = next(r for r in data["in_turn"] if r["name"] == PLAIN and r["clip"] == one["clip"])["loss"]
        if abs(one["loss"] - plain) > LOSS_TOLERANCE * abs(plain):
            found.append(f"{one['name']}: trains something else: first loss {one['loss']}, not {plain}")
    return found


def _arguments():
    made = options.parser(__doc__.splitlines()[0], None, rounds=3)
    made.add_argument("--states-to", type=Path, required=True, metavar="DIR", help="on a disk, for states")
    made.add_argument("--steps", type=options.positive, default=None, help="of each way (default: 20, or 3 with --huge)")
    made.add_argument("--round-steps", type=options.positive, default=3, help="of each process in turn, after a first")
    made.add_argument("--points", type=int, default=5, help="plans of the whole curve that are measured")
    made.add_argument("--clip", action="store_true", help="also with clipping by the norm of all gradients")
    made.add_argument("--preset135", action="store_true", help="the shape of a LLaMA of 135 million parameters, batch 1")
    made.add_argument("--peer-python", default=None, metavar="PYTHON", help="interpreter that has PyTorch, to measure it too")
    made.add_argument("--fresh", action="store_true", help="begin anew, whatever parts there are")
    made.add_argument("--huge", action="store_true", help="the model of 1.7 billion parameters instead")
    made.add_argument("--limit", type=int, default=10**10, help="bytes, with --huge")
    made.set_defaults(preset=None, batch_size=None)
    arguments = options.parsed(made)
    arguments.steps = arguments.steps or (3 if arguments.huge else 20)
    arguments.batch_size = arguments.batch_size or (1 if arguments.preset135 or arguments.huge else 8)
    return arguments


if __name__ == "__main__":
    sys.exit(options.run(main))
