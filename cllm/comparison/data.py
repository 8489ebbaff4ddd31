"""What the steps of a comparison are fed: windows of a text, or the batches that the architecture draws."""

from collections.abc import Callable

import numpy as np

from cllm.comparison.job import Job, reads_text
from cllm.corpus import batch, embedded_text, read_text
from cllm.executor.batches import checked_feeds, feed_checks
from cllm.pretrained import Speech
from cllm.tokenizer import ByteTokenizer


def batches_of(job: Job) -> Callable[[int], dict[str, np.ndarray]]:
    """Every feed by name for the step of a number, the same in every process.

    Raises
    ------
    DataError
        When the text cannot be used.
    """
    program = job.architecture.program
    if not reads_text(program):
        return lambda step: job.architecture.example_batch(np.random.default_rng([job.seed, step]), job.batch_size, job.seq_len)
    tokenizer = ByteTokenizer() if job.weights is None else Speech.beside(job.weights).tokenizer
    tokens = tokenizer.encode(embedded_text() if job.text is None else read_text(job.text))

    def windows(step: int) -> dict[str, np.ndarray]:
        return dict(zip(("tokens", "targets"), batch(tokens, job.batch_size, job.seq_len, step, job.seed), strict=True))

    return windows


def check_data(job: Job) -> None:
    """Refuse data that no step could be fed with, once and not in every row.

    Raises
    ------
    CllmError
        As `batches_of`, the architecture's `example_batch`, and `Executor.loss_and_grad`.
    """
    program = job.architecture.program
    checked_feeds(feed_checks(program, job.workload), batches_of(job)(0), program.feeds)
