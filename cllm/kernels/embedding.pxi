# Token and position embedding.
#
#     y[n]                 = scale weight[tokens[n]] + positions[place(n)]
#     dweight[tokens[n]]  += scale dy[n],   dpositions[place(n)] += dy[n],   n in order
#
# place(n) is n mod T where nothing else is said. A scale of 1 is exact.
#
# The backward splits columns over the threads, so a token that comes again adds its rows in order.

from libc.stdint cimport int32_t
from libc.string cimport memcpy

cdef enum:
    EMBEDDING_COLUMNS = 128     # columns of the gradients in one piece, a quarter of them where threads were idle


cdef inline Py_ssize_t place_of(const int32_t *places, Py_ssize_t n, Py_ssize_t time) noexcept nogil:
    return n % time if places == NULL else places[n]


cdef void embedding_rows(const int32_t *tokens, const int32_t *places, const vec *weight, const vec *positions,
                         Py_ssize_t time, double scale, vec *y, Py_ssize_t n_rows, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t n, p, at, rows = rows_per_piece(n_channels), pieces = (n_rows + rows - 1) // rows
    cdef Py_ssize_t item = VECTOR_BYTES // lanes(y)
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        for n in range(p * rows, min(n_rows, (p + 1) * rows)):
            if positions == NULL and scale == 1.0:
                at = n * n_channels * item
                memcpy(<char*> y + at, <const char*> weight + tokens[n] * n_channels * item, n_channels * item)
            else:
                embedding_row(weight, tokens[n] * n_channels, positions, place_of(places, n, time) * n_channels, scale,
                              y, n * n_channels, n_channels)


cdef inline void embedding_row(const vec *weight, Py_ssize_t token_at, const vec *positions, Py_ssize_t position_at,
                               double scale, vec *y, Py_ssize_t at, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t L = lanes(y), i = 0
    cdef vec factor = splat(y, scale), place = splat(y, 0.0)
    while i + L <= n_channels:
        if positions != NULL:
            place = load(positions, position_at + i)
        store(y, at + i, fma(load(weight, token_at + i), factor, place))
        i += L
    if i < n_channels:
        L = n_channels - i
        if positions != NULL:
            place = load_partial(positions, position_at + i, L)
        store_partial(y, at + i, fma(load_partial(weight, token_at + i, L), factor, place), L)


cdef void embedding_stored(const int32_t *tokens, const int32_t *places, const StoredMatrix *weight,
                           const vf32 *positions, Py_ssize_t time, double scale, vf32 *y, Py_ssize_t n_rows,
                           Py_ssize_t n_channels) noexcept nogil:
    """The same of rows as they lie in a file: each is expanded where its result belongs."""
    cdef Py_ssize_t n, p, rows = rows_per_piece(n_channels), pieces = (n_rows + rows - 1) // rows
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        for n in range(p * rows, min(n_rows, (p + 1) * rows)):
            unpack_row(weight, tokens[n], 0, n_channels, address(y, n * n_channels))
            if positions != NULL or scale != 1.0:
                embedding_row(y, n * n_channels, positions, place_of(places, n, time) * n_channels, scale, y,
                              n * n_channels, n_channels)


def embedding_forward(const int32_t[::1] tokens not None, weight not None,
                      positions, Py_ssize_t time, double scale=1.0, const int32_t[::1] places=None, *,
                      floating[:, ::1] y not None):
    """Look up token rows and add position rows.

    Parameters
    ----------
    tokens : int32 array of shape N
        Each at least 0 and below V; not checked here.
    weight : array of shape V C, or StoredRows of that shape that are not turned
    positions : array of shape Tmax C, or None
        Row places[n] is added.
    time : int
        T, tokens in a sequence; N is a multiple of it.
    scale : float
        Factor of the token rows, rounded to the dtype.
    places : int32 array of shape N, or None
        Each at least 0 and below Tmax; not checked here. None is n mod T.
    y : array of shape N C, written
    """
    cdef Py_ssize_t n_rows = tokens.shape[0], n_channels
    cdef const void *p = NULL
    cdef const int32_t *at = NULL
    cdef const StoredMatrix *stored = NULL
    cdef Rows given, table
    if isinstance(weight, StoredRows):
        if sizeof(floating) != sizeof(float) or (<StoredRows> weight).turned:
            raise DtypeError("embedding_forward", "weight must be an array in float64, and its rows those of tokens",
                             "rows of a file", "Expand it: numpy.asarray(weight).")
        stored = &(<StoredRows> weight).bound
        given.columns = stored.length
    else:
        take_rows("embedding_forward", "weight", weight, sizeof(floating), False, &given)
        check_wide("embedding_forward", "weight", &given)
    n_channels = given.columns
    check_length("embedding_forward", "len(y)", y.shape[0], n_rows)
    check_length("embedding_forward", "y.shape[1]", y.shape[1], n_channels)
    check_time("embedding_forward", n_rows, time)
    if positions is not None:
        take_rows("embedding_forward", "positions", positions, sizeof(floating), False, &table)
        check_wide("embedding_forward", "positions", &table)
        check_length("embedding_forward", "positions.shape[1]", table.columns, n_channels)
        check_places("embedding_forward", places, n_rows, table.rows, time)
        p = table.at
    if n_rows == 0 or n_channels == 0:
        return
    if places is not None:
        at = &places[0]
    with nogil:
        if floating is float:
            if stored != NULL:
                embedding_stored(&tokens[0], at, stored, <const vf32*> p, time, scale, <vf32*> &y[0, 0], n_rows, n_channels)
            else:
                embedding_rows(&tokens[0], at, <const vf32*> given.at, <const vf32*> p, time, scale, <vf32*> &y[0, 0],
                               n_rows, n_channels)
        else:
            embedding_rows(&tokens[0], at, <const vf64*> given.at, <const vf64*> p, time, scale, <vf64*> &y[0, 0],
                           n_rows, n_channels)


cdef int check_time(str kernel, Py_ssize_t n_rows, Py_ssize_t time) except -1:
    if time < 1 or n_rows % time != 0:
        raise ShapeError(kernel, f"len(tokens) must be a multiple of time, which must be at least 1",
                         f"{n_rows} tokens and time {time}", "Pass whole sequences.")
    return 0


cdef int check_places(str kernel, const int32_t[::1] places, Py_ssize_t n_rows, Py_ssize_t n_positions,
                      Py_ssize_t time) except -1:
    if places is not None:
        check_length(kernel, "len(places)", places.shape[0], n_rows)
    elif n_positions < time:
        raise ShapeError(kernel, f"the position table must have at least {time} rows", str(n_positions),
                         "Pass shorter sequences or a longer table.")
    return 0


cdef inline void add_piece(const vec *dy, Py_ssize_t at, double scale, vec *out, Py_ssize_t to,
                           Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t L = lanes(dy), i = 0
    cdef vec factor = splat(dy, scale)
    while i + L <= width:
        store(out, to + i, fma(load(dy, at + i), factor, load(out, to + i)))                              # +=
        i += L
    if i < width:
        L = width - i
        store_partial(out, to + i, fma(load_partial(dy, at + i, L), factor, load_partial(out, to + i, L)), L)  # +=


cdef void embedding_columns(const int32_t *tokens, const int32_t *places, const vec *dy, Py_ssize_t time, double scale,
                            vec *dweight, vec *dpositions, Py_ssize_t n_rows, Py_ssize_t n_channels) noexcept nogil:
    cdef Py_ssize_t most = EMBEDDING_COLUMNS if n_channels > EMBEDDING_COLUMNS * (_threads - 1) else EMBEDDING_COLUMNS // 4
    cdef Py_ssize_t n, p, left, width, pieces = (n_channels + most - 1) // most
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_channels >= PARALLEL_FROM,
                    schedule="static"):
        left = p * most
        width = min(most, n_channels - left)
        for n in range(n_rows):
            if dweight != NULL:
                add_piece(dy, n * n_channels + left, scale, dweight, tokens[n] * n_channels + left, width)
            if dpositions != NULL:
                add_piece(dy, n * n_channels + left, 1.0, dpositions, place_of(places, n, time) * n_channels + left, width)


def embedding_backward(const int32_t[::1] tokens not None, const floating[:, ::1] dy not None, Py_ssize_t time,
                       double scale=1.0, const int32_t[::1] places=None, *, floating[:, ::1] dweight,
                       floating[:, ::1] dpositions):
    """Add the gradient of every row to the rows that were looked up.

    Parameters
    ----------
    tokens : int32 array of shape N
    dy : array of shape N C
    time : int
        T, tokens in a sequence; N is a multiple of it.
    scale, places : as in the forward
    dweight : array of shape V C, added to, or None
    dpositions : array of shape Tmax C, added to, or None
    """
    cdef Py_ssize_t n_rows = tokens.shape[0], n_channels = dy.shape[1]
    cdef floating *w = NULL
    cdef floating *p = NULL
    cdef const int32_t *at = NULL
    check_length("embedding_backward", "len(dy)", dy.shape[0], n_rows)
    if dweight is not None:
        check_length("embedding_backward", "dy.shape[1]", n_channels, dweight.shape[1])
    check_time("embedding_backward", n_rows, time)
    if dpositions is not None:
        check_length("embedding_backward", "dpositions.shape[1]", dpositions.shape[1], n_channels)
        check_places("embedding_backward", places, n_rows, dpositions.shape[0], time)
    if n_rows == 0 or n_channels == 0:
        return
    if dweight is not None:
        w = &dweight[0, 0]
    if places is not None:
        at = &places[0]
    if dpositions is not None:
        p = &dpositions[0, 0]
    with nogil:
        if floating is float:
            embedding_columns(&tokens[0], at, <const vf32*> &dy[0, 0], time, scale, <vf32*> w, <vf32*> p, n_rows,
                              n_channels)
        else:
            embedding_columns(&tokens[0], at, <const vf64*> &dy[0, 0], time, scale, <vf64*> w, <vf64*> p, n_rows,
                              n_channels)
