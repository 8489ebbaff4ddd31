# The products of attention: one register tile for all seven.
#
# A tile is seen whole, or row by row (attention_span.pxi). What a row does not see is not part of its sums, be it NaN,
# and stands as zero in a tile of probabilities or of their gradients.
#
# All of a head is packed into planes with rows of `row` elements (head_dim rounded up to whole vectors), zero beyond
# head_dim. A tile is BLOCK queries by BLOCK keys, its rows BLOCK elements apart; a register tile is ROWS rows by two
# vectors. Every product is written C (+)= A B with A read an element at a time and B in whole vectors, so one function
# serves all: only the strides of A tell a product from its transpose. Its sum is one chain in the order of the inner
# index that starts from what C holds, or from zero: no cut of that index changes a bit.


cdef inline void tile(const vec *a, Py_ssize_t row, Py_ssize_t step, const vec *b, Py_ssize_t b_row, Py_ssize_t depth,
                      const vec *start, Py_ssize_t start_row, vec *c, Py_ssize_t c_row) noexcept nogil:
    """c[i, :] = start[i, :] + sum over k < depth of a[i * row + k * step] * b[k, :] for ROWS rows of two vectors.

    depth is at least 1: where the loop asks at its end, GCC keeps `total` in registers from the first load on.
    """
    cdef vec total[ROWS][2]
    cdef vec right[2]
    cdef vec left
    cdef int i, j
    cdef Py_ssize_t k
    for i in range(ROWS):
        for j in range(2):
            total[i][j] = load(start, i * start_row + j * lanes(c))
    k = 0
    while True:
        for j in range(2):
            right[j] = load(b, k * b_row + j * lanes(b))
        for i in range(ROWS):
            left = splat_at(a, i * row + k * step)
            for j in range(2):
                total[i][j] = fma(left, right[j], total[i][j])
        k += 1
        if k >= depth:
            break
    for i in range(ROWS):
        for j in range(2):
            store(c, i * c_row + j * lanes(c), total[i][j])


cdef inline void half_tile(const vec *a, Py_ssize_t row, Py_ssize_t step, const vec *b, Py_ssize_t b_row,
                           Py_ssize_t depth, const vec *start, Py_ssize_t start_row, vec *c,
                           Py_ssize_t c_row) noexcept nogil:
    """`tile` of one vector, for rows of an odd number of vectors."""
    cdef vec total[ROWS]
    cdef vec right
    cdef int i
    cdef Py_ssize_t k
    for i in range(ROWS):
        total[i] = load(start, i * start_row)
    k = 0
    while True:
        right = load(b, k * b_row)
        for i in range(ROWS):
            total[i] = fma(splat_at(a, i * row + k * step), right, total[i])
        k += 1
        if k >= depth:
            break
    for i in range(ROWS):
        store(c, i * c_row, total[i])


cdef void tile_rows(const vec *a, Py_ssize_t row, const vec *b, Py_ssize_t b_row, Py_ssize_t depth, bint add, vec *c,
                    Py_ssize_t c_row, bint both) noexcept nogil:
    """A tile whose A lies row by row; `both` says whether it is two vectors wide."""
    cdef const vec *start = <const vec *> ZEROS
    if add:
        start = c
    if both:
        tile(a, row, 1, b, b_row, depth, start, c_row if add else 0, c, c_row)
    else:
        half_tile(a, row, 1, b, b_row, depth, start, c_row if add else 0, c, c_row)


cdef void tile_columns(const vec *a, const vec *b, Py_ssize_t b_row, Py_ssize_t depth, bint add, vec *c,
                       Py_ssize_t c_row, bint both) noexcept nogil:
    """A tile whose A is the transpose of a score tile."""
    cdef const vec *start = <const vec *> ZEROS
    if add:
        start = c
    if both:
        tile(a, 1, BLOCK, b, b_row, depth, start, c_row if add else 0, c, c_row)
    else:
        half_tile(a, 1, BLOCK, b, b_row, depth, start, c_row if add else 0, c, c_row)


cdef inline void clear_rows(vec *x, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    """Zero in rows of whole vectors, up to a multiple of ROWS."""
    cdef Py_ssize_t i
    for i from 0 <= i < round_up(rows, ROWS) * row by lanes(x):
        store(x, i, splat(x, 0.0))


# --- products of tiles: what no row sees is not computed --------------------------------------------------------------

cdef void scores(const vec *a, Py_ssize_t row, const vec *panels, Py_ssize_t depth, Py_ssize_t rows, const Span *seen,
                 vec *s) noexcept nogil:
    """s = A B^T over `depth` channels, B packed by `pack_panels`; as far as each group of rows sees it."""
    cdef Py_ssize_t i, j, width = 2 * lanes(a)
    if seen.whole:
        for j from 0 <= j < BLOCK by width:
            for i from 0 <= i < rows by ROWS:
                tile_rows(address(a, i * row), row, address(panels, j * depth), width, depth, False,
                          address(s, i * BLOCK + j), BLOCK, True)
        return
    for i from 0 <= i < rows by ROWS:
        for j from seen.some_start[i // ROWS] // width * width <= j < seen.some_stop[i // ROWS] by width:
            tile_rows(address(a, i * row), row, address(panels, j * depth), width, depth, False,
                      address(s, i * BLOCK + j), BLOCK, True)


cdef void mix_row(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t start, Py_ssize_t stop,
                  vec *c) noexcept nogil:
    """c[:] += sum over start <= k < stop of s[k] * b[k, :]: what a row of `mix` sees and its group does not."""
    cdef Py_ssize_t j, k
    cdef vec total
    for j from 0 <= j < row by lanes(c):
        total = load(c, j)
        for k in range(start, stop):
            total = fma(splat_at(s, k), load(b, k * row + j), total)
        store(c, j, total)


cdef void mix(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t rows, const Span *seen, bint add,
              vec *c) noexcept nogil:
    """c (+)= S B: row i adds those rows of b that it sees, in order."""
    cdef Py_ssize_t i, j, k, low, high, width = 2 * lanes(s)
    if seen.whole:
        for j from 0 <= j < row by width:
            for i from 0 <= i < rows by ROWS:
                tile_rows(address(s, i * BLOCK), BLOCK, address(b, j), row, BLOCK, add, address(c, i * row + j), row,
                          j + lanes(s) < row)
        return
    for i from 0 <= i < rows by ROWS:
        low, high = seen.all_start[i // ROWS], seen.all_stop[i // ROWS]
        if not add and (low > 0 or high == 0):
            clear_rows(address(c, i * row), row, ROWS)
        for k in range(i, min(i + ROWS, rows)):
            if seen.start[k] < min(low, seen.stop[k]):
                mix_row(address(s, k * BLOCK), b, row, seen.start[k], min(low, seen.stop[k]), address(c, k * row))
        if low < high:
            for j from 0 <= j < row by width:
                tile_rows(address(s, i * BLOCK + low), BLOCK, address(b, low * row + j), row, high - low,
                          add or low > 0, address(c, i * row + j), row, j + lanes(s) < row)
        for k in range(i, min(i + ROWS, rows)):
            if max(high, seen.start[k]) < seen.stop[k]:
                mix_row(address(s, k * BLOCK), b, row, max(high, seen.start[k]), seen.stop[k], address(c, k * row))


cdef void mix_transposed(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t rows, const Span *seen, bint add,
                         vec *c) noexcept nogil:
    """c (+)= S^T B: key j adds the rows of b in order, from the first that sees a key of j's group of ROWS to the last.

    What no row sees stays as it is, so where not all keys are seen, c starts from zeros.
    """
    cdef Py_ssize_t i, j, first, stop, width = 2 * lanes(s)
    if seen.whole:
        for j from 0 <= j < row by width:
            for i from 0 <= i < BLOCK by ROWS:
                tile_columns(address(s, i), address(b, j), row, rows, add, address(c, i * row + j), row,
                             j + lanes(s) < row)
        return
    for i from 0 <= i < BLOCK by ROWS:
        first, stop = seen.first_row[i // ROWS], seen.stop_row[i // ROWS]
        if first < stop:
            for j from 0 <= j < row by width:
                tile_columns(address(s, first * BLOCK + i), address(b, first * row + j), row, stop - first, add,
                             address(c, i * row + j), row, j + lanes(s) < row)
