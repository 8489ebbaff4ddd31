"""Views: from what a script wrote to the header and rows of a table, in words.

`VIEWS` maps (script, view) to a function of the result's data. `profiling/tables.py` puts them into pages.
"""

from collections.abc import Callable, Sequence
from math import exp, log
from statistics import median

import precision_views

NOTHING = "–"
Table = tuple[Sequence[str], list[Sequence[str]]]


def _compared(data: dict) -> Table:
    header = ("strategy", "step s (least to most)", "tokens/s", "time against cache", "arena MB", "total MB",
              "process peak MB", "loss", "gradient digest")
    return header, [_compared_row(row) for row in data["rows"]]


def _compared_row(row: dict) -> Sequence[str]:
    if row["step_seconds"] is None:
        return (_code(row["strategy"]), f"failed: {row['error']}", *[NOTHING] * 7)
    digest = row["grad_sha256"][:12] + ("" if row["exact"] else " (inexact)")
    return (_code(row["strategy"]), spread(row["step_seconds"]), f"{row['tokens_per_second']:,.0f}",
            number(row["slowdown_vs_cache"], ".2f"), megabytes(row["arena_bytes"]), megabytes(row["total_bytes"]),
            megabytes(row["rss_peak_bytes"]), f"{row['losses'][-1]:.4f}", _code(digest))


def _compared_predictions(data: dict) -> Table:
    rows = [(row["strategy"], row["predicted_step_seconds"], row["step_seconds"]["median"]) for row in data["rows"]
            if row["step_seconds"]]
    return _predictions(rows)


def _remembered(data: dict) -> Table:
    header = ("strategy", "arena, predicted", "arena, recorded", "predicted total", "process before the model",
              "process, predicted", "process, sampled", "sampled over predicted", "growth, system's record",
              "growth over predicted total")
    keys = ("arena_bytes", "high_water_bytes", "total_bytes", "rss_start_bytes", "predicted_process_bytes",
            "sampled_process_bytes")
    return header, [(_code(row["name"]), *[megabytes(row[key]) for key in keys],
                     number(row["sampled_over_predicted"], ".3f"), megabytes(row["growth_bytes"]),
                     number(row["growth_bytes"], ".3f", 1 / row["total_bytes"])) for row in data["rows"]]


def _alive(data: dict) -> Table:
    """What is alive at the peak of each strategy: MB by site and block; sites below a hundredth of all are left out."""
    blocks = sorted({alive[1] for row in data["rows"] for alive in row["peak"]["alive"] if alive[1] is not None})
    rows = []
    for row in data["rows"]:
        sizes: dict[tuple, dict] = {}
        for site, block, kind, nbytes in row["peak"]["alive"]:
            one = sizes.setdefault((site, kind), {})
            one[block] = one.get(block, 0) + nbytes
        for (site, kind), by in sorted(sizes.items(), key=lambda item: -sum(item[1].values())):
            if sum(by.values()) >= row["arena_bytes"] / 100:
                rows.append((_code(row["name"]), _code(site), kind, *[megabytes(by.get(block)) for block in (None, *blocks)],
                             megabytes(sum(by.values()))))
    return ("strategy", "site", "kind", "outside", *[f"block {n}" for n in blocks], "MB in all"), rows


def _speeds(data: dict) -> Table:
    kinds = list(dict.fromkeys(kind for row in data["rows"] for kind in row["by_kind"]))
    header = ("strategy", "step s (least to most)", _against(data), *[f"{kind} ms" for kind in kinds])
    return header, [(_code(row["name"]), spread(row["seconds"]), row["ratio_text"],
                     *[number(row["by_kind"].get(kind), ".1f", 1e3) for kind in kinds]) for row in data["rows"]]


def _roofline(data: dict) -> Table:
    header = ("strategy", "step", "kind", "ms", "operations per byte", "GFLOP/s", "GB/s", "share of the limit")
    return header, [(_code(one["strategy"]), _code(one["step"]), one["kind"], number(one["seconds"], ".2f", 1e3),
                     number(one["flops"] / one["bytes"] if one["flops"] else None, ".1f"),
                     number(one["flops"] / one["seconds"] if one["flops"] else None, ".1f", 1e-9),
                     number(one["bytes"] / one["seconds"], ".1f", 1e-9), number(one["share"], ".2f"))
                    for one in data["points"]]


def _contested(data: dict) -> Table:
    header = ("contestant", "step s (least to most)", _against(data), "growth MB", "arena MB", "first loss")
    return header, [(_code(row["name"]), spread(row["seconds"]), row["ratio_text"], megabytes(row["growth_bytes"]),
                     megabytes(row.get("arena_bytes")), f"{row['loss']:.6f}") for row in data["rows"]]


def _beaten(data: dict) -> Table:
    return ("PyTorch's point", "growth MB", "time against cache", "faster with no more growth"), [
        (_code(row["name"]), megabytes(row["growth_bytes"]), row["ratio_text"],
         ", ".join(map(_code, row["beaten_by"])) or "none") for row in data["rows"] if "beaten_by" in row]


def _contested_predictions(data: dict) -> Table:
    return _predictions([(row["name"], row["predicted_seconds"], row["seconds"]["median"]) for row in data["rows"]
                         if row.get("predicted_seconds")])


def _kernels(data: dict) -> Table:
    libraries = [one for one in ("cllm", "numpy", "torch") if any(one in row["rate"] for row in data["rows"])]
    copied = any(row.get("share_of_copy") for row in data["rows"])
    header = ("kernel", "shape", "unit", *libraries, "limit", "share of the limit",
              *(["share of a copy, paired"] if copied else []),
              *[f"time of cllm against {one}" for one in libraries if one != "cllm"])
    rows = [(_code(row["kernel"]), " × ".join(map(str, row["shape"])), row["unit"],
             *[number(row["rate"].get(one), ".1f", 1e-9) for one in libraries], number(row["limit"], ".1f", 1e-9),
             number(row["share"].get("cllm"), ".2f"),
             *([number((row.get("share_of_copy") or {}).get("value"), ".2f")] if copied else []),
             *[row["text"].get(one, NOTHING) for one in libraries if one != "cllm"]) for row in data["rows"]]
    return header, rows


def _of_kernel(data: dict, kernel: str) -> dict:
    return {**data, "rows": [row for row in data["rows"] if row["kernel"] == kernel]}


def _kernel_means(data: dict) -> Table:
    """Speed over the better peer of each kernel, over its shapes; and that of float64 over float32."""
    rows = []
    for kernel in dict.fromkeys(row["kernel"] for row in data["rows"]):
        mine = [row for row in data["rows"] if row["kernel"] == kernel and row["time_against"]]
        # The better peer is the one against whom we look worse.
        worst = [max(row["time_against"].values(), key=lambda one: one["value"]) for row in mine]
        wide = [row["float64_speed"]["value"] for row in mine if row.get("float64_speed")]
        rows.append((_code(kernel), str(len(mine)), *_mean_and_least([1 / one["value"] for one in worst]),
                     str(sum(one["intervals_overlap"] for one in worst)), *_mean_and_least(wide)))
    return ("kernel", "shapes", "speed over the better peer, geometric mean", "least", "shapes whose intervals overlap",
            "float64 over float32, geometric mean", "least"), rows


def _mean_and_least(ratios: list[float]) -> tuple[str, str]:
    if not ratios:
        return NOTHING, NOTHING
    return f"{exp(sum(map(log, ratios)) / len(ratios)):.2f}", f"{min(ratios):.2f}"


def _working(data: dict) -> Table:
    """What one call of each kernel takes for itself and gives back."""
    libraries = [one for one in ("cllm", "numpy", "torch") if any(one in row["working_bytes"] for row in data["rows"])]
    return ("kernel", "shape", *[f"{one}, MB" for one in libraries]), [
        (_code(row["kernel"]), " × ".join(map(str, row["shape"])),
         *[megabytes(row["working_bytes"].get(one)) for one in libraries]) for row in data["rows"]]


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
    return header, [(_code(row["strategy"]), row["what"], str(row["operations"]),
                     number(row["seconds"]["median"], ".4f", 1e3), row["adds_text"] or NOTHING) for row in data["rows"]]


def _trained(data: dict) -> Table:
    header = ("", "steps", "seconds in all", "step s (least to most)", "validation loss, nats per token")
    return header, [(row["name"], str(row["evaluations"][-1]["step"]), f"{row['seconds']:.1f}",
                     spread(row["step_seconds"]), f"{row['evaluations'][-1]['val_loss']:.4f}") for row in data["rows"]]


def _predictions(rows: list[tuple[str, float, float]]) -> Table:
    """Predicted against measured seconds, and the median of how far they are apart."""
    errors = [predicted / measured - 1 for _, predicted, measured in rows]
    made = [(_code(name), f"{predicted:.3f}", f"{measured:.3f}", f"{error:+.1%}")
            for (name, predicted, measured), error in zip(rows, errors, strict=True)]
    if errors:
        made.append(("median of the distances", "", "", f"{median(map(abs, errors)):.1%}"))
    return ("strategy", "predicted s", "measured s (median)", "predicted over measured"), made


def _foretold(data: dict) -> Table:
    return _predictions([(f"plan for {megabytes(row['total_bytes'])} MB" if row["is_budget"] else row["name"],
                          row["predicted_seconds"], row["seconds"]["median"]) for row in data["rows"]])


def _budgets(data: dict) -> Table:
    """A row for each budget, from least to most: time against the next smaller one and against the best named strategy."""
    judged = data["budgets"]
    steps = {one["to"]: one for one in judged["steps"]}
    best = {one["budget"]: one for one in judged["against_best"]}
    header = ("plan for", "arena MB", "predicted s", "step s (least to most)", "time against the budget before",
              "time against the best strategy within its arena")
    return header, [(megabytes(row["total_bytes"]) + " MB", megabytes(row["arena_bytes"]),
                     f"{row['predicted_seconds']:.3f}", spread(row["seconds"]), _interval(steps.get(row["name"])),
                     _interval(best.get(row["name"])) + (f" ({_code(best[row['name']]['best'])})" if row["name"] in best
                                                         else ""))
                    for row in sorted(data["rows"], key=lambda row: row["total_bytes"]) if row["is_budget"]]


def _planned(data: dict) -> Table:
    return ("workload", "plan s", "refusal s", "plans on the curve"), [
        (row["job"], f"{row['plan_seconds']:.2f}", f"{row['refusal_seconds']:.2f}", str(row["points"]))
        for row in data["rows"]]


def _thinned(data: dict) -> Table:
    found = data["thinned"]
    return ("seconds of the thinned curve's plan over the whole one's", ""), [
        ("median over the limits", f"{found['median']:.4f}"), ("most at the same limit", f"{found['worst']:.4f}"),
        ("most where the limit is 1 % larger", f"{found['worst_near']:.4f}")]


def _interval(one: dict | None) -> str:
    return NOTHING if one is None else f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("cllm compare", ""): _compared,
    ("cllm compare", "predictions"): _compared_predictions,
    ("memory", ""): _remembered,
    ("memory", "peak"): _alive,
    ("speed", ""): _speeds,
    ("speed", "roofline"): _roofline,
    ("compare", ""): _contested,
    ("compare", "predictions"): _contested_predictions,
    ("compare", "beaten"): _beaten,
    ("kernels", ""): _kernels,
    ("kernels", "means"): _kernel_means,
    ("kernels", "attention"): lambda data: _kernels(_of_kernel(data, "attention")),
    ("kernels", "memory"): _working,
    ("depth", "layers"): lambda data: _depths(data, "depth", "layers"),
    ("depth", "batch"): lambda data: _depths(data, "batch", "batch"),
    ("overhead", ""): _overheads,
    ("predictions", ""): _foretold,
    ("predictions", "budgets"): _budgets,
    ("planning", ""): _planned,
    ("planning", "thinned"): _thinned,
    ("training", ""): _trained,
    **precision_views.VIEWS,
}


# Words ---------------------------------------------------------------------------------------------------------------

def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A figure in that form, or a dash where there is none."""
    return NOTHING if value is None else format(value * scale, form)


def megabytes(nbytes: int | None) -> str:
    """Bytes as MB of 10^6."""
    return number(nbytes, ".1f", 1e-6)


def spread(seconds: dict) -> str:
    """Median, least and most."""
    return f"{seconds['median']:.3f} ({seconds['min']:.3f} to {seconds['max']:.3f})"


def _code(word: str) -> str:
    return f"`{word}`"
