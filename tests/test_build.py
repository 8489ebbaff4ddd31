"""The build: its probes and switches, what it records and packs, and the guard that reads the record."""
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from setuptools import Extension
from setuptools.errors import CompileError, PlatformError

from cllm import _build_info, _kernels, about, dispatch

ROOT = Path(__file__).parents[1]
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86-64")


@pytest.fixture(scope="module")
def build():
    """setup.py as a module; it builds nothing when imported."""
    spec = importlib.util.spec_from_file_location("cllm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def compiler(build, tmp_path):
    """Makes a toolchain whose compiler is a shell script; ``$CC`` in it is the real one."""
    def make(script):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\nCC={CC}\n{script}\n")
        path.chmod(0o755)
        return build.Toolchain((str(path),))
    return make


# The probes and switches of setup.py

def decided(build, environ, tool=None):
    """What is recorded of a build for one instruction set, and its one level."""
    info, _ = build.decide(tool or build.Toolchain((CC,)), environ)
    (name, level), = info["LEVELS"].items()
    return info, name, level


@needs_compiler
def test_flags_state_contraction_and_never_ask_for_fast_math(build):
    _, name, level = decided(build, {})
    assert name == "native" and {"-ffp-contract=off", "-O3"} <= set(level["flags"])
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(level["flags"])


CHAIN = """
typedef float v __attribute__((vector_size(32)));
v chain(const float *a, const v *b, long n, v sum) { for (; n > 0; n--) sum = *a++ * *b++ + sum; return sum; }
"""


@needs_compiler
@on_x86
def test_a_product_and_a_sum_stay_two_roundings(build, tmp_path):
    """What is one rounding is written so; what the compiler fuses hangs on its tuning and on what stands around it."""
    (tmp_path / "chain.c").write_text(CHAIN)
    for debug in ("0", "1"):
        level = decided(build, {"CLLM_MARCH": "x86-64-v3", "CLLM_OPENMP": "0", "CLLM_DEBUG": debug})[2]
        command = [CC, *level["flags"], "-S", "-o", str(tmp_path / "chain.s"), str(tmp_path / "chain.c")]
        subprocess.run(command, check=True, timeout=60)
        code = (tmp_path / "chain.s").read_text()
        assert "vmulps" in code and "vfmadd" not in code, debug


@needs_compiler
@on_x86
@pytest.mark.parametrize(("march", "has", "lacks"), [
    ("x86-64", (), ("avx",)), ("haswell", ("avx2", "fma"), ("avx512f",)),
    ("skylake-avx512", ("avx512f", "avx512vl"), ("avx512_bf16",))])
def test_an_instruction_set_that_is_named_is_used_and_recorded(build, march, has, lacks):
    # Probes must pass for any of them: a build may be for another machine than this one.
    _, name, level = decided(build, {"CLLM_MARCH": march})
    assert f"-march={march}" in level["flags"] and name == march and level["folder"] == ""
    assert set(level["features"]) >= set(has) and not set(level["features"]) & set(lacks)


@needs_compiler
def test_an_empty_instruction_set_leaves_the_choice_to_the_compiler(build):
    _, name, level = decided(build, {"CLLM_MARCH": ""})
    assert name == "default" and not any(flag.startswith(("-march", "-mcpu")) for flag in level["flags"])


@needs_compiler
def test_an_unknown_instruction_set_is_refused(build):
    with pytest.raises(CompileError, match=r"(?s)does not take -march=pentium-nine.*Set CLLM_MARCH"):
        build.decide(build.Toolchain((CC,)), {"CLLM_MARCH": "pentium-nine"})


@needs_compiler
@on_x86
def test_all_is_a_build_for_each_level_in_a_folder_of_its_own(build):
    info, _ = build.decide(build.Toolchain((CC,)), {"CLLM_MARCH": "all"})
    v3, v4 = info["LEVELS"].values()
    assert list(info["LEVELS"]) == ["x86-64-v3", "x86-64-v4"]
    assert "avx512f" in v4["features"] and "avx512f" not in v3["features"] and {"avx2", "fma"} <= set(v3["features"])
    assert (v3["folder"], v4["folder"]) == ("levels/x86-64-v3", "levels/x86-64-v4")
    assert [extension.name for extension in build.extensions({"CLLM_MARCH": "all"})] == [
        "cllm.levels.x86-64-v3._kernels", "cllm.levels.x86-64-v4._kernels"]


def test_levels_are_a_list_in_the_order_given_and_a_dot_makes_no_folder(build):
    names = [extension.name for extension in build.extensions({"CLLM_MARCH": "armv8-a, armv8.2-a"})]
    assert names == ["cllm.levels.armv8-a._kernels", "cllm.levels.armv8_2-a._kernels"]
    assert [extension.name for extension in build.extensions({})] == ["cllm._kernels"]


def test_the_record_keeps_levels_in_their_order(build):
    record = {}
    exec(build.record_of({"LEVELS": {"x86-64-v3": {"folder": "levels/x86-64-v3"}, "native": {}}, "DEBUG": False}), record)
    assert list(record["LEVELS"]) == ["x86-64-v3", "native"] and record["DEBUG"] is False


@pytest.mark.parametrize("asked", ["x86-64-v3,x86-64-v3", "x86-64-v3,", "all,native"])
def test_a_list_of_levels_that_is_none_is_refused(build, asked):
    with pytest.raises(PlatformError, match=f"must name each instruction set once.*got '{asked}'. Or set it to all"):
        build.extensions({"CLLM_MARCH": asked})


def test_all_is_refused_where_nobody_has_said_what_that_is(build, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(PlatformError, match="CLLM_MARCH=all must have a list .*got riscv64.* Leave it out"):
        build.extensions({"CLLM_MARCH": "all"})


FOR_ANOTHER_MACHINE = ('case "$*" in *-dumpmachine*) echo riscv64-linux-gnu; exit;; esac; $CC "$@" || exit; '
                       'while [ "$1" != -o ] && [ $# -gt 0 ]; do shift; done; [ $# -eq 0 ] || echo "cannot run" > "$2"')


@needs_compiler
def test_probes_of_a_compiler_for_another_machine_are_not_run(build, compiler):
    info, _, level = decided(build, {"CLLM_MARCH": ""}, compiler(FOR_ANOTHER_MACHINE))
    assert info["MACHINE"] == "riscv64" and info["OPENMP"] and level["features"] == ()
    here = compiler(FOR_ANOTHER_MACHINE.replace("riscv64", platform.machine()))
    with pytest.raises(PlatformError, match="vector extensions"):
        build.decide(here, {"CLLM_MARCH": ""})


@needs_compiler
def test_native_is_no_name_for_another_machine(build, compiler):
    with pytest.raises(PlatformError, match="CLLM_MARCH must be named .*for riscv64. Set it to a name such as armv8-a"):
        build.decide(compiler(FOR_ANOTHER_MACHINE), {})


@needs_compiler
def test_native_records_only_what_this_machine_can_be_asked_for(build):
    if not dispatch.CPUINFO.exists():
        pytest.skip("no /proc/cpuinfo")
    features = decided(build, {"CLLM_MARCH": "native"})[2]["features"]
    assert set(features) <= set(dispatch.CPUINFO.read_text().split())


@needs_compiler
def test_openmp_can_be_switched_off(build):
    info, link = build.decide(build.Toolchain((CC,)), {"CLLM_OPENMP": "0"})
    assert info["OPENMP"] is False and link == () and "-fopenmp" not in info["LEVELS"]["native"]["flags"]


NO_OPENMP = 'case "$*" in *-fopenmp*) echo no openmp here >&2; exit 1;; esac; exec $CC "$@"'
OPENMP_DOES_NOT_RUN = ('case "$*" in *-fopenmp*) while [ "$1" != -o ]; do shift; done; cp "$(command -v false)" "$2";; '
                       '*) exec $CC "$@";; esac')


@needs_compiler
@pytest.mark.parametrize("script", [NO_OPENMP, OPENMP_DOES_NOT_RUN])
def test_without_openmp_the_build_is_serial_and_says_so(build, compiler, capsys, script):
    info, link = build.decide(compiler(script), {"CLLM_MARCH": ""})
    assert info["OPENMP"] is False and link == ()
    assert "warning: cllm is built serial, it will use one core" in capsys.readouterr().err


@needs_compiler
def test_without_openmp_a_build_that_must_have_it_fails(build, compiler):
    with pytest.raises(CompileError, match=r"(?s)CLLM_OPENMP=1, but .*no openmp here.*or set CLLM_OPENMP=0"):
        build.decide(compiler(NO_OPENMP), {"CLLM_MARCH": "", "CLLM_OPENMP": "1"})


@needs_compiler
def test_a_compiler_without_vector_extensions_is_refused(build, compiler):
    with pytest.raises(PlatformError, match=r"(?s)needs a compiler with vector extensions .* Set CC to another"):
        build.decide(compiler('exec $CC -Dvector_size=no_such_attribute "$@"'), {"CLLM_MARCH": ""})


def test_a_compiler_that_is_not_there_is_refused(build):
    with pytest.raises(PlatformError, match="vector extensions .*no-such-compiler"):
        build.decide(build.Toolchain(("no-such-compiler",)), {"CLLM_MARCH": ""})


@needs_compiler
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_fast_math_from_the_environment_is_refused(build, flag):
    with pytest.raises(PlatformError, match=f"must not turn fast-math on.*{flag}"):
        build.decide(build.Toolchain((CC, flag)), {"CLLM_MARCH": "", "CLLM_OPENMP": "0"})


@pytest.mark.parametrize(("name", "value"), [("CLLM_OPENMP", "yes"), ("CLLM_DEBUG", "2"), ("CLLM_WERROR", "on")])
def test_a_switch_with_another_value_is_refused(build, name, value):
    with pytest.raises(PlatformError, match=f"{name} must be one of .*; got '{value}'"):
        build.decide(build.Toolchain(("cc",)), {name: value})


def translate(build, folder, text, **switches):
    source = folder / "probe.pyx"
    source.write_text("# cython: language_level=3, boundscheck=False\n" + text)
    c_source, = build.translate(Extension("probe", [str(source)]), str(folder), **switches)
    return Path(c_source).read_text()


HINT = "cdef void slow() nogil:\n    pass\ndef call():\n    with nogil:\n        slow()\n"
INDEX = "include \"kernels/first.pxi\"\n"


def test_a_performance_hint_fails_a_strict_build_only(build, tmp_path, capsys):
    translate(build, tmp_path, HINT, debug=False, werror=False)
    assert "performance hint" in capsys.readouterr().err
    with pytest.raises(CompileError, match="CLLM_WERROR=1, and Cython has . warnings .* first: performance hint"):
        translate(build, tmp_path, HINT, debug=False, werror=True)


def test_a_cython_warning_fails_a_strict_build(build, tmp_path):
    with pytest.raises(CompileError, match="first: warning: .*Unreachable code"):
        translate(build, tmp_path, "def one():\n    return 1\n    return 2\n", debug=False, werror=True)


def test_bounds_are_checked_in_a_debug_build_alone(build, tmp_path):
    raises = "__Pyx_RaiseBufferIndexError("
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/first.pxi").write_text("def first(const double[::1] x not None):\n    return x[0]\n")
    assert raises not in translate(build, tmp_path, INDEX, debug=False, werror=True)
    assert raises in translate(build, tmp_path, INDEX, debug=True, werror=True)


# What is packed

def test_every_kernel_family_is_included_by_the_extension():
    included = re.findall(r'^include "kernels/(.+)"$', (ROOT / "cllm/_kernels.pyx").read_text(), re.MULTILINE)
    assert len(included) == len(set(included))
    assert set(included) == {path.name for path in (ROOT / "cllm/kernels").glob("*.pxi")}


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "cllm").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def setup_command(folder, *command):
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder), *command], cwd=ROOT,
                   check=True, capture_output=True, stdin=subprocess.DEVNULL)


def test_the_source_distribution_carries_what_a_build_needs(tmp_path):
    setup_command(tmp_path, "sdist", "--dist-dir", str(tmp_path))
    archive, = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for pattern in ("*.py", "*.pyx", "*.pxi", "texts/*")
               for path in (ROOT / "cllm").rglob(pattern)} - {"cllm/_build_info.py"}
    assert sources | {"setup.py", "tools/toolchain.py", "pyproject.toml", "README.md", "LICENSE",
                      "tests/test_build.py"} <= names
    assert not [name for name in names if name.endswith((".so", "_build_info.py"))]
    assert {name for name in names if name.startswith("profiling/results/") and "." in name} == {"profiling/results/README.md"}


def test_an_installed_package_has_the_text_and_its_notice(tmp_path):
    setup_command(tmp_path, "build_py", "--build-lib", str(tmp_path / "lib"))
    texts = {path.name for path in (tmp_path / "lib/cllm/texts").iterdir()}
    assert texts == {"pride_and_prejudice.txt.gz", "NOTICE.txt"}
    assert (tmp_path / "lib/cllm/layers/__init__.py").exists() and (tmp_path / "lib/cllm/py.typed").exists()


def test_the_extension_is_code_and_no_symbols_of_debugging():
    library = Path(_kernels.__file__)
    if _build_info.DEBUG or library.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("a debug build, or another form of libraries")
    assert b".debug_info" not in library.read_bytes() and library.stat().st_size < 3_000_000


# What is recorded and how it is guarded

def test_versions_are_plain_values():
    shown = about.versions()
    assert json.loads(json.dumps(shown)) == shown
    assert set(shown) == {"cllm", "python", "numpy", "cython", "compiler", "levels", "level", "level_because", "flags",
                          "openmp", "debug", "vector_bytes", "threads", "threads_because", "waiting", "blocks", "scaling",
                          "cpu", "cpu_features", "cpu_vectors", "bfloat16"}
    assert shown["vector_bytes"] in (16, 32, 64) and shown["threads"] >= 1
    assert (shown["vector_bytes"] == 64) == ("avx512f" in shown["cpu_features"])
    assert shown["level"] in shown["levels"]


@pytest.mark.skipif(_build_info.DEBUG or not _build_info.COMPILER.startswith("gcc"), reason="a build without the flag")
def test_loops_begin_at_a_cache_line():
    """Where the register tile lies is no matter of chance."""
    assert all("-falign-loops=64" in level["flags"] for level in _build_info.LEVELS.values())
