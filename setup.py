"""Build of the one compiled extension, cllm._kernels; all else about the package stands in pyproject.toml.

The probes of the compiler are in tools/toolchain.py.

Switches, read from the environment:

CLLM_MARCH    instruction set, as in -march=...: default ``native`` (this machine's), or a name such as ``x86-64-v3``;
              empty for the compiler's own default. Several with commas between, lowest first, make a shared object for
              each, one of which is chosen when the package is imported; ``all`` is what wheels have: x86-64-v3 and
              x86-64-v4, on aarch64 armv8-a.
CLLM_OPENMP   ``auto`` (default: threads if a probe program compiles, links and runs, else serial with a warning),
              ``1`` (no threads is an error), ``0`` (serial).
CLLM_DEBUG    ``1``: bounds checks in Cython code, debug symbols, and an arena that poisons what is freed.
CLLM_WERROR   ``1``: warnings of the C compiler and of Cython, and Cython's performance hints, fail the build.

What was used is written to cllm/_build_info.py, which `cllm.dispatch` reads before it lets the extension load.
"""
import contextlib
import io
import os
import platform
import pprint
import shlex
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

sys.path.insert(0, str(Path(__file__).parent / "tools"))  # where pip builds, a script's folder is not in the path

from toolchain import VECTOR_PROGRAM, Toolchain, choose_openmp, cpu_features, levels_asked, march_flags, switch  # noqa: E402

# Contraction is off because compilers fuse a*b + c where their tuning pleases, in the body of a loop and not in its tail:
# kernels say themselves what is rounded once (`fma` in kernels/vector.pxi). The other two let loops vectorise and change
# no value. Never fast-math: NaN has to be seen and sums have to stay in order.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Loops begin at a cache line, if the compiler takes this. Where a register tile lies is chance otherwise, and one that lies
# badly is slower wherever another program runs on the same core and shares what decodes instructions.
ALIGN_FLAG = "-falign-loops=64"
DEBUG_FLAGS = ("-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Cython's own boilerplate leaves parameters and struct fields unused by design; our C blocks do not.
WARNING_FLAGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers")
if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")  # a fat build has no one instruction set

def decide(tool, environ):
    """All that the build uses, by the names under which `_build_info` records it, and the flags to link with."""
    debug = switch(environ, "CLLM_DEBUG", ("0", "1"), "0") == "1"
    werror = switch(environ, "CLLM_WERROR", ("0", "1"), "0") == "1"
    openmp_asked = switch(environ, "CLLM_OPENMP", ("auto", "0", "1"), "auto")
    base = DEBUG_FLAGS if debug else FLAGS  # probes run without -march: the build may be for another machine
    works, text = tool.runs(VECTOR_PROGRAM, base)
    if not works:
        raise PlatformError(f"cllm needs a compiler with vector extensions (GCC or clang), and {tool.version()} fails "
                            f"on them: {text.strip()} Set CC to another compiler.")
    if not debug and tool.compiles((*base, "-Werror", ALIGN_FLAG))[0]:
        base += (ALIGN_FLAG,)
    openmp = choose_openmp(tool, base, openmp_asked)
    levels, names = {}, levels_asked(environ.get("CLLM_MARCH", "native"))
    for name in names:
        flags = [*base, *march_flags(tool, name)]
        macros = tool.macros(flags)
        # The words count too: after them the linker adds start-up code that flushes small numbers to zero.
        fast = {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & {*tool.command, *tool.link}
        if fast or "__FAST_MATH__" in macros or macros.get("__FINITE_MATH_ONLY__", "0") != "0":
            raise PlatformError("CFLAGS must not turn fast-math on: NaN would go unseen and sums would be reordered; got "
                                f"{shlex.join(tool.command)}. Take -ffast-math, -Ofast or -ffinite-math-only out.")
        flags += openmp[0] if openmp else ("-Wno-unknown-pragmas",)
        levels[name or "default"] = {"folder": "/".join(folder_of(name, names)), "flags": tuple(flags),
                                     "features": tuple(cpu_features(tool.machine, macros, name == "native"))}
    info = {"COMPILER": tool.version(), "OPENMP": openmp is not None, "DEBUG": debug, "WERROR": werror,
            "MACHINE": tool.machine, "LEVELS": levels}
    return info, (openmp[1] if openmp else ())


def extensions(environ):
    """One extension a level: below the package itself where there is one alone, else each in a folder of its name."""
    names = levels_asked(environ.get("CLLM_MARCH", "native"))
    depends = [path.as_posix() for path in sorted(Path("cllm/kernels").glob("*.pxi"))]
    return [Extension(".".join(("cllm", *folder_of(name, names), "_kernels")), ["cllm/_kernels.pyx"], libraries=["m"],
                      depends=depends) for name in names]


def folder_of(name, names):
    """Where the shared object of a level lies below the package."""
    return ("levels", name.replace(".", "_")) if len(names) > 1 else ()


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


def record_of(info):
    """Text of cllm/_build_info.py; levels stay in their order."""
    return '"""What the build of cllm._kernels used; written by setup.py."""\n' + "".join(
        f"{name} = {pprint.pformat(value, width=100, sort_dicts=False)}\n" for name, value in sorted(info.items()))


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
        info |= {"CYTHON": cython_version, "DISTRIBUTION": self.distribution.get_name(),
                 "VERSION": self.distribution.get_version()}
        # Of any one, translated once: the C source is the same for all of them
        source = Extension("cllm._kernels", list(self.extensions[0].sources))
        sources = translate(source, self.build_temp, info["DEBUG"], info["WERROR"])
        # Python's own flags ask for debug symbols, which are six times the code; CLLM_DEBUG has them
        symbols = () if info["DEBUG"] else ("-g0",)
        for extension, level in zip(self.extensions, info["LEVELS"].values(), strict=True):
            extension.sources = list(sources)
            extension.extra_compile_args = [*level["flags"], *symbols, *(WARNING_FLAGS if info["WERROR"] else ())]
            extension.extra_link_args = list(link)
        super().build_extensions()
        self.record = record_of(info)
        self._write_record(Path(self.build_lib, "cllm"))

    def build_extension(self, ext):
        """Object files of all levels have one name, so each level has a folder for them."""
        folder, self.build_temp = self.build_temp, str(Path(self.build_temp, ext.name))
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = folder

    def copy_extensions_to_source(self):
        package = Path(self.get_finalized_command("build_py").get_package_dir("cllm"))
        built = {package.parent / self.get_ext_filename(extension.name) for extension in self.extensions}
        for file in built:
            file.parent.mkdir(parents=True, exist_ok=True)
        super().copy_extensions_to_source()
        for other in {found for file in built for found in package.rglob(file.name)} - built:
            other.unlink()  # of a build with other levels: the record that is written now does not know it
        self._write_record(package)

    def _write_record(self, folder):
        Path(folder, "_build_info.py").write_text(self.record)


if __name__ == "__main__":
    setup(cmdclass={"build_ext": BuildKernels}, ext_modules=extensions(os.environ))
