"""Command-line options that the profiling scripts share, and the contestants they name."""

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import harness
import words
from peers import process


def parser(description: str, strategies: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options of the scripts: the model, the batch, the strategies (none for those without), rounds and threads."""
    from cllm.models.gpt import PRESETS, ModelConfig

    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--preset", choices=sorted(PRESETS), default="small", help="sizes to start from")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                      help="change one setting; names: " + ", ".join(field.name for field in fields(ModelConfig)))
    made.add_argument("--batch-size", type=positive, default=8, help="sequences in a batch")
    made.add_argument("--seq-len", type=positive, default=256, help="tokens in a sequence")
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


def config_of(arguments: argparse.Namespace, sizes: dict | None = None) -> dict:
    """The model's configuration as plain data, with max_seq_len raised to --seq-len; `sizes` are the script's own, where
    no preset was asked for."""
    from cllm.models.gpt import ModelConfig

    config = ModelConfig.preset(arguments.preset or "tiny").to_dict()
    if not arguments.preset:
        config |= sizes or {}
    config["max_seq_len"] = max(config["max_seq_len"], arguments.seq_len)
    for setting in arguments.settings:
        name, _, value = setting.partition("=")
        if name not in config:
            raise SystemExit(f"--set {setting}: the settings are {', '.join(config)}")
        try:
            config[name] = _like(config[name], value)
        except ValueError:
            raise SystemExit(f"--set {setting}: must be of type {type(config[name]).__name__}, like {config[name]}") from None
    return ModelConfig(**config).to_dict()


def _like(example, value: str):
    if isinstance(example, bool):
        return value.lower() in ("1", "true", "yes", "on")
    if isinstance(example, (tuple, list)):
        return tuple(value.split("+"))
    return type(example)(value)


def strategies_of(arguments: argparse.Namespace) -> list[str]:
    """The names in ``--strategies``, in order, each once."""
    names = list(dict.fromkeys(name for name in arguments.strategies.split(",") if name))
    if not names:
        raise SystemExit("--strategies: name at least one, such as cache")
    return names


def job_of(arguments: argparse.Namespace, config: dict) -> dict:
    """What is measured, for the result file."""
    return {"config": config, "batch_size": arguments.batch_size, "seq_len": arguments.seq_len,
            "rounds": arguments.rounds}


def title(arguments: argparse.Namespace, config: dict) -> str:
    """What is measured, in one line."""
    return words.title({**job_of(arguments, config), "threads": arguments.threads})


@contextmanager
def trainings(arguments: argparse.Namespace, config: dict, names: Iterable[str], script: str = "peers/cllm/steps.py"):
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
                facts = peer.ask("make", config=config, batch_size=arguments.batch_size, seq_len=arguments.seq_len,
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
