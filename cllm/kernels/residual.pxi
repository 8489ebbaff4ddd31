# Sums element by element: the residual addition y = x + branch, whose backward needs no kernel (both gradients are dy),
# and the sum of two gradients of one value, y += x.


cdef inline void sum_span(const vec *a, const vec *b, vec *y, bint far, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(a)
    while i + L <= stop:
        store_far(y, i, load(a, i) + load(b, i), far)
        i += L
    if i < stop:
        store_partial(y, i, load_partial(a, i, stop - i) + load_partial(b, i, stop - i), stop - i)


cdef void sum_spans(const vec *a, const vec *b, vec *y, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    cdef bint far = goes_far(y, size, a) and y != b
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        sum_span(a, b, y, far, p * SPAN, min(size, (p + 1) * SPAN))
        if far:
            stream_end()


def residual_forward(const floating[:, ::1] x not None, const floating[:, ::1] branch not None, *,
                     floating[:, ::1] y not None):
    """y = x + branch.

    Parameters
    ----------
    x, branch : arrays of shape N C
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
            sum_spans(<const vf32*> &x[0, 0], <const vf32*> &branch[0, 0], <vf32*> &y[0, 0], size)
        else:
            sum_spans(<const vf64*> &x[0, 0], <const vf64*> &branch[0, 0], <vf64*> &y[0, 0], size)


def add_in_place(const floating[::1] x not None, *, floating[::1] y not None):
    """y += x, arrays of shape P."""
    check_length("add_in_place", "len(y)", y.shape[0], x.shape[0])
    if x.shape[0] == 0:
        return
    with nogil:
        if floating is float:
            sum_spans(<const vf32*> &y[0], <const vf32*> &x[0], <vf32*> &y[0], x.shape[0])                # +=
        else:
            sum_spans(<const vf64*> &y[0], <const vf64*> &x[0], <vf64*> &y[0], x.shape[0])                # +=
