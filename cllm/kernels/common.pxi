# What every family of kernels shares: the checks that a `def` makes before it hands pointers to the loops.

from cllm.errors import ConfigError, ShapeError


def vector_bytes():
    """Bytes in one vector register as the kernels use it."""
    return VECTOR_BYTES


cdef int check_length(str kernel, str name, Py_ssize_t got, Py_ssize_t must) except -1:
    """Refuse an array whose named length is not what the other arguments imply."""
    if got != must:
        raise ShapeError(kernel, f"{name} must be {must}", str(got), "Pass arrays whose shapes belong together.")
    return 0


cdef int check_room(str kernel, str name, Py_ssize_t got, Py_ssize_t least) except -1:
    """Refuse scratch that is too short."""
    if got < least:
        raise ShapeError(kernel, f"{name} must have at least {least} elements", str(got),
                         "Ask the kernel's own *_workspace function for the size.")
    return 0
