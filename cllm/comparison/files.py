"""Files that reports go to: whole or not at all, and what cannot be written says so."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cllm.errors import DataError
from cllm.files import is_stream, whole

# A line break cannot stand inside a JSON string, so these breaks are those of the indentation.
_ITEM = r'(?:"(?:[^"\\\n]|\\.)*"|[-+.\w]+)'
_PLAIN_LIST = re.compile(rf"\[\n\s*{_ITEM}(?:,\n\s*{_ITEM})*\n\s*\]")


def write_json(path: Path, data) -> None:
    """Write `data` to `path`, whole or not at all; errors as `place_for`."""
    write_whole(path, json_text(data))


def json_text(data) -> str:
    """Indented JSON, plain lists on one line."""
    return _plain_lists_on_one_line(json.dumps(data, indent=2)) + "\n"


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


def _plain_lists_on_one_line(text: str) -> str:
    """Indented JSON with every list of numbers and strings on one line: timelines have thousands of them."""
    return _PLAIN_LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[", 1).removesuffix(" ]") + "]", text)
