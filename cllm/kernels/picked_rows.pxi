# Some rows of an array, close together, and back to where they came from.
#
#     pick:    y[k] = x[rows[k]], as float32 where x is bfloat16
#     spread:  x[rows[k]] = x[k] in place, zero in all other rows
#
# rows ascend, so rows[k] >= k: from the last to the first, no row is written before it has been read. Nothing is
# computed; the rows of the picking and the columns of the spreading are shared out to the threads.

from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

cdef enum:
    SPREAD_COLUMNS = 256     # columns in one piece


cdef void pick_pieces(const int32_t *rows, const char *x, char *y, Py_ssize_t n_picked, Py_ssize_t row_bytes,
                      bint narrow) noexcept nogil:
    cdef Py_ssize_t k
    for k in prange(n_picked, num_threads=_threads, use_threads_if=n_picked * row_bytes >= 4 * PARALLEL_FROM,
                    schedule="static"):
        if narrow:
            widen_elements(<float *> (y + k * row_bytes), <const uint16_t *> (x + rows[k] * (row_bytes // 2)),
                           row_bytes // 4)
        else:
            memcpy(y + k * row_bytes, x + rows[k] * row_bytes, row_bytes)


cdef void spread_pieces(const int32_t *rows, char *x, Py_ssize_t n_picked, Py_ssize_t n_rows, Py_ssize_t row_bytes,
                        Py_ssize_t piece_bytes) noexcept nogil:
    cdef Py_ssize_t k, n, p, left, width, pieces = (row_bytes + piece_bytes - 1) // piece_bytes
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * row_bytes >= 4 * PARALLEL_FROM,
                    schedule="static"):
        left = p * piece_bytes
        width = min(piece_bytes, row_bytes - left)
        k = n_picked - 1
        for n in range(n_rows - 1, -1, -1):
            if k >= 0 and rows[k] == n:
                if k != n:
                    memcpy(x + n * row_bytes + left, x + k * row_bytes + left, width)
                k = k - 1
            else:
                memset(x + n * row_bytes + left, 0, width)


cdef int check_picked(str kernel, const int32_t[::1] rows, Py_ssize_t n_rows) except -1:
    cdef Py_ssize_t k, before = -1
    for k in range(rows.shape[0]):
        if not before < rows[k] < n_rows:
            raise ShapeError(kernel, f"rows must ascend from 0 and stay below {n_rows}", str(rows[k]),
                             "Pass the numbers of different rows, in order.")
        before = rows[k]
    return 0


def pick_rows(x, const int32_t[::1] rows not None, *, floating[:, ::1] y not None):
    """Copy some rows, one after the other.

    Parameters
    ----------
    x : array of shape N C
        May be bfloat16.
    rows : int32 array of shape K
        Ascending.
    y : array of shape K C, written
    """
    cdef Rows given
    take_rows("pick_rows", "x", x, sizeof(floating), False, &given)
    cdef Py_ssize_t n_channels = given.columns
    check_picked("pick_rows", rows, given.rows)
    check_length("pick_rows", "len(y)", y.shape[0], rows.shape[0])
    check_length("pick_rows", "y.shape[1]", y.shape[1], n_channels)
    if rows.shape[0] == 0 or n_channels == 0:
        return
    with nogil:
        pick_pieces(&rows[0], <const char *> given.at, <char *> &y[0, 0], rows.shape[0], n_channels * sizeof(floating),
                    given.narrow)


def spread_rows(const int32_t[::1] rows not None, *, floating[:, ::1] x not None):
    """Move the first rows to where they belong, and set all others to zero.

    Parameters
    ----------
    rows : int32 array of shape K
        Ascending; row k belongs to rows[k].
    x : array of shape N C, written
    """
    cdef Py_ssize_t n_rows = x.shape[0], n_channels = x.shape[1]
    cdef const int32_t *first = NULL
    check_picked("spread_rows", rows, n_rows)
    if n_rows == 0 or n_channels == 0:
        return
    if rows.shape[0]:
        first = &rows[0]
    with nogil:
        spread_pieces(first, <char *> &x[0, 0], rows.shape[0], n_rows, n_channels * sizeof(floating),
                      SPREAD_COLUMNS * sizeof(floating))
