"""Text to train on: the embedded novel, a user's file, or all files of a directory."""

import gzip
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.resources import files
from os import PathLike
from pathlib import Path

from cllm.checks import shown
from cllm.errors import DataError

EMBEDDED = "texts/pride_and_prejudice.txt.gz"

PIECE = 1 << 20  # bytes read at a time
LONGEST_LINE = 1 << 24  # a line longer than this is cut inside

JSON_LINES = (".jsonl", ".ndjson")

RUN_MARK = ".cllm.lock"  # a directory with such a file belongs to a run
RUN_FILES = ("tokens.bin", "metrics.jsonl", "step-*", "damaged-*")  # what a run writes beside it


def embedded_text() -> bytes:
    """The text that cllm brings along, "Pride and Prejudice": 684,769 bytes of ASCII."""
    return gzip.decompress(files("cllm").joinpath(EMBEDDED).read_bytes())


def read_text(path: str | PathLike) -> bytes:
    """All bytes of a file.

    Raises
    ------
    DataError
        If the file cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not text:
        raise DataError(f"text {path}", "must not be empty", "0 bytes", "Give a file with text in it.")
    return text


def text_files(path: str | PathLike) -> tuple[Path, ...]:
    """The file itself, or all files below a directory in the order of their names; hidden ones are left out, and what
    runs write: directories that belong to one, and a run's own files where it is in the directory itself.

    Raises
    ------
    DataError
        If there is nothing to read.
    """
    root = Path(path)
    try:
        if not root.is_dir():
            return (root,)
        found = sorted(_files_below(root))
    except (OSError, ValueError) as error:  # no system takes such a name
        raise _unreadable(path, error) from error
    if not found:
        raise DataError(f"text {path}", "must hold at least one file", "an empty directory",
                        "Put text files there, or give another path.")
    return tuple(found)


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if RUN_MARK in names:
            if here != root:
                folders.clear()
                continue
            names, folders[:] = ([n for n in some if not any(fnmatchcase(n, own) for own in RUN_FILES)]
                                 for some in (names, folders))
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (here / name for name in names if not name.startswith(".") and (here / name).is_file())


def text_pieces(path: str | PathLike | None) -> Iterator[tuple[str, int, bytes]]:
    """A text in pieces of about a mebibyte, each ending after a line where it can: (file, offset in it, bytes).

    Parameters
    ----------
    path : str, PathLike or None
        A file, or a directory whose files follow one another in the order of their names; None is the embedded text.
        Of a file of JSON lines (``.jsonl``, ``.ndjson``) the text is what each object has under "text", a line break
        after each.

    Raises
    ------
    DataError
        If a file cannot be read, or all are empty.
    """
    if path is None:
        yield "embedded text", 0, embedded_text()
        return
    empty = True
    for name in text_files(path):
        for offset, piece in (_json_pieces if name.suffix.lower() in JSON_LINES else _pieces)(name):
            empty = False
            yield str(name), offset, piece
    if empty:
        raise DataError(f"text {path}", "must not be empty", "0 bytes", "Give a file with text in it.")


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            offset, rest = 0, b""
            while more := file.read(PIECE):
                rest += more
                cut = rest.rfind(b"\n") + 1 or (_last_character(rest) if len(rest) > LONGEST_LINE else 0)
                if cut:
                    yield offset, rest[:cut]
                    offset, rest = offset + cut, rest[cut:]
            if rest:
                yield offset, rest
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _json_pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            offset, start, texts, size = 0, 0, [], 0
            for number, line in enumerate(file, 1):
                offset += len(line)
                if line.strip():
                    texts.append(_text_of(path, number, line))
                    size += len(texts[-1])
                if size >= PIECE:
                    yield start, b"".join(texts)
                    start, texts, size = offset, [], 0
            if texts:
                yield start, b"".join(texts)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _text_of(path: Path, number: int, line: bytes) -> bytes:
    """The text of one object, a line break after it."""
    try:
        text = json.loads(line)["text"]
        if isinstance(text, str):
            return text.encode() + b"\n"
        got = f"a {type(text).__name__} under 'text'"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        got = f"no 'text' ({type(error).__name__}: {error})"
    raise DataError(f"text {path}, line {number}", "must be a JSON object with a string under 'text'", got,
                    "Mend the line, or give the file another ending to train on it as it is.")


def _last_character(piece: bytes) -> int:
    """Where the last UTF-8 character begins, so that a cut there parts none."""
    back = next((i for i in range(1, min(4, len(piece)) + 1) if piece[-i] & 0xC0 != 0x80), 1)
    return len(piece) - back


def _unreadable(path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"text {path}" if len(str(path)) < 500 else f"text {shown(str(path))}",
                     "must be a file that can be read", reason[0].lower() + reason[1:],
                     "Give the path of a text file, or no path for the embedded text; a text itself goes through a "
                     "tokenizer first: cllm.ByteTokenizer().encode(text).")
