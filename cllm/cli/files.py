"""Files that commands write: whole or not at all, and what cannot be written says so."""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import click

from cllm.errors import DataError
from cllm.files import is_stream, whole

# A line break cannot stand inside a JSON string, so these breaks are those of the indentation.
_ITEM = r'(?:"(?:[^"\\\n]|\\.)*"|[-+.\w]+)'
_PLAIN_LIST = re.compile(rf"\[\n\s*{_ITEM}(?:,\n\s*{_ITEM})*\n\s*\]")


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
    if path is None:
        return
    text = _plain_lists_on_one_line(json.dumps(data, indent=2)) + "\n"
    if path == STANDARD_OUTPUT:
        click.echo(text, nl=False, file=click.get_current_context().meta[REAL_STDOUT])
    else:
        write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; errors as `place_for`."""
    with place_for(path) as place:
        place.write_text(text, encoding="utf-8")


@contextmanager
def place_for(path: Path) -> Iterator[Path]:
    """A place to write a file at, as `cllm.files.whole` has it; what is no file, such as a pipe, is written as it is.

    Raises
    ------
    DataError
        When it cannot be written.
    """
    try:
        with nullcontext(path) if is_stream(path) else whole(path) as place:
            yield place
    except (OSError, ValueError) as error:
        raise DataError(str(path), "must take what is written there", getattr(error, "strerror", None) or str(error),
                        "Make room, or name another file.") from error


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


def _plain_lists_on_one_line(text: str) -> str:
    """Indented JSON with every list of numbers and strings on one line: timelines have thousands of them."""
    return _PLAIN_LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[", 1).removesuffix(" ]") + "]", text)
