# Sums over the rows of a matrix, column by column: the gradient of a bias.
#
#     dbias[j] += dy[0, j] + dy[1, j] + ...
#
# A chain for each column, so that columns may be parted and cuts of the rows cannot be seen. Eight rows are added while a sum
# lies in a register.

cdef enum:
    # Threads take so many vectors of columns or more, and ask for so many rows ahead: a row is a few lines, and no processor
    # foresees where the next begins.
    STRIP_VECTORS = 4
    ROWS_AHEAD = 16


cdef void add_rows(const vec *dy, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t column0, Py_ssize_t column1,
                   vec *dbias) noexcept nogil:
    """dbias[j] += dy[0, j] + dy[1, j] + ..., in this order, for column0 <= j < column1."""
    cdef Py_ssize_t i0, i, j, n
    cdef vec total
    for i0 in range(0, rows, 8):
        for i in range(i0 + ROWS_AHEAD, min(i0 + ROWS_AHEAD + 8, rows)):
            fetch_row(address(dy, i * columns + column0), (column1 - column0) * (VECTOR_BYTES // lanes(dy)))
        j = column0
        while j < column1:
            n = column1 - j
            if n >= lanes(dy):
                total = load(dbias, j)
                for i in range(i0, min(i0 + 8, rows)):
                    total = total + load(dy, i * columns + j)
                store(dbias, j, total)
            else:
                total = load_partial(dbias, j, n)
                for i in range(i0, min(i0 + 8, rows)):
                    total = total + load_partial(dy, i * columns + j, n)
                store_partial(dbias, j, total, n)
            j += lanes(dy)


cdef void sum_rows(const vec *dy, Py_ssize_t rows, Py_ssize_t columns, vec *dbias) noexcept nogil:
    """dbias += column sums of dy; the threads share out the columns."""
    cdef int pieces = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> _threads, rows * columns // (THREAD_WORK // 16)))
    cdef int piece
    cdef Py_ssize_t unit = STRIP_VECTORS * lanes(dy)
    if pieces == 1:
        add_rows(dy, rows, columns, 0, columns, dbias)
    else:
        for piece in prange(pieces, num_threads=_threads, schedule="static"):
            add_rows(dy, rows, columns, share_start(columns, unit, piece, pieces),
                     share_start(columns, unit, piece + 1, pieces), dbias)
