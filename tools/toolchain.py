"""The C compiler as setup.py calls it: what it is probed for, and what the code that it makes may use.

Probes are run where they can be: a compiler for another machine than this is asked to compile and link alone.
"""
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from setuptools.errors import CompileError, PlatformError

OPENMP_FLAGS = [(("-fopenmp",), ("-fopenmp",))]
if sys.platform == "darwin":
    OPENMP_FLAGS.append((("-Xpreprocessor", "-fopenmp"), ("-lomp",)))

ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}

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
        """Whether a C program compiles, links, runs (if it can here) and returns 0; and what was printed on the way."""
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "probe.c"), Path(folder, "probe")
            source.write_text(program)
            done, text = self._run([*self.command, *flags, str(source), "-o", str(out), *self.link, *link])
            return self._run([str(out)]) if done and not self.crosses else (done, text)

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

    @cached_property
    def machine(self):
        """What it compiles for, by the names of `platform.machine`."""
        done, text = self._run([*self.command, "-dumpmachine"])
        return text.partition("-")[0].strip() if done and "-" in text else platform.machine()

    @property
    def crosses(self):
        """Whether it compiles for another machine than this, so that nothing it makes runs here."""
        return ALIASES.get(self.machine, self.machine) != ALIASES.get(platform.machine(), platform.machine())

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


# Of each kind of processor the instruction sets that are worth a build, lowest first: v3 has AVX2 and FMA, v4 AVX-512, armv8-a
# NEON. Plain x86-64 has no product and sum that are rounded once: other bits, some five times slower, and so never a level.
ALL = {"x86_64": ("x86-64-v3", "x86-64-v4"), "aarch64": ("armv8-a",)}


def levels_asked(asked):
    """Instruction sets to build for, as CLLM_MARCH names them, lowest first.

    Raises
    ------
    PlatformError
        For a list that names one twice, or nothing, and for ``all`` where nobody has said what that is.
    """
    if asked.strip() != "all":
        names = tuple(name.strip() for name in asked.split(","))
        if len(names) > 1 and ("" in names or "all" in names or len(set(names)) < len(names)):
            raise PlatformError(f"CLLM_MARCH must name each instruction set once, commas between; got {asked!r}. "
                                "Or set it to all, to native, or to one name.")
        return names
    machine = platform.machine()
    found = ALL.get(ALIASES.get(machine, machine))
    if found is None:
        raise PlatformError(f"CLLM_MARCH=all must have a list for the machine; got {machine}, for which there is none. "
                            "Leave it out: the build is then for this very machine.")
    return found


def march_flags(tool, asked):
    """Flags for the instruction set asked for; `native` is spelled by what the compiler understands."""
    if asked == "":
        return ()
    if asked == "native" and tool.crosses:
        raise PlatformError(f"CLLM_MARCH must be named where the compiler is for another machine; got native, and "
                            f"{tool.version()} is for {tool.machine}. Set it to a name such as armv8-a or x86-64-v3.")
    spellings = ("-march=native", "-mcpu=native") if asked == "native" else (f"-march={asked}",)
    for flag in spellings:
        taken, text = tool.compiles([flag, "-Werror"])
        if taken:
            return (flag,)
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


def cpu_features(machine, macros, native):
    """Features, by their names in /proc/cpuinfo, that the built code may use.

    What `native` found but this machine's kernel has no name for cannot be asked for later: it would refuse the very
    machine that built it.
    """
    table = FEATURES.get(ALIASES.get(machine, machine), {})
    needed = sorted(name for name, macro in table.items() if macro in macros)
    cpuinfo = Path("/proc/cpuinfo")
    if native and cpuinfo.exists():
        known = set(cpuinfo.read_text().split())
        needed = [name for name in needed if name in known]
    return needed


