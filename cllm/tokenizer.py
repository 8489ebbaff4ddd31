"""Text to tokens and back: bytes as they are, or byte pair encoding through the `tokenizers` library (extra ``io``)."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from cllm.arrays import narrowed
from cllm.checks import checked_size, installing, shown
from cllm.errors import ConfigError, DataError, DtypeError, TokenError
from cllm.files import whole


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """Every byte is a token: nothing to learn, nothing to store, any file can be read."""

    vocab_size: ClassVar[int] = 256
    name: ClassVar[str] = "bytes"
    takes_bytes: ClassVar[bool] = True
    ids: ClassVar[np.ndarray] = np.arange(256)
    byte_lengths: ClassVar[np.ndarray] = np.ones(256, np.int64)

    def encode(self, text: str | bytes) -> np.ndarray:
        """The bytes of a text, those of its UTF-8 form if it is a str: int32 array of shape (n,)."""
        if isinstance(text, str):
            try:
                text = text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError("encode(text)", "must be text that UTF-8 can hold",
                                f"a surrogate at character {error.start}",
                                "Read the file as bytes and encode those.") from error
        elif not isinstance(text, (bytes, bytearray, memoryview)):
            raise _no_text(text)
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode_bytes(self, tokens: ArrayLike) -> bytes:
        """The bytes that the tokens are: exact inverse of `encode`.

        Parameters
        ----------
        tokens : integers of shape (n,)
            Each in 0 .. 255.
        """
        tokens = np.asarray(tokens)
        if tokens.size == 0:
            return b""
        if tokens.dtype.kind not in "iu":
            raise DtypeError("decode(tokens)", "must be integers", str(tokens.dtype), "Pass token ids.")
        outside = (tokens < 0) | (tokens > 255)
        if outside.any():
            raise TokenError("decode(tokens)", "must be in 0 .. 255", str(tokens[outside][0]),
                             "Decode with the tokenizer whose vocabulary the model was trained on.")
        return tokens.astype(np.uint8).tobytes()

    def decode(self, tokens: ArrayLike) -> str:
        """The tokens as text; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")


class BPETokenizer:
    """Byte pair encoding over bytes (Sennrich et al. 2016, Radford et al. 2019): any text goes in and comes out whole.

    Parameters
    ----------
    definition : str
        The JSON text of a tokenizer of the `tokenizers` library. It is data: nothing in it is executed.

    Attributes
    ----------
    ids : integer array of shape (n,)
        The ids that have text, in order.
    vocab_size : int
        The largest of them + 1.
    byte_lengths : integer array of shape (vocab_size,)
        Bytes of text that each stands for.

    Raises
    ------
    DataError
        When it is no such text.
    ConfigError
        When the library is not installed.
    """

    takes_bytes = False

    def __init__(self, definition: str):
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise DataError("BPETokenizer(definition)", "must be the JSON of a tokenizer", str(error),
                            "Train one, or load the files of one.") from error
        self.definition = definition
        self.ids = np.array(sorted(self._tokenizer.get_vocab(with_added_tokens=True).values()), np.int64)
        if not len(self.ids):
            raise DataError("BPETokenizer(definition)", "must have tokens", "none", "Train one, or load the files of one.")
        self.vocab_size = int(self.ids[-1]) + 1  # not their number: ids may have holes
        self.name = f"bpe:{self.vocab_size}:{hashlib.sha256(definition.encode()).hexdigest()[:16]}"

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        data = json.loads(self.definition)
        # over bytes every character of a token's name is a byte; added tokens are called what they are
        over_bytes = (data.get("decoder") or {}).get("type") == "ByteLevel"
        added = {token["content"] for token in data.get("added_tokens") or ()}
        lengths = np.zeros(self.vocab_size, np.int64)
        for name, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            lengths[number] = len(name if over_bytes and name not in added else name.encode("utf-8", "replace"))
        return lengths

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn merges from some texts until there are `vocab_size` tokens (fewer when the text has no more pairs)."""
        size = checked_size("BPETokenizer.train(vocab_size=...)", vocab_size, 256)  # all bytes are tokens; merges come on top
        library = _library()
        made = library.Tokenizer(library.models.BPE())
        _over_bytes(library, made)
        made.train_from_iterator(texts, library.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
        return cls(made.to_str())

    @classmethod
    def load(cls, path: str | PathLike) -> "BPETokenizer":
        """A ``tokenizer.json``, or a directory with one or with ``vocab.json`` (``encoder.json``) and ``merges.txt``
        (``vocab.bpe``)."""
        path = Path(path)
        try:
            if path.is_file() or (path / "tokenizer.json").is_file():
                return cls((path if path.is_file() else path / "tokenizer.json").read_text(encoding="utf-8"))
            library = _library()
            vocabulary, merges = (next((str(path / n) for n in names if (path / n).is_file()), None)
                                  for names in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")))
            if vocabulary is None or merges is None:
                raise DataError(f"tokenizer {path}", "must be tokenizer.json, or hold it or vocab.json and merges.txt",
                                "neither", "Give the directory of these files, or train a tokenizer.")
            made = library.Tokenizer(library.models.BPE.from_file(vocabulary, merges))
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"tokenizer {path}", "must hold files of a tokenizer", str(error),
                            "Get the files again.") from error
        _over_bytes(library, made)
        return cls(made.to_str())

    def save(self, path: str | PathLike) -> None:
        """Write the JSON that `load` reads, whole or not at all.

        Raises
        ------
        DataError
            When it cannot be written.
        """
        try:
            with whole(path) as place:
                place.write_text(self.definition, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer {path}", "must be a place for a file that can be written",
                            getattr(error, "strerror", None) or str(error), "Choose another path, or make room.") from error

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids by the names of their tokens."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str | bytes, special: bool = False) -> np.ndarray:
        """Tokens of a text, of UTF-8 if it is bytes: int32 array of shape (n,).

        With `special` also what the tokenizer puts before or after every text, such as a token that begins it.
        """
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise DataError("encode(text)", "must be UTF-8", f"byte {text[error.start]:#04x} at {error.start}",
                                "Convert the text, or use the byte tokenizer.") from error
        elif not isinstance(text, str):
            raise _no_text(text)
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=special).ids, np.int64)
        return narrowed(f"tokenizer {self.name}", ids, np.int32, self.vocab_size)

    def decode(self, tokens: ArrayLike) -> str:
        """The tokens as text; bytes that are not UTF-8 show as U+FFFD."""
        tokens = np.asarray(tokens)
        if tokens.size and (tokens.dtype.kind not in "iu" or not np.isin(tokens, self.ids).all()):
            raise TokenError("decode(tokens)", f"must be the tokenizer's ids, of 0 .. {self.vocab_size - 1}",
                             f"{tokens.dtype} from {tokens.min()} to {tokens.max()}",
                             "Decode with the tokenizer whose vocabulary the model was trained on.")
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def _no_text(text) -> DtypeError:
    return DtypeError("encode(text)", "must be str or bytes", shown(text), "Read the text first.")


def _library():
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ConfigError("BPETokenizer", "needs the library tokenizers", "an installation without it",
                          installing("io")) from error
    return tokenizers


def _over_bytes(library, tokenizer) -> None:
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()


def load_tokenizer(name: str | PathLike) -> ByteTokenizer | BPETokenizer:
    """The tokenizer of a model's directory, or of a name.

    Parameters
    ----------
    name : str or path
        A directory with ``tokenizer.json`` or with ``vocab.json`` and ``merges.txt``, the path of a
        ``tokenizer.json``, or "bytes".

    Raises
    ------
    DataError
        When there is none, or it cannot be read.
    ConfigError
        When the library that runs it is missing (extra io or hf).
    """
    return ByteTokenizer() if name == "bytes" else BPETokenizer.load(name)
