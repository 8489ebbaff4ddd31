"""kill -9 at random moments of a training run whose states are on disk: does it always go on to the bits of the straight run?

    python profiling/kills.py --states-to DIR
    python profiling/kills.py --states-to DIR --kills 20

A tiny model is trained by `cllm train` within the least memory that works: by steps that update in backward, with states on
disk. First undisturbed. Then runs are killed at moments drawn evenly over the time that the
straight one took, start included, and resumed by the same command, until one ends; then another run begins, until there were
so many kills. After each kill what is left is looked at: every snapshot must be whole, no state be left in DIR. After each
end weights and states must have the straight run's digests.

What is finished is kept beside the result (NAME.part): the same command again goes on where it was killed.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import harness
from jobs import options, record
from jobs.resumed import Parts
from peers import process

SIZES = {"n_layers": 4, "d_model": 64, "n_heads": 2, "d_ff": 128}  # of which the least plan does both
STEPS, EVERY, BATCH, TIME = 400, 20, 1, 16
FILES = ("model.safetensors", "optimizer.safetensors")
FOLDER = "cllm-kills-"
PER_PART = 10  # kills between two records of what is finished


def main() -> int:
    """Kill, compare, write; the exit code is 1 when a run ended with other bits or something was left."""
    arguments = _arguments()
    place = arguments.out or record.result_path("kills", ".json")
    asked = {"kills": arguments.kills, "seed": arguments.seed, "threads": arguments.threads, "steps": STEPS}
    parts = Parts(place, asked, arguments.fresh)
    for left in arguments.states_to.glob(f"{FOLDER}*"):  # of this script, killed
        shutil.rmtree(left, ignore_errors=True)
    straight = parts.part("straight", lambda: _straight(arguments))
    rows, ends = [], []
    for first in range(0, arguments.kills, PER_PART):
        one = parts.part(f"kills from {first}", lambda first=first: _killed(
            arguments, straight, random.Random(f"{arguments.seed} {first}"), min(PER_PART, arguments.kills - first), first))
        rows, ends = rows + one["kills"], ends + one["ends"]
    harness.say("")
    same = all(end["digests"] == straight["digests"] for end in ends)
    whole = all(row["damaged"] == row["left"] == [] for row in rows)
    path = record.write_result("kills", arguments.threads, {
        "family": "gpt", "config": {**SIZES, "vocab_size": 256}, "model": "4 layers, C 64, H 2, F 128, V 256", "seq_len": TIME,
        "batch_size": BATCH, **asked, "snapshot_every": EVERY, "straight": straight, "rows": rows, "ends": ends,
        "same_bits": same, "whole": whole}, arguments.out)
    parts.finish()
    print(f"{len(rows)} kills, {sum(row['written'] for row in rows)} of them while a snapshot was being written, in runs that "
          f"ended {len(ends)} times: bits {'the same' if same else 'OTHER'}, snapshots {'whole' if whole else 'DAMAGED'}\n"
          f"written: {path}")
    return int(not (same and whole))


def _straight(arguments) -> dict:
    """The run that nobody disturbs: what it ends with, and how long it takes."""
    harness.say("the straight run")
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=arguments.states_to) as folder:
        out = Path(folder) / "straight"
        begun = harness.wall_clock()
        _ended_within(_start(arguments, out, Path(folder)))
        seconds = harness.wall_clock() - begun
        return {"seconds": seconds, "digests": _digests(out),
                "total_bytes": _least_bytes(arguments.states_to, arguments.threads)}


def _killed(arguments, straight: dict, drawn: random.Random, count: int, before: int) -> dict:
    """So many kills, and the ends of the runs that they were of; the last run is let end."""
    kills, ends = [], []
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=arguments.states_to) as folder:
        out, here = Path(folder) / "run", Path(folder)
        while len(kills) < count:
            harness.say(f"kill {before + len(kills) + 1} of {arguments.kills}")
            running = _start(arguments, out, here)
            moment = drawn.uniform(0, straight["seconds"])
            if _ended_within(running, moment):
                ends.append({"digests": _digests(out), "kills": len(kills)})
                shutil.rmtree(out)
                continue
            running.kill()
            running.wait()
            kills.append({"seconds": moment, **_left(out, here)})
        if out.exists() or not ends:
            _ended_within(_start(arguments, out, here))
            ends.append({"digests": _digests(out), "kills": len(kills)})
    return {"kills": kills, "ends": ends}


def _start(arguments, out: Path, states: Path) -> subprocess.Popen:
    """`cllm train`, from its last snapshot where there is one."""
    settings = {"layers": SIZES["n_layers"], "d_model": SIZES["d_model"], "heads": SIZES["n_heads"], "d_ff": SIZES["d_ff"],
                "batch_size": BATCH, "seq_len": TIME, "steps": STEPS, "snapshot_every": EVERY, "eval_every": STEPS,
                "threads": arguments.threads, "clip_by": "each", "states": f"disk:{states}",
                "memory_budget": f"{_least_bytes(arguments.states_to, arguments.threads)}B"}
    made = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return subprocess.Popen([sys.executable, "-m", "cllm", "train", "--out", str(out), "--resume", "--quiet", *made],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=process.ROOT)


@cache
def _least_bytes(directory: Path, threads: int) -> int:
    """Bytes of the plan of least memory: it updates in backward, and keeps states on disk."""
    from cllm.models.gpt import ModelConfig
    from cllm.planning import pareto

    config = ModelConfig.preset("small", **SIZES)  # as the command line has it
    found = pareto(config, BATCH, TIME, num_threads=threads, most=2, clip_by="each", directory=str(directory),
                   allow=("cache", "recompute", "micro_batch", "update_in_backward", "spill_states"))[0]
    if not (found.update_in_backward and found.states_on_disk):
        raise process.PeerError("the least plan must update in backward and keep states on disk")
    return found.total_bytes


def _ended_within(running: subprocess.Popen, seconds: float | None = None) -> bool:
    """Whether the run ended by itself in that time; refused where it failed. Whatever ends this script ends the run as well."""
    try:
        said = running.communicate(timeout=seconds)[1].decode()
    except subprocess.TimeoutExpired:
        return False
    except BaseException:
        running.kill()
        running.wait()
        raise
    if running.returncode:
        raise process.PeerError(f"cllm train ended with {running.returncode}: {said.strip().splitlines()[-1:]}")
    return True


def _left(out: Path, states: Path) -> dict:
    """What a kill leaves: the last step that is whole, whether a snapshot was being written, what is damaged, and what of the
    states is left in their directory."""
    from cllm.snapshot import is_whole, snapshots

    there = snapshots(out) if out.exists() else []
    return {"step": int(there[-1].name.removeprefix("step-")) if there else 0,
            "written": bool(list(out.glob(".step-*.partial"))) if out.exists() else False,
            "damaged": [one.name for one in there if not is_whole(one)],
            "left": sorted(one.name for one in states.iterdir() if one != out)}


def _digests(out: Path) -> dict:
    """Of weights and states after the last step."""
    files = json.loads((out / f"step-{STEPS:06d}" / "state.json").read_text())["files"]
    return {name: files[name]["sha256"] for name in FILES}


def _arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--states-to", type=Path, required=True, metavar="DIR", help="on a disk, for states and runs")
    made.add_argument("--kills", type=options.positive, default=200)
    made.add_argument("--seed", type=int, default=0, help="of the moments")
    made.add_argument("--fresh", action="store_true", help="begin anew, whatever parts there are")
    options.add_common(made)
    return options.parsed(made)


if __name__ == "__main__":
    sys.exit(options.run(main))
