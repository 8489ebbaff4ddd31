"""From declared work and measured seconds to the roofline: how near each step of the program is to what the machine can do.

Williams, Waterman and Patterson 2009: a step that does F operations on M bytes takes no less than max(F / peak, M /
bandwidth). Its point stands at F / M on the x axis and at F / seconds on the y axis, below the roof of the two limits.
The bandwidth is that of going through as many bytes as a whole training step has, since the next operation rarely finds
its arrays where the one before left them: of memory for all but tiny models. Where it does, the share may pass 1.
What a layer does "a few" of per element it does not declare as arithmetic: such steps have bytes alone.
"""

from collections import defaultdict
from statistics import median

from machine.limits import Limits

IN_CACHE_BYTES = 1 << 20  # for the upper roof of the picture


def without_block(name: str) -> str:
    """``blocks.3.attn.qkv`` as ``attn.qkv``: what all blocks have in common."""
    parts = name.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" and len(parts) > 2 else name


def points(strategy: str, steps: list[list], work: list[list[float]], roofs: dict | None,
           kinds: tuple[str, ...] = ()) -> list[dict]:
    """One point for each step of the program and kind of operation, all blocks and micro-batches together.

    Parameters
    ----------
    strategy : str
        Whose steps these are.
    steps : list
        Of each instrumented step, (kind, name, seconds) of every operation.
    work : list
        Declared (operations, bytes) of each of them.
    roofs : dict or None
        Of `measured_roofs`.
    kinds : tuple of str
        These only; empty takes all.

    Returns
    -------
    list of dict
        ``step``, ``kind``, ``calls`` in a training step, ``flops`` and ``bytes`` of them, ``seconds`` (median over the
        instrumented steps), ``limit_seconds`` (what the machine needs at the least) and ``share`` (of the limit; None
        where the limits are not known), most seconds first.
    """
    if len({len(work), *map(len, steps)}) != 1:
        raise ValueError(f"{strategy}: declared work of {len(work)} operations, seconds of {[len(one) for one in steps]}")
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, (kind, name, _) in enumerate(steps[0]):
        if not kinds or kind in kinds:
            found[without_block(name), kind].append(position)
    made = []
    for (name, kind), positions in found.items():
        seconds = median(sum(step[position][2] for position in positions) for step in steps)
        flops = sum(work[position][0] for position in positions)
        nbytes = sum(work[position][1] for position in positions)
        limit = roofs and sum(max(work[p][0] / roofs["flops"], work[p][1] / roofs["memory"]) for p in positions)
        made.append({"strategy": strategy, "step": name, "kind": kind, "calls": len(positions), "flops": flops,
                     "bytes": nbytes, "seconds": seconds, "limit_seconds": limit, "share": roofs and limit / seconds})
    return sorted(made, key=lambda one: -one["seconds"])


def measured_roofs(limits: Limits, step_bytes: int) -> dict | None:
    """Most operations per second; bytes per second of going through as many bytes as a step has, and of a small array
    that stays in the processor's caches. None where nothing can be measured."""
    memory, caches = limits.bandwidth(step_bytes), limits.bandwidth(IN_CACHE_BYTES)
    return None if memory is None else {"flops": limits.flops(), "memory": memory, "caches": caches,
                                        "step_bytes": step_bytes}
