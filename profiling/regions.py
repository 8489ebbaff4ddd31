"""What a step on many threads consists of: parallel regions, barriers, shares, serial parts; and the time that follows.

    python profiling/regions.py
    python profiling/regions.py --threads 1,2,4,8,16 --strategies cache,cache@1 --rounds 9      # on a machine of 16 cores

A stand-in for the OpenMP runtime (`machine/simulated_threads.c`; needs GCC's build of cllm and a C compiler) runs the
threads of each region of a real step in turn on one processor. So this tells for any number of threads how many regions and
barriers there are, in how many shares the kernels hand out their work, and how long the busiest thread has to do. Bits of
the parameters after the steps must be those of every other number of threads, or the exit code is 1.

The model of time, operation by operation:

    serial + the larger of (busiest thread, bytes declared / bandwidth) + regions x cost of one + further barriers x cost

Bandwidth and costs are measured here, for as many threads as there are processors. Beyond, a region's cost is taken to grow
with the threads, bandwidth of caches too, that of memory not: pass --bandwidth for a machine that has more. For numbers of
threads that the machine has, real steps are measured as well, and the ratio stands beside the prediction.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import harness
from jobs import models, options, record
from machine.limits import Limits
from peers import process

HERE = Path(__file__).parent / "machine"
MEMORY_FROM = 64 << 20  # bytes of an operation from which they are taken to come from memory
MARK, FUNCTION, THREADS, BARRIERS, SHARES, BUSIEST, ALL, LONGEST = range(8)  # of an event
COUNTS = ("regions", "barriers", "shares")
SECONDS = ("serial", "busiest", "all_threads", "memory", "opening", "predicted")


def main() -> int:
    """Count, measure, print and write JSON."""
    parser = options.parser(__doc__.splitlines()[0], "cache,cache@1", rounds=5)
    parser.set_defaults(threads="1,2,4,16,64")
    next(one for one in parser._actions if one.dest == "threads").type = str
    parser.add_argument("--bandwidth", type=float, default=None, metavar="GB/s", help="of memory, for more threads than here")
    arguments = options.parsed(parser)
    counts = [options.positive(one) for one in arguments.threads.split(",")]
    model = models.asked(arguments)
    cores = len(process.processors(max(counts)) or counts)
    rows, digests = [], {}
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), cores, arguments.bandwidth)
        runtime = built(Path(folder), "simulated_threads.c", "simulated_threads.so", "-shared", "-fPIC")
        for strategy in options.strategies_of(arguments):
            for threads in counts:
                harness.say(f"{strategy} on {threads} threads")
                row, digest = _counted(arguments, model, strategy, threads, runtime, machine)
                row["measured"] = _measured(arguments, model, strategy, threads) if threads <= cores else None
                rows.append(row)
                digests.setdefault(strategy, {})[threads] = digest
        constants = machine.known()
    harness.say("")
    differ = [name for name, found in digests.items() if len(set(found.values())) > 1]
    job = options.job_of(arguments, model)
    path = record.write_result("regions", cores, {**job, "rows": rows, "digests": digests, "machine_constants": constants,
                                                  "bits_differ": differ}, arguments.out)
    print(model["model"])
    print(*lines_of(rows), sep="\n")
    print(f"\nwritten: {path}")
    if differ:
        print(f"bits depend on the number of threads: {', '.join(differ)}")
    return 1 if differ else 0


def built(folder: Path, source: str, name: str, *flags: str) -> Path:
    """A C program of `machine/`, compiled."""
    target = folder / name
    subprocess.run(["cc", "-O2", *flags, str(HERE / source), "-o", str(target)], check=True)
    return target


class Machine:
    """What opening a region costs, and how fast bytes move, by number of threads.

    Parameters
    ----------
    folder : Path
        Where programs may lie.
    cores : int
        Measured on so many threads at most; told beyond.
    bandwidth : float or None
        GB/s of memory on more threads than that.
    """

    def __init__(self, folder: Path, cores: int, bandwidth: float | None):
        self._folder, self._cores, self._bandwidth = folder, cores, bandwidth
        self._program = built(folder, "region_overhead.c", "region_overhead", "-fopenmp")
        self._opened: dict[int, tuple[float, float]] = {}
        self._limits: dict[int, Limits] = {}

    def opening(self, threads: int) -> tuple[float, float]:
        """Seconds of an empty region, and of a further barrier."""
        if threads == 1:
            return 0.0, 0.0
        if threads > self._cores:
            if self._cores == 1:
                raise SystemExit("two processors are needed to measure what a region costs")
            return tuple(one * threads / self._cores for one in self.opening(self._cores))
        if threads not in self._opened:
            from cllm.threads.waiting import SPIN_COUNT

            done = subprocess.run([*process.pinned(threads), str(self._program), str(threads)], check=True, text=True,
                                  capture_output=True, env={"GOMP_SPINCOUNT": str(SPIN_COUNT), **process.environment(threads)})
            self._opened[threads] = tuple(map(float, done.stdout.split()))
        return self._opened[threads]

    def bandwidth(self, threads: int, nbytes: float) -> float:
        """Bytes per second at which an operation that moves so many can."""
        if threads > self._cores and nbytes >= MEMORY_FROM and self._bandwidth is not None:
            return self._bandwidth * 1e9
        here = min(threads, self._cores)
        if here not in self._limits:
            (self._folder / str(here)).mkdir()
            self._limits[here] = Limits(self._folder / str(here), here)
        return self._limits[here].bandwidth(nbytes) * (1 if nbytes >= MEMORY_FROM else threads / here)

    def known(self) -> dict:
        """What was measured, for the result."""
        return {"opening_seconds": {str(threads): list(found) for threads, found in self._opened.items()},
                "memory_bytes_per_second": {str(threads): one.bandwidth(1 << 40) for threads, one in self._limits.items()}}


def _counted(arguments, model: dict, strategy: str, threads: int, runtime: Path, machine: Machine) -> tuple[dict, str]:
    with process.Peer("peers/cllm/regions.py", 1, LD_PRELOAD=str(runtime)) as peer:
        peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, strategy=strategy,
                 threads=threads)
        events = fastest([peer.ask("regions") for _ in range(arguments.rounds)])
        kinds, work, digest = peer.ask("layers"), peer.ask("work"), peer.ask("digest")
        functions = functions_of(peer.ask("extension"))
    nbytes = [moved for _, moved in work] + [0] * (len(kinds) - len(work))
    marks = by_mark(events, threads, nbytes, machine)
    whole = total(marks.values())
    return {"strategy": strategy, "threads": threads, **whole,
            "by_layer": {kind: total(found for mark, found in marks.items() if kinds[mark] == kind)
                         for kind in dict.fromkeys(kinds)},
            "by_loop": by_loop(events, functions)}, digest


def _measured(arguments, model: dict, strategy: str, threads: int) -> dict:
    with process.Peer("peers/cllm/regions.py", threads) as peer:
        peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, strategy=strategy,
                 threads=threads)
        seconds = peer.ask("burst", repeats=2 * arguments.rounds)
    return {"min": min(seconds), "median": median(seconds), "max": max(seconds)}


def fastest(steps: list[list[list]]) -> list[list]:
    """The events of one step, each with the least seconds that it took in any.

    Raises
    ------
    ValueError
        When steps do not consist of the same events.
    """
    first = steps[0]
    if any([one[:BUSIEST] for one in step] != [one[:BUSIEST] for one in first] for step in steps):
        raise ValueError("steps of one executor open different regions")
    return [[*same[0][:BUSIEST], *(min(one[field] for one in same) for field in (BUSIEST, ALL, LONGEST))]
            for same in zip(*steps, strict=True)]


def by_mark(events: list[list], threads: int, nbytes: list[float], machine) -> dict[int, dict]:
    """Counts and seconds of each operation, by its mark; `nbytes` is what each declares to move."""
    found: dict[int, dict] = defaultdict(lambda: dict.fromkeys((*COUNTS, *SECONDS), 0))
    for event in events:
        one = found[event[MARK]]
        if event[THREADS] == 0:
            one["serial"] += event[BUSIEST]
        else:
            one["regions"] += 1
            one["barriers"] += event[BARRIERS]
            one["shares"] += event[SHARES]
            one["busiest"] += event[BUSIEST]
            one["all_threads"] += event[ALL]
    region, barrier = machine.opening(threads)
    for mark, one in found.items():
        if one["regions"] and nbytes[mark]:  # what one thread alone does took its time from memory already
            one["memory"] = nbytes[mark] / machine.bandwidth(threads, nbytes[mark])
        one["opening"] = one["regions"] * region + max(0, one["barriers"] - one["regions"]) * barrier
        one["predicted"] = one["serial"] + max(one["busiest"], one["memory"]) + one["opening"]
    return dict(found)


def total(parts) -> dict:
    """Counts and seconds of several together."""
    parts = list(parts)
    return {name: sum(one[name] for one in parts) for name in (*COUNTS, *SECONDS)}


def by_loop(events: list[list], functions: dict[int, str]) -> dict[str, dict]:
    """Of each parallel loop of the kernels: how often it ran, its shares, and how evenly the threads had to do."""
    found: dict[str, dict] = defaultdict(lambda: dict.fromkeys(("regions", "shares", "busiest", "all_threads", "longest"), 0))
    for event in events:
        if event[THREADS]:
            one = found[functions.get(event[FUNCTION], hex(event[FUNCTION]))]
            one["regions"] += 1
            one["shares"] += event[SHARES]
            one["busiest"] += event[BUSIEST]
            one["all_threads"] += event[ALL]
            one["longest"] = max(one["longest"], event[LONGEST])
    return dict(found)


def functions_of(extension: str) -> dict[int, str]:
    """Names of the kernels' parallel loops by where they are, as far as `nm` can tell."""
    try:
        lines = subprocess.run(["nm", extension], check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    found = {}
    for line in lines:
        name = re.fullmatch(r"([0-9a-f]+) \w \w*?_kernels_(\w+)\._omp_fn\.(\d+)", line)
        if name:
            found[int(name[1], 16)] = f"{name[2]} {name[3]}"
    return found


def lines_of(rows: list[dict]) -> list[str]:
    """A table for the terminal."""
    lines = [f"{'strategy':<10} {'threads':>7} {'regions':>7} {'barriers':>8} {'shares':>7} {'serial':>8} {'busiest':>8} "
             f"{'opening':>8} {'predicted':>9} {'measured':>9}  speed-up  evenness"]
    for row in rows:
        base = next(one for one in rows if one["strategy"] == row["strategy"])
        measured = "-" if row["measured"] is None else f"{row['measured']['min'] * 1e3:.2f}"
        even = row["all_threads"] / (row["threads"] * row["busiest"]) if row["busiest"] else 1.0
        lines.append(f"{row['strategy']:<10} {row['threads']:>7} {row['regions']:>7} {row['barriers']:>8} {row['shares']:>7} "
                     f"{row['serial'] * 1e3:8.2f} {row['busiest'] * 1e3:8.2f} {row['opening'] * 1e3:8.2f} "
                     f"{row['predicted'] * 1e3:9.2f} {measured:>9}  {base['predicted'] / row['predicted']:8.2f}  {even:8.2f}")
    return [*lines, "milliseconds; measured: the least of all steps"]


if __name__ == "__main__":
    sys.exit(options.run(main))
