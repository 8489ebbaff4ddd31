"""Views of one processor's result: means and leasts of products, attention, whole steps beside PyTorch's."""

from collections.abc import Callable
from statistics import geometric_mean

from harness import Timing, ratio
from words import NOTHING, Table, code, megabytes, number, spread

PLAIN = "torch eager"


def _products(data: dict) -> Table:
    """A row for each kernel and number of threads: speed over the better of the others at each shape."""
    rows = []
    for name, found in data["kernels"].items():
        for kernel in dict.fromkeys(row["kernel"] for row in found if name != "attention"):
            mine = [row for row in found if row["kernel"] == kernel]
            speeds = {" × ".join(map(str, row["shape"])): 1 / max(one["value"] for one in row["time_against"].values())
                      for row in mine if row["time_against"]}
            least = min(speeds, key=speeds.get, default=None)
            shares = [row["share"]["cllm"] for row in mine if row["share"].get("cllm")]
            rows.append((code(kernel), name.removeprefix("products on "), str(len(mine)),
                         number(geometric_mean(speeds.values()) if speeds else None, ".2f"),
                         f"{speeds[least]:.2f} ({least})" if speeds else NOTHING,
                         f"{min(shares):.2f} to {max(shares):.2f}" if shares else NOTHING))
    return ("kernel", "threads", "shapes", "speed over the better of NumPy and PyTorch, geometric mean", "least (shape)",
            "share of the limit"), rows


def _attention(data: dict) -> Table:
    return ("kernel", "shape", "GFLOP/s", "share of the limit", "time against PyTorch"), [
        (code(row["kernel"]), " × ".join(map(str, row["shape"])), number(row["rate"].get("cllm"), ".1f", 1e-9),
         number(row["share"].get("cllm"), ".2f"), row["text"].get("torch", NOTHING))
        for row in data["kernels"]["attention"]]


def _steps(data: dict) -> Table:
    """A row for each size and contestant; the time over PyTorch's plain step is paired by rounds."""
    rows = []
    for name, found in data["steps"].items():
        plain = next((row for row in found if row["name"] == PLAIN), None)
        rows += [(name, code(row["name"]), spread(row["seconds"]), _over(row, plain),
                  number(_share(row, data["limit"]), ".2f"), megabytes(row["growth_bytes"])) for row in found]
    return ("model and batch", "contestant", "step s (least to most)", "time over PyTorch's plain step (least to most)",
            "share of the limit", "growth MB"), rows


def _over(row: dict, plain: dict | None) -> str:
    if plain is None or row is plain:
        return NOTHING if plain is None else "1"
    mine, theirs = (Timing(tuple(map(tuple, one["seconds"]["rounds"]))) for one in (row, plain))
    return str(ratio(mine, theirs))


def _share(row: dict, limit: float | None) -> float | None:
    return row["flops"] / row["seconds"]["median"] / limit if limit and "flops" in row else None


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("performance", "products"): _products,
    ("performance", "attention"): _attention,
    ("performance", ""): _steps,
}
