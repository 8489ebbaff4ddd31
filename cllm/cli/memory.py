"""``cllm memory``: where the bytes of a configuration are, in its parameters and in its activations."""

import re
from math import prod

import click
import numpy as np

from cllm.cli.files import write_json
from cllm.cli.options import (
    architecture_from,
    json_option,
    model_options,
    optimizer_option,
    size_options,
    time_of,
    trainable_option,
)
from cllm.comparison.tables import console, megabytes, table
from cllm.models.architecture import Architecture, record_of
from cllm.planner.ledger import Ledger
from cllm.program.computing import checked_compute, with_compute
from cllm.program.optimizer_states import state_bytes, state_parts
from cllm.program.trained import Patterns, with_trained
from cllm.program.workload import Workload
from cllm.schedule.build import Schedule
from cllm.strategies import parse

_IN_BLOCK = re.compile(r"blocks\.\d+\.")


@click.command("memory")
@click.option("--strategy", default="cache", help="Whose kept activations are shown.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@optimizer_option
@trainable_option
@json_option
def command(strategy, batch_size, seq_len, dtype, compute, threads, optimizer, trainable, json_path, **model):
    """Show the bytes of parameters, gradients, optimizer, and activations by site.

    No array is made. MB are 10^6 bytes.
    """
    architecture = architecture_from(model, seq_len)
    seq_len = time_of(architecture, seq_len)
    workload = Workload(batch_size, seq_len, dtype, optimizer, threads)
    checked_compute("memory(--compute)", compute, dtype)
    ledger = Ledger(with_compute(with_trained(architecture.program, trainable), compute), workload)
    schedule, report = ledger.build(parse(strategy).decide(ledger))
    weights = weight_rows(architecture, workload, trainable)
    sites = site_rows(ledger, schedule)
    totals = {"parameters": report.parameter_bytes, "gradients": report.gradient_bytes,
              "optimizer": report.optimizer_bytes, "arena": report.arena_bytes, "batch": report.batch_bytes,
              "tables": report.table_bytes, "total": report.total_bytes}
    write_json(json_path, {**record_of(architecture), "batch_size": batch_size, "seq_len": seq_len, "dtype": dtype,
                           "compute": compute, "optimizer": optimizer, "trainable": trainable, "strategy": strategy,
                           "weights": weights, "activations": sites,
                           "total_bytes": totals})
    _print(ledger.n_blocks, optimizer, strategy, weights, sites, totals)


def weight_rows(architecture: Architecture, workload: Workload, trainable: Patterns = None) -> list[dict]:
    """One row for each part of the model, those in blocks first and all blocks together, and one for all: elements, and
    bytes by what holds them; what is frozen has neither gradients nor an optimizer's state. A part is one of
    `Architecture.parameter_groups`, or the first word of the parameters' names."""
    program = with_trained(architecture.program, trainable)
    groups = architecture.parameter_groups
    inside, outside = ({part: np.zeros(3, int) for part in groups} for _ in range(2))  # elements, those trained, bytes of state
    for parameter in program.parameters.values():
        name = _IN_BLOCK.sub("", parameter.name, count=1)
        sizes = outside if name == parameter.name else inside
        part = next((word for word, starts in groups.items() if name.startswith(starts)), name.partition(".")[0])
        size = prod(parameter.shape)
        states = state_bytes(state_parts(workload.optimizer, parameter.name), parameter.shape, workload.dtype)
        sizes[part] = sizes.get(part, 0) + np.array([size, *((0, 0) if parameter.name in program.frozen else (size, states))])
    inside, outside = ({part: elements for part, elements in sizes.items() if elements[0]} for sizes in (inside, outside))
    blocks = program.n_blocks
    rows = [_weight_row(part, elements, workload, blocks) for part, elements in inside.items()]
    if inside:
        rows.append(_weight_row("all blocks", sum(inside.values()), workload, blocks))
    rows += [_weight_row(part, elements, workload, None) for part, elements in outside.items()]
    rows.append(_weight_row("all", sum(inside.values()) + sum(outside.values()), workload, None))
    return rows


def _weight_row(part: str, elements: np.ndarray, workload: Workload, n_blocks: int | None) -> dict:
    """`elements` are all, those trained and the bytes of their state; `n_blocks` is None for what is not in blocks."""
    count, trained, states = map(int, elements)
    gradients = trained * workload.itemsize
    return {"part": part, "elements": count, "parameter_bytes": count * workload.itemsize, "gradient_bytes": gradients,
            "optimizer_bytes": states,
            "gradient_bytes_per_layer": gradients // n_blocks if n_blocks else None}


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


def _print(blocks: int, optimizer: str, strategy: str, weights: list[dict], sites: list[dict], totals: dict) -> None:
    out = console()
    shown = table("MB (10^6 bytes)", "elements", "parameters", "gradients", "of a block", optimizer,
                  title=f"Parameters, {blocks} block{'' if blocks == 1 else 's'}")
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
