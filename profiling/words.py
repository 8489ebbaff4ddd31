"""Words of tables and pictures: from a figure to a cell, from a configuration to a line."""

from collections.abc import Sequence

NOTHING = "–"
Table = tuple[Sequence[str], list[Sequence[str]]]


def number(value: float | None, form: str, scale: float = 1) -> str:
    """A figure in that form, or a dash where there is none."""
    return NOTHING if value is None else format(value * scale, form)


def count(n: int, thing: str) -> str:
    """So many of a thing."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def model(data: dict) -> str:
    """The model of a result in one line; results of before say the sizes of a GPT alone."""
    config = data["config"]
    return data.get("model") or (
        f"{count(config['n_layers'], 'layer')}, C {config['d_model']}, H {config['n_heads']}, F {config['d_ff']}, "
        f"V {config['vocab_size']}")


def settings(data: dict) -> dict:
    """What a result was measured with, wherever its script keeps that."""
    return {**data, **data.get("settings", {}), **data.get("job", {})}


def workload(data: dict) -> list[str]:
    """Model and batch of a result that has one model."""
    if not data.get("config"):
        return []
    job = settings(data)
    time = "" if job["seq_len"] is None else f" × {job['seq_len']}"
    return [model(data), f"batch {job['batch_size']}{time}"]


def title(data: dict) -> str:
    """What a result is of, in one line: model and batch where it has one, dtype, threads, processor."""
    job = settings(data)
    words = [*workload(data), f"{job.get('dtype', 'float32')}, {count(job['threads'], 'thread')}"]
    return "; ".join([*words, *([data["machine"]["cpu"]] if "machine" in data else [])])


def megabytes(nbytes: int | None) -> str:
    """Bytes as MB of 10^6."""
    return number(nbytes, ".1f", 1e-6)


def extent(data: dict) -> list[str]:
    """How long a result's runs trained, and how many seeds there were, where it compares losses."""
    runs = data["rows"][0].get("runs", data["rows"][0].get("losses")) if data.get("rows") and "lr" in data else None
    if not runs:
        return []
    batches = [] if workload(data) else [f"batches of {data['batch_size']}"]
    return [*batches, count(data["steps"], "step"), count(len(runs), "seed"), f"highest rate {data['lr']:g}"]


def aligned(header: Sequence[str], rows: list[Sequence[str]]) -> str:
    """A table in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in (header, *rows))


def spread(seconds: dict) -> str:
    """Median, least and most; to microseconds below a tenth of a second."""
    form = ".3f" if seconds["median"] >= 0.1 else ".6f"
    return "{} ({} to {})".format(*(format(seconds[name], form) for name in ("median", "min", "max")))


def code(word: str) -> str:
    """A name as it is typed."""
    return f"`{word}`"
