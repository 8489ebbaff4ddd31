"""``cllm gradcheck``: the gradients of a configuration proved against central differences."""

import sys

import click
import numpy as np

from cllm.checks import checked_size
from cllm.cli.files import write_json
from cllm.cli.options import config_of, json_option, model_options
from cllm.models.gpt import GPT
from cllm.proof.gradcheck import gradcheck


@click.command("gradcheck")
@click.option("--strategy", default="cache", help="Whose gradients are checked, by name.")
@click.option("--elements", type=click.IntRange(1), default=16, help="Elements of each parameter, drawn at random.")
@click.option("--all-elements", is_flag=True, help="Check every element; slow but for very small models.")
@model_options("tiny")
@click.option("--batch-size", type=int, default=2, help="Sequences in the batch, B.")
@click.option("--seq-len", type=int, default=8, help="Tokens in a sequence, T.")
@click.option("--seed", type=int, default=0, help="Of the weights, the tokens and the elements.")
@json_option
def command(strategy, elements, all_elements, batch_size, seq_len, seed, json_path, **model):
    """Compare gradients with central differences of the loss, in float64.

    Allowed is |a - n| <= 1e-6 max(|a|, |n|) + 1e-9 for each element. Exits with 1 when a parameter fails.
    """
    config = config_of(model, seq_len)
    shape = checked_size("--batch-size", batch_size), checked_size("--seq-len", seq_len) + 1
    network = GPT(config, seed=seed, dtype="float64")
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, shape)
    found = gradcheck(network, tokens[:, :-1], tokens[:, 1:], strategy=strategy,
                      elements=None if all_elements else elements, seed=seed)
    write_json(json_path, {
        "config": config.to_dict(), "strategy": strategy, "passed": found.passed,
        "rows": [{"name": row.name, "checked": row.checked, "size": row.size, "worst_over_allowed": row.worst,
                  "passed": row.passed} for row in found.rows]})
    click.echo(str(found))
    if not found.passed:
        click.echo("Error: gradients differ from central differences by more than is allowed.", err=True)
        sys.exit(1)
