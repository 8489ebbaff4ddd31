"""Every figure of ``cllm memory`` is the bytes that are really allocated; and the documents' table and complexity."""
import json

import numpy as np
import oracle
import pytest
from click.testing import CliRunner

import cllm
from cllm.cli import main
from cllm.cli.memory import weight_rows
from cllm.models.architecture import program_of
from cllm.planner.ledger import Ledger
from cllm.program.workload import Workload

CONFIGS = {
    "full": dict(tied=False),
    "lattice": dict(qkv="lattice", qkv_bias=False, out_proj=False, positions="prime"),
    "crystalline": dict(qkv="lattice", attention="crystalline", positions="none", loss="mse"),
}
PARTS, IN_BLOCKS = cllm.ModelConfig.parameter_groups, ("attention", "feed-forward", "layer norms")
B, T = 3, 8


def asked(tmp_path, config, *more):
    """What the command says, as JSON."""
    path = tmp_path / "memory.json"
    spelled = {"n_layers": "layers", "n_heads": "heads"}
    options = [f"--batch-size={B}", f"--seq-len={T}", "--json", str(path), *more]
    for name, value in config.items():
        flag = spelled.get(name, name).replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        elif name != "crystalline":
            options.append(f"--{flag}={value}")
    done = CliRunner().invoke(main, ["memory", *options])
    assert done.exit_code == 0, done.output
    return json.loads(path.read_text())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_figure_is_what_is_allocated(name, dtype, tmp_path):
    config = {**oracle.CONFIG, **CONFIGS[name]}
    found = asked(tmp_path, config, "--dtype", dtype)
    model = cllm.GPT(cllm.ModelConfig(**config), dtype=dtype)
    ex = cllm.Executor(model, batch_size=B, seq_len=T)
    ex.loss_and_grad(*oracle.draw_batch(config, B, T))
    opt = cllm.AdamW(model)
    rows = {row["part"]: row for row in found["weights"]}
    assert rows.keys() - {"all blocks", "all"} == {part for part, marks in PARTS.items()
                                                  if any(m in n for n in model.parameters for m in marks)}
    for part, row in rows.items():
        marks = PARTS.get(part) or (("blocks.",) if part == "all blocks" else ("",))
        names = [n for n in model.parameters if any(mark in n for mark in marks)]
        assert row["parameter_bytes"] == sum(model.parameters[n].nbytes for n in names)
        assert row["gradient_bytes"] == sum(model.gradients[n].nbytes for n in names)
        assert row["optimizer_bytes"] == sum(a.nbytes for n in names for a in opt.state[n])
        if part in (*IN_BLOCKS, "all blocks"):
            first = [n for n in names if n.startswith("blocks.0.")]
            assert row["gradient_bytes_per_layer"] == sum(model.gradients[n].nbytes for n in first)
    total = found["total_bytes"]
    assert total["arena"] == ex._slab.bytes.nbytes == ex.high_water_bytes
    assert total["tables"] == sum(t.nbytes for t in model.tables.values())
    feeds = {id(a): a for a in (*ex._feeds.part.values(), *ex._feeds.whole.values())}
    assert total["batch"] == sum(a.nbytes for a in feeds.values())
    assert total["total"] == sum(n for key, n in total.items() if key != "total")


def test_sites_have_the_bytes_of_their_shapes(tmp_path):
    config = {**oracle.CONFIG, "d_ff": 32}
    sites = {row["site"]: row for row in asked(tmp_path, config)["activations"]}
    L, C, F, H, V = 2, 16, 32, 2, 13
    for site, shape, count, itemsize in (
            ("blocks.*.ln1.y", (B * T, C), L, 4), ("blocks.*.ln1.mean", (B * T,), L, 8),
            ("blocks.*.attn.qkv.y", (B * T, 3 * C), L, 4), ("blocks.*.attn.lse", (B, H, T), L, 4),
            ("blocks.*.attn.probs", (B, H, T, T), L, 4), ("blocks.*.mlp.act.y", (B * T, F), L, 4),
            ("head.logits", (B * T, V), 1, 4)):
        assert sites[site]["bytes"] == np.prod(shape) * count * itemsize, site
        assert sites[site]["count"] == count
        kept = 0 if sites[site]["optional"] else sum(-(-np.prod(shape) * itemsize // 64) * 64 for _ in range(count))
        assert sites[site]["kept_bytes"] == kept, site


REFERENCE = dict(vocab_size=256, n_layers=6, d_model=512, n_heads=8, d_ff=2048, max_seq_len=1024, qkv_bias=False,
                 out_proj=False)


@pytest.mark.parametrize("qkv, attention, together, adam", [("lattice", 2.36, 52.80, 105.60),
                                                            ("full", 18.87, 69.32, 138.63)])
def test_the_table_of_the_reference_size(qkv, attention, together, adam):
    config = cllm.ModelConfig(**REFERENCE, qkv=qkv)
    rows = {row["part"]: row for row in weight_rows(config, Workload(1, 256))}
    for part, column, megabytes in (
            ("attention", "gradient_bytes", attention), ("layer norms", "gradient_bytes", 0.049),
            ("feed-forward", "gradient_bytes", 50.39), ("all blocks", "gradient_bytes", together),
            ("all blocks", "optimizer_bytes", adam)):
        assert rows[part][column] / 1e6 == pytest.approx(megabytes, abs=0.005), part


def kept_bytes(time, also=()):
    """Bytes that one block keeps for backward, by planner."""
    config = cllm.ModelConfig(**REFERENCE)
    workload = Workload(1, time)
    ledger = Ledger(program_of(config), workload)
    schedule, _ = ledger.build(cllm.CacheAll(also=also).decide(ledger))
    return sum(b.nbytes for b in schedule.buffers if b.kind == "kept" and b.block == 0)


def test_activations_grow_with_the_time_and_with_its_square_only_where_probabilities_are_kept():
    """O(seq), and O(seq^2 heads): counted at T, 2T and 4T."""
    plain = [kept_bytes(time) for time in (256, 512, 1024)]
    assert plain[1] == 2 * plain[0] and plain[2] == 4 * plain[0]
    probabilities = [kept_bytes(time, ("probs",)) - kept_bytes(time) for time in (256, 512, 1024)]
    assert probabilities == [8 * time * time * 4 for time in (256, 512, 1024)]


def test_the_page_has_the_computed_figures():
    import documents_memory
    assert documents_memory.PAGE.read_text() == documents_memory.page(), \
        "write it anew: python tests/documents_memory.py"
