"""Does this CPU have what the extension was built for? Asked before the extension is loaded: an instruction that the
CPU does not know ends the process without a word, and may stand in the extension's own initialisation."""
import platform
from pathlib import Path

from cllm.errors import BuildError

CPUINFO = Path("/proc/cpuinfo")
_FEATURES_LINE = {"x86_64": "flags", "aarch64": "Features"}


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


def check_cpu() -> None:
    """Refuse a CPU that lacks a feature which the build may use.

    Only Linux on x86-64 and aarch64 says which features there are; elsewhere nothing is checked.

    Raises
    ------
    BuildError
        With the features that lack, or because nothing was built.
    """
    try:
        from cllm import _build_info
    except ImportError:
        raise BuildError("import cllm", "the extension must be built", "a source tree without a build",
                         "Run `pip install -e .` in it, or leave its folder to import an installed cllm.") from None
    line = cpuinfo_line(_FEATURES_LINE.get(platform.machine(), ""))
    if line is None or platform.machine() != _build_info.MACHINE:
        return
    missing = sorted(set(_build_info.CPU_FEATURES) - set(line.split()))
    if missing:
        raise BuildError(
            "import cllm", f"this CPU must have what the build used (CLLM_MARCH={_build_info.MARCH})",
            f"a CPU without {', '.join(missing)}",
            "Rebuild from source on this machine, or with a CLLM_MARCH that all your machines have, such as "
            "`CLLM_MARCH=x86-64-v2 pip install --force-reinstall .` (on aarch64 armv8-a).")
