"""The contestant of leaks.py: a process that trains and says what it holds."""

from jobs import models

from peers import process

WARM_UP = 50  # steps, before the samples and again under the eyes of tracemalloc
SAMPLES = 10


def train(model: dict, batch_size: int, seq_len: int | None, strategy: str, steps: int, threads: int,
          states: str | None = None, folder: str | None = None) -> list[dict]:
    """Samples of what the process holds, and of the files in `folder`, the first after the steps that warm up. Where `states`
    are somewhere, steps are whole and update in backward."""
    import gc
    import os
    import tracemalloc
    from itertools import pairwise

    import psutil

    import cllm
    from cllm.comparison.data import batches_of
    from cllm.comparison.job import Job
    from cllm.strategies import parse

    architecture = models.architecture(model)
    batch_of_step = batches_of(Job(architecture, batch_size, seq_len))
    trained = cllm.Model(architecture, seed=0)
    ex = cllm.Executor(trained, batch_size, seq_len, strategy=parse(strategy), num_threads=threads, states=states,
                       update_in_backward=states is not None)
    opt = cllm.AdamW(trained, lr=1e-3)

    def run(first: int, stop: int) -> None:
        for step in range(first, stop):
            feeds = batch_of_step(step)
            if states is None:
                trained.zero_grad()
                ex.loss_and_grad(**feeds)
                cllm.clip_grad_norm(trained, 1.0)
                opt.step()
            else:
                ex.train_step(**feeds, optimizer=opt, clip_norm=1.0)
            ex.loss(**feeds)

    def sample(step: int) -> dict:
        gc.collect()
        ours = psutil.Process()
        return {"step": step, "resident": ours.memory_info().rss, "python": tracemalloc.get_traced_memory()[0],
                "threads": ours.num_threads(), "descriptors": ours.num_fds(),
                "files": 0 if folder is None else sum(len(files) for _, _, files in os.walk(folder))}

    run(0, WARM_UP)
    tracemalloc.start()
    run(WARM_UP, 2 * WARM_UP)
    found = [sample(0)]
    for before, mark in pairwise(steps * k // SAMPLES for k in range(SAMPLES + 1)):
        run(2 * WARM_UP + before, 2 * WARM_UP + mark)
        found.append(sample(mark))
    return found


if __name__ == "__main__":
    process.serve(train=train)
