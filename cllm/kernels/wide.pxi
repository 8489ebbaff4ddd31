# What the kernels share that go over rows and elements: sums along a row in float64, the square root of a vector, and
# the size of a piece of work.
#
#     lane l adds the elements l, l + 32, l + 64, ... in order;  halves of the 32 lanes are folded onto each other
#
# 32 lanes whatever the width of a register, so a row's sum depends on its elements and its length alone, on every
# machine. What is missing in the last 32 is filled with a value that adds nothing.
#
# Sums straight from memory (`vsum`) work on half of an AVX-512 register: float32 becomes float64 in one step at 256
# bits and in three at 512 on a processor whose units are 256 bits wide, and nothing else gets slower there.

cdef extern from *:
    """
    #include <math.h>
    #define CLLM_WIDE_LANES 32
    #define CLLM_WIDE_VECTORS (CLLM_WIDE_LANES / CLLM_LANES_F64)
    typedef float cllm_half_f32 __attribute__((vector_size(CLLM_VECTOR_BYTES / 2)));

    /* GCC splits __builtin_convertvector of half a register in two; the instruction exists, so it is named. */
    static inline __attribute__((always_inline)) cllm_vf64 cllm_load_wide_f32(const void *p, Py_ssize_t i)
    {
    #if defined(__AVX512F__)
        return (cllm_vf64)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)p + i));
    #elif defined(__AVX__)
        return (cllm_vf64)_mm256_cvtps_pd(_mm_loadu_ps((const float *)p + i));
    #else
        cllm_half_f32 h;
        memcpy(&h, (const float *)p + i, sizeof h);
        return __builtin_convertvector(h, cllm_vf64);
    #endif
    }

    /* Part of the 32 lanes for sums from memory, and as many elements as float64. */
    #if CLLM_VECTOR_BYTES > 32
    #define CLLM_SUM_BYTES 32
    #else
    #define CLLM_SUM_BYTES CLLM_VECTOR_BYTES
    #endif
    #define CLLM_SUM_LANES (CLLM_SUM_BYTES / 8)
    #define CLLM_SUM_VECTORS (CLLM_WIDE_LANES / CLLM_SUM_LANES)
    typedef double cllm_sum __attribute__((vector_size(CLLM_SUM_BYTES)));
    static inline __attribute__((always_inline)) cllm_sum cllm_load_sum_f32(const void *p, Py_ssize_t i)
    {
    #if defined(__AVX__)
        return (cllm_sum)_mm256_cvtps_pd(_mm_loadu_ps((const float *)p + i));
    #else
        return (cllm_sum)cllm_load_wide_f32(p, i);
    #endif
    }
    static inline __attribute__((always_inline)) cllm_sum cllm_load_sum_f64(const void *p, Py_ssize_t i)
        { cllm_sum v; memcpy(&v, (const double *)p + i, sizeof v); return v; }
    static inline __attribute__((always_inline)) void cllm_store_sum(double *p, Py_ssize_t i, cllm_sum v)
        { memcpy(p + i, &v, sizeof v); }
    static inline __attribute__((always_inline)) cllm_sum cllm_fma_sum(cllm_sum a, cllm_sum b, cllm_sum c)
    {
    #if CLLM_SUM_BYTES == CLLM_VECTOR_BYTES
        return (cllm_sum)cllm_fma_f64((cllm_vf64)a, (cllm_vf64)b, (cllm_vf64)c);
    #else
        return (cllm_sum)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
    #endif
    }
    static inline __attribute__((always_inline)) cllm_sum cllm_splat_sum(double s)
        { return s - (cllm_sum){0}; }
    /* 1, which the compiler does not know: fma(x, one, sum) is x + sum done by the multipliers. */
    static const volatile double cllm_one = 1.0;

    /* The two halves of a register as float64. */
    static inline __attribute__((always_inline)) cllm_vf64 cllm_widen_low(cllm_vf32 v)
    {
    #if defined(__AVX512F__)
        return (cllm_vf64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    #elif defined(__AVX__)
        return (cllm_vf64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    #else
        cllm_half_f32 h;
        memcpy(&h, &v, sizeof h);
        return __builtin_convertvector(h, cllm_vf64);
    #endif
    }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_widen_high(cllm_vf32 v)
    {
    #if defined(__AVX512F__)
        return (cllm_vf64)_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
    #elif defined(__AVX__)
        return (cllm_vf64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
    #else
        cllm_half_f32 h;
        memcpy(&h, (const char *)&v + sizeof h, sizeof h);
        return __builtin_convertvector(h, cllm_vf64);
    #endif
    }

    #define CLLM_SQRT(V, F, LANES, ROOT)                                                                          \\
    static inline __attribute__((always_inline)) V cllm_sqrt_##F(V v)                                             \\
        { for (int i = 0; i < LANES; i++) v[i] = ROOT(v[i]); return v; }

    CLLM_SQRT(cllm_vf32, f32, CLLM_LANES_F32, sqrtf)
    CLLM_SQRT(cllm_vf64, f64, CLLM_LANES_F64, sqrt)
    """
    enum:
        WIDE_LANES "CLLM_WIDE_LANES"
        WIDE_VECTORS "CLLM_WIDE_VECTORS"
        SUM_LANES "CLLM_SUM_LANES"
        SUM_VECTORS "CLLM_SUM_VECTORS"
    ctypedef double vsum "cllm_sum"
    vsum load_sum_f32 "cllm_load_sum_f32"(const void *p, Py_ssize_t i) noexcept nogil
    vsum load_sum_f64 "cllm_load_sum_f64"(const void *p, Py_ssize_t i) noexcept nogil
    void store_sum "cllm_store_sum"(double *p, Py_ssize_t i, vsum v) noexcept nogil
    vsum splat_sum "cllm_splat_sum"(double s) noexcept nogil
    vsum fma_sum "cllm_fma_sum"(vsum a, vsum b, vsum c) noexcept nogil
    const double unknown_one "cllm_one"
    vf64 load_wide_f32 "cllm_load_wide_f32"(const void *p, Py_ssize_t i) noexcept nogil
    vf64 widen_low "cllm_widen_low"(vf32 v) noexcept nogil
    vf64 widen_high "cllm_widen_high"(vf32 v) noexcept nogil
    vf32 sqrt_f32 "cllm_sqrt_f32"(vf32 v) noexcept nogil
    vf64 sqrt_f64 "cllm_sqrt_f64"(vf64 v) noexcept nogil


# Work is cut by shape alone: SPAN elements are one piece (a float32 span of four arrays lies in a 512 KiB L2), below
# PARALLEL_FROM elements one thread does all, because opening a parallel region costs more than it saves.
#
# An array of FAR_BYTES that is only written goes past the caches: an ordinary store would first read what it
# overwrites. 16 MiB is half of a common L3, which an input as large then fills: nobody will find the output there.
# Below that size streaming is slower, for then it is found (docs/kernels/elementwise.md).
cdef enum:
    SPAN = 8192
    PARALLEL_FROM = 32768
    FAR_BYTES = 16777216


cdef inline Py_ssize_t rows_per_piece(Py_ssize_t n_columns) noexcept nogil:
    """Rows that make about one span."""
    return SPAN // n_columns if 0 < n_columns < SPAN else 1


cdef inline bint goes_far(const vec *y, Py_ssize_t size, const vec *read) noexcept nogil:
    """Whether y, size elements that are only written, goes past the caches: large, aligned, and not what is read."""
    return (size * (VECTOR_BYTES // lanes(y)) >= FAR_BYTES and <size_t> y % VECTOR_BYTES == 0 and y != read)


cdef inline vec vsqrt(vec v) noexcept nogil:
    """The correctly rounded square root of each lane."""
    if vec is vf32:
        return sqrt_f32(v)
    else:
        return sqrt_f64(v)


cdef inline vf64 load_wide(const vec *p, Py_ssize_t i) noexcept nogil:
    """Elements i .. i+LANES_F64-1 as float64."""
    if vec is vf32:
        return load_wide_f32(p, i)
    else:
        return load_f64(p, i)


cdef inline double element(const vec *p, Py_ssize_t i) noexcept nogil:
    """Element i as float64."""
    if vec is vf32:
        return (<const float*> p)[i]
    else:
        return (<const double*> p)[i]


cdef inline void gather_wide(const vec *p, Py_ssize_t i, Py_ssize_t n, double fill, double *out) noexcept nogil:
    """Elements i .. i+n-1 as float64, followed by `fill` up to 32."""
    cdef Py_ssize_t j
    for j in range(WIDE_LANES):
        out[j] = element(p, i + j) if j < n else fill


cdef inline vsum load_sum(const vec *p, Py_ssize_t i) noexcept nogil:
    """Elements i .. i+SUM_LANES-1 as float64."""
    if vec is vf32:
        return load_sum_f32(p, i)
    else:
        return load_sum_f64(p, i)


cdef inline double wide_tree(vf64 *acc) noexcept nogil:
    """The sum of 32 lanes, halves folded onto each other; acc is used up."""
    cdef double s[8]
    cdef Py_ssize_t j
    for j in range(WIDE_VECTORS // 2):
        acc[j] = acc[j] + acc[j + WIDE_VECTORS // 2]
    for j in range(WIDE_VECTORS // 4):
        acc[j] = acc[j] + acc[j + WIDE_VECTORS // 4]
    for j in range(WIDE_VECTORS // 4):
        store_f64(s, j * LANES_F64, acc[j])
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


cdef inline double sum_tree(vsum *acc) noexcept nogil:
    """`wide_tree` of parts of the 32 lanes; acc is used up."""
    cdef double s[8]
    cdef Py_ssize_t j
    for j in range(SUM_VECTORS // 2):
        acc[j] = acc[j] + acc[j + SUM_VECTORS // 2]
    for j in range(SUM_VECTORS // 4):
        acc[j] = acc[j] + acc[j + SUM_VECTORS // 4]
    for j in range(SUM_VECTORS // 4):
        store_sum(s, j * SUM_LANES, acc[j])
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


cdef inline void wide_add(vf64 *acc, Py_ssize_t j, vec v) noexcept nogil:
    """Add the j-th vector of 32 elements to its lanes."""
    if vec is vf32:
        acc[2 * j] = acc[2 * j] + widen_low(v)
        acc[2 * j + 1] = acc[2 * j + 1] + widen_high(v)
    else:
        acc[j] = acc[j] + v


cdef inline void wide_add_product(vf64 *acc, Py_ssize_t j, vec a, vec b) noexcept nogil:
    """Add the products of the j-th vectors of 32 elements to their lanes; in float64 each is rounded with its sum."""
    if vec is vf32:
        wide_add(acc, j, a * b)
    else:
        acc[j] = fma(a, b, acc[j])


cdef inline double wide_squares(const vec *x, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """The sum of the squares of elements start .. start+n-1."""
    cdef vsum acc[SUM_VECTORS]
    cdef vsum d
    cdef double tail[WIDE_LANES]
    cdef Py_ssize_t i = 0, j
    for j in range(SUM_VECTORS):
        acc[j] = splat_sum(0.0)
    while i + WIDE_LANES <= n:
        for j in range(SUM_VECTORS):
            d = load_sum(x, start + i + j * SUM_LANES)
            acc[j] = fma_sum(d, d, acc[j])
        i += WIDE_LANES
    if i < n:
        gather_wide(x, start + i, n - i, 0.0, tail)
        for j in range(SUM_VECTORS):
            d = load_sum_f64(tail, j * SUM_LANES)
            acc[j] = fma_sum(d, d, acc[j])
    return sum_tree(acc)
