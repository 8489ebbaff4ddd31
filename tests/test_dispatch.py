"""Which level of the kernels runs: the highest that the processor has, the one asked for, or a refusal with its reason."""
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import cllm
from cllm import _build_info, _kernels, dispatch
from cllm.dispatch import Level, choose
from cllm.errors import BuildError

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cllm.__file__).parent
LEVELS = [Level("x86-64-v3", "levels/x86-64-v3", (), ("avx2", "fma")),
          Level("x86-64-v4", "levels/x86-64-v4", (), ("avx2", "fma", "avx512f", "avx512bw"))]
NATIVE = [Level("native", "", (), ("avx2", "fma"))]
ZEN_3, ZEN_4, OLD = ("sse2", "avx2", "fma"), ("sse2", "avx2", "fma", "avx512f", "avx512bw"), ("sse2", "avx")


@pytest.mark.parametrize(("levels", "offered", "asked", "name", "because"), [
    (LEVELS, ZEN_4, None, "x86-64-v4", "it is the highest of those built, and this processor has all of it"),
    (LEVELS, ZEN_3, "", "x86-64-v3", "this processor lacks avx512bw, avx512f for x86-64-v4"),
    (LEVELS, None, None, "x86-64-v3", "it is the lowest of those built, and this system does not say what its processor has"),
    (LEVELS, ZEN_4, "x86-64-v3", "x86-64-v3", "CLLM_ISA asks for it"),
    (LEVELS, None, "x86-64-v4", "x86-64-v4", "CLLM_ISA asks for it"),
    (NATIVE, ZEN_4, None, "native", "it alone was built"),
    (NATIVE, None, None, "native", "it alone was built")])
def test_a_level_is_chosen_and_says_why(levels, offered, asked, name, because):
    choice = choose(levels, offered, asked)
    assert (choice.level.name, choice.because) == (name, because)


@pytest.mark.parametrize(("levels", "offered", "asked", "words"), [
    (LEVELS, ZEN_3, "x86-64-v4", "CLLM_ISA=x86-64-v4: must be a level that this processor can run; got a processor without "
                                 "avx512bw, avx512f. Unset CLLM_ISA."),
    (LEVELS, ZEN_4, "avx512", "CLLM_ISA=avx512: must be one of x86-64-v3, x86-64-v4, which were built; got avx512. Unset "),
    (NATIVE, ZEN_4, "x86-64-v3", "CLLM_ISA=x86-64-v3: must be one of native, which were built; got x86-64-v3. "),
    (LEVELS, OLD, None, "import cllm: this CPU must have what the build used (CLLM_MARCH=x86-64-v3, x86-64-v4); got a CPU "
                        "without avx2, fma. Rebuild from source on this machine"),
    (NATIVE, OLD, "", "(CLLM_MARCH=native); got a CPU without avx2, fma. Rebuild from source")])
def test_a_level_that_cannot_be_is_refused_with_the_reason(levels, offered, asked, words):
    with pytest.raises(BuildError) as caught:
        choose(levels, offered, asked)
    assert words in str(caught.value)


def test_levels_that_fuse_have_equal_bits_and_plain_x86_has_not():
    assert all(level.fuses for level in LEVELS) and Level("armv8-a", "", (), ("asimd",)).fuses
    assert not Level("x86-64", "", (), ("sse2",)).fuses


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    """Pretends that this is another machine."""
    def pretend(machine, text, built_for=None):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(_build_info, "MACHINE", built_for or machine)
        monkeypatch.setattr(dispatch, "CPUINFO", tmp_path / "cpuinfo")
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
    return pretend


X86 = "processor\t: 0\nvendor_id\t: Someone\nflags\t\t: fpu sse2 avx avx2 fma\nbugs\t\t: avx512f\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd atomics\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(("machine", "text", "found"), [
    ("x86_64", X86, ["fpu", "sse2", "avx", "avx2", "fma"]), ("aarch64", ARM, ["fp", "asimd", "atomics"]),
    ("x86_64", None, None), ("x86_64", "processor : 0\n", None), ("riscv64", ARM, None)])
def test_what_a_processor_offers_is_what_linux_says(cpuinfo, machine, text, found):
    cpuinfo(machine, text)
    assert dispatch.offered_features() == found


def test_what_the_host_says_is_not_asked_of_a_build_for_another_machine(cpuinfo):
    cpuinfo("x86_64", X86, built_for="aarch64")
    assert dispatch.offered_features() is None


def test_a_source_tree_without_a_build_is_refused(monkeypatch):
    monkeypatch.delattr(cllm, "_build_info")
    monkeypatch.setitem(sys.modules, "cllm._build_info", None)
    with pytest.raises(BuildError, match="must be built; got a source tree without a build. Run `pip install"):
        dispatch.choose_path("cllm")


def test_before_the_package_is_imported_nothing_is_chosen(monkeypatch):
    monkeypatch.setattr(dispatch, "_choice", None)
    with pytest.raises(BuildError, match="a level must have been chosen; got none. Import cllm first"):
        dispatch.choice()


def python(program, **environ):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environ})


def test_the_kernels_in_use_are_those_of_the_level_that_was_chosen():
    assert Path(_kernels.__file__).parent == PACKAGE / dispatch.choice().level.folder
    for level in dispatch.built_levels():
        if level.lacks(dispatch.offered_features()):
            continue
        done = python("import cllm, sys; print(cllm._kernels.__file__)", CLLM_ISA=level.name)
        assert Path(done.stdout.strip()).parent == PACKAGE / level.folder, done.stderr


def test_a_level_that_is_unknown_ends_the_import_and_the_command():
    done = python("import cllm", CLLM_ISA="avx9000")
    assert done.returncode and "BuildError: CLLM_ISA=avx9000: must be one of" in done.stderr


def test_a_processor_below_all_levels_is_refused_before_any_is_loaded():
    if dispatch.offered_features() is None:
        pytest.skip("this machine does not tell its CPU's features")
    done = python("""
import platform, sys, types
record = types.ModuleType("cllm._build_info")
record.MACHINE = platform.machine()
record.LEVELS = {"future": {"folder": "", "flags": (), "features": ("no_such_feature",)}}
sys.modules["cllm._build_info"] = record
try:
    import cllm
except ImportError as error:
    assert "a CPU without no_such_feature" in str(error), error
    assert "cllm._kernels" not in sys.modules
    print("refused")
""", CLLM_ISA="")
    assert done.stdout == "refused\n", done.stderr


def runnable():
    """Levels, where there are several, that this processor can run beside the one in use."""
    offered = dispatch.offered_features()
    return [level.name for level in dispatch.built_levels() if not level.lacks(offered) and level != dispatch.choice().level]


@pytest.mark.parametrize("level", runnable())
def test_every_level_gives_the_bits_that_are_written_down(level):
    tests = ["-q", "-n", "0", "-p", "no:cacheprovider", "tests/laws/test_one_answer.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "CLLM_ISA": level})
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]
