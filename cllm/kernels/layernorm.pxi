# Layer norm over each row, C channels.
#
#     mean = sum_i x_i / C          rstd = 1 / sqrt(sum_i (x_i - mean)^2 / C + eps)
#     xhat = (x - mean) * rstd      y = xhat * weight + bias
#
#     g = dy * weight
#     dx      += rstd * (g - mean_i(g) - xhat * mean_i(g * xhat))
#     dweight += sum_n dy * xhat
#     dbias   += sum_n dy
#
# The statistics are float64 sums of one sweep:  d = x - shift,  mean = shift + sum(d)/C,
# variance = sum(d^2)/C - (sum(d)/C)^2. In float64 the shift is x_0: an element lies within sqrt(C) deviations of its
# own row's mean, so the difference loses at most a factor C of the precision, wherever the row stands. In float32 it is
# 0: the squares are exact in float64, and a row whose mean is r deviations loses r^2 / 2^53 of its variance, less than
# the r / 2^24 of a deviation to which its elements are rounded (while r < 2^29). xhat is taken as
# (x - high) * rstd + rest, where high is the mean in the array's dtype and rest = (high - mean) * rstd: a row far from
# zero loses nothing. Forward and backward share that function.
#
# The forward sweeps over row n+1 for its sums before it writes row n: the sums end in a chain of dependent steps (tree,
# root, division), and the processor has a row's worth of other work to do meanwhile. The backward does both in one
# sweep, which reads a row from memory while it writes another.
#
# The two sums of the backward add four terms, 32 elements apart, in the array's dtype and all the rest in float64.
# Threads split the rows for dx and the columns for dweight and dbias, in turn over blocks of rows, so the second half
# finds dy and x in L2; its sums stay in registers for all rows of a block.

from libc.math cimport sqrt

cdef extern from *:
    """
    /* Vectors of dweight and of dbias that stay in registers while rows go by: all sums in half the register file. */
    #if CLLM_REGISTERS == 32
    #define CLLM_LN_VECTORS 8
    #else
    #define CLLM_LN_VECTORS 4
    #endif
    """
    enum:
        LN_VECTORS "CLLM_LN_VECTORS"

cdef enum:
    LN_PIECES = 8           # spans of rows in a block for each thread, at least two: dy, x and dx within its level 2
    LN_COLUMNS = 128        # columns of dweight and dbias in one strip, a quarter of them where threads were idle


cdef inline Py_ssize_t block_pieces(int n_threads) noexcept nogil:
    """Spans of rows in a block, after which all threads wait for each other."""
    return LN_PIECES * max(n_threads, 2)


cdef inline vec normalized(vec x, vec high, vec rstd, vec rest) noexcept nogil:
    return fma(x - high, rstd, rest)


cdef inline double low_part(const vec *like, double s) noexcept nogil:
    """What rounding s to the element type leaves over."""
    if vec is vf32:
        return s - <double> (<float> s)
    else:
        return 0.0


cdef inline void row_statistics(const vec *x, Py_ssize_t start, Py_ssize_t n, double eps, double *mean,
                                double *rstd) noexcept nogil:
    cdef vsum acc[SUM_VECTORS]
    cdef vsum acc_square[SUM_VECTORS]
    cdef double tail[WIDE_LANES]
    cdef double shift = 0.0, offset, variance
    cdef vsum d, s, one = splat_sum(unknown_one)
    cdef Py_ssize_t i = 0, j
    if vec is vf64:
        shift = element(x, start)
    s = splat_sum(shift)
    for j in range(SUM_VECTORS):
        acc[j] = splat_sum(0.0)
        acc_square[j] = splat_sum(0.0)
    while i + WIDE_LANES <= n:
        for j in range(SUM_VECTORS):
            d = load_sum(x, start + i + j * SUM_LANES)
            if vec is vf64:
                d = d - s
            # Conversions and additions share a unit; every other addition goes to the multipliers, which have room.
            acc[j] = fma_sum(d, one, acc[j]) if j % 2 else acc[j] + d
            acc_square[j] = fma_sum(d, d, acc_square[j])
        i += WIDE_LANES
    if i < n:
        gather_wide(x, start + i, n - i, shift, tail)
        for j in range(SUM_VECTORS):
            d = load_sum_f64(tail, j * SUM_LANES) - s
            acc[j] = acc[j] + d
            acc_square[j] = fma_sum(d, d, acc_square[j])
    offset = sum_tree(acc) / n
    variance = fma_double(-offset, offset, sum_tree(acc_square) / n)
    if variance < 0.0:      # by rounding; NaN passes
        variance = 0.0
    mean[0] = shift + offset
    rstd[0] = 1.0 / sqrt(variance + eps)


cdef inline void layernorm_row(const vec *x, const vec *weight, const vec *bias, double mean, double rstd, vec *y,
                               bint far, bint narrow, Py_ssize_t start, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), i = 0
    cdef vec high = splat(x, mean), scale = splat(x, rstd), rest = splat(x, -low_part(x, mean) * rstd)
    while i + L <= n_channels:
        store_as(y, start + i, fma(normalized(load(x, start + i), high, scale, rest), load(weight, i), load(bias, i)),
                 far, narrow)
        i += L
    if i < n_channels:
        L = n_channels - i
        store_partial_as(y, start + i, fma(normalized(load_partial(x, start + i, L), high, scale, rest),
                                           load_partial(weight, i, L), load_partial(bias, i, L)), L, narrow)


cdef inline void layernorm_piece(const vec *x, const vec *weight, const vec *bias, double eps, vec *y, bint far,
                                 bint narrow, double *mean, double *rstd, Py_ssize_t first, Py_ssize_t last,
                                 Py_ssize_t n_channels) noexcept nogil:
    """Rows first .. last-1."""
    cdef Py_ssize_t n
    for n in range(first, last + 1):
        if n < last:
            row_statistics(x, n * n_channels, n_channels, eps, &mean[n], &rstd[n])
        if n > first:
            layernorm_row(x, weight, bias, mean[n - 1], rstd[n - 1], y, far, narrow, (n - 1) * n_channels,
                          n_channels)
    if far:
        stream_end()


cdef void layernorm_rows(const vec *x, const vec *weight, const vec *bias, double eps, vec *y, double *mean,
                         double *rstd, Py_ssize_t n_rows, Py_ssize_t n_channels, bint narrow) noexcept nogil:
    cdef Py_ssize_t p, rows = rows_per_piece(n_channels)
    cdef bint far = goes_far(y, n_rows * n_channels, x) and n_channels % lanes(y) == 0 and not narrow
    for p in prange((n_rows + rows - 1) // rows, num_threads=_threads, schedule="static",
                    use_threads_if=n_rows * n_channels >= PARALLEL_FROM):
        if narrow:
            layernorm_piece(x, weight, bias, eps, y, False, True, mean, rstd, p * rows, min(n_rows, (p + 1) * rows),
                            n_channels)
        else:
            layernorm_piece(x, weight, bias, eps, y, far, False, mean, rstd, p * rows, min(n_rows, (p + 1) * rows),
                            n_channels)


def layernorm_forward(const floating[:, ::1] x not None, const floating[::1] weight not None,
                      const floating[::1] bias not None, double eps, *, y, double[::1] mean not None,
                      double[::1] rstd not None):
    """Normalise each row, scale and shift it.

    Parameters
    ----------
    x : array of shape N C
    weight, bias : arrays of shape C
    eps : float
        Added to the variance, inside the root.
    y : array of shape N C, written
        May be bfloat16.
    mean, rstd : float64 arrays of shape N, written
        The statistics that the backward reads.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n_channels = x.shape[1]
    cdef Rows out
    take_rows("layernorm_forward", "y", y, sizeof(floating), True, &out)
    check_length("layernorm_forward", "len(weight)", weight.shape[0], n_channels)
    check_length("layernorm_forward", "len(bias)", bias.shape[0], n_channels)
    check_length("layernorm_forward", "len(y)", out.rows, n_rows)
    check_length("layernorm_forward", "y.shape[1]", out.columns, n_channels)
    check_length("layernorm_forward", "len(mean)", mean.shape[0], n_rows)
    check_length("layernorm_forward", "len(rstd)", rstd.shape[0], n_rows)
    if n_rows == 0 or n_channels == 0:
        return
    with nogil:
        if floating is float:
            layernorm_rows(<const vf32*> &x[0, 0], <const vf32*> &weight[0], <const vf32*> &bias[0], eps,
                           <vf32*> out.at, &mean[0], &rstd[0], n_rows, n_channels, out.narrow)
        else:
            layernorm_rows(<const vf64*> &x[0, 0], <const vf64*> &weight[0], <const vf64*> &bias[0], eps,
                           <vf64*> out.at, &mean[0], &rstd[0], n_rows, n_channels, False)


cdef inline void layernorm_terms(const vec *dy, const vec *x, const vec *weight, vec high, vec scale, vec rest,
                                 Py_ssize_t start, Py_ssize_t i, int steps, vf64 *acc_g, vf64 *acc_gx) noexcept nogil:
    """Elements i .. i + 32 steps - 1 of a row into the lanes; four terms, if not one, are added before they become float64.

    The second of four stands before the first, which changes which of their products is rounded, and nothing else.
    """
    cdef Py_ssize_t L = lanes(x), j, k, at
    cdef vec g, sum_g, sum_gx
    for j in range(WIDE_LANES // L):
        at = i + j * L
        if steps == 1:
            g = load(dy, start + at) * load(weight, at)
            wide_add(acc_g, j, g)
            wide_add_product(acc_gx, j, g, normalized(load(x, start + at), high, scale, rest))
            continue
        at += WIDE_LANES
        sum_g = load(dy, start + at) * load(weight, at)
        sum_gx = sum_g * normalized(load(x, start + at), high, scale, rest)
        for k in range(steps):
            if k == 1:
                continue
            at = i + j * L + k * WIDE_LANES
            g = load(dy, start + at) * load(weight, at)
            sum_g = sum_g + g
            sum_gx = fma(g, normalized(load(x, start + at), high, scale, rest), sum_gx)
        wide_add(acc_g, j, sum_g)
        wide_add(acc_gx, j, sum_gx)


cdef inline void layernorm_tail_terms(const vec *dy, const vec *x, const vec *weight, vec high, vec scale, vec rest,
                                      Py_ssize_t start, Py_ssize_t i, Py_ssize_t n_channels, vf64 *acc_g,
                                      vf64 *acc_gx) noexcept nogil:
    """The last elements of a row, fewer than 32; what is missing is zero."""
    cdef Py_ssize_t L = lanes(x), j = 0, have
    cdef vec g
    while i < n_channels:
        have = min(L, n_channels - i)
        g = load_partial(dy, start + i, have) * load_partial(weight, i, have)
        wide_add(acc_g, j, g)
        wide_add_product(acc_gx, j, g, normalized(load_partial(x, start + i, have), high, scale, rest))
        i += L
        j += 1


cdef inline void layernorm_row_backward(const vec *dy, const vec *x, double mean, double rstd, const vec *weight,
                                        double mean_g, double mean_gx, vec *dx, Py_ssize_t start, Py_ssize_t i,
                                        Py_ssize_t stop) noexcept nogil:
    """Elements i .. stop-1 of a row of dx; fewer than a vector only at the row's end."""
    cdef Py_ssize_t L = lanes(x)
    cdef vec high = splat(x, mean), scale = splat(x, rstd), rest = splat(x, -low_part(x, mean) * rstd)
    cdef vec minus_g = splat(x, -mean_g), of_gx = splat(x, mean_gx), xhat, d
    while i + L <= stop:
        xhat = normalized(load(x, start + i), high, scale, rest)
        d = load(dy, start + i)
        store(dx, start + i, fma(scale, fnma(xhat, of_gx, fma(d, load(weight, i), minus_g)), load(dx, start + i)))  # +=
        i += L
    if i < stop:
        L = stop - i
        xhat = normalized(load_partial(x, start + i, L), high, scale, rest)
        d = load_partial(dy, start + i, L)
        store_partial(dx, start + i, fma(scale, fnma(xhat, of_gx, fma(d, load_partial(weight, i, L), minus_g)),
                                         load_partial(dx, start + i, L)), L)                              # +=


cdef inline void layernorm_means(const vec *dy, const vec *x, const double *mean, const double *rstd,
                                 const vec *weight, vec *dx, bint behind, Py_ssize_t n, Py_ssize_t n_channels,
                                 double *mean_g, double *mean_gx) noexcept nogil:
    """Means over row n of g and of g * xhat; where `behind`, row n-1 of dx is written meanwhile from its own means."""
    cdef vf64 acc_g[WIDE_VECTORS]
    cdef vf64 acc_gx[WIDE_VECTORS]
    cdef vec high = splat(x, mean[n]), scale = splat(x, rstd[n]), rest = splat(x, -low_part(x, mean[n]) * rstd[n])
    cdef Py_ssize_t i = 0, j, step, start = n * n_channels, before = start - n_channels
    for j in range(WIDE_VECTORS):
        acc_g[j] = splat_f64(0.0)
        acc_gx[j] = splat_f64(0.0)
    while i + 4 * WIDE_LANES <= n_channels:
        layernorm_terms(dy, x, weight, high, scale, rest, start, i, 4, acc_g, acc_gx)
        if behind:
            layernorm_row_backward(dy, x, mean[n - 1], rstd[n - 1], weight, mean_g[0], mean_gx[0], dx, before, i,
                                   i + 4 * WIDE_LANES)
        i += 4 * WIDE_LANES
    step = i
    while i + WIDE_LANES <= n_channels:
        layernorm_terms(dy, x, weight, high, scale, rest, start, i, 1, acc_g, acc_gx)
        i += WIDE_LANES
    if i < n_channels:
        layernorm_tail_terms(dy, x, weight, high, scale, rest, start, i, n_channels, acc_g, acc_gx)
    if behind:
        layernorm_row_backward(dy, x, mean[n - 1], rstd[n - 1], weight, mean_g[0], mean_gx[0], dx, before, step,
                               n_channels)
    mean_g[0] = wide_tree(acc_g) / n_channels
    mean_gx[0] = wide_tree(acc_gx) / n_channels


cdef inline void layernorm_piece_backward(const vec *dy, const vec *x, const double *mean, const double *rstd,
                                          const vec *weight, vec *dx, Py_ssize_t first, Py_ssize_t last,
                                          Py_ssize_t n_channels) noexcept nogil:
    """Rows first .. last-1 of dx."""
    cdef double mean_g = 0.0, mean_gx = 0.0
    cdef Py_ssize_t n
    layernorm_means(dy, x, mean, rstd, weight, dx, False, first, n_channels, &mean_g, &mean_gx)
    for n in range(first + 1, last):
        layernorm_means(dy, x, mean, rstd, weight, dx, True, n, n_channels, &mean_g, &mean_gx)
    layernorm_row_backward(dy, x, mean[last - 1], rstd[last - 1], weight, mean_g, mean_gx, dx, (last - 1) * n_channels,
                           0, n_channels)


cdef inline void layernorm_columns(const vec *dy, const vec *x, const double *mean, const double *rstd, vec *dweight,
                                   vec *dbias, Py_ssize_t n_channels, Py_ssize_t first, Py_ssize_t last,
                                   Py_ssize_t left, int vectors) noexcept nogil:
    """Rows first .. last-1, in order, into whole vectors of dweight and dbias from column left on."""
    cdef Py_ssize_t L = lanes(x), n, at
    cdef vec high, scale, rest, d, zero = splat(x, 0.0)
    cdef vec sum_weight[LN_VECTORS]
    cdef vec sum_bias[LN_VECTORS]
    cdef int j
    for j in range(vectors):
        sum_weight[j] = load(dweight, left + j * L) if dweight != NULL else zero
        sum_bias[j] = load(dbias, left + j * L) if dbias != NULL else zero
    for n in range(first, last):
        high = splat(x, mean[n])
        scale = splat(x, rstd[n])
        rest = splat(x, -low_part(x, mean[n]) * rstd[n])
        at = n * n_channels + left
        for j in range(vectors):
            d = load(dy, at + j * L)
            sum_weight[j] = fma(d, normalized(load(x, at + j * L), high, scale, rest), sum_weight[j])     # +=
            sum_bias[j] = sum_bias[j] + d                                                                 # +=
    for j in range(vectors):
        if dweight != NULL:
            store(dweight, left + j * L, sum_weight[j])
        if dbias != NULL:
            store(dbias, left + j * L, sum_bias[j])


cdef inline void layernorm_last_columns(const vec *dy, const vec *x, const double *mean, const double *rstd,
                                        vec *dweight, vec *dbias, Py_ssize_t n_channels, Py_ssize_t first,
                                        Py_ssize_t last, Py_ssize_t left) noexcept nogil:
    """The columns from `left` on, fewer than a vector."""
    cdef Py_ssize_t n, at, have = n_channels - left
    cdef vec xhat, d, sum_weight = splat(x, 0.0), sum_bias = splat(x, 0.0)
    if dweight != NULL:
        sum_weight = load_partial(dweight, left, have)
    if dbias != NULL:
        sum_bias = load_partial(dbias, left, have)
    for n in range(first, last):
        at = n * n_channels + left
        d = load_partial(dy, at, have)
        xhat = normalized(load_partial(x, at, have), splat(x, mean[n]), splat(x, rstd[n]),
                          splat(x, -low_part(x, mean[n]) * rstd[n]))
        sum_weight = fma(d, xhat, sum_weight)                                                             # +=
        sum_bias = sum_bias + d                                                                           # +=
    if dweight != NULL:
        store_partial(dweight, left, sum_weight, have)
    if dbias != NULL:
        store_partial(dbias, left, sum_bias, have)


cdef inline void layernorm_strip(const vec *dy, const vec *x, const double *mean, const double *rstd, vec *dweight,
                                 vec *dbias, Py_ssize_t n_channels, Py_ssize_t first, Py_ssize_t last,
                                 Py_ssize_t left, Py_ssize_t right) noexcept nogil:
    """Rows first .. last-1 into the columns left .. right-1."""
    cdef Py_ssize_t L = lanes(x)
    while left + LN_VECTORS * L <= right:
        layernorm_columns(dy, x, mean, rstd, dweight, dbias, n_channels, first, last, left, LN_VECTORS)
        left += LN_VECTORS * L
    while left + L <= right:
        layernorm_columns(dy, x, mean, rstd, dweight, dbias, n_channels, first, last, left, 1)
        left += L
    if left < right:
        layernorm_last_columns(dy, x, mean, rstd, dweight, dbias, n_channels, first, last, left)


cdef void layernorm_backward_blocks(const vec *dy, const vec *x, const double *mean, const double *rstd,
                                    const vec *weight, vec *dx, vec *dweight, vec *dbias, Py_ssize_t n_rows,
                                    Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t rows = rows_per_piece(n_channels), first = 0, last, p, strips = 0
    cdef int n_threads = _threads if n_rows * n_channels >= PARALLEL_FROM else 1
    cdef Py_ssize_t columns = LN_COLUMNS if n_threads <= 2 or n_channels > LN_COLUMNS * (n_threads - 1) else LN_COLUMNS // 4
    if dweight != NULL or dbias != NULL:
        strips = (n_channels + columns - 1) // columns
    while first < n_rows:
        last = min(n_rows, first + block_pieces(n_threads) * rows)
        with parallel(num_threads=n_threads):
            for p in prange((last - first + rows - 1) // rows, schedule="static"):
                layernorm_piece_backward(dy, x, mean, rstd, weight, dx, first + p * rows,
                                         min(last, first + (p + 1) * rows), n_channels)
            for p in prange(strips, schedule="static"):
                layernorm_strip(dy, x, mean, rstd, dweight, dbias, n_channels, first, last, p * columns,
                                min(n_channels, (p + 1) * columns))
        first = last


def layernorm_backward(const floating[:, ::1] dy not None, const floating[:, ::1] x not None,
                       const double[::1] mean not None, const double[::1] rstd not None,
                       const floating[::1] weight not None, *, floating[:, ::1] dx not None,
                       floating[::1] dweight, floating[::1] dbias):
    """Gradients of layer norm, from its input and its statistics.

    Parameters
    ----------
    dy, x : arrays of shape N C
    mean, rstd : float64 arrays of shape N
        As the forward wrote them.
    weight : array of shape C
    dx : array of shape N C, added to
    dweight, dbias : arrays of shape C, added to; or None, where nobody wants it
        Rows are added in order.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n_channels = x.shape[1]
    cdef floating *of_weight = NULL
    cdef floating *of_bias = NULL
    check_length("layernorm_backward", "len(dy)", dy.shape[0], n_rows)
    check_length("layernorm_backward", "dy.shape[1]", dy.shape[1], n_channels)
    check_length("layernorm_backward", "len(mean)", mean.shape[0], n_rows)
    check_length("layernorm_backward", "len(rstd)", rstd.shape[0], n_rows)
    check_length("layernorm_backward", "len(weight)", weight.shape[0], n_channels)
    check_length("layernorm_backward", "len(dx)", dx.shape[0], n_rows)
    check_length("layernorm_backward", "dx.shape[1]", dx.shape[1], n_channels)
    if dweight is not None:
        check_length("layernorm_backward", "len(dweight)", dweight.shape[0], n_channels)
    if dbias is not None:
        check_length("layernorm_backward", "len(dbias)", dbias.shape[0], n_channels)
    if n_rows == 0 or n_channels == 0:
        return
    if dweight is not None:
        of_weight = &dweight[0]
    if dbias is not None:
        of_bias = &dbias[0]
    with nogil:
        if floating is float:
            layernorm_backward_blocks(<const vf32*> &dy[0, 0], <const vf32*> &x[0, 0], &mean[0], &rstd[0],
                                      <const vf32*> &weight[0], <vf32*> &dx[0, 0], <vf32*> of_weight, <vf32*> of_bias,
                                      n_rows, n_channels)
        else:
            layernorm_backward_blocks(<const vf64*> &dy[0, 0], <const vf64*> &x[0, 0], &mean[0], &rstd[0],
                                      <const vf64*> &weight[0], <vf64*> &dx[0, 0], <vf64*> of_weight, <vf64*> of_bias,
                                      n_rows, n_channels)
