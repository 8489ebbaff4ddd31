"""Files that appear whole or not at all, with the mode of any file, through links, and never in the place of a device."""
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm import files


def write(path, content=b"new"):
    with files.whole(path) as place:
        place.write_bytes(content)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_of_any_file(mask, tmp_path):
    before = os.umask(mask)
    try:
        write(tmp_path / "file")
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other")]
    assert modes == [0o666 & ~mask] * 2


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(mode, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(mode)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new" and stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False], ids=["link", "dangling link"])
def test_links_are_followed(there, tmp_path):
    (tmp_path / "real").mkdir()
    if there:
        (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(Path("real", "file"))
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "link", "real"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/null", p), lambda p: os.symlink(p, p)],
                         ids=["pipe", "directory", "device", "circle of links"])
def test_what_is_no_file_stays(make, tmp_path):
    make(tmp_path / "it")
    kind = os.lstat(tmp_path / "it").st_mode
    with pytest.raises(OSError, match="no file|[Tt]oo many"):
        write(tmp_path / "it")
    assert os.lstat(tmp_path / "it").st_mode == kind and [p.name for p in tmp_path.iterdir()] == ["it"]


def test_what_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), files.whole(tmp_path / "file") as place:
        place.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {f".model.bin.{pid}.7.partial.bin" for pid in (dead.pid, os.getppid())}
    names |= {".other.bin.1.partial.bin", ".model.bin.x"}
    for name in names:
        (tmp_path / name).touch()
    write(tmp_path / "model.bin")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == names - {f".model.bin.{dead.pid}.7.partial.bin"} | {"model.bin"}


def test_a_long_name_is_no_obstacle(tmp_path):
    for name in ("n" * 255, "\u00e9" * 127, "n." + "m" * 250):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a\0b", "n" * 256, "none/file", ""], ids=["null", "too long", "no directory", "empty"])
def test_names_that_no_file_can_have(name, tmp_path):
    with pytest.raises((OSError, ValueError)):
        write(f"{tmp_path}/{name}")
    model = cllm.GPT(cllm.ModelConfig(13, 1, 16, 2, 24, 9))
    with pytest.raises(cllm.SnapshotError, match=r"save\(.*must be a place for a file that can be written; got "):
        model.save(f"{tmp_path}/{name}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "access", lambda path, how: False)  # as for a user who is not root
    with pytest.raises(PermissionError):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
