"""Model files: every byte counts, damage and what is foreign is refused with a SnapshotError, and nothing else is raised."""
import json
import os
import stat

import numpy as np
import oracle
import pytest
from safetensors.numpy import load_file, save_file

import cllm
from cllm.errors import SnapshotError

CONFIG = cllm.ModelConfig(13, 1, 8, 2, 8, 5)


@pytest.fixture
def saved(tmp_path):
    model = cllm.GPT(CONFIG, seed=3)
    model.save(tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def test_a_model_returns_and_other_readers_take_the_file(saved):
    model, path = saved
    again = cllm.load(path)
    assert again.config == model.config
    oracle.assert_same_bits(dict(again.parameters), dict(model.parameters))
    oracle.assert_same_bits(load_file(path), dict(model.parameters))


def test_files_of_the_first_version_are_read(saved):
    model, path = saved
    save_file(dict(model.parameters), path, {"config": json.dumps(CONFIG.to_dict()), "dtype": "float32"})
    oracle.assert_same_bits(dict(cllm.load(path).parameters), dict(model.parameters))


def test_every_changed_byte_is_noticed(saved):
    """Mutations drawn from a seed: bits and bytes anywhere, pieces cut out, doubled, exchanged, and bits of the header."""
    _, path = saved
    raw, rng = path.read_bytes(), np.random.default_rng(7)
    header = 8 + int.from_bytes(raw[:8], "little")
    for trial in range(600):
        changed = bytearray(raw)
        at = int(rng.integers(header if trial % 2 else len(raw)))
        kind = trial // 2 % 5
        if kind == 0:
            changed[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            changed[at] = int(rng.integers(256))
        elif kind == 2:
            del changed[at:at + int(rng.integers(1, 9))]
        elif kind == 3:
            changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            other = int(rng.integers(len(raw)))
            changed[at], changed[other] = changed[other], changed[at]
        if changed == raw:
            continue
        path.write_bytes(changed)
        with pytest.raises(SnapshotError, match="must be a model that cllm saved; got "):
            cllm.load(path)


def first_form(meta):
    """Metadata as the first version wrote it: no seal, no family."""
    del meta["sha256"], meta["family"]


@pytest.mark.parametrize("change, reason", [
    (lambda arrays, meta: first_form(meta), None),  # what is left is the first form
    (lambda arrays, meta: (first_form(meta), meta.update(more="x")), "a file without a checksum"),
    (lambda arrays, meta: meta.update(sha256="0" * 64), "another checksum than its own"),
    (lambda arrays, meta: meta.clear(), "without"),
    (lambda arrays, meta: (first_form(meta), arrays.pop("ln_f.bias")), "ln_f.bias as None"),
    (lambda arrays, meta: (first_form(meta), arrays.update(more=np.zeros(3))), "more as"),
    (lambda arrays, meta: (first_form(meta), arrays.update({"ln_f.bias": np.zeros(8)})), "ln_f.bias as .*F64"),
    (lambda arrays, meta: (first_form(meta), meta.update(dtype="int8")), "must be one of"),
    (lambda arrays, meta: (first_form(meta), meta.update(config="[" * 100_000)), "recursion|got"),
    (lambda arrays, meta: (first_form(meta), meta.update(config="[1]")), "got"),
    (lambda arrays, meta: (first_form(meta), meta.update(config='{"n_layers": 1}')), "missing"),
], ids=range(11))
def test_foreign_files_are_refused(change, reason, saved):
    model, path = saved
    from safetensors import safe_open
    with safe_open(path, framework="numpy") as file:
        arrays, meta = load_file(path), dict(file.metadata())
    change(arrays, meta)
    save_file(arrays, path, meta)
    if reason is None:
        oracle.assert_same_bits(dict(cllm.load(path).parameters), dict(model.parameters))
        return
    with pytest.raises(SnapshotError, match=reason):
        cllm.load(path)


@pytest.mark.parametrize("path", ["/none/model", "/", "/dev/null", "a\0b", "n" * 5000, 3.5, None, b"\xff"], ids=repr)
def test_places_without_a_model(path):
    with pytest.raises(SnapshotError, match=r"load\("):
        cllm.load(path)


@pytest.mark.parametrize("path", ["/none/model", "/", "/dev/null", 3.5, None], ids=repr)
def test_places_where_no_model_can_be(path):
    with pytest.raises(SnapshotError, match=r"save\(.*must be a place for a file"):
        cllm.GPT(CONFIG).save(path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_saved_model_has_the_mode_of_any_file_and_goes_through_links(tmp_path):
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    cllm.GPT(CONFIG).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").stat().st_size > 1000
    cllm.GPT(CONFIG).save(tmp_path / "new")
    (tmp_path / "any").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode
