"""Figures of several processes that share a run as one row has them: of the slowest, and of the largest."""

from cllm.executor.groups import Team
from cllm.threads.crowding import crowded


def in_all(team: Team, mine: dict, threads: int) -> dict:
    """A run's figures, given those of this process.

    ``step_seconds`` are of the process that took longest, ``message_bytes`` the most that one is sent in a step, the peak,
    with its start, the highest. ``high_water_bytes`` is that of a process whose record is not as predicted, should there be
    one. ``crowded`` says where there are more threads than cores.
    """
    told = team.tell({name: mine[name] for name in ("step_seconds", "message_bytes", "high_water_bytes", "rss_peak_bytes",
                                                    "rss_start_bytes")})
    highest = max(told, key=lambda one: one["rss_peak_bytes"] or 0)
    records = [one["high_water_bytes"] for one in told]
    return {**mine, "step_seconds": [max(step) for step in zip(*(one["step_seconds"] for one in told), strict=True)],
            "message_bytes": max(one["message_bytes"] for one in told),
            "high_water_bytes": next((record for record in records if record != mine["arena_bytes"]), records[0]),
            "rss_peak_bytes": highest["rss_peak_bytes"], "rss_start_bytes": highest["rss_start_bytes"],
            "crowded": crowded(team, threads)}
