"""Files that reports go to: whole or not at all, and what cannot be written says so."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cllm.errors import DataError

# A line break cannot stand inside a JSON string, so these breaks are those of the indentation.
_ITEM = r'(?:"(?:[^"\\\n]|\\.)*"|[-+.\w]+)'
_PLAIN_LIST = re.compile(rf"\[\n\s*{_ITEM}(?:,\n\s*{_ITEM})*\n\s*\]")


def write_json(path: Path | None, data) -> None:
    """Write `data` to `path`, whole or not at all; nothing when `path` is None."""
    if path is None:
        return
    write_whole(path, _plain_lists_on_one_line(json.dumps(data, indent=2)) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; errors as `whole`."""
    with whole(path) as place:
        place.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file at. It becomes `path` when all went well; else nothing is left of it, and what was at `path`
    stays. What is no file, such as a pipe, is written as it is.

    Raises
    ------
    DataError
        When it cannot be written.
    """
    final = path if is_stream(path) else path.resolve()  # through links
    partial = final if is_stream(path) else final.with_name(f".{final.stem}.partial{final.suffix}")
    try:
        yield partial
        if partial != final:
            partial.replace(final)
    except OSError as error:
        raise DataError(str(path), "must take what is written there", error.strerror or str(error),
                        "Make room, or name another file.") from error
    finally:
        if partial != final:
            partial.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether what is written there cannot be taken back: a pipe, a terminal, /dev/null."""
    return path.exists() and not path.is_file()


def _plain_lists_on_one_line(text: str) -> str:
    """Indented JSON with every list of numbers and strings on one line: timelines have thousands of them."""
    return _PLAIN_LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[", 1).removesuffix(" ]") + "]", text)
