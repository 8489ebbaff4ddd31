"""The level 2 caches of the cores that this process may use: blocks of products are cut for them."""

from collections.abc import Iterable
from pathlib import Path

from cllm import _kernels as kernels
from cllm.threads.cores import usable_cores

CORES = Path("/sys/devices/system/cpu")
UNITS = {"K": 1 << 10, "M": 1 << 20}


def level2(cores: Iterable[int], root: Path = CORES) -> tuple[int, int] | None:
    """Bytes of the least of their level 2 caches, and how many they have between them; None where the system does not tell."""
    sizes: dict[str, int] = {}
    try:
        for core in cores:
            for about in (root / f"cpu{core}" / "cache").glob("index*"):
                level, kind, shared = ((about / name).read_text().strip() for name in ("level", "type", "shared_cpu_list"))
                if level == "2" and kind != "Instruction" and shared not in sizes:
                    size = (about / "size").read_text().strip()
                    sizes[shared] = int(size.rstrip("KM")) * UNITS.get(size[-1:], 1)
    except (OSError, ValueError):
        return None
    return (min(sizes.values()), len(sizes)) if sizes and min(sizes.values()) > 0 else None


def describe_blocks(threads: int) -> str:
    """What blocks of products are cut to on so many threads, and why, for people."""
    why = ("as built: the system does not tell of level 2" if _FOUND is None else
           f"{_FOUND[1]} level 2 cache{'' if _FOUND[1] == 1 else 's'} of {_FOUND[0] >> 10} KiB")
    return f"{kernels.block_bytes(threads) >> 10} KiB, {why}"


_FOUND = level2(usable_cores() or ())
kernels.take_level2(*(_FOUND or (0, 1)))
