"""``cllm memory``: where the bytes of a configuration are, in its parameters and in its activations."""

from math import prod

import click

from cllm.cli.files import write_json
from cllm.cli.options import config_of, json_option, model_options, optimizer_option, size_options
from cllm.cli.tables import console, megabytes, table
from cllm.planner.ledger import Ledger
from cllm.program.program import Program
from cllm.program.workload import OPTIMIZER_STATES, Workload
from cllm.schedule.build import Schedule
from cllm.strategies import parse

# What a parameter belongs to, by a part of its name; the first three are in every block.
PARTS = {"attention": (".attn.",), "feed-forward": (".mlp.",), "layer norms": (".ln1.", ".ln2."),
         "embeddings": ("tok_emb.", "pos_emb."), "final norm": ("ln_f.",), "head": ("head.",)}
IN_BLOCKS = ("attention", "feed-forward", "layer norms")


@click.command("memory")
@click.option("--strategy", default="cache", help="Whose kept activations are shown.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@optimizer_option
@json_option
def command(strategy, batch_size, seq_len, dtype, threads, optimizer, json_path, **model):
    """Show the bytes of parameters, gradients, optimizer, and activations by site.

    No array is made. MB are 10^6 bytes.
    """
    config = config_of(model, seq_len)
    workload = Workload(batch_size, seq_len, dtype, optimizer, threads)
    program = config.program
    ledger = Ledger(program, workload)
    schedule, report = ledger.build(parse(strategy).decide(ledger))
    weights = weight_rows(program, workload)
    sites = site_rows(ledger, schedule)
    totals = {"parameters": report.parameter_bytes, "gradients": report.gradient_bytes,
              "optimizer": report.optimizer_bytes, "arena": report.arena_bytes, "batch": report.batch_bytes,
              "tables": report.table_bytes, "total": report.total_bytes}
    write_json(json_path, {"config": config.to_dict(), "batch_size": batch_size, "seq_len": seq_len, "dtype": dtype,
                           "optimizer": optimizer, "strategy": strategy, "weights": weights, "activations": sites,
                           "total_bytes": totals})
    _print(program.n_blocks, optimizer, strategy, weights, sites, totals)


def weight_rows(program: Program, workload: Workload) -> list[dict]:
    """One row for each part of the model, one for all blocks, one for all: elements, and bytes by what holds them."""
    sizes = dict.fromkeys(PARTS, 0)
    for parameter in program.parameters.values():
        part = next(part for part, marks in PARTS.items() if any(mark in parameter.name for mark in marks))
        sizes[part] += prod(parameter.shape)
    sizes = {part: elements for part, elements in sizes.items() if elements}

    def row(part: str, elements: int) -> dict:
        return _weight_row(part, elements, workload, program.n_blocks)

    rows = [row(part, elements) for part, elements in sizes.items() if part in IN_BLOCKS]
    rows.append(row("all blocks", sum(part["elements"] for part in rows)))
    rows += [row(part, elements) for part, elements in sizes.items() if part not in IN_BLOCKS]
    rows.append(row("all", sum(sizes.values())))
    return rows


def _weight_row(part: str, elements: int, workload: Workload, n_blocks: int) -> dict:
    nbytes = elements * workload.itemsize
    per_layer = part in IN_BLOCKS or part == "all blocks"
    return {"part": part, "elements": elements, "parameter_bytes": nbytes, "gradient_bytes": nbytes,
            "optimizer_bytes": nbytes * OPTIMIZER_STATES[workload.optimizer],
            "gradient_bytes_per_layer": nbytes // n_blocks if per_layer else None}


def site_rows(ledger: Ledger, schedule: Schedule) -> list[dict]:
    """One row for each site that backward reads, blocks folded together: bytes of a micro-batch, and those kept."""
    kept: dict[str, int] = {}
    for buffer in schedule.buffers:
        if buffer.kind == "kept":
            kept[buffer.label] = kept.get(buffer.label, 0) + buffer.nbytes
    rows: dict[str, dict] = {}
    for entry in ledger.entries.values():
        site = entry.name if entry.block is None else f"blocks.*.{entry.key}"
        row = rows.setdefault(site, {"site": site, "meaning": entry.meaning, "group": entry.group,
                                     "optional": entry.optional, "count": 0, "bytes": 0, "kept_bytes": 0})
        row["count"] += 1
        row["bytes"] += entry.nbytes * schedule.micro_batch
        row["kept_bytes"] += kept.get(entry.name, 0)
    return list(rows.values())


def _print(layers: int, optimizer: str, strategy: str, weights: list[dict], sites: list[dict], totals: dict) -> None:
    out = console()
    shown = table("MB (10^6 bytes)", "elements", "parameters", "gradients", "of a layer", optimizer,
                  title=f"Parameters, {layers} layers")
    for row in weights:
        shown.add_row(row["part"], f"{row['elements']:,}", megabytes(row["parameter_bytes"]),
                      megabytes(row["gradient_bytes"]), megabytes(row["gradient_bytes_per_layer"]),
                      megabytes(row["optimizer_bytes"]), end_section=row["part"] == "all blocks")
    out.print(shown)
    shown = table("site", "group", "each", "all", f"kept by {strategy}", title="Activations that backward reads, MB")
    shown.add_column("meaning")
    for row in sites:
        shown.add_row(row["site"] + (" (optional)" if row["optional"] else ""), row["group"],
                      megabytes(row["bytes"] // row["count"]), megabytes(row["bytes"]), megabytes(row["kept_bytes"]),
                      row["meaning"])
    out.print(shown)
    shown = table("In a training step", "MB")
    for name, nbytes in totals.items():
        shown.add_row(name, megabytes(nbytes))
    out.print(shown)
