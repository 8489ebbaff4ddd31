"""The picture of memory against time: one line or set of points for each source."""

from pathlib import Path

from cllm.comparison.picture import check_picture

# Colour-blind safe (Okabe and Ito), told apart by mark as well.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))


def draw_curve(sources: dict[str, list[tuple[float, float]]], path: Path, labels: dict[tuple[float, float], str] | None = None,
               memory: str = "total bytes") -> None:
    """Draw (bytes, seconds) pairs of each source as PNG or SVG, by the ending of `path`.

    Parameters
    ----------
    sources : dict of list of (float, float)
        A source of more than eight points is a line through them.
    labels : dict
        Text beside single points.
    memory : str
        What the bytes are.
    """
    check_picture(path)
    from matplotlib.figure import Figure  # no pyplot: no display, no state

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(sources.items()):
        colour, mark = STYLES[number % len(STYLES)]
        x, y = [b / 1e6 for b, _ in points], [s for _, s in points]
        line = "-" if len(points) > 8 else ""
        axes.plot(x, y, linestyle=line, drawstyle="steps-post", marker=mark, markersize=4 if line else 8, color=colour,
                  label=name)
    for (nbytes, seconds), text in (labels or {}).items():
        axes.annotate(text, (nbytes / 1e6, seconds), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.set_xlabel(f"{memory}, MB (10⁶ bytes)")
    axes.set_ylabel("seconds a step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
