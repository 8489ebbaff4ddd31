# Sizes of the tiles of attention, and what its functions share that go over the lanes of a vector.
#
# A tile is BLOCK queries by BLOCK keys, and its size, like that of the register tile, is the processor's: no bit hangs
# on it. What bits do hang on is the same everywhere: a row's largest score grows only at multiples of 192 keys (a
# whole number of tiles of either size), and sums along a row, of a softmax or of dy and y, have the lanes of a line of 64
# bytes. So bits are equal on all processors that round a product with its sum.

cdef extern from "<math.h>" nogil:
    double INFINITY
    double log(double x)
    double sqrt(double x)

cdef extern from *:
    """
    /* ROWS x 2 sums stay in registers beside two vectors of B and one element of A: 32 registers hold 8 x 2 with room
       to spare, 16 hold 6 x 2 (4 x 2 are too few to hide the latency of a sum). BLOCK is a
       multiple of ROWS, of two vectors of any type and of a line, and divides 192; of its float32 tiles (16 KiB or 9
       KiB) one lies in L1 beside its operands, all tiles of a step in L2. */
    #if CLLM_REGISTERS == 32
    #define CLLM_ATTENTION_ROWS 8
    #define CLLM_ATTENTION_BLOCK 64
    #else
    #define CLLM_ATTENTION_ROWS 6
    #define CLLM_ATTENTION_BLOCK 48
    #endif
    /* STRETCH is 192 keys in tiles. A line, in as many vectors as the processor needs for it. */
    #define CLLM_LINE_VECTORS (64 / CLLM_VECTOR_BYTES)
    static const char cllm_zeros[2 * CLLM_VECTOR_BYTES] __attribute__((aligned(64))) = {0};
    static inline __attribute__((always_inline)) cllm_vf32 cllm_iota_f32(void)
        { cllm_vf32 v = {0}; for (int i = 0; i < CLLM_LANES_F32; i++) v[i] = (float)i; return v; }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_iota_f64(void)
        { cllm_vf64 v = {0}; for (int i = 0; i < CLLM_LANES_F64; i++) v[i] = (double)i; return v; }
    /* Trees over rows of 16 bytes, then over the elements of one: compilers make slow code of the loop over elements. */
    typedef float cllm_quad_f32 __attribute__((vector_size(16)));
    typedef int32_t cllm_mask_f32 __attribute__((vector_size(16)));
    typedef double cllm_quad_f64 __attribute__((vector_size(16)));
    typedef int64_t cllm_mask_f64 __attribute__((vector_size(16)));
    #define CLLM_LANE_TREES(F)                                                                                    \\
    static inline __attribute__((always_inline)) cllm_quad_##F cllm_line_fold_##F(const void *p)                  \\
    {   cllm_quad_##F t[4]; memcpy(t, p, 64);                                                                     \\
        return (t[0] + t[2]) + (t[1] + t[3]); }                                                                   \\
    static inline __attribute__((always_inline)) cllm_quad_##F cllm_lane_larger_##F(cllm_v##F v)                  \\
    {   cllm_quad_##F t[CLLM_VECTOR_BYTES / 16]; memcpy(t, &v, sizeof v);                                         \\
        for (int i = 1; i < CLLM_VECTOR_BYTES / 16; i++) {                                                        \\
            cllm_mask_##F m = t[0] > t[i];                                                                        \\
            t[0] = (cllm_quad_##F)(((cllm_mask_##F)t[0] & m) | ((cllm_mask_##F)t[i] & ~m)); }                     \\
        return t[0]; }
    CLLM_LANE_TREES(f32)
    CLLM_LANE_TREES(f64)
    static inline __attribute__((always_inline)) float cllm_line_sum_f32(const void *p)
    {   cllm_quad_f32 t = cllm_line_fold_f32(p); return (t[0] + t[2]) + (t[1] + t[3]); }
    static inline __attribute__((always_inline)) double cllm_line_sum_f64(const void *p)
    {   cllm_quad_f64 t = cllm_line_fold_f64(p); return t[0] + t[1]; }
    #define CLLM_LARGER(a, b) ((a) > (b) ? (a) : (b))
    static inline __attribute__((always_inline)) float cllm_lane_max_f32(cllm_vf32 v)
    {   cllm_quad_f32 t = cllm_lane_larger_f32(v);
        return CLLM_LARGER(CLLM_LARGER(t[0], t[2]), CLLM_LARGER(t[1], t[3])); }
    static inline __attribute__((always_inline)) double cllm_lane_max_f64(cllm_vf64 v)
    {   cllm_quad_f64 t = cllm_lane_larger_f64(v); return CLLM_LARGER(t[0], t[1]); }
    """
    enum: ROWS "CLLM_ATTENTION_ROWS"
    enum: BLOCK "CLLM_ATTENTION_BLOCK"
    enum: STRETCH "(192 / CLLM_ATTENTION_BLOCK)"
    enum: LINE_VECTORS "CLLM_LINE_VECTORS"
    const void *ZEROS "cllm_zeros"
    vf32 iota_f32 "cllm_iota_f32"() noexcept nogil
    vf64 iota_f64 "cllm_iota_f64"() noexcept nogil
    float line_sum_f32 "cllm_line_sum_f32"(const void *p) noexcept nogil
    double line_sum_f64 "cllm_line_sum_f64"(const void *p) noexcept nogil
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


cdef inline Py_ssize_t line(const vec *like) noexcept nogil:
    """Elements of a line."""
    return LINE_VECTORS * lanes(like)


cdef inline double line_sum(const vec *p) noexcept nogil:
    """The sum of a line: halves are added to each other until one element is left."""
    if vec is vf32:
        return line_sum_f32(p)
    else:
        return line_sum_f64(p)


cdef inline double lane_max(vec v) noexcept nogil:
    """The largest lane."""
    if vec is vf32:
        return lane_max_f32(v)
    else:
        return lane_max_f64(v)


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple
