"""``cllm sample``: text from a trained model."""

import sys
from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.options import family_option, json_option
from cllm.errors import SnapshotError
from cllm.models.architecture import Architecture
from cllm.models.choosing import family_named
from cllm.models.families import load
from cllm.models.model import Model
from cllm.sampling import stream_text
from cllm.snapshot import load_snapshot, read_state
from cllm.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from cllm.train.data import TOKENIZER, snapshot_tokenizer
from cllm.train.keeper import Keeper


@click.command("sample")
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", default="\n", show_default="a line break", help="Text to continue; - reads it from standard input.")
@click.option("--tokenizer", default=None, show_default="the model's",
              help="A path to tokenizer.json or GPT-2's files, for a model that has none beside it.")
@click.option("--tokens", "count", type=click.IntRange(0), default=300, help="How many to add.")
@click.option("--temperature", type=float, default=0.8, help="0 always takes the likeliest.")
@click.option("--top-k", type=int, default=None, help="Draw from so many of the likeliest only.")
@click.option("--top-p", type=float, default=None, help="Draw from the fewest that hold this probability together.")
@click.option("--seed", type=int, default=0, help="The same seed draws the same text.")
@click.option("--best", is_flag=True, help="Of a run: the snapshot of the best evaluation instead of the latest.")
@click.option("--threads", type=int, default=None, show_default="as cllm info says")
@family_option
@json_option
def command(directory, prompt, tokenizer, count, temperature, top_k, top_p, seed, best, threads, model, json_path):
    """Continue a text by the model in DIRECTORY: a run, one of its snapshots, or a file that model.save wrote.

    The text is written as it is made. A family of yours needs its class, --model: nothing that a file names is run.
    """
    loaded, found, path = _model_in(directory, best, None if model is None else family_named(model))
    tokenizer = found or ByteTokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")
    click.echo(prompt, nl=False)
    made: list[int] = []
    text = ""
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "num_threads": threads}
    for token, piece in stream_text(loaded, tokenizer, prompt.encode(errors="surrogateescape"), count, **choice):
        made.append(token)
        text += piece
        click.echo(piece, nl=False)
    click.echo()
    write_json(json_path, {"model": str(path), "prompt": prompt, "text": text, "tokens": made, "seed": seed})


def _model_in(path: Path, best: bool,
              family: type[Architecture] | None) -> tuple[Model, ByteTokenizer | BPETokenizer | None, Path]:
    """Model, its tokenizer where that is known, and where it was found."""
    if path.is_file():
        return load(path, family), _tokenizer_beside(path), path
    if not (path / "state.json").exists():
        keeper = Keeper(path)
        state = keeper.find()
        if state is None:
            raise SnapshotError(f"sample {path}", "must be a run or a snapshot", "a directory without either",
                                "Give the --out directory of cllm train.")
        path = keeper.latest
        if best:
            path = _best_of(keeper, state)
    model, state = load_snapshot(path, architecture=family)
    return model, snapshot_tokenizer(path, state), path


def _best_of(keeper: Keeper, state: dict) -> Path:
    """The snapshot of the best evaluation."""
    best = state["training"].get("best")
    path = None if best is None else keeper.latest.with_name(f"step-{best[0]:06d}")
    if path is None or not path.exists():
        raise SnapshotError(f"sample {keeper.out}, --best", "must have a snapshot of its best evaluation",
                            "none" if path is None else f"no {path.name}", "Leave --best out, or name a snapshot.")
    return path


def _tokenizer_beside(path: Path) -> ByteTokenizer | BPETokenizer | None:
    """The tokenizer in the directory of a model's file: that of a snapshot, or a tokenizer.json; None where there is none."""
    if (path.parent / "state.json").is_file():
        return snapshot_tokenizer(path.parent, read_state(path.parent))
    return BPETokenizer.load(path.parent) if (path.parent / TOKENIZER).is_file() else None
