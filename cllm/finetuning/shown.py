"""An example as people can read it: every token, and which of them are trained on."""

from itertools import groupby

from cllm.finetuning.encoding import Encoded

SEPARATOR = "·"


def shown_example(number: int, example: Encoded, tokenizer) -> str:
    """Runs of tokens that are trained on or not, a line each; tokens are set apart by a dot, ends of lines show as \\n.

    The last target has no input of its own, and is shown.
    """
    ids = [*example.tokens.tolist(), int(example.targets[-1])]
    marks = [False, *(example.targets != -1).tolist()]
    lines = [f"example {number} ({example.where}): {len(example.tokens)} tokens, {example.count} of them trained on"]
    for trained, run in groupby(zip(marks, ids, strict=True), key=lambda pair: pair[0]):
        words = SEPARATOR.join(_word(tokenizer.decode([token])) for _, token in run)
        lines.append(f"  {'train' if trained else '     '} | {words}")
    return "\n".join(lines)


def _word(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
