"""Progress: in any encoding, in any width, and what its words say."""
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import cllm
from cllm import corpus
from cllm.errors import DataError
from cllm.train import Bar, Lines, Trainer, read_lines
from cllm.train.evaluation import bits_per_byte, perplexity_of
from cllm.train.progress import in_words, number, printable, step_in_short

TEXT = np.frombuffer(corpus.embedded_text()[:8000], np.uint8)
SMALL = dict(steps=4, batch_size=2, seq_len=16, eval_every=2, eval_batches=2, threads=1, lr=1e-3, log_every=1)


def new():
    return cllm.GPT(cllm.ModelConfig(256, 1, 16, 2, 32, 16), seed=1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_an_encoding_does_not_know_ends_no_run(encoding, tmp_path):
    """A directory with a name from elsewhere, and a sample of bytes that are no text."""
    out = tmp_path / "r\u00fcn \u2713 \udcff"
    raw = io.BytesIO()
    lines = Lines(file=io.TextIOWrapper(raw, encoding=encoding))
    bar = Bar(Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), force_terminal=True, width=80))
    result = Trainer(new(), TEXT, out, callbacks=[lines, bar], sample_every=2, **SMALL).run()
    text = raw.getvalue().decode(encoding)
    assert result.step == 4 and "snapshot" in text and "r" in text
    assert ("\u2713" in text) == (encoding == "utf-8")


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("broken", [Broken, lambda: (file := io.StringIO(), file.close())[0]], ids=["broken", "closed"])
def test_an_output_that_takes_nothing_ends_the_run_with_a_snapshot(broken, tmp_path):
    class Late(Lines):
        def on_start(self, trainer):
            self._file = io.StringIO()

        def on_event(self, trainer, record):
            if record["step"] == 3:
                self._file = broken()
            super().on_event(trainer, record)

    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[Late()], **SMALL)
    with pytest.raises(DataError, match="standard output: must take what the run tells; got "):
        trainer.run()
    assert trainer.keeper.latest.name == "step-000003"


def test_printable_keeps_what_it_can():
    assert printable("a\u00e9\u2713\udcff", SimpleNamespace(encoding="latin-1")) == "a\u00e9??"
    assert printable("a\u00e9\u2713", SimpleNamespace()) == "a\u00e9\u2713"


RECORD = {"event": "step", "step": 1234, "loss": 5.4321, "rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 12345.6,
          "seconds_left": 3 * 3600 + 62, "rss_bytes": 10**8}


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_the_time_left_is_in_every_width(width):
    trainer = Trainer(new(), TEXT, **SMALL)
    file = io.StringIO()
    bar = Bar(Console(file=file, force_terminal=True, width=width))
    bar.on_start(trainer)
    bar.on_event(trainer, {**RECORD, "seconds_left": 62.0})
    bar.on_end(trainer)
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").strip().splitlines()[-1]
    assert "1:02 left" in last and len(last) <= width and "\u2026" not in last, last
    for room in range(10, 100):
        words = step_in_short(trainer, RECORD, room)
        assert len(words) <= room and (room < 12 or words.startswith("3:01:02 left"))
    assert step_in_short(trainer, RECORD, 100).endswith("norm 0.50")


def test_perplexity_in_a_readable_number():
    assert number(2.71828) == "2.718" and number(123456.7) == "123456.700" and len(number(perplexity_of(699.0))) < 12
    assert perplexity_of(701.0) is None and perplexity_of(None) is None
    trainer = Trainer(new(), TEXT, **SMALL)
    record = {"event": "evaluation", "step": 5, "val_loss": 800.0, "perplexity": None, "bits_per_byte": 3.0, "best": True,
              "since_best": 0}
    words = "validation 800.0000 nats per token, perplexity beyond 1e300, 3.0000 bits per byte  best so far"
    assert in_words(trainer, record) == f"step      5  {words}"


def test_a_hint_when_validation_gets_worse():
    trainer = Trainer(new(), TEXT, **SMALL)
    trainer.keeper.best = 40, 2.5
    record = {"event": "evaluation", "step": 70, "val_loss": 2.7, "perplexity": 14.9, "bits_per_byte": None, "best": False}
    assert "by heart" not in in_words(trainer, {**record, "since_best": 2})
    assert "no better for 3 evaluations, best 2.5000 at step 40: it may be learning the text by heart" in in_words(
        trainer, {**record, "since_best": 3})


def test_disk_is_told_before_the_first_step(tmp_path, capsys, monkeypatch):
    trainer = Trainer(new(), TEXT, tmp_path / "run", callbacks=[Lines()], **SMALL)
    nbytes = 3 * sum(p.nbytes for p in trainer.model.parameters.values())
    assert trainer.snapshot_bytes == nbytes and trainer.disk_bytes == (3 + 3) * nbytes
    path = trainer.snapshot()
    assert 0 <= sum(p.stat().st_size for p in path.iterdir()) - nbytes < 16_000
    monkeypatch.setattr(type(trainer.keeper), "free_bytes", lambda self: 1000)
    trainer.run()
    first = capsys.readouterr().out.splitlines()[1]
    assert first.startswith("disk: snapshots of 0.1 MB, up to 0.5 MB in all (0 free): TOO LITTLE")


def test_samples_are_told_and_recorded(tmp_path, capsys):
    trainer = Trainer(new(), TEXT, tmp_path, callbacks=[Lines()], sample_every=2, sample_prompt="It is", **SMALL)
    trainer.run()
    found = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["event"] == "sample"]
    assert [line["step"] for line in found] == [2, 4] and all(line["text"] for line in found)
    assert found[-1]["text"] == trainer.sample("It is", seed=4) and "step      2  sample: " in capsys.readouterr().out
    assert Trainer(new(), TEXT, **SMALL).run().loss == trainer.losses[-1], "looking changes nothing"


def test_bits_per_byte_compare_tokenizers(tmp_path):
    """Of a model that likes every token alike: log2 of the vocabulary, over the bytes of a token."""
    pytest.importorskip("tokenizers", reason="needs the extra io")
    text = tmp_path / "text"
    text.write_bytes(TEXT.tobytes() + " caf\u00e9 \u2713\n".encode() * 50)
    bpe = cllm.BPETokenizer.train([text.read_text(encoding="utf-8")], 300)
    for tokenizer in (cllm.ByteTokenizer(), bpe):
        assert tokenizer.byte_lengths[tokenizer.encode(text.read_bytes())].sum() == text.stat().st_size
        model = cllm.GPT(cllm.ModelConfig(tokenizer.vocab_size, 1, 16, 2, 32, 16))
        model.parameters["tok_emb.weight"][...] = 0
        out = tmp_path / tokenizer.name.partition(":")[0]
        trainer = Trainer(model, text, out, tokenizer=tokenizer, **{**SMALL, "eval_batches": 100})
        trainer.run()
        record = next(line for line in read_lines(out / "metrics.jsonl") if line["event"] == "evaluation")
        windows = [trainer.source.val_tokens[s + 1:s + 17] for s in corpus.even_starts(len(trainer.source.val_tokens), 16, 200)]
        nbytes = tokenizer.byte_lengths[np.concatenate(windows)].mean()
        assert record["bits_per_byte"] == pytest.approx(np.log2(tokenizer.vocab_size) / nbytes, rel=1e-5)
    assert bits_per_byte(1.0, None) is None
    Trainer(new(), TEXT, tmp_path / "given", **SMALL).run()
    assert all(line.get("bits_per_byte") is None for line in read_lines(tmp_path / "given" / "metrics.jsonl"))
