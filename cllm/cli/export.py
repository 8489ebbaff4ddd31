"""``cllm export``: a trained model as a directory that the ecosystem reads."""

from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.loading import base_option, load_from, write_pretrained
from cllm.cli.options import json_option
from cllm.models.adapted import Adapted
from cllm.models.adapter_files import save_adapter
from cllm.weights.dtypes import NAMES


@click.command("export")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dtype", type=click.Choice(list(NAMES)), default=None,
              show_default="that of the files it began with, or float32")
@click.option("--best", is_flag=True, help="The snapshot of the best evaluation instead of the latest.")
@base_option
@json_option
def command(run, directory, dtype, best, base, json_path):
    """Write the model in RUN (a run, a snapshot, a file of ours, or a GGUF file) into DIRECTORY: config.json and safetensors
    as transformers saves them.

    Tokenizer, chat template, generation settings and licence come from where the run's weights came from; names, dtypes and
    shards are those of there. Of a model with adapters these alone are written, as PEFT does: cllm merge writes the whole.
    """
    loaded = load_from(run, best, base=base)
    if isinstance(loaded.model.architecture, Adapted):
        if dtype not in (None, "float32"):
            raise click.UsageError("--dtype is of whole models, which cllm merge writes: adapters are in float32")
        save_adapter(loaded.model, directory)
        click.echo(f"adapters of {loaded.source or 'a model of ours'} in {directory}; for the whole model: cllm merge")
        write_json(json_path, {"model": str(loaded.path), "directory": str(directory), "adapters": True})
        return
    saved = write_pretrained(loaded, loaded.model, directory, dtype)
    write_json(json_path, {"model": str(loaded.path), "directory": str(directory), "elements": saved.elements,
                           "changed": saved.changed, "lost": saved.lost})
