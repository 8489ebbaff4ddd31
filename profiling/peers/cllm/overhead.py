"""The contestant of `overhead.py`: one executor, the same step taken in several ways."""

from contextlib import ExitStack
from unittest import mock

import harness

from peers import process
from peers.cllm.steps import Training


class Ways(Training):
    """`Training`, whose steps are loss and gradients alone, taken as asked."""

    def make(self, **job) -> dict:
        """As `Training.make`, and how many operations a step has."""
        facts = super().make(**job)
        schedule = self.executor.schedule
        body, epilogue = schedule.epilogue, len(schedule.ops) - schedule.epilogue
        self.model.zero_grad()
        return {**facts, "operations": body * schedule.n_micro + epilogue}

    def turns(self, ways: list[str], repeats: int) -> dict[str, list[float]]:
        """Seconds of each of `repeats` steps taken each way, one step of each in turn."""
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(repeats):
            for way in ways if number % 2 == 0 else reversed(ways):
                taken[way] += self._take(way)
        self.model.zero_grad()  # sums of hundreds of steps would grow without end
        return taken

    def _take(self, way: str) -> list[float]:
        take = self.executor.timed_step if way == "profiled" else self.executor.loss_and_grad
        with ExitStack() as stack:
            if way == "without the witness":
                slab = self.executor._slab
                slab.mark = lambda: None
                stack.callback(delattr, slab, "mark")
            if way == "Python alone":
                _without_kernels(stack)
            return harness.burst(lambda: take(**self.feeds), 1)


def _without_kernels(stack: ExitStack) -> None:
    from cllm import _kernels

    def nothing(*arguments, **named):
        return ()  # also the executor's answer to "which gradients are not finite?"

    for name in dir(_kernels):
        sizes = name.endswith(("workspace", "bytes"))
        kept = sizes or name.startswith("_") or name.endswith("Error") or name == "Threads"
        if callable(getattr(_kernels, name)) and not kept:
            stack.enter_context(mock.patch.object(_kernels, name, nothing))


if __name__ == "__main__":
    ways = Ways()
    process.serve(make=ways.make, turns=ways.turns)
