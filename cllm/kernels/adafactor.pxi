# Adafactor (Shazeer and Stern, Adaptive Learning Rates with Sublinear Memory Cost, 2018): of the second moments of a matrix of
# R rows and C columns only the means of its rows and of its columns are kept. With b = 1 - t^-0.8,
#
#     row_i    = b row_i + (1 - b) mean over columns of (g_ij^2 + eps)        column_j alike, over rows
#     u_ij     = g_ij / sqrt(row_i column_j / mean(row))
#     param    = param - rate u / max(1, rms(u) / clip) - decay param
#
# An array of one axis is a matrix of one column: row_i is then the second moment itself, column_0 the mean of all. Sums are
# float64, along a row in the fixed lanes of `wide_squares`, over rows in order.

cdef enum:
    COLUMN_TILE = 64        # columns whose sums are held at a time: a row of them is a few cache lines


cdef inline double row_squares(const floating *x, Py_ssize_t n) noexcept nogil:
    if floating is float:
        return wide_squares(<const vf32*> x, 0, n)
    else:
        return wide_squares(<const vf64*> x, 0, n)


cdef inline void factor_row(const floating *grad, double keep, double eps, floating *row, Py_ssize_t n_columns,
                            Py_ssize_t i) noexcept nogil:
    row[i] = <floating> (keep * row[i] + (1.0 - keep) * (row_squares(grad + i * n_columns, n_columns) / n_columns + eps))


cdef void factor_tile(const floating *grad, double keep, double eps, floating *column, Py_ssize_t n_rows,
                      Py_ssize_t n_columns, Py_ssize_t tile) noexcept nogil:
    cdef double sums[COLUMN_TILE]
    cdef Py_ssize_t first = tile * COLUMN_TILE, n = min(<Py_ssize_t> COLUMN_TILE, n_columns - tile * COLUMN_TILE), i, j
    cdef const floating *g
    for j in range(n):
        sums[j] = 0.0
    for i in range(n_rows):
        g = grad + i * n_columns + first
        for j in range(n):
            sums[j] += <double> g[j] * <double> g[j]
    for j in range(n):
        column[first + j] = <floating> (keep * column[first + j] + (1.0 - keep) * (sums[j] / n_rows + eps))


cdef inline double moved(double g, double row, double column, double mean) noexcept nogil:
    """u of one element."""
    return g / sqrt(row * column / mean)


cdef double piece_of_moves(const floating *grad, const floating *row, const floating *column, double mean, Py_ssize_t n_rows,
                           Py_ssize_t n_columns, Py_ssize_t piece) noexcept nogil:
    """The sum of the squares of u over the rows of a piece."""
    cdef Py_ssize_t rows = rows_per_piece(n_columns), i, j
    cdef double total = 0.0, u
    for i in range(piece * rows, min(n_rows, (piece + 1) * rows)):
        for j in range(n_columns):
            u = moved(grad[i * n_columns + j], row[i], column[j], mean)
            total += u * u
    return total


cdef double squares_of_moves(const floating *grad, const floating *row, const floating *column, double mean, Py_ssize_t n_rows,
                             Py_ssize_t n_columns) noexcept nogil:
    """The same over all, pieces in order."""
    cdef double sums[SUM_PIECES]
    cdef double *piece = &sums[0]
    cdef double total = 0.0
    cdef Py_ssize_t rows = rows_per_piece(n_columns), first = 0, p, count
    cdef Py_ssize_t n_pieces = (n_rows + rows - 1) // rows
    while first < n_pieces:
        count = min(<Py_ssize_t> SUM_PIECES, n_pieces - first)
        for p in prange(count, num_threads=_threads, use_threads_if=n_rows * n_columns >= PARALLEL_FROM, schedule="static"):
            piece[p] = piece_of_moves(grad, row, column, mean, n_rows, n_columns, first + p)
        for p in range(count):
            total += piece[p]
        first += count
    return total


cdef void move_rows(const floating *grad, const floating *row, const floating *column, double mean, double rate, double decay,
                    floating *param, Py_ssize_t n_rows, Py_ssize_t n_columns, Py_ssize_t piece) noexcept nogil:
    cdef Py_ssize_t rows = rows_per_piece(n_columns), i, j, k
    for i in range(piece * rows, min(n_rows, (piece + 1) * rows)):
        for j in range(n_columns):
            k = i * n_columns + j
            param[k] = <floating> (param[k] - (rate * moved(grad[k], row[i], column[j], mean) + decay * param[k]))


cdef void adafactor_array(const floating *grad, double rate, double keep, double clip, double eps, double decay,
                          floating *param, floating *row, floating *column, Py_ssize_t n_rows,
                          Py_ssize_t n_columns) noexcept nogil:
    cdef Py_ssize_t size = n_rows * n_columns, rows = rows_per_piece(n_columns), i
    cdef double mean = 0.0, rms
    for i in prange(n_rows, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM, schedule="static"):
        factor_row(grad, keep, eps, row, n_columns, i)
    for i in prange((n_columns + COLUMN_TILE - 1) // COLUMN_TILE, num_threads=_threads,
                    use_threads_if=size >= PARALLEL_FROM, schedule="static"):
        factor_tile(grad, keep, eps, column, n_rows, n_columns, i)
    for i in range(n_rows):
        mean += row[i]
    mean /= n_rows
    rms = sqrt(squares_of_moves(grad, row, column, mean, n_rows, n_columns) / size)
    if rms > clip:
        rate *= clip / rms
    for i in prange((n_rows + rows - 1) // rows, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        move_rows(grad, row, column, mean, rate, decay, param, n_rows, n_columns, i)


def adafactor_update(ArrayList grads not None, const double[::1] rate not None, double keep, double clip, double eps,
                     const double[::1] decay not None, const long long[::1] n_columns not None, *, ArrayList params not None,
                     ArrayList rows not None, ArrayList columns not None):
    """One step of Adafactor.

    Parameters
    ----------
    grads : ArrayList
        Gradients of the parameters, array by array, whole.
    rate, decay : arrays of shape len(grads)
        Of each array: what its u is scaled by, and what part of it decays.
    keep : float
        b, the part of the means that stays.
    clip : float
        The greatest root mean square of u.
    eps : float
        Added to squares; must be above 0.
    n_columns : array of shape len(grads)
        The last axis of each array; 1 for one of a single axis.
    params, rows, columns : ArrayList, updated
    """
    cdef Py_ssize_t k, n_rows
    for name, got in (("len(rate)", rate.shape[0]), ("len(decay)", decay.shape[0]), ("len(n_columns)", n_columns.shape[0]),
                      ("len(rows)", rows.bound.n), ("len(columns)", columns.bound.n)):
        check_length("adafactor_update", name, got, grads.bound.n)
    check_list("adafactor_update", "params", params, grads)
    if grads.bound.n == 0:
        return
    if rows.is_double != grads.is_double or columns.is_double != grads.is_double:
        raise DtypeError("adafactor_update", "rows and columns must be of the gradients' dtype", "another",
                         "Pass lists of one dtype.")
    for k in range(grads.bound.n):
        if n_columns[k] < 1 or grads.bound.flats[k].size % n_columns[k]:
            raise ShapeError("adafactor_update", f"n_columns[{k}] must divide {grads.bound.flats[k].size}", str(n_columns[k]),
                             "Pass the last axis of the array.")
        check_length("adafactor_update", f"rows[{k}].size", rows.bound.flats[k].size, grads.bound.flats[k].size // n_columns[k])
        check_length("adafactor_update", f"columns[{k}].size", columns.bound.flats[k].size, n_columns[k])
    with nogil:
        for k in range(grads.bound.n):
            n_rows = grads.bound.flats[k].size // n_columns[k]
            if n_rows == 0:
                continue
            if grads.is_double:
                adafactor_array(<const double*> grads.bound.flats[k].data, rate[k], keep, clip, eps, decay[k],
                                <double*> params.bound.flats[k].data, <double*> rows.bound.flats[k].data,
                                <double*> columns.bound.flats[k].data, n_rows, <Py_ssize_t> n_columns[k])
            else:
                adafactor_array(<const float*> grads.bound.flats[k].data, rate[k], keep, clip, eps, decay[k],
                                <float*> params.bound.flats[k].data, <float*> rows.bound.flats[k].data,
                                <float*> columns.bound.flats[k].data, n_rows, <Py_ssize_t> n_columns[k])
