"""The one clock of profiling: nothing else has one; pairing; ratios that say when they mean nothing."""
import ast
import re

import pytest
from profiling_scripts import FILES, FOLDER, name_of, script

harness = script("harness")


def test_ratio_is_paired():
    # The machine slows to a third in the second round; side by side the ratio is 2 all along.
    fast, slow = harness.Timing(((1.0,), (3.0,), (1.1,))), harness.Timing(((2.0,), (6.0,), (2.2,)))
    ratio = harness.ratio(slow, fast)
    assert ratio.value == pytest.approx(2) and ratio.low == pytest.approx(2) and ratio.high == pytest.approx(2)


def test_ratio_says_when_intervals_overlap():
    a, b = harness.Timing(((1.0,), (1.2,))), harness.Timing(((1.1,), (1.3,)))
    assert harness.ratio(a, b).intervals_overlap
    assert "intervals overlap" in str(harness.ratio(a, b)) and "intervals overlap" in f"{harness.ratio(a, b)}"


def test_ratio_is_plain_when_they_do_not():
    a, b = harness.Timing(((1.0,), (1.2,))), harness.Timing(((2.0,), (2.4,)))
    assert not harness.ratio(a, b).intervals_overlap
    assert str(harness.ratio(a, b)) == "0.50 (0.50 to 0.50)"


def test_ratio_refuses_what_does_not_pair():
    with pytest.raises(ValueError, match="cannot be paired"):
        harness.ratio(harness.Timing(((1.0,),)), harness.Timing(((1.0,), (1.0,))))


def test_timing_folds_rounds():
    timing = harness.Timing(((1.0, 5.0, 2.0), (4.0, 3.0, 9.0), (7.0,)))
    assert timing.by_round == (2.0, 4.0, 7.0)
    assert (timing.min, timing.median, timing.max) == (1.0, 4.0, 9.0)


def test_interleave_takes_turns_back_and_forth(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE_SECONDS", 0.0)
    order = []

    def contestant(name):
        return lambda: order.append(name) or [1.0]

    timings = harness.interleave({name: contestant(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_burst_measures_each_call():
    calls = []
    seconds = harness.burst(lambda: calls.append(1), 5)
    assert len(seconds) == len(calls) == 5 and all(one >= 0 for one in seconds)


def test_repeats_fill_a_burst():
    assert harness.repeats_for(0.001) == 20
    assert harness.repeats_for(10.0) == 1
    assert harness.repeats_for(1e-9) == 200


def test_interval_of_a_median():
    assert harness.median_interval([5.0, 1.0, 3.0]) == (3.0, 1.0, 5.0)
    assert harness.median_interval([*range(6)]) == (2.5, 0, 5)
    assert harness.median_interval([*range(11)]) == (5, 1, 9), "1 + 11 of 2048 lie below: 0.6 %; with 55 more it were 3.3 %"
    # Of all orders in which 9 values can lie about the true median, at least 95 % have it inside.
    low, high = harness.median_interval([*range(9)])[1:]
    inside = sum(low < below <= high for signs in range(2 ** 9) for below in [signs.bit_count()])
    assert inside / 2 ** 9 >= 0.95


CLOCKS = {"time", "timeit", "sched", "cProfile", "profile"}


def clocks_of(source):
    """What a source imports that tells the time; a day's date is none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in CLOCKS | {"datetime"})
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.split(".")[0] in CLOCKS
                        or (node.module, alias.name) == ("datetime", "datetime"))
        elif isinstance(node, ast.Attribute) and node.attr in ("times", "clock_gettime", "getrusage"):
            yield node.attr


def test_only_the_harness_has_a_clock():
    assert [name_of(path) for path in FILES if [*clocks_of(path.read_text(encoding="utf-8"))]] == ["harness"]


def test_a_clock_is_seen():
    for source in ("import time", "def f():\n    from time import perf_counter", "import timeit as t", "import os\nos.times()",
                   "from datetime import datetime", "import datetime", "import time.x"):
        assert [*clocks_of(source)], source
    assert not [*clocks_of("from datetime import date\nfrom cllm import timeline\nrow.time = 3")]


def imported(tree, modules):
    """What a source calls modules of profiling, the modules, and the single names that it takes of them."""
    named, taken = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.asname or alias.name: modules[alias.name] for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                whole = modules.get(f"{node.module}.{alias.name}")
                if whole is None:
                    taken.add((node.module, alias.name))
                else:
                    named[alias.asname or alias.name] = whole
    return named, taken


def unknown_names(source, modules):
    """What a source takes from modules of profiling that they do not have, as ``module.name``."""
    tree = ast.parse(source)
    named, taken = imported(tree, modules)
    missing = {f"{module}.{name}" for module, name in taken if not hasattr(modules[module], name)}
    return missing | {f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                      and isinstance(node.value, ast.Name) and node.value.id in named
                      and not hasattr(named[node.value.id], node.attr)}


@pytest.fixture(scope="module")
def modules():
    return {name_of(path): script(name_of(path)) for path in FILES}


def test_what_a_script_takes_from_the_others_is_there(modules):
    """A script that needs PyTorch, or an hour, runs in no test."""
    for path in FILES:
        assert not unknown_names(path.read_text(encoding="utf-8"), modules), path


def test_a_name_that_is_not_there_is_seen(modules):
    assert unknown_names("import harness\nharness.Peer('x')\nharness.burst", modules) == {"harness.Peer"}
    assert unknown_names("from peers import process as p, no\np.Peer\np.burst\np.no", modules) == {"peers.no", "p.no"}
    assert unknown_names("from peers.process import Peer, burnt\nfrom json import no", modules) == {"peers.process.burnt"}


def test_contestants_are_files():
    """A contestant is named by its file, in words."""
    for name in {name for path in FILES for name in re.findall(r'"(peers/[^"]*?)"', path.read_text(encoding="utf-8"))}:
        sides = ("cllm", "torch") if "{library}" in name else ("",)
        assert all((FOLDER / name.replace("{library}", side)).is_file() for side in sides), name
