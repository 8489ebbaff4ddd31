"""Command-line options that the profiling scripts share, and the contestants they name."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import harness
import words
from peers import process

from jobs import models


def parser(description: str, strategies: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options of the scripts: the model, the batch, the strategies (none for those without), rounds and threads."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    models.add_options(made)
    made.add_argument("--batch-size", type=positive, default=8, help="sequences in a batch")
    made.add_argument("--seq-len", type=positive, default=256, help="time steps in a sequence; not used by a model without")
    if strategies is not None:
        made.add_argument("--strategies", default=strategies, metavar="A,B,...", help="strategies of cllm, by name")
    made.add_argument("--rounds", type=positive, default=rounds, help="rounds of bursts")
    add_common(made)
    return made


def add_common(made: argparse.ArgumentParser) -> None:
    """Options ``--threads``, ``--wait-policy`` and ``--out``; read them with `parsed`."""
    from cllm.threads.counts import default_threads

    made.add_argument("--threads", type=positive, default=default_threads(), help="threads, and processors to pin to")
    made.add_argument("--wait-policy", choices=process.WAIT_POLICIES, default=process.wait_policy,
                      help="what OpenMP's idle threads do")
    made.add_argument("--out", type=Path, default=None, metavar="FILE.json",
                      help="where to write; the picture goes beside it (default: profiling/results, by script, date "
                           "and machine)")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above zero, got {text!r}")
    return int(text)


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what holds for all contestants handed on to them."""
    arguments = made.parse_args()
    process.wait_policy = arguments.wait_policy
    return arguments


def run(main: Callable[[], int]) -> int:
    """A script's `main`; what the user asked for and cannot be had is one line on standard error, and exit code 2."""
    from cllm.errors import CllmError

    try:
        return main()
    except (CllmError, process.PeerError) as error:
        print(" ".join(f"{Path(sys.argv[0]).name}: {error}".split()), file=sys.stderr)
        return 2


def strategies_of(arguments: argparse.Namespace) -> list[str]:
    """The names in ``--strategies``, in order, each once."""
    names = list(dict.fromkeys(name for name in arguments.strategies.split(",") if name))
    if not names:
        raise SystemExit("--strategies: name at least one, such as cache")
    return names


def job_of(arguments: argparse.Namespace, model: dict) -> dict:
    """What is measured, for the result file."""
    return {**models.recorded(model), "batch_size": arguments.batch_size, "seq_len": arguments.seq_len,
            "rounds": arguments.rounds}


def title(arguments: argparse.Namespace, model: dict) -> str:
    """What is measured, in one line."""
    return words.title({**job_of(arguments, model), "threads": arguments.threads})


@contextmanager
def calibrated(arguments: argparse.Namespace, model: dict):
    """This machine calibrated for the workload alone: in a process like those that are measured, into a folder of its own,
    which contestants that are made inside inherit; what users have stored is neither read nor changed.

    Yields
    ------
    spent : float
        Seconds that it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLLM_CACHE_DIR"] = folder
        with process.Peer("peers/cllm/steps.py", arguments.threads) as peer:
            harness.say("calibrating")
            spent = peer.ask("calibrate", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                             threads=arguments.threads)
        yield spent


@contextmanager
def trainings(arguments: argparse.Namespace, model: dict, names: Iterable[str], script: str = "peers/cllm/steps.py"):
    """A contestant for each strategy, a process of that script, made and warmed up; those that fail are named with their
    reason.

    Yields
    -------
    made : dict
        By strategy: the peer and what its `make` returned.
    failed : dict
        By strategy: why there is none.
    """
    made: dict[str, tuple[process.Peer, dict]] = {}
    failed: dict[str, str] = {}
    try:
        for name in names:
            harness.say(f"making {name}")
            peer = process.Peer(script, arguments.threads)
            try:
                facts = peer.ask("make", model=model, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
                                 strategy=name, threads=arguments.threads)
                made[name] = (peer, facts)
            except process.PeerError as error:
                failed[name] = str(error)
                peer.close()
        yield made, failed
    finally:
        for peer, _facts in made.values():
            peer.close()


def bursts(peer: process.Peer):
    """Bursts of whole steps of a contestant; one step now shows how many make a burst."""
    repeats = harness.repeats_for(peer.ask("burst", repeats=1)[0])
    return lambda: peer.ask("burst", repeats=repeats)
