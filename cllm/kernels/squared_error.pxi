# Squared error of each row against its target's row of a table, in float64; target -1 is ignored.
#
#     loss = sum_c (y_c - E[target]_c)^2,   dy = 2 (y - E[target]) * scale, the table held constant
#
# scale is one over the number of targets of the whole batch, so the backward writes the gradient of the mean.


cdef inline double squared_distance(const vec *y, Py_ssize_t at, const vec *weight, Py_ssize_t token_at,
                                    Py_ssize_t n) noexcept nogil:
    cdef vf64 acc[WIDE_VECTORS]
    cdef vf64 d
    cdef double tail_y[WIDE_LANES]
    cdef double tail_weight[WIDE_LANES]
    cdef Py_ssize_t i = 0, j
    for j in range(WIDE_VECTORS):
        acc[j] = splat_f64(0.0)
    while i + WIDE_LANES <= n:
        for j in range(WIDE_VECTORS):
            d = load_wide(y, at + i + j * LANES_F64) - load_wide(weight, token_at + i + j * LANES_F64)
            acc[j] = fma(d, d, acc[j])
        i += WIDE_LANES
    if i < n:
        gather_wide(y, at + i, n - i, 0.0, tail_y)
        gather_wide(weight, token_at + i, n - i, 0.0, tail_weight)
        for j in range(WIDE_VECTORS):
            d = load_f64(tail_y, j * LANES_F64) - load_f64(tail_weight, j * LANES_F64)
            acc[j] = fma(d, d, acc[j])
    return wide_tree(acc)


cdef void squared_error_rows(const vec *y, const vec *weight, const int32_t *targets, double *losses,
                             Py_ssize_t n_rows, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t r, p, rows = rows_per_piece(n_channels), pieces = (n_rows + rows - 1) // rows
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        for r in range(p * rows, min(n_rows, (p + 1) * rows)):
            if targets[r] == -1:
                losses[r] = 0.0
            else:
                losses[r] = squared_distance(y, r * n_channels, weight, targets[r] * n_channels, n_channels)


cdef int check_squared_error(str kernel, Py_ssize_t n_rows, Py_ssize_t n_channels, Py_ssize_t table_channels,
                             Py_ssize_t n_targets, Py_ssize_t n_losses) except -1:
    check_length(kernel, "weight.shape[1]", table_channels, n_channels)
    check_length(kernel, "len(targets)", n_targets, n_rows)
    check_length(kernel, "len(losses)", n_losses, n_rows)
    return 0


def squared_error_forward(const floating[:, ::1] y not None, const floating[:, ::1] weight not None,
                          const int32_t[::1] targets not None, *, double[::1] losses not None):
    """Squared distance of each row from its target's row of the table.

    Parameters
    ----------
    y : array of shape N C
    weight : array of shape V C
    targets : int32 array of shape N
        Each below V, or -1 for a row that is ignored; not checked here.
    losses : float64 array of shape N, written
        0 where the target is -1.
    """
    cdef Py_ssize_t n_rows = y.shape[0], n_channels = y.shape[1]
    check_squared_error("squared_error_forward", n_rows, n_channels, weight.shape[1], targets.shape[0],
                        losses.shape[0])
    if n_rows == 0 or n_channels == 0:
        return
    with nogil:
        if floating is float:
            squared_error_rows(<const vf32*> &y[0, 0], <const vf32*> &weight[0, 0], &targets[0], &losses[0], n_rows,
                               n_channels)
        else:
            squared_error_rows(<const vf64*> &y[0, 0], <const vf64*> &weight[0, 0], &targets[0], &losses[0], n_rows,
                               n_channels)


cdef inline void squared_gradient(const vec *y, Py_ssize_t at, const vec *weight, Py_ssize_t token_at, double scale,
                                  vec *dy, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t L = lanes(y), i = 0
    cdef vec factor = splat(y, 2.0 * scale)
    while i + L <= n:
        store(dy, at + i, (load(y, at + i) - load(weight, token_at + i)) * factor)
        i += L
    if i < n:
        L = n - i
        store_partial(dy, at + i, (load_partial(y, at + i, L) - load_partial(weight, token_at + i, L)) * factor, L)


cdef void squared_error_backward_rows(const vec *y, const vec *weight, const int32_t *targets, double scale, vec *dy,
                                      double *losses, Py_ssize_t n_rows, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t r, p, rows = rows_per_piece(n_channels), pieces = (n_rows + rows - 1) // rows
    cdef Py_ssize_t row_bytes = n_channels * (VECTOR_BYTES // lanes(y))
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        for r in range(p * rows, min(n_rows, (p + 1) * rows)):
            if targets[r] == -1:
                losses[r] = 0.0
                memset(<char*> dy + r * row_bytes, 0, row_bytes)
            else:
                losses[r] = squared_distance(y, r * n_channels, weight, targets[r] * n_channels, n_channels)
                squared_gradient(y, r * n_channels, weight, targets[r] * n_channels, scale, dy, n_channels)


def squared_error_backward(const floating[:, ::1] y not None, const floating[:, ::1] weight not None,
                           const int32_t[::1] targets not None, const double[::1] scale not None, *,
                           floating[:, ::1] dy not None, double[::1] losses not None):
    """Squared error of each row, and its gradient; the table is held constant.

    Parameters
    ----------
    y : array of shape N C
    weight : array of shape V C
    targets : int32 array of shape N
        Each below V, or -1 for a row that is ignored; not checked here.
    scale : float64 array of shape 1
        Factor of the gradient: one over the number of targets of the whole batch.
    dy : array of shape N C, written
        May be y itself; zero in a row that is ignored.
    losses : float64 array of shape N, written
        The bits of `squared_error_forward`.
    """
    cdef Py_ssize_t n_rows = y.shape[0], n_channels = y.shape[1]
    check_squared_error("squared_error_backward", n_rows, n_channels, weight.shape[1], targets.shape[0],
                        losses.shape[0])
    check_length("squared_error_backward", "len(scale)", scale.shape[0], 1)
    check_length("squared_error_backward", "len(dy)", dy.shape[0], n_rows)
    check_length("squared_error_backward", "dy.shape[1]", dy.shape[1], n_channels)
    if n_rows == 0 or n_channels == 0:
        return
    with nogil:
        if floating is float:
            squared_error_backward_rows(<const vf32*> &y[0, 0], <const vf32*> &weight[0, 0], &targets[0], scale[0],
                                        <vf32*> &dy[0, 0], &losses[0], n_rows, n_channels)
        else:
            squared_error_backward_rows(<const vf64*> &y[0, 0], <const vf64*> &weight[0, 0], &targets[0], scale[0],
                                        <vf64*> &dy[0, 0], &losses[0], n_rows, n_channels)
