"""A run that several processes share, played by threads: numbers, snapshots and errors are those of one."""
import threading

import numpy as np
import oracle
import pytest
from team import processes

import cllm
from cllm import corpus, snapshot
from cllm.errors import BudgetError, ConfigError, DataError, SnapshotError
from cllm.executor import groups
from cllm.train import Callback, Trainer, read_lines
from cllm.train.pace import Paces
from cllm.train.progress import in_words, step_in_short

TEXT = np.frombuffer(corpus.embedded_text()[:20_000], np.uint8)
RUN = dict(steps=6, batch_size=4, seq_len=16, eval_every=3, eval_batches=2, snapshot_every=2, threads=1, lr=3e-3, groups=4,
           clip=0.5)


def new(n_layers=2, d_model=32):
    return cllm.GPT(cllm.ModelConfig(256, n_layers, d_model, 2, 64, 32, dropout=0.1), seed=1)


def trained(out, team=None, callbacks=(), **changes):
    """The trainer after its run, or the error that ended it."""
    model, text = new(changes.pop("n_layers", 2), changes.pop("d_model", 32)), changes.pop("text", TEXT)
    trainer = Trainer(model, text, out, team=team, callbacks=callbacks, **{**RUN, **changes})
    trainer.result = trainer.run()
    return trainer


def files(out):
    """Digests of all files of the last snapshot."""
    return {name: one["sha256"] for name, one in snapshot.read_state(snapshot.snapshots(out)[-1])["files"].items()}


class Stop(Callback):
    """After step 3."""

    def on_event(self, trainer, record):
        if record["event"] == "step" and record["step"] == 3:
            trainer.stop()


def test_a_run_of_any_number_of_processes_is_that_of_one(tmp_path):
    one = trained(tmp_path / "one")
    for size in (2, 4):
        out = tmp_path / f"of {size}"
        found = processes(size, lambda team, out=out: trained(out, team))
        for each in found:
            assert not isinstance(each, Exception), each
            assert each.losses == one.losses and each.val_loss == one.val_loss
            oracle.assert_same_bits(dict(each.model.parameters), dict(one.model.parameters))
            assert each.result.snapshot == found[0].result.snapshot
        assert files(out) == files(tmp_path / "one")
        assert [line["event"] for line in read_lines(out / "metrics.jsonl")] == \
            [line["event"] for line in read_lines(tmp_path / "one" / "metrics.jsonl")]


def test_a_run_is_resumed_by_another_number_of_processes(tmp_path):
    trained(tmp_path / "straight")

    sizes = (4, 1, 2)
    for number, (first, then) in enumerate(zip(sizes, (*sizes[1:], sizes[0]), strict=True)):
        out = tmp_path / str(number)
        began = processes(first, lambda team, out=out: trained(out, team if team.size > 1 else None, [Stop()]))
        assert all(one.result.interrupted and one.step == 3 for one in began), began
        ended = processes(then, lambda team, out=out: trained(out, team if team.size > 1 else None, resume=True))
        assert all(one.step == 6 for one in ended), ended
        assert files(out) == files(tmp_path / "straight")
    for wrong in processes(2, lambda team: trained(tmp_path / "0", team, resume=True, groups=2)):
        assert isinstance(wrong, ConfigError) and "groups 4 there, 2 now" in str(wrong)


def test_what_one_process_cannot_do_ends_all_in_words(tmp_path, monkeypatch):
    def text(step):
        raise DataError("rows", "must be there", f"none for step {step}", "Put them back.")

    def fails(team):
        data = cllm.Trainer(new(), TEXT, **RUN).source.calls
        broken = lambda step: text(step) if team.rank == 1 and step == 2 else data(step)[0]  # noqa: E731
        settings = {name: value for name, value in RUN.items() if name not in ("batch_size", "seq_len")}
        return Trainer(new(), data=broken, out=tmp_path / "data", team=team, **settings).run()

    found = processes(2, fails)
    assert isinstance(found[1], DataError) and isinstance(found[0], ConfigError)
    assert "process 1: must be as in the others; got rows: must be there; got none for step 2" in str(found[0])
    assert snapshot.step_of(snapshot.snapshots(tmp_path / "data")[-1]) == 2, "the steps that went well are kept"

    seen = []

    def fails_otherwise(team):
        data = cllm.Trainer(new(), TEXT, **RUN).source.calls
        broken = lambda step: {}["rows"] if team.rank == 1 and step == 2 else data(step)[0]  # noqa: E731
        settings = {name: value for name, value in RUN.items() if name not in ("batch_size", "seq_len")}
        try:
            Trainer(new(), data=broken, out=tmp_path / "other", team=team, **settings).run()
        except ConfigError as error:
            seen.append(str(error))

    with pytest.raises(KeyError):
        processes(2, fails_otherwise)
    assert len(seen) == 1 and "process 1: must be as in the others; got KeyError: 'rows'" in seen[0]
    assert snapshot.step_of(snapshot.snapshots(tmp_path / "other")[-1]) == 2

    monkeypatch.setattr("cllm.train.keeper.write_snapshot", lambda *a: (_ for _ in ()).throw(
        SnapshotError("snapshot", "must be a place that can be written", "No space left on device", "Make room.")))
    for one in processes(2, lambda team: trained(tmp_path / "full", team)):
        assert isinstance(one, SnapshotError) and "No space left on device" in str(one)


def test_a_callback_that_fails_ends_all(tmp_path):
    class Fails(Callback):
        def on_event(self, trainer, record):
            if record["event"] == "step" and record["step"] == 3:
                raise DataError("callback", "must go well", "this", "Mend it.")

    first, second = processes(2, lambda team: trained(tmp_path / "run", team, [Fails()]))
    assert isinstance(first, DataError) and second.step == 3 and second.result.interrupted
    assert snapshot.step_of(snapshot.snapshots(tmp_path / "run")[-1]) == 3


def test_processes_that_differ_do_not_begin(tmp_path):
    for change in (dict(lr=1e-2), dict(text=TEXT[:-1]), dict(seed=3), dict(groups=2), dict(batch_size=8), dict(n_layers=1)):
        found = processes(2, lambda team, change=change: trained(tmp_path / "run", team, **(change if team.rank else {})))
        assert all(isinstance(one, ConfigError) and "run: must be the same in all processes" in str(one) for one in found)
        assert not (tmp_path / "run").exists()
    for name, value, message in (("accumulate", 2, "must be 1"), ("hours", 1.0, "must be left out")):
        settings = {**RUN, name: value}
        settings = {n: v for n, v in settings.items() if name != "hours" or n != "steps"}
        for one in processes(2, lambda team, s=settings: Trainer(new(), TEXT, team=team, **s)):
            assert isinstance(one, ConfigError) and f"train({name}=...): {message} where several processes train" in str(one)
    for one in processes(4, lambda team: trained(None, team, groups=2)):
        assert isinstance(one, ConfigError) and "processes: must be a power of two that divides groups = 2; got 4" in str(one)


def test_a_budget_is_one_for_all():
    small = dict(n_layers=1, steps=1)
    plans = processes(2, lambda team: trained(None, team, strategy="budget:1MB", **small).executors.of(4, 16).plan)
    assert plans[0] == plans[1] and plans[0].total_bytes <= 10**6, plans
    for one in processes(2, lambda team: trained(None, team, strategy="budget:100kB", **small)):
        assert isinstance(one, (BudgetError, ConfigError)) and "must be at least" in str(one)



def test_progress_names_the_process_that_others_wait_for(monkeypatch, tmp_path):
    """By clocks of their own, of which that of process 1 ticks three times as far."""
    clock = threading.local()

    def tick():
        clock.now = getattr(clock, "now", 0.0) + getattr(clock, "tick", 1.0)
        return clock.now

    monkeypatch.setattr("cllm.executor.stopwatch.perf_counter", tick)

    def work(team):
        clock.tick = 1.0 + 2 * team.rank
        return trained(tmp_path, team)

    first, _ = processes(2, work)
    steps = [record for record in read_lines(tmp_path / "metrics.jsonl") if record["event"] == "step"]
    assert len(steps) == 6 and {(one["slowest_process"], one["slowest_over_median"]) for one in steps} == {(1, 1.5)}
    assert "tok/s  slowest process 1 (1.50 of the median)  memory" in in_words(first, steps[-1])
    assert " tok/s slowest process 1 (1.50) " in step_in_short(first, steps[-1], 200)
    alone = trained(tmp_path / "alone")
    assert "slowest" not in in_words(alone, read_lines(tmp_path / "alone" / "metrics.jsonl")[1])


def test_a_pace_forgets():
    paces = Paces()
    assert paces.seen([1.0, 3.0, 2.0]) == {"slowest_process": 1, "slowest_over_median": 1.5}
    for _ in range(50):
        found = paces.seen([4.0, 1.0, 2.0])
    assert found["slowest_process"] == 0 and 1.9 < found["slowest_over_median"] < 2.1


def test_states_in_a_byte_an_element_are_written_whole(tmp_path, monkeypatch):
    """Their parts are of other lengths than the parameter's, and of several pieces here."""
    monkeypatch.setattr(groups, "PIECE_BYTES", 4096)
    wide = dict(n_layers=1, d_model=160, optimizer="*emb.weight=adamw,adamw8bit")
    one = trained(tmp_path / "one", **wide)
    for found in processes(2, lambda team: trained(tmp_path / "two", team, [Stop()], **wide)):
        assert found.snapshot_bytes == one.snapshot_bytes
    assert processes(4, lambda team: trained(tmp_path / "two", team, resume=True, **wide))[0].step == 6
    assert files(tmp_path / "two") == files(tmp_path / "one")
