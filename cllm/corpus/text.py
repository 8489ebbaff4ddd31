"""Text to train on: the embedded novel, a user's file, or all files of a directory."""

import gzip
from collections.abc import Iterator
from importlib.resources import files
from os import PathLike
from pathlib import Path

from cllm.errors import DataError

EMBEDDED = "texts/pride_and_prejudice.txt.gz"

PIECE = 1 << 20  # bytes read at a time
LONGEST_LINE = 1 << 24  # a line longer than this is cut inside


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
    """The file itself, or all files below a directory in the order of their names; hidden ones are left out.

    Raises
    ------
    DataError
        If there is nothing to read.
    """
    root = Path(path)
    if not root.is_dir():
        return (root,)
    found = sorted(p for p in root.rglob("*")
                   if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts))
    if not found:
        raise DataError(f"text {path}", "must hold at least one file", "an empty directory",
                        "Put text files there, or give another path.")
    return tuple(found)


def text_pieces(path: str | PathLike | None) -> Iterator[tuple[str, int, bytes]]:
    """A text in pieces of about a mebibyte, each ending after a line where it can: (file, offset in it, bytes).

    Parameters
    ----------
    path : str, PathLike or None
        A file, or a directory whose files follow one another in the order of their names; None is the embedded text.

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
        for offset, piece in _pieces(name):
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


def _last_character(piece: bytes) -> int:
    """Where the last UTF-8 character begins, so that a cut there parts none."""
    back = next((i for i in range(1, min(4, len(piece)) + 1) if piece[-i] & 0xC0 != 0x80), 1)
    return len(piece) - back


def _unreadable(path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"text {path}", "must be a file that can be read", reason[0].lower() + reason[1:],
                     "Give the path of a text file, or no path for the embedded text.")
