"""The command line: ``cllm``, also ``python -m cllm``. One command a file."""

import click

from cllm.cli import compare, gradcheck, info, memory, plan, sample, train
from cllm.errors import CllmError


class Commands(click.Group):
    """A group whose commands report errors of cllm and of files as one line and exit code 1, without a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (CllmError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main():
    """Train transformer language models on a CPU inside the memory you have.

    Every command takes --help and --json FILE, and exits with 0 only if all went well: 1 is a failure, 2 a command
    line that cannot be understood.
    """


for module in (compare, plan, train, sample, memory, gradcheck, info):
    main.add_command(module.command)
