"""``cllm plan``: what a strategy or budget decides, without running."""

import click

from cllm.cli.options import config_of, json_option, model_options, optimizer_option, size_options, write_json
from cllm.planning import plan


@click.command("plan")
@click.option("--strategy", default="cache", help="A strategy by name, such as recompute or every:2.")
@model_options("small")
@size_options(batch_size=8, seq_len=256)
@optimizer_option
@json_option
def command(strategy, batch_size, seq_len, dtype, threads, optimizer, json_path, **model):
    """Show what a strategy decides and what it costs, without running anything.

    No array is made and no kernel runs; the bytes are exact all the same, the seconds are a prediction.
    """
    config = config_of(model, seq_len)
    made = plan(config, batch_size=batch_size, seq_len=seq_len, strategy=strategy, optimizer=optimizer, dtype=dtype,
                num_threads=threads)
    write_json(json_path, {
        "config": config.to_dict(), "batch_size": batch_size, "seq_len": seq_len, "dtype": dtype,
        "optimizer": optimizer, "strategy": strategy, "plan": made.to_dict(), "arena_bytes": made.arena_bytes,
        "total_bytes": made.total_bytes, "predicted_seconds": made.predicted_seconds,
    })
    click.echo(made.table())
