"""The text of a run: tokenised once, kept beside the snapshots, checked again when the run is resumed."""

import os
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from cllm import corpus
from cllm.arrays import narrowed
from cllm.errors import DataError
from cllm.files import is_stream
from cllm.tokenizer import BPETokenizer, ByteTokenizer

TOKENS = "tokens.bin"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Tokens, the tokenizer that made them, and what identifies them.

    Attributes
    ----------
    tokens : integer array of shape (n,)
    tokenizer : ByteTokenizer, BPETokenizer or None
        None when the caller gave tokens.
    text : str or None
        Where the text was; None for the embedded one, or tokens.
    sha256 : str
        Of the tokens.
    once : bool
        The text could be read but once: a pipe.
    """

    tokens: np.ndarray
    tokenizer: ByteTokenizer | BPETokenizer | None
    text: str | None
    sha256: str
    once: bool = False

    def describe(self) -> dict:
        """What a snapshot keeps."""
        return {"text": self.text, "tokens": len(self.tokens), "sha256": self.sha256, "once": self.once,
                "tokenizer": None if self.tokenizer is None else self.tokenizer.name}

    def bytes_of(self, tokens: np.ndarray) -> int | None:
        """Bytes of text that the tokens stand for; None where no tokenizer knows."""
        lengths = getattr(self.tokenizer, "byte_lengths", None)
        return None if lengths is None else int(lengths[tokens].sum())

    def files(self) -> dict[str, bytes]:
        """Files that a snapshot keeps, so that it can decode by itself."""
        return tokenizer_files(self.tokenizer)


def tokenizer_files(tokenizer) -> dict[str, bytes]:
    """The file of a learned tokenizer; others need none."""
    return {TOKENIZER: tokenizer.definition.encode()} if isinstance(tokenizer, BPETokenizer) else {}


def load_data(text, tokenizer, out: Path | None, vocab_size: int) -> Data:
    """Tokenise a text, or take the tokens of it that `out` has already.

    Parameters
    ----------
    text : file, directory, pipe, None for the embedded text, or tokens
        Something that can be read but once, such as a pipe, is.
    tokenizer : ByteTokenizer or BPETokenizer
    out : Path or None
        Directory for the token file; None keeps the tokens in memory.
    vocab_size : int
        Of the model.

    Raises
    ------
    DataError, TokenError
    """
    text = checked_text(text)
    if isinstance(text, np.ndarray):
        return _given(text, vocab_size)
    if tokenizer.vocab_size > vocab_size:
        raise DataError("tokenizer", f"must have at most the model's vocab_size = {vocab_size} tokens",
                        str(tokenizer.vocab_size), "Make the model with the tokenizer's vocab_size.")
    if out is None:
        tokens = np.concatenate([narrowed(f"tokenizer {tokenizer.name}", corpus.encoded(tokenizer, *piece), np.int32,
                                          tokenizer.vocab_size) for piece in corpus.text_pieces(text)])
        return Data(tokens, tokenizer, _place(text), corpus.tokens_sha256(tokens))
    file, once = None, text is not None and is_stream(text)
    if not once:
        fingerprint = corpus.text_fingerprint(text)  # a text that cannot be read is the user's first concern
        with suppress(DataError):
            file = corpus.open_tokens(out / TOKENS, vocab_size, tokenizer.name, fingerprint)
    file = file or corpus.write_tokens(out / TOKENS, text, tokenizer)
    return Data(file.tokens, tokenizer, _place(text), file.sha256, once)


def reload_data(described: dict, text, tokenizer, out: Path, vocab_size: int) -> Data:
    """The tokens with which a run began.

    Parameters
    ----------
    described : dict
        `Data.describe` of then.
    text, tokenizer : as of `load_data`
        A text of None is the text of then; when that has gone, its tokens are enough. So is a pipe's.

    Raises
    ------
    DataError
        When text, tokenizer or tokens are not those of then.
    """
    text = checked_text(text)
    if isinstance(text, np.ndarray):
        data = _given(text, vocab_size)
    elif described["tokenizer"] is None:
        raise DataError("text", "must be the tokens with which the run began", "none", "Pass the same array again.")
    elif tokenizer.name != described["tokenizer"]:
        raise DataError(f"resume of {out}", f"must go on with the tokenizer it began with, {described['tokenizer']}",
                        tokenizer.name, "Leave the tokenizer out, or start afresh in another directory.")
    else:
        source = described["text"] if text is None else text
        once = described.get("once", False)
        gone = text is None and source is not None and (once or is_stream(source) or not Path(source).exists())
        if (out / TOKENS).exists() or gone:
            file = corpus.open_tokens(out / TOKENS, vocab_size, tokenizer.name,
                                      None if gone else corpus.text_fingerprint(source))
        else:
            file = corpus.write_tokens(out / TOKENS, source, tokenizer)
        data = Data(file.tokens, tokenizer, described["text"], file.sha256, once)
    if data.sha256 != described["sha256"]:
        raise DataError(f"text of the run in {out}", "must be what it was when the run began",
                        f"other tokens ({len(data.tokens):,} now, {described['tokens']:,} then)",
                        "Give the text as it was, or start afresh in another directory.")
    return data


def checked_text(text) -> str | PathLike | np.ndarray | None:
    """A text as it may be given: a path, None, or integers, which become an array.

    Raises
    ------
    DataError
        For anything else.
    """
    if text is None or isinstance(text, (str, PathLike)):
        return text
    try:
        tokens = np.asarray(text) if not isinstance(text, (bytes, bytearray)) else None
    except ValueError:  # rows of different lengths
        tokens = None
    if tokens is None or tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size:
        got = type(text).__name__ if tokens is None else f"{tokens.dtype} of shape {tokens.shape}"
        raise DataError("text", "must be a path, or integers in one axis", got,
                        "Pass a path, or what a tokenizer's encode() returns: cllm.ByteTokenizer().encode(text).")
    return tokens


def tokenizer_for(name: str, text: str | PathLike | None) -> ByteTokenizer | BPETokenizer:
    """A tokenizer by name: "bytes", "bpe:4096" to learn one of that size from the text, or a path to one's files."""
    kind, _, size = name.partition(":")
    if kind == "bpe" and size.isdigit():
        pieces = (piece.decode("utf-8", "replace") for _, _, piece in corpus.text_pieces(text))
        return BPETokenizer.train(pieces, int(size))
    return ByteTokenizer() if name == "bytes" else BPETokenizer.load(name)


def snapshot_tokenizer(path: Path, state: dict) -> ByteTokenizer | BPETokenizer | None:
    """The tokenizer with which the model of a snapshot was trained; None when it was given tokens."""
    name = state["training"].get("data", {}).get("tokenizer")
    if name is None or name == "bytes":
        return None if name is None else ByteTokenizer()
    return BPETokenizer.load(path / TOKENIZER)


def _given(tokens: np.ndarray, vocab_size: int) -> Data:
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError("text", f"tokens must be from 0 to {vocab_size - 1}", f"{tokens.min()} to {tokens.max()}",
                        "Make the model with a larger vocab_size.")
    return Data(tokens, None, None, corpus.tokens_sha256(tokens))


def _place(text: str | PathLike | None) -> str | None:
    """Where a text is, for a run that is resumed from another directory."""
    return None if text is None else os.path.abspath(text)
