"""Bits do not hang on how the kernels were optimised: the tests of the kernels write the same in every build of them.

Each variant is a build of a minute, so these tests run only when asked for: ``make check-builds``.
"""
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
X86 = platform.machine() == "x86_64"
SANITIZED = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -Wno-error=maybe-uninitialized"
# What is different in the environment of the build. GCC's tuning for Zen 3 breaks up long chains of fused products.
VARIANTS = {
    "gcc": {"CC": "gcc", "LDSHARED": "gcc -shared", "CLLM_WERROR": "1"},
    "clang": {"CC": "clang", "LDSHARED": "clang -shared"},
    "levels": {"CLLM_MARCH": "all"},
    "debug": {"CLLM_DEBUG": "1"},  # hardly optimised, bounds checked
    "serial": {"CLLM_OPENMP": "0"},
    "sanitizers": {"CC": "gcc", "LDSHARED": "gcc -shared", "CLLM_DEBUG": "1", "CFLAGS": SANITIZED, "LDFLAGS": SANITIZED},
    "vectors of 16 bytes": {"CFLAGS": "-DCLLM_PLAIN_VECTORS=16 -Wno-psabi"},  # as wide as NEON's
    "vectors of 64 bytes": {"CFLAGS": "-DCLLM_PLAIN_VECTORS=64 -Wno-psabi"},  # as wide as AVX-512's, and its tiles
    **({"tuned for Zen 3": {"CFLAGS": "-mtune=znver3"}, "tuned for Haswell": {"CFLAGS": "-mtune=haswell"}} if X86 else {}),
}

pytestmark = pytest.mark.variants


def running(name):
    """What is different in the environment of a variant's tests: the sanitizers' libraries come before all others."""
    if name != "sanitizers":
        return {}
    found = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True)
             for name in ("libasan.so", "libubsan.so")]
    # Python itself ends with memory that it has not given back
    return {"LD_PRELOAD": " ".join(map(str.strip, found)), "ASAN_OPTIONS": "detect_leaks=0"}


def runnable_levels(root, environ):
    """Levels of the build below `root` that this processor can run."""
    program = ("from cllm.dispatch import built_levels, offered_features as offered; "
               "print(*(level.name for level in built_levels() if not level.lacks(offered())))")
    return subprocess.check_output([sys.executable, "-c", program], cwd=root, text=True,
                                   env={**os.environ, **environ, "CLLM_ISA": "", "PYTHONPATH": str(root)}).split()


def vector_bytes(root, **environ):
    """Bytes of the vectors that the kernels below `root` take."""
    program = "from cllm import _kernels; print(_kernels.vector_bytes())"
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=root, text=True,
                                       env={**os.environ, **environ, "PYTHONPATH": str(root)}))


def bits(root, file, **environ):
    """Digest by test of what the kernels below `root` wrote; the tests must pass."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "record_bits",
                           "--bits", str(file), "tests/kernels"], cwd=root, text=True, capture_output=True,
                          env={**os.environ, **environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests/kernels'}"})
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return bits(ROOT, tmp_path_factory.mktemp("bits") / "ours.json")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_bit_is_that_of_the_build_at_hand(name, request, tmp_path):
    turn = request.config.getoption("turn")
    if turn is not None and name != list(VARIANTS)[turn % len(VARIANTS)]:
        pytest.skip("not its turn")
    if shutil.which(VARIANTS[name].get("CC", "cc")) is None:
        pytest.skip(f"no {VARIANTS[name]['CC']}")
    built = ("*.so", "_build_info.py", "__pycache__")
    for folder in ("cllm", "tests", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(*built))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, **VARIANTS[name]})
    assert done.returncode == 0, done.stderr[-4000:]
    expected = request.getfixturevalue("expected")
    for level in runnable_levels(tmp_path, running(name)):
        chosen = {"CLLM_ISA": level, **running(name)}
        found = bits(tmp_path, tmp_path / "theirs.json", **chosen)
        # in other tiles NaN spreads otherwise
        finite = "vectors" in name or vector_bytes(tmp_path, **chosen) != vector_bytes(ROOT)
        assert found.keys() == expected.keys() and len(found) > 1000
        assert not [test for test in found if found[test][finite] != expected[test][finite]]
