"""The one clock of profiling, and what makes its figures worth reading.

A machine with shared cores drifts by tens of per cent within seconds. So nothing is timed alone: contestants sit in a
process each (two libraries in one process disturb each other: their idle threads spin, their buffers share caches),
take short bursts in turn with pauses between, and are compared round by round. A ratio is the median over rounds of
the paired ratios; where the two sides' intervals overlap, the ratio says so and never stands alone.

Threads are pinned to as many processors as they are, BLAS pools are capped, and every result is written with the
machine, the build, the commit and the load. This module needs the standard library alone, so that a contestant's
environment needs no more than the contestant.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import comb, prod
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, time

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "profiling" / "results"

# Between two bursts: long enough for the threads of the one before to fall asleep, and for a power budget to refill.
PAUSE_SECONDS = 0.035

# What OpenMP's idle threads do in every contestant: "default" spins for about a millisecond and then sleeps, as users
# have it, which the pause between bursts outlasts; "passive" sleeps at once, which short parallel regions pay for.
WAIT_POLICIES = ("default", "passive", "active")
wait_policy = "default"

# The same for OpenBLAS, whose threads otherwise spin for a tenth of a second after a burst and halve the next contestant:
# 2 to this power cycles, about a millisecond.
OPENBLAS_SPIN = "22"

# A build in the checkout serves when nothing is installed; what is installed comes first.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@dataclass(frozen=True, slots=True)
class Timing:
    """Bursts of one contestant: ``rounds[r]`` holds the seconds of each call in round r."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def by_round(self) -> tuple[float, ...]:
        """Median seconds of a call, round by round."""
        return tuple(median(one) for one in self.rounds)

    @property
    def min(self) -> float:
        """Fastest call of all; meaningful for calls under about 20 ms, which fit between two disturbances."""
        return min(min(one) for one in self.rounds)

    @property
    def median(self) -> float:
        """Median over rounds."""
        return median(self.by_round)

    @property
    def max(self) -> float:
        """Slowest call of all."""
        return max(max(one) for one in self.rounds)

    def to_dict(self) -> dict:
        """Plain data: the three figures and every call."""
        return {"min": self.min, "median": self.median, "max": self.max, "rounds": [list(one) for one in self.rounds]}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of `a` over time of `b`, paired by round; it can only be printed whole."""

    value: float
    low: float
    high: float
    intervals_overlap: bool

    def __str__(self) -> str:
        note = "intervals overlap; " if self.intervals_overlap else ""
        return f"{self.value:.2f} ({note}{self.low:.2f} to {self.high:.2f})"

    def to_dict(self) -> dict:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "intervals_overlap": self.intervals_overlap}


def ratio(a: Timing, b: Timing) -> Ratio:
    """Compare two contestants of the same rounds.

    Raises
    ------
    ValueError
        When the two were not measured in the same number of rounds, so that nothing pairs.
    """
    pairs = paired(a, b)
    overlap = max(a.by_round) >= min(b.by_round) and max(b.by_round) >= min(a.by_round)
    return Ratio(median(pairs), min(pairs), max(pairs), overlap)


def paired(a: Timing, b: Timing) -> list[float]:
    """Time of `a` over time of `b`, round by round; errors as `ratio`."""
    if len(a.rounds) != len(b.rounds):
        raise ValueError(f"{len(a.rounds)} rounds cannot be paired with {len(b.rounds)}")
    return [one / other for one, other in zip(a.by_round, b.by_round, strict=True)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The median, and an interval that holds the true median with that confidence at least.

    Its ends are order statistics: each value lies below the true median with probability one half, so the number of those
    that do is binomial, whatever the values' distribution (Conover, Practical Nonparametric Statistics, 3.2). With fewer
    than six values no interval is that sure, and the least and the most are its ends.
    """
    ordered, count = sorted(values), len(values)
    tail, below = 0.0, 0
    while (tail := tail + comb(count, below) / 2 ** count) <= (1 - confidence) / 2:
        below += 1
    low = max(below - 1, 0)
    return median(ordered), ordered[low], ordered[count - 1 - low]


def burst(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls in a row."""
    seconds = []
    for _ in range(repeats):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return seconds


def repeats_for(seconds: float, target: float = 0.02, most: int = 200) -> int:
    """How many calls of that length make a burst of about `target` seconds."""
    return max(1, min(most, round(target / max(seconds, 1e-9))))


def wall_clock() -> float:
    """Seconds of the clock that all processes of the machine share, for lining up their records."""
    return time()


def interleave(bursts: Mapping[str, Callable[[], Sequence[float]]], rounds: int,
               tell: Callable[[str], None] = lambda text: None) -> dict[str, Timing]:
    """Let the contestants take their bursts in turn; every second round goes backwards.

    Going back and forth gives each contestant every neighbour, so that none always follows the one that heats most.
    """
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in bursts}
    for number in range(rounds):
        names = list(bursts) if number % 2 == 0 else list(reversed(bursts))
        for name in names:
            tell(f"round {number + 1} of {rounds}: {name}")
            sleep(PAUSE_SECONDS)
            seen[name].append(tuple(bursts[name]()))
    return {name: Timing(tuple(one)) for name, one in seen.items()}


# Contestants in processes of their own -------------------------------------------------------------------------------

class PeerError(RuntimeError):
    """A contestant could not do what was asked; the others go on."""


class Peer:
    """A contestant in a fresh process: ``peer.ask("burst", repeats=3)`` calls its function of that name."""

    def __init__(self, script: str, threads: int, python: str = sys.executable):
        if shutil.which(python) is None:
            raise PeerError(f"there is no interpreter {python}")
        prefix = _pin_prefix(threads)
        self._process = subprocess.Popen([*prefix, python, str(ROOT / "profiling" / script)], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(threads))
        self.pid = self._process.pid

    def ask(self, what: str, **arguments):
        """Call one of the contestant's functions and wait for what it returns.

        Raises
        ------
        PeerError
            When it raised, or died.
        """
        try:
            self._process.stdin.write(json.dumps({"what": what, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"the process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the process and wait for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()


def serve(**functions: Callable) -> None:
    """Be a contestant: answer the requests of `Peer.ask` until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints by mistake must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": functions[request["what"]](**request["arguments"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")


def serve_kernels(cases: Callable[..., dict]) -> None:
    """Be a contestant of kernels: `cases(threads)` maps a kernel's name to a function of the shape, which returns a
    call and the list of arrays that hold its results. A kernel that it does not have is prepared as None."""
    made: dict[str, Callable[[], object]] = {}

    def prepare(kernel: str, shape: list[int], settings: dict) -> dict | None:
        made.clear()  # the arrays of the case before
        known = cases(**settings)
        if kernel not in known:
            return None
        call, results = known[kernel](*shape)
        call()
        # One number that tells a wrong result: the mean magnitude, over all that the first call wrote.
        digest = sum(float(abs(one).sum()) for one in results) / sum(prod(one.shape) for one in results)
        made["call"] = call
        return {"digest": digest, "seconds": burst(call, 1)[0]}

    serve(prepare=prepare, burst=lambda repeats: burst(made["call"], repeats))


def environment(threads: int) -> dict[str, str]:
    """Environment of a contestant: every pool capped at `threads`, each OpenMP thread on a processor of its own, idle
    ones as `wait_policy` says, and BLAS choosing its kernels for itself.

    Binding matters where idle threads sleep: the system likes to wake them on the processor of the one that wakes.
    """
    tuned = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in tuned}
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
             "NUMEXPR_NUM_THREADS")
    waiting = {} if wait_policy == "default" else {"OMP_WAIT_POLICY": wait_policy}
    return {**kept, **dict.fromkeys(pools, str(threads)), **waiting, "OPENBLAS_THREAD_TIMEOUT": OPENBLAS_SPIN,
            "OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE", "OMP_PROC_BIND": "close", "OMP_PLACES": "threads"}


def processors(threads: int) -> set[int] | None:
    """The last `threads` processors this process may use (the first serve most interrupts); None if not known."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return set(sorted(os.sched_getaffinity(0))[-threads:])


def _pin_prefix(threads: int) -> list[str]:
    """A command that pins itself, then becomes the contestant: affinity must stand before any pool is made."""
    chosen = processors(threads)
    if chosen is None:
        return []
    pin = f"import os, sys; os.sched_setaffinity(0, {sorted(chosen)}); os.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-S", "-c", pin]


# What stands beside every figure --------------------------------------------------------------------------------------

def surroundings(threads: int) -> dict:
    """Machine, build, commit, load and the pools' limits, as plain data."""
    from cllm.comparison.machine import describe_machine

    return {
        "date": date.today().isoformat(), "machine": describe_machine(), "commit": commit(),
        "threads": threads, "processors": sorted(processors(threads) or ()), "wait_policy": wait_policy,
    }


def commit() -> str | None:
    """The checkout's commit, with a plus sign when code differs from it; None outside a repository."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".",
                                                                      ":!profiling/results", ":!*.md") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def result_path(script: str, suffix: str) -> Path:
    """Where a script's result belongs: by script, date and kind of machine."""
    from cllm.comparison.machine import cpu_name

    machine = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {platform.machine()}".lower()).strip("-")
    return RESULTS / f"{script}-{date.today().isoformat()}-{machine}{suffix}"


def write_result(script: str, threads: int, data: dict, path: Path | None = None) -> Path:
    """Write `data` and its surroundings as JSON; returns where."""
    path = result_path(script, ".json") if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text({"script": script, **surroundings(threads), **data}), encoding="utf-8")
    return path


def json_text(data: dict) -> str:
    """Indented JSON with every list of plain values on one line: thousands of samples must not take thousands of lines."""
    def on_one_line(found: re.Match) -> str:
        return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"  # a string of JSON holds no line break

    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", on_one_line, json.dumps(data, indent=1, ensure_ascii=False)) + "\n"


def say(text: str) -> None:
    """Progress, on standard error, one line that overwrites itself on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
