# Sizes of the tiles of attention, and what its functions share that go over the lanes of a vector.

cdef extern from "<math.h>" nogil:
    double INFINITY
    double log(double x)
    double sqrt(double x)

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
