"""The memory figures of the documents beside the computed ones: ``python tests/documents_memory.py`` writes the page.

Everything is counted from declared shapes and from schedules; nothing is allocated and nothing is timed.
"""
from pathlib import Path

import cllm
from cllm.cli.memory import weight_rows
from cllm.models.architecture import program_of
from cllm.planner.ledger import Ledger
from cllm.program.workload import Workload

PAGE = Path(__file__).parent.parent / "docs" / "documents" / "memory.md"
REFERENCE = dict(vocab_size=256, n_layers=6, d_model=512, n_heads=8, d_ff=2048, max_seq_len=4096, qkv_bias=False,
                 out_proj=False)
LAYERS, C, F = 6, 512, 2048
TIMES = (512, 1024, 2048)


def parts(**changes) -> dict[str, int]:
    """Bytes of the gradients of each part of the blocks, all layers."""
    config = cllm.ModelConfig(**{**REFERENCE, **changes})
    return {row["part"]: row["gradient_bytes"] for row in weight_rows(config, Workload(1, 256))}


def kept(time: int, also: tuple[str, ...] = (), **changes) -> int:
    """Bytes that all blocks keep for backward, one sequence, everything cached."""
    config = cllm.ModelConfig(**{**REFERENCE, **changes})
    ledger = Ledger(program_of(config), Workload(1, time))
    schedule, _ = ledger.build(cllm.CacheAll(also=also).decide(ledger))
    return sum(b.nbytes for b in schedule.buffers if b.kind == "kept" and b.block is not None)


def mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f}"


def page() -> str:
    lattice, full, usual = parts(qkv="lattice"), parts(), parts(qkv_bias=True, out_proj=True)
    blocks, norms = lattice["all blocks"], lattice["layer norms"]
    one_norm = blocks - norms // 2
    no_b2 = lattice["feed-forward"] - LAYERS * C * 4
    per_token = kept(512, qkv="lattice") / 512
    tokens = (350e6 - 4 * blocks) / per_token
    rows = [
        ("2.36", "attention gradients, lattice", mb(lattice["attention"]), "holds"),
        ("50.38", "feed-forward gradients", mb(lattice["feed-forward"]),
         f"holds but for the second bias: without it {mb(no_b2)}"),
        ("24 KB", "layer-norm gradients", f"{norms:,} bytes",
         f"holds for one norm a block ({norms // 2:,} bytes); this model has two"),
        ("53", "all gradients, lattice", mb(blocks), f"holds, rounded (one norm a block: {mb(one_norm)})"),
        ("106", "Adam's m and v, lattice", mb(2 * blocks), f"holds, rounded (one norm a block: {mb(2 * one_norm)})"),
        ("159", "gradients, m and v, lattice", mb(3 * blocks),
         f"the sum of the two rounded figures; not rounded first, {mb(3 * one_norm)} with one norm a block"),
        ("12 a layer", "gradients of a layer", mb(blocks / LAYERS),
         f"does not hold for lattice projections; with full ones {mb(full['all blocks'] / LAYERS)}, and with biases "
         f"and an output projection {mb(usual['all blocks'] / LAYERS)}"),
        ("18 a layer", "m and v of a layer", mb(2 * blocks / LAYERS),
         f"near, for lattice projections; with full ones {mb(2 * full['all blocks'] / LAYERS)}"),
        ("180", "6 (18 + 12)", mb(3 * blocks),
         f"does not hold: it adds a lattice column to a full one; all full, {mb(3 * full['all blocks'])}"),
        ("50", "weights, or gradients", mb(blocks), "holds as a round figure"),
        ("100", "m and v", mb(2 * blocks), "holds as a round figure"),
        ("150", "gradients, m and v", mb(3 * blocks), "holds as a round figure"),
        ("200", "weights, gradients, m and v", mb(4 * blocks), "holds as a round figure"),
        ("350", "the same and activations", f"{mb(4 * blocks)} + {per_token / 1e6:.4f} a token",
         f"depends on the batch: it is reached at {tokens:,.0f} tokens with everything cached"),
    ]
    lines = ["# The documents' memory figures", "",
             "Six layers, C = 512, H = 8, F = 2048, float32, no bias on q, k and v, no output projection, embeddings",
             "and the final norm left out; MB are 10^6 bytes. The first column is the documents' figure, in MB unless",
             "it says otherwise; the second what of this model it comes nearest to. `cllm memory` prints the same for",
             "any configuration, and the tests hold its figures against the bytes really allocated. Written by",
             "`python tests/documents_memory.py`.", "",
             "| documents | read as | computed, MB | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "## Complexity", "",
              "Bytes that the six blocks keep for the backward of one sequence, full projections, everything cached:",
              "those of every value but the probabilities grow with the time (O(seq)), and the probabilities, 4 H T^2",
              "bytes a block, with its square (O(seq^2 heads)). They exist only when a strategy names them, as",
              "`CacheAll(also=(\"probs\",))` does: otherwise the backward rebuilds them tile by tile, and nothing",
              "grows with the square.", "",
              "| T | all but probabilities, MB | ratio | probabilities, MB | ratio |", "|---|---|---|---|---|"]
    plain = [kept(time) for time in TIMES]
    probabilities = [kept(time, ("probs",)) - kept(time) for time in TIMES]
    for i, time in enumerate(TIMES):
        lines.append(f"| {time} | {mb(plain[i])} | {plain[i] / plain[0]:.2f} | {mb(probabilities[i])} | "
                     f"{probabilities[i] / probabilities[0]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
