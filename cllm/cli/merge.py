"""``cllm merge``: a base and its adapters as one model, in a directory that the ecosystem reads."""

from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.loading import base_option, load_from, write_pretrained
from cllm.cli.options import json_option
from cllm.errors import ConfigError
from cllm.models.adapted import Adapted
from cllm.models.adapters import merge_adapter
from cllm.weights.dtypes import NAMES


@click.command("merge")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dtype", type=click.Choice(list(NAMES)), default=None, show_default="that of the base's files, or float32")
@click.option("--best", is_flag=True, help="The snapshot of the best evaluation instead of the latest.")
@base_option
@json_option
def command(run, directory, dtype, best, base, json_path):
    """Add the adapters in RUN (a run of cllm finetune --lora, or one of its snapshots) to the weights that they are of, and
    write the model into DIRECTORY as transformers reads it: config.json, safetensors in the base's dtype, and what stood beside
    the base.
    """
    loaded = load_from(run, best, base=base)
    if not isinstance(loaded.model.architecture, Adapted):
        raise ConfigError(f"merge {loaded.path}", "must be a model with adapters", "one without", "Use cllm export.")
    saved = write_pretrained(loaded, merge_adapter(loaded.model), directory, dtype)
    write_json(json_path, {"model": str(loaded.path), "directory": str(directory), "elements": saved.elements,
                           "changed": saved.changed, "lost": saved.lost})
