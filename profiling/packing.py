"""What packing gives: paragraphs of a text as prompts and completions, packed into rows and padded in batches.

    python profiling/packing.py                                           # 1,000 paragraphs of the embedded novel, bytes
    python profiling/packing.py --model weights/SmolLM2 --batch-size 4 --seq-len 512 --text austen.txt

Three answers: the share of the positions of a pass that hold a token; how far the mean loss of packed rows, in float32 and over
targets alone, is from that of every example in a row of its own; and targets a second of whole training steps over one pass,
packed and padded in turn, share after share of it.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import harness
from jobs import models, options, record

LEAST_WORDS = 8  # of a paragraph: others are headings
STRATEGY = "cache@1"
MAX_NORM = 1.0
GROWTH = 6.0  # standard deviations of drawn matrices become 0.12


def main() -> int:
    """Measure, write JSON and print a table."""
    parser = options.parser(__doc__.splitlines()[0], None, rounds=8)
    parser.add_argument("--text", type=Path, default=None, metavar="FILE", help="default: the embedded novel")
    parser.add_argument("--paragraphs", type=options.positive, default=1000, metavar="N", help="of the text, the first")
    arguments = options.parsed(parser)
    model = models.asked(arguments)
    found = measured(arguments, model)
    path = record.write_result("packing", arguments.threads, {**options.job_of(arguments, model), **found}, arguments.out)
    print(f"{options.title(arguments, model)}; {found['examples']:,} examples, {found['targets']:,} targets")
    print(f"mean loss in float32: packed {found['loss']['packed']:.9f}, one by one {found['loss']['one_by_one']:.9f}, "
          f"{found['loss']['relative']:.1e} apart")
    for name, one in found["ways"].items():
        print(f"{name:<7} {100 * one['used']:5.1f} % of positions used, {one['targets_per_second']:10,.0f} targets a second")
    print(f"\nwritten: {path}")
    return 0


def measured(arguments, model: dict) -> dict:
    """All that is found, as plain data."""
    import cllm
    from cllm.pretrained import Speech

    pretrained = Path(arguments.model).is_dir()
    speech = Speech.beside(arguments.model) if pretrained else cllm.ByteTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "paragraphs.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in paragraphs(arguments.text, arguments.paragraphs)))
        packed, padded = (cllm.FineTuningData(file, speech, arguments.batch_size, arguments.seq_len, packing=packing,
                                              evaluation=True)
                          for packing in (True, False))
    made = cllm.from_pretrained(arguments.model) if pretrained else grown(cllm.Model(models.architecture(model), seed=0))
    harness.say("losses")
    loss = {"packed": mean_loss(made, packed, arguments.threads), "one_by_one": mean_alone(made, packed, arguments.threads)}
    loss["relative"] = abs(loss["packed"] / loss["one_by_one"] - 1)
    seconds = seconds_of({"packed": packed, "padded": padded}, made, arguments)
    ways = {name: {"used": data.used, "batches": len(data), "seconds": seconds[name],
                   "targets_per_second": data.targets / sum(seconds[name])}
            for name, data in (("packed", packed), ("padded", padded))}
    return {"examples": len(packed.examples), "tokens": packed.tokens, "targets": packed.targets, "notes": packed.notes,
            "loss": loss, "ways": ways}


def grown(model):
    """The model with matrices large enough for attention to matter to the loss, as it does after some training."""
    for parameter in model.parameters.values():
        if parameter.ndim > 1:
            parameter *= GROWTH
    return model


def paragraphs(text: Path | None, count: int) -> list[dict]:
    """The first paragraphs of a text: half of the words of each ask for the other half."""
    from cllm import corpus

    whole = (corpus.embedded_text() if text is None else text.read_bytes()).decode()
    words = [one.split() for one in whole.replace("\r", "").split("\n\n")]
    words = [one for one in words if len(one) >= LEAST_WORDS][:count]
    return [{"prompt": " ".join(one[:len(one) // 2]), "completion": " " + " ".join(one[len(one) // 2:])} for one in words]


def mean_loss(model, data, threads: int) -> float:
    """Mean over all targets of one pass over packed rows."""
    import cllm

    executor, total = cllm.Executor(model, data.batch_size, data.seq_len, "recompute@1", "none", threads, packed=True), 0.0
    for batch in map(data, range(len(data))):
        total += executor.loss(**batch) * int((batch["targets"] != -1).sum())
    return total / data.targets


def mean_alone(model, data, threads: int) -> float:
    """The same, each example in a row of its own."""
    import cllm

    total = 0.0
    for length in sorted({len(one.tokens) for one in data.examples}):
        executor = cllm.Executor(model, 1, length, "recompute", "none", threads)
        total += sum(executor.loss(one.tokens[None], one.targets[None]) * one.count for one in data.examples
                     if len(one.tokens) == length)
    return total / data.targets


def seconds_of(ways: dict, model, arguments) -> dict[str, list[float]]:
    """Seconds of the training steps of one pass, in as many shares as there are rounds, the ways in turn."""
    import cllm

    optimizer, executors = cllm.AdamW(model, lr=1e-5), {}

    def step(batch: dict) -> None:
        shape = *batch["tokens"].shape, "positions" in batch
        if shape not in executors:
            executors[shape] = cllm.Executor(model, *shape[:2], STRATEGY, "adamw", arguments.threads, packed=shape[2])
        model.zero_grad()
        executors[shape].loss_and_grad(**batch)
        cllm.clip_grad_norm(model, MAX_NORM)
        optimizer.step()

    for data in ways.values():  # every shape once: plans, slabs, warm caches
        seen = set()
        for number in range(len(data)):
            batch = data(number)
            if batch["tokens"].shape not in seen:
                seen.add(batch["tokens"].shape)
                step(batch)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for part in range(arguments.rounds):
        harness.say(f"round {part + 1} of {arguments.rounds}")
        for name, data in ways.items():
            mine = range(part * len(data) // arguments.rounds, (part + 1) * len(data) // arguments.rounds)
            found[name].append(sum(harness.burst(partial(step, batch), 1)[0] for batch in map(data, mine)))
    return found


if __name__ == "__main__":
    sys.exit(options.run(main))
