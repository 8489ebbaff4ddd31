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
# Every sum over a row is in float64. x - mean is taken as (x - high) - low with high + low = mean in the array's dtype:
# a row far from zero loses nothing. Forward and backward take xhat from the same function. The backward's two halves,
# rows for dx and columns for dweight and dbias, alternate over blocks of rows, so the second finds dy and x in L2/L3.

from libc.math cimport sqrt

cdef enum:
    LN_BLOCK = 131072       # elements of dy in one block of rows
    LN_COLUMNS = 128        # columns of dweight and dbias in one piece


cdef inline vec normalized(vec x, vec high, vec low, vec rstd) noexcept nogil:
    return ((x - high) - low) * rstd


cdef inline double low_part(const vec *like, double s) noexcept nogil:
    """What rounding s to the element type leaves over."""
    if vec is vf32:
        return s - <double> (<float> s)
    else:
        return 0.0


cdef inline void layernorm_row(const vec *x, const vec *weight, const vec *bias, double eps, vec *y, double *mean,
                               double *rstd, Py_ssize_t n, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), i = 0, start = n * n_channels
    cdef double m = wide_sum(x, start, n_channels) / n_channels
    cdef double r = 1.0 / sqrt(wide_squares(x, start, n_channels, m) / n_channels + eps)
    cdef vec high = splat(x, m), low = splat(x, low_part(x, m)), scale = splat(x, r)
    mean[n] = m
    rstd[n] = r
    while i + L <= n_channels:
        store(y, start + i, normalized(load(x, start + i), high, low, scale) * load(weight, i) + load(bias, i))
        i += L
    if i < n_channels:
        L = n_channels - i
        store_partial(y, start + i, normalized(load_partial(x, start + i, L), high, low, scale)
                      * load_partial(weight, i, L) + load_partial(bias, i, L), L)


cdef void layernorm_rows(const vec *x, const vec *weight, const vec *bias, double eps, vec *y, double *mean,
                         double *rstd, Py_ssize_t n_rows, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t n, p, rows = rows_per_piece(n_channels), pieces = (n_rows + rows - 1) // rows
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        for n in range(p * rows, min(n_rows, (p + 1) * rows)):
            layernorm_row(x, weight, bias, eps, y, mean, rstd, n, n_channels)


def layernorm_forward(const floating[:, ::1] x not None, const floating[::1] weight not None,
                      const floating[::1] bias not None, double eps, *, floating[:, ::1] y not None,
                      double[::1] mean not None, double[::1] rstd not None):
    """Normalise each row, scale and shift it.

    Parameters
    ----------
    x : array of shape N C
    weight, bias : arrays of shape C
    eps : float
        Added to the variance, inside the root.
    y : array of shape N C, written
    mean, rstd : float64 arrays of shape N, written
        The statistics that the backward reads.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n_channels = x.shape[1]
    check_length("layernorm_forward", "len(weight)", weight.shape[0], n_channels)
    check_length("layernorm_forward", "len(bias)", bias.shape[0], n_channels)
    check_length("layernorm_forward", "len(y)", y.shape[0], n_rows)
    check_length("layernorm_forward", "y.shape[1]", y.shape[1], n_channels)
    check_length("layernorm_forward", "len(mean)", mean.shape[0], n_rows)
    check_length("layernorm_forward", "len(rstd)", rstd.shape[0], n_rows)
    if n_rows == 0 or n_channels == 0:
        return
    with nogil:
        if floating is float:
            layernorm_rows(<const vf32*> &x[0, 0], <const vf32*> &weight[0], <const vf32*> &bias[0], eps,
                           <vf32*> &y[0, 0], &mean[0], &rstd[0], n_rows, n_channels)
        else:
            layernorm_rows(<const vf64*> &x[0, 0], <const vf64*> &weight[0], <const vf64*> &bias[0], eps,
                           <vf64*> &y[0, 0], &mean[0], &rstd[0], n_rows, n_channels)


cdef inline void layernorm_sums(const vec *dy, const vec *x, double mean, double rstd, const vec *weight,
                                Py_ssize_t start, Py_ssize_t n_channels, double *sum_g, double *sum_gx) noexcept nogil:
    """Sums over one row of g and of g * xhat, in float64."""
    cdef vf64 acc_g[WIDE_VECTORS]
    cdef vf64 acc_gx[WIDE_VECTORS]
    cdef vf64 g, m = splat_f64(mean), r = splat_f64(rstd)
    cdef double tail_dy[WIDE_LANES]
    cdef double tail_x[WIDE_LANES]
    cdef double tail_weight[WIDE_LANES]
    cdef Py_ssize_t i = 0, j
    for j in range(WIDE_VECTORS):
        acc_g[j] = splat_f64(0.0)
        acc_gx[j] = splat_f64(0.0)
    while i + WIDE_LANES <= n_channels:
        for j in range(WIDE_VECTORS):
            g = load_wide(dy, start + i + j * LANES_F64) * load_wide(weight, i + j * LANES_F64)
            acc_g[j] = acc_g[j] + g
            acc_gx[j] = g * ((load_wide(x, start + i + j * LANES_F64) - m) * r) + acc_gx[j]
        i += WIDE_LANES
    if i < n_channels:
        gather_wide(dy, start + i, n_channels - i, 0.0, tail_dy)
        gather_wide(x, start + i, n_channels - i, mean, tail_x)
        gather_wide(weight, i, n_channels - i, 0.0, tail_weight)
        for j in range(WIDE_VECTORS):
            g = load_f64(tail_dy, j * LANES_F64) * load_f64(tail_weight, j * LANES_F64)
            acc_g[j] = acc_g[j] + g
            acc_gx[j] = g * ((load_f64(tail_x, j * LANES_F64) - m) * r) + acc_gx[j]
    sum_g[0] = wide_tree(acc_g)
    sum_gx[0] = wide_tree(acc_gx)


cdef inline void layernorm_row_backward(const vec *dy, const vec *x, double mean, double rstd, const vec *weight,
                                        vec *dx, Py_ssize_t start, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), i = 0
    cdef double sum_g = 0.0, sum_gx = 0.0
    cdef vec high = splat(x, mean), low = splat(x, low_part(x, mean)), scale = splat(x, rstd), mean_g, mean_gx, xhat
    layernorm_sums(dy, x, mean, rstd, weight, start, n_channels, &sum_g, &sum_gx)
    mean_g = splat(x, sum_g / n_channels)
    mean_gx = splat(x, sum_gx / n_channels)
    while i + L <= n_channels:
        xhat = normalized(load(x, start + i), high, low, scale)
        store(dx, start + i, scale * ((load(dy, start + i) * load(weight, i) - mean_g) - xhat * mean_gx)
              + load(dx, start + i))                                                                      # +=
        i += L
    if i < n_channels:
        L = n_channels - i
        xhat = normalized(load_partial(x, start + i, L), high, low, scale)
        store_partial(dx, start + i, scale * ((load_partial(dy, start + i, L) * load_partial(weight, i, L) - mean_g)
                      - xhat * mean_gx) + load_partial(dx, start + i, L), L)                              # +=


cdef inline void layernorm_columns(const vec *dy, const vec *x, const double *mean, const double *rstd, vec *dweight,
                                   vec *dbias, Py_ssize_t n_channels, Py_ssize_t first, Py_ssize_t last,
                                   Py_ssize_t left, Py_ssize_t right) noexcept nogil:
    """Rows first .. last-1, in order, into columns left .. right-1 of dweight and dbias."""
    cdef Py_ssize_t L = lanes(x), n, i, at, tail
    cdef vec high, low, scale, d
    for n in range(first, last):
        high = splat(x, mean[n])
        low = splat(x, low_part(x, mean[n]))
        scale = splat(x, rstd[n])
        at = n * n_channels
        i = left
        while i + L <= right:
            d = load(dy, at + i)
            store(dweight, i, d * normalized(load(x, at + i), high, low, scale) + load(dweight, i))       # +=
            store(dbias, i, load(dbias, i) + d)                                                           # +=
            i += L
        if i < right:
            tail = right - i
            d = load_partial(dy, at + i, tail)
            store_partial(dweight, i, d * normalized(load_partial(x, at + i, tail), high, low, scale)
                          + load_partial(dweight, i, tail), tail)                                         # +=
            store_partial(dbias, i, load_partial(dbias, i, tail) + d, tail)                               # +=


cdef void layernorm_backward_blocks(const vec *dy, const vec *x, const double *mean, const double *rstd,
                                    const vec *weight, vec *dx, vec *dweight, vec *dbias, Py_ssize_t n_rows,
                                    Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t block = max(<Py_ssize_t> 1, LN_BLOCK // n_channels), first = 0, last, n, p
    cdef Py_ssize_t pieces = (n_channels + LN_COLUMNS - 1) // LN_COLUMNS
    while first < n_rows:
        last = min(n_rows, first + block)
        for n in prange(first, last, num_threads=_threads, use_threads_if=(last - first) * n_channels >= PARALLEL_FROM,
                        schedule="static"):
            layernorm_row_backward(dy, x, mean[n], rstd[n], weight, dx, n * n_channels, n_channels)
        for p in prange(pieces, num_threads=_threads, use_threads_if=(last - first) * n_channels >= PARALLEL_FROM,
                        schedule="static"):
            layernorm_columns(dy, x, mean, rstd, dweight, dbias, n_channels, first, last, p * LN_COLUMNS,
                              min(n_channels, (p + 1) * LN_COLUMNS))
        first = last


def layernorm_backward(const floating[:, ::1] dy not None, const floating[:, ::1] x not None,
                       const double[::1] mean not None, const double[::1] rstd not None,
                       const floating[::1] weight not None, *, floating[:, ::1] dx not None,
                       floating[::1] dweight not None, floating[::1] dbias not None):
    """Gradients of layer norm, from its input and its statistics.

    Parameters
    ----------
    dy, x : arrays of shape N C
    mean, rstd : float64 arrays of shape N
        As the forward wrote them.
    weight : array of shape C
    dx : array of shape N C, added to
    dweight, dbias : arrays of shape C, added to
        Rows are added in order.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n_channels = x.shape[1]
    check_length("layernorm_backward", "len(dy)", dy.shape[0], n_rows)
    check_length("layernorm_backward", "dy.shape[1]", dy.shape[1], n_channels)
    check_length("layernorm_backward", "len(mean)", mean.shape[0], n_rows)
    check_length("layernorm_backward", "len(rstd)", rstd.shape[0], n_rows)
    check_length("layernorm_backward", "len(weight)", weight.shape[0], n_channels)
    check_length("layernorm_backward", "len(dx)", dx.shape[0], n_rows)
    check_length("layernorm_backward", "dx.shape[1]", dx.shape[1], n_channels)
    check_length("layernorm_backward", "len(dweight)", dweight.shape[0], n_channels)
    check_length("layernorm_backward", "len(dbias)", dbias.shape[0], n_channels)
    if n_rows == 0 or n_channels == 0:
        return
    with nogil:
        if floating is float:
            layernorm_backward_blocks(<const vf32*> &dy[0, 0], <const vf32*> &x[0, 0], &mean[0], &rstd[0],
                                      <const vf32*> &weight[0], <vf32*> &dx[0, 0], <vf32*> &dweight[0],
                                      <vf32*> &dbias[0], n_rows, n_channels)
        else:
            layernorm_backward_blocks(<const vf64*> &dy[0, 0], <const vf64*> &x[0, 0], &mean[0], &rstd[0],
                                      <const vf64*> &weight[0], <vf64*> &dx[0, 0], <vf64*> &dweight[0],
                                      <vf64*> &dbias[0], n_rows, n_channels)
