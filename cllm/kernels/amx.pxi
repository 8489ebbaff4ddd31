# Products in units (units.pxi) by tiles of 16 rows and 16 columns, as TDPBF16PS of AMX makes them, and the packing for it.
#
#     word   r16(x[k]) in the low half, r16(x[k+1]) in the high half, for even k: two bfloat16 as they lie in memory
#     a      16 rows of 16 words for each unit, one unit behind the other; b, a row of words for each pair of k
#
# One instruction adds a unit to a tile of C; which half of a word is which k it does not matter, since the two chains are
# added to each other. It takes subnormals for zero and looks at no setting of the thread. Three tiles of C lie side by side, as
# a panel of B is wide: with one of A and three of B they are seven of the eight registers.
#
# The same words by multiply-adds of float32, one element after the other, run on any processor, on panels as wide as its own:
# by them the packing is proved where AMX is not. Products take them only when they are told to.
#
# AMX is used on Linux, where the processor has it and the system gives leave for its registers, which is asked for once in
# a process. Before that a product is made both ways, and the instruction is not used when a bit differs.

from cpython.mem cimport PyMem_Calloc, PyMem_Free

cdef extern from *:
    """
    enum { CLLM_SIDE = 16 }; /* rows of a tile, its columns, and pairs of k in a unit */
    #if defined(CLLM_AVX512) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
    #include <cpuid.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define CLLM_WITH_AMX __attribute__((target("amx-tile,amx-bf16")))

    /* CPUID leaf 7, EDX: AMX-TILE is bit 24, AMX-BF16 bit 22. ARCH_REQ_XCOMP_PERM for the data of tiles: 0x1023, 18. */
    static int cllm_has_amx(void)
    {
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 22 & 1)) return 0;
        return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    }
    CLLM_WITH_AMX static void cllm_tiles_begin(void)
    {
        struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
        memset(&config, 0, sizeof config);
        config.palette = 1;
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = CLLM_SIDE;
        __asm__ volatile("" : : "r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    CLLM_WITH_AMX static void cllm_tiles_end(void) { _tile_release(); }

    /* c += units of a b, 16, 32 or 48 columns: C in registers 0 .. 2, A in 3, B in 4 .. 6. The header's loads do not say
       that they read memory. */
    CLLM_WITH_AMX static void cllm_tiles_amx(Py_ssize_t columns, Py_ssize_t units, const uint32_t *a, const uint32_t *b,
                                             Py_ssize_t b_row, float *c, Py_ssize_t c_row)
    {
        const Py_ssize_t across = b_row * 4, down = c_row * 4;
        __asm__ volatile("" : : : "memory");
        _tile_loadd(0, c, down);
        if (columns > CLLM_SIDE) _tile_loadd(1, c + CLLM_SIDE, down);
        if (columns > 2 * CLLM_SIDE) _tile_loadd(2, c + 2 * CLLM_SIDE, down);
        for (; units > 0; units--, a += CLLM_SIDE * CLLM_SIDE, b += CLLM_SIDE * b_row) {
            _tile_loadd(3, a, 64);
            _tile_loadd(4, b, across);
            _tile_dpbf16ps(0, 3, 4);
            if (columns > CLLM_SIDE) { _tile_loadd(5, b + CLLM_SIDE, across); _tile_dpbf16ps(1, 3, 5); }
            if (columns > 2 * CLLM_SIDE) { _tile_loadd(6, b + 2 * CLLM_SIDE, across); _tile_dpbf16ps(2, 3, 6); }
        }
        _tile_stored(0, c, down);
        if (columns > CLLM_SIDE) _tile_stored(1, c + CLLM_SIDE, down);
        if (columns > 2 * CLLM_SIDE) _tile_stored(2, c + 2 * CLLM_SIDE, down);
        __asm__ volatile("" : : : "memory");
    }
    #else
    static int cllm_has_amx(void) { return 0; }
    static void cllm_tiles_begin(void) {}
    static void cllm_tiles_end(void) {}
    #define cllm_tiles_amx cllm_tiles_plain
    #endif

    static inline float cllm_half(uint32_t bits)
    {
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    static void cllm_tiles_plain(Py_ssize_t columns, Py_ssize_t units, const uint32_t *a, const uint32_t *b,
                                 Py_ssize_t b_row, float *c, Py_ssize_t c_row)
    {
        for (; units > 0; units--, a += CLLM_SIDE * CLLM_SIDE, b += CLLM_SIDE * b_row)
            for (int m = 0; m < CLLM_SIDE; m++)
                for (Py_ssize_t n = 0; n < columns; n++) {
                    float even = 0, odd = 0;
                    for (int k = 0; k < CLLM_SIDE; k++) {
                        const uint32_t left = a[m * CLLM_SIDE + k], right = b[k * b_row + n];
                        even = __builtin_fmaf(cllm_half(left << 16), cllm_half(right << 16), even);
                        odd = __builtin_fmaf(cllm_half(left & 0xffff0000u), cllm_half(right & 0xffff0000u), odd);
                    }
                    c[m * c_row + n] += even + odd;
                }
    }
    /* Words of one pair of k, of rounded elements. */
    CLLM_INLINE cllm_vf32 cllm_words(cllm_vf32 even, cllm_vf32 odd)
    {
        return (cllm_vf32)((cllm_vu32)even >> 16 | ((cllm_vu32)odd & 0xffff0000u));
    }
    """
    enum:
        SIDE "CLLM_SIDE"
    bint has_amx "cllm_has_amx"() noexcept nogil
    void tiles_begin "cllm_tiles_begin"() noexcept nogil
    void tiles_end "cllm_tiles_end"() noexcept nogil
    void tiles_amx "cllm_tiles_amx"(Py_ssize_t columns, Py_ssize_t units, const uint32_t *a, const uint32_t *b,
                                    Py_ssize_t b_row, float *c, Py_ssize_t c_row) noexcept nogil
    void tiles_plain "cllm_tiles_plain"(Py_ssize_t columns, Py_ssize_t units, const uint32_t *a, const uint32_t *b,
                                        Py_ssize_t b_row, float *c, Py_ssize_t c_row) noexcept nogil
    vf32 words_of "cllm_words"(vf32 even, vf32 odd) noexcept nogil


cdef enum:
    TILES_WIDTH = TILE_VECTORS * SIDE   # floats from a row of three tiles of C to the next, no fewer than a panel of B has
    # The product by which tiles are tried: none of its lengths is a whole number of them.
    TRIAL_ROWS = 19
    TRIAL_COLUMNS = 53
    TRIAL_DEPTH = 75


cdef inline bint in_tiles(int way) noexcept nogil:
    return way == TILES or way == AMX


cdef inline void join_words(float *source, Py_ssize_t width, Py_ssize_t depth, uint32_t *words) noexcept nogil:
    """words[k // 2, j] of source[k, j] and source[k+1, j], whole vectors wide; words may begin where source does."""
    cdef const vf32 *at = <const vf32*> source
    cdef vf32 *target = <vf32*> words
    cdef vf32 zero = splat(at, 0.0)
    cdef Py_ssize_t k, j
    for k from 0 <= k < depth by 2:
        for j from 0 <= j < width by LANES_F32:
            store(target, k // 2 * width + j, words_of(load(at, k * width + j),
                                                       load(at, (k + 1) * width + j) if k + 1 < depth else zero))


cdef inline vf32 load_some(const vf32 *p, Py_ssize_t i, Py_ssize_t n, bint narrow) noexcept nogil:
    """A vector of which n elements are there, if any; the others are zero."""
    if n >= LANES_F32:
        return load_as(p, i, narrow)
    return load_partial_as(p, i, n, narrow) if n > 0 else splat(p, 0.0)


cdef inline void pack_tiles(const Product *p, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t k0, Py_ssize_t depth,
                            uint32_t *words) noexcept nogil:
    """The words of `rows` rows of A, at most SIDE; rows and k that a tile has beyond are zero."""
    cdef const vf32 *a = place(<const vf32*> p.a, row * p.a_row + k0 * p.a_col, p.a_narrow)
    cdef vf32 zero = splat(a, 0.0), even, odd
    cdef uint32_t turned[SIDE * SIDE]
    cdef Py_ssize_t unit, pair, i, k
    for unit in range((depth + UNIT - 1) // UNIT):
        if p.a_col == 1:
            for i in range(SIDE):
                for k from unit * UNIT <= k < (unit + 1) * UNIT by LANES_F32:
                    store_narrow(words, (unit * SIDE + i) * UNIT + k % UNIT,
                                 load_some(a, i * p.a_row + k, depth - k, p.a_narrow) if i < rows else zero)
            continue
        for i from 0 <= i < SIDE by LANES_F32:
            for pair in range(SIDE):
                k = unit * UNIT + 2 * pair
                even = load_some(a, k * p.a_col + i, rows - i, p.a_narrow) if k < depth else zero
                odd = load_some(a, (k + 1) * p.a_col + i, rows - i, p.a_narrow) if k + 1 < depth else zero
                store(<vf32*> turned, pair * SIDE + i, words_of(r16(even), r16(odd)))
            for pair from 0 <= pair < SIDE by LANES_F32:
                transpose_f32(turned + pair * SIDE + i, SIDE, LANES_F32, words + (unit * SIDE + i) * SIDE + pair, SIDE)


cdef inline void run_tiles(int way, Py_ssize_t columns, Py_ssize_t units, const uint32_t *a, const uint32_t *b,
                           Py_ssize_t b_row, float *c) noexcept nogil:
    if way == AMX:
        tiles_amx(columns, units, a, b, b_row, c, TILES_WIDTH)
    else:
        tiles_plain(columns, units, a, b, b_row, c, TILES_WIDTH)


cdef void multiply_tiles(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0, Py_ssize_t column1,
                         Py_ssize_t k0, Py_ssize_t depth, uint32_t *group, float *block) noexcept nogil:
    """All rows of A with a block of B that is packed and rounded, like the end of multiply_block."""
    cdef float c[SIDE * TILES_WIDTH]
    cdef uint32_t last[SIDE * TILES_WIDTH]        # of B, the pairs of a unit that is not full
    cdef Py_ssize_t pairs = (depth + 1) // 2, units = depth // UNIT, rest = pairs - units * SIDE
    cdef bint ends = k0 + depth == p.depth
    cdef Py_ssize_t panel = TILE_VECTORS * LANES_F32, j, row, rows, columns, i, v, width, start_row
    cdef const vf32 *start
    cdef vf32 *at
    cdef vf32 sums
    cdef uint32_t *b
    for j from column0 <= j < column1 by panel:
        width = (min(column1 - j, panel) + LANES_F32 - 1) // LANES_F32 * LANES_F32
        join_words(block + (j - column0) * depth, width, depth, <uint32_t*> block + (j - column0) * pairs)
    memset(c, 0, sizeof(c))
    for row from row0 <= row < row1 by SIDE:
        rows = min(row1 - row, <Py_ssize_t> SIDE)
        pack_tiles(p, row, rows, k0, depth, group)
        for j from column0 <= j < column1 by panel:
            columns = min(column1 - j, panel)
            width = (columns + LANES_F32 - 1) // LANES_F32 * LANES_F32
            b = <uint32_t*> block + (j - column0) * pairs
            at = address(<vf32*> p.c, row * p.c_row + j)
            start, start_row = at, p.c_row
            if k0 == 0 and not p.accumulate:
                start, start_row = NULL, 0
                if p.bias != NULL:
                    start = address(<const vf32*> p.bias, j)
            for i in range(rows):
                for v from 0 <= v < columns by LANES_F32:
                    store(<vf32*> c, i * TILES_WIDTH + v, load_some(start, i * start_row + v, columns - v, False)
                          if start != NULL else splat(at, 0.0))
            run_tiles(p.way, width, units, group, b, width, c)
            if rest:
                memset(last, 0, sizeof(last))
                memcpy(last, b + units * SIDE * width, rest * width * sizeof(uint32_t))
                run_tiles(p.way, width, 1, group + units * SIDE * SIDE, last, width, c)
            for i in range(rows):
                for v from 0 <= v < columns by LANES_F32:
                    sums = load(<vf32*> c, i * TILES_WIDTH + v)
                    store_partial(at, i * p.c_row + v, sums + splat(at, 0.0) if ends else sums,
                                  min(columns - v, <Py_ssize_t> LANES_F32))


cdef bint tiles_keep_the_definition(int way) noexcept:
    """Whether products by tiles have the bits of the emulation, of A by rows and by columns, of float32 and bfloat16.

    Numbers of the sizes of `instruction_keeps_the_definition`. What is NaN need not agree. The thread of the interpreter is
    alone here: nobody else multiplies in units before it is decided how.
    """
    global units_way
    cdef Py_ssize_t room = piece_workspace(TRIAL_COLUMNS, TRIAL_DEPTH, sizeof(float)), i
    cdef float *memory = <float*> PyMem_Calloc(room + TRIAL_ROWS * TRIAL_DEPTH + TRIAL_DEPTH * TRIAL_COLUMNS
                                               + 3 * TRIAL_ROWS * TRIAL_COLUMNS, sizeof(float))
    cdef float *a = memory + room
    cdef float *b = a + TRIAL_ROWS * TRIAL_DEPTH
    cdef float *start = b + TRIAL_DEPTH * TRIAL_COLUMNS
    cdef float *c = start + TRIAL_ROWS * TRIAL_COLUMNS      # by the emulation, and behind it by tiles
    cdef uint32_t state = 1, least, span
    cdef int trial, turn, before = units_way
    cdef bint same = memory != NULL
    cdef Product p
    if not same:
        return False
    memset(&p, 0, sizeof(p))
    p.rows, p.columns, p.depth, p.rounds, p.accumulate = TRIAL_ROWS, TRIAL_COLUMNS, TRIAL_DEPTH, IN_UNITS, True
    p.b, p.b_row, p.b_col, p.c_row = b, TRIAL_COLUMNS, 1, TRIAL_COLUMNS
    for trial in range(24):
        least = 32 if trial % 3 == 0 else 124 if trial % 3 == 1 else 61
        span = 128 if trial % 3 == 0 else 8 if trial % 3 == 1 else 6
        for i in range(TRIAL_ROWS * TRIAL_DEPTH + TRIAL_DEPTH * TRIAL_COLUMNS):
            (<uint32_t*> a)[i] = drawn_bits(&state, least, span)
        for i in range(TRIAL_ROWS * TRIAL_COLUMNS):
            (<uint32_t*> start)[i] = drawn_bits(&state, 0 if span == 6 else least, 1 if span == 6 else span)
        p.a_narrow = trial % 4 > 1
        p.a, p.a_row, p.a_col = a, TRIAL_DEPTH if trial % 2 else 1, 1 if trial % 2 else TRIAL_ROWS
        for turn in range(2):
            units_way = way if turn else UNITS
            p.c = c + turn * TRIAL_ROWS * TRIAL_COLUMNS
            memcpy(p.c, start, TRIAL_ROWS * TRIAL_COLUMNS * sizeof(float))
            multiply_piece(&p, 0, TRIAL_ROWS, 0, TRIAL_COLUMNS, <vf32*> memory)
        for i in range(TRIAL_ROWS * TRIAL_COLUMNS):
            same = same and (c[i] != c[i] or c[i] == c[TRIAL_ROWS * TRIAL_COLUMNS + i])
    units_way = before
    PyMem_Free(memory)
    return same


cdef int decided_units() except -2:
    """`units_way`, decided when it was not."""
    global units_way
    if units_way == DECIDE:
        units_way = AMX if has_amx() and tiles_keep_the_definition(AMX) else UNITS
    return units_way


def bfloat16_tiles_agree():
    """Whether products in units by tiles have the bits of the emulation: by AMX where the kernels, the processor and the system
    have it, else by the stand-in for it. It is asked before AMX is first used."""
    return tiles_keep_the_definition(AMX if has_amx() else TILES)
