"""``cllm info``: what runs here."""

import click

from cllm.about import versions
from cllm.cli.files import write_json
from cllm.cli.options import json_option


@click.command("info")
@json_option
def command(json_path):
    """Show versions, build flags, threads and the CPU's features.

    The lines to put into a report of a problem.
    """
    facts = versions()
    write_json(json_path, facts)
    width = max(map(len, facts))
    for name, value in facts.items():
        text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        click.echo(f"{name:<{width}}  {text}")
