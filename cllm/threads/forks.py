"""What the OpenMP runtime needs around a fork.

Its idle threads do not live on in the child, where it would wait for them for ever. They are ended before the fork, and
made anew at the next parallel region of parent or child. Threads that work for other Python threads are left alone:
the child has none of those.
"""

import os
import warnings

from cllm import _kernels as kernels

_ready = True


def _before() -> None:
    global _ready
    _ready = kernels.before_fork()


def _in_child() -> None:
    if not _ready:
        kernels.stay_serial()
        warnings.warn("this OpenMP runtime cannot be forked, so cllm uses one thread in this child process; start child "
                      "processes by 'spawn' for more", RuntimeWarning, stacklevel=2)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
