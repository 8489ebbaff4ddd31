"""Tables of the page: the strategies, gradient errors by parameter, and the machine."""

from cllm.comparison.html.svg import element, escape, megabytes, seconds
from cllm.comparison.picture import rate_word
from cllm.comparison.printed import shares
from cllm.comparison.series import growth_bytes

RATE = "tokens/s"  # or what it counts
COLUMNS = ("strategy", "step, median", "least to most", "predicted", RATE, "against cache", "arena", "arena, recorded",
           "total", "process grew", "last loss", "gradient digest", "gradient error", "cosine")
SHARED = ("messages, each", "slowest process")  # where several processes share a run


def strategies(report: dict) -> str:
    """One row for each strategy; one that failed says why."""
    columns = (*COLUMNS, *SHARED) if report["job"].get("processes", 1) > 1 else COLUMNS
    head = element("tr", *(element("th", escape(rate_word(report) if name == RATE else name), scope="col") for name in columns))
    body = "".join(_strategy(row, columns) for row in report["rows"])
    table = element("table", element("thead", head), element("tbody", body))
    source = f" Predicted seconds: {report['predicted_from']}." if report["predicted_from"] else ""
    note = element("p", "MB are 10⁶ bytes. The digest is of all gradients of the first step: equal digests are equal bits. "
                   "The gradient error is |g − r| / |r| against an exact strategy of the same run." + escape(source),
                   class_="note")
    return _wide(table, "Strategies") + note


def _strategy(row: dict, columns: tuple[str, ...]) -> str:
    name = element("th", escape(row["strategy"]), scope="row")
    if row["step_seconds"] is None:
        reason = row["error"] or "did not run"
        return element("tr", name, element("td", escape(reason), colspan=len(columns) - 1, class_="failed"))
    step, error = row["step_seconds"], row["gradient_error"]
    slowdown = row["slowdown_vs_cache"]
    off = ("0", "1") if row["exact"] else (_figure(error and error["relative_error"], ".2e"),
                                           _figure(error and error["cosine"], ".8f"))
    cells = (seconds(step["median"]), f"{seconds(step['min'])} to {seconds(step['max'])}",
             seconds(row["predicted_step_seconds"]), f"{row['tokens_per_second']:,.0f}", _figure(slowdown, ".2f"),
             megabytes(row["arena_bytes"]), megabytes(row["high_water_bytes"]), megabytes(row["total_bytes"]),
             megabytes(growth_bytes(row)), f"{row['losses'][-1]:.4f}", row["grad_sha256"][:12], *off,
             *(shares(row) if columns != COLUMNS else ()))
    return element("tr", name, *(element("td", escape(cell)) for cell in cells))


def parameters(report: dict) -> str:
    """Gradient errors by parameter of every inexact strategy, folded; nothing where there is none."""
    made = []
    for row in report["rows"]:
        error = row["gradient_error"]
        if error is None:
            continue
        head = element("tr", *(element("th", name, scope="col") for name in ("parameter", "relative error", "cosine")))
        body = "".join(element("tr", element("th", escape(name), scope="row"),
                               element("td", _figure(one["relative_error"], ".2e")),
                               element("td", _figure(one["cosine"], ".8f")))
                       for name, one in error["by_parameter"].items())
        words = f"{row['strategy']} against {error['reference']}: relative error {_figure(error['relative_error'], '.2e')}, " \
                f"cosine {_figure(error['cosine'], '.8f')}"
        table = element("table", element("thead", head), element("tbody", body))
        made.append(element("details", element("summary", escape(words)), _wide(table, f"Gradient error of {row['strategy']}")))
    return "".join(made)


def machine(found: dict) -> str:
    """Everything that is known of the machine and the build, by name."""
    rows = "".join(element("tr", element("th", escape(name), scope="row"), element("td", escape(value)))
                   for name, value in _flat(found))
    return _wide(element("table", element("tbody", rows), class_="facts"), "Machine")


def _flat(found: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif name.endswith("_bytes"):
            rows.append((prefix + name.removesuffix("_bytes"), megabytes(value)))
        else:
            rows.append((prefix + name, ", ".join(map(_rounded, value if isinstance(value, (list, tuple)) else [value]))))
    return rows


def _rounded(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _wide(table: str, label: str) -> str:
    """A table that scrolls by itself, with the keyboard too, where the window is narrow."""
    return element("div", table, class_="wide", tabindex="0", role="region", aria_label=label)
