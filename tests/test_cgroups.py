"""The quota of CPU time that cgroups of either version leave, the least of all above the process."""
import pytest

from cllm import cgroups


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Makes a cgroup; `group.join` says in which the process is."""
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "self")

    def make(folder, **files):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / f"cpu.{name}").write_text(text)

    make.join = (tmp_path / "self").write_text
    return make


def test_none_where_there_are_no_groups(group):
    assert cgroups.cpu_quota() is None


def test_a_container_sees_its_group_as_the_root(group):
    group(".", max="50000 100000\n")
    assert cgroups.cpu_quota() == 0.5
    group(".", max="max 100000\n")
    assert cgroups.cpu_quota() is None


def test_the_least_of_nested_groups(group):
    group.join("0::/user/job\n")
    group("user/job", max="300000 100000\n")
    group("user", max="150000 100000\n")
    assert cgroups.cpu_quota() == 1.5
    group("user/job", max="25000 50000\n")
    assert cgroups.cpu_quota() == 0.5


def test_groups_of_version_1(group):
    group.join("9:name=systemd:/a\n4:cpu,cpuacct:/job\nnonsense\n")
    group("cpu/job", cfs_quota_us="250000\n", cfs_period_us="100000\n")
    assert cgroups.cpu_quota() == 2.5
    group("cpu", cfs_quota_us="-1\n", cfs_period_us="100000\n")
    assert cgroups.cpu_quota() == 2.5
    group("cpu/job", cfs_quota_us="-1\n")
    assert cgroups.cpu_quota() is None


@pytest.mark.parametrize("text", ["", "max", "nonsense 100000", "5000 0", "1 2 3", "0 100000"])
def test_what_cannot_be_read_is_no_quota(group, text):
    group(".", max=text)
    assert cgroups.cpu_quota() is None
