# RMS norm (Zhang and Sennrich, 2019) over D channels: of whole rows, or of each head in a range of columns.
#
#     rstd = 1 / sqrt(sum_i x_i^2 / D + eps)       xhat = x * rstd
#     y    = xhat * w,    w = weight, or 1 + weight where the file of a model holds the difference from one
#
#     g = dy * w
#     dx      += rstd * (g - xhat * mean_i(g * xhat))
#     dweight += sum_n sum_h dy * xhat,    rows n in order, heads h of a row in order
#
# Columns start .. stop-1 of a row are `heads` pieces of D channels that share one weight: all columns as one piece for
# the residual stream, the columns of q or of k within q | k | v for a norm of each head, as one piece for a norm over
# all of q or k. Other columns are neither read nor written.
#
# The statistic is a float64 sum (wide.pxi); the sweep for that of the next piece goes before the one that writes this.


cdef inline double squares_as(const vec *x, Py_ssize_t start, Py_ssize_t n, bint narrow) noexcept nogil:
    """`wide_squares`: the same lanes in the same order."""
    cdef vsum acc[SUM_VECTORS]
    cdef vsum d
    cdef float part[WIDE_LANES]
    cdef Py_ssize_t i = 0, j
    if not narrow:
        return wide_squares(x, start, n)
    for j in range(SUM_VECTORS):
        acc[j] = splat_sum(0.0)
    while i < n:
        memset(part, 0, sizeof(part))
        widen_elements(part, <const uint16_t*> x + start + i, min(n - i, <Py_ssize_t> WIDE_LANES))
        for j in range(SUM_VECTORS):
            d = load_sum_f32(part, j * SUM_LANES)
            acc[j] = fma_sum(d, d, acc[j])
        i += WIDE_LANES
    return sum_tree(acc)


cdef inline void rms_row(const vec *x, const vec *weight, double offset, double rstd, vec *y, bint far, bint x_narrow,
                         bint y_narrow, Py_ssize_t at, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), i = 0
    cdef vec scale = splat(x, rstd), more = splat(x, offset)
    while i + L <= n_channels:
        store_as(y, at + i, load_as(x, at + i, x_narrow) * scale * (load(weight, i) + more), far, y_narrow)
        i += L
    if i < n_channels:
        L = n_channels - i
        store_partial_as(y, at + i, load_partial_as(x, at + i, L, x_narrow) * scale
                         * (load_partial(weight, i, L) + more), L, y_narrow)


cdef inline void rms_piece(const vec *x, Py_ssize_t width, const vec *weight, double offset, double eps, vec *y,
                           bint far, bint x_narrow, bint y_narrow, double *rstd, Py_ssize_t first, Py_ssize_t last,
                           Py_ssize_t heads, Py_ssize_t n_channels) noexcept nogil:
    """Rows first .. last-1."""
    cdef Py_ssize_t n, h, at, before = 0, item = first * heads
    for n in range(first, last):
        for h in range(heads):
            at = n * width + h * n_channels
            rstd[item] = 1.0 / sqrt(squares_as(x, at, n_channels, x_narrow) / n_channels + eps)
            if item > first * heads:
                rms_row(x, weight, offset, rstd[item - 1], y, far, x_narrow, y_narrow, before, n_channels)
            before = at
            item += 1
    rms_row(x, weight, offset, rstd[item - 1], y, far, x_narrow, y_narrow, before, n_channels)
    if far:
        stream_end()


cdef void rms_rows(const vec *x, Py_ssize_t width, const vec *weight, double offset, double eps, vec *y, double *rstd,
                   Py_ssize_t n_rows, Py_ssize_t heads, Py_ssize_t n_channels, bint x_narrow,
                   bint y_narrow) noexcept nogil:
    cdef Py_ssize_t p, rows = rows_per_piece(heads * n_channels)
    cdef bint far = goes_far(y, n_rows * n_channels, x) and width == n_channels and n_channels % lanes(y) == 0 \
        and not y_narrow
    for p in prange((n_rows + rows - 1) // rows, num_threads=_threads, schedule="static",
                    use_threads_if=n_rows * heads * n_channels >= PARALLEL_FROM):
        if x_narrow or y_narrow:
            rms_piece(x, width, weight, offset, eps, y, far, x_narrow, y_narrow, rstd, p * rows,
                      min(n_rows, (p + 1) * rows), heads, n_channels)
        else:
            rms_piece(x, width, weight, offset, eps, y, far, False, False, rstd, p * rows, min(n_rows, (p + 1) * rows),
                      heads, n_channels)


cdef Py_ssize_t check_columns(str kernel, Py_ssize_t width, Py_ssize_t n_channels, Py_ssize_t heads, Py_ssize_t start,
                              stop) except -1:
    """The column after the last, once the range is known to be `heads` pieces of the weight's length."""
    cdef Py_ssize_t end = width if stop is None else stop
    if not 0 <= start <= end <= width or end - start != heads * n_channels:
        raise ShapeError(kernel, f"columns start to stop must be {heads} heads of {n_channels} within {width} columns",
                         f"{start} to {end}", "Pass a column range that is rstd.shape[1] times as long as the weight.")
    return end


def rmsnorm_forward(x, const floating[::1] weight not None, double eps, bint unit_offset=False, Py_ssize_t start=0,
                    stop=None, *, y, double[:, ::1] rstd not None):
    """Divide each row, or each head of a row, by its root mean square, and scale it.

    Parameters
    ----------
    x : array of shape N W
        May be bfloat16.
    weight : array of shape D
    eps : float
        Added to the mean of the squares, inside the root.
    unit_offset : bool
        Multiply by 1 + weight.
    start, stop : int, int or None
        Columns that are normalised, H heads of D; None is W.
    y : array of shape N W, these columns of it written
        May be bfloat16; may be x itself.
    rstd : float64 array of shape N H, written
        The statistic that the backward reads.
    """
    cdef Rows given, out
    cdef Py_ssize_t n_rows, width, n_channels = weight.shape[0], heads = rstd.shape[1]
    take_rows("rmsnorm_forward", "x", x, sizeof(floating), False, &given)
    take_rows("rmsnorm_forward", "y", y, sizeof(floating), True, &out)
    n_rows, width = given.rows, given.columns
    check_columns("rmsnorm_forward", width, n_channels, heads, start, stop)
    check_length("rmsnorm_forward", "len(y)", out.rows, n_rows)
    check_length("rmsnorm_forward", "y.shape[1]", out.columns, width)
    check_length("rmsnorm_forward", "len(rstd)", rstd.shape[0], n_rows)
    if n_rows == 0 or n_channels == 0 or heads == 0:
        return
    with nogil:
        if floating is float:
            rms_rows(place(<const vf32*> given.at, start, given.narrow), width, <const vf32*> &weight[0], unit_offset,
                     eps, place(<vf32*> out.at, start, out.narrow), &rstd[0, 0], n_rows, heads, n_channels,
                     given.narrow, out.narrow)
        else:
            rms_rows(address(<const vf64*> given.at, start), width, <const vf64*> &weight[0], unit_offset, eps,
                     address(<vf64*> out.at, start), &rstd[0, 0], n_rows, heads, n_channels, False, False)
