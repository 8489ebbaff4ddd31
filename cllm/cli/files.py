"""Files that commands read and write: what cannot be is refused before the work, ``-`` is standard output."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click

from cllm.comparison import files
from cllm.errors import DataError
from cllm.files import is_stream

STANDARD_OUTPUT = Path("-")
REAL_STDOUT = "cllm.stdout"  # where a command's context keeps the stream that JSON goes to


def writable(_ctx, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file whose directory is missing before the work, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {str(path.parent)!r}", param=param)
    return path


def json_place(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """As `writable`; ``-`` is standard output, which then carries the JSON alone: what is for people goes to standard error."""
    if path == STANDARD_OUTPUT:
        ctx.meta[REAL_STDOUT] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
        return path
    return writable(ctx, param, path)


def write_json(path: Path | None, data) -> None:
    """Write `data` to `path`, whole or not at all; nothing when `path` is None."""
    if path == STANDARD_OUTPUT:
        click.echo(files.json_text(data), nl=False, file=click.get_current_context().meta[REAL_STDOUT])
    elif path is not None:
        files.write_json(path, data)


@contextmanager
def readable_twice(path: Path | None) -> Iterator[Path | None]:
    """The path itself, or of what can be read but once, such as a pipe, a file with its contents for as long as is needed."""
    if path is None or not is_stream(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="cllm-text-") as copy:
        try:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, copy)
            copy.flush()
        except OSError as error:
            raise DataError(f"text {path}", "must be something that can be read", error.strerror or str(error),
                            "Put it into a file.") from error
        yield Path(copy.name)
