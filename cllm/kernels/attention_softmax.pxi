# The softmax of a tile of scores, forward and backward, and the soft cap before it.
#
# Each goes over rows, and of a row over the vectors that hold a key start .. stop-1 that it sees; only at its ends is a
# vector masked. The rest of the row becomes zero in a tile of probabilities or of their gradients.


cdef inline vec seen_part(vec x, Py_ssize_t j, Py_ssize_t start, Py_ssize_t stop, double fill) noexcept nogil:
    """x, the keys j .. j+lanes-1, with `fill` for those that are not start .. stop-1."""
    cdef vec after, before
    if j >= start and j + lanes(&x) <= stop:
        return x
    after = iota(&x) + splat(&x, j - start + 0.5)
    before = splat(&x, stop - j - 0.5) - iota(&x)
    return select_positive(vmin(after, before), x, splat(&x, fill))


cdef inline void clear_unseen(vec *s, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Zero in the vectors of a row that hold none of the keys start .. stop-1."""
    cdef Py_ssize_t j
    for j from 0 <= j < vectors_from(start, lanes(s)) by lanes(s):
        store(s, j, splat(s, 0.0))
    for j from vectors_to(start, stop, lanes(s)) <= j < BLOCK by lanes(s):
        store(s, j, splat(s, 0.0))


cdef inline void softmax_online_row(vec *s, Py_ssize_t start, Py_ssize_t stop, vec *top, vec *total, vec *out,
                                    Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t j, begin = vectors_from(start, lanes(s)), end = vectors_to(start, stop, lanes(s))
    cdef double largest
    cdef vec x, peak = splat(s, -INFINITY), shrink
    for j from begin <= j < end by lanes(s):
        peak = vmax(seen_part(load(s, j), j, start, stop, -INFINITY), peak)
    largest = lane_max(peak)
    if largest > element(top, 0):
        if element(top, 0) > -INFINITY:
            shrink = vexp(splat(s, element(top, 0) - largest))
            store(total, 0, load(total, 0) * shrink)
            for j from 0 <= j < row by lanes(s):
                store(out, j, load(out, j) * shrink)
        put(top, 0, largest)
    peak = splat_at(top, 0)
    shrink = load(total, 0)
    for j from begin <= j < end by lanes(s):
        x = vexp(seen_part(load(s, j), j, start, stop, -INFINITY) - peak)
        store(s, j, x)
        shrink = shrink + x
    store(total, 0, shrink)


cdef void softmax_online(vec *s, Py_ssize_t rows, const Span *seen, vec *top, vec *total, vec *out,
                         Py_ssize_t row) noexcept nogil:
    """s = exp(s - top) by rows, where a row's `top` is its largest score so far; total += s in lanes.

    Where a row's top grows, what was summed before (total, and the row of `out`) shrinks by exp(old - new).
    """
    cdef Py_ssize_t i
    if seen.whole:  # a copy of the loop with known bounds
        for i in range(rows):
            softmax_online_row(address(s, i * BLOCK), 0, BLOCK, address(top, i), address(total, i * lanes(s)),
                               address(out, i * row), row)
        return
    for i in range(rows):
        if seen.start[i] < seen.stop[i]:
            softmax_online_row(address(s, i * BLOCK), seen.start[i], seen.stop[i], address(top, i),
                               address(total, i * lanes(s)), address(out, i * row), row)
        clear_unseen(address(s, i * BLOCK), seen.start[i], seen.stop[i])


cdef inline void softmax_known_row(vec *s, Py_ssize_t start, Py_ssize_t stop, vec known) noexcept nogil:
    cdef Py_ssize_t j
    for j from vectors_from(start, lanes(s)) <= j < vectors_to(start, stop, lanes(s)) by lanes(s):
        store(s, j, vexp(seen_part(load(s, j), j, start, stop, -INFINITY) - known))


cdef void softmax_known(vec *s, const vec *lse, Py_ssize_t rows, const Span *seen) noexcept nogil:
    """s = exp(s - lse): the probabilities of a tile once the log-sum-exp of its rows is known."""
    cdef Py_ssize_t i
    if seen.whole:
        for i in range(rows):
            softmax_known_row(address(s, i * BLOCK), 0, BLOCK, splat_at(lse, i))
        return
    for i in range(rows):
        softmax_known_row(address(s, i * BLOCK), seen.start[i], seen.stop[i], splat_at(lse, i))
        clear_unseen(address(s, i * BLOCK), seen.start[i], seen.stop[i])


cdef inline void softmax_backward_row(const vec *p, Py_ssize_t start, Py_ssize_t stop, vec mean,
                                      vec *ds) noexcept nogil:
    cdef Py_ssize_t j
    for j from vectors_from(start, lanes(p)) <= j < vectors_to(start, stop, lanes(p)) by lanes(p):
        store(ds, j, seen_part(load(p, j) * (load(ds, j) - mean), j, start, stop, 0.0))


cdef void softmax_backward(const vec *p, const vec *delta, Py_ssize_t rows, const Span *seen, vec *ds) noexcept nogil:
    """ds = p (dp - delta), dp in the place of ds."""
    cdef Py_ssize_t i
    if seen.whole:
        for i in range(rows):
            softmax_backward_row(address(p, i * BLOCK), 0, BLOCK, splat_at(delta, i), address(ds, i * BLOCK))
        return
    for i in range(rows):
        softmax_backward_row(address(p, i * BLOCK), seen.start[i], seen.stop[i], splat_at(delta, i),
                             address(ds, i * BLOCK))
        clear_unseen(address(ds, i * BLOCK), seen.start[i], seen.stop[i])


# --- the soft cap: c tanh(s / c) --------------------------------------------------------------------------------------

cdef void soften(double cap, Py_ssize_t rows, const Span *seen, vec *s, vec *slope) noexcept nogil:
    """s = cap * tanh(s / cap), and its derivative 1 - tanh(s / cap)^2 into `slope` unless it is NULL."""
    cdef Py_ssize_t i, j, begin, end
    cdef vec t, factor = splat(s, cap), share = splat(s, 1.0 / cap), one = splat(s, 1.0)
    for i in range(rows):
        row_vectors(seen, i, lanes(s), &begin, &end)
        for j from i * BLOCK + begin <= j < i * BLOCK + end by lanes(s):
            t = vtanh(load(s, j) * share)
            if slope != NULL:
                store(slope, j, fnma(t, t, one))
            store(s, j, t * factor)


cdef void soften_backward(const vec *slope, Py_ssize_t rows, const Span *seen, vec *ds) noexcept nogil:
    """ds *= slope; a key that is not seen keeps its zero, be its slope NaN."""
    cdef Py_ssize_t i, j, begin, end
    cdef vec x
    for i in range(rows):
        row_vectors(seen, i, lanes(ds), &begin, &end)
        for j from begin <= j < end by lanes(ds):
            x = load(ds, i * BLOCK + j) * load(slope, i * BLOCK + j)
            if not seen.whole:
                x = seen_part(x, j, seen.start[i], seen.stop[i], 0.0)
            store(ds, i * BLOCK + j, x)
