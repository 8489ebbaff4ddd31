"""``cllm gradcheck``: the gradients of a configuration proved against central differences."""

import sys

import click
import numpy as np

from cllm.checks import LARGEST_SEED, checked_size
from cllm.cli.files import write_json
from cllm.cli.options import architecture_from, json_option, model_options, place_of_weights, time_of
from cllm.models.architecture import record_of
from cllm.models.choosing import model_in
from cllm.models.families import model_of
from cllm.program.workload import Workload
from cllm.proof.gradcheck import gradcheck


@click.command("gradcheck")
@click.option("--strategy", default="cache", help="Whose gradients are checked, by name.")
@click.option("--elements", type=click.IntRange(1), default=16, help="Elements of each parameter, drawn at random.")
@click.option("--all-elements", is_flag=True, help="Check every element; slow but for very small models.")
@model_options("tiny")
@click.option("--batch-size", type=int, default=2, help="Sequences in the batch, B.")
@click.option("--seq-len", type=int, default=8, help="Time steps in a sequence, T; not used by a model without.")
@click.option("--seed", type=int, default=0, help="Of the weights, the batch and the elements.")
@json_option
def command(strategy, elements, all_elements, batch_size, seq_len, seed, json_path, **model):
    """Compare gradients with central differences of the loss, in float64.

    Allowed is |a - n| <= 1e-6 max(|a|, |n|) + 1e-9 for each element. Exits with 1 when a parameter fails.
    """
    place = place_of_weights(model)
    architecture = architecture_from(model, seq_len)
    work = Workload(batch_size, time_of(architecture, seq_len), "float64")
    work.check(architecture.program)
    generator = np.random.default_rng(checked_size("--seed", seed, 0, LARGEST_SEED))
    checked = model_of(architecture, seed, "float64") if place is None else model_in(place, "float64", architecture)
    found = gradcheck(checked, strategy=strategy, seed=seed,
                      elements=None if all_elements else elements,
                      **architecture.example_batch(generator, work.batch, work.time))
    write_json(json_path, {
        **record_of(architecture), "strategy": strategy, "passed": found.passed,
        "rows": [{"name": row.name, "checked": row.checked, "size": row.size, "worst_over_allowed": row.worst,
                  "passed": row.passed} for row in found.rows]})
    click.echo(str(found))
    if not found.passed:
        click.echo("Error: gradients differ from central differences by more than is allowed.", err=True)
        sys.exit(1)
