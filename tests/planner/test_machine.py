"""What is free: the least of what the machine, every cgroup above the process, and its resource limits leave."""
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cllm import cgroups as cgroups_of
from cllm.planner import free_memory as machine

MIB = 1 << 20


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A machine of 4 GiB without resource limits; the function makes a cgroup of it."""
    monkeypatch.setattr(cgroups_of, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups_of, "MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(machine, "_rlimit_room", list)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=4096 * MIB))

    def group(folder, **files):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / f"memory.{name}").write_text(str(text))

    group.join = (tmp_path / "self").write_text
    return group


def less_margin(nbytes):
    return max(1, int(nbytes * (1 - machine.MARGIN_SHARE)) - machine.MARGIN_BYTES)


def test_without_cgroups_what_the_machine_has_counts(cgroups):
    assert machine.free_bytes() == less_margin(4096 * MIB)


def test_a_container_sees_its_group_as_the_root(cgroups):
    cgroups(".", max=1000 * MIB, current=200 * MIB)
    assert machine.free_bytes() == less_margin(800 * MIB)


def test_a_group_within_a_group_and_those_above_it_count(cgroups):
    cgroups.join("0::/user/job\n")
    cgroups("user", max=900 * MIB, current=100 * MIB)
    cgroups("user/job", max="max", current=50 * MIB)
    assert machine.free_bytes() == less_margin(800 * MIB)
    cgroups("user/job", max=500 * MIB)
    assert machine.free_bytes() == less_margin(450 * MIB)


def test_groups_of_version_1(cgroups):
    cgroups.join("9:name=systemd:/a\n4:cpu,memory:/job\nnonsense\n")
    cgroups("memory/job", limit_in_bytes=700 * MIB, usage_in_bytes=100 * MIB, stat=f"cache 5\ntotal_inactive_file {50 * MIB}")
    assert machine.free_bytes() == less_margin(650 * MIB)


def test_page_cache_that_can_be_dropped_is_free(cgroups):
    cgroups(".", max=1000 * MIB, current=990 * MIB, stat=f"anon 3\ninactive_file {600 * MIB}\n")
    assert machine.free_bytes() == less_margin(610 * MIB)


def test_a_full_group_leaves_nothing_and_not_the_machine(cgroups):
    cgroups(".", max=1000 * MIB, current=1000 * MIB)
    assert machine.free_bytes() == 1
    cgroups(".", current=1001 * MIB)
    assert machine.free_bytes() == 1


@pytest.mark.skipif(machine.resource is None or not sys.platform.startswith("linux"), reason="resource limits of Linux")
@pytest.mark.parametrize("which", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_resource_limits_count(which):
    """In a process of its own: a limit once lowered stays."""
    code = f"""
import resource
from cllm import cgroups as cgroups_of
from cllm.planner import free_memory as machine
resource.setrlimit(resource.{which}, (3 << 30, 3 << 30))
room, = machine._rlimit_room()
assert 0 < room < 3 << 30, room
assert machine.free_bytes() < room
"""
    subprocess.run([sys.executable, "-c", code], check=True)
