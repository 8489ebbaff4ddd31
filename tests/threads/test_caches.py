"""Level 2 caches, as the system tells of them, and the blocks that products are cut into for them."""
import numpy as np
import pytest

from cllm import _kernels as kernels
from cllm.errors import ConfigError
from cllm.threads import caches


@pytest.fixture(autouse=True)
def restored():
    yield
    kernels.take_level2(*(caches.level2(caches.usable_cores() or ()) or (0, 1)))


def machine(root, cores, sizes=("512K",), shared=1, levels=("1", "1", "2", "3")):
    """A tree like the system's, with so many cores to a level 2 cache."""
    for core in range(cores):
        for number, level in enumerate(levels):
            first = core // shared * shared
            own = f"{first}-{first + shared - 1}" if shared > 1 else f"{first}"
            here = root / f"cpu{core}" / "cache" / f"index{number}"
            here.mkdir(parents=True)
            size = {"1": "32K", "2": sizes[core // shared % len(sizes)], "3": "32768K"}[level]
            for name, text in {"level": level, "type": "Instruction" if number == 1 else "Unified", "size": size,
                               "shared_cpu_list": own if level == "2" else "0-99"}.items():
                (here / name).write_text(text + "\n")
    return root


def test_caches_are_counted_once_and_the_least_counts(tmp_path):
    assert caches.level2(range(4), machine(tmp_path / "a", 4)) == (512 << 10, 4)
    siblings = machine(tmp_path / "b", 4, shared=2)
    assert caches.level2(range(4), siblings) == (512 << 10, 2)
    assert caches.level2([0, 2], siblings) == (512 << 10, 2) and caches.level2([2, 3], siblings) == (512 << 10, 1)
    assert caches.level2(range(4), machine(tmp_path / "c", 4, sizes=("2M", "1280K"))) == (1280 << 10, 4)


def test_what_the_system_does_not_tell_is_not_guessed(tmp_path):
    assert caches.level2(range(2), tmp_path) is None and caches.level2([]) is None
    assert caches.level2(range(2), machine(tmp_path / "a", 2, levels=("1", "1"))) is None
    assert caches.level2(range(2), machine(tmp_path / "b", 2, sizes=("large",))) is None
    assert caches.level2(range(3), machine(tmp_path / "c", 2)) == (512 << 10, 2)


def test_threads_that_share_a_cache_have_parts_of_it():
    kernels.take_level2(0, 1)
    built = kernels.block_bytes(1)
    assert kernels.block_bytes(64) == built
    kernels.take_level2(1 << 30, 1)
    assert kernels.block_bytes(2) == built, "never more than there is scratch for"
    kernels.take_level2(256 << 10, 2)
    assert [kernels.block_bytes(n) for n in (1, 2, 3, 4, 5)] == [200 << 10, 200 << 10, 100 << 10, 100 << 10, 96 << 10]
    for wrong in ((-1, 1), (1, 0)):
        with pytest.raises(ConfigError, match="bytes, or 0, and at least one cache"):
            kernels.take_level2(*wrong)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_results_and_scratch_do_not_depend_on_them(rounds):
    n, i, o = 300, 700, 900
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, i), (i, o), (n, o)))
    found = []
    for level2 in ((0, 1), (256 << 10, 1), (64 << 10, 1)):
        kernels.take_level2(*level2)
        for threads in (1, 3):
            with kernels.Threads(threads):
                scratch = np.empty(kernels.linear_workspace(n, i, o, threads, 4), np.float32)
                y, dx, dweight = np.empty((n, o), np.float32), np.empty((n, i), np.float32), np.ones((i, o), np.float32)
                kernels.linear_forward(x, weight, None, rounds, y=y, workspace=scratch)
                kernels.linear_backward_input(dy, weight, None, rounds, dx=dx, workspace=scratch)
                kernels.linear_backward_weight(x, dy, rounds, 100, dweight=dweight, dbias=None, workspace=scratch)
            found.append([threads, scratch.size // threads, *(array.tobytes() for array in (y, dx, dweight))])
    assert all(one[1:] == found[0][1:] for one in found)
