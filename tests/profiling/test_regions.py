"""What a step consists of on many threads: how events become counts and seconds, and the stand-in runtime itself."""
import shutil

import pytest
from profiling_scripts import FOLDER, script

from cllm import _build_info

regions = script("regions")
MODEL = {"source": "gpt", "family": "gpt", "config": {"vocab_size": 256, "n_layers": 1, "n_heads": 3, "d_model": 96,
                                                      "d_ff": 384, "max_seq_len": 100}}


class Machine:
    """A region costs 1 s, a further barrier 0.25 s; memory moves 10 bytes a second."""

    def opening(self, threads):
        return 1.0, 0.25

    def bandwidth(self, threads, nbytes):
        return 10.0


def event(mark, threads, busiest, everyone, barriers=1, shares=0):
    return [mark, 7 if threads else None, threads, barriers if threads else 0, shares, busiest, everyone, 0.0]


def test_the_least_seconds_of_each_event_count():
    steps = [[event(0, 0, 0.5, 0.5), event(0, 4, 2.0, 6.0)], [event(0, 0, 0.7, 0.7), event(0, 4, 1.0, 7.0)]]
    assert regions.fastest(steps) == [event(0, 0, 0.5, 0.5), event(0, 4, 1.0, 6.0)]
    with pytest.raises(ValueError, match="different regions"):
        regions.fastest([steps[0], steps[0][:1] + [event(0, 3, 2.0, 6.0)]])


def test_time_is_serial_and_the_busiest_thread_or_memory_and_what_opening_costs():
    events = [event(0, 0, 0.5, 0.5), event(0, 4, 2.0, 6.0, barriers=3, shares=8), event(1, 0, 0.1, 0.1), event(2, 4, 1.0, 4.0)]
    found = regions.by_mark(events, 4, [5.0, 99.0, 30.0], Machine())
    assert found[0] == {"regions": 1, "barriers": 3, "shares": 8, "serial": 0.5, "busiest": 2.0, "all_threads": 6.0,
                        "memory": 0.5, "opening": 1.5, "predicted": 4.0}
    assert found[1]["predicted"] == 0.1, "what one thread does alone has taken its time from memory already"
    assert found[2]["predicted"] == 3.0 + 1.0
    assert regions.total(found.values())["predicted"] == pytest.approx(8.1)
    assert regions.by_loop(events, {7: "multiply 0"})["multiply 0"]["regions"] == 2


def test_the_table_says_how_much_faster_and_how_evenly():
    rows = [{"strategy": "cache", "threads": threads, "regions": 0, "barriers": 0, "shares": 0, "serial": 0.0,
             "busiest": busiest, "all_threads": 4.0, "opening": 0.0, "predicted": busiest, "measured": None}
            for threads, busiest in ((1, 4.0), (4, 1.6))]
    assert regions.lines_of(rows)[2].split()[-2:] == ["2.50", "0.62"]


@pytest.mark.skipif(shutil.which("cc") is None or not _build_info.OPENMP or "clang" in _build_info.COMPILER.lower(),
                    reason="the stand-in runtime is for GCC's builds, and compiled with a C compiler")
def test_the_stand_in_runtime_computes_the_same_bits_on_any_number_of_threads(tmp_path):
    """Real steps: static and dynamic loops, barriers within a region, more threads than work."""
    runtime = regions.built(tmp_path, "simulated_threads.c", "simulated_threads.so", "-shared", "-fPIC", "-Wall", "-Werror")
    assert (FOLDER / "machine" / "simulated_threads.c").exists()
    found = {}
    for threads, variables in ((1, {}), (5, {"LD_PRELOAD": str(runtime)})):
        with regions.process.Peer("peers/cllm/regions.py", 1, **variables) as peer:
            peer.ask("make", model=MODEL, batch_size=4, seq_len=100, strategy="cache", threads=threads)
            if variables:
                first, second = peer.ask("regions"), peer.ask("regions")
                assert regions.fastest([first, second])
                assert {one[regions.THREADS] for one in first} >= {0, 5}
                loops = regions.by_loop(first, regions.functions_of(peer.ask("extension")))
                assert any(one["shares"] > 5 for one in loops.values()) and any(one["shares"] == 0 for one in loops.values())
                assert max(one[regions.BARRIERS] for one in first) > 1, "layer norm's backward has a barrier within"
            else:
                peer.ask("burst", repeats=2)
            found[threads] = peer.ask("digest")
    assert found[1] == found[5]


def test_processes_are_told_with_what_each_holds_and_how_long_a_step_takes():
    views = script("views").VIEWS
    row = {"parts": [["weights", 4_000_000, 0], ["gradients", 0, 0], ["states", 8_000_000, 0], ["activations", 1_500_000, 0]],
           "total_bytes": 13_500_000, "seconds": {"median": 0.5, "min": 0.4, "max": 0.6}, "weights": "0123456789"}
    data = {"rows": {"1 process": row, "2 processes": {**row, "weights": "9876543210"}},
            "scaling": [{"processes": 1024, "compute_seconds": 0.25, "message_seconds": 0.5}]}
    _, told = views["processes", ""](data)
    assert told[0] == ("1 process", "4.0", "0.0", "8.0", "1.5", "13.5", "0.500 (0.400 to 0.600)", "`01234567`")
    assert told[1][-1] == "`98765432`"
    assert views["processes", "foretold"](data)[1] == [("1,024", "0.250", "0.500", "0.750")]
    lost = {"processes": 4, "killed": True, "resumed_by": 2, "exit_code": 0, "same_bits": True, "left": 0}
    other = {**lost, "killed": False, "resumed_by": 4, "same_bits": False, "left": 3}
    assert [cell for _, cell in views["processes_kills", ""]({"rows": [lost, other]})[1]] == ["1", "1", "1", "1", "3"]
