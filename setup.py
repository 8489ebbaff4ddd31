"""Build of the one compiled extension, cllm._kernels; all else about the package stands in pyproject.toml.

Switches, read from the environment:

CLLM_MARCH    instruction set, as in -march=...: default ``native`` (this machine's), or a name such as ``x86-64-v3``;
              empty for the compiler's own default.
CLLM_OPENMP   ``auto`` (default: threads if a probe program compiles, links and runs, else serial with a warning),
              ``1`` (no threads is an error), ``0`` (serial).
CLLM_DEBUG    ``1``: bounds checks in Cython code, debug symbols, and an arena that poisons what is freed.
CLLM_WERROR   ``1``: warnings of the C compiler and of Cython, and Cython's performance hints, fail the build.

What was used is written to cllm/_build_info.py, which `cllm.platform_guard` reads before it lets the extension load.
"""
import contextlib
import io
import os
import platform
import pprint
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

# Contraction is off because compilers fuse a*b + c where their tuning pleases, in the body of a loop and not in its tail:
# kernels say themselves what is rounded once (`fma` in kernels/vector.pxi). The other two let loops vectorise and change
# no value. Never fast-math: NaN has to be seen and sums have to stay in order.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
DEBUG_FLAGS = ("-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Cython's own boilerplate leaves parameters and struct fields unused by design; our C blocks do not.
WARNING_FLAGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers")
OPENMP_FLAGS = [(("-fopenmp",), ("-fopenmp",))]
if sys.platform == "darwin":
    OPENMP_FLAGS.append((("-Xpreprocessor", "-fopenmp"), ("-lomp",)))
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")  # a fat build has no one instruction set

# Name of a feature in /proc/cpuinfo, and the macro that tells that the compiler may use it unasked. Instructions that
# come only when called for by name (AES, SHA, RDRAND, cache line writes) need no check.
FEATURES = {
    "x86_64": {
        "pni": "__SSE3__", "ssse3": "__SSSE3__", "sse4_1": "__SSE4_1__", "sse4_2": "__SSE4_2__", "sse4a": "__SSE4A__",
        "popcnt": "__POPCNT__", "abm": "__LZCNT__", "bmi1": "__BMI__", "bmi2": "__BMI2__", "movbe": "__MOVBE__",
        "avx": "__AVX__", "avx2": "__AVX2__", "fma": "__FMA__", "fma4": "__FMA4__", "xop": "__XOP__",
        "f16c": "__F16C__", "avx512f": "__AVX512F__", "avx512cd": "__AVX512CD__", "avx512dq": "__AVX512DQ__",
        "avx512bw": "__AVX512BW__", "avx512vl": "__AVX512VL__", "avx512ifma": "__AVX512IFMA__",
        "avx512vbmi": "__AVX512VBMI__", "avx512_vbmi2": "__AVX512VBMI2__", "avx512_vnni": "__AVX512VNNI__",
        "avx512_bitalg": "__AVX512BITALG__", "avx512_vpopcntdq": "__AVX512VPOPCNTDQ__",
        "avx512_bf16": "__AVX512BF16__", "avx512_fp16": "__AVX512FP16__", "avx_vnni": "__AVXVNNI__",
        "gfni": "__GFNI__", "vpclmulqdq": "__VPCLMULQDQ__",
    },
    "aarch64": {
        "asimd": "__ARM_NEON", "atomics": "__ARM_FEATURE_ATOMICS", "asimdrdm": "__ARM_FEATURE_QRDMX",
        "asimdhp": "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC", "asimddp": "__ARM_FEATURE_DOTPROD",
        "fcma": "__ARM_FEATURE_COMPLEX", "sve": "__ARM_FEATURE_SVE", "sve2": "__ARM_FEATURE_SVE2",
        "bf16": "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC", "i8mm": "__ARM_FEATURE_MATMUL_INT8",
    },
}

EMPTY_PROGRAM = "int main(void) { return 0; }\n"
VECTOR_PROGRAM = """
#include <stdint.h>
#include <string.h>
typedef float f __attribute__((vector_size(16)));
typedef int32_t i __attribute__((vector_size(16)));
int main(void) {
    float p[4] = {1, 2, 3, 4};
    f a, b = 2.0f - (f){0};
    memcpy(&a, p, sizeof a);
    i m = (i)(a > b);
    f c = (f)(((i)a & m) | ((i)b & ~m));
    c = a * b + c;
    return !(c[0] == 4 && c[3] == 12);
}
"""
OPENMP_PROGRAM = """
#include <omp.h>
int main(void) {
    int threads = 0;
    #pragma omp parallel num_threads(2) reduction(+:threads)
    threads += 1;
    return !(threads >= 1 && omp_get_max_threads() >= 1);
}
"""


@dataclass(frozen=True)
class Toolchain:
    """The C compiler as the build will call it: the command with the environment's CFLAGS, and what linking adds."""

    command: tuple[str, ...]
    link: tuple[str, ...] = ()

    def _run(self, command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, str(error)
        return done.returncode == 0, done.stdout + done.stderr

    def runs(self, program, flags, link=()):
        """Whether a C program compiles, links, runs and returns 0; and what was printed on the way."""
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "probe.c"), Path(folder, "probe")
            source.write_text(program)
            done, text = self._run([*self.command, *flags, str(source), "-o", str(out), *self.link, *link])
            return self._run([str(out)]) if done else (False, text)

    def compiles(self, flags):
        """Whether the compiler takes the flags; and what it printed."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(EMPTY_PROGRAM)
            return self._run([*self.command, *flags, "-c", str(source), "-o", str(Path(folder, "probe.o"))])

    def macros(self, flags):
        """What the compiler predefines under the flags: dict of name to value."""
        done, text = self._run([*self.command, *flags, "-dM", "-E", "-x", "c", os.devnull])
        lines = (line.split(None, 2) for line in text.splitlines() if line.startswith("#define ")) if done else ()
        return {words[1]: (words[2:] or [""])[0] for words in lines}

    def version(self):
        """First line of what the compiler says of itself."""
        done, text = self._run([self.command[0], "--version"])
        return text.splitlines()[0].strip() if done and text.strip() else self.command[0]


def switch(environ, name, allowed, default):
    """The value of an environment variable, one of those allowed."""
    value = environ.get(name, "") or default
    if value not in allowed:
        raise PlatformError(f"{name} must be one of {', '.join(allowed)}; got {value!r}. Set it to one of these.")
    return value


def choose_march(tool, asked):
    """Flags for the instruction set asked for, and its name; `native` is spelled by what the compiler understands."""
    if asked == "":
        return (), ""
    spellings = ("-march=native", "-mcpu=native") if asked == "native" else (f"-march={asked}",)
    for flag in spellings:
        taken, text = tool.compiles([flag, "-Werror"])
        if taken:
            return (flag,), asked
    raise CompileError(f"{tool.version()} does not take {' or '.join(spellings)}; it says: {text.strip()} "
                       "Set CLLM_MARCH to a name it knows, or to nothing for its own default.")


def choose_openmp(tool, flags, asked):
    """Flags to compile and to link with OpenMP, or None for a serial build."""
    if asked == "0":
        return None
    said = []
    for compile_flags, link_flags in OPENMP_FLAGS:
        works, text = tool.runs(OPENMP_PROGRAM, [*flags, *compile_flags], link_flags)
        if works:
            return compile_flags, link_flags
        said.append(text.strip())
    why = f"a program with OpenMP does not compile and run with {tool.version()}: {' / '.join(said)}"
    if asked == "1":
        raise CompileError(f"CLLM_OPENMP=1, but {why} Install the compiler's OpenMP library, or set CLLM_OPENMP=0.")
    print(f"warning: cllm is built serial, it will use one core: {why}", file=sys.stderr)
    return None


def cpu_features(macros, native):
    """Features, by their names in /proc/cpuinfo, that the built code may use.

    What `native` found but this machine's kernel has no name for cannot be asked for later: it would refuse the very
    machine that built it.
    """
    table = FEATURES.get(platform.machine(), {})
    needed = sorted(name for name, macro in table.items() if macro in macros)
    cpuinfo = Path("/proc/cpuinfo")
    if native and cpuinfo.exists():
        known = set(cpuinfo.read_text().split())
        needed = [name for name in needed if name in known]
    return needed


def decide(tool, environ):
    """All that the build uses, by the names under which `_build_info` records it, and the flags to link with."""
    debug = switch(environ, "CLLM_DEBUG", ("0", "1"), "0") == "1"
    werror = switch(environ, "CLLM_WERROR", ("0", "1"), "0") == "1"
    openmp_asked = switch(environ, "CLLM_OPENMP", ("auto", "0", "1"), "auto")
    march_flags, march = choose_march(tool, environ.get("CLLM_MARCH", "native").strip())
    base = DEBUG_FLAGS if debug else FLAGS  # probes run without march_flags: the build may be for another machine
    flags = [*base, *march_flags]
    works, text = tool.runs(VECTOR_PROGRAM, base)
    if not works:
        raise PlatformError(f"cllm needs a compiler with vector extensions (GCC or clang), and {tool.version()} fails "
                            f"on them: {text.strip()} Set CC to another compiler.")
    macros = tool.macros(flags)
    # The words count too: after them the linker adds start-up code that flushes small numbers to zero.
    fast = {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & {*tool.command, *tool.link}
    if fast or "__FAST_MATH__" in macros or macros.get("__FINITE_MATH_ONLY__", "0") != "0":
        raise PlatformError("CFLAGS must not turn fast-math on: NaN would go unseen and sums would be reordered; got "
                            f"{shlex.join(tool.command)}. Take -ffast-math, -Ofast or -ffinite-math-only out.")
    openmp = choose_openmp(tool, base, openmp_asked)
    flags += openmp[0] if openmp else ("-Wno-unknown-pragmas",)
    info = {"COMPILER": tool.version(), "MARCH": march, "FLAGS": tuple(flags), "OPENMP": openmp is not None,
            "DEBUG": debug, "WERROR": werror, "MACHINE": platform.machine(),
            "CPU_FEATURES": tuple(cpu_features(macros, march == "native"))}
    return info, (openmp[1] if openmp else ())


def translate(extension, folder, debug, werror):
    """C source of the extension; under `werror` a warning or performance hint of Cython is an error."""
    from Cython.Build import cythonize

    source, = extension.sources
    if debug:  # directives in a file's head outrank those given to Cython, so a copy with another head is compiled
        text = Path(source).read_text().replace("boundscheck=False", "boundscheck=True", 1)
        copy = Path(folder, "debug", source) if not Path(source).is_absolute() else Path(folder, "debug.pyx")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
        extension.sources = [str(copy)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            done, = cythonize([extension], build_dir=folder, include_path=[str(Path(source).parent)], force=True)
    finally:
        sys.stderr.write(said.getvalue())
    # Checked bounds cost the GIL, which is what the hints are about: they count in the build that is meant to be fast.
    signs = ("warning:",) if debug else ("warning:", "performance hint:")
    complaints = [line for line in said.getvalue().splitlines() if line.startswith(signs)]
    if werror and complaints:
        raise CompileError(f"CLLM_WERROR=1, and Cython has {len(complaints)} warnings or hints; first: {complaints[0]}")
    return done.sources


class BuildKernels(build_ext):
    """Probes the compiler, translates, compiles, and leaves a record of what was used beside the extension."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # a changed switch shows in no time stamp

    def build_extensions(self):
        from Cython import __version__ as cython_version

        if self.compiler.compiler_type != "unix":
            raise PlatformError("cllm needs a compiler with vector extensions (GCC or clang); got "
                                f"{self.compiler.compiler_type}. Build with one of these.")
        tool = Toolchain(tuple(self.compiler.compiler_so), tuple(self.compiler.linker_exe[1:]))
        info, link = decide(tool, os.environ)
        info["CYTHON"] = cython_version
        extension, = self.extensions
        extension.sources = translate(extension, self.build_temp, info["DEBUG"], info["WERROR"])
        # Python's own flags ask for debug symbols, which are six times the code; CLLM_DEBUG has them
        symbols = () if info["DEBUG"] else ("-g0",)
        extension.extra_compile_args = [*info["FLAGS"], *symbols, *(WARNING_FLAGS if info["WERROR"] else ())]
        extension.extra_link_args = list(link)
        super().build_extensions()
        self.record = "".join([
            '"""What the build of cllm._kernels used; written by setup.py."""\n',
            *(f"{name} = {pprint.pformat(value, width=100)}\n" for name, value in sorted(info.items()))])
        self._write_record(Path(self.get_ext_fullpath(extension.name)).parent)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self._write_record(Path(self.get_finalized_command("build_py").get_package_dir("cllm")))

    def _write_record(self, folder):
        Path(folder, "_build_info.py").write_text(self.record)


if __name__ == "__main__":
    setup(cmdclass={"build_ext": BuildKernels}, ext_modules=[Extension(
        "cllm._kernels", ["cllm/_kernels.pyx"], libraries=["m"],
        depends=[path.as_posix() for path in sorted(Path("cllm/kernels").glob("*.pxi"))])])
