"""Processes that share a batch, played by threads of one."""
import threading
from queue import SimpleQueue

from cllm.errors import CllmError


class Thread:
    """A team of threads: what each tells and sends goes through queues."""

    def __init__(self, rank, size, board, barrier, queues):
        self.rank, self.size, self._board, self._barrier, self._queues = rank, size, board, barrier, queues

    def tell(self, value):
        self._board[self.rank] = value
        self._barrier.wait()
        told = list(self._board)
        self._barrier.wait()
        return told

    def swap(self, mine, theirs, peer):
        self._queues[self.rank, peer].put(mine.copy())
        theirs[...] = self._queues[peer, self.rank].get(timeout=3600)

    def send(self, array, peer):
        self._queues[self.rank, peer].put(array.copy())

    def receive(self, array, peer):
        array[...] = self._queues[peer, self.rank].get(timeout=3600)

    def spread(self, array, bounds):
        start, stop = bounds[self.rank]
        for (first, last), part in zip(bounds, self.tell(array[start:stop].copy()), strict=True):
            array[first:last] = part


def processes(size, work):
    """What `work` returns or raises of each of so many."""
    board, barrier = [None] * size, threading.Barrier(size, timeout=3600)
    queues = {(a, b): SimpleQueue() for a in range(size) for b in range(size)}
    found = [None] * size

    def run(rank):
        try:
            found[rank] = work(Thread(rank, size, board, barrier, queues))
        except CllmError as error:
            found[rank] = error
        except BaseException as error:
            found[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in sorted(found, key=lambda one: isinstance(one, threading.BrokenBarrierError)):  # which others' errors lead to
        if isinstance(one, BaseException) and not isinstance(one, CllmError):
            raise one
    return found
