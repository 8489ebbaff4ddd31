"""How results are printed: tables that fit a terminal, and stay whole in a file or a pipe."""

from rich.console import Console
from rich.table import Table

# Wide enough for every table of ours; a pipe has no width of its own, and 80 columns would cut names.
PIPE_WIDTH = 160


def console(file=None) -> Console:
    """Standard output, or another file, at the terminal's width or at `PIPE_WIDTH`; what is printed is text, not markup."""
    out = Console(file=file, highlight=False, markup=False)
    return out if out.is_terminal else Console(file=file, highlight=False, markup=False, width=PIPE_WIDTH)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table: the first column is for names, the others for numbers."""
    made = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    return made


def megabytes(nbytes: int | None) -> str:
    """In MB of 10^6 bytes, three digits or whole."""
    if nbytes is None:
        return "-"
    value = nbytes / 1e6
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """In seconds, or milliseconds when short."""
    if value is None:
        return "-"
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.3f} s"
