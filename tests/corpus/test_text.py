"""The embedded text, files, windows and the byte tokenizer."""
import hashlib
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm import corpus
from cllm.errors import ConfigError, DataError, DtypeError, TokenError
from cllm.tokenizer import ByteTokenizer

TOKENS = np.arange(1000, dtype=np.int32)


def test_the_embedded_text_is_what_its_notice_says():
    text = corpus.embedded_text()
    notice = files("cllm").joinpath("texts/NOTICE.txt").read_text()
    assert re.search(r"SHA-256 ([0-9a-f]{64})", notice).group(1) == hashlib.sha256(text).hexdigest()
    assert f"{len(text):,} bytes" in notice
    assert text.startswith(b"PRIDE AND PREJUDICE\n\nBy Jane Austen\n") and text.isascii()


def test_the_packed_text_has_neither_time_nor_name():
    header = files("cllm").joinpath(corpus.EMBEDDED).read_bytes()[:10]
    assert header[:2] == b"\x1f\x8b" and header[3] == 0 and header[4:8] == bytes(4)


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "text.bin"
    path.write_bytes(bytes(range(256)) + b"\r\n")
    assert corpus.read_text(path) == corpus.read_text(str(path)) == bytes(range(256)) + b"\r\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: must be a file that can be read; got no such file"):
        corpus.read_text(tmp_path / "none.txt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="got is a directory"):
        corpus.read_text(tmp_path)


def test_a_path_that_no_system_takes_is_refused():
    with pytest.raises(DataError, match="must be a file that can be read; got embedded null"):
        corpus.read_text("a\0b")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt: must not be empty; got 0 bytes"):
        corpus.read_text(tmp_path / "empty.txt")


def test_a_batch_is_windows_of_the_text_and_what_follows():
    inputs, targets = corpus.batch(TOKENS, batch_size=5, seq_len=7, step=3, seed=11)
    assert inputs.shape == targets.shape == (5, 7)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(7))
    np.testing.assert_array_equal(targets, inputs + 1)


def test_a_batch_is_the_same_in_every_version():
    # The words of Philox4x64-10 keyed by (seed, step) from counter 1 on, modulo 1000 - 7: written down once.
    inputs, _ = corpus.batch(TOKENS, batch_size=4, seq_len=7, step=3, seed=11)
    assert inputs[:, 0].tolist() == [972, 382, 566, 783]


def test_batches_differ_by_step_and_seed():
    drawn = [corpus.batch(TOKENS, 4, 8, step, seed)[0].tobytes() for step in range(5) for seed in range(5)]
    assert len(set(drawn)) == len(drawn)
    assert drawn[0] == corpus.batch(TOKENS, 4, 8, 0, 0)[0].tobytes()


def test_windows_reach_the_first_and_the_last_token():
    inputs, targets = corpus.batch(TOKENS[:10], batch_size=200, seq_len=4, step=0)
    assert inputs.min() == 0 and targets.max() == 9
    assert set(inputs[:, 0]) == set(range(6))


def test_the_shortest_text_has_one_window():
    inputs, targets = corpus.batch(TOKENS[:5], batch_size=2, seq_len=4, step=0)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2 and targets.tolist() == [[1, 2, 3, 4]] * 2


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(DataError, match=r"at least seq_len \+ 1 = 5 tokens; got 4\."):
        corpus.batch(TOKENS[:4], batch_size=2, seq_len=4, step=0)


@pytest.mark.parametrize("tokens", [TOKENS.reshape(10, 100), TOKENS.astype(np.float32), b"bytes"])
def test_tokens_of_another_kind_are_refused(tokens):
    with pytest.raises(DataError, match="must be integers in one axis"):
        corpus.batch(tokens, batch_size=1, seq_len=2, step=0)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seq_len", 0), ("step", -1), ("seed", -1),
                                             ("seed", 2**64), ("batch_size", -3), ("seq_len", 2.0)])
def test_numbers_out_of_range_are_refused(name, value):
    settings = {"batch_size": 1, "seq_len": 2, "step": 0, "seed": 0} | {name: value}
    with pytest.raises(ConfigError, match=rf"batch\({name}=\.\.\.\): must be a whole number from \d"):
        corpus.batch(TOKENS, **settings)


@given(st.binary())
def test_bytes_return_from_the_byte_tokenizer(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.int32 and tokens.shape == (len(text),)
    assert ByteTokenizer().decode_bytes(tokens) == text


@given(st.text())
def test_text_returns_from_the_byte_tokenizer(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_bytes_that_are_no_text_are_shown_as_such():
    assert ByteTokenizer().decode([72, 105, 255]) == "Hi\ufffd"
    assert ByteTokenizer().decode([]) == ""


@pytest.mark.parametrize("token", [-1, 256, 2**40])
def test_a_token_outside_the_bytes_is_refused(token):
    with pytest.raises(TokenError, match=rf"must be in 0 \.\. 255; got {token}\."):
        ByteTokenizer().decode([65, token])


def test_a_str_that_is_no_text_is_refused():
    with pytest.raises(DataError, match="must be text that UTF-8 can hold; got a surrogate at character 1"):
        ByteTokenizer().encode("a\ud800")


def test_tokens_that_are_no_integers_are_refused():
    with pytest.raises(DtypeError, match="must be integers; got float64"):
        ByteTokenizer().decode([1.0])


def test_the_vocabulary_covers_every_byte():
    assert ByteTokenizer.vocab_size == 256
    assert ByteTokenizer().encode(bytes(range(256))).tolist() == list(range(256))
