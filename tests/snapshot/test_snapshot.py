"""Snapshots: whole or not there, refused when damaged or foreign, kept and pruned; against kill -9 and a full disk."""
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import oracle
import pytest
from own_model import Mine, Pictures

import cllm
from cllm import snapshot
from cllm.errors import ConfigError, SnapshotError
from cllm.optim import optimizer_named

KILLS = int(os.environ.get("CLLM_KILLS", "3"))  # CLLM_KILLS=50 for the long version
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "note.txt"]
OPTIMIZERS = ["adamw", "adam", "sgd", "momentum", "*emb.weight=adam,sgd"]


def make(new_model, optimizer="adamw", dtype="float32", seed=0, **changes):
    model = new_model({**oracle.CONFIG, **changes}, dtype, seed=seed)
    opt = optimizer_named(optimizer, model, 1e-3)
    rng = np.random.default_rng(seed)
    for array in opt.arrays().values():
        array[...] = rng.normal(size=array.shape)
    opt.steps = 17 + seed
    return model, opt


def everything(model, opt, copies):
    return {**copies(model.parameters), **copies(opt.arrays()), "steps": np.array(opt.steps)}


@pytest.fixture
def written(new_model, tmp_path):
    model, opt = make(new_model)
    return snapshot.write_snapshot(tmp_path, 60, model, opt, {"best": [1, 2.5]}, {"note.txt": b"words"})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_everything_returns_to_the_last_bit(optimizer, dtype, new_model, copies, tmp_path):
    model, opt = make(new_model, optimizer, dtype)
    path = snapshot.write_snapshot(tmp_path, 60, model, opt, {"text": "caf\u00e9", "loss": 0.1})
    assert path == tmp_path / "step-000060"
    other, other_opt = make(new_model, optimizer, dtype, seed=1)
    _, state = snapshot.load_snapshot(path, other, other_opt)
    oracle.assert_same_bits(everything(other, other_opt, copies), everything(model, opt, copies))
    assert state["step"] == 60 and state["training"] == {"text": "caf\u00e9", "loss": 0.1}
    alone, _ = snapshot.load_snapshot(path)
    oracle.assert_same_bits(dict(alone.parameters), dict(model.parameters))
    assert alone.config == model.config


def test_the_layout_is_that_of_the_contract(written, new_model):
    assert sorted(p.name for p in written.iterdir()) == sorted(FILES)
    model, _ = make(new_model)
    loaded = cllm.load(written / "model.safetensors")
    oracle.assert_same_bits(dict(loaded.parameters), dict(model.parameters))
    from safetensors.numpy import load_file
    states = load_file(written / "optimizer.safetensors")
    assert set(states) == {f"{n}.{part}" for n in model.parameters for part in "mv"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["missing", "empty", "shorter", "longer", "a bit", "random"])
def test_a_damaged_snapshot_is_refused_with_the_reason(change, name, written, new_model, copies):
    file = written / name
    raw = bytearray(file.read_bytes())
    if change == "missing":
        file.unlink()
    elif change == "a bit":
        raw[len(raw) * 2 // 3] ^= 4
    else:
        raw = {"empty": b"", "shorter": raw[:-1], "longer": raw + b"\0", "random": os.urandom(len(raw))}[change]
    if change != "missing":
        file.write_bytes(raw)
    model, opt = make(new_model, seed=1)
    before = everything(model, opt, copies)
    with pytest.raises(SnapshotError, match="must be a whole snapshot of ours; got ") as error:
        snapshot.load_snapshot(written, model, opt)
    if name != "state.json":
        assert name in str(error.value)
    oracle.assert_same_bits(everything(model, opt, copies), before)
    assert not snapshot.is_whole(written)


def test_what_to_pass_for_a_family_that_is_not_built_in_reaches_the_user(tmp_path):
    model = cllm.Model(Mine(), seed=1)
    path = snapshot.write_snapshot(tmp_path, 3, model, cllm.AdamW(model))
    with pytest.raises(ConfigError, match=r"^architecture: must be given .*got a file of 'own_model:Mine'\. Pass the class, "
                                          "architecture=Mine; on the command line, --model FILE.py:Class"):
        snapshot.load_snapshot(path)
    for others in ({"architecture": Pictures}, {"model": cllm.Model(Pictures())}):
        with pytest.raises(ConfigError, match="must be the class that was saved, 'own_model:Mine'; got own_model:Pictures"):
            snapshot.load_snapshot(path, **others)
    fields = {"__annotations__": {"C": "str"}, "C": field(init=False, default=8)}  # a later form: C can no longer be given
    Changed = dataclass(frozen=True)(type("Mine", (Mine,), fields))
    with pytest.raises(ConfigError, match="must have the settings of .* Use the version of the class that saved the file"):
        snapshot.load_snapshot(path, architecture=Changed)
    loaded, _ = snapshot.load_snapshot(path, architecture=Mine)
    oracle.assert_same_bits(dict(loaded.parameters), dict(model.parameters))


class Trap:
    """Would leave a file behind if something unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def reseal(path, change):
    """Rewrite state.json with a right checksum, as somebody who means harm would."""
    from cllm.snapshot.directory import _seal
    state = json.loads((path / "state.json").read_text())
    state.pop("sha256")
    change(state)
    (path / "state.json").write_text(json.dumps({**state, "sha256": _seal(state)}))


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_nothing_in_a_snapshot_is_executed(name, written, tmp_path):
    (written / name).write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    if name != "state.json":
        from cllm.files import digest_file
        reseal(written, lambda state: state["files"].__setitem__(name, digest_file(written / name)))
    model = cllm.GPT(cllm.ModelConfig(**oracle.CONFIG))
    with pytest.raises(SnapshotError):
        snapshot.load_snapshot(written, model, cllm.AdamW(model))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("change, reason", [
    (lambda s: s.update(format="another 1"), "state.json of another format"),
    (lambda s: s["files"].update({"../secret": {"bytes": 1, "sha256": ""}}), "a file outside it"),
    (lambda s: s.pop("files"), "got 'files'"),
    (lambda s: s.update(files=[1]), "got "),
    (lambda s: s["config"].update(n_heads=3), "must divide"),
    (lambda s: s["config"].update(unknown=3), "unknown"),
    (lambda s: s["config"].update(n_layers=3), "with blocks.2")])
def test_a_foreign_state_is_refused(change, reason, written):
    reseal(written, change)
    with pytest.raises(SnapshotError, match=reason):
        snapshot.load_snapshot(written)


def test_a_directory_without_a_snapshot_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SnapshotError, match=r"got state\.json: No such file"):
            snapshot.read_state(path)


def test_a_snapshot_of_another_model_or_optimizer_is_refused(written, new_model, copies):
    for optimizer, changes, reason in (("adamw", {"n_layers": 3}, "another n_layers"),
                                       ("sgd", {}, "of the optimizer sgd; got adamw"),
                                       ("adamw", {"dropout": 0.5}, "another dropout")):
        model, opt = make(new_model, optimizer, seed=1, **changes)
        before = everything(model, opt, copies)
        with pytest.raises(SnapshotError, match=reason):
            snapshot.load_snapshot(written, model, opt)
        oracle.assert_same_bits(everything(model, opt, copies), before)
    model, opt = make(new_model, dtype="float64")
    with pytest.raises(SnapshotError, match="another dtype"):
        snapshot.load_snapshot(written, model, opt)


def test_a_step_saved_again_has_the_new_weights(written, new_model, tmp_path):
    model, opt = make(new_model, seed=3)
    for damage in (None, b""):
        if damage is not None:
            (written / "model.safetensors").write_bytes(damage)
        model.parameters["ln_f.bias"][...] += 1
        assert snapshot.write_snapshot(tmp_path, 60, model, opt) == written
        oracle.assert_same_bits(dict(snapshot.load_snapshot(written)[0].parameters), dict(model.parameters))
        assert [p.name for p in tmp_path.iterdir()] == ["step-000060"]


def test_a_step_whose_replacement_was_interrupted_is_put_back(written, new_model, tmp_path, monkeypatch):
    """Between the two renames, and when the second fails."""
    model, opt = make(new_model, seed=3)
    written.rename(tmp_path / ".step-000060.replaced")
    snapshot.sweep(tmp_path)
    assert snapshot.is_whole(written) and [p.name for p in tmp_path.iterdir()] == ["step-000060"]
    rename = Path.rename

    def fails_once(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(SnapshotError, match="Input/output error"):
        snapshot.write_snapshot(tmp_path, 60, model, opt)
    assert snapshot.is_whole(written) and [p.name for p in tmp_path.iterdir()] == ["step-000060"]


def test_what_is_no_plain_data_is_refused(new_model, tmp_path):
    with pytest.raises(SnapshotError, match="must keep plain data beside the arrays; got .*not JSON serializable"):
        snapshot.write_snapshot(tmp_path, 1, *make(new_model), {"number": np.int64(3)})
    assert not list(tmp_path.iterdir())


def test_the_last_and_the_best_are_kept(new_model, tmp_path):
    model, opt = make(new_model)
    for step in (10, 20, 30, 40, 1_000_000):
        snapshot.write_snapshot(tmp_path, step, model, opt)
    (tmp_path / "step-nonsense").mkdir()
    snapshot.prune(tmp_path, keep=2, also=20)
    assert [p.name for p in snapshot.snapshots(tmp_path)] == ["step-000020", "step-000040", "step-1000000"]


def test_what_killed_processes_left_is_swept_away(new_model, tmp_path):
    (tmp_path / ".step-000050.123.partial").mkdir()
    (tmp_path / ".step-000050.123.partial" / "model.safetensors").write_bytes(b"half")
    snapshot.write_snapshot(tmp_path, 60, *make(new_model))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000060"]


def test_arrays_that_are_not_contiguous_are_written_right(tmp_path):
    from safetensors.numpy import load_file

    from cllm.tensors import write_arrays
    arrays = {"turned": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.0)}
    write_arrays(tmp_path / "file", arrays, {})
    for name, array in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(array, arrays[name])


FULL = """
import resource, signal, sys
import cllm
from cllm import snapshot
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = cllm.GPT(cllm.ModelConfig(13, 2, 16, 2, 24, 9))
opt = cllm.AdamW(model)
snapshot.write_snapshot(sys.argv[1], 1, model, opt)
for room in (0, 500, 5000, 30000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        snapshot.write_snapshot(sys.argv[1], 2, model, opt)
    except cllm.SnapshotError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
snapshot.write_snapshot(sys.argv[1], 3, model, opt)
"""


def run(code, *arguments, **more):
    env = {**os.environ, "PYTHONPATH": str(Path(cllm.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_full_disk_leaves_the_earlier_snapshot(tmp_path):
    process = run(FULL, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.count("earlier snapshots are whole") == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]
    assert all(snapshot.is_whole(p) for p in snapshot.snapshots(tmp_path))


WRITES = """
import sys
import cllm
from cllm import snapshot
model = cllm.GPT(cllm.ModelConfig(256, 2, 64, 2, 128, 64))
opt = cllm.AdamW(model)
for step in range(1, 100000):
    model.parameters["ln_f.bias"][...] = step
    snapshot.write_snapshot(sys.argv[1], step, model, opt)
    print(step, flush=True)
    snapshot.prune(sys.argv[1], keep=2)
"""


def test_kill_at_any_moment_leaves_whole_snapshots(tmp_path):
    rng = np.random.default_rng(os.getpid())
    for kill in range(KILLS):
        out = tmp_path / str(kill)
        process = run(WRITES, out)
        acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        acknowledged = int(rest.split()[-1]) if rest.endswith("\n") else acknowledged
        found = snapshot.snapshots(out)
        assert found and snapshot.step_of(found[-1]) >= acknowledged
        for path in found:
            model, state = snapshot.load_snapshot(path)
            assert (model.parameters["ln_f.bias"] == state["step"]).all()
