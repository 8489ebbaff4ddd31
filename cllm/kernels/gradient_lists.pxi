# What is done to gradients between a backward and an update, over lists of arrays: zeroing, the sum of squares,
# scaling, the search for NaN and infinity. Sums over an array are float64, pieces of fixed size added in order.

cdef enum:
    SUM_PIECES = 4096       # pieces whose results are held before they are taken in order: 32 KiB of the stack


cdef inline double piece_squares(const vec *like, Flats x, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(x, p)
    return wide_squares(<const vec*> x.flats[at.array].data, at.start, at.stop - at.start)


cdef void squares_in_order(const vec *like, Flats x, double *out) noexcept nogil:
    cdef double sums[SUM_PIECES]
    cdef double *piece = &sums[0]
    cdef Py_ssize_t first = 0, p, count
    while first < x.n_pieces:
        count = min(<Py_ssize_t> SUM_PIECES, x.n_pieces - first)
        for p in prange(count, num_threads=_threads, use_threads_if=x.size >= PARALLEL_FROM, schedule="static"):
            piece[p] = piece_squares(like, x, first + p)
        for p in range(count):
            out[piece_of(x, first + p).array] += piece[p]
        first += count


def sum_of_squares(ArrayList x not None, *, double[::1] out not None):
    """The sum of the squares of each array, in float64.

    Parameters
    ----------
    x : ArrayList
    out : array of shape len(x), written
    """
    check_length("sum_of_squares", "len(out)", out.shape[0], x.bound.n)
    out[:] = 0.0
    if x.bound.n == 0:
        return
    with nogil:
        if x.is_double:
            squares_in_order(<const vf64*> NULL, x.bound, &out[0])
        else:
            squares_in_order(<const vf32*> NULL, x.bound, &out[0])


cdef inline void scale_span(double factor, vec *x, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    cdef vec s = splat(x, factor)
    while i + L <= stop:
        store(x, i, load(x, i) * s)
        i += L
    if i < stop:
        store_partial(x, i, load_partial(x, i, stop - i) * s, stop - i)


cdef inline void scale_piece(const vec *like, const double *factors, Flats x, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(x, p)
    if factors[at.array] != 1.0:
        scale_span(factors[at.array], <vec*> x.flats[at.array].data, at.start, at.stop)


cdef void scale_pieces(const vec *like, const double *factors, Flats x) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange(x.n_pieces, num_threads=_threads, use_threads_if=x.size >= PARALLEL_FROM, schedule="static"):
        scale_piece(like, factors, x, p)


def scale_in_place(const double[::1] factors not None, *, ArrayList x not None):
    """Multiply each array by its factor, rounded to the arrays' dtype first.

    Parameters
    ----------
    factors : array of shape len(x)
        Where it is 1, the array is left alone.
    x : ArrayList, updated
    """
    check_length("scale_in_place", "len(factors)", factors.shape[0], x.bound.n)
    if x.bound.n == 0:
        return
    with nogil:
        if x.is_double:
            scale_pieces(<const vf64*> NULL, &factors[0], x.bound)
        else:
            scale_pieces(<const vf32*> NULL, &factors[0], x.bound)


cdef inline void zero_span(vec *x, bint far, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    while i + L <= stop:
        store_far(x, i, splat(x, 0.0), far)
        i += L
    store_partial(x, i, splat(x, 0.0), stop - i)


cdef inline void zero_piece(const vec *like, Flats x, Py_ssize_t p) noexcept nogil:
    """All arrays count for whether they go past the caches: together they fill them."""
    cdef Piece at = piece_of(x, p)
    cdef vec *y = <vec*> x.flats[at.array].data
    cdef bint far = goes_far(y, x.size, <const vec*> NULL)
    zero_span(y, far, at.start, at.stop)
    if far:
        stream_end()


cdef void zero_pieces(const vec *like, Flats x) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange(x.n_pieces, num_threads=_threads, use_threads_if=x.size >= PARALLEL_FROM, schedule="static"):
        zero_piece(like, x, p)


def fill_zero(*, ArrayList x not None):
    """Set every element of every array to zero."""
    with nogil:
        if x.is_double:
            zero_pieces(<const vf64*> NULL, x.bound)
        else:
            zero_pieces(<const vf32*> NULL, x.bound)


cdef inline bint span_is_finite(const vec *x, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    """x - x is 0 for a finite x and NaN for any other, and NaN stays in a sum."""
    cdef Py_ssize_t L = lanes(x), j
    cdef vec a = splat(x, 0.0), b = splat(x, 0.0), c
    cdef double total = 0.0
    while i + 2 * L <= stop:
        c = load(x, i)
        a = a + (c - c)
        c = load(x, i + L)
        b = b + (c - c)
        i += 2 * L
    while i < stop:
        c = load_partial(x, i, min(L, stop - i))
        a = a + (c - c)
        i += L
    a = a + b
    for j in range(L):
        total += lane(a, j)
    return total == 0.0


cdef inline bint piece_is_finite(const vec *like, Flats x, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(x, p)
    return span_is_finite(<const vec*> x.flats[at.array].data, at.start, at.stop)


cdef void scan_pieces(const vec *like, Flats x, Py_ssize_t first, Py_ssize_t count, bint *finite) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange(count, num_threads=_threads, use_threads_if=x.size >= PARALLEL_FROM, schedule="static"):
        finite[p] = piece_is_finite(like, x, first + p)


def nonfinite_arrays(ArrayList x not None):
    """Numbers of the arrays in which there is NaN or infinity, ascending: an empty tuple if every element is finite."""
    cdef bint finite[SUM_PIECES]
    cdef Py_ssize_t first = 0, p, k, last = -1, count
    found = []
    while first < x.bound.n_pieces:
        count = min(<Py_ssize_t> SUM_PIECES, x.bound.n_pieces - first)
        with nogil:
            if x.is_double:
                scan_pieces(<const vf64*> NULL, x.bound, first, count, &finite[0])
            else:
                scan_pieces(<const vf32*> NULL, x.bound, first, count, &finite[0])
        for p in range(count):
            if not finite[p]:
                k = piece_of(x.bound, first + p).array
                if k != last:
                    found.append(k)
                last = k
        first += count
    return tuple(found)
