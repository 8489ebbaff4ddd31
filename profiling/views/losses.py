"""Views of losses: curves judged by the spread of seeds, variants of a model, a whole training run."""

from collections.abc import Callable
from statistics import mean

from words import Table, code, spread


def _curves(data: dict) -> Table:
    """Validation losses by variant and their distance from the exact run of the same seed."""
    sizes = [(name, f"{name}_bytes") for name in ("arena", "state") if f"{name}_bytes" in data["rows"][0]]
    header = ("", *(f"{name} MB" for name, _ in sizes), "validation loss, mean (least to most)", "against exact, by seed",
              "mean difference as a share of the spread of seeds", "the same of the greatest difference", "within the spread")
    return header, [(code(row["name"]), *(f"{row[key] / 1e6:.1f}" for _, key in sizes),
                     f"{mean(row['last']):.4f} ({min(row['last']):.4f} to {max(row['last']):.4f})",
                     ", ".join(f"{d:+.4f}" for d in row["differences"]), f"{row['mean_share']:.2f}",
                     f"{row['largest_share']:.2f}", "yes" if row["within"] else "no") for row in data["rows"]]


def variants(data: dict) -> Table:
    """Losses of `crystalline.py` by variant; a difference has one sign under every seed, or is none."""
    header = ("variant", "parameters", "F", "validation loss, mean", "least to most", "against plain, by seed", "difference")
    return header, [(row["name"], f"{row['parameters']:,}", str(row["config"]["d_ff"]), f"{row['mean']:.4f}",
                     f"{min(row['losses']):.4f} to {max(row['losses']):.4f}",
                     ", ".join(f"{d:+.4f}" for d in row["differences"] or ()), row["says"]) for row in data["rows"]]


def _trained(data: dict) -> Table:
    header = ("", "steps", "seconds in all", "step s (least to most)", "validation loss, nats per token")
    return header, [(row["name"], str(row["evaluations"][-1]["step"]), f"{row['seconds']:.1f}",
                     spread(row["step_seconds"]), f"{row['evaluations'][-1]['val_loss']:.4f}") for row in data["rows"]]


def _plans(data: dict) -> Table:
    """Bytes of training under each plan that `examples/finetune_smollm2.py` looked at."""
    return ("plan", "arena MB", "total MB"), [(code(plan["name"]), f"{plan['arena_bytes'] / 1e6:.1f}",
                                               f"{plan['total_bytes'] / 1e6:.1f}") for plan in data["plans"]]


def _tuned(data: dict) -> Table:
    """Its losses on text that it was never trained on."""
    return ("step", "validation loss, nats a token", "perplexity", "bits a byte"), [
        (str(one["step"]), f"{one['val_loss']:.4f}", f"{one['perplexity']:.3f}", f"{one['bits_per_byte']:.4f}")
        for one in data["evaluations"]]


def _by_layer(data: dict) -> Table:
    """Error of the first gradient in bfloat16, layer by layer."""
    return ("layer", "relative error of its gradient"), [(code(name), f"{error:.1e}")
                                                         for name, error in data["gradient_errors"].items()]


def _dates(data: dict) -> Table:
    """What `examples/finetune_dates.py` taught: answers that are right to the letter."""
    share = [(name, data[f"right_{name}"]) for name in ("before", "after")]
    return ("", "right", "of held back", "loss, nats per target"), [
        (name, str(right), str(data["held_back"]), f"{data['evaluations'][at]['val_loss']:.4f}")
        for (name, right), at in zip(share, (0, -1), strict=True)]


def _packed(data: dict) -> Table:
    """What `packing.py` found of packed rows and of padded ones."""
    return ("", "steps", "positions used", "targets per second"), [
        (name, str(way["batches"]), f"{way['used']:.1%}", f"{way['targets_per_second']:,.0f}")
        for name, way in data["ways"].items()]


VIEWS: dict[tuple[str, str], Callable[[dict], Table]] = {
    ("compression", ""): _curves,
    ("mixed_precision_loss", ""): _curves,
    ("bfloat16_loss", ""): _curves,
    ("optimizers", ""): _curves,
    ("bfloat16_loss", "layers"): _by_layer,
    ("crystalline", ""): variants,
    ("training", ""): _trained,
    ("finetune_smollm2", "plans"): _plans,
    ("finetune_smollm2", "losses"): _tuned,
    ("finetune_dates", ""): _dates,
    ("packing", ""): _packed,
}
