"""How runs begin: nothing is written before the lock is held, nothing is left of what is refused, any text once or twice."""
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cllm
from cllm import corpus
from cllm.errors import BudgetError, ConfigError, DataError, SnapshotError
from cllm.strategies import memory_budget
from cllm.train import Callback, Trainer, TrainSettings
from cllm.train.guard import beginning_in, only_run_in, refuse_if_running

WORDS = b"It is a truth universally acknowledged.\n"
SMALL = dict(steps=2, batch_size=2, seq_len=8, eval_every=5, eval_batches=1, threads=1, lr=1e-3)


def new(vocab_size=256):
    return cllm.GPT(cllm.ModelConfig(vocab_size, 1, 16, 2, 32, 16), seed=1)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_bytes(WORDS * 30)
    return tmp_path / "text"


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------- one at a time

def test_nothing_is_written_before_the_lock_is_held(text, tmp_path):
    """A second run finds the directory in use, and leaves it as it was."""
    Trainer(new(), text, tmp_path / "run", **SMALL).run()
    other = tmp_path / "other"
    other.write_bytes(b"another text " * 100)
    with only_run_in(tmp_path / "run"):
        before = everything(tmp_path / "run")
        for resume in (False, True):
            with pytest.raises(SnapshotError, match="must be the only one there; got another that is still going"):
                Trainer(new(), other, tmp_path / "run", resume=resume, **SMALL)
        with pytest.raises(SnapshotError, match="must be the only one there"):
            refuse_if_running(tmp_path / "run")
        assert everything(tmp_path / "run") == before
    refuse_if_running(tmp_path / "run")
    refuse_if_running(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_that_another_has_overtaken_does_not_write(text, tmp_path):
    """Both were made when there was nothing; the lock is held only while one writes."""
    late = Trainer(new(), text, tmp_path / "run", **SMALL)
    Trainer(new(), text, tmp_path / "run", **SMALL).run()
    before = everything(tmp_path / "run")
    with pytest.raises(SnapshotError, match="got step-000002, which another run has left since this one was made"):
        late.run()
    assert everything(tmp_path / "run") == before


def test_runs_that_are_refused_let_no_two_into_a_directory(tmp_path):
    """Threads that begin, are refused, and take away the very file that others wait to lock."""
    inside, most, guard, failures = 0, 0, threading.Lock(), []

    def work():
        nonlocal inside, most
        for _ in range(200):
            try:
                with beginning_in(tmp_path / "run"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    (tmp_path / "run" / "file").touch()
                    with guard:
                        inside -= 1
                    raise ConfigError("it", "is refused", "that", "Go.")
            except (SnapshotError, ConfigError):
                pass
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not failures


# -------------------------------------------------------------------------------------------------------- nothing left

@pytest.mark.parametrize("change, error", [
    (dict(steps=0), ConfigError), (dict(strategy="nonsense"), ConfigError), (dict(memory_budget=1000), BudgetError),
    (dict(seq_len=10_000), ConfigError), (dict(optimizer="lion"), ConfigError), (dict(val_fraction=0.001), DataError),
    (dict(text="/none"), DataError), (dict(text=np.array([300])), DataError), (dict(strategy=object()), ConfigError),
    (dict(steps=5, hours=1), ConfigError)], ids=lambda value: ",".join(value) if isinstance(value, dict) else value.__name__)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_nothing_is_left_of_a_run_that_is_refused(change, error, there, text, tmp_path):
    out = tmp_path / "a" / "b" / "run"
    if there:
        out.mkdir(parents=True)
        (out / "notes").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(error):
        Trainer(new(), change.get("text", text), out, **{**SMALL, **{k: v for k, v in change.items() if k != "text"}})
    assert everything(tmp_path) == before


@pytest.mark.parametrize("out", ["a\0b", "n" * 300, 3.5, b"bytes", ["run"]], ids=repr)
def test_directories_that_cannot_be(out, text):
    with pytest.raises((ConfigError, SnapshotError)):
        Trainer(new(), text, out, **SMALL)


def test_a_file_is_no_directory(text, tmp_path):
    with pytest.raises(SnapshotError, match="must be in a directory that can be written and locked"):
        Trainer(new(), text, text, **SMALL)


def test_what_killed_runs_left_is_swept_away(text, tmp_path):
    out = tmp_path / "run"
    Trainer(new(), text, out, **SMALL).run()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [out / f".metrics.jsonl.{dead.pid}.1.partial.jsonl", out / f".tokens.bin.{dead.pid}.1.partial.bin",
            out / ".step-000007.5.partial"]
    left[0].touch(), left[1].touch(), left[2].mkdir()
    Trainer(new(), text, out, resume=True, **{**SMALL, "steps": 3}).run()
    assert not any(path.exists() for path in left)


# ---------------------------------------------------------------------------------------------------------------- texts

@pytest.mark.parametrize("out", ["run", "deep/run", "."])
def test_a_run_inside_its_text_can_be_resumed(out, tmp_path):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_bytes(WORDS * 20)
    (folder / "more" / "b.txt").write_bytes(WORDS * 20)
    Trainer(new(), folder, folder / out, **SMALL).run()
    Trainer(new(), folder, folder / "another", **SMALL).run()  # nor do the files of another run count
    again = Trainer(new(), folder, folder / out, resume=True, **{**SMALL, "steps": 4})
    assert again.run().step == 4 and again.source.data.tokens.tobytes() == WORDS * 40


def test_a_text_that_changed_costs_no_tokens(text, tmp_path):
    """The tokens are the only copy of the text as it was."""
    Trainer(new(), text, tmp_path / "run", **SMALL).run()
    text.write_bytes(WORDS * 31)
    with pytest.raises(DataError, match="Give the text as it was, or start afresh in another directory"):
        Trainer(new(), None, tmp_path / "run", resume=True, **{**SMALL, "steps": 3})
    assert corpus.open_tokens(tmp_path / "run" / "tokens.bin").tokens.tobytes() == WORDS * 30
    text.unlink()
    assert Trainer(new(), None, tmp_path / "run", resume=True, **{**SMALL, "steps": 3}).run().step == 3


def pipe_with(content):
    """Path of a pipe that gives the content once."""
    read, write = os.pipe()

    def feed():
        with os.fdopen(write, "wb") as file:
            file.write(content)

    threading.Thread(target=feed).start()
    return read, f"/dev/fd/{read}"


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_a_pipe_is_read_once_and_its_run_resumed(tmp_path):
    content = WORDS * 4000  # more than a pipe holds
    descriptor, path = pipe_with(content)
    first = Trainer(new(), path, tmp_path / "run", **SMALL)
    os.close(descriptor)
    assert first.source.data.tokens.tobytes() == content and first.run().step == 2
    again = Trainer(new(), None, tmp_path / "run", resume=True, **{**SMALL, "steps": 3})
    assert again.run().step == 3 and again.source.data.sha256 == first.source.data.sha256
    descriptor, path = pipe_with(content)
    assert Trainer(new(), path, None, **SMALL).source.data.tokens.astype(np.uint8).tobytes() == content
    os.close(descriptor)


@pytest.mark.parametrize("given", [b"bytes", bytearray(b"x"), 3, 2.5, {}, [1.5, 2.5], [[1], [2, 3]], [[1, 2], [3, 4]], [],
                                   np.array("x")], ids=repr)
def test_what_is_no_text_is_refused(given):
    with pytest.raises(DataError, match="must be a path, or integers in one axis; got .*ByteTokenizer"):
        Trainer(new(), given, **SMALL)


@pytest.mark.parametrize("given", ["a text itself " * 50, "a\0b", "line\nline"], ids=["long", "null", "lines"])
def test_a_text_instead_of_its_path_is_told_how(given, tmp_path):
    for out in (None, tmp_path / "run"):
        with pytest.raises(DataError, match=r"must be a file that can be read; got .*ByteTokenizer\(\)\.encode\(text\)"):
            Trainer(new(), given, out, **SMALL)


def test_tokens_may_be_a_list(tmp_path):
    assert Trainer(new(), list(WORDS * 3), **SMALL).run().step == 2
    with pytest.raises(DataError, match="tokens must be from 0 to 255; got 0 to 300"):
        Trainer(new(), [0, 300] * 50, **SMALL)


def test_json_lines_are_the_texts_in_them(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [{"text": "one\ntwo", "more": 1}, {"text": "caf\u00e9"}, {"text": ""}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert b"".join(piece for *_, piece in corpus.text_pieces(path)) == "one\ntwo\ncaf\u00e9\n\n".encode()
    path.write_text(json.dumps({"text": WORDS.decode() * 30}))
    assert Trainer(new(), path, tmp_path / "run", **SMALL).run().step == 2


@pytest.mark.parametrize("line, reason", [
    ("{}", "KeyError"), ("[]", "no 'text'"), ('{"text": 3}', "a int under 'text'"), ("text", "JSON"),
    ('{"text": "\\ud800"}', "surrogates"), ("[" * 50_000, "Recursion")], ids=range(6))
def test_json_lines_without_a_text_are_named(line, reason, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=f"line 2: must be a JSON object with a string under 'text'; got .*{reason}"):
        list(corpus.text_pieces(path))


# ------------------------------------------------------------------------------------------- tokenizers and strategies

def test_another_tokenizer_is_refused_before_anything_is_tokenised(text, tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra io")
    bpe = cllm.BPETokenizer.train([WORDS.decode()], 280)
    model = new(bpe.vocab_size)
    Trainer(model, text, tmp_path / "run", **SMALL).run()
    (tmp_path / "run" / "tokens.bin").unlink()
    with pytest.raises(DataError, match="must go on with the tokenizer it began with, bytes; got bpe"):
        Trainer(model, text, tmp_path / "run", tokenizer=bpe, resume=True, **{**SMALL, "steps": 3})
    assert not (tmp_path / "run" / "tokens.bin").exists()


class Mine:
    """A strategy of a user's own."""

    def decide(self, ledger):
        return cllm.RecomputeAll().decide(ledger)

    def __repr__(self):
        return "Mine()"


@pytest.mark.parametrize("strategy", [Mine(), cllm.EveryNth(1), cllm.PerBlock({0: cllm.Selective()})], ids=repr)
def test_a_strategy_without_a_name_is_given_again(strategy, text, tmp_path):
    Trainer(new(), text, tmp_path / "run", strategy=strategy, **SMALL).run()
    with pytest.raises(ConfigError, match="must be given its strategy again, which has no name; got none; it was"):
        Trainer(new(), text, tmp_path / "run", resume=True, steps=3)
    for again in (dict(strategy=strategy), dict(strategy="cache"), dict(memory_budget="1GB")):
        assert Trainer(new(), text, tmp_path / "run", resume=True, steps=3, **again).executors.kept
    plan = cllm.plan(new(), 2, 8, strategy, num_threads=1)
    assert Trainer(new(), text, None, strategy=plan, **SMALL).run().step == 2


# ----------------------------------------------------------------------------------------------------------------- auto

def test_auto_is_read_once_and_before_anything_is_made(text, tmp_path, monkeypatch):
    readings = []

    def free_bytes():
        readings.append(1)
        return 50_000_000 if len(readings) == 1 else 1

    monkeypatch.setattr(memory_budget, "free_bytes", free_bytes)

    class Shapes(Callback):
        def on_event(self, trainer, record):
            from cllm.train.progress import in_words
            if record["event"] == "step":
                assert " of 50 MB" in in_words(trainer, record)

    model = new()
    trainer = Trainer(model, text, tmp_path / "run", memory_budget="auto", callbacks=[Shapes()], **SMALL)
    assert trainer.executors.limit == 50_000_000 + sum(p.nbytes for p in model.parameters.values())
    trainer.train_step([corpus.batch(np.frombuffer(WORDS * 9, np.uint8), 1, 16, 0)])
    trainer.run()
    assert len(readings) == 1 and trainer.settings.memory_budget == "auto"
    given = cllm.Trainer(new(), text, None, strategy="budget:auto", **SMALL, budget=cllm.MemoryBudget(10**7))
    assert given.executors.limit == 10**7 and len(readings) == 1


def test_what_the_run_holds_is_not_counted_against_it(monkeypatch):
    """Half of what a plan counts is in memory when the executor is made: room for the other half is enough."""
    model = cllm.GPT(cllm.ModelConfig(256, 2, 64, 2, 128, 64))
    model.zero_grad(), model.gradients
    total = cllm.plan(model.config, 1, 16, "cache@1", optimizer="none", num_threads=1).total_bytes
    held = model.held_bytes
    assert held == 2 * sum(p.nbytes for p in model.parameters.values())
    monkeypatch.setattr(memory_budget, "free_bytes", lambda: total - held)
    for made in (cllm.plan(model, 1, 16, "budget:auto", optimizer="none", num_threads=1),
                 cllm.Executor(model, 1, 16, cllm.MemoryBudget("auto"), "none", 1).plan):
        assert made.limit == total and made.total_bytes <= total
    with pytest.raises(BudgetError, match="'auto' found free"):
        monkeypatch.setattr(memory_budget, "free_bytes", lambda: 1)
        cllm.plan(model, 1, 16, "budget:auto", num_threads=1)


# ---------------------------------------------------------------------------------------------------------------- steps

def test_hours_become_steps_that_are_kept(text, tmp_path, monkeypatch, copies):
    from cllm.train import pace
    monkeypatch.setattr(pace, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_seconds_of", lambda call: call() and 0.5)
    settings = {name: value for name, value in SMALL.items() if name != "steps"}
    model = new()
    before = copies(model.parameters)
    trainer = Trainer(model, text, tmp_path / "run", hours=0.01, **settings)
    assert 50 <= trainer.settings.steps <= 72 and trainer.settings.hours == 0.01 and "about" in trainer.notes[0]
    assert trainer.settings.warmup == trainer.settings.steps // 10
    for name, array in before.items():
        np.testing.assert_array_equal(array, model.parameters[name])
    straight = Trainer(new(), text, None, **settings, steps=trainer.settings.steps)
    trainer.train_step(), straight.train_step()
    assert trainer.losses == straight.losses, "the timing changes nothing"
    trainer.snapshot()
    again = Trainer(new(), text, tmp_path / "run", resume=True, hours=0.01, **settings)
    assert again.settings.steps == trainer.settings.steps and not again.notes
    with pytest.raises(ConfigError, match="hours 0.01 there, 3.0 now|hours 0.01 there, 3 now"):
        Trainer(new(), text, tmp_path / "run", resume=True, hours=3)


def test_a_rate_that_jumps_is_told(text, tmp_path):
    Trainer(new(), text, tmp_path / "run", **SMALL).run()
    longer = Trainer(new(), text, tmp_path / "run", resume=True, **{**SMALL, "steps": 40})
    assert len(longer.notes) == 1 and "falls over 40 steps, not 2" in longer.notes[0]
    assert f"{longer.rate(2):.2e}" in longer.notes[0]
    assert not Trainer(new(), text, tmp_path / "run", resume=True, **SMALL).notes


@pytest.mark.parametrize(("there", "words"), [
    ({"machine": "x86_64", "level": "x86-64-v4", "fuses": True}, "by kernels for x86-64-v4 on x86_64, .*bits are the same"),
    ({"machine": "x86_64", "level": "x86-64", "fuses": False}, "by kernels for x86-64 on x86_64, .*bits may be others")])
def test_a_run_that_goes_on_under_other_kernels_says_what_that_means(there, words, text, tmp_path, monkeypatch):
    from cllm.snapshot import directory
    from cllm.train import beginning
    monkeypatch.setattr(directory, "arithmetic", lambda: there)
    Trainer(new(), text, tmp_path / "run", **SMALL).run()
    here = {"machine": "aarch64", "level": "armv8-a", "fuses": True}
    monkeypatch.setattr(beginning, "arithmetic", lambda: here)
    note, = Trainer(new(), text, tmp_path / "run", resume=True, **SMALL).notes
    assert re.search(words, note) and "the run goes on with armv8-a on aarch64" in note
    monkeypatch.setattr(beginning, "arithmetic", lambda: there)
    assert not Trainer(new(), text, tmp_path / "run", resume=True, **SMALL).notes


def test_a_snapshot_of_an_earlier_version_does_not_say_which_kernels_made_it():
    from cllm.train.beginning import _other_kernels
    assert _other_kernels(None) == []


def test_threads_by_either_name(text):
    assert Trainer(new(), text, num_threads=3, **{k: v for k, v in SMALL.items() if k != "threads"}).settings.threads == 3
    assert TrainSettings(threads=2).threads == 2
