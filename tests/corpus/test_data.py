"""Texts in pieces, token files that are checked, windows that are each seen once an epoch, byte pair encoding."""
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm import corpus
from cllm.corpus import text as text_module
from cllm.errors import ConfigError, DataError, TokenError
from cllm.tokenizer import BPETokenizer, ByteTokenizer

HEADER = 4096


def joined(path):
    return b"".join(piece for _, _, piece in corpus.text_pieces(path))


# ---------------------------------------------------------------------------------------------------------------- text

@pytest.mark.parametrize("piece, longest", [(5, 20), (1, 3), (64, 128)])
@pytest.mark.parametrize("content", [b"one\ntwo\n\nthree", b"no line at all " * 9,
                                     "\u00e9\U0001f600".encode() * 20, b"\n"])
def test_pieces_are_the_text_and_part_no_character(content, piece, longest, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE", piece)
    monkeypatch.setattr(text_module, "LONGEST_LINE", longest)
    path = tmp_path / "text"
    path.write_bytes(content)
    pieces = list(corpus.text_pieces(path))
    assert b"".join(p for _, _, p in pieces) == content
    assert [offset for _, offset, _ in pieces] == np.cumsum([0, *(len(p) for _, _, p in pieces)])[:-1].tolist()
    for _, _, p in pieces:
        p.decode()


def test_a_directory_is_its_files_in_order(tmp_path):
    for name, content in (("b.txt", b"2"), ("a/z.txt", b"1"), (".hidden", b"x"), (".git/config", b"x"), ("c.bin", b""),
                          ("d", b"3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert joined(tmp_path) == b"123"


def test_the_embedded_text_is_the_default():
    assert joined(None) == corpus.embedded_text()


@pytest.mark.parametrize("make, reason", [
    (lambda p: p.mkdir(), "must hold at least one file; got an empty directory"),
    (lambda p: p.touch(), "must not be empty; got 0 bytes"),
    (lambda p: (p.mkdir(), (p / "empty").touch()), "must not be empty; got 0 bytes"),
    (lambda p: None, "must be a file that can be read; got no such file")])
def test_a_text_that_is_not_there_is_refused(make, reason, tmp_path):
    make(tmp_path / "text")
    with pytest.raises(DataError, match=reason):
        joined(tmp_path / "text")


# ---------------------------------------------------------------------------------------------------------- token files

class Wide(ByteTokenizer):
    """Bytes as tokens of a vocabulary that needs wider integers."""

    name = "wide"

    def __init__(self, vocab_size):
        object.__setattr__(self, "_size", vocab_size)

    vocab_size = property(lambda self: self._size)


@pytest.fixture
def written(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(256)) * 3)
    corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", ByteTokenizer())
    return tmp_path / "tokens"


@pytest.mark.parametrize("vocab_size, dtype", [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")])
def test_tokens_return_from_their_file(vocab_size, dtype, tmp_path):
    (tmp_path / "text").write_bytes(b"some text\n" * 100)
    corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", Wide(vocab_size))
    found = corpus.open_tokens(tmp_path / "tokens", vocab_size, "wide", corpus.text_fingerprint(tmp_path / "text"))
    assert isinstance(found.tokens, np.memmap) and found.tokens.dtype == dtype
    assert found.tokens.tobytes() == np.frombuffer(b"some text\n" * 100, np.uint8).astype(dtype).tobytes()
    assert not found.tokens.flags.writeable and sorted(p.name for p in tmp_path.iterdir()) == ["text", "tokens"]


def damage(path, change):
    raw = bytearray(path.read_bytes())
    path.write_bytes(change(raw) or raw)


def header(**changes):
    def change(raw):
        found = {**json.loads(raw[8:HEADER]), **changes}
        raw[:HEADER] = (b"cllmtok1" + json.dumps(found).encode()).ljust(HEADER)
    return change


@pytest.mark.parametrize("change, reason", [
    (lambda raw: raw[:-1], "must have 4,864 bytes as its header says; got 4,863"),
    (lambda raw: raw + b"x", "must have 4,864 bytes as its header says; got 4,865"),
    (lambda raw: raw[:100], "a file that cllm wrote; got no header of ours"),
    (lambda raw: b"PK" + raw[2:], "a file that cllm wrote; got no header of ours"),
    (lambda raw: b"\x80\x04" + raw, "no header of ours"),
    (lambda raw: raw.__setitem__(HEADER + 300, raw[HEADER + 300] ^ 1), "got another checksum"),
    (lambda raw: raw.__setitem__(9, 0), "a file that cllm wrote"),
    (header(dtype="object"), "wrong dtype"), (header(count=-1), "wrong count"),
    (header(count="768"), "wrong count"), (header(sha256=None), "wrong sha256"),
    (header(count=10**12), "as its header says"), (header(count=10**15), "wrong count"), (header(count=True), "wrong count"),
    (header(dtype=["uint8"]), "wrong dtype"), (header(vocab_size=-1), "wrong vocab_size"), (header(source=[]), "source bytes"),
    (header(source={"bytes": "5", "sha256": 3}), "wrong source bytes, source sha256"), (header(sha256="x"), "wrong sha256"),
    (lambda raw: raw.__setitem__(slice(8, 4000), b"[" * 3992), "a file that cllm wrote"),
    (lambda raw: raw.__setitem__(slice(8, HEADER), b"[3]".ljust(4088)), "a header that is no object")], ids=range(21))
def test_a_damaged_or_foreign_token_file_is_refused(change, reason, written):
    damage(written, change)
    with pytest.raises(DataError, match=reason):
        corpus.open_tokens(written)


def test_a_mutated_header_gives_the_tokens_or_is_refused(written):
    """Bits and bytes drawn from a seed; with the text to compare with, as a run that is resumed has it."""
    raw, rng = written.read_bytes(), np.random.default_rng(5)
    text = corpus.text_fingerprint(written.with_name("text"))
    used = len(raw[:HEADER].rstrip())
    for trial in range(400):
        changed = bytearray(raw)
        for at in rng.integers(used, size=1 + trial % 3):
            changed[at] = changed[at] ^ 1 << int(rng.integers(8)) if trial % 2 else int(rng.integers(256))
        written.write_bytes(changed)
        try:
            assert corpus.open_tokens(written, 256, "bytes", text).tokens.tobytes() == raw[HEADER:]
        except DataError as error:
            assert str(written) in str(error)


def test_no_advice_loses_the_only_copy_of_the_tokens(written):
    text = written.with_name("text")
    text.write_bytes(b"another text")
    for wrong in (dict(source=corpus.text_fingerprint(text)), dict(tokenizer="bpe"), dict(vocab_size=3)):
        with pytest.raises(DataError) as caught:
            corpus.open_tokens(written, **wrong)
        assert "elete" not in str(caught.value) and "ove it away" not in str(caught.value)
    damage(written, lambda raw: raw[:-1])
    with pytest.raises(DataError, match="Move it away, and the text is tokenised again"):
        corpus.open_tokens(written)


def test_a_text_that_changed_since_it_was_tokenised_is_noticed(written):
    text = written.with_name("text")
    damage(text, lambda raw: raw.__setitem__(5, 99))
    with pytest.raises(DataError, match="has changed since it was tokenised"):
        corpus.open_tokens(written, source=corpus.text_fingerprint(text))


def test_tokens_of_another_tokenizer_or_vocabulary_are_refused(written):
    with pytest.raises(DataError, match="must be made by the tokenizer bpe; got bytes"):
        corpus.open_tokens(written, tokenizer="bpe")
    with pytest.raises(DataError, match="at most the model's 255; got 256"):
        corpus.open_tokens(written, vocab_size=255)


def test_nothing_is_left_of_a_token_file_that_failed(tmp_path):
    (tmp_path / "text").write_bytes(b"good\nbad \xff\n")
    tokenizer = Wide(300)
    object.__setattr__(tokenizer, "takes_bytes", False)
    with pytest.raises(DataError, match="must be UTF-8 for this tokenizer; got byte 0xff at 9"):
        corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", tokenizer)
    with pytest.raises(DataError, match="must be a place that can be written"):
        corpus.write_tokens(tmp_path / "none" / "tokens", tmp_path / "text", ByteTokenizer())
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
    found = corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", ByteTokenizer())
    assert bytes(found.tokens) == b"good\nbad \xff\n"


# ------------------------------------------------------------------------------------------------- ids too large for a type

def with_a_hole(bpe):
    """A tokenizer whose token for "th" has the id 700: 256 bytes, one merge, ids with holes."""
    definition = json.loads(bpe.definition)
    vocabulary = definition["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)[:256]
    definition["model"].update(vocab={**{word: n for n, word in enumerate(words)}, "th": 700}, merges=[["t", "h"]])
    definition["added_tokens"] = []
    return BPETokenizer(json.dumps(definition))


def test_ids_beyond_the_number_of_tokens_stay_what_they_are(bpe, tmp_path):
    """A vocabulary is as large as its largest id: 257 tokens, one of them 700, do not fit a byte."""
    (tmp_path / "text").write_text("the cloth and the moth\n" * 20)
    tokenizer = with_a_hole(bpe)
    assert tokenizer.vocab_size == 701 and len(tokenizer.ids) == 257
    found = corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", tokenizer)
    assert found.vocab_size == 701 and found.tokens.dtype == "uint16"
    assert tokenizer.decode(found.tokens) == (tmp_path / "text").read_text() and (found.tokens == 700).sum() == 80
    assert found.sha256 == corpus.open_tokens(tmp_path / "tokens", 701).sha256
    with pytest.raises(TokenError, match=r"must be the tokenizer's ids, of 0 \.\. 700; got .* 300"):
        tokenizer.decode([65, 300])


class Liar(Wide):
    """Says that it has fewer tokens than it makes."""

    made = 300

    def encode(self, text):
        return np.full(len(text), self.made, np.int64)


@pytest.mark.parametrize("vocab_size, made", [(256, 300), (256, -1), (300, 300), (65536, 65536), (70000, 2**31),
                                              (70000, 2**32 + 5)])
def test_a_tokenizer_that_makes_more_than_it_says_is_refused(vocab_size, made, tmp_path):
    (tmp_path / "text").write_bytes(b"text\n" * 9)
    tokenizer = Liar(vocab_size)
    object.__setattr__(tokenizer, "made", made)
    with pytest.raises(TokenError, match=rf"tokenizer wide: token ids must be from 0 to {vocab_size - 1}; got {made}"):
        corpus.write_tokens(tmp_path / "tokens", tmp_path / "text", tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("draw", [lambda tokens: corpus.batch(tokens, 2, 5, 0),
                                  lambda tokens: corpus.Windows(tokens, 5).batch(0, 2),
                                  corpus.tokens_sha256], ids=["batch", "windows", "sha256"])
@pytest.mark.parametrize("dtype, large", [(np.int64, 2**32 + 5), (np.uint32, 2**31), (np.uint64, 2**63), (np.int64, -2**40)])
def test_tokens_of_the_users_own_are_never_wrapped(draw, dtype, large):
    with pytest.raises(TokenError, match=f"got {large}"):
        draw(np.full(40, large, dtype))


# -------------------------------------------------------------------------------------------------------------- windows

@given(st.integers(2, 400), st.integers(1, 50), st.integers(0, 5))
def test_each_window_is_seen_once_an_epoch(n, seq_len, seed):
    if n <= seq_len:
        with pytest.raises(DataError, match=r"must have at least seq_len \+ 1"):
            corpus.Windows(np.arange(n), seq_len, seed)
        return
    windows = corpus.Windows(np.arange(n), seq_len, seed)
    for epoch in range(3):
        starts = np.sort(windows.starts(epoch * windows.count, windows.count))
        assert 0 <= starts[0] < seq_len and starts[-1] + seq_len < n
        assert (np.diff(starts) == seq_len).all()
    assert windows.count * seq_len > n - 1 - 2 * seq_len, "at most two windows' worth of tokens is left out"


def test_order_is_a_function_of_seed_and_epoch_alone():
    tokens = np.arange(1000)
    windows = corpus.Windows(tokens, 7, seed=3)
    whole = windows.starts(0, 3 * windows.count)
    for first in (0, 5, windows.count - 1, 2 * windows.count - 3):
        np.testing.assert_array_equal(corpus.Windows(tokens, 7, seed=3).starts(first, 9), whole[first:first + 9])
    epochs = whole.reshape(3, -1)
    assert len({tuple(e) for e in epochs}) == 3 and len({tuple(np.sort(e)) for e in epochs}) > 1
    assert tuple(corpus.Windows(tokens, 7, seed=4).starts(0, 5)) != tuple(whole[:5])
    assert whole[:6].tolist() == [298, 543, 494, 39, 88, 900], "the order is another than in earlier versions"


def test_a_batch_is_windows_and_what_follows():
    one = corpus.Windows(np.arange(100), 6).batch(0, 1)
    assert not np.shares_memory(*one), "writing into the targets would change the inputs"
    inputs, targets = corpus.Windows(np.arange(100, dtype=np.uint8), 6, 1).batch(3, 40)
    assert inputs.shape == targets.shape == (40, 6) and inputs.dtype == targets.dtype == np.int32
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(6))


@pytest.mark.parametrize("fraction, sizes", [(0.1, (900, 100)), (0.0, (1000, 0)), (0.5, (500, 500))])
def test_no_token_is_in_both_parts(fraction, sizes):
    train, validation = corpus.split(np.arange(1000), fraction, 10)
    assert (len(train), len(validation)) == sizes
    np.testing.assert_array_equal(np.concatenate([train, validation]), np.arange(1000))


@pytest.mark.parametrize("fraction, part", [(0.005, "validation"), (0.995, "training")])
def test_a_part_that_is_too_short_is_refused(fraction, part):
    with pytest.raises(DataError, match=rf"the {part} part of 1000 .* seq_len \+ 1 = 11 tokens; got 5"):
        corpus.split(np.arange(1000), fraction, 10)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, None, True, "0.1"])
def test_fractions_that_are_none_are_refused(fraction):
    with pytest.raises(ConfigError):
        corpus.split(np.arange(1000), fraction, 10)


def test_evaluation_windows_are_spread_evenly():
    assert corpus.even_starts(101, 10).tolist() == list(range(0, 100, 10))
    assert corpus.even_starts(101, 10, 3).tolist() == [0, 30, 60]
    assert corpus.even_starts(100, 10).tolist() == list(range(0, 90, 10)), "the last target would be missing"


# ---------------------------------------------------------------------------------------------------------------- BPE

def test_byte_pair_encoding_needs_its_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'cllm-train\[io\]'"):
        BPETokenizer("{}")


@pytest.fixture(scope="module")
def bpe():
    pytest.importorskip("tokenizers", reason="needs the extra io")
    return BPETokenizer.train([corpus.embedded_text().decode()[:50_000]], 400)


@pytest.mark.parametrize("text", ["It is a truth universally acknowledged,\n\n  that",
                                  "h\u00e9llo \U0001f600\t\x00 ", ""])
def test_any_text_returns_from_byte_pairs(text, bpe):
    tokens = bpe.encode(text)
    assert tokens.dtype == np.int32 and bpe.decode(tokens) == text
    np.testing.assert_array_equal(bpe.encode(text.encode()), tokens)


def test_byte_pairs_are_learned_saved_and_loaded(bpe, tmp_path):
    assert bpe.vocab_size == 400 and len(bpe.encode("acknowledged")) < 12
    bpe.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = BPETokenizer.load(path)
        assert again.name == bpe.name and again.encode("acknowledged").tolist() == bpe.encode("acknowledged").tolist()


def test_files_in_the_form_of_gpt_2_are_loaded(bpe, tmp_path):
    model = json.loads(bpe.definition)["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    assert BPETokenizer.load(tmp_path).encode("It is a truth").tolist() == bpe.encode("It is a truth").tolist()


def test_what_is_no_tokenizer_is_refused(bpe, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="must be the JSON of a tokenizer"):
        BPETokenizer.load(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer .*none: must be tokenizer\.json"):
        BPETokenizer.load(tmp_path / "none")
    with pytest.raises(DataError, match="must be UTF-8; got byte 0xff at 1"):
        bpe.encode(b"a\xff")
    with pytest.raises(TokenError):
        bpe.decode([400])
    with pytest.raises(ConfigError):
        BPETokenizer.train(["text"], 100)
