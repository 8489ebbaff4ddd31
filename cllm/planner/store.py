"""Measured seconds of operations, stored per machine, build and number of threads."""

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from cllm import _build_info
from cllm.files import whole
from cllm.platform_guard import cpuinfo_line

FORMAT = 2

DAMAGE = (OSError, ValueError, LookupError, TypeError, RecursionError)  # what reading a file that is none of ours may raise


def store_path(threads: int, dtype: str) -> Path:
    """Where measurements of this machine and build are kept: below ``CLLM_CACHE_DIR``, or the user's cache directory."""
    what = [platform.machine(), cpuinfo_line("model name"), os.cpu_count(), _build_info.COMPILER, _build_info.FLAGS, FORMAT]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return Path(os.environ.get("CLLM_CACHE_DIR") or _user_directory(), f"measured-{key}-{threads}-{dtype}.json")


def load_measurements(threads: int, dtype: str) -> dict[str, float]:
    """Seconds by operation; empty where nothing was measured. A file that is not what was written counts as none, and a
    warning says so: one wrong figure could turn a plan."""
    path = store_path(threads, dtype)
    try:
        return _read(path)
    except DAMAGE as error:
        warnings.warn(f"{path} is damaged or cannot be read ({type(error).__name__}): seconds are predicted from declared work "
                      "until cllm plan --calibrate measures them again", RuntimeWarning, stacklevel=2)
        return {}


def check_store(threads: int, dtype: str) -> None:
    """Raise `OSError` where measurements could not be kept."""
    folder = store_path(threads, dtype).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def save_measurements(threads: int, dtype: str, seconds: Mapping[str, float]) -> Path:
    """Add to what is stored, in one move, so that a reader never sees half a file.

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
        before = {}
    merged = {**before, **seconds}
    data = {"sha256": _digest(merged), "seconds": merged}
    with whole(path) as place, open(place, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=0, sort_keys=True, allow_nan=False)
    return path


def _read(path: Path) -> dict[str, float]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    if data["sha256"] != _digest(data["seconds"]):
        raise ValueError("not what was written")
    return data["seconds"]


def _digest(seconds: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(seconds, sort_keys=True).encode()).hexdigest()


def _user_directory() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"], "cllm")
    try:
        return Path.home() / ".cache" / "cllm"
    except RuntimeError:  # a user without a home, as containers have
        return Path(tempfile.gettempdir(), f"cllm-{os.getuid()}")
