"""How long idle threads should spin before they sleep: whole steps under several limits, in turn.

    python profiling/waiting.py                                                              # a tiny model
    python profiling/waiting.py --preset small --batch-size 8 --seq-len 256 --rounds 15
    python profiling/waiting.py --set n_layers=4 --set d_model=128 --set d_ff=512 --seq-len 64 --beside 2

Each limit is a process of its own with GOMP_SPINCOUNT set to it; `cllm` is what cllm chooses itself, `runtime` the 300,000
rounds of GNU's runtime. On a quiet machine the question is what a limit loses; with ``--beside N``, N processes that do
nothing but compute take part, and the question is what it saves. Ratios are against `runtime`, paired round by round. Threads
are not bound to processors, as users have them.
"""

import subprocess
import sys
from contextlib import ExitStack

import harness
from jobs import models, options, record
from peers import process

RUNTIME = 300_000  # rounds, where nobody says otherwise
BUSY = "while True: pass"
UNBOUND = {"OMP_PROC_BIND": "FALSE"}


def main() -> int:
    """Measure, write JSON and print a table."""
    parser = options.parser(__doc__.splitlines()[0], None, rounds=41)
    parser.add_argument("--limits", type=_limits, default="10000,3000,1000,300,0", metavar="A,B,...", help="rounds of spinning")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="busy processes on the same processors")
    parser.set_defaults(preset="tiny", batch_size=4, seq_len=32)
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    asked = {"runtime": {"GOMP_SPINCOUNT": str(RUNTIME)}, "cllm": {},
             **{str(limit): {"GOMP_SPINCOUNT": str(limit)} for limit in arguments.limits}}
    with ExitStack() as stack:
        bursts = {}
        for name, variables in asked.items():
            harness.say(f"making {name}")
            peer = stack.enter_context(process.Peer("peers/cllm/steps.py", arguments.threads, **UNBOUND, **variables))
            peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len, strategy="cache",
                     threads=arguments.threads)
            bursts[name] = options.bursts(peer)
        for _ in range(arguments.beside):
            stack.enter_context(_busy(arguments.threads))
        timings = harness.interleave(bursts, arguments.rounds, harness.say)
    harness.say("")
    rows = []
    for name, timing in timings.items():
        ratio = harness.median_interval(harness.paired(timing, timings["runtime"]))
        rows.append({"name": name, "ratio": list(ratio), "seconds": {
            "min": timing.min, "median": timing.median, "max": timing.max, "by_round": list(timing.by_round)}})
    path = record.write_result("waiting", arguments.threads, {**options.job_of(arguments, model), "beside": arguments.beside,
                                                              "rows": rows}, arguments.out)
    print(f"{options.title(arguments, model)}; {arguments.beside} busy processes beside it")
    for row in rows:
        middle, low, high = row["ratio"]
        seconds = row["seconds"]
        print(f"{row['name']:>8}  min {seconds['min'] * 1e3:9.3f}  median {seconds['median'] * 1e3:9.3f}  "
              f"max {seconds['max'] * 1e3:9.3f} ms  {middle:.3f} ({low:.3f} to {high:.3f}) of runtime")
    print(f"\nwritten: {path}")
    return 0


def _limits(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


class _busy:
    """A process that computes until it is left."""

    def __init__(self, threads: int):
        self._process = subprocess.Popen([*process._pin_prefix(threads), sys.executable, "-S", "-c", BUSY])

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    sys.exit(options.run(main))
