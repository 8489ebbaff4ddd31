"""Views of whole steps and what they hold: strategies side by side, memory, time by operation."""

from collections.abc import Callable, Sequence

from words import NOTHING, Table, code, megabytes, number, spread


def _compared(data: dict) -> Table:
    header = ("strategy", "step s (least to most)", "tokens/s", "time against cache", "arena MB", "total MB",
              "process peak MB", "loss", "gradient digest")
    return header, [_compared_row(row) for row in data["rows"]]


def _compared_row(row: dict) -> Sequence[str]:
    if row["step_seconds"] is None:
        return (code(row["strategy"]), f"failed: {row['error']}", *[NOTHING] * 7)
    digest = row["grad_sha256"][:12] + ("" if row["exact"] else " (inexact)")
    return (code(row["strategy"]), spread(row["step_seconds"]), f"{row['tokens_per_second']:,.0f}",
            number(row["slowdown_vs_cache"], ".2f"), megabytes(row["arena_bytes"]), megabytes(row["total_bytes"]),
            megabytes(row["rss_peak_bytes"]), f"{row['losses'][-1]:.4f}", code(digest))


def _remembered(data: dict) -> Table:
    header = ("strategy", "arena, predicted", "arena, recorded", "predicted total", "process before the model",
              "process, predicted", "process, sampled", "sampled over predicted", "growth, system's record",
              "growth over predicted total")
    keys = ("arena_bytes", "high_water_bytes", "total_bytes", "rss_start_bytes", "predicted_process_bytes",
            "sampled_process_bytes")
    return header, [(code(row["name"]), *[megabytes(row[key]) for key in keys],
                     number(row["sampled_over_predicted"], ".3f"), megabytes(row["growth_bytes"]),
                     number(row["growth_bytes"], ".3f", 1 / row["total_bytes"])) for row in data["rows"]]


def by_site(alive: list) -> tuple[list, list[tuple[str, str, dict, int]]]:
    """What is alive at the peak as a table.

    Returns
    -------
    blocks : list
        None (outside blocks) and numbers of blocks, of those that hold something.
    rows : list
        (site, kind, bytes by block, bytes in all), largest first.
    """
    found: dict[tuple[str, str], dict] = {}
    for site, block, kind, nbytes in alive:
        sizes = found.setdefault((site, kind), {})
        sizes[block] = sizes.get(block, 0) + nbytes
    blocks = sorted({block for sizes in found.values() for block in sizes}, key=lambda one: -1 if one is None else one)
    rows = [(site, kind, sizes, sum(sizes.values())) for (site, kind), sizes in found.items()]
    return blocks, sorted(rows, key=lambda row: (-row[3], row[0]))


def _alive(data: dict) -> Table:
    """What is alive at the peak of each strategy: MB by site and block; sites below a hundredth of all are left out."""
    blocks = sorted({alive[1] for row in data["rows"] for alive in row["peak"]["alive"] if alive[1] is not None})
    rows = []
    for row in data["rows"]:
        rows += [(code(row["name"]), code(site), kind, *[megabytes(sizes.get(block)) for block in (None, *blocks)],
                  megabytes(total)) for site, kind, sizes, total in by_site(row["peak"]["alive"])[1]
                 if total >= row["arena_bytes"] / 100]
    return ("strategy", "site", "kind", "outside", *[f"block {n}" for n in blocks], "MB in all"), rows


def _speeds(data: dict) -> Table:
    kinds = list(dict.fromkeys(kind for row in data["rows"] for kind in row["by_kind"]))
    header = ("strategy", "step s (least to most)", _against(data), *[f"{kind} ms" for kind in kinds])
    return header, [(code(row["name"]), spread(row["seconds"]), row["ratio_text"],
                     *[number(row["by_kind"].get(kind), ".1f", 1e3) for kind in kinds]) for row in data["rows"]]


def _roofline(data: dict) -> Table:
    header = ("strategy", "step", "kind", "ms", "operations per byte", "GFLOP/s", "GB/s", "share of the limit")
    return header, [(code(one["strategy"]), code(one["step"]), one["kind"], number(one["seconds"], ".2f", 1e3),
                     number(one["flops"] / one["bytes"] if one["flops"] else None, ".1f"),
                     number(one["flops"] / one["seconds"] if one["flops"] else None, ".1f", 1e-9),
                     number(one["bytes"] / one["seconds"], ".1f", 1e-9), number(one["share"], ".2f"))
                    for one in data["points"]]


def _first_roofline(data: dict) -> Table:
    """The same of the first strategy alone."""
    return _roofline({**data, "points": [one for one in data["points"] if one["strategy"] == data["points"][0]["strategy"]]})


def _contested(data: dict) -> Table:
    peaks = any("peak_bytes" in row for row in data["rows"])
    header = ("contestant", "step s (least to most)", _against(data), "growth MB", *(["peak MB"] if peaks else []),
              "arena MB", "first loss")
    return header, [(code(row["name"]), spread(row["seconds"]), row["ratio_text"], megabytes(row["growth_bytes"]),
                     *([megabytes(row["peak_bytes"])] if peaks else []),
                     megabytes(row.get("arena_bytes")), f"{row['loss']:.6f}") for row in data["rows"]]


def _bases(data: dict) -> Table:
    """What a base in blocks takes, what is predicted, what the process held, and the seconds of a step."""
    header = ("base", "its bytes MB", "strategy", "arena MB", "predicted total MB", "process peak MB", "step s (least to most)")
    return header, [(row["kind"], megabytes(row["base_bytes"]), code(row["name"]),
                     *[megabytes(row[name]) for name in ("arena_bytes", "total_bytes", "peak_bytes")], spread(row["seconds"]))
                    for row in data["rows"]]


def _beaten(data: dict) -> Table:
    return ("PyTorch's point", "growth MB", "time against cache", "faster with no more growth"), [
        (code(row["name"]), megabytes(row["growth_bytes"]), row["ratio_text"],
         ", ".join(map(code, row["beaten_by"])) or "none") for row in data["rows"] if "beaten_by" in row]


def _against(data: dict) -> str:
    return f"time against {data['rows'][0]['against']}" if data["rows"] else "ratio"


def _depths(data: dict, sweep: str, key: str) -> Table:
    """A row for each depth or batch, arena and time of each strategy beside it."""
    mine = [row for row in data["rows"] if row["sweep"] == sweep]
    names = list(dict.fromkeys(row["name"] for row in mine))
    found = {(row[key], row["name"]): row for row in mine}
    rows = [(str(n), *[cell for name in names for cell in _size_and_time(found.get((n, name)))])
            for n in dict.fromkeys(row[key] for row in mine)]
    return (key, *[f"{name}, {unit}" for name in names for unit in ("MB", "ms")]), rows


def _size_and_time(row: dict | None) -> tuple[str, str]:
    return (NOTHING, NOTHING) if row is None else (megabytes(row["arena_bytes"]),
                                                   number(row["seconds"]["median"], ".1f", 1e3))


def _overheads(data: dict) -> Table:
    header = ("strategy", "", "operations a step", "ms a step (median)", "against plain (95 % interval)")
    return header, [(code(row["strategy"]), row["what"], str(row["operations"]),
                     number(row["seconds"]["median"], ".4f", 1e3), row["adds_text"] or NOTHING) for row in data["rows"]]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("cllm compare", ""): _compared,
    ("memory", ""): _remembered,
    ("memory", "peak"): _alive,
    ("speed", ""): _speeds,
    ("speed", "roofline"): _roofline,
    ("speed", "roofline of the first"): _first_roofline,
    ("compare", ""): _contested,
    ("compare", "beaten"): _beaten,
    ("depth", "layers"): lambda data: _depths(data, "depth", "layers"),
    ("depth", "batch"): lambda data: _depths(data, "batch", "batch"),
    ("overhead", ""): _overheads,
    ("quantised_base", ""): _bases,
}
