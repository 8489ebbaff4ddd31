"""``cllm sample``: text from a trained model."""

import os
from pathlib import Path

import click

from cllm.cli.options import family_option, json_option
from cllm.comparison.files import write_json
from cllm.errors import SnapshotError
from cllm.models.architecture import Architecture
from cllm.models.choosing import family_named
from cllm.models.families import load
from cllm.models.model import Model
from cllm.sampling import stream
from cllm.snapshot import load_snapshot
from cllm.tokenizer import ByteTokenizer
from cllm.train.data import snapshot_tokenizer
from cllm.train.keeper import Keeper


@click.command("sample")
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", default="\n", show_default="a line break", help="Text to continue.")
@click.option("--tokens", "count", type=click.IntRange(0), default=300, help="How many to add.")
@click.option("--temperature", type=float, default=0.8, help="0 always takes the likeliest.")
@click.option("--top-k", type=int, default=None, help="Draw from so many of the likeliest only.")
@click.option("--top-p", type=float, default=None, help="Draw from the fewest that hold this probability together.")
@click.option("--seed", type=int, default=0, help="The same seed draws the same text.")
@click.option("--best", is_flag=True, help="Of a run: the snapshot of the best evaluation instead of the latest.")
@click.option("--threads", type=int, default=None, show_default="all cores")
@family_option
@json_option
def command(directory, prompt, count, temperature, top_k, top_p, seed, best, threads, model, json_path):
    """Continue a text by the model in DIRECTORY: a run, one of its snapshots, or a file that model.save wrote.

    The text is written as it is made. A family of yours needs its class, --model: nothing that a file names is run.
    """
    loaded, tokenizer, path = _model_in(directory, best, None if model is None else family_named(model))
    if tokenizer is None:
        tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(os.fsencode(prompt) or b"\n")
    click.echo(prompt, nl=False)
    made: list[int] = []
    shown = ""
    for token in stream(loaded, tokens, count, temperature, top_k, top_p, seed, threads):
        made.append(token)
        text = tokenizer.decode(made)
        if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
            click.echo(text[len(shown):], nl=False)
            shown = text
    text = tokenizer.decode(made)
    click.echo(text[len(shown):])
    write_json(json_path, {"model": str(path), "prompt": prompt, "text": text, "tokens": made, "seed": seed})


def _model_in(path: Path, best: bool, family: type[Architecture] | None) -> tuple[Model, object, Path]:
    """Model, its tokenizer where that is known, and where it was found."""
    if path.is_file():
        return load(path, family), None, path
    if not (path / "state.json").exists():
        keeper = Keeper(path)
        state = keeper.find()
        if state is None:
            raise SnapshotError(f"sample {path}", "must be a run or a snapshot", "a directory without either",
                                "Give the --out directory of cllm train.")
        path = keeper.latest
        if best and state["training"].get("best"):
            path = path.with_name(f"step-{state['training']['best'][0]:06d}")
    model, state = load_snapshot(path, architecture=family)
    return model, snapshot_tokenizer(path, state), path
