"""A report as text: a table of strategies, and one of gradient errors by parameter."""

import io
from statistics import median

from rich.console import Console

from cllm.comparison.experiment import counted_in, points_of, setting_name
from cllm.comparison.picture import caption, rate_word
from cllm.comparison.tables import console, megabytes, seconds, table


def text_of(report: dict, by_parameter: bool = False) -> str:
    """What `print_report` prints, as wide as a file takes it."""
    text = io.StringIO()
    print_report(report, by_parameter, console(text))
    return text.getvalue()


def print_report(report: dict, by_parameter: bool, out: Console) -> None:
    """Print every point of the report."""
    for point in points_of(report):
        _print_rows(point, out)
        if by_parameter:
            _print_parameters(point, out)
    counted = counted_in(report.get("sweep", {}))
    if counted is not None:
        _print_scaling(report, counted, out)


def _print_scaling(report: dict, counted: str, out: Console) -> None:
    """Speed-up by number of threads or processes, and what share that is of what so many more could gain."""
    points, first = report["points"], report["sweep"][counted][0]
    names = list(dict.fromkeys(row["strategy"] for point in points for row in point["rows"]))
    title = f"Speed-up over {counted}={first}, and its share of as many times"
    shown = table("setting", *(f"{name}: speed-up" for name in names), title=title)
    for point in points:
        gained = {row["strategy"]: row["speedup"] for row in point["rows"]}
        more = point["setting"][counted] / first
        shown.add_row(setting_name(point["setting"]), *(
            "-" if gained.get(name) is None else f"{gained[name]:.2f} ({gained[name] / more:.0%})" for name in names))
    out.print(shown)


def titled(point: dict) -> str:
    """The caption of a point, after its setting where something was swept."""
    return ": ".join(part for part in (setting_name(point["setting"]), caption(point)) if part)


def _print_rows(point: dict, out: Console) -> None:
    inexact = any(row["exact"] is False for row in point["rows"])
    errors = ("gradient error", "cosine") if inexact else ()
    shared = ("messages MB", "slowest") if point["job"].get("processes", 1) > 1 else ()
    shown = table("strategy", "step min", "median", "max", rate_word(point), "vs cache", "arena MB", "total MB", "peak MB",
                  "last loss", "gradient digest", *errors, *shared, title=titled(point))
    for row in point["rows"]:
        if row["step_seconds"] is None:
            shown.add_row(row["strategy"], "failed", *["-"] * (9 + len(errors) + len(shared)))
            continue
        step, slowdown = row["step_seconds"], row["slowdown_vs_cache"]
        shown.add_row(
            row["strategy"], seconds(step["min"]), seconds(step["median"]), seconds(step["max"]),
            f"{row['tokens_per_second']:,.0f}", "-" if slowdown is None else f"{slowdown:.2f}",
            megabytes(row["arena_bytes"]), megabytes(row["total_bytes"]), megabytes(row["rss_peak_bytes"]),
            f"{row['losses'][-1]:.4f}", row["grad_sha256"][:12] + ("" if row["exact"] else " (inexact)"),
            *(_errors(row) if inexact else ()), *(shares(row) if shared else ()))
    out.print(shown)
    exact = [row for row in point["rows"] if row["exact"]]
    if len(exact) > 1 and len({row["grad_sha256"] for row in exact}) == 1:
        out.print(f"The gradients of all {len(exact)} exact strategies are equal to the last bit.")
    if inexact and not exact:
        out.print("How far inexact gradients are off needs an exact strategy beside them: add cache to --strategies.")


def _errors(row: dict) -> tuple[str, str]:
    if row["exact"]:
        return "0", "1"
    found = row["gradient_error"]
    return ("-", "-") if found is None else (error_text(found["relative_error"]), cosine_text(found["cosine"]))


def shares(row: dict) -> tuple[str, str]:
    """What a process is sent in a step; and the one whose own work takes longest, over the median of all."""
    own = row["process_seconds"]
    return megabytes(row["message_bytes"]), f"{own.index(max(own))} ({max(own) / median(own):.2f})"


def _print_parameters(point: dict, out: Console) -> None:
    for row in point["rows"]:
        if row["gradient_error"] is None:
            continue
        shown = table("parameter", "relative error", "cosine",
                      title=f"{row['strategy']}: first gradients against those of {row['gradient_error']['reference']}")
        for name, found in row["gradient_error"]["by_parameter"].items():
            shown.add_row(name, error_text(found["relative_error"]), cosine_text(found["cosine"]))
        out.print(shown)


def error_text(value: float | None) -> str:
    """A relative error, three digits."""
    return "-" if value is None else f"{value:.2e}"


def cosine_text(value: float | None) -> str:
    """A cosine; what it lacks to 1 is what matters."""
    return "-" if value is None else f"{value:.8f}"
