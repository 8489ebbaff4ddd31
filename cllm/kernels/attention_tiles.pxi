# The inner functions of attention: one register tile for all seven products, and the softmax of a tile.
#
# All of a head is packed into planes with rows of `row` elements (head_dim rounded up to whole vectors), zero beyond
# head_dim. A tile is BLOCK queries by BLOCK keys, its rows BLOCK elements apart; a register tile is ROWS rows by two
# vectors. Every product is written C (+)= A B with A read an element at a time and B in whole vectors, so one function
# serves all: only the strides of A tell a product from its transpose. Its sum is one chain in the order of the inner
# index that starts from what C holds, or from zero: no cut of that index changes a bit.

cdef extern from *:
    """
    /* ROWS x 2 sums stay in registers beside two vectors of B and one element of A: 32 registers hold 8 x 2 with room
       to spare (and 8 divides BLOCK), 16 hold 6 x 2. BLOCK is a multiple of ROWS and of two vectors of any type; of its
       float32 tiles (16 KiB or 9 KiB) one lies in L1 beside its operands, all tiles of a step in L2. */
    #if defined(__AVX512F__) || defined(__aarch64__)
    #define CLLM_ATTENTION_ROWS 8
    #define CLLM_ATTENTION_BLOCK 64
    #else
    #define CLLM_ATTENTION_ROWS 6
    #define CLLM_ATTENTION_BLOCK 48
    #endif
    static const char cllm_zeros[2 * CLLM_VECTOR_BYTES] __attribute__((aligned(64))) = {0};
    static inline __attribute__((always_inline)) cllm_vf32 cllm_iota_f32(void)
        { cllm_vf32 v = {0}; for (int i = 0; i < CLLM_LANES_F32; i++) v[i] = (float)i; return v; }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_iota_f64(void)
        { cllm_vf64 v = {0}; for (int i = 0; i < CLLM_LANES_F64; i++) v[i] = (double)i; return v; }
    #define CLLM_LANE_TREES(S, V, F, LANES)                                                                       \\
    static inline __attribute__((always_inline)) S cllm_lane_sum_##F(V v)                                         \\
    {   S t[LANES]; memcpy(t, &v, sizeof v);                                                                      \\
        for (int n = LANES / 2; n; n /= 2) for (int i = 0; i < n; i++) t[i] += t[i + n];                          \\
        return t[0]; }                                                                                            \\
    static inline __attribute__((always_inline)) S cllm_lane_max_##F(V v)                                         \\
    {   S t[LANES]; memcpy(t, &v, sizeof v);                                                                      \\
        for (int n = LANES / 2; n; n /= 2) for (int i = 0; i < n; i++) t[i] = t[i] > t[i + n] ? t[i] : t[i + n];  \\
        return t[0]; }
    CLLM_LANE_TREES(float, cllm_vf32, f32, CLLM_LANES_F32)
    CLLM_LANE_TREES(double, cllm_vf64, f64, CLLM_LANES_F64)
    """
    enum: ROWS "CLLM_ATTENTION_ROWS"
    enum: BLOCK "CLLM_ATTENTION_BLOCK"
    const void *ZEROS "cllm_zeros"
    vf32 iota_f32 "cllm_iota_f32"() noexcept nogil
    vf64 iota_f64 "cllm_iota_f64"() noexcept nogil
    float lane_sum_f32 "cllm_lane_sum_f32"(vf32 v) noexcept nogil
    double lane_sum_f64 "cllm_lane_sum_f64"(vf64 v) noexcept nogil
    float lane_max_f32 "cllm_lane_max_f32"(vf32 v) noexcept nogil
    double lane_max_f64 "cllm_lane_max_f64"(vf64 v) noexcept nogil


cdef inline void put(vec *p, Py_ssize_t i, double x) noexcept nogil:
    """x, rounded once, to element i."""
    if vec is vf32:
        (<float *> p)[i] = <float> x
    else:
        (<double *> p)[i] = x


cdef inline vec iota(const vec *like) noexcept nogil:
    """0, 1, 2, ... in the lanes."""
    if vec is vf32:
        return iota_f32()
    else:
        return iota_f64()


cdef inline double lane_sum(vec v) noexcept nogil:
    """The sum of the lanes: halves are added to each other until one is left."""
    if vec is vf32:
        return lane_sum_f32(v)
    else:
        return lane_sum_f64(v)


cdef inline double lane_max(vec v) noexcept nogil:
    """The largest lane."""
    if vec is vf32:
        return lane_max_f32(v)
    else:
        return lane_max_f64(v)


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple


cdef extern from "<math.h>" nogil:
    double INFINITY
    double log(double x)
    double sqrt(double x)


# --- one register tile -----------------------------------------------------------------------------------------------

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


# --- products of tiles: the part above the diagonal is not computed ---------------------------------------------------

cdef void scores(const vec *a, Py_ssize_t row, const vec *panels, Py_ssize_t depth, Py_ssize_t rows, Py_ssize_t keys,
                 bint diagonal, vec *s) noexcept nogil:
    """s = A B^T over `depth` channels, B packed by `pack_panels`; as far as the diagonal needs it."""
    cdef Py_ssize_t i, j, width = 2 * lanes(a)
    for j from 0 <= j < keys by width:
        for i from 0 <= i < rows by ROWS:
            if not diagonal or j < i + ROWS:
                tile_rows(address(a, i * row), row, address(panels, j * depth), width, depth, False,
                          address(s, i * BLOCK + j), BLOCK, True)


cdef inline void finish_row(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t start, Py_ssize_t stop,
                            vec *c) noexcept nogil:
    """c[:] += sum over start <= k < stop of s[k] * b[k, :]: the end of a row of `mix` that ROWS does not divide."""
    cdef Py_ssize_t j, k
    cdef vec total
    for j from 0 <= j < row by lanes(c):
        total = load(c, j)
        for k in range(start, stop):
            total = fma(splat_at(s, k), load(b, k * row + j), total)
        store(c, j, total)


cdef void mix(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t keys, bint diagonal, bint add,
              vec *c) noexcept nogil:
    """c (+)= S B: row i adds the rows of b in order, on the diagonal none beyond its own, be it NaN."""
    cdef Py_ssize_t i, j, width = 2 * lanes(s), first = ROWS if diagonal else 0
    if diagonal and not add:
        for i from 0 <= i < ROWS * row by lanes(c):
            store(c, i, splat(c, 0.0))
    for j from 0 <= j < row by width:
        for i from first <= i < rows by ROWS:
            tile_rows(address(s, i * BLOCK), BLOCK, address(b, j), row, i if diagonal else keys, add,
                      address(c, i * row + j), row, j + lanes(s) < row)
    if diagonal:
        for i in range(rows):
            finish_row(address(s, i * BLOCK), b, row, i // ROWS * ROWS, i + 1, address(c, i * row))


cdef void mix_transposed(const vec *s, const vec *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t keys, bint diagonal,
                         bint add, vec *c) noexcept nogil:
    """c (+)= S^T B: key j adds the rows of b in order, on the diagonal from its own group of ROWS on."""
    cdef Py_ssize_t i, j, first, width = 2 * lanes(s)
    for j from 0 <= j < row by width:
        for i from 0 <= i < keys by ROWS:
            first = i if diagonal else 0
            tile_columns(address(s, first * BLOCK + i), address(b, first * row + j), row, rows - first, add,
                         address(c, i * row + j), row, j + lanes(s) < row)


# --- the softmax of a tile --------------------------------------------------------------------------------------------

cdef inline vec score(const vec *s, Py_ssize_t i, Py_ssize_t j, bint diagonal) noexcept nogil:
    """The score of query i with keys j .. j+lanes-1 of a tile, -inf above the diagonal.

    The one place for another term of the score: a distance or a bias by group is added to what is loaded.
    """
    cdef vec x = load(s, i * BLOCK + j)
    if diagonal:
        x = select_positive(splat(s, i - j + 0.5) - iota(s), x, splat(s, -INFINITY))
    return x


cdef inline Py_ssize_t row_length(Py_ssize_t i, Py_ssize_t n_lanes, bint diagonal) noexcept nogil:
    """Elements of row i of a score tile that are used: whole vectors, as far as i's group of ROWS goes."""
    return round_up((i // ROWS + 1) * ROWS, n_lanes) if diagonal else BLOCK


cdef void softmax_online(vec *s, Py_ssize_t rows, bint diagonal, bint first, vec *top, vec *total, vec *out,
                         Py_ssize_t row) noexcept nogil:
    """s = exp(s - top) by rows, where a row's `top` is its largest score so far; total += s in lanes.

    Where a row's top grows, what was summed before (total, and the row of `out`) shrinks by exp(old - new).
    """
    cdef Py_ssize_t i, j, length
    cdef double largest
    cdef vec x, peak, shrink
    for i in range(rows):
        length = row_length(i, lanes(s), diagonal)
        peak = score(s, i, 0, diagonal)
        for j from lanes(s) <= j < length by lanes(s):
            peak = vmax(score(s, i, j, diagonal), peak)
        largest = lane_max(peak)
        if first:
            put(top, i, largest)
            store(total, i * lanes(s), splat(s, 0.0))
        elif largest > element(top, i):
            shrink = vexp(splat(s, element(top, i) - largest))
            put(top, i, largest)
            store(total, i * lanes(s), load(total, i * lanes(s)) * shrink)
            for j from 0 <= j < row by lanes(s):
                store(out, i * row + j, load(out, i * row + j) * shrink)
        peak = splat_at(top, i)
        shrink = load(total, i * lanes(s))
        for j from 0 <= j < length by lanes(s):
            x = vexp(score(s, i, j, diagonal) - peak)
            store(s, i * BLOCK + j, x)
            shrink = shrink + x
        store(total, i * lanes(s), shrink)


cdef void softmax_known(vec *s, const vec *lse, Py_ssize_t rows, bint diagonal) noexcept nogil:
    """s = exp(s - lse): the probabilities of a tile once the log-sum-exp of its rows is known."""
    cdef Py_ssize_t i, j
    cdef vec known
    for i in range(rows):
        known = splat_at(lse, i)
        for j from 0 <= j < row_length(i, lanes(s), diagonal) by lanes(s):
            store(s, i * BLOCK + j, vexp(score(s, i, j, diagonal) - known))


cdef void softmax_backward(const vec *p, const vec *delta, Py_ssize_t rows, bint diagonal, vec *ds) noexcept nogil:
    """ds = p (dp - delta), dp in the place of ds."""
    cdef Py_ssize_t i, j
    cdef vec mean
    for i in range(rows):
        mean = splat_at(delta, i)
        for j from 0 <= j < row_length(i, lanes(p), diagonal) by lanes(p):
            store(ds, i * BLOCK + j, load(p, i * BLOCK + j) * (load(ds, i * BLOCK + j) - mean))
