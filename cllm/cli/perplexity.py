"""``cllm perplexity``: how well a model foretells a text, over windows that are said to the token."""

from math import log
from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.loading import base_option, load_from
from cllm.cli.options import compute_option, json_option
from cllm.corpus import embedded_text, read_text
from cllm.errors import ConfigError, DataError
from cllm.executor.executor import Executor
from cllm.tokenizer import load_tokenizer
from cllm.train.evaluation import perplexity_of, window_losses


@click.command("perplexity")
@click.option("--model", "place", type=click.Path(exists=True, path_type=Path), required=True,
              help="A run, a snapshot, a file of ours, a directory with config.json, or a GGUF file.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False), default=None, show_default="the embedded novel")
@click.option("--tokenizer", default=None, show_default="the model's",
              help="A path to tokenizer.json, or to vocab.json and merges.txt.")
@click.option("--seq-len", type=click.IntRange(1), default=1024, help="Tokens in a window, T.")
@click.option("--windows", type=click.IntRange(1), default=None, show_default="all that are whole",
              help="How many, from the beginning of the text.")
@click.option("--best", is_flag=True, help="Of a run: the snapshot of the best evaluation instead of the latest.")
@click.option("--threads", type=int, default=None, show_default="as cllm info says")
@base_option
@compute_option
@json_option
def command(place, text, tokenizer, seq_len, windows, best, threads, base, compute, json_path):
    """The mean of -log p over a text, and its exponential.

    The text is encoded in one piece, without a token before it. Window k is ids[k T : k T + T + 1]: each of its last T tokens
    is foretold from those before it in the window alone.
    """
    loaded = load_from(place, best, base=base)
    model = loaded.model
    model.compute = compute or model.compute
    if not model.program.head.layer.in_nats:
        raise ConfigError(f"perplexity of {place}", "must be of a model whose loss is -log p", "another loss",
                          "A perplexity is the exponential of a cross entropy.")
    chosen = load_tokenizer(tokenizer) if tokenizer else loaded.own_tokenizer()
    ids = chosen.encode(embedded_text() if text is None else read_text(text))
    whole = (len(ids) - 1) // seq_len
    count = whole if windows is None else windows
    if not 1 <= count <= whole:
        raise DataError("text", f"must have {(windows or 1) * seq_len + 1:,} tokens, for {windows or 1} windows of {seq_len}",
                        f"{len(ids):,}", "Give a longer text, fewer windows, or shorter ones.")
    losses = window_losses(Executor(model, 1, seq_len, "recompute", num_threads=threads), ids, count)
    mean = sum(losses) / len(losses)
    lengths = chosen.byte_lengths[ids[1:count * seq_len + 1]].sum()
    click.echo(f"{count} x {seq_len} tokens: {mean:.6f} nats, perplexity {perplexity_of(mean):.3f}, "
               f"{mean * count * seq_len / log(2) / lengths:.4f} bits per byte")
    write_json(json_path, {"model": str(loaded.path), "text": text, "tokens": len(ids), "seq_len": seq_len, "windows": count,
                           "compute": model.compute,
                           "mean_nll": mean, "perplexity": perplexity_of(mean), "by_window": losses})
