"""Which build of the kernels runs here: chosen before it is loaded, or the processor is refused.

A package has one shared object, or one for each of several instruction sets (*levels*: x86-64-v3, x86-64-v4). An instruction
that the processor does not know ends the process without a word, and may stand in the extension's own initialisation. So the
folder of the level is put into the package's path, and nothing of another is ever opened.
"""

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cllm.errors import BuildError

CPUINFO = Path("/proc/cpuinfo")
VARIABLE = "CLLM_ISA"
_FEATURES_LINE = {"x86_64": "flags", "aarch64": "Features"}


@dataclass(frozen=True, slots=True)
class Level:
    """An instruction set that kernels were built for.

    Attributes
    ----------
    name : str
        As CLLM_MARCH named it.
    folder : str
        Of its shared object, below the package; empty for the package itself.
    flags : tuple of str
        Of the compiler.
    features : tuple of str
        What a processor must have, by the names in /proc/cpuinfo.
    """

    name: str
    folder: str
    flags: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def fuses(self) -> bool:
        """Whether a product and a sum are rounded once where kernels say so: such levels have equal bits."""
        return bool({"fma", "asimd"} & set(self.features))

    def lacks(self, offered: Collection[str] | None) -> list[str]:
        """Features that a processor does not have; none where it does not say what it has."""
        return [] if offered is None else sorted(set(self.features) - set(offered))


@dataclass(frozen=True, slots=True)
class Choice:
    """The level in use, and the reason, for people."""

    level: Level
    because: str


_choice: Choice | None = None


def cpuinfo_line(key: str) -> str | None:
    """What /proc/cpuinfo says after `key` for the first core, or None where there is no such line or file."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def built_levels() -> list[Level]:
    """What was built, lowest first.

    Raises
    ------
    BuildError
        Where nothing was.
    """
    try:
        from cllm import _build_info
    except ImportError:
        raise BuildError("import cllm", "the extension must be built", "a source tree without a build",
                         "Run `pip install -e .` in it, or leave its folder to import an installed cllm.") from None
    return [Level(name, **facts) for name, facts in _build_info.LEVELS.items()]


def offered_features() -> list[str] | None:
    """What this processor has, by the names in /proc/cpuinfo; None where the system does not say.

    Only Linux on x86-64 and aarch64 says it. Nor is it known what a build for another machine that is emulated here may use.
    """
    from cllm import _build_info

    line = cpuinfo_line(_FEATURES_LINE.get(platform.machine(), ""))
    return None if line is None or platform.machine() != _build_info.MACHINE else line.split()


def choose(levels: list[Level], offered: Collection[str] | None, asked: str | None) -> Choice:
    """The highest level that the processor can run, or the one that is asked for.

    Parameters
    ----------
    levels : list of Level
        Lowest first.
    offered : collection of str, or None
        Features of the processor, None where they are not known: the lowest level is then taken on trust.
    asked : str or None
        What CLLM_ISA says.

    Raises
    ------
    BuildError
        When the level asked for was not built or cannot run here, and when none can.
    """
    names = ", ".join(level.name for level in levels)
    if asked:
        level = next((level for level in levels if level.name == asked), None)
        if level is None:
            raise BuildError(f"{VARIABLE}={asked}", f"must be one of {names}, which were built", asked,
                             f"Unset {VARIABLE}, or build for it: CLLM_MARCH has the names.")
        if level.lacks(offered):
            raise BuildError(f"{VARIABLE}={asked}", "must be a level that this processor can run",
                             f"a processor without {', '.join(level.lacks(offered))}", f"Unset {VARIABLE}.")
        return Choice(level, f"{VARIABLE} asks for it")
    able = [level for level in levels if not level.lacks(offered)]
    if not able:
        raise BuildError(
            "import cllm", f"this CPU must have what the build used (CLLM_MARCH={names})",
            f"a CPU without {', '.join(levels[0].lacks(offered))}",
            "Rebuild from source on this machine, or with a CLLM_MARCH that all your machines have, such as "
            "`CLLM_MARCH=x86-64-v2 pip install --force-reinstall .` (on aarch64 armv8-a).")
    if len(levels) == 1:
        return Choice(levels[0], "it alone was built")
    if offered is None:
        return Choice(levels[0], "it is the lowest of those built, and this system does not say what its processor has")
    if able[-1] == levels[-1]:
        return Choice(able[-1], "it is the highest of those built, and this processor has all of it")
    above = levels[levels.index(able[-1]) + 1]
    return Choice(able[-1], f"this processor lacks {', '.join(above.lacks(offered))} for {above.name}")


def choose_path(package: str) -> list[str]:
    """Choose the level for this process; the folders to put before the package's own, `package`.

    Raises
    ------
    BuildError
        As `choose`, and where nothing was built.
    """
    global _choice
    _choice = choose(built_levels(), offered_features(), os.environ.get(VARIABLE))
    folder = _choice.level.folder
    return [str(Path(package, folder))] if folder else []


def arithmetic() -> dict:
    """What a snapshot keeps of the kernels in use, as plain data: ``machine``, ``level``, and whether it ``fuses``."""
    level = choice().level
    return {"machine": platform.machine(), "level": level.name, "fuses": level.fuses}


def choice() -> Choice:
    """What was chosen when the package was imported."""
    if _choice is None:
        raise BuildError("cllm.dispatch", "a level must have been chosen", "none", "Import cllm first.")
    return _choice
