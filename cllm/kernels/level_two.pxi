# How much of level 2 a block of a product takes: as much as the kernels were built for, or less where there is less.

cdef enum:
    # No block of B is smaller, whatever level 2 has.
    LEAST_BLOCK_BYTES = 96 << 10

cdef Py_ssize_t level2_bytes = 0    # of each cache of level 2; 0 where that is not known
cdef Py_ssize_t level2_caches = 1   # how many the threads have between them


def take_level2(Py_ssize_t nbytes, Py_ssize_t caches):
    """Blocks of products are cut, from now on in this process, for so many level 2 caches of so many bytes; 0 bytes: as the
    kernels were built. Neither results nor scratch depend on it.

    Raises
    ------
    ConfigError
    """
    global level2_bytes, level2_caches
    if nbytes < 0 or caches < 1:
        raise ConfigError("take_level2", "must be given bytes, or 0, and at least one cache", f"{nbytes}, {caches}",
                          "Pass what the system says of level 2.")
    level2_bytes, level2_caches = nbytes, caches


def block_bytes(Py_ssize_t threads):
    """Bytes of a block of B on so many threads."""
    return block_limit(max(threads, <Py_ssize_t> 1))


cdef inline Py_ssize_t block_limit(Py_ssize_t threads) noexcept nogil:
    """The same. Level 2 holds a block for each thread that it serves, beside what comes next of A and some of C."""
    cdef Py_ssize_t sharing = (threads + level2_caches - 1) // level2_caches
    if level2_bytes == 0:
        return BLOCK_BYTES
    return min(<Py_ssize_t> BLOCK_BYTES, max(<Py_ssize_t> LEAST_BLOCK_BYTES, level2_bytes // sharing * 25 // 32))
