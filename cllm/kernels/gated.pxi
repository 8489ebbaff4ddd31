# Gated activation (Shazeer, 2020): half of the columns pass through an activation and scale the other half.
#
#     y[n, f]      = act(x[n, f]) x[n, F + f]                       columns gate | up
#     dx[n, f]     = dy[n, f] x[n, F + f] act'(x[n, f]),   dx[n, F + f] = dy[n, f] act(x[n, f])
#
# The backward has the value from the exponential of the slope (activation.pxi).


cdef inline void gated_row(const vec *x, int kind, vec *y, bint far, bint x_narrow, bint y_narrow, Py_ssize_t n,
                           Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), gate = 2 * n * width, up = gate + width, at = n * width, i = 0
    while i + L <= width:
        store_as(y, at + i, activate(x, kind, load_as(x, gate + i, x_narrow)) * load_as(x, up + i, x_narrow), far,
                 y_narrow)
        i += L
    if i < width:
        L = width - i
        store_partial_as(y, at + i, activate(x, kind, load_partial_as(x, gate + i, L, x_narrow))
                         * load_partial_as(x, up + i, L, x_narrow), L, y_narrow)


cdef inline void gated_rows(const vec *x, int kind, vec *y, bint far, bint x_narrow, bint y_narrow, Py_ssize_t first,
                            Py_ssize_t last, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t n
    for n in range(first, last):
        gated_row(x, kind, y, far, x_narrow, y_narrow, n, width)
    if far:
        stream_end()


cdef inline void gated_kinds(const vec *x, int kind, vec *y, bint far, bint x_narrow, bint y_narrow, Py_ssize_t first,
                             Py_ssize_t last, Py_ssize_t width) noexcept nogil:
    """One loop for each kind: the choice is made outside the loop."""
    if kind == GELU:
        gated_rows(x, GELU, y, far, x_narrow, y_narrow, first, last, width)
    elif kind == RELU:
        gated_rows(x, RELU, y, far, x_narrow, y_narrow, first, last, width)
    elif kind == TANH:
        gated_rows(x, TANH, y, far, x_narrow, y_narrow, first, last, width)
    elif kind == SILU:
        gated_rows(x, SILU, y, far, x_narrow, y_narrow, first, last, width)
    else:
        gated_rows(x, GELU_ERF, y, far, x_narrow, y_narrow, first, last, width)


cdef void gated_pieces(const vec *x, int kind, vec *y, Py_ssize_t n_rows, Py_ssize_t width, bint x_narrow,
                       bint y_narrow) noexcept nogil:
    cdef Py_ssize_t p, first, last, rows = rows_per_piece(width)
    cdef bint far = goes_far(y, n_rows * width, x) and width % lanes(y) == 0 and not y_narrow
    for p in prange((n_rows + rows - 1) // rows, num_threads=_threads, use_threads_if=n_rows * width >= PARALLEL_FROM,
                    schedule="static"):
        first = p * rows
        last = min(n_rows, first + rows)
        if x_narrow or y_narrow:
            gated_kinds(x, kind, y, far, x_narrow, y_narrow, first, last, width)
        else:
            gated_kinds(x, kind, y, far, False, False, first, last, width)


def gated_forward(x, int kind, *, y):
    """The activation of the first half of the columns, times the second half.

    Parameters
    ----------
    x : array of shape N 2F
        May be bfloat16.
    kind : int
        As in `activation_forward`.
    y : array of shape N F, written
        May be bfloat16.
    """
    cdef Py_ssize_t itemsize = itemsize_of(x), n_rows, width
    cdef Rows given, out
    take_rows("gated_forward", "x", x, itemsize, False, &given)
    take_rows("gated_forward", "y", y, itemsize, True, &out)
    n_rows, width = given.rows, out.columns
    check_kind("gated_forward", kind)
    check_length("gated_forward", "len(y)", out.rows, n_rows)
    check_length("gated_forward", "x.shape[1]", given.columns, 2 * width)
    if n_rows * width == 0:
        return
    with nogil:
        if itemsize == sizeof(float):
            gated_pieces(<const vf32*> given.at, kind, <vf32*> out.at, n_rows, width, given.narrow, out.narrow)
        else:
            gated_pieces(<const vf64*> given.at, kind, <vf64*> out.at, n_rows, width, False, False)


# --- backward ---------------------------------------------------------------------------------------------------------

cdef inline void gated_row_backward(const vec *dy, const vec *x, int kind, vec *dx, bint far, bint narrow, Py_ssize_t n,
                                    Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t L = lanes(x), gate = 2 * n * width, up = gate + width, at = n * width, i = 0
    cdef vec d, u, slope, value
    while i + L <= width:
        d = load(dy, at + i)
        u = load_as(x, up + i, narrow)
        slope = activate_slope(x, kind, load_as(x, gate + i, narrow), &value)
        store_far(dx, gate + i, d * u * slope, far)
        store_far(dx, up + i, d * value, far)
        i += L
    if i < width:
        L = width - i
        d = load_partial(dy, at + i, L)
        u = load_partial_as(x, up + i, L, narrow)
        slope = activate_slope(x, kind, load_partial_as(x, gate + i, L, narrow), &value)
        store_partial(dx, gate + i, d * u * slope, L)
        store_partial(dx, up + i, d * value, L)


cdef inline void gated_rows_backward(const vec *dy, const vec *x, int kind, vec *dx, bint far, bint narrow,
                                     Py_ssize_t first, Py_ssize_t last, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t n
    for n in range(first, last):
        gated_row_backward(dy, x, kind, dx, far, narrow, n, width)
    if far:
        stream_end()


cdef inline void gated_kinds_backward(const vec *dy, const vec *x, int kind, vec *dx, bint far, bint narrow,
                                      Py_ssize_t first, Py_ssize_t last, Py_ssize_t width) noexcept nogil:
    if kind == GELU:
        gated_rows_backward(dy, x, GELU, dx, far, narrow, first, last, width)
    elif kind == RELU:
        gated_rows_backward(dy, x, RELU, dx, far, narrow, first, last, width)
    elif kind == TANH:
        gated_rows_backward(dy, x, TANH, dx, far, narrow, first, last, width)
    elif kind == SILU:
        gated_rows_backward(dy, x, SILU, dx, far, narrow, first, last, width)
    else:
        gated_rows_backward(dy, x, GELU_ERF, dx, far, narrow, first, last, width)


cdef void gated_pieces_backward(const vec *dy, const vec *x, int kind, vec *dx, Py_ssize_t n_rows, Py_ssize_t width,
                                bint narrow) noexcept nogil:
    cdef Py_ssize_t p, first, last, rows = rows_per_piece(width)
    cdef bint far = goes_far(dx, 2 * n_rows * width, x) and width % lanes(dx) == 0
    for p in prange((n_rows + rows - 1) // rows, num_threads=_threads, use_threads_if=n_rows * width >= PARALLEL_FROM,
                    schedule="static"):
        first = p * rows
        last = min(n_rows, first + rows)
        if narrow:
            gated_kinds_backward(dy, x, kind, dx, far, True, first, last, width)
        else:
            gated_kinds_backward(dy, x, kind, dx, far, False, first, last, width)


def gated_backward(const floating[:, ::1] dy not None, x, int kind, *, floating[:, ::1] dx not None):
    """The gradients of both halves.

    Parameters
    ----------
    dy : array of shape N F
    x : array of shape N 2F
        The input of the forward; may be bfloat16.
    kind : int
        As in `activation_forward`; relu's derivative is 0 at the kink.
    dx : array of shape N 2F, written
        May be x itself.
    """
    cdef Py_ssize_t n_rows = dy.shape[0], width = dy.shape[1]
    cdef Rows given
    take_rows("gated_backward", "x", x, sizeof(floating), False, &given)
    check_kind("gated_backward", kind)
    check_length("gated_backward", "len(x)", given.rows, n_rows)
    check_length("gated_backward", "x.shape[1]", given.columns, 2 * width)
    check_length("gated_backward", "len(dx)", dx.shape[0], n_rows)
    check_length("gated_backward", "dx.shape[1]", dx.shape[1], 2 * width)
    if n_rows * width == 0:
        return
    with nogil:
        if floating is float:
            gated_pieces_backward(<const vf32*> &dy[0, 0], <const vf32*> given.at, kind, <vf32*> &dx[0, 0], n_rows,
                                  width, given.narrow)
        else:
            gated_pieces_backward(<const vf64*> &dy[0, 0], <const vf64*> given.at, kind, <vf64*> &dx[0, 0], n_rows,
                                  width, False)
