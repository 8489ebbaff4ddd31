"""The text of a run: tokenised once, kept beside the snapshots, checked again when the run is resumed."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from cllm import corpus
from cllm.arrays import narrowed
from cllm.errors import DataError
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
    """

    tokens: np.ndarray
    tokenizer: ByteTokenizer | BPETokenizer | None
    text: str | None
    sha256: str

    def describe(self) -> dict:
        """What a snapshot keeps."""
        return {"text": self.text, "tokens": len(self.tokens), "sha256": self.sha256,
                "tokenizer": None if self.tokenizer is None else self.tokenizer.name}

    def files(self) -> dict[str, bytes]:
        """Files that a snapshot keeps, so that it can decode by itself."""
        learned = isinstance(self.tokenizer, BPETokenizer)
        return {TOKENIZER: self.tokenizer.definition.encode()} if learned else {}


def load_data(text: str | PathLike | np.ndarray | None, tokenizer, out: Path | None, vocab_size: int) -> Data:
    """Tokenise a text, or take the tokens of it that `out` has already.

    Parameters
    ----------
    text : file, directory, None for the embedded text, or tokens
    tokenizer : ByteTokenizer or BPETokenizer
    out : Path or None
        Directory for the token file; None keeps the tokens in memory.
    vocab_size : int
        Of the model.

    Raises
    ------
    DataError
    """
    if isinstance(text, np.ndarray):
        return _given(text, vocab_size)
    if tokenizer.vocab_size > vocab_size:
        raise DataError("tokenizer", f"must have at most the model's vocab_size = {vocab_size} tokens",
                        str(tokenizer.vocab_size), "Make the model with the tokenizer's vocab_size.")
    name = None if text is None else str(Path(text).absolute())
    if out is None:
        tokens = np.concatenate([narrowed(f"tokenizer {tokenizer.name}", corpus.encoded(tokenizer, *piece), np.int32,
                                          tokenizer.vocab_size) for piece in corpus.text_pieces(text)])
        return Data(tokens, tokenizer, name, corpus.tokens_sha256(tokens))
    path = out / TOKENS
    try:
        file = corpus.open_tokens(path, vocab_size, tokenizer.name, corpus.text_fingerprint(text))
    except DataError:
        corpus.text_fingerprint(text)  # a text that cannot be read is the user's first concern
        out.mkdir(parents=True, exist_ok=True)
        file = corpus.write_tokens(path, text, tokenizer)
    return Data(file.tokens, tokenizer, name, file.sha256)


def reload_data(described: dict, text: str | PathLike | np.ndarray | None, tokenizer, out: Path,
                vocab_size: int) -> Data:
    """The tokens with which a run began.

    Parameters
    ----------
    described : dict
        `Data.describe` of then.
    text : as of `load_data`
        None is the text of then; when that has gone, its tokens are enough.

    Raises
    ------
    DataError
        When text or tokens are not those of then.
    """
    if isinstance(text, np.ndarray):
        data = _given(text, vocab_size)
    elif described["tokenizer"] is None:
        raise DataError("text", "must be the tokens with which the run began", "none", "Pass the same array again.")
    else:
        source = described["text"] if text is None else text
        gone = text is None and source is not None and not Path(source).exists()
        fingerprint = None if gone else corpus.text_fingerprint(source)
        if not (out / TOKENS).exists() and not gone:
            corpus.write_tokens(out / TOKENS, source, tokenizer)
        file = corpus.open_tokens(out / TOKENS, vocab_size, tokenizer.name, fingerprint)
        data = Data(file.tokens, tokenizer, described["text"], file.sha256)
    if data.sha256 != described["sha256"]:
        raise DataError(f"text of the run in {out}", "must be what it was when the run began",
                        f"other tokens ({len(data.tokens):,} now, {described['tokens']:,} then)",
                        "Give the text as it was, or start afresh in another directory.")
    return data


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
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise DataError("text", "must be a path, or integers in one axis", f"{tokens.dtype} of shape {tokens.shape}",
                        "Pass what a tokenizer's encode() returns.")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError("text", f"tokens must be from 0 to {vocab_size - 1}", f"{tokens.min()} to {tokens.max()}",
                        "Make the model with a larger vocab_size.")
    return Data(tokens, None, None, corpus.tokens_sha256(tokens))
