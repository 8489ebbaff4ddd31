# Sums element by element: the residual addition y = x + s branch, whose gradients are dy and s dy (the second by
# `scale_and_cap`, where s is not 1), and the sum of two gradients of one value, y += x. A scale of 1 is exact.


cdef inline void sum_span(const vec *a, const vec *b, double scale, vec *y, bint far, Py_ssize_t i,
                          Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(a)
    cdef vec factor = splat(a, scale)
    while i + L <= stop:
        store_far(y, i, fma(load(b, i), factor, load(a, i)), far)
        i += L
    if i < stop:
        store_partial(y, i, fma(load_partial(b, i, stop - i), factor, load_partial(a, i, stop - i)), stop - i)


cdef void sum_spans(const vec *a, const vec *b, double scale, vec *y, Py_ssize_t size) noexcept nogil:
    """y = a + scale * b; a scale of 1 is exact."""
    cdef Py_ssize_t p
    cdef bint far = goes_far(y, size, a) and y != b
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        sum_span(a, b, scale, y, far, p * SPAN, min(size, (p + 1) * SPAN))
        if far:
            stream_end()


def residual_forward(const floating[:, ::1] x not None, const floating[:, ::1] branch not None, double scale=1.0, *,
                     floating[:, ::1] y not None):
    """y = x + scale * branch.

    Parameters
    ----------
    x, branch : arrays of shape N C
    scale : float
    y : array of shape N C, written
        May be x or branch itself.
    """
    cdef Py_ssize_t size = x.shape[0] * x.shape[1]
    check_length("residual_forward", "len(branch)", branch.shape[0], x.shape[0])
    check_length("residual_forward", "branch.shape[1]", branch.shape[1], x.shape[1])
    check_length("residual_forward", "len(y)", y.shape[0], x.shape[0])
    check_length("residual_forward", "y.shape[1]", y.shape[1], x.shape[1])
    if size == 0:
        return
    with nogil:
        if floating is float:
            sum_spans(<const vf32*> &x[0, 0], <const vf32*> &branch[0, 0], scale, <vf32*> &y[0, 0], size)
        else:
            sum_spans(<const vf64*> &x[0, 0], <const vf64*> &branch[0, 0], scale, <vf64*> &y[0, 0], size)


def add_in_place(const floating[::1] x not None, *, floating[::1] y not None):
    """y += x, arrays of shape P."""
    check_length("add_in_place", "len(y)", y.shape[0], x.shape[0])
    if x.shape[0] == 0:
        return
    with nogil:
        if floating is float:
            sum_spans(<const vf32*> &y[0], <const vf32*> &x[0], 1.0, <vf32*> &y[0], x.shape[0])           # +=
        else:
            sum_spans(<const vf64*> &y[0], <const vf64*> &x[0], 1.0, <vf64*> &y[0], x.shape[0])           # +=
