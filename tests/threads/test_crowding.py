"""Processes of one run that have fewer cores than threads are told of."""
from cllm.threads import crowding


class Told:
    """A team whose other processes are made up."""

    def __init__(self, *others):
        self.others = others

    def tell(self, value):
        return [value, *self.others]


def test_processes_that_share_cores_are_named(monkeypatch):
    monkeypatch.setattr(crowding, "usable_cores", lambda: frozenset({4, 5}))
    monkeypatch.setattr(crowding.socket, "gethostname", lambda: "one")
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    assert crowding.crowded(Told(("one", [0, 1], 2), ("two", [4, 5], 2)), 2) == []
    assert crowding.crowded(Told(), 2) == [] and crowding.crowded(Told(("two", [], 64)), 2) == []
    (found,) = crowding.crowded(Told(("two", [4], 1), ("one", [4], 1)), 2)
    assert found == ("one: 3 threads of processes 0, 2 share 2 cores. Take fewer threads or processes, or let the launcher "
                     "give each as many cores as it has threads: mpirun --bind-to none.")
    (found,) = crowding.crowded(Told(("one", [4, 5], 1), ("two", [0], 8)), 1)[-1:]
    assert found.startswith("two: 8 threads of process 2 share 1 core.")


def test_openmp_binds_all_processes_to_the_same_cores(monkeypatch):
    """Each of them binds its threads from the first of its cores."""
    monkeypatch.setattr(crowding, "usable_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr(crowding.socket, "gethostname", lambda: "one")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    (found,) = crowding.crowded(Told(("one", [0, 1], 2)), 2)
    assert "4 threads of processes 0, 1 share 2 cores" in found and found.endswith("--bind-to none, without OMP_PROC_BIND.")
    assert crowding.crowded(Told(("one", [2, 3], 2)), 2) == []
    monkeypatch.setenv("OMP_PROC_BIND", "FALSE")
    assert crowding.crowded(Told(("one", list(range(8)), 2)), 2) == []
