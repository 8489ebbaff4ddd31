"""Views of what `kernels.py` wrote: kernels beside those of other libraries."""

from collections.abc import Callable
from math import exp, log

from words import NOTHING, Table, code, count, megabytes, number


def _kernels(data: dict) -> Table:
    libraries = [one for one in ("cllm", "numpy", "torch") if any(one in row["rate"] for row in data["rows"])]
    copied = any(row.get("share_of_copy") for row in data["rows"])
    header = ("kernel", "shape", "unit", *libraries, "limit", "share of the limit",
              *(["share of a copy, paired"] if copied else []),
              *[f"time of cllm against {one}" for one in libraries if one != "cllm"])
    rows = [(code(row["kernel"]), " × ".join(map(str, row["shape"])), row["unit"],
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
        rows.append((code(kernel), str(len(mine)), *_mean_and_least([1 / one["value"] for one in worst]),
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
        (code(row["kernel"]), " × ".join(map(str, row["shape"])),
         *[megabytes(row["working_bytes"].get(one)) for one in libraries]) for row in data["rows"]]


def _stored(data: dict) -> Table:
    """Time of products that read weights as they lie in files over those that read an array, by rows of the other operand."""
    counts = sorted({row["n"] for row in data["rows"]})
    found = {(row["kind"], row["product"], row["n"]): row for row in data["rows"]}
    header = ("kind", "I × O", *[f"{what}, {count(n, 'row')}" for what in ("x W", "dy Wᵀ") for n in counts])
    return header, [(kind, product.replace("x", " × "), *[f"{found[kind, product, n][which]['ratio']['value']:.2f}"
                                                          for which in ("forward", "backward") for n in counts])
                    for kind, product in dict.fromkeys((row["kind"], row["product"]) for row in data["rows"])]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("kernels", ""): _kernels,
    ("kernels", "means"): _kernel_means,
    ("kernels", "attention"): lambda data: _kernels(_of_kernel(data, "attention")),
    ("kernels", "memory"): _working,
    ("stored_products", ""): _stored,
}
