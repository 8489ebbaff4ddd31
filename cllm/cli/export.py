"""``cllm export``: a trained model as a directory that the ecosystem reads."""

from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.loading import load_from
from cllm.cli.options import json_option
from cllm.tokenizer import BPETokenizer
from cllm.train.data import TOKENIZER
from cllm.weights.dtypes import NAMES


@click.command("export")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dtype", type=click.Choice(list(NAMES)), default=None,
              show_default="that of the files it began with, or float32")
@click.option("--best", is_flag=True, help="The snapshot of the best evaluation instead of the latest.")
@json_option
def command(run, directory, dtype, best, json_path):
    """Write the model in RUN (a run, a snapshot, a file of ours, or a GGUF file) into DIRECTORY: config.json and safetensors
    as transformers saves them.

    Tokenizer, chat template, generation settings and licence come from where the run's weights came from; names, dtypes and
    shards are those of there.
    """
    loaded = load_from(run, best)
    saved = loaded.model.save_pretrained(directory, dtype)
    if isinstance(loaded.tokenizer, BPETokenizer) and not (directory / TOKENIZER).exists():
        loaded.tokenizer.save(directory / TOKENIZER)
    click.echo(str(saved))
    if loaded.source is not None and not loaded.source.exists():
        click.echo(f"Note: {loaded.source} has gone: templates, generation settings and licence are not there", err=True)
    write_json(json_path, {"model": str(loaded.path), "directory": str(directory), "elements": saved.elements,
                           "changed": saved.changed, "lost": saved.lost})
