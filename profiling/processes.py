"""Several processes on one batch beside one process with as many threads: seconds of a step in turn, bits, bytes, messages.

    python profiling/processes.py
    python profiling/processes.py --processes 4 --groups 4 --seq-len 128
    python profiling/processes.py --kills 100 --steps 40

Contestants are one process with as many threads, with one group and with --groups, and --processes of one thread each with
--groups. Then the bandwidth of messages, and by it the model of time of docs/processes.md for 2 to 1,024 processes.
With --kills, so many runs of ``cllm train`` under mpirun lose a process that is drawn, at a moment that is drawn, and are
resumed by another number of processes; every one has to end with the bits of the straight run, and leave no process behind.
It takes mpi4py and mpirun (extra ``mpi``).
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import draw
import harness
from jobs import models, options, record
from peers import process

import cllm

PEER = "peers/cllm/processes.py"
SMALL = {"vocab_size": 256, "d_model": 512, "n_heads": 8, "d_ff": 2048, "n_layers": 6}
PROBE = 64 << 20  # bytes of the array by which messages are measured
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# OpenMP would bind the first thread of every process to the same processor: the launcher is the one to bind them.
LAUNCHED = {**ROOT_MAY, "OMP_PROC_BIND": "FALSE"}


def main() -> int:
    """Measure, print, write."""
    arguments = _arguments()
    if arguments.kills:
        return _killed(arguments)
    model = models.asked(arguments, SMALL)
    count, groups = arguments.processes, arguments.groups or arguments.processes
    launcher = (*mpirun(count), "-n", str(count))
    ways = {f"1 process, {count} threads, 1 group": (count, 1, ()),
            f"1 process, {count} threads, {groups} groups": (count, groups, ()),
            f"{count} processes, 1 thread each, {groups} groups": (1, groups, launcher)}
    peers, rows = {}, {}
    try:
        for name, (threads, of, launched) in ways.items():
            peers[name] = process.Peer(PEER, threads, launcher=launched, processors=count, **(LAUNCHED if launched else {}))
            rows[name] = {"groups": of, **peers[name].ask("make", model=model, batch_size=arguments.batch_size,
                                                         seq_len=arguments.seq_len, threads=threads, groups=of,
                                                         strategy=arguments.strategy)}
            peers[name].ask("burst", repeats=1)
        timings = harness.interleave({name: lambda peer=peer: peer.ask("burst", repeats=arguments.repeats)
                                      for name, peer in peers.items()}, arguments.rounds, harness.say)
        for name, peer in peers.items():
            rows[name] |= {"seconds": timings[name].to_dict(), "weights": peer.ask("digest")}
        first, *_, last = peers
        rows[last]["operations"] = peers[last].ask("operations")
        moved = peers[last].ask("messages", nbytes=PROBE, repeats=arguments.repeats + 1)[1:]
    finally:
        for peer in peers.values():
            peer.close()
    harness.say("")
    bandwidth = 2 * PROBE * (count - 1) / count / min(moved)
    overhead = harness.ratio(timings[last], timings[first])
    same = len({row["weights"] for row in rows.values() if row["groups"] == groups}) == 1
    scaling = _scaling(timings[first].median * count, rows[last]["parameter_bytes"], bandwidth)
    path = record.write_result("processes", count, {
        **options.job_of(arguments, model), "processes": count, "groups": groups, "rows": rows, "overhead": overhead.to_dict(),
        "same_bits": same, "message_seconds": moved, "bandwidth": bandwidth, "scaling": scaling}, arguments.out)
    for name, row in rows.items():
        print(f"{name:44s} {row['seconds']['median']:8.3f} s  {row['total_bytes'] / 1e6:9.1f} MB each")
    reduced = sum(took for kind, _, took in rows[last]["operations"] if kind == "reduce")
    print(f"processes to threads: {overhead}; {bandwidth / 1e9:.2f} GB/s between processes; reductions {reduced:.4f} s of a "
          f"step; bits {'same' if same else 'DIFFER'}")
    print(draw.told(path, draw.draw(path)))
    return int(not same)


def _scaling(work: float, parameter_bytes: int, bandwidth: float) -> list[dict]:
    """The model of time: the work of one batch shared by R processes, and 2 (R - 1) / R times the gradients' bytes each."""
    return [{"processes": count, "compute_seconds": work / count,
             "message_seconds": 2 * (count - 1) / count * parameter_bytes / bandwidth}
            for count in (2**n for n in range(1, 11))]


def mpirun(count: int) -> list[str]:
    """The launcher, each of so many processes on a processor of its own, or all on all where there are fewer."""
    bound = count <= len(process.processors(count) or ())
    return [*cllm.distributed.launcher("mpirun"), *(("--bind-to", "core") if bound else
                                                    ("--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"))]


# kills


def _killed(arguments) -> int:
    """Runs that lose a process."""
    drawn, groups, rows = random.Random(arguments.seed), arguments.groups or 4, []
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        seconds = harness.burst(lambda: _train(straight, 1, groups, arguments.steps).wait(), 1)[0]
        wanted = _weights(straight)
        for number in range(arguments.kills):
            out, before = Path(folder) / f"run{number}", _processes()
            running = _train(out, count := drawn.choice((2, 4)), groups, arguments.steps)
            harness.pause(drawn.uniform(0, seconds))
            victims = _children(running.pid)
            if victims:
                os.kill(drawn.choice(victims), signal.SIGKILL)
            running.wait()
            left = _processes() - before
            again = drawn.choice((1, 2, 4))
            ended = _train(out, again, groups, arguments.steps, resume=True).wait()
            rows.append({"processes": count, "killed": bool(victims), "resumed_by": again, "exit_code": ended,
                         "same_bits": _weights(out) == wanted, "left": len(left)})
            print(f"{number + 1:4d}: {rows[-1]}", flush=True)
            shutil.rmtree(out, ignore_errors=True)
    failed = [row for row in rows if row["left"] or row["exit_code"] or not row["same_bits"]]
    path = record.write_result("processes_kills", 1, {"kills": arguments.kills, "steps": arguments.steps, "groups": groups,
                                                      "straight_seconds": seconds, "rows": rows}, arguments.out)
    print(f"{len(rows) - len(failed)} of {len(rows)} went on to the same bits, with nobody left behind\nwritten: {path}")
    return int(bool(failed))


def _train(out: Path, count: int, groups: int, steps: int, resume: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-m", "cllm", "train", "--out", str(out), "--preset", "tiny", "--batch-size", "8", "--seq-len",
               "64", "--steps", str(steps), "--snapshot-every", "5", "--eval-every", "10", "--eval-batches", "1", "--threads",
               "1", "--groups", str(groups), "--quiet", *(["--resume"] if resume else [])]
    launcher = [*cllm.distributed.launcher("mpirun"), "-n", str(count), "--oversubscribe"] if count > 1 else []
    return subprocess.Popen([*launcher, *command], env={**os.environ, **ROOT_MAY, "PYTHONPATH": str(process.ROOT)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _weights(out: Path) -> str | None:
    """Digests of the last snapshot's weights and states."""
    from cllm.snapshot import read_state, snapshots

    found = snapshots(out)
    return str(sorted((name, one["sha256"]) for name, one in read_state(found[-1])["files"].items())) if found else None


def _children(pid: int) -> list[int]:
    """Processes of Python that a launcher has started."""
    import psutil

    try:
        return [one.pid for one in psutil.Process(pid).children(recursive=True) if "cllm" in one.cmdline()]
    except psutil.Error:
        return []


def _processes() -> set[int]:
    """Those that train."""
    import psutil

    return {one.pid for one in psutil.process_iter(["cmdline"])
            if {"cllm", "train", "--groups"} <= set(one.info["cmdline"] or ())}


def _arguments():
    made = options.parser(__doc__.splitlines()[0], None, 8)
    made.add_argument("--processes", type=options.positive, default=2)
    made.add_argument("--groups", type=options.positive, default=None, help="as many as processes unless given; 4 with --kills")
    made.add_argument("--strategy", default="cache")
    made.add_argument("--repeats", type=options.positive, default=3, help="steps of a burst")
    made.add_argument("--kills", type=int, default=0, help="runs that lose a process, instead of what is measured otherwise")
    made.add_argument("--steps", type=options.positive, default=40, help="of each run with --kills")
    made.add_argument("--seed", type=int, default=0, help="of what is drawn")
    return options.parsed(made)


if __name__ == "__main__":
    sys.exit(options.run(main))
