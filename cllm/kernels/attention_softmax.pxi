# The softmax of a tile of scores, forward and backward, and the soft cap before it.
#
# Each goes over rows, and of a row over the vectors that hold a key start .. stop-1 that it sees; only at its ends is a
# vector masked. The rest of the row becomes zero in a tile of probabilities or of their gradients.


cdef inline vec seen_part(vec x, Py_ssize_t j, Py_ssize_t start, Py_ssize_t stop, double fill) noexcept nogil:
    """x, the keys j .. j+lanes-1, with `fill` for those that are not start .. stop-1."""
    cdef vec inside
    if j >= start and j + lanes(&x) <= stop:
        return x
    inside = splat(&x, stop - j - 0.5) - iota(&x)
    if j < start:
        inside = vmin(iota(&x) + splat(&x, j - start + 0.5), inside)
    return select_positive(inside, x, splat(&x, fill))


cdef inline void clear_unseen(vec *s, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Zero in the vectors of a row that hold none of the keys start .. stop-1."""
    cdef Py_ssize_t j
    for j from 0 <= j < vectors_from(start, lanes(s)) by lanes(s):
        store(s, j, splat(s, 0.0))
    for j from vectors_to(start, stop, lanes(s)) <= j < BLOCK by lanes(s):
        store(s, j, splat(s, 0.0))


cdef inline vec row_peak(const vec *s, Py_ssize_t start, Py_ssize_t stop, vec peak) noexcept nogil:
    cdef Py_ssize_t j
    for j from vectors_from(start, lanes(s)) <= j < vectors_to(start, stop, lanes(s)) by lanes(s):
        peak = vmax(seen_part(load(s, j), j, start, stop, -INFINITY), peak)
    return peak


cdef inline vec above(vec *s, Py_ssize_t j, Py_ssize_t start, Py_ssize_t stop, vec top) noexcept nogil:
    """s = exp(s - top) of a vector of a row."""
    cdef vec x = vexp(seen_part(load(s, j), j, start, stop, -INFINITY) - top)
    store(s, j, x)
    return x


cdef inline void row_above(vec *s, Py_ssize_t start, Py_ssize_t stop, vec top, vec *total) noexcept nogil:
    """s = exp(s - top) of a row of a tile, added to the line of its sum."""
    cdef Py_ssize_t j = vectors_from(start, line(s)), k, end = vectors_to(start, stop, lanes(s))
    cdef vec sums[LINE_VECTORS]
    for k in range(LINE_VECTORS):
        sums[k] = load(total, k * lanes(s))
    while j + line(s) <= end:
        for k in range(LINE_VECTORS):
            sums[k] = sums[k] + above(s, j + k * lanes(s), start, stop, top)
        j += line(s)
    for k in range(LINE_VECTORS - 1):  # the vectors of the last line that hold a key; the others would add zero
        if j + k * lanes(s) < end:
            sums[k] = sums[k] + above(s, j + k * lanes(s), start, stop, top)
    for k in range(LINE_VECTORS):
        store(total, k * lanes(s), sums[k])


cdef void softmax_online(vec *s, Py_ssize_t rows, Py_ssize_t tiles, const Span *seen, vec *top, vec *total, vec *out,
                         Py_ssize_t row) noexcept nogil:
    """s = exp(s - top) by rows of `tiles` tiles beside each other, where a row's `top` is its largest score so far; total
    += s in the lanes of a line.

    Where a row's top grows, what was summed before (total, and the row of `out`) shrinks by exp(old - new).
    """
    cdef Py_ssize_t i, j, k
    cdef double largest
    cdef vec peak, shrink
    cdef vec *x
    for i in range(rows):
        peak = splat(s, -INFINITY)
        for k in range(tiles):
            x = address(s, (k * BLOCK + i) * BLOCK)
            if seen[k].whole:  # a copy of the loop with known bounds
                peak = row_peak(x, 0, BLOCK, peak)
            else:
                peak = row_peak(x, seen[k].start[i], seen[k].stop[i], peak)
        largest = lane_max(peak)
        if largest > element(top, i):
            if element(top, i) > -INFINITY:
                shrink = vexp(splat(s, element(top, i) - largest))
                for k in range(LINE_VECTORS):
                    store(total, i * line(s) + k * lanes(s), load(total, i * line(s) + k * lanes(s)) * shrink)
                for j from i * row <= j < (i + 1) * row by lanes(s):
                    store(out, j, load(out, j) * shrink)
            put(top, i, largest)
        peak = splat_at(top, i)
        for k in range(tiles):
            x = address(s, (k * BLOCK + i) * BLOCK)
            if seen[k].whole:
                row_above(x, 0, BLOCK, peak, address(total, i * line(s)))
            else:
                if seen[k].start[i] < seen[k].stop[i]:
                    row_above(x, seen[k].start[i], seen[k].stop[i], peak, address(total, i * line(s)))
                clear_unseen(x, seen[k].start[i], seen[k].stop[i])


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
