"""Views of whole steps: ways to keep gradients and states, PyTorch beside them, budgets, a model in a hard limit, kills."""

from collections.abc import Callable

from words import NOTHING, Table, aligned, megabytes, number, spread


def _ways(data: dict) -> Table:
    header = ("way", "clipping", "total MB", "allocated", "process over total", "on disk MB",
              f"bits after {data['steps']} steps")
    return header, [(row["name"], _clip(row["clip"]), megabytes(row["total_bytes"]),
                     "the same" if row["allocated_bytes"] == row["total_bytes"] else megabytes(row["allocated_bytes"]),
                     number(row["growth_over_total"], ".3f"), megabytes(row["disk_bytes"]) if row["disk_bytes"] else NOTHING,
                     "the same" if row["same_bits"] else "OTHER") for row in data["rows"]]


def _seconds(data: dict) -> Table:
    disk_seconds = {(row["name"], row["clip"]): row["disk_seconds"] for row in data["rows"]}
    header = ("contestant", "clipping", "growth over the model MB", "step s (least to most)", "over the plain step",
              "disk's time for its bytes s", "over the greater of plain step and disk")
    return header, [(one["name"].replace("torch", "PyTorch"), _clip(one["clip"]), megabytes(one["growth_bytes"]),
                     spread(one["seconds"]), f"{one['over_plain']:.2f}",
                     number(disk_seconds.get((one["name"], one["clip"])) or None, ".2f"), number(one["over_bound"], ".2f"))
                    for one in data["in_turn"]]


def _least(data: dict) -> Table:
    first = {one["clip_by"]: one["least_bytes"] for one in reversed(data["budgets"])}
    return ("what a budget may decide", "clipping", "least total MB", "share of the first"), [
        (one["name"], "none" if one["clip_by"] is None else f"by the norm of {one['clip_by']}", megabytes(one["least_bytes"]),
         f"{one['least_bytes'] / first[one['clip_by']]:.3f}") for one in data["budgets"]]


def _points(data: dict) -> Table:
    return ("plan for MB", "on disk MB", "moved a step MB", "predicted s", "step s (least to most)"), [
        (megabytes(one["total_bytes"]), megabytes(one["disk_bytes"]), megabytes(sum(one["moved_bytes"].values())),
         number(one["predicted_seconds"], ".3f"), spread(one["seconds"])) for one in data["points"]]


def _disk(data: dict) -> Table:
    return ("disk", "writes MB/s", "reads MB/s", "how"), [
        (when, f"{one['write'] / 1e6:,.0f}", f"{one['read'] / 1e6:,.0f}", one["how"])
        for when, one in zip(("before", "after"), data["disks"], strict=True)]


def summary(data: dict) -> str:
    """All of it in columns, for a terminal."""
    return "\n\n".join(aligned(*view(data)) for view in (_disk, _ways, _seconds, _least, _points))


def _huge(data: dict) -> Table:
    group = data["group"]
    return ("", ""), [
        ("parameters", f"{data['parameters']:,}"), ("limit MB", megabytes(data["limit"])),
        ("enforced by", "RLIMIT_DATA" if group is None else "a control group, and RLIMIT_DATA"),
        ("predicted total MB", megabytes(data["total_bytes"])),
        ("growth of the process MB", megabytes(data["peak_growth_bytes"])),
        ("most in the group MB, files that were touched too", NOTHING if group is None else megabytes(group["most_bytes"])),
        ("states on disk MB", megabytes(data["states"])), ("moved a step MB", megabytes(sum(data["moved_bytes"].values()))),
        ("step s", ", ".join(f"{one:.1f}" for one in data["seconds"])),
        ("loss", ", ".join(f"{one:.4f}" for one in data["losses"])),
        ("snapshot", f"{megabytes(data['snapshot_written']['bytes'])} MB in {data['snapshot_written']['seconds']:.1f} s")]


def _kills(data: dict) -> Table:
    rows, ends = data["rows"], data["ends"]
    return ("", ""), [
        ("kills", str(len(rows))), ("of them while a snapshot was being written", str(sum(row["written"] for row in rows))),
        ("of them before the first snapshot", str(sum(not row["step"] for row in rows))),
        ("snapshots that were damaged", str(sum(len(row["damaged"]) for row in rows))),
        ("files of states that were left", str(sum(len(row["left"]) for row in rows))),
        ("runs that ended", str(len(ends))),
        ("of them with the bits of the straight run", str(sum(end["digests"] == data["straight"]["digests"] for end in ends)))]


def _clip(clip: float | None) -> str:
    return "none" if clip is None else "by the norm of all"


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("whole_step", ""): _ways,
    ("whole_step", "seconds"): _seconds,
    ("whole_step", "least"): _least,
    ("whole_step", "points"): _points,
    ("whole_step", "disk"): _disk,
    ("whole_step_huge", ""): _huge,
    ("kills", ""): _kills,
}
