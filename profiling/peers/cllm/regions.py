"""The contestant of `regions.py`: one executor under the stand-in runtime of `machine/simulated_threads.c`, or under none."""

import ctypes
import hashlib
import os
from unittest import mock

from peers import process
from peers.cllm.steps import Training

AFTER = ("zero_grad", "clip", "adamw")  # what follows the schedule's operations in a step, and its beginning


class _Event(ctypes.Structure):
    _fields_ = (("function", ctypes.c_void_p), ("threads", ctypes.c_int), ("barriers", ctypes.c_int), ("mark", ctypes.c_int),
                ("shares", ctypes.c_long), ("critical", ctypes.c_double), ("total", ctypes.c_double),
                ("longest", ctypes.c_double))


class Counted(Training):
    """`Training`, whose steps are taken region by region."""

    def names(self) -> list[str]:
        """What the marks of `regions` stand for, in their order: operations of the schedule, then what follows them."""
        schedule = self.executor.schedule
        return [f"{op.kind} {op.step.name}" for op in schedule.whole_step(schedule.ops)] + list(AFTER)

    def layers(self) -> list[str]:
        """Kind and class of each operation's layer, in the same order."""
        schedule = self.executor.schedule
        return [f"{op.kind.costs_as} {type(op.step.layer).__name__}" for op in schedule.whole_step(schedule.ops)] + list(AFTER)

    def regions(self) -> list[list]:
        """One step: of each event its mark, function (as an offset into the extension), threads, barriers, shares, and the
        seconds of its busiest thread, of all threads and of the longest share."""
        from cllm import _kernels
        from cllm.threads import caches

        runtime = ctypes.CDLL(None)
        bytes_here, _ = caches.level2(caches.usable_cores() or ()) or (0, 1)
        _kernels.take_level2(bytes_here, self.executor.workload.threads)  # as if each thread had a core
        n_operations, done, timed = len(self.names()) - len(AFTER), 0, _kernels.call_timed

        def call_timed(calls, *, seconds):
            nonlocal done
            runtime.simulated_follow(done, len(calls))
            timed(calls, seconds=seconds)
            if runtime.simulated_missing():
                raise RuntimeError("the clock was not read between any two operations: is this build's call_timed another?")
            done += len(calls)

        runtime.simulated_clear()
        self._marked(runtime, n_operations, self.model.zero_grad)
        with mock.patch.object(_kernels, "call_timed", call_timed):
            self.executor.timed_step(**self.feeds)
        self._marked(runtime, n_operations + 1, lambda: self.clip(self.model, 1.0))
        self._marked(runtime, n_operations + 2, self.optimizer.step)
        events = ctypes.POINTER(_Event)()
        runtime.simulated_events.restype = ctypes.c_long
        count = runtime.simulated_events(ctypes.byref(events))
        base = _base(_kernels.__file__)
        return [[one.mark, one.function and one.function - base, one.threads, one.barriers, one.shares, one.critical,
                 one.total, one.longest] for one in events[:count]]

    def digest(self) -> str:
        """Of all parameters, after the steps that were taken."""
        found = hashlib.sha256()
        for _, array in sorted(self.model.parameters.items()):
            found.update(array.tobytes())
        return found.hexdigest()

    def extension(self) -> str:
        """The file of the kernels."""
        from cllm import _kernels

        return _kernels.__file__

    @staticmethod
    def _marked(runtime, mark: int, call) -> None:
        runtime.simulated_mark(mark)
        call()
        runtime.simulated_mark(-1)


def _base(file: str) -> int:
    """Where the first byte of a library lies in this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(os.path.realpath(file)))


if __name__ == "__main__":
    counted = Counted()
    process.serve(make=counted.make, burst=counted.burst, regions=counted.regions, names=counted.names, layers=counted.layers,
                  work=counted.work, digest=counted.digest, extension=counted.extension)
