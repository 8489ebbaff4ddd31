# Products in bfloat16 that are summed in units: what AMX's TDPBF16PS computes, by multiply-adds of float32.
#
#     a unit is 32 k, counted from where its sum begins; the last of a sum is filled with zeros
#     even = fma(a[k], b[k], even), k = 0, 2 .. 30 of the unit,   odd = fma(a[k], b[k], odd), k = 1, 3 .. 31,   both from 0
#     acc  = acc + (even + odd),   and after the last unit acc + 0
#
# each step in float32, rounded once to nearest, what is subnormal taken for zero (matmul.pxi). What a unit is filled with
# need not be multiplied: a sum that begins at + 0 and adds zeros can change in the sign of a zero alone, and that the sum
# with + 0 hides. A multiple of 32 k may rest in c like any float, so a sum is cut there alone.

cdef extern from *:
    """
    enum { CLLM_UNIT = 32, CLLM_UNIT_ROWS = CLLM_TILE_ROWS / 2 };
    /* What is loaded for several rows stays in its register: GCC would read it again for each. */
    #if defined(CLLM_AVX)
    #define CLLM_KEEP(v) __asm__("" : "+v"(v))
    #else
    #define CLLM_KEEP(v) (void)0
    #endif

    /* One k: acc[i, j] += a[i] b[j]. */
    CLLM_INLINE void cllm_unit_step(const int rows, const int vectors, const int by_rows, const float *a, const float *b,
                                    cllm_vf32 acc[CLLM_UNIT_ROWS][CLLM_TILE_VECTORS])
    {
        enum { L = CLLM_LANES_F32, PITCH = CLLM_PITCH_BYTES / sizeof(float) };
        cllm_vf32 right[CLLM_TILE_VECTORS];
        int i, j;
        for (j = 0; j < vectors; j++) {
            right[j] = cllm_load_f32(b, j * L);
            CLLM_KEEP(right[j]);
        }
        for (j = 0; j < vectors * CLLM_VECTOR_BYTES; j += CLLM_LINE_BYTES)
            __builtin_prefetch((const char *)(b + CLLM_AHEAD * vectors * L) + j, 0, 3);
        for (i = 0; i < rows; i++) {
            const cllm_vf32 left = cllm_splat_at_f32(a, by_rows ? i * PITCH : i);
            for (j = 0; j < vectors; j++) acc[i][j] = cllm_fma_f32(left, right[j], acc[i][j]);
        }
    }
    /* One unit of `depth` k, added to c. Two accumulators an element: so half the rows of a tile at a time. */
    CLLM_INLINE void cllm_unit(const int rows, const int vectors, const int by_rows, const float *a, const float *b,
                               Py_ssize_t depth, float *c, Py_ssize_t c_row)
    {
        enum { L = CLLM_LANES_F32 };
        const Py_ssize_t a_step = by_rows ? 1 : CLLM_TILE_ROWS, b_step = vectors * L;
        cllm_vf32 even[CLLM_UNIT_ROWS][CLLM_TILE_VECTORS], odd[CLLM_UNIT_ROWS][CLLM_TILE_VECTORS];
        int i, j;
        for (i = 0; i < rows; i++)
            for (j = 0; j < vectors; j++) even[i][j] = odd[i][j] = (cllm_vf32){0};
        for (; depth > 1; depth -= 2, a += 2 * a_step, b += 2 * b_step) {
            cllm_unit_step(rows, vectors, by_rows, a, b, even);
            cllm_unit_step(rows, vectors, by_rows, a + a_step, b + b_step, odd);
        }
        if (depth) cllm_unit_step(rows, vectors, by_rows, a, b, even);
        for (i = 0; i < rows; i++, c += c_row)
            for (j = 0; j < vectors; j++)
                cllm_store_f32(c, j * L, cllm_load_f32(c, j * L) + (even[i][j] + odd[i][j]));
    }
    /* As CLLM_TILE of gemm_tile.pxi; a and b begin where a unit does. */
    CLLM_INLINE void cllm_tile_body_units(const int rows, const int vectors, const int by_rows, const float *a,
                                          const float *b, Py_ssize_t depth, const float *start, Py_ssize_t start_row,
                                          float *c, Py_ssize_t c_row, const float *next)
    {
        enum { L = CLLM_LANES_F32, PITCH = CLLM_PITCH_BYTES / sizeof(float), R = CLLM_UNIT_ROWS };
        int i, j;
        for (i = 0; i < rows; i++, start += start_row, next += c_row)
            for (j = 0; j < vectors; j++) {
                cllm_store_f32(c + i * c_row, j * L, cllm_load_f32(start, j * L));
                __builtin_prefetch(next + j * L, 1, 3);
            }
        for (; depth > 0; depth -= CLLM_UNIT) {
            const Py_ssize_t deep = depth < CLLM_UNIT ? depth : CLLM_UNIT;
            if (rows > R) {
                cllm_unit(R, vectors, by_rows, a, b, deep, c, c_row);
                cllm_unit(rows - R, vectors, by_rows, a + (by_rows ? R * PITCH : R), b, deep, c + R * c_row, c_row);
            } else {
                cllm_unit(rows, vectors, by_rows, a, b, deep, c, c_row);
            }
            a += CLLM_UNIT * (by_rows ? 1 : CLLM_TILE_ROWS);
            b += CLLM_UNIT * vectors * L;
        }
    }
    static void cllm_tile_units(int rows, int vectors, int by_rows, const void *a, const void *b, Py_ssize_t depth,
                                const void *start, Py_ssize_t start_row, void *c, Py_ssize_t c_row, const void *next)
    {
        switch (rows * 8 + vectors * 2 + !!by_rows) {
        CLLM_HEIGHT(units, CLLM_TILE_ROWS)
        CLLM_HEIGHT(units, 4)
        CLLM_HEIGHT(units, 2)
        CLLM_HEIGHT(units, 1)
        }
    }
    """
    enum:
        UNIT "CLLM_UNIT"
    void tile_units "cllm_tile_units"(int rows, int vectors, bint by_rows, const void *a, const void *b, Py_ssize_t depth,
                                      const void *start, Py_ssize_t start_row, void *c, Py_ssize_t c_row,
                                      const void *next) noexcept nogil
