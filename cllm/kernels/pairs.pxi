# Products in bfloat16 by pairs of k: the tile that VDPBF16PS (AVX512-BF16) makes, and the packing that feeds it.
#
#     word = r16(x[k]) in the high half, r16(x[k+1]) in the low half, for even k
#     acc  = fma(high(a), high(b), acc),   then acc = fma(low(a), low(b), acc)
#
# is one instruction for one vector of acc, and two steps of the chain that defines a product in bfloat16 (matmul.pxi): it
# adds the high half first. It takes subnormals for zero, as the definition does. An odd depth ends with a zero in the low
# half, which the sum with + 0 at the end of each chain hides.
#
# The same steps by multiply-adds of float32 on the two halves run on any processor: they are how the packing is proved
# where the instruction is not. Products take them only when they are told to.
#
# The instruction is used where the processor has it and has no AMX: there it is slower than multiply-adds of float32
# (half as fast by tpp-mlir's measurements). Before that, once in a process, a block is multiplied both ways, and the
# instruction is not used when a bit differs.

from libc.string cimport memcmp

cdef extern from *:
    """
    #if defined(CLLM_AVX512) && (defined(__clang__) || __GNUC__ >= 10)
    #define CLLM_VDPBF16PS 1
    #include <cpuid.h>
    /* CPUID: AVX512-BF16 is leaf 7, subleaf 1, EAX bit 5; AMX-TILE leaf 7, subleaf 0, EDX bit 24. */
    static int cllm_has_vdpbf16ps(void)
    {
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1 || d >> 24 & 1) return 0;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
    }
    #else
    #define CLLM_VDPBF16PS 0
    static int cllm_has_vdpbf16ps(void) { return 0; }
    #endif

    CLLM_INLINE cllm_vf32 cllm_dot_halves(cllm_vf32 acc, cllm_vf32 a, cllm_vf32 b)
    {
        const cllm_vu32 high = (cllm_vu32){0} + 0xffff0000u;
        acc = cllm_fma_f32((cllm_vf32)((cllm_vu32)a & high), (cllm_vf32)((cllm_vu32)b & high), acc);
        return cllm_fma_f32((cllm_vf32)((cllm_vu32)a << 16), (cllm_vf32)((cllm_vu32)b << 16), acc);
    }
    #define CLLM_DOT_INSTRUCTION(acc, a, b) (cllm_vf32)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(a), (__m512bh)(b))

    /* As CLLM_TILE of gemm_tile.pxi, with a word where that has an element, and a pair of k where that has one, and + 0 at
       the end: with which a chain ends, and which nothing shows of a rest in c before. */
    #define CLLM_PAIR_TILE(NAME, TARGET, DOT)                                                                         \\
    TARGET CLLM_INLINE void cllm_tile_body_##NAME(const int rows, const int vectors, const int by_rows, const float *a, \\
                                             const float *b, Py_ssize_t pairs, const float *start,                    \\
                                             Py_ssize_t start_row, float *c, Py_ssize_t c_row, const float *next)     \\
    {                                                                                                                 \\
        enum { L = CLLM_LANES_F32, PITCH = CLLM_PITCH_BYTES / sizeof(float) };                                        \\
        cllm_vf32 acc[CLLM_TILE_ROWS][CLLM_TILE_VECTORS], right[CLLM_TILE_VECTORS];                                   \\
        int i, j;                                                                                                     \\
        for (i = 0; i < rows; i++, start += start_row, next += c_row) {                                               \\
            for (j = 0; j < vectors; j++) acc[i][j] = cllm_load_f32(start, j * L);                                    \\
            for (j = 0; j < vectors; j++) __builtin_prefetch(next + j * L, 1, 3);                                     \\
        }                                                                                                             \\
        for (; pairs > 0; pairs--, b += vectors * L, a += by_rows ? 1 : CLLM_TILE_ROWS) {                             \\
            for (j = 0; j < vectors; j++) right[j] = cllm_load_f32(b, j * L);                                         \\
            for (j = 0; j < vectors * CLLM_VECTOR_BYTES; j += CLLM_LINE_BYTES)                                        \\
                __builtin_prefetch((const char *)(b + CLLM_AHEAD * vectors * L) + j, 0, 3);                           \\
            for (i = 0; i < rows; i++) {                                                                              \\
                uint32_t word;                                                                                        \\
                memcpy(&word, a + (by_rows ? i * PITCH : i), sizeof word);                                            \\
                const cllm_vf32 left = (cllm_vf32)((cllm_vu32){0} + word);                                            \\
                for (j = 0; j < vectors; j++) acc[i][j] = DOT(acc[i][j], left, right[j]);                             \\
            }                                                                                                         \\
        }                                                                                                             \\
        for (i = 0; i < rows; i++, c += c_row)                                                                        \\
            for (j = 0; j < vectors; j++) cllm_store_f32(c, j * L, acc[i][j] + (cllm_vf32){0});                       \\
    }                                                                                                                 \\
    TARGET static void cllm_tile_##NAME(int rows, int vectors, int by_rows, const void *a, const void *b,             \\
                                        Py_ssize_t depth, const void *start, Py_ssize_t start_row, void *c,           \\
                                        Py_ssize_t c_row, const void *next)                                           \\
    {                                                                                                                 \\
        switch (rows * 8 + vectors * 2 + !!by_rows) {                                                                 \\
        CLLM_HEIGHT(NAME, CLLM_TILE_ROWS)                                                                             \\
        CLLM_HEIGHT(NAME, 4)                                                                                          \\
        CLLM_HEIGHT(NAME, 2)                                                                                          \\
        CLLM_HEIGHT(NAME, 1)                                                                                          \\
        }                                                                                                             \\
    }
    CLLM_PAIR_TILE(halves, , cllm_dot_halves)
    #if CLLM_VDPBF16PS
    CLLM_PAIR_TILE(instruction, __attribute__((target("avx512bf16"))), CLLM_DOT_INSTRUCTION)
    #else
    #define cllm_tile_instruction cllm_tile_halves
    #endif

    /* How chains are made in this process, and units (units.pxi, amx.pxi); DECIDE until the first of them. */
    enum { CLLM_DECIDE = -1, CLLM_SINGLES, CLLM_HALVES, CLLM_INSTRUCTION, CLLM_UNITS, CLLM_PLAIN_TILES, CLLM_AMX_TILES };
    static int cllm_bfloat16_way = CLLM_DECIDE, cllm_units_way = CLLM_DECIDE;
    """
    enum:
        DECIDE "CLLM_DECIDE"
        SINGLES "CLLM_SINGLES"
        HALVES "CLLM_HALVES"
        INSTRUCTION "CLLM_INSTRUCTION"
        UNITS "CLLM_UNITS"
        TILES "CLLM_PLAIN_TILES"
        AMX "CLLM_AMX_TILES"
    int bfloat16_way "cllm_bfloat16_way"
    int units_way "cllm_units_way"
    bint has_vdpbf16ps "cllm_has_vdpbf16ps"() noexcept nogil
    void tile_halves "cllm_tile_halves"(int rows, int vectors, bint by_rows, const void *a, const void *b,
                                        Py_ssize_t depth, const void *start, Py_ssize_t start_row, void *c,
                                        Py_ssize_t c_row, const void *next) noexcept nogil
    void tile_instruction "cllm_tile_instruction"(int rows, int vectors, bint by_rows, const void *a, const void *b,
                                                  Py_ssize_t depth, const void *start, Py_ssize_t start_row, void *c,
                                                  Py_ssize_t c_row, const void *next) noexcept nogil


cdef inline bint in_pairs(int way) noexcept nogil:
    """Whether what is packed is words of two k."""
    return way == HALVES or way == INSTRUCTION


cdef enum:
    PROBE_DEPTH = 66        # k of the tiles by which the instruction is tried


cdef inline void product_tile(int way, int rows, int vectors, bint by_rows, const vec *a, const vec *b,
                              Py_ssize_t depth, const vec *start, Py_ssize_t start_row, vec *c, Py_ssize_t c_row,
                              const vec *next) noexcept nogil:
    """`gemm_tile`, of elements or of words as `way` says; `depth` counts what a and b hold."""
    if vec is vf32:
        if way == UNITS:
            tile_units(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)
            return
        if way == INSTRUCTION:
            tile_instruction(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)
            return
        if way == HALVES:
            tile_halves(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)
            return
    gemm_tile(rows, vectors, by_rows, a, b, depth, start, start_row, c, c_row, next)


cdef inline void join_rows(const uint32_t *source, Py_ssize_t width, Py_ssize_t depth, uint32_t *words) noexcept nogil:
    """words[k // 2, j] from source[k, j] and source[k+1, j], j < width; words may begin where source does, or before."""
    cdef Py_ssize_t k, j
    for k from 0 <= k < depth - 1 by 2:
        for j in range(width):
            words[k // 2 * width + j] = source[k * width + j] | source[(k + 1) * width + j] >> 16
    if depth % 2:
        for j in range(width):
            words[depth // 2 * width + j] = source[(depth - 1) * width + j]


def bfloat16_instruction():
    """What makes products in bfloat16: "amx" those in units (TDPBF16PS; chains are emulated there), "avx512_bf16" chains
    (VDPBF16PS), or "emulated", multiply-adds of float32 on rounded operands."""
    if decided_units() == AMX:
        return "amx"
    return "avx512_bf16" if decided_way() == INSTRUCTION else "emulated"


def take_bfloat16(str way):
    """How products in bfloat16 are made from now on, in this process: "decide" as the processor allows, "singles" or "halves"
    by multiply-adds of float32, element by element or as pairs, "tiles" those in units by the stand-in for AMX.
    Bits are the same; for tests.

    Raises
    ------
    ConfigError
    """
    global bfloat16_way, units_way
    known = {"decide": DECIDE, "singles": SINGLES, "halves": HALVES, "tiles": TILES}
    if way not in known:
        raise ConfigError("take_bfloat16(way)", f"must be one of {', '.join(known)}", way, "Choose one of these.")
    bfloat16_way = DECIDE if way == "tiles" else known[way]
    units_way = TILES if way == "tiles" else DECIDE


def bfloat16_pairs_agree():
    """Whether tiles of pairs have the bits of the same tiles element by element: by the instruction where the kernels and the
    processor have it, else by float32. It is asked before the instruction is first used."""
    return instruction_keeps_the_definition()


cdef int decided_way() except -2:
    """`bfloat16_way`, decided when it was not."""
    global bfloat16_way
    if bfloat16_way == DECIDE:
        bfloat16_way = INSTRUCTION if has_vdpbf16ps() and instruction_keeps_the_definition() else SINGLES
    return bfloat16_way


cdef inline uint32_t drawn_bits(uint32_t *state, uint32_t least, uint32_t span) noexcept nogil:
    """A bfloat16 as the bits of a float32: any sign and fraction, an exponent of `span` from `least` on; at times zero."""
    cdef uint32_t bits
    state[0] = state[0] * 1664525 + 1013904223
    bits = state[0] >> 31 << 31
    if state[0] >> 27 & 15:
        bits |= (least + (state[0] >> 8) % span) << 23
        state[0] = state[0] * 1664525 + 1013904223
        bits |= state[0] >> 8 & 0x007f0000
    return bits


cdef bint instruction_keeps_the_definition() noexcept:
    """Whether tiles by the instruction have the bits of the same tiles by float32, and words by it those of `r16`.

    Numbers of many sizes, of nearly one, and such that products and starts are about the least that are not subnormal;
    zeros of both signs among them. What is NaN need not agree.
    """
    cdef uint32_t a[PROBE_DEPTH * TILE_ROWS]
    cdef uint32_t b[PROBE_DEPTH * TILE_VECTORS * 16]
    cdef uint32_t start[TILE_ROWS * TILE_VECTORS * 16]
    cdef float singles[TILE_ROWS * TILE_VECTORS * 16]
    cdef float paired[TILE_ROWS * TILE_VECTORS * 16]
    cdef Py_ssize_t i, width = TILE_VECTORS * LANES_F32, n = TILE_ROWS * width
    cdef uint32_t state = 1, least, span
    cdef size_t before
    cdef int trial
    for trial in range(48):
        least = 32 if trial % 3 == 0 else 124 if trial % 3 == 1 else 61
        span = 128 if trial % 3 == 0 else 8 if trial % 3 == 1 else 6
        for i in range(PROBE_DEPTH * TILE_ROWS):
            a[i] = drawn_bits(&state, least, span)
        for i in range(PROBE_DEPTH * width):
            b[i] = drawn_bits(&state, least, span)
        for i in range(n):  # the last kind subnormal
            start[i] = drawn_bits(&state, 0 if span == 6 else least, 1 if span == 6 else span)
        before = flush_begin()
        tile_f32(TILE_ROWS, TILE_VECTORS, False, a, b, PROBE_DEPTH, start, width, singles, width, singles)
        join_rows(a, TILE_ROWS, PROBE_DEPTH, a)
        join_rows(b, width, PROBE_DEPTH, b)
        if has_vdpbf16ps():
            tile_instruction(TILE_ROWS, TILE_VECTORS, False, a, b, PROBE_DEPTH // 2, start, width, paired, width, paired)
        else:
            tile_halves(TILE_ROWS, TILE_VECTORS, False, a, b, PROBE_DEPTH // 2, start, width, paired, width, paired)
        flush_end(before)
        for i in range(n):
            if singles[i] == singles[i] and singles[i] != paired[i]:
                return False
    return not has_vdpbf16ps() or conversion_keeps_the_definition()


cdef bint conversion_keeps_the_definition() noexcept:
    """Whether words that the processor rounds have the bits of those that `r16` does: finite numbers of any size, ties."""
    cdef uint32_t x[2 * PROBE_DEPTH]
    cdef uint32_t plain[PROBE_DEPTH + MOST_LANES]
    cdef uint32_t ours[PROBE_DEPTH + MOST_LANES]
    cdef uint32_t state = 1
    cdef Py_ssize_t i
    cdef int trial
    for trial in range(48):
        for i in range(2 * PROBE_DEPTH):
            x[i] = drawn_bits(&state, 0, 254)
            state = state * 1664525 + 1013904223
            x[i] |= 0x8000 if trial % 2 else state >> 16    # next to it, or half way to the next
        words_along_plain(<const float*> x, 2 * PROBE_DEPTH, plain)
        words_along_instruction(<const float*> x, 2 * PROBE_DEPTH, ours)
        if memcmp(plain, ours, PROBE_DEPTH * sizeof(uint32_t)) != 0:
            return False
        words_across_plain(<const float*> x, <const float*> x + PROBE_DEPTH, PROBE_DEPTH, plain)
        words_across_instruction(<const float*> x, <const float*> x + PROBE_DEPTH, PROBE_DEPTH, ours)
        if memcmp(plain, ours, PROBE_DEPTH * sizeof(uint32_t)) != 0:
            return False
    return True
