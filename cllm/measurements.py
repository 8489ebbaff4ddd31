"""Measured seconds of operations, stored per machine, build and number of threads."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from cllm import _build_info
from cllm.platform_guard import cpuinfo_line

FORMAT = 1


def store_path(threads: int, dtype: str) -> Path:
    """Where measurements of this machine and build are kept: below ``CLLM_CACHE_DIR``, or the user's cache directory."""
    base = os.environ.get("CLLM_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cllm")
    what = [platform.machine(), cpuinfo_line("model name"), os.cpu_count(), _build_info.COMPILER, _build_info.FLAGS, FORMAT]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return Path(base, f"measured-{key}-{threads}-{dtype}.json")


def load_measurements(threads: int, dtype: str) -> dict[str, float]:
    """Seconds by operation; empty where nothing was measured, or the file cannot be read."""
    try:
        data = json.loads(store_path(threads, dtype).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in data.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def save_measurements(threads: int, dtype: str, seconds: Mapping[str, float]) -> Path:
    """Add to what is stored, in one move, so that a reader never sees half a file."""
    path = store_path(threads, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    merged = {**load_measurements(threads, dtype), **seconds}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(merged, indent=0, sort_keys=True), encoding="utf-8")
    part.replace(path)
    return path
