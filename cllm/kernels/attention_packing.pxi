# Packing for attention: one head of qkv, dy or y as rows of whole vectors, or as panels of its transpose.
#
# The one place where q and k are scaled and turned on their way in, and their gradients turned back on the way out.
# Turning by position (Su et al., 2021, in the form with halves): channels m and m + R/2 of the first R are a pair,
#
#     (u, v) -> (u cos - v sin, v cos + u sin),    back: the same with -sin
#
# Where qkv is bfloat16, what has been turned is rounded to it again, and the scores are scaled rather than q.

cdef extern from *:
    """
    /* The transpose of a square of 16-byte rows: 4 x 4 in float32, 2 x 2 in float64. */
    typedef float cllm_row_f32 __attribute__((vector_size(16)));
    typedef double cllm_row_f64 __attribute__((vector_size(16)));
    #if defined(__clang__)
    #define CLLM_PICK_F32(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
    #define CLLM_PICK_F64(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
    #else
    typedef int32_t cllm_pick_f32 __attribute__((vector_size(16)));
    typedef int64_t cllm_pick_f64 __attribute__((vector_size(16)));
    #define CLLM_PICK_F32(a, b, ...) __builtin_shuffle(a, b, (cllm_pick_f32){__VA_ARGS__})
    #define CLLM_PICK_F64(a, b, ...) __builtin_shuffle(a, b, (cllm_pick_f64){__VA_ARGS__})
    #endif
    static inline __attribute__((always_inline))
    void cllm_turn_f32(const void *x, Py_ssize_t row, void *y, Py_ssize_t y_row)
    {   cllm_row_f32 r[4], pair[4];
        for (int i = 0; i < 4; i++) memcpy(&r[i], (const float *)x + i * row, 16);
        for (int i = 0; i < 2; i++) {
            pair[2 * i] = CLLM_PICK_F32(r[i], r[i + 2], 0, 4, 1, 5);
            pair[2 * i + 1] = CLLM_PICK_F32(r[i], r[i + 2], 2, 6, 3, 7); }
        for (int i = 0; i < 2; i++) {
            r[2 * i] = CLLM_PICK_F32(pair[i], pair[i + 2], 0, 4, 1, 5);
            r[2 * i + 1] = CLLM_PICK_F32(pair[i], pair[i + 2], 2, 6, 3, 7); }
        for (int i = 0; i < 4; i++) memcpy((float *)y + i * y_row, &r[i], 16); }
    static inline __attribute__((always_inline))
    void cllm_turn_f64(const void *x, Py_ssize_t row, void *y, Py_ssize_t y_row)
    {   cllm_row_f64 a, b, c, d;
        memcpy(&a, (const double *)x, 16);
        memcpy(&b, (const double *)x + row, 16);
        c = CLLM_PICK_F64(a, b, 0, 2);
        d = CLLM_PICK_F64(a, b, 1, 3);
        memcpy((double *)y, &c, 16);
        memcpy((double *)y + y_row, &d, 16); }
    """
    enum: TURN_BYTES "16"
    void turn_f32 "cllm_turn_f32"(const void *x, Py_ssize_t row, void *y, Py_ssize_t y_row) noexcept nogil
    void turn_f64 "cllm_turn_f64"(const void *x, Py_ssize_t row, void *y, Py_ssize_t y_row) noexcept nogil


cdef void pack_rows(const vec *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t head_dim, double scale, vec *packed,
                    Py_ssize_t row, bint narrow) noexcept nogil:
    """packed = scale * x in rows of whole vectors, with rows of zeros up to a multiple of ROWS."""
    cdef Py_ssize_t i, j
    cdef vec factor = splat(x, scale)
    for i in range(rows):
        for j from 0 <= j <= head_dim - lanes(x) by lanes(x):
            store(packed, i * row + j, load_as(x, i * stride + j, narrow) * factor)
        if j < head_dim:
            store(packed, i * row + j, load_partial_as(x, i * stride + j, head_dim - j, narrow) * factor)
    for i in range(rows, round_up(rows, ROWS)):
        for j from 0 <= j < row by lanes(x):
            store(packed, i * row + j, splat(x, 0.0))


cdef void unpack_rows(const vec *packed, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t head_dim, double scale, vec *x,
                      Py_ssize_t stride, bint narrow) noexcept nogil:
    """x = scale * packed."""
    cdef Py_ssize_t i, j
    cdef vec factor = splat(x, scale)
    for i in range(rows):
        for j from 0 <= j <= head_dim - lanes(x) by lanes(x):
            store_as(x, i * stride + j, load(packed, i * row + j) * factor, False, narrow)
        if j < head_dim:
            store_partial_as(x, i * stride + j, load(packed, i * row + j) * factor, head_dim - j, narrow)


cdef inline void turn(const vec *x, Py_ssize_t row, vec *y, Py_ssize_t y_row) noexcept nogil:
    """y[j, i] = x[i, j] for a square of TURN_BYTES."""
    if vec is vf32:
        turn_f32(x, row, y, y_row)
    else:
        turn_f64(x, row, y, y_row)


cdef void pack_panels(const vec *x, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t head_dim, vec *panels) noexcept nogil:
    """The transpose of packed rows in panels two vectors of rows wide: panels[i // width, channel, i % width]."""
    cdef Py_ssize_t i, j, k, width = 2 * lanes(x), side = lanes(x) * TURN_BYTES // VECTOR_BYTES
    cdef vec *panel
    for i from 0 <= i < round_up(rows, width) by side:
        panel = address(panels, i // width * width * head_dim + i % width)
        j = 0
        if i + side <= rows:
            while j + side <= head_dim:
                turn(address(x, i * row + j), row, address(panel, j * width), width)
                j += side
        for j in range(j, head_dim):
            for k in range(side):
                put(panel, j * width + k, element(x, (i + k) * row + j) if i + k < rows else 0.0)


cdef void rotate_rows(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, bint back, vec *x) noexcept nogil:
    """Turn packed rows of q or k by their positions, or back; nothing where there is no rotation."""
    cdef Py_ssize_t i, m, n, at_position, at_u
    cdef vec u, v, c, s, sign = splat(x, -1.0 if back else 1.0)
    cdef bint rounds = at.qkv_narrow and not back
    if at.cos == NULL:
        return
    for i in range(block_rows(at, block)):
        at_position = block * BLOCK + i
        if at.positions != NULL:
            at_position = at.positions[sequence * at.positions_step + at_position]
        for m from 0 <= m < at.half by lanes(x):
            n = min(at.half - m, <Py_ssize_t> lanes(x))
            at_u = i * at.wide + m
            u, v = load_partial(x, at_u, n), load_partial(x, at_u + at.half, n)
            c = load_partial(<const vec *> at.cos, at_position * at.half + m, n)
            s = load_partial(<const vec *> at.sin, at_position * at.half + m, n) * sign
            store_partial(x, at_u, rounded(x, fnma(v, s, u * c), rounds), n)
            store_partial(x, at_u + at.half, rounded(x, fma(u, s, v * c), rounds), n)
