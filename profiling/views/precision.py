"""Views of what was measured about numbers in fewer bits, about spilling, and about a thousand steps."""

from collections.abc import Callable

from words import Table, code, number


def _first_gradients(data: dict) -> Table:
    """What inexact strategies save and cost, and how far their first gradients are off."""
    base = next(row for row in data["rows"] if row["strategy"] == "cache")
    return ("strategy", "arena MB", "saved of cache's arena", "time against cache", "relative error of the gradient",
            "cosine"), [
        (code(row["strategy"]), f"{row['arena_bytes'] / 1e6:.1f}", f"{1 - row['arena_bytes'] / base['arena_bytes']:.1%}",
         f"{row['slowdown_vs_cache']:.2f}", *(["0", "1"] if row["exact"] else [
             f"{row['gradient_error']['relative_error']:.1e}", f"{row['gradient_error']['cosine']:.7f}"]))
        for row in data["rows"]]


def _mixed_memory(data: dict) -> Table:
    found = data["memory"]
    copy = found["working_copy_bytes"]
    return ("activations", "arena MB", "in total MB", "in total with a bfloat16 copy of the matrices, MB"), [
        (code(name), f"{arena / 1e6:.1f}", f"{found['total_bytes'][name] / 1e6:.1f}",
         f"{(found['total_bytes'][name] + copy) / 1e6:.1f}") for name, arena in found["arena_bytes"].items()]


def _mixed_steps(data: dict) -> Table:
    words = {"cache": "a step, activations kept as float32", "bf16": "a step, activations kept as bfloat16",
             "cache+bfloat16": "a step, products and what enters them in bfloat16",
             "round_weights": "rounding all matrices to bfloat16"}
    rows = [(words[name], f"{one['median'] * 1e3:.1f} ({one['min'] * 1e3:.1f} to {one['max'] * 1e3:.1f})",
             number(data["ratios"].get(name, {}).get("value"), ".2f")) for name, one in data["seconds"].items()]
    return ("", "ms (least to most)", "over the first, paired"), rows


def _mixed_products(data: dict) -> Table:
    names = {"cllm product": "cllm, float32", "cllm product_in_bfloat16": "cllm, bfloat16",
             "cllm product_of_copy": "cllm, weight widened from bfloat16",
             "torch float32": "PyTorch, float32", "torch bfloat16": "PyTorch, bfloat16",
             "torch rounded": "PyTorch, bfloat16 from float32 and back"}
    there = [name for name in names if name in data["products"][0]["rate"]]
    rows = [(code(row["name"]), " × ".join(map(str, row["shape"])),
             *[f"{row['rate'][name] / 1e9:.0f}" for name in there]) for row in data["products"]]
    if data["instruction"]:
        found = data["instruction"]
        rates = {"cllm product": found["float32"], "cllm product_in_bfloat16": found["bfloat16"]}
        rows.append(("from registers", "", *[f"{rates[name] / 1e9:.0f}" if rates.get(name) else "–" for name in there]))
    return ("product", "N × in × out", *[f"{names[name]}, GFLOP/s" for name in there]), rows


def _leaks(data: dict) -> Table:
    return ("strategy", "steps", "resident bytes more", "bytes of Python's more", "threads more", "descriptors more",
            "files more"), [
        (code(row["name"]), str(data["steps"]), *(f"{row[key]:+,}" for key in (
            "resident_growth_bytes", "python_growth_bytes", "threads_growth", "descriptors_growth")),
         number(row.get("files_growth"), "+d")) for row in data["rows"]]


def _disks(data: dict) -> Table:
    names = ("cached_write", "device_write", "cached_read", "device_read")
    return ("disk", *[f"{name.replace('_', ' ')}, MB/s" for name in names]), [
        (str(number), *[f"{disk[name] / 1e6:,.0f}" for name in names]) for number, disk in enumerate(data["disks"], 1)]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("mixed_precision", "memory"): _mixed_memory,
    ("mixed_precision", "steps"): _mixed_steps,
    ("mixed_precision", "products"): _mixed_products,
    ("cllm compare", "gradients"): _first_gradients,
    ("leaks", ""): _leaks,
    ("compare", "disks"): _disks,
}
