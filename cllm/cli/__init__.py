"""The command line: ``cllm``, also ``python -m cllm``. One command a file."""

import errno
import os
import sys
from contextlib import suppress

import click

from cllm._build_info import VERSION
from cllm.cli import compare, export, finetune, gradcheck, info, lab, memory, merge, perplexity, plan, sample, train
from cllm.errors import CllmError


class Commands(click.Group):
    """A group whose commands report errors of cllm and of files as one line and exit code 1, without a traceback."""

    def main(self, *args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # what a terminal cannot show ends no command
        try:
            return super().main(*args, **kwargs)
        finally:
            for stream in (sys.stdout, sys.stderr):
                _settle(stream)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # who read has read enough: click ends quietly
                raise
            raise click.ClickException(str(error)) from error
        except CllmError as error:
            raise click.ClickException(str(error)) from error


def _settle(stream) -> None:
    """Write out what is left, or drop it where nobody takes it, so that the interpreter does not complain on its way out."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(VERSION, "-V", "--version", message="cllm %(version)s")
def main():
    """Train transformer language models on a CPU inside the memory you have.

    Every command takes --help and --json FILE (- is standard output), and exits with 0 only if all went well: 1 is a
    failure, 2 a command line that cannot be understood.
    """


for module in (compare, lab, plan, train, finetune, sample, perplexity, export, merge, memory, gradcheck, info):
    main.add_command(module.command)
