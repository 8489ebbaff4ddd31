"""Measurements of whole steps: what is judged, what is kept when a script is killed, limits, pictures, tables."""
import json

import pytest
from profiling_scripts import script

ROW = {"clip": None, "digest": "a", "losses": [2.0], "total_bytes": 1000, "allocated_bytes": 1000, "peak_growth_bytes": 1010,
       "disk_bytes": 0, "moved_bytes": {"write": 0, "read": 0}}
SECONDS = {"min": 1.9, "median": 2.0, "max": 2.2}
IN_TURN = {"clip": None, "loss": 2.0, "seconds": SECONDS, "growth_bytes": 900}
DISKS = [{"write": 100.0, "read": 200.0, "how": "O_DIRECT"}, {"write": 200.0, "read": 100.0, "how": "O_DIRECT"}]


def result(**changes):
    """A result of two ways and PyTorch, judged."""
    whole_step = script("whole_step")
    rows = [{**ROW, "name": "plain"},
            {**ROW, "name": "both", "moved_bytes": {"write": 150, "read": 150}, "disk_bytes": 150, **changes}]
    in_turn = [{**IN_TURN, "name": "plain"}, {**IN_TURN, "name": "both", "seconds": {**SECONDS, "median": 4.5}},
               {**IN_TURN, "name": "torch eager", "loss": 2.00001}]
    whole_step.judge(rows, in_turn, DISKS)
    return {"disks": DISKS, "rows": rows, "in_turn": in_turn, "steps": 2, "budgets": [
        {"name": name, "clip_by": clip, "least_bytes": least, "curve": [{"total_bytes": least, "seconds": 2.0}]}
        for clip in (None, "all") for name, least in (("activations alone", 1000), ("both", 400))],
        "points": [{"total_bytes": 400, "disk_bytes": 150, "moved_bytes": {"write": 150, "read": 150},
                    "predicted_seconds": None, "seconds": SECONDS}],
        "timelines": [{"name": "both", "total_bytes": 1000, "arena_bytes": 600, "parts": [["weights", 400, 0]], "timeline": {
            "step_seconds": 2.0, "ends": [0.4, 1.0], "operations": ["forward", "update"],
            "by_kind": {"states": [0, 500], "kept": [600, 100]}}}]}


def test_time_is_judged_by_the_greater_of_plain_step_and_disk():
    data = result()
    plain, both, torch = data["in_turn"]
    assert data["rows"][1]["disk_seconds"] == 150 / 100 + 150 / 100, "at the slower of both records"
    assert (plain["over_bound"], both["over_plain"], both["over_bound"], torch["over_bound"]) == (1, 2.25, 4.5 / 3, None)
    assert script("whole_step").problems_of(data) == []


@pytest.mark.parametrize("changes, words", [
    ({"digest": "b"}, "both, clip None: other bits"), ({"losses": [2.5]}, "other bits"),
    ({"allocated_bytes": 1001}, "1,001 bytes are allocated, 1,000 were predicted"),
    ({"peak_growth_bytes": 1031}, "grew by 1.031 of the predicted total"), ({"peak_growth_bytes": 960}, "grew by 0.960")])
def test_what_is_not_as_it_must_be_is_told(changes, words):
    found, = script("whole_step").problems_of(result(**changes))
    assert words in found


def test_another_first_loss_is_told():
    data = result()
    data["in_turn"][2]["loss"] = 2.001
    assert "torch eager: trains something else" in script("whole_step").problems_of(data)[0]


def test_tables_and_pictures(tmp_path):
    views = script("views.whole_steps")
    data = {**result(), "script": "whole_step", "threads": 2, "batch_size": 1, "seq_len": 8, "model": "a model",
            "config": {"a": 1}, "machine": {"cpu": "Some CPU"}}
    tables = {view: views.VIEWS["whole_step", view](data) for view in ("", "seconds", "least", "points", "disk")}
    assert all(len(row) == len(header) for header, rows in tables.values() for row in rows)
    assert tables["least"][1][1] == ("both", "none", "0.0", "0.400") and "PyTorch eager" in views.summary(data)
    assert tables["seconds"][1][1][-2:] == ("3.00", "1.50")
    pytest.importorskip("matplotlib")
    place = tmp_path / "whole_step.json"
    place.write_text(json.dumps(data))
    assert {path.name for path in script("draw").draw(place)} == {"whole_step.png", "whole_step-step.png"}


def test_what_is_finished_is_not_measured_again(tmp_path):
    parts_of, place, asked = script("jobs.resumed").Parts, tmp_path / "result.json", {"steps": (1, 2)}
    first = parts_of(place, asked)
    assert first.part("a", lambda: [1]) == [1] and first.part("a", lambda: 1 / 0) == [1]
    with pytest.raises(ZeroDivisionError):
        first.part("b", lambda: 1 / 0)
    again = parts_of(place, asked)
    assert len(again) == 1 and again.part("a", lambda: 1 / 0) == [1]
    for other in (parts_of(place, {"steps": 3}), parts_of(place, {"steps": 3}, fresh=True)):
        assert other.part("a", lambda: [2]) == [2]
    other.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_hard_limit_is_a_group_or_none(tmp_path, monkeypatch, capsys):
    hard_limit = script("machine.hard_limit")
    monkeypatch.setattr(hard_limit, "_own", lambda: None)
    with hard_limit.group(10**9) as found:
        assert found is None
    assert "RLIMIT_DATA alone" not in capsys.readouterr().err
    monkeypatch.setattr(hard_limit, "_own", lambda: tmp_path)
    left = tmp_path / f"{hard_limit.NAME}1"
    left.mkdir()
    with hard_limit.group(10**9) as found:  # a directory is no group: the system makes no files in it
        assert found is None and not left.exists()
    assert "RLIMIT_DATA alone" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_bandwidth_past_the_page_cache(tmp_path):
    disk = script("disk")
    found = disk.to_the_device(str(tmp_path), disk.CHUNK_BYTES)
    assert found["write"] > 0 and found["read"] > 0 and found["how"]
    assert not list(tmp_path.iterdir())
