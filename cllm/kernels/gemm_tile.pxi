# The register tile of the matrix products, and the packing that feeds it.
#
#     c[i, j] = start[i, j] + a[i, 0] b[0, j] + a[i, 1] b[1, j] + ... + a[i, depth-1] b[depth-1, j]
#
# Each element is one chain acc = fma(a[i, k], b[k, j], acc) in the order of k, in one lane of one register. So a tile's
# height, width and place cannot be seen in the result, nor can the cut of k into blocks: a float that rests in c
# between two blocks loses no bit. Lanes beyond the last column run along on whatever stands there and are not stored; a
# NaN in them is lost with them.

cdef extern from *:
    """
    /* Accumulators of the tile: TILE_ROWS x TILE_VECTORS registers; a row of b takes TILE_VECTORS more, an element of
       a one. 8 x 3 fill 28 of 32 registers and need 11 loads for 24 multiply-adds; 6 x 2 fill 15 of 16. */
    #if CLLM_REGISTERS == 32
    #define CLLM_TILE_ROWS 8
    #define CLLM_TILE_VECTORS 3
    #else
    #define CLLM_TILE_ROWS 6
    #define CLLM_TILE_VECTORS 2
    #endif
    /* A block of b has at most so many bytes, and a row and a column of it at most so many of them. Level 2 holds it, beside
       what comes next of a and some of c, where level 2 has 1 MiB as in processors with AVX-512, or 512 KiB. A panel of a,
       TILE_ROWS deep rows, stays in level 1 while the block passes by. Blocks of large products are less deep (block_steps). */
    #define CLLM_WIDTH_BYTES 3072
    #if CLLM_VECTOR_BYTES == 64
    #define CLLM_BLOCK_BYTES (792 << 10)
    #define CLLM_DEPTH_BYTES 2048
    #define CLLM_USUAL_DEPTH_BYTES 1536
    #else
    #define CLLM_BLOCK_BYTES (384 << 10)
    #define CLLM_DEPTH_BYTES 1024
    #define CLLM_USUAL_DEPTH_BYTES 1024
    #endif
    /* Rows of the panel lie a little further apart than that, lest they share the sets of level 1. */
    #define CLLM_PITCH_BYTES (CLLM_DEPTH_BYTES + 64)

    /* The tile asks for b so many k ahead: some 190 cycles, a panel being longer than level 1 and read but once before
       the next. At the end it asks for the beginning of the next panel, which lies behind this one. */
    #define CLLM_AHEAD 8
    #define CLLM_LINE_BYTES 64

    #define CLLM_INLINE static inline __attribute__((always_inline))

    /* memcpy by void pointers: given a pointer to vectors, clang would take its target to be aligned like a vector. */
    CLLM_INLINE void cllm_copy_bytes(void *target, const void *source, size_t size) { memcpy(target, source, size); }

    /* Every cache line of a row to level 2, for reading; an address that does not exist does no harm. */
    CLLM_INLINE void cllm_fetch_row(const void *row, Py_ssize_t nbytes)
    {
        const char *line = (const char *)((uintptr_t)row / CLLM_LINE_BYTES * CLLM_LINE_BYTES);
        for (; line < (const char *)row + nbytes; line += CLLM_LINE_BYTES) __builtin_prefetch(line, 0, 2);
    }

    /* rows, vectors and by_rows are constants wherever tile_body is inlined, so all loops but that over k unroll. */
    #define CLLM_TILE(S, V, F)                                                                                        \\
    CLLM_INLINE void cllm_tile_body_##F(const int rows, const int vectors, const int by_rows, const S *a, const S *b, \\
                                        Py_ssize_t depth, const S *start, Py_ssize_t start_row, S *c,                 \\
                                        Py_ssize_t c_row, const S *next)                                              \\
    {                                                                                                                 \\
        enum { L = CLLM_LANES_##F, PITCH = CLLM_PITCH_BYTES / sizeof(S) };                                            \\
        V acc[CLLM_TILE_ROWS][CLLM_TILE_VECTORS], right[CLLM_TILE_VECTORS];                                           \\
        int i, j;                                                                                                     \\
        for (i = 0; i < rows; i++, start += start_row, next += c_row) {                                               \\
            for (j = 0; j < vectors; j++) acc[i][j] = cllm_load_##F(start, j * L);                                    \\
            for (j = 0; j < vectors; j++) __builtin_prefetch(next + j * L, 1, 3);                                     \\
        }                                                                                                             \\
        for (; depth > 0; depth--, b += vectors * L, a += by_rows ? 1 : CLLM_TILE_ROWS) {                             \\
            for (j = 0; j < vectors; j++) right[j] = cllm_load_##F(b, j * L);                                         \\
            for (j = 0; j < vectors * CLLM_VECTOR_BYTES; j += CLLM_LINE_BYTES)                                        \\
                __builtin_prefetch((const char *)(b + CLLM_AHEAD * vectors * L) + j, 0, 3);                           \\
            for (i = 0; i < rows; i++) {                                                                              \\
                const V left = cllm_splat_at_##F(a, by_rows ? i * PITCH : i);                                         \\
                for (j = 0; j < vectors; j++) acc[i][j] = cllm_fma_##F(left, right[j], acc[i][j]);                    \\
            }                                                                                                         \\
        }                                                                                                             \\
        for (i = 0; i < rows; i++, c += c_row)                                                                        \\
            for (j = 0; j < vectors; j++) cllm_store_##F(c, j * L, acc[i][j]);                                        \\
    }                                                                                                                 \\
    static void cllm_tile_##F(int rows, int vectors, int by_rows, const void *a, const void *b, Py_ssize_t depth,     \\
                              const void *start, Py_ssize_t start_row, void *c, Py_ssize_t c_row, const void *next)   \\
    {                                                                                                                 \\
        switch (rows * 8 + vectors * 2 + !!by_rows) {                                                                 \\
        CLLM_HEIGHT(F, CLLM_TILE_ROWS)                                                                                \\
        CLLM_HEIGHT(F, 4)                                                                                             \\
        CLLM_HEIGHT(F, 2)                                                                                             \\
        CLLM_HEIGHT(F, 1)                                                                                             \\
        }                                                                                                             \\
    }
    #define CLLM_CASE(F, R, N, BY_ROWS)                                                                               \\
        case R * 8 + N * 2 + BY_ROWS:                                                                                 \\
            cllm_tile_body_##F(R, N, BY_ROWS, a, b, depth, start, start_row, c, c_row, next); return;
    #if CLLM_TILE_VECTORS == 3
    #define CLLM_HEIGHT(F, R) CLLM_CASE(F, R, 3, 0) CLLM_CASE(F, R, 3, 1) CLLM_CASE(F, R, 2, 0)                       \\
                              CLLM_CASE(F, R, 2, 1) CLLM_CASE(F, R, 1, 0) CLLM_CASE(F, R, 1, 1)
    #else
    #define CLLM_HEIGHT(F, R) CLLM_CASE(F, R, 2, 0) CLLM_CASE(F, R, 2, 1) CLLM_CASE(F, R, 1, 0) CLLM_CASE(F, R, 1, 1)
    #endif
    #define CLLM_LANES_f32 CLLM_LANES_F32
    #define CLLM_LANES_f64 CLLM_LANES_F64
    CLLM_TILE(float, cllm_vf32, f32)
    CLLM_TILE(double, cllm_vf64, f64)

    /* Interleave two vectors: a0 b0 a1 b1 ... (low halves) and the same of the high halves. */
    #define CLLM_LOW_2 0, 2
    #define CLLM_HIGH_2 1, 3
    #define CLLM_LOW_4 0, 4, 1, 5
    #define CLLM_HIGH_4 2, 6, 3, 7
    #define CLLM_LOW_8 0, 8, 1, 9, 2, 10, 3, 11
    #define CLLM_HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
    #define CLLM_LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
    #define CLLM_HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
    #if defined(__clang__) || __GNUC__ >= 12
    #define CLLM_SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
    #else
    #define CLLM_SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
    #endif
    #if CLLM_VECTOR_BYTES == 64
    #define CLLM_LOW_f32 CLLM_LOW_16
    #define CLLM_HIGH_f32 CLLM_HIGH_16
    #define CLLM_LOW_f64 CLLM_LOW_8
    #define CLLM_HIGH_f64 CLLM_HIGH_8
    #elif CLLM_VECTOR_BYTES == 32
    #define CLLM_LOW_f32 CLLM_LOW_8
    #define CLLM_HIGH_f32 CLLM_HIGH_8
    #define CLLM_LOW_f64 CLLM_LOW_4
    #define CLLM_HIGH_f64 CLLM_HIGH_4
    #else
    #define CLLM_LOW_f32 CLLM_LOW_4
    #define CLLM_HIGH_f32 CLLM_HIGH_4
    #define CLLM_LOW_f64 CLLM_LOW_2
    #define CLLM_HIGH_f64 CLLM_HIGH_2
    #endif

    /* target[j, i] = source[min(i, rows - 1), j] for i, j < lanes: log2(lanes) rounds that interleave row i with row
       i + lanes/2, in registers. */
    #define CLLM_TRANSPOSE(S, V, I, F)                                                                                \\
    CLLM_INLINE void cllm_transpose_##F(const void *source, Py_ssize_t source_row, Py_ssize_t rows, void *target,     \\
                                        Py_ssize_t target_row)                                                        \\
    {                                                                                                                 \\
        enum { L = CLLM_LANES_##F };                                                                                  \\
        V r[L], s[L];                                                                                                 \\
        int i, round;                                                                                                 \\
        for (i = 0; i < L; i++) r[i] = cllm_load_##F(source, (i < rows ? i : rows - 1) * source_row);                 \\
        for (round = 1; round < L; round *= 2) {                                                                      \\
            for (i = 0; i < L / 2; i++) {                                                                             \\
                s[2 * i] = CLLM_SHUFFLE(I, r[i], r[i + L / 2], CLLM_LOW_##F);                                         \\
                s[2 * i + 1] = CLLM_SHUFFLE(I, r[i], r[i + L / 2], CLLM_HIGH_##F);                                    \\
            }                                                                                                         \\
            for (i = 0; i < L; i++) r[i] = s[i];                                                                      \\
        }                                                                                                             \\
        for (i = 0; i < L; i++) cllm_store_##F(target, i * target_row, r[i]);                                         \\
    }
    CLLM_TRANSPOSE(float, cllm_vf32, cllm_vi32, f32)
    CLLM_TRANSPOSE(double, cllm_vf64, cllm_vi64, f64)
    """
    enum:
        TILE_ROWS "CLLM_TILE_ROWS"
        TILE_VECTORS "CLLM_TILE_VECTORS"
        DEPTH_BYTES "CLLM_DEPTH_BYTES"
        PITCH_BYTES "CLLM_PITCH_BYTES"
        USUAL_DEPTH_BYTES "CLLM_USUAL_DEPTH_BYTES"
        WIDTH_BYTES "CLLM_WIDTH_BYTES"
        BLOCK_BYTES "CLLM_BLOCK_BYTES"
    void fetch_row "cllm_fetch_row"(const void *row, Py_ssize_t nbytes) noexcept nogil
    void copy_bytes "cllm_copy_bytes"(void *target, const void *source, size_t size) noexcept nogil
    void tile_f32 "cllm_tile_f32"(int rows, int vectors, bint by_rows, const void *a, const void *b, Py_ssize_t depth,
                                  const void *start, Py_ssize_t start_row, void *c, Py_ssize_t c_row,
                                  const void *next) noexcept nogil
    void tile_f64 "cllm_tile_f64"(int rows, int vectors, bint by_rows, const void *a, const void *b, Py_ssize_t depth,
                                  const void *start, Py_ssize_t start_row, void *c, Py_ssize_t c_row,
                                  const void *next) noexcept nogil
    void transpose_f32 "cllm_transpose_f32"(const void *source, Py_ssize_t source_row, Py_ssize_t rows, void *target,
                                            Py_ssize_t target_row) noexcept nogil
    void transpose_f64 "cllm_transpose_f64"(const void *source, Py_ssize_t source_row, Py_ssize_t rows, void *target,
                                            Py_ssize_t target_row) noexcept nogil


cdef inline void gemm_tile(int rows, int vectors, bint by_rows, const vec *a, const vec *b, Py_ssize_t depth,
                           const vec *start, Py_ssize_t start_row, vec *c, Py_ssize_t c_row,
                           const vec *next) noexcept nogil:
    """One tile, c = start + a b; rows is TILE_ROWS, 4, 2 or 1, vectors 1 .. TILE_VECTORS, `next` the tile that follows.

    a is a panel of pack_left_rows (by_rows) or of pack_left_columns, b a panel of `vectors` vectors for each k.
    """
    if vec is vf32:
        tile_f32(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)
    else:
        tile_f64(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)


cdef inline int tile_height(Py_ssize_t rows) noexcept nogil:
    """Height of the tile that takes the first of `rows` rows."""
    return TILE_ROWS if rows >= TILE_ROWS else 4 if rows >= 4 else 2 if rows >= 2 else 1


cdef enum:
    # Rows that are packed a few lines at a time are asked for so many rows ahead: no processor foresees where the next begins,
    # unless they lie close together.
    LEFT_AHEAD = 16
    RIGHT_AHEAD = 8
    FAR_APART = 1024        # bytes

cdef inline void fetch_ahead(const void *start, Py_ssize_t row_bytes, Py_ssize_t ahead, Py_ssize_t nbytes) noexcept nogil:
    """Ask for the row that is so many rows ahead of the one that starts here."""
    if row_bytes >= FAR_APART:
        fetch_row(<const char*> start + ahead * row_bytes, nbytes)


# How A and B are packed, row by row of the source: `narrow` is a constant wherever these are called, lest a loop ask for
# each vector whether it is in bfloat16.
cdef inline void pack_along(const vec *source, Py_ssize_t n, bint narrow, vec *target) noexcept nogil:
    """target[i] = source[i], i < n, up to a whole vector."""
    cdef Py_ssize_t i = 0
    while i + lanes(target) <= n:
        store(target, i, load_as(source, i, narrow))
        i += lanes(target)
    if i < n:
        store(target, i, load_partial_as(source, i, n - i, narrow))


cdef inline void pack_few(const vec *source, Py_ssize_t n, bint narrow, vec *target) noexcept nogil:
    """target[i] = source[i] for a few i and no more; a constant n is few instructions."""
    if vec is vf32:
        if narrow:
            widen_elements(<float*> target, <const uint16_t*> source, n)
            return
    copy_bytes(target, source, n * sizeof(float) if vec is vf32 else n * sizeof(double))


cdef inline void pack_left_columns_as(const vec *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                      bint narrow, vec *panels) noexcept nogil:
    cdef Py_ssize_t itemsize = sizeof(uint16_t) if narrow else VECTOR_BYTES // lanes(panels)
    cdef Py_ssize_t k, i
    for k in range(depth):
        fetch_ahead(place(source, k * source_row, narrow), source_row * itemsize, LEFT_AHEAD, rows * itemsize)
        i = 0
        while i + TILE_ROWS <= rows:
            pack_few(place(source, k * source_row + i, narrow), TILE_ROWS, narrow,
                     address(panels, i * depth + k * TILE_ROWS))
            i += TILE_ROWS
        if i < rows:
            pack_few(place(source, k * source_row + i, narrow), rows - i, narrow,
                     address(panels, i * depth + k * TILE_ROWS))


cdef inline void pack_right_rows_as(const vec *source, Py_ssize_t source_row, Py_ssize_t columns, int vectors,
                                    Py_ssize_t depth, bint narrow, vec *panels) noexcept nogil:
    cdef Py_ssize_t width = vectors * lanes(panels)
    cdef Py_ssize_t itemsize = sizeof(uint16_t) if narrow else VECTOR_BYTES // lanes(panels)
    cdef Py_ssize_t k, j, v
    cdef const vec *row
    cdef vec *target
    for k in range(depth):
        row = place(source, k * source_row, narrow)
        fetch_ahead(row, source_row * itemsize, RIGHT_AHEAD, columns * itemsize)
        j = 0
        while j < columns:
            target = address(panels, j * depth + k * width)
            v = 0
            while v < width:
                if j + v + lanes(row) <= columns:
                    store(target, v, load_as(row, j + v, narrow))
                else:
                    store(target, v, load_partial_as(row, j + v, max(columns - j - v, <Py_ssize_t> 0), narrow))
                v += lanes(row)
            j += width


cdef inline void pack_left_rows(const vec *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                bint narrow, vec *panel) noexcept nogil:
    """panel[i, k] = source[i, k], rows PITCH_BYTES apart: for an a whose k is contiguous."""
    cdef Py_ssize_t pitch = PITCH_BYTES // (VECTOR_BYTES // lanes(panel))
    cdef Py_ssize_t i
    for i in range(rows):
        if narrow:
            pack_along(place(source, i * source_row, True), depth, True, address(panel, i * pitch))
        else:
            pack_along(address(source, i * source_row), depth, False, address(panel, i * pitch))


cdef inline void pack_left_columns(const vec *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                   bint narrow, vec *panels) noexcept nogil:
    """Panels of TILE_ROWS: panel[k, i] = source[k, i], one behind the other: for an a whose rows are k."""
    if narrow:
        pack_left_columns_as(source, source_row, rows, depth, True, panels)
    else:
        pack_left_columns_as(source, source_row, rows, depth, False, panels)


cdef inline void pack_right_rows(const vec *source, Py_ssize_t source_row, Py_ssize_t columns, int vectors,
                                 Py_ssize_t depth, bint narrow, vec *panels) noexcept nogil:
    """Panels of `vectors` vectors: panel[k, j] = source[k, j], one behind the other; zero beyond `columns`."""
    if narrow:
        pack_right_rows_as(source, source_row, columns, vectors, depth, True, panels)
    else:
        pack_right_rows_as(source, source_row, columns, vectors, depth, False, panels)


cdef inline void pack_right_columns(const vec *source, Py_ssize_t source_row, Py_ssize_t width, Py_ssize_t depth,
                                    Py_ssize_t panel_width, vec *panel) noexcept nogil:
    """panel[k, j] = source[j, k] for j < width <= panel_width: for a b whose k is contiguous."""
    cdef Py_ssize_t k, j, i
    cdef const vec *corner
    cdef vec *target
    j = 0
    while j < panel_width:
        k = 0
        while k + lanes(panel) <= depth:
            corner = address(source, j * source_row + k)
            target = address(panel, k * panel_width + j)
            if vec is vf32:
                transpose_f32(corner, source_row, width - j, target, panel_width)
            else:
                transpose_f64(corner, source_row, width - j, target, panel_width)
            k += lanes(panel)
        while k < depth:
            for i in range(lanes(panel)):
                if vec is vf32:
                    (<float*> panel)[k * panel_width + j + i] = \
                        (<const float*> source)[min(j + i, width - 1) * source_row + k]
                else:
                    (<double*> panel)[k * panel_width + j + i] = \
                        (<const double*> source)[min(j + i, width - 1) * source_row + k]
            k += 1
        j += lanes(panel)
