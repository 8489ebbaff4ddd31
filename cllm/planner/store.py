"""Measured seconds of operations, stored per machine, build and number of threads, with when and how they were measured."""

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cllm import _build_info
from cllm.dispatch import choice, cpuinfo_line
from cllm.files import whole

FORMAT = 5

DAMAGE = (OSError, ValueError, LookupError, TypeError, RecursionError)  # what reading a file that is none of ours may raise


def store_path(threads: int, dtype: str) -> Path:
    """Where measurements of this machine and build are kept: below ``CLLM_CACHE_DIR``, or the user's cache directory."""
    what = [platform.machine(), cpuinfo_line("model name"), os.cpu_count(), _build_info.COMPILER, choice().level.flags, FORMAT]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return Path(os.environ.get("CLLM_CACHE_DIR") or _user_directory(), f"measured-{key}-{threads}-{dtype}.json")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, and how.

    Attributes
    ----------
    seconds : dict of float by operation
    made : dict of dict by workload
        Of each calibration "date", "load" (the load average before it, or None), "spread" (of its slowest round over its
        quickest) and "loaded": whether the machine was too busy for its figures to be believed beyond their own workload.
    loaded : frozenset of str
        Operations that were measured while the machine was loaded, and never otherwise.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    made: Mapping[str, dict] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()

    @property
    def source(self) -> str:
        """What seconds rest on, in two words or three: declared work, or measured and the date of the latest calibration."""
        if not self.seconds:
            return "declared work"
        latest = max(self.made.values(), key=lambda one: one["date"], default=None)
        if latest is None:
            return "measured"
        return f"measured {latest['date']}" + (" under load" if latest["loaded"] else "")


def load_measurements(threads: int, dtype: str) -> dict[str, float]:
    """Seconds by operation; errors as `load_measured`."""
    return dict(load_measured(threads, dtype).seconds)


def load_measured(threads: int, dtype: str) -> Measured:
    """What is stored; empty where nothing was measured. A file that is not what was written counts as none, and a
    warning says so: one wrong figure could turn a plan."""
    path = store_path(threads, dtype)
    try:
        return _read(path)
    except DAMAGE as error:
        warnings.warn(f"{path} is damaged or cannot be read ({type(error).__name__}): seconds are predicted from declared work "
                      "until cllm plan --calibrate measures them again", RuntimeWarning, stacklevel=2)
        return Measured()


def check_store(threads: int, dtype: str) -> None:
    """Raise `OSError` where measurements could not be kept."""
    folder = store_path(threads, dtype).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def save_measurements(threads: int, dtype: str, seconds: Mapping[str, float], made: Mapping[str, dict] | None = None,
                      loaded: bool = False) -> Path:
    """Add to what is stored, in one move, so that a reader never sees half a file.

    Parameters
    ----------
    made : dict of dict by workload
        As of `Measured`.
    loaded : bool
        The machine was loaded: what was measured on a quiet one before stays.

    Raises
    ------
    OSError
        When it cannot be written; what was stored stays.
    """
    path = store_path(threads, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = _read(path)
    except DAMAGE:  # damaged: what is measured now replaces it
        before = Measured()
    believed = {name for name in before.seconds if name not in before.loaded} if loaded else set()
    new = {name: value for name, value in seconds.items() if name not in believed}
    body = {"seconds": {**before.seconds, **new}, "made": {**before.made, **(made or {})},
            "loaded": sorted(before.loaded | set(new) if loaded else before.loaded - set(new))}
    data = {"sha256": _digest(body), **body}
    with whole(path) as place, open(place, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=0, sort_keys=True, allow_nan=False)
    return path


def _read(path: Path) -> Measured:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Measured()
    body = {name: data[name] for name in ("seconds", "made", "loaded")}
    if data["sha256"] != _digest(body):
        raise ValueError("not what was written")
    return Measured(body["seconds"], body["made"], frozenset(body["loaded"]))


def _digest(body: Mapping) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _user_directory() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"], "cllm")
    try:
        return Path.home() / ".cache" / "cllm"
    except RuntimeError:  # a user without a home, as containers have
        return Path(tempfile.gettempdir(), f"cllm-{os.getuid()}")
