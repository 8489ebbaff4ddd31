"""Views of what a step consists of on many threads, and of how these wait."""

from collections.abc import Callable

from words import Table, code, megabytes, number, spread


def _steps(data: dict) -> Table:
    """A row for each strategy and number of threads."""
    first = {row["strategy"]: row for row in reversed(data["rows"])}
    header = ("strategy", "threads", "regions", "barriers", "shares", "serial ms", "busiest thread ms", "opening ms",
              "predicted ms", "measured ms, least", "speed-up predicted", "evenness")
    return header, [(
        code(row["strategy"]), str(row["threads"]), *(f"{row[name]:,}" for name in ("regions", "barriers", "shares")),
        *(f"{row[name] * 1e3:.1f}" for name in ("serial", "busiest", "opening", "predicted")),
        "" if row["measured"] is None else f"{row['measured']['min'] * 1e3:.1f}",
        f"{first[row['strategy']]['predicted'] / row['predicted']:.2f}",
        f"{row['all_threads'] / (row['threads'] * row['busiest']):.2f}" if row["busiest"] else "") for row in data["rows"]]


def _loops(data: dict) -> Table:
    """The kernels' loops on the most threads, those first that lose most, of the first strategy."""
    row = max((row for row in data["rows"] if row["strategy"] == data["rows"][0]["strategy"]), key=lambda one: one["threads"])
    lost = {name: one["busiest"] - one["all_threads"] / row["threads"] for name, one in row["by_loop"].items()}
    header = ("loop", "regions", "shares", "busiest thread ms", "lost to unevenness ms")
    return header, [(code(name), f"{row['by_loop'][name]['regions']:,}", f"{row['by_loop'][name]['shares']:,}",
                     f"{row['by_loop'][name]['busiest'] * 1e3:.2f}", f"{lost[name] * 1e3:.2f}")
                    for name in sorted(lost, key=lost.get, reverse=True)]


def _waiting(data: dict) -> Table:
    """A row for each limit of spinning: seconds of a step, and over those of the runtime's own limit, paired by rounds."""
    return ("limit", "step ms, median", "least", "most", "over `runtime`, paired (interval)"), [
        (code(row["name"]), *(number(row["seconds"][name], ".2f", 1e3) for name in ("median", "min", "max")),
         "{:.3f} ({:.3f} to {:.3f})".format(*row["ratio"])) for row in data["rows"]]


PARTS = ("weights", "gradients", "states", "activations")  # of a process, by their names in a memory report


def _processes(data: dict) -> Table:
    """A row for each contestant: what one of its processes holds at the peak, seconds of a step, and what they came to."""
    rows, bits = data["rows"], [row["weights"] for row in data["rows"].values()]
    header = ("contestant", *[f"{part} MB" for part in PARTS], "total MB each", "step s (least to most)",
              "weights after all steps")
    return header, [(name, *[megabytes(dict((part, held) for part, held, _ in row["parts"])[part]) for part in PARTS],
                     megabytes(row["total_bytes"]), spread(row["seconds"]), code(digest[:8]))
                    for (name, row), digest in zip(rows.items(), bits, strict=True)]


def _lost(data: dict) -> Table:
    """Runs that lost a process."""
    rows = data["rows"]
    return ("", ""), [
        ("runs of which one process was killed", str(sum(row["killed"] for row in rows))),
        ("runs that had ended or not begun by then", str(sum(not row["killed"] for row in rows))),
        ("resumed by another number of processes", str(sum(row["processes"] != row["resumed_by"] for row in rows))),
        ("ended with the bits of the straight run", str(sum(row["same_bits"] for row in rows))),
        ("processes left behind", str(sum(row["left"] for row in rows)))]


def _foretold(data: dict) -> Table:
    """Seconds of a step by the model of time, the batch the same."""
    return ("processes", "work s", "messages s", "together s"), [
        (f"{row['processes']:,}", f"{row['compute_seconds']:.3f}", f"{row['message_seconds']:.3f}",
         f"{row['compute_seconds'] + row['message_seconds']:.3f}") for row in data["scaling"]]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("processes", ""): _processes,
    ("processes", "foretold"): _foretold,
    ("processes_kills", ""): _lost,
    ("regions", ""): _steps,
    ("regions", "loops"): _loops,
    ("waiting", ""): _waiting,
}
