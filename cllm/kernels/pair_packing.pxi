# A and B packed as words of two k (pairs.pxi), rounded on the way unless they are bfloat16 already.
#
#     word[k / 2] = r16(x[k]) in the high half, r16(x[k+1]) in the low half, for even k; nothing behind an odd depth is zero
#
# The layout is that of gemm_tile.pxi with a word for an element, and half as many of them.

cdef extern from *:
    """
    typedef uint64_t cllm_vu64 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef uint32_t cllm_vu32_half __attribute__((vector_size(CLLM_VECTOR_BYTES / 2)));

    /* Words of two vectors that are rounded. */
    CLLM_INLINE cllm_vf32 cllm_join(cllm_vf32 high, cllm_vf32 low)
    {
        return (cllm_vf32)((cllm_vu32)high | (cllm_vu32)low >> 16);
    }
    /* Words of neighbours in one vector that is rounded: half as many, from words[i] on. */
    CLLM_INLINE void cllm_store_neighbours(void *words, Py_ssize_t i, cllm_vf32 v)
    {
        const cllm_vu64 u = (cllm_vu64)v;
        const cllm_vu32_half w = __builtin_convertvector((u & 0xffff0000u) | u >> 48, cllm_vu32_half);
        memcpy((uint32_t *)words + i, &w, sizeof w);
    }
    /* Words of neighbours that are bfloat16: as many as a vector has lanes, from words[i] on. */
    CLLM_INLINE void cllm_store_swapped(void *words, Py_ssize_t i, const void *source)
    {
        cllm_vu32 u;
        memcpy(&u, source, sizeof u);
        u = u << 16 | u >> 16;
        memcpy((uint32_t *)words + i, &u, sizeof u);
    }
    """
    vf32 join "cllm_join"(vf32 high, vf32 low) noexcept nogil
    void store_neighbours "cllm_store_neighbours"(void *words, Py_ssize_t i, vf32 v) noexcept nogil
    void store_swapped "cllm_store_swapped"(void *words, Py_ssize_t i, const void *source) noexcept nogil

cdef inline vf32 round_some(const vf32 *p, Py_ssize_t i, Py_ssize_t n, bint narrow) noexcept nogil:
    """r16 of the elements from i on, up to n of them and a vector; zeros behind."""
    cdef vf32 v = load_as(p, i, narrow) if n >= LANES_F32 else load_partial_as(p, i, max(n, <Py_ssize_t> 0), narrow)
    return v if narrow else r16(v)


cdef inline void pack_words(const vf32 *source, Py_ssize_t n, bint narrow, uint32_t *words) noexcept nogil:
    """Words of n elements one behind the other; up to half a vector of words is written, zeros, behind the last."""
    cdef Py_ssize_t k = 0
    if narrow:
        while k + 2 * LANES_F32 <= n:
            store_swapped(words, k // 2, <const uint16_t*> source + k)
            k += 2 * LANES_F32
    while k < n:
        store_neighbours(words, k // 2, round_some(source, k, n - k, narrow))
        k += LANES_F32


cdef inline void pack_left_pairs_of(const vf32 *source, Py_ssize_t source_row, Py_ssize_t rows, Py_ssize_t depth,
                                    bint narrow, uint32_t *panels) noexcept nogil:
    cdef uint32_t words[GROUP_ROWS + 2 * MOST_LANES]
    cdef Py_ssize_t pairs = (depth + 1) // 2, k, i
    cdef const vf32 *high
    cdef vf32 low
    memset(words, 0, sizeof(words))
    for k from 0 <= k < depth by 2:
        high = place(source, k * source_row, narrow)
        for i from 0 <= i < rows by LANES_F32:
            low = splat(source, 0.0)
            if k + 1 < depth:
                low = round_some(place(high, source_row, narrow), i, rows - i, narrow)
            store(<vf32*> words, i, join(round_some(high, i, rows - i, narrow), low))
        for i from 0 <= i < rows by TILE_ROWS:
            memcpy(panels + i * pairs + k // 2 * TILE_ROWS, words + i, TILE_ROWS * sizeof(uint32_t))


cdef inline void pack_right_pairs_of(const vf32 *source, Py_ssize_t source_row, Py_ssize_t columns, int vectors,
                                     Py_ssize_t depth, bint narrow, uint32_t *panels) noexcept nogil:
    cdef Py_ssize_t width = vectors * LANES_F32, pairs = (depth + 1) // 2, k, j, v
    cdef const vf32 *high
    cdef vf32 low
    for k from 0 <= k < depth by 2:
        high = place(source, k * source_row, narrow)
        for j from 0 <= j < columns by width:
            for v from 0 <= v < width by LANES_F32:
                low = splat(source, 0.0)
                if k + 1 < depth:
                    low = round_some(place(high, source_row, narrow), j + v, columns - j - v, narrow)
                store(<vf32*> panels, j * pairs + k // 2 * width + v,
                      join(round_some(high, j + v, columns - j - v, narrow), low))


cdef inline void pack_right_pairs_by_columns(const vf32 *source, Py_ssize_t source_row, Py_ssize_t width, Py_ssize_t depth,
                                             Py_ssize_t panel_width, uint32_t *panel) noexcept nogil:
    """As pack_right_columns, of float32."""
    cdef uint32_t rows[MOST_LANES * MOST_LANES]
    cdef uint32_t columns[MOST_LANES * MOST_LANES]
    cdef Py_ssize_t k, j, i, deep
    for j from 0 <= j < panel_width by LANES_F32:
        for k from 0 <= k < depth by 2 * LANES_F32:
            deep = min(depth - k, <Py_ssize_t> 2 * LANES_F32)
            for i in range(LANES_F32):
                pack_words(address(source, min(j + i, width - 1) * source_row + k), deep, False, rows + i * LANES_F32)
            if deep == 2 * LANES_F32:
                transpose_f32(rows, LANES_F32, LANES_F32, panel + k // 2 * panel_width + j, panel_width)
            else:
                transpose_f32(rows, LANES_F32, LANES_F32, columns, LANES_F32)
                for i in range((deep + 1) // 2):
                    memcpy(panel + (k // 2 + i) * panel_width + j, columns + i * LANES_F32, LANES_F32 * sizeof(uint32_t))


# `narrow` is a constant wherever the loops are.
cdef inline void pack_left_pairs(const vf32 *source, Py_ssize_t source_row, bint by_rows, Py_ssize_t rows, Py_ssize_t depth,
                                 bint narrow, uint32_t *panels) noexcept nogil:
    """As pack_left_rows where `by_rows`, else as pack_left_columns; what stands behind the last of `rows` is not looked at."""
    cdef Py_ssize_t i
    if by_rows:
        for i in range(rows):
            if narrow:
                pack_words(place(source, i * source_row, True), depth, True, panels + i * (PITCH_BYTES // sizeof(uint32_t)))
            else:
                pack_words(address(source, i * source_row), depth, False, panels + i * (PITCH_BYTES // sizeof(uint32_t)))
    elif narrow:
        pack_left_pairs_of(source, source_row, rows, depth, True, panels)
    else:
        pack_left_pairs_of(source, source_row, rows, depth, False, panels)


cdef inline void pack_right_pairs(const vf32 *source, Py_ssize_t source_row, Py_ssize_t columns, int vectors,
                                  Py_ssize_t depth, bint narrow, uint32_t *panels) noexcept nogil:
    """As pack_right_rows."""
    if narrow:
        pack_right_pairs_of(source, source_row, columns, vectors, depth, True, panels)
    else:
        pack_right_pairs_of(source, source_row, columns, vectors, depth, False, panels)
