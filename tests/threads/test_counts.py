"""One check of the number of threads for every door, and the number that is taken where none is given."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from click.testing import CliRunner

import cllm
from cllm import _build_info
from cllm import _kernels as kernels
from cllm.cli import main
from cllm.comparison.job import Job
from cllm.planning import pareto
from cllm.program.workload import Workload
from cllm.sampling import Decoder, Rereader
from cllm.threads import counts
from cllm.threads.cores import binds, usable_cores

CONFIG = cllm.ModelConfig(**oracle.CONFIG)
TOKENS = np.zeros((1, 4), int)
needs_threads = pytest.mark.skipif(not _build_info.OPENMP, reason="a serial build")

DOORS = {
    "Executor": lambda model, n: cllm.Executor(model, 1, 4, num_threads=n),
    "plan": lambda model, n: cllm.plan(model, 1, 4, num_threads=n),
    "pareto": lambda model, n: pareto(CONFIG, 1, 4, num_threads=n),
    "Workload": lambda model, n: Workload(1, 4, threads=n),
    "generate": lambda model, n: cllm.generate(model, [1], 1, num_threads=n),
    "Decoder": lambda model, n: Decoder(model, n).read([1]),
    "Rereader": lambda model, n: Rereader(model, n).read([1]),
    "gradient_error": lambda model, n: cllm.gradient_error(model, TOKENS, TOKENS, "bf16", num_threads=n),
    "accumulate_weight_gradient": lambda model, n: cllm.accumulate_weight_gradient(
        np.ones((2, 3)), np.ones((2, 2)), np.zeros((3, 2)), num_threads=n),
    "set_num_threads": lambda model, n: cllm.set_num_threads(n),
    "TrainSettings": lambda model, n: cllm.TrainSettings(threads=n),
    "Trainer": lambda model, n: cllm.Trainer(model, np.arange(400) % 13, steps=1, batch_size=1, seq_len=4, num_threads=n),
    "Job": lambda model, n: Job(CONFIG, 1, 4, threads=n),
}


@pytest.fixture(autouse=True)
def as_before():
    yield
    cllm.set_num_threads(None)
    kernels.set_threads(1)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_number_of_threads_is_refused_at_every_door(door):
    model = cllm.GPT(CONFIG)
    for n in (0, -1, 1.5, 2.0, "2", True, np.bool_(True), np.float32(2), 50_000, 100_000, 2 ** 40):
        with pytest.raises(cllm.ConfigError, match=r"num_threads.* must be a whole number from 1 to 1024; got"):
            DOORS[door](model, n)
            pytest.fail(f"{n!r} is taken")


@pytest.mark.parametrize("door", DOORS)
def test_whole_numbers_of_numpy_too_are_taken_at_every_door(door):
    for n in (np.int8(2), np.uint64(3), None):
        DOORS[door](cllm.GPT(CONFIG), n)


def test_what_is_kept_is_an_int():
    for kept in (Workload(1, 4, threads=np.int16(2)).threads, cllm.TrainSettings(threads=np.int16(2)).threads,
                 Job(CONFIG, 1, 4, threads=np.int16(2)).threads):
        assert type(kept) is int and kept == 2


@pytest.mark.parametrize("command", ["plan", "memory", "compare", "sample", "train"])
@pytest.mark.parametrize("n", ["0", "100000"])
def test_the_command_line_refuses_them(command, n, tmp_path):
    more = {"sample": [str(tmp_path)], "train": ["--out", str(tmp_path / "run"), "--steps", "1"]}
    if command == "sample":
        cllm.Trainer(cllm.GPT(cllm.ModelConfig(256, 1, 16, 2, 16, 16)), out=tmp_path, steps=1, batch_size=1, seq_len=8).run()
    done = CliRunner().invoke(main, [command, *more.get(command, []), "--threads", n])
    assert done.exit_code != 0 and "must be a whole number from 1 to 1024" in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


# What the system refuses

REFUSED = """
import resource, sys, numpy as np, psutil, cllm
held = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (held + (60 << 20), held + (60 << 20)))
model, tokens = cllm.GPT(cllm.ModelConfig(17, 1, 16, 2, 16, 32)), np.zeros((1, 8), int)
for door in (lambda: cllm.Executor(model, 1, 8, num_threads=64), lambda: cllm.generate(model, [1], 2, num_threads=64),
             lambda: cllm.set_num_threads(64)):
    try:
        door()
    except cllm.ConfigError as error:
        assert "the system lets this process start no more threads" in str(error), error
    else:
        sys.exit("not refused")
assert cllm.versions()["threads"] < 64
assert np.isfinite(cllm.Executor(model, 1, 8, num_threads=2).loss(tokens, tokens))
"""


@needs_threads
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_more_threads_than_the_system_gives_are_refused_and_not_the_end_of_the_process():
    """GNU's runtime ends a process to which the system gives no thread. Here there is no room for so many stacks."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# The number where none is given

@pytest.fixture
def machine(monkeypatch):
    """Pretends how many cores, what quota of CPU time, and which OMP_NUM_THREADS there are."""
    def pretend(cores, quota=None, omp=None):
        monkeypatch.setattr(counts._build_info, "OPENMP", True)
        monkeypatch.setattr(counts, "_cores", lambda: (cores, "cores that this process may use"))
        monkeypatch.setattr(counts, "_quota", lambda: quota)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if omp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
        return counts.default_choice()

    return pretend


@pytest.mark.parametrize("cores, quota, omp, number, why", [
    (8, None, None, 8, "cores that this process may use"),
    (8, 0.5, None, 1, "a cgroup's quota of 0.5 CPUs"),
    (8, 1.5, None, 2, "a cgroup's quota of 1.5 CPUs"),
    (8, 4.0, None, 4, "a cgroup's quota of 4 CPUs"),
    (2, 4.0, None, 2, "cores that this process may use"),
    (8, None, "3", 3, "OMP_NUM_THREADS=3"),
    (8, None, " 3 , 2", 3, "OMP_NUM_THREADS=3 , 2"),
    (8, 2.0, "3", 2, "a cgroup's quota of 2 CPUs"),
    (2, None, "64", 2, "cores that this process may use"),
    (8, None, "many", 8, "cores that this process may use; OMP_NUM_THREADS=many is no number above 0 and was ignored"),
    (8, 2.0, "-3", 2, "a cgroup's quota of 2 CPUs; OMP_NUM_THREADS=-3 is no number above 0 and was ignored"),
    (8, None, "0", 8, "cores that this process may use; OMP_NUM_THREADS=0 is no number above 0 and was ignored"),
    (8, None, "", 8, "cores that this process may use"),
])
def test_the_default_is_the_least_of_what_is_allowed(cores, quota, omp, number, why, machine):
    assert machine(cores, quota, omp) == (number, why)
    assert counts.default_threads() == number and counts.describe_threads() == why
    shown = cllm.versions()
    assert shown["threads"] == number and shown["threads_because"] == why
    assert Workload(1, 4).threads == number


BOUND = """
import os, cllm
from cllm.threads.counts import default_choice
model = cllm.GPT(cllm.ModelConfig.preset("tiny"))
cllm.Executor(model, 2, 16, num_threads=1).loss_and_grad([[1] * 16] * 2, [[2] * 16] * 2)
print(default_choice()[0], len(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(not _build_info.OPENMP or (cores := usable_cores()) is None or len(cores) < 2,
                    reason="takes OpenMP and two cores")
def test_a_thread_that_openmp_has_bound_is_not_taken_for_the_cores_of_the_process():
    environment = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parents[1]), "OMP_PROC_BIND": "close"}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", BOUND], env=environment, check=True, capture_output=True, text=True)
    taken, told = map(int, done.stdout.split())
    assert taken == min(len(usable_cores()), default_of_quota()) and told <= taken


@pytest.mark.parametrize("variables, expected", [
    ({}, False), ({"OMP_PROC_BIND": "FALSE", "OMP_PLACES": "cores"}, False), ({"OMP_PROC_BIND": "spread"}, True),
    ({"OMP_PLACES": "threads"}, True), ({"GOMP_CPU_AFFINITY": "0 1"}, True), ({"OMP_PLACES": ""}, False)])
def test_when_openmp_binds(variables, expected):
    assert binds(variables) is expected


def default_of_quota():
    """Threads that a cgroup allows."""
    quota = counts._quota()
    return counts.MOST_THREADS if quota is None else max(1, -int(-quota // 1))


def test_a_serial_build_has_one(machine, monkeypatch):
    machine(8)
    monkeypatch.setattr(counts._build_info, "OPENMP", False)
    assert counts.default_choice() == (1, "built without threads")


def test_set_num_threads_is_what_all_take_that_have_no_number(machine):
    machine(2)
    model = cllm.GPT(CONFIG)
    before = cllm.Executor(model, 1, 4)
    cllm.set_num_threads(3)
    assert cllm.versions()["threads"] == 3 == kernels.get_threads()
    assert cllm.versions()["threads_because"] == "asked for by set_num_threads"
    assert cllm.Executor(model, 1, 4).workload.threads == 3 and before.workload.threads == 2
    assert cllm.Executor(model, 1, 4, num_threads=1).workload.threads == 1
    cllm.set_num_threads(None)
    assert cllm.versions()["threads"] == 2 == kernels.get_threads()


def test_info_says_what_is_taken_and_why(machine):
    machine(8, 0.5)
    said = CliRunner().invoke(main, ["info"]).stdout
    lines = dict(line.split(None, 1) for line in said.splitlines())
    assert lines["threads"] == "1" and lines["threads_because"] == "a cgroup's quota of 0.5 CPUs" and lines["waiting"]
