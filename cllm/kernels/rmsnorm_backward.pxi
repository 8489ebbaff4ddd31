# The backward of RMS norm; what it computes stands in rmsnorm.pxi.
#
# One sweep finds the mean of a piece and writes dx of the piece before, as layer norm does. Threads split the rows for
# dx and the columns for dweight, in turn over blocks of rows, so the second half finds dy and x in L2; where dx takes
# the place of dy, the columns come first.


cdef inline void rms_terms(const vec *dy, const vec *x, const vec *weight, vec more, vec scale, Py_ssize_t at,
                           Py_ssize_t i, int steps, vf64 *acc, bint narrow) noexcept nogil:
    """g * xhat of elements i .. i + 32 steps - 1 into the lanes; `steps` terms are added before they become float64."""
    cdef Py_ssize_t L = lanes(x), j, k, c
    cdef vec total
    for j in range(WIDE_LANES // L):
        c = i + j * L
        total = load(dy, at + c) * (load(weight, c) + more) * (load_as(x, at + c, narrow) * scale)
        for k in range(1, steps):
            c = i + j * L + k * WIDE_LANES
            total = fma(load(dy, at + c) * (load(weight, c) + more), load_as(x, at + c, narrow) * scale, total)
        wide_add(acc, j, total)


cdef inline void rms_tail_terms(const vec *dy, const vec *x, const vec *weight, vec more, vec scale, Py_ssize_t at,
                                Py_ssize_t i, Py_ssize_t n_channels, vf64 *acc, bint narrow) noexcept nogil:
    """The last elements, fewer than 32; what is missing is zero."""
    cdef Py_ssize_t L = lanes(x), j = 0, have
    while i < n_channels:
        have = min(L, n_channels - i)
        wide_add(acc, j, load_partial(dy, at + i, have) * (load_partial(weight, i, have) + more)
                 * (load_partial_as(x, at + i, have, narrow) * scale))
        i += L
        j += 1


cdef inline void rms_row_backward(const vec *dy, const vec *x, double rstd, const vec *weight, double offset,
                                  double mean, bint add, vec *dx, Py_ssize_t at, Py_ssize_t i,
                                  Py_ssize_t stop, bint narrow) noexcept nogil:
    """Elements i .. stop-1 of dx; fewer than a vector only at the end."""
    cdef Py_ssize_t L = lanes(x)
    cdef vec scale = splat(x, rstd), more = splat(x, offset), of_gx = splat(x, mean), zero = splat(x, 0.0), g, d
    while i + L <= stop:
        g = load(dy, at + i) * (load(weight, i) + more)
        d = load(dx, at + i) if add else zero
        store(dx, at + i, fma(scale, fnma(load_as(x, at + i, narrow) * scale, of_gx, g), d))  # +=
        i += L
    if i < stop:
        L = stop - i
        g = load_partial(dy, at + i, L) * (load_partial(weight, i, L) + more)
        d = load_partial(dx, at + i, L) if add else zero
        store_partial(dx, at + i, fma(scale, fnma(load_partial_as(x, at + i, L, narrow) * scale, of_gx, g), d), L)  # +=


cdef inline double rms_mean(const vec *dy, const vec *x, double rstd, const vec *weight, double offset, bint add,
                            vec *dx, Py_ssize_t at, Py_ssize_t before, double rstd_before, double mean_before,
                            Py_ssize_t n_channels, bint narrow) noexcept nogil:
    """Mean of g * xhat over the piece `at`; meanwhile the piece `before` of dx is written, unless that is negative."""
    cdef vf64 acc[WIDE_VECTORS]
    cdef vec scale = splat(x, rstd), more = splat(x, offset)
    cdef Py_ssize_t i = 0, j, written
    for j in range(WIDE_VECTORS):
        acc[j] = splat_f64(0.0)
    while i + 4 * WIDE_LANES <= n_channels:
        rms_terms(dy, x, weight, more, scale, at, i, 4, acc, narrow)
        if before >= 0:
            rms_row_backward(dy, x, rstd_before, weight, offset, mean_before, add, dx, before, i, i + 4 * WIDE_LANES,
                             narrow)
        i += 4 * WIDE_LANES
    written = i
    while i + WIDE_LANES <= n_channels:
        rms_terms(dy, x, weight, more, scale, at, i, 1, acc, narrow)
        i += WIDE_LANES
    if i < n_channels:
        rms_tail_terms(dy, x, weight, more, scale, at, i, n_channels, acc, narrow)
    if before >= 0:
        rms_row_backward(dy, x, rstd_before, weight, offset, mean_before, add, dx, before, written, n_channels, narrow)
    return wide_tree(acc) / n_channels


cdef inline void rms_piece_backward(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd,
                                    const vec *weight, double offset, bint add, vec *dx, Py_ssize_t first,
                                    Py_ssize_t last, Py_ssize_t heads, Py_ssize_t n_channels,
                                    bint narrow) noexcept nogil:
    """Rows first .. last-1 of dx."""
    cdef Py_ssize_t n, h, at, before = -1, item = first * heads
    cdef double mean = 0.0, rstd_before = 0.0
    for n in range(first, last):
        for h in range(heads):
            at = n * width + h * n_channels
            mean = rms_mean(dy, x, rstd[item], weight, offset, add, dx, at, before, rstd_before, mean, n_channels,
                            narrow)
            before = at
            rstd_before = rstd[item]
            item += 1
    rms_row_backward(dy, x, rstd_before, weight, offset, mean, add, dx, before, 0, n_channels, narrow)


cdef inline void rms_columns(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd, vec *dweight,
                             Py_ssize_t first, Py_ssize_t last, Py_ssize_t heads, Py_ssize_t n_channels,
                             Py_ssize_t left, int vectors, bint narrow) noexcept nogil:
    """Rows first .. last-1 and their heads, in order, into whole vectors of dweight from channel left on."""
    cdef Py_ssize_t L = lanes(x), n, h, at
    cdef vec scale
    cdef vec total[LN_VECTORS]
    cdef int j
    for j in range(vectors):
        total[j] = load(dweight, left + j * L)
    for n in range(first, last):
        for h in range(heads):
            scale = splat(x, rstd[n * heads + h])
            at = n * width + h * n_channels + left
            for j in range(vectors):
                total[j] = fma(load(dy, at + j * L), load_as(x, at + j * L, narrow) * scale, total[j])  # +=
    for j in range(vectors):
        store(dweight, left + j * L, total[j])


cdef inline void rms_last_columns(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd, vec *dweight,
                                  Py_ssize_t first, Py_ssize_t last, Py_ssize_t heads, Py_ssize_t n_channels,
                                  Py_ssize_t left, bint narrow) noexcept nogil:
    """The channels from `left` on, fewer than a vector."""
    cdef Py_ssize_t n, h, at, have = n_channels - left
    cdef vec total = load_partial(dweight, left, have)
    for n in range(first, last):
        for h in range(heads):
            at = n * width + h * n_channels + left
            total = fma(load_partial(dy, at, have),
                        load_partial_as(x, at, have, narrow) * splat(x, rstd[n * heads + h]), total)
    store_partial(dweight, left, total, have)  # +=


cdef inline void rms_strip(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd, vec *dweight,
                           Py_ssize_t first, Py_ssize_t last, Py_ssize_t heads, Py_ssize_t n_channels,
                           Py_ssize_t left, Py_ssize_t right, bint narrow) noexcept nogil:
    """Rows first .. last-1 into channels left .. right-1 of dweight."""
    cdef Py_ssize_t L = lanes(x)
    while left + LN_VECTORS * L <= right:
        rms_columns(dy, x, width, rstd, dweight, first, last, heads, n_channels, left, LN_VECTORS, narrow)
        left += LN_VECTORS * L
    while left + L <= right:
        rms_columns(dy, x, width, rstd, dweight, first, last, heads, n_channels, left, 1, narrow)
        left += L
    if left < right:
        rms_last_columns(dy, x, width, rstd, dweight, first, last, heads, n_channels, left, narrow)


cdef void rms_either_strip(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd, vec *dweight,
                           Py_ssize_t first, Py_ssize_t last, Py_ssize_t heads, Py_ssize_t n_channels,
                           Py_ssize_t left, Py_ssize_t right, bint narrow) noexcept nogil:
    if narrow:
        rms_strip(dy, x, width, rstd, dweight, first, last, heads, n_channels, left, right, True)
    else:
        rms_strip(dy, x, width, rstd, dweight, first, last, heads, n_channels, left, right, False)


cdef void rms_backward_blocks(const vec *dy, const vec *x, Py_ssize_t width, const double *rstd, const vec *weight,
                              double offset, bint add, vec *dx, vec *dweight, Py_ssize_t n_rows, Py_ssize_t heads,
                              Py_ssize_t n_channels, bint narrow) noexcept nogil:
    cdef int n_threads = _threads if n_rows * heads * n_channels >= PARALLEL_FROM else 1
    # A head is narrower than a strip of the columns of a row, and has to make work for several threads, too.
    cdef Py_ssize_t columns = LN_COLUMNS if n_channels > LN_COLUMNS * max(2, n_threads - 1) else LN_COLUMNS // 4
    cdef Py_ssize_t rows = rows_per_piece(heads * n_channels), first = 0, last, p
    cdef Py_ssize_t strips = (n_channels + columns - 1) // columns if dweight != NULL else 0
    cdef bint columns_first = dx == dy
    while first < n_rows:
        last = min(n_rows, first + block_pieces(n_threads) * rows)
        with parallel(num_threads=n_threads):
            for p in prange(strips if columns_first else 0, schedule="static"):
                rms_either_strip(dy, x, width, rstd, dweight, first, last, heads, n_channels, p * columns,
                                 min(n_channels, (p + 1) * columns), narrow)
            for p in prange((last - first + rows - 1) // rows, schedule="static"):
                if narrow:
                    rms_piece_backward(dy, x, width, rstd, weight, offset, add, dx, first + p * rows,
                                       min(last, first + (p + 1) * rows), heads, n_channels, True)
                else:
                    rms_piece_backward(dy, x, width, rstd, weight, offset, add, dx, first + p * rows,
                                       min(last, first + (p + 1) * rows), heads, n_channels, False)
            for p in prange(0 if columns_first else strips, schedule="static"):
                rms_either_strip(dy, x, width, rstd, dweight, first, last, heads, n_channels, p * columns,
                                 min(n_channels, (p + 1) * columns), narrow)
        first = last


def rmsnorm_backward(const floating[:, ::1] dy not None, x, const double[:, ::1] rstd not None,
                     const floating[::1] weight not None, bint unit_offset=False, bint add=True,
                     Py_ssize_t start=0, stop=None, *, floating[:, ::1] dx not None, floating[::1] dweight):
    """Gradients of RMS norm, from its input and its statistic.

    Parameters
    ----------
    dy, x : arrays of shape N W
        x may be bfloat16.
    rstd : float64 array of shape N H
        As the forward wrote it.
    weight : array of shape D
    unit_offset, start, stop : as in `rmsnorm_forward`
    add : bool
        Add to dx rather than write it.
    dx : array of shape N W, these columns of it added to, or written
        Where it is written, it may be dy itself.
    dweight : array of shape D, added to; or None, where nobody wants it
    """
    cdef Rows given
    cdef Py_ssize_t n_rows = dy.shape[0], width, n_channels = weight.shape[0], heads = rstd.shape[1]
    cdef floating *out = NULL
    take_rows("rmsnorm_backward", "x", x, sizeof(floating), False, &given)
    width = given.columns
    check_columns("rmsnorm_backward", width, n_channels, heads, start, stop)
    check_length("rmsnorm_backward", "len(dy)", n_rows, given.rows)
    check_length("rmsnorm_backward", "dy.shape[1]", dy.shape[1], width)
    check_length("rmsnorm_backward", "len(rstd)", rstd.shape[0], n_rows)
    check_length("rmsnorm_backward", "len(dx)", dx.shape[0], n_rows)
    check_length("rmsnorm_backward", "dx.shape[1]", dx.shape[1], width)
    if dweight is not None:
        check_length("rmsnorm_backward", "len(dweight)", dweight.shape[0], n_channels)
    if n_rows == 0 or n_channels == 0 or heads == 0:
        return
    if dweight is not None:
        out = &dweight[0]
    with nogil:
        if floating is float:
            rms_backward_blocks(<const vf32*> &dy[0, start], place(<const vf32*> given.at, start, given.narrow),
                                width, &rstd[0, 0], <const vf32*> &weight[0], unit_offset, add, <vf32*> &dx[0, start],
                                <vf32*> out, n_rows, heads, n_channels, given.narrow)
        else:
            rms_backward_blocks(<const vf64*> &dy[0, start], address(<const vf64*> given.at, start), width,
                                &rstd[0, 0], <const vf64*> &weight[0], unit_offset, add, <vf64*> &dx[0, start],
                                <vf64*> out, n_rows, heads, n_channels, False)
