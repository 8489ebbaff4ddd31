# A factor, with or without a soft cap, element by element: what stands between a product and its logits, and a scale of
# any other array.
#
#     y = s x,   or   y = c tanh(s x / c)
#
# Of logits the backward is part of the loss (`cross_entropy_backward`); of a plain factor it is the same factor.


cdef inline vec scaled(vec x, vec share, vec cap, bint capped) noexcept nogil:
    return vtanh(x * share) * cap if capped else x * share


cdef inline void capped_span(const vec *x, double share, double cap, vec *y, Py_ssize_t i,
                             Py_ssize_t stop) noexcept nogil:
    """y = cap * tanh(share * x), or share * x where cap is 0."""
    cdef Py_ssize_t L = lanes(x)
    cdef vec factor = splat(x, share), outer = splat(x, cap)
    cdef bint capped = cap != 0.0
    while i + L <= stop:
        store(y, i, scaled(load(x, i), factor, outer, capped))
        i += L
    if i < stop:
        store_partial(y, i, scaled(load_partial(x, i, stop - i), factor, outer, capped), stop - i)


cdef void capped_spans(const vec *x, double share, double cap, vec *y, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        capped_span(x, share, cap, y, p * SPAN, min(size, (p + 1) * SPAN))


cdef double checked_cap(str kernel, softcap) except -1.0:
    """The cap, or 0 for None."""
    cdef double cap
    if softcap is None:
        return 0.0
    cap = softcap
    if not cap > 0.0:
        raise ConfigError(f"{kernel}(softcap=...)", "must be above 0, or None", repr(softcap),
                          "Pass None where there is no cap.")
    return cap


def scale_and_cap(const floating[:, ::1] x not None, double scale, softcap=None, *, floating[:, ::1] y not None):
    """y = scale * x, or y = c tanh(scale * x / c): the factor and the soft cap of logits.

    Parameters
    ----------
    x : array of shape N C
    scale : float
    softcap : float or None
        c.
    y : array of shape N C, written
        May be x itself.
    """
    cdef Py_ssize_t size = x.shape[0] * x.shape[1]
    cdef double cap = checked_cap("scale_and_cap", softcap)
    check_length("scale_and_cap", "len(y)", y.shape[0], x.shape[0])
    check_length("scale_and_cap", "y.shape[1]", y.shape[1], x.shape[1])
    if size == 0:
        return
    if cap != 0.0:
        scale /= cap
    with nogil:
        if floating is float:
            capped_spans(<const vf32*> &x[0, 0], scale, cap, <vf32*> &y[0, 0], size)
        else:
            capped_spans(<const vf64*> &x[0, 0], scale, cap, <vf64*> &y[0, 0], size)
