"""``cllm sample``: text from a trained model."""

import sys
from datetime import datetime
from pathlib import Path

import click

from cllm.cli.files import write_json
from cllm.cli.loading import Loaded, base_option, load_from
from cllm.cli.options import compute_option, family_option, json_option
from cllm.errors import ConfigError
from cllm.models.choosing import family_named
from cllm.pretrained import Speech
from cllm.sampling import stream_text
from cllm.tokenizer import load_tokenizer


@click.command("sample")
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", default="\n", show_default="a line break", help="Text to continue; - reads it from standard input.")
@click.option("--chat", is_flag=True,
              help="The prompt is a message, and the model answers, by the template beside its weights.")
@click.option("--system", default=None, help="With --chat: a message of the system before it.")
@click.option("--tokenizer", default=None, show_default="the model's",
              help="A path to tokenizer.json or GPT-2's files, for a model that has none beside it.")
@click.option("--tokens", "count", type=click.IntRange(0), default=300, help="How many to add at most.")
@click.option("--temperature", type=float, default=0.8, help="0 always takes the likeliest.")
@click.option("--top-k", type=int, default=None, help="Draw from so many of the likeliest only.")
@click.option("--top-p", type=float, default=None, help="Draw from the fewest that hold this probability together.")
@click.option("--seed", type=int, default=0, help="The same seed draws the same text.")
@click.option("--best", is_flag=True, help="Of a run: the snapshot of the best evaluation instead of the latest.")
@click.option("--threads", type=int, default=None, show_default="as cllm info says")
@base_option
@compute_option
@family_option
@json_option
def command(directory, prompt, chat, system, tokenizer, count, temperature, top_k, top_p, seed, best, threads, base,
            compute, model, json_path):
    """Continue a text by the model in DIRECTORY: a run, one of its snapshots, a file that model.save wrote, a directory with
    config.json and safetensors, or a GGUF file.

    The text is written as it is made, and ends at a token that ends texts of the model. A family of yours needs its class,
    --model: nothing that a file names is run.
    """
    if system is not None and not chat:
        raise click.UsageError("--system is a message of a chat: give --chat as well")
    loaded = load_from(directory, best, None if model is None else family_named(model), base)
    loaded.model.compute = compute or loaded.model.compute
    speech = loaded.speech() if tokenizer is None else None
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")
    if chat:
        begin = _chat(loaded, speech, prompt, system)
    else:
        click.echo(prompt, nl=False)
        begin = prompt.encode(errors="surrogateescape")
        if speech is not None and prompt:
            begin = speech.prompt(begin)
    chosen = load_tokenizer(tokenizer) if tokenizer else speech.tokenizer if speech else loaded.own_tokenizer()
    made: list[int] = []
    text = ""
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "num_threads": threads}
    stop = () if speech is None else speech.stops
    for token, piece in stream_text(loaded.model, chosen, begin, count, stop, **choice):
        made.append(token)
        text += piece
        click.echo(piece, nl=False)
    click.echo()
    write_json(json_path, {"model": str(loaded.path), "prompt": prompt, "text": text, "tokens": made, "seed": seed})


def _chat(loaded: Loaded, speech: Speech | None, prompt: str, system: str | None) -> list[int]:
    """Ids of a message, and of the beginning of its answer."""
    if speech is None:
        raise ConfigError(f"sample {loaded.path}, --chat", "must be a model with the files of its tokenizer and template",
                          "one without", "Sample from a model in other people's files, or from a run that began with one.")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return speech.chat([*messages, {"role": "user", "content": prompt}], datetime.now())
