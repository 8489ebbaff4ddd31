# A and B packed as words of two k (pairs.pxi), rounded on the way unless they are bfloat16 already.
#
#     word[k / 2] = r16(x[k]) in the high half, r16(x[k+1]) in the low half, for even k; nothing behind an odd depth is zero
#
# The layout is that of gemm_tile.pxi with a word for an element, and half as many of them.

cdef extern from *:
    """
    typedef uint64_t cllm_vu64 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef uint32_t cllm_vu32_half __attribute__((vector_size(CLLM_VECTOR_BYTES / 2)));

    /* Words of a row of the widest block; words from a row to the next where rows wait to be turned, a line more than the
       deepest block has, lest they share the sets of level 1. */
    enum { CLLM_WIDEST = CLLM_WIDTH_BYTES / 4 + CLLM_LANES_F32, CLLM_TURNED = CLLM_DEPTH_BYTES / 8 + CLLM_LANES_F32 };

    /* Words of neighbours in one vector that is rounded: half as many. */
    CLLM_INLINE void cllm_put_neighbours(uint32_t *words, cllm_vf32 v)
    {
        const cllm_vu64 u = (cllm_vu64)v;
        const cllm_vu32_half w = __builtin_convertvector((u & 0xffff0000u) | u >> 48, cllm_vu32_half);
        memcpy(words, &w, sizeof w);
    }
    /* Words of neighbours in two vectors, one behind the other, and words of one vector over another. */
    CLLM_INLINE void cllm_put_along_plain(uint32_t *words, cllm_vf32 first, cllm_vf32 second)
    {
        cllm_put_neighbours(words, cllm_r16(first));
        cllm_put_neighbours(words + CLLM_LANES_F32 / 2, cllm_r16(second));
    }
    CLLM_INLINE void cllm_put_across_plain(uint32_t *words, cllm_vf32 high, cllm_vf32 low)
    {
        const cllm_vu32 w = (cllm_vu32)cllm_r16(high) | (cllm_vu32)cllm_r16(low) >> 16;
        memcpy(words, &w, sizeof w);
    }
    #if CLLM_VDPBF16PS
    #define CLLM_BFLOAT16_TARGET __attribute__((target("avx512bf16")))
    /* VCVTNE2PS2BF16 rounds as cllm_r16 does: to nearest even, what is subnormal to zero of its sign, whatever is set. */
    CLLM_BFLOAT16_TARGET CLLM_INLINE void cllm_put_along_instruction(uint32_t *words, cllm_vf32 first, cllm_vf32 second)
    {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        _mm512_storeu_si512(words, _mm512_rol_epi32(halves, 16));
    }
    CLLM_BFLOAT16_TARGET CLLM_INLINE void cllm_put_across_instruction(uint32_t *words, cllm_vf32 high, cllm_vf32 low)
    {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        const __m512i order = _mm512_add_epi16(_mm512_set1_epi32(16 << 16), _mm512_set_epi32(
            0xf000f, 0xe000e, 0xd000d, 0xc000c, 0xb000b, 0xa000a, 0x90009, 0x80008,
            0x70007, 0x60006, 0x50005, 0x40004, 0x30003, 0x20002, 0x10001, 0x00000));
        _mm512_storeu_si512(words, _mm512_permutexvar_epi16(order, halves));
    }
    #endif

    /* A vector of which n elements are there, if any; the others are zero. */
    CLLM_INLINE cllm_vf32 cllm_load_few(const float *x, Py_ssize_t n)
    {
        const cllm_vf32 none = {0};
        return n >= CLLM_LANES_F32 ? cllm_load_f32(x, 0) : n > 0 ? cllm_load_partial_f32(x, 0, n) : none;
    }

    /* words[k / 2] of x[k], x[k+1], k < n; words[j] of high[j], low[j], j < n. Behind the last a vector of words may be
       written; low may be nowhere, which is zero. */
    #define CLLM_PAIR_WORDS(NAME, TARGET)                                                                             \\
    TARGET static void cllm_words_along_##NAME(const float *x, Py_ssize_t n, uint32_t *words)                         \\
    {                                                                                                                 \\
        enum { L = CLLM_LANES_F32 };                                                                                  \\
        Py_ssize_t k;                                                                                                 \\
        for (k = 0; k + 2 * L <= n; k += 2 * L)                                                                       \\
            cllm_put_along_##NAME(words + k / 2, cllm_load_f32(x, k), cllm_load_f32(x, k + L));                       \\
        if (k < n) cllm_put_along_##NAME(words + k / 2, cllm_load_few(x + k, n - k), cllm_load_few(x + k + L, n - k - L)); \\
    }                                                                                                                 \\
    TARGET static void cllm_words_across_##NAME(const float *high, const float *low, Py_ssize_t n, uint32_t *words)   \\
    {                                                                                                                 \\
        enum { L = CLLM_LANES_F32 };                                                                                  \\
        const cllm_vf32 none = {0};                                                                                   \\
        Py_ssize_t j;                                                                                                 \\
        for (j = 0; j + L <= n; j += L)                                                                               \\
            cllm_put_across_##NAME(words + j, cllm_load_f32(high, j), low ? cllm_load_f32(low, j) : none);            \\
        if (j < n)                                                                                                    \\
            cllm_put_across_##NAME(words + j, cllm_load_few(high + j, n - j), low ? cllm_load_few(low + j, n - j) : none); \\
    }
    CLLM_PAIR_WORDS(plain, )
    #if CLLM_VDPBF16PS
    CLLM_PAIR_WORDS(instruction, CLLM_BFLOAT16_TARGET)
    #else
    #define cllm_words_along_instruction cllm_words_along_plain
    #define cllm_words_across_instruction cllm_words_across_plain
    #endif

    /* The same of what is bfloat16. */
    static void cllm_words_along_narrow(const uint16_t *x, Py_ssize_t n, uint32_t *words)
    {
        Py_ssize_t i;
        for (i = 0; i < n / 2; i++) {
            uint32_t both;
            memcpy(&both, x + 2 * i, sizeof both);
            words[i] = both << 16 | both >> 16;
        }
        if (n % 2) words[n / 2] = (uint32_t)x[n - 1] << 16;
    }
    static void cllm_words_across_narrow(const uint16_t *high, const uint16_t *low, Py_ssize_t n, uint32_t *words)
    {
        Py_ssize_t j;
        if (low) for (j = 0; j < n; j++) words[j] = (uint32_t)high[j] << 16 | low[j];
        else for (j = 0; j < n; j++) words[j] = (uint32_t)high[j] << 16;
    }
    """
    enum:
        WIDEST "CLLM_WIDEST"
        TURNED "CLLM_TURNED"
    void words_along_plain "cllm_words_along_plain"(const float *x, Py_ssize_t n, uint32_t *words) noexcept nogil
    void words_along_instruction "cllm_words_along_instruction"(const float *x, Py_ssize_t n, uint32_t *words) noexcept nogil
    void words_along_narrow "cllm_words_along_narrow"(const uint16_t *x, Py_ssize_t n, uint32_t *words) noexcept nogil
    void words_across_plain "cllm_words_across_plain"(const float *high, const float *low, Py_ssize_t n,
                                                      uint32_t *words) noexcept nogil
    void words_across_instruction "cllm_words_across_instruction"(const float *high, const float *low, Py_ssize_t n,
                                                                  uint32_t *words) noexcept nogil
    void words_across_narrow "cllm_words_across_narrow"(const uint16_t *high, const uint16_t *low, Py_ssize_t n,
                                                        uint32_t *words) noexcept nogil


cdef inline void words_along(int way, const void *x, Py_ssize_t n, bint narrow, uint32_t *words) noexcept nogil:
    """words[k / 2] of neighbours, k < n."""
    if narrow:
        words_along_narrow(<const uint16_t*> x, n, words)
    elif way == INSTRUCTION:
        words_along_instruction(<const float*> x, n, words)
    else:
        words_along_plain(<const float*> x, n, words)


cdef inline void words_across(int way, const void *x, Py_ssize_t row, bint both, Py_ssize_t n, bint narrow,
                              uint32_t *words) noexcept nogil:
    """words[j] of x[j] and, if there are `both`, of x[row + j], j < n."""
    if narrow:
        words_across_narrow(<const uint16_t*> x, <const uint16_t*> x + row if both else NULL, n, words)
    elif way == INSTRUCTION:
        words_across_instruction(<const float*> x, <const float*> x + row if both else NULL, n, words)
    else:
        words_across_plain(<const float*> x, <const float*> x + row if both else NULL, n, words)


cdef inline void pack_left_pairs_rows(int way, const vf32 *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                      bint narrow, uint32_t *panel) noexcept nogil:
    """As pack_left_rows."""
    cdef Py_ssize_t i
    for i in range(rows):
        words_along(way, place(source, i * source_row, narrow), depth, narrow, panel + i * (PITCH_BYTES // sizeof(uint32_t)))


cdef inline void pack_left_pairs_columns(int way, const vf32 *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                         bint narrow, uint32_t *panels) noexcept nogil:
    """As pack_left_columns, of at most GROUP_ROWS."""
    cdef uint32_t words[GROUP_ROWS + MOST_LANES]
    cdef Py_ssize_t itemsize = sizeof(uint16_t) if narrow else sizeof(float)
    cdef Py_ssize_t pairs = (depth + 1) // 2, k, i
    memset(words, 0, sizeof(words))
    for k from 0 <= k < depth by 2:
        for i in range(2):
            fetch_ahead(place(source, (k + i) * source_row, narrow), source_row * itemsize, LEFT_AHEAD, rows * itemsize)
        words_across(way, place(source, k * source_row, narrow), source_row, k + 1 < depth, rows, narrow, words)
        for i from 0 <= i < rows by TILE_ROWS:
            memcpy(panels + i * pairs + k // 2 * TILE_ROWS, words + i, TILE_ROWS * sizeof(uint32_t))


cdef inline void pack_right_pairs_rows(int way, const vf32 *source, Py_ssize_t source_row, Py_ssize_t columns, int vectors,
                                       Py_ssize_t depth, bint narrow, uint32_t *panels) noexcept nogil:
    """As pack_right_rows, of at most WIDTH_BYTES."""
    cdef uint32_t words[WIDEST]
    cdef Py_ssize_t itemsize = sizeof(uint16_t) if narrow else sizeof(float)
    cdef Py_ssize_t width = vectors * LANES_F32, pairs = (depth + 1) // 2, k, j
    memset(words, 0, sizeof(words))
    for k from 0 <= k < depth by 2:
        for j in range(2):
            fetch_ahead(place(source, (k + j) * source_row, narrow), source_row * itemsize, RIGHT_AHEAD, columns * itemsize)
        words_across(way, place(source, k * source_row, narrow), source_row, k + 1 < depth, columns, narrow, words)
        for j from 0 <= j < columns by width:
            memcpy(panels + j * pairs + k // 2 * width, words + j, width * sizeof(uint32_t))


cdef inline void pack_right_pairs_columns(int way, const vf32 *source, Py_ssize_t source_row, Py_ssize_t width,
                                          Py_ssize_t depth, Py_ssize_t panel_width, uint32_t *panel) noexcept nogil:
    """As pack_right_columns, of float32."""
    cdef uint32_t rows[MOST_LANES * TURNED]
    cdef uint32_t columns[MOST_LANES * MOST_LANES]
    cdef Py_ssize_t k0, pairs, k, j, i
    for k0 from 0 <= k0 < depth by 2 * (TURNED - LANES_F32):
        pairs = (min(depth - k0, <Py_ssize_t> 2 * (TURNED - LANES_F32)) + 1) // 2
        for j from 0 <= j < panel_width by LANES_F32:
            for i in range(LANES_F32):
                words_along(way, address(source, min(j + i, width - 1) * source_row + k0), min(depth - k0, 2 * pairs), False,
                            rows + i * TURNED)
            for k from 0 <= k < pairs by LANES_F32:
                if k + LANES_F32 <= pairs:
                    transpose_f32(rows + k, TURNED, LANES_F32, panel + (k0 // 2 + k) * panel_width + j, panel_width)
                else:
                    transpose_f32(rows + k, TURNED, LANES_F32, columns, LANES_F32)
                    for i in range(pairs - k):
                        memcpy(panel + (k0 // 2 + k + i) * panel_width + j, columns + i * LANES_F32,
                               LANES_F32 * sizeof(uint32_t))
