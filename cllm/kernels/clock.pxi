# Calls in turn, with the seconds of each: the executor's clock.
#
#     seconds_i = t_i - t_(i-1),   t_0 read before the first call, t_i when call i has ended
#
# Compiled because it stands between kernels of some microseconds: from Python, the way through a reading and a list was
# 2 % of a step of 200 operations and 2 ms.

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


def call_timed(list calls not None, *, double[::1] seconds not None):
    """Call each in turn; `seconds`, one for each, takes how long it ran: not of one that raises, nor of those after it."""
    check_length("call_timed", "seconds", seconds.shape[0], len(calls))
    cdef timespec before, after
    cdef Py_ssize_t i
    clock_gettime(CLOCK_MONOTONIC, &before)
    for i in range(len(calls)):
        call_one(calls[i])
        clock_gettime(CLOCK_MONOTONIC, &after)
        seconds[i] = (after.tv_sec - before.tv_sec) + 1e-9 * (after.tv_nsec - before.tv_nsec)
        before = after
