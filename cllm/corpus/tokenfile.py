"""Tokens on disk, read through a memory map: 4096 bytes of header, then the tokens in little endian.

    bytes 0 to 7     b"cllmtok1"
    up to byte 4096  JSON, padded with spaces: dtype, count, vocab_size, sha256 of the tokens, tokenizer, and "source":
                     bytes and sha256 of the text that they were made from
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from cllm.arrays import narrowed
from cllm.corpus.text import text_pieces
from cllm.errors import DataError, DtypeError
from cllm.files import CHUNK, whole

MAGIC = b"cllmtok1"
HEADER = 4096
DTYPES = {"uint8": "<u1", "uint16": "<u2", "int32": "<i4"}
AGAIN = "Move it away, and the text is tokenised again."


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_sha256(value) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


# What each field of a header has to be.
FIELDS = {"dtype": lambda value: isinstance(value, str) and value in DTYPES, "count": _is_count, "vocab_size": _is_count,
          "sha256": _is_sha256, "tokenizer": lambda value: isinstance(value, str), "source bytes": _is_count,
          "source sha256": _is_sha256}


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """Tokens and what is known of them.

    Attributes
    ----------
    tokens : memory map of shape (count,)
    vocab_size : int
    sha256 : str
        Of the tokens.
    tokenizer : str
        Name of the tokenizer that made them.
    source : dict
        "bytes" and "sha256" of the text.
    """

    tokens: np.ndarray
    vocab_size: int
    sha256: str
    tokenizer: str
    source: dict


def text_fingerprint(path: str | PathLike | None) -> dict:
    """Bytes and sha256 of a text; by these a change is noticed."""
    digest, nbytes = hashlib.sha256(), 0
    for _, _, piece in text_pieces(path):
        digest.update(piece)
        nbytes += len(piece)
    return {"bytes": nbytes, "sha256": digest.hexdigest()}


def tokens_sha256(tokens: np.ndarray) -> str:
    """Checksum of tokens in memory, whatever their dtype."""
    return hashlib.sha256(narrowed("tokens", tokens, "<i4").data).hexdigest()


def write_tokens(path: str | PathLike, text: str | PathLike | None, tokenizer) -> TokenFile:
    """Tokenise a text into a file, which appears whole or not at all.

    Parameters
    ----------
    path : where to write
    text : file, directory, or None for the embedded text
    tokenizer : ByteTokenizer, BPETokenizer, or any object with ``encode``, ``vocab_size``, ``name`` and ``takes_bytes``

    Raises
    ------
    DataError
        When the text cannot be read or is not UTF-8 where the tokenizer needs that, or the file cannot be written.
    """
    path = Path(path)
    dtype = "uint8" if tokenizer.vocab_size <= 1 << 8 else "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    source, data, nbytes, count = hashlib.sha256(), hashlib.sha256(), 0, 0
    try:
        with whole(path) as place, open(place, "wb") as file:
            file.write(bytes(HEADER))
            for name, offset, piece in text_pieces(text):
                source.update(piece)
                nbytes += len(piece)
                raw = narrowed(f"tokenizer {tokenizer.name}", encoded(tokenizer, name, offset, piece), DTYPES[dtype],
                               tokenizer.vocab_size).tobytes()
                data.update(raw)
                count += len(raw) // np.dtype(dtype).itemsize
                file.write(raw)
            header = {"dtype": dtype, "count": count, "vocab_size": tokenizer.vocab_size, "sha256": data.hexdigest(),
                      "tokenizer": tokenizer.name, "source": {"bytes": nbytes, "sha256": source.hexdigest()}}
            file.seek(0)
            file.write((MAGIC + json.dumps(header).encode()).ljust(HEADER))
    except OSError as error:
        raise DataError(f"token file {path}", "must be a place that can be written", str(error),
                        "Choose another directory, or make room.") from error
    return open_tokens(path, check_tokens=False)


def open_tokens(path: str | PathLike, vocab_size: int | None = None, tokenizer: str | None = None,
                source: dict | None = None, check_tokens: bool = True) -> TokenFile:
    """Map a file that `write_tokens` made, after checking it.

    Parameters
    ----------
    vocab_size : int or None
        Vocabulary of the model; a token file of a larger one is refused.
    tokenizer : str or None
        Name of the tokenizer that must have made it.
    source : dict or None
        `text_fingerprint` of the text that it must have been made from.
    check_tokens : bool
        Read all tokens and compare their checksum.

    Raises
    ------
    DataError
        When the file is missing, foreign, damaged, or not made from what it should be.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            header = _header(path, file.read(HEADER))
            dtype = np.dtype(DTYPES[header["dtype"]])
            must = HEADER + header["count"] * dtype.itemsize
            if os.path.getsize(path) != must:
                raise DataError(f"token file {path}", f"must have {must:,} bytes as its header says",
                                f"{os.path.getsize(path):,}", AGAIN)
            if check_tokens and _digest(iter(lambda: file.read(CHUNK), b"")) != header["sha256"]:
                raise DataError(f"token file {path}", "must hold the tokens that were written", "another checksum",
                                AGAIN)
    except OSError as error:
        raise DataError(f"token file {path}", "must be a file that can be read", error.strerror or str(error),
                        "Give the text as it was, and it is tokenised again.") from error
    if vocab_size is not None and header["vocab_size"] > vocab_size:
        raise DataError(f"token file {path}", f"must have a vocabulary of at most the model's {vocab_size}",
                        str(header["vocab_size"]), "Make the model with a larger vocab_size, or tokenise anew.")
    if tokenizer is not None and header["tokenizer"] != tokenizer:
        raise DataError(f"token file {path}", f"must be made by the tokenizer {tokenizer}", header["tokenizer"],
                        "Give that tokenizer, or start afresh in another directory.")
    if source is not None and header["source"] != source:
        raise DataError(f"token file {path}", "must be made from the text as it is now",
                        f"a text of {source['bytes']:,} bytes that has changed since it was tokenised "
                        f"(then {header['source']['bytes']:,})",
                        "Give the text as it was, or start afresh in another directory: these tokens are all that is left "
                        "of it.")
    tokens = np.memmap(path, dtype, "r", HEADER, (header["count"],)) if header["count"] else np.zeros(0, dtype)
    return TokenFile(tokens, header["vocab_size"], header["sha256"], header["tokenizer"], header["source"])


def encoded(tokenizer, name: str, offset: int, piece: bytes) -> np.ndarray:
    """Tokens of a piece of the file `name` that begins at byte `offset`: integers of shape (n,)."""
    if not tokenizer.takes_bytes:
        try:
            piece = piece.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"text {name}", "must be UTF-8 for this tokenizer",
                            f"byte {piece[error.start]:#04x} at {offset + error.start}",
                            "Convert the file, or use the byte tokenizer, which takes any file.") from error
    tokens = np.asarray(tokenizer.encode(piece))
    if tokens.size and tokens.dtype.kind not in "iu":
        raise DtypeError(f"tokenizer {tokenizer.name}", "must encode to integers", str(tokens.dtype), "Return token ids.")
    return tokens if tokens.size else tokens.astype(np.int32)


def _header(path: Path, raw: bytes) -> dict:
    """What the header says, every field checked."""
    try:
        if raw[:len(MAGIC)] != MAGIC or len(raw) < HEADER:
            raise ValueError("no header of ours")
        header = json.loads(raw[len(MAGIC):])
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
        source = header.get("source")
        fields = {**header, **({f"source {k}": v for k, v in source.items()} if isinstance(source, dict) else {})}
        bad = [name for name, is_right in FIELDS.items() if not is_right(fields.get(name))]
        if bad:
            raise ValueError(f"a header with wrong {', '.join(bad)}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"token file {path}", "must be a file that cllm wrote", str(error), AGAIN) from error
    return header


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
