"""Several processes by MPI: what only real ones can show. The algebra is in tests/executor/test_groups.py.

Runs of mpirun with two processes, for bits of steps and of a whole command; left out where mpi4py or mpirun is missing.
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm import snapshot
from cllm.errors import ConfigError
from cllm.models.families import FAMILIES

MPIRUN = Path(sys.executable).with_name("mpirun")
MPIRUN = str(MPIRUN) if MPIRUN.exists() else shutil.which("mpirun")
needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None or MPIRUN is None, reason="needs mpi4py and mpirun")
ROOT = Path(__file__).resolve().parents[1]


def mpirun(count, *arguments, timeout=600):
    """The run of so many processes of Python, more than there are cores if need be."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
               "OMPI_MCA_mpi_yield_when_idle": "1",  # on a busy machine one that waits must not hold a core
               "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
               "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "kernels")])}
    return subprocess.run([MPIRUN, "-n", str(count), sys.executable, *map(str, arguments)], env={**os.environ, **allowed},
                          capture_output=True, text=True, timeout=timeout)


BITS = """
import importlib.util, sys, time
import oracle
from cllm.distributed import MPITeam
spec = importlib.util.spec_from_file_location("played", sys.argv[1])
played = importlib.util.module_from_spec(spec)
spec.loader.exec_module(played)
team = MPITeam()
for name, groups, whole in (("wide", 2, True), ("wide", 4, False), ("full tied dropout", 8, True)):
    oracle.assert_same_bits(played.steps(name, groups, team, whole), played.steps(name, groups, None, whole))
import cllm
model = cllm.GPT(played.WIDE)
executor = cllm.distributed.Executor(model, batch_size=4, seq_len=9, num_threads=1)
executor.train_step(*oracle.draw_batch(oracle.CONFIG, 4, 9), cllm.AdamW(model))
begin = type(executor._feeds).begin
def slowly(feeds, group):
    time.sleep(0.3 * team.rank)
    begin(feeds, group)
type(executor._feeds).begin = slowly
executor.train_step(*oracle.draw_batch(oracle.CONFIG, 4, 9), cllm.AdamW(model))
first, second = executor.process_seconds
print("slower:", second > max(0.3, first), executor.received_bytes > 0)
type(executor._feeds).begin = begin
print("groups", executor.workload.groups, "of", executor.workload.processes)
try:
    cllm.distributed.Executor(model, batch_size=4, seq_len=9, groups=1)
except cllm.ConfigError as error:
    print(error)
"""


@needs_mpi
def test_processes_have_the_bits_of_one():
    run = mpirun(2, "-c", BITS, str(ROOT / "tests" / "executor" / "test_groups.py"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("groups 2 of 2") == 2
    assert run.stdout.count("slower: True True") == 2
    assert run.stdout.count("processes: must be a power of two that divides groups = 1; got 2. Take fewer processes") == 2


def test_without_mpi4py_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"several processes: need mpi4py and an MPI that it finds; got .*mpi4py.*\[mpi\]"):
        cllm.distributed.Executor(cllm.GPT(cllm.ModelConfig.preset("tiny")), 2, 8)


@needs_mpi
def test_fine_tuning_by_two_processes_has_the_bits_of_one(tmp_path):
    """Adapters, packed rows, a mapped base: losses, evaluations and what the last snapshot holds."""
    sizes = dict(vocab_size=300, n_layers=2, d_model=16, n_heads=4, d_ff=24, max_seq_len=64, n_kv_heads=2, tied=True)
    cllm.Model(FAMILIES["llama"](**sizes), seed=1).save_pretrained(tmp_path / "model", dtype="bfloat16")
    (tmp_path / "data.jsonl").write_text("".join(
        json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) + "\n" for n in range(40)))
    found = []
    for count in (1, 2):
        out = tmp_path / f"of {count}"
        data = tmp_path / "data.jsonl"
        run = mpirun(count, "-m", "cllm", "finetune", "--model", tmp_path / "model", "--data", data, "--valid", data,
                     "--tokenizer", "bytes", "--batch-size", 4, "--seq-len", 24, "--groups", 2, "--lora", 2, "--threads", 1,
                     "--steps", 4, "--eval-every", 2, "--out", out, "--json", tmp_path / f"{count}.json")
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("takes    weights") == 1, "the first process alone speaks"
        said = json.loads((tmp_path / f"{count}.json").read_text())
        kept = snapshot.read_state(snapshot.snapshots(out)[-1])["files"]
        found.append((said["losses"], said["val_loss"], {name: one["sha256"] for name, one in kept.items()}))
    assert found[0] == found[1]


FAILS = """
import sys
from cllm import distributed
from cllm.cli.processes import taking_part
distributed.PATIENCE = 0.3
with taking_part() as team:
    if team.rank == 1:
        raise OSError("no such disk")
    team.tell(None)
"""


@needs_mpi
def test_a_process_that_fails_alone_ends_all_and_says_why(tmp_path):
    run = mpirun(2, "-c", FAILS, timeout=60)
    assert run.returncode != 0 and "Error: process 1 of 2: no such disk; all are ended" in run.stderr
    (tmp_path / "text").write_text("abc " * 500)
    one = [sys.executable, "-m", "cllm", "train", "--preset", "tiny", "--batch-size", 2, "--seq-len", 8, "--groups", 2,
           "--threads", 1, "--steps", 2, "--out", tmp_path / "run", "--text"]
    for other, told in (([tmp_path / "none"], "data, process 1: must be as in the others; got text"),
                        ([tmp_path / "text", "--lr", 1], "run: must be the same in all processes; got another in process 1")):
        run = mpirun(1, *one[1:], tmp_path / "text", ":", "-n", 1, *one, *other, timeout=60)
        assert run.returncode != 0 and told in run.stderr and "Traceback" not in run.stderr, run.stderr
        assert not (tmp_path / "run").exists() or not snapshot.snapshots(tmp_path / "run")


@needs_mpi
def test_a_comparison_is_shared_by_fresh_processes(monkeypatch):
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    launcher = Path(MPIRUN).with_name("mpirun")
    found = cllm.compare(cllm.ModelConfig.preset("tiny"), ["cache", "recompute"], 2, 8, steps=1, rounds=1, num_threads=1,
                         processes=2, calibrate=False, launcher=f"{launcher} --oversubscribe --bind-to none")
    alone = cllm.compare(cllm.ModelConfig.preset("tiny"), ["cache"], 2, 8, steps=1, rounds=1, num_threads=1, groups=2,
                         calibrate=False)
    assert found.problems == [] and {row["grad_sha256"] for row in (*found.rows, *alone.rows)} == {alone.rows[0]["grad_sha256"]}
    assert found.rows[0]["losses"] == alone.rows[0]["losses"] and found.rows[0]["message_bytes"] > 0
