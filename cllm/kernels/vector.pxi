# Vector types: the one place that knows how wide a register is.
#
# The types are the compiler's own vector extension (GCC and clang), so one source serves AVX-512, AVX2, SSE2 and NEON.
# Their width is the widest the build's instruction set has. Plain + and * on them are lane by lane and rounded each;
# what is to be rounded once says so, by `fma` and `fnma`. The build turns contraction off (-ffp-contract=off): left to
# itself, a compiler fuses a product and a sum where its tuning and the code around them please, here and not there.
#
# An inner function is written once over the fused type `vec` and takes `vec*` pointers that address *elements*:
# `load(p, i)` reads `lanes(p)` elements from element i on, at any alignment; nothing dereferences a `vec*` itself.
# A caller casts: `tile(<const vf32*> a, ...)` under `if floating is float`, `<const vf64*>` otherwise.
#
# A row's tail goes through the same lanes as its body: `load_partial` fills the missing lanes with zero and
# `store_partial` writes only those that exist, so an element's bits never depend on where in a row it stands.

cdef extern from *:
    """
    #include <string.h>
    #include <stdint.h>
    #if defined(__AVX__)
    #include <immintrin.h>
    #elif defined(__aarch64__)
    #include <arm_neon.h>
    #endif
    #if !defined(__GNUC__)
    #error "cllm needs a compiler with vector extensions (GCC or clang)"
    #endif
    /* What the processor has; or, for tests, vectors of so many bytes in plain C, since no bit may hang on a width. */
    #if defined(CLLM_PLAIN_VECTORS)
    #define CLLM_VECTOR_BYTES CLLM_PLAIN_VECTORS
    #elif defined(__AVX512F__)
    #define CLLM_VECTOR_BYTES 64
    #define CLLM_AVX512
    #define CLLM_AVX
    #elif defined(__AVX__)
    #define CLLM_VECTOR_BYTES 32
    #define CLLM_AVX
    #else
    #define CLLM_VECTOR_BYTES 16
    #if defined(__aarch64__)
    #define CLLM_NEON
    #endif
    #endif
    #if CLLM_VECTOR_BYTES == 64 || defined(__aarch64__)
    #define CLLM_REGISTERS 32
    #else
    #define CLLM_REGISTERS 16
    #endif
    typedef float   cllm_vf32 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef double  cllm_vf64 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef int32_t cllm_vi32 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef int64_t cllm_vi64 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    #define CLLM_LANES_F32 (CLLM_VECTOR_BYTES / 4)
    #define CLLM_LANES_F64 (CLLM_VECTOR_BYTES / 8)

    /* a > b ? a : b, a < b ? a : b and c > 0 ? a : b by lanes. C has no such operator on vectors, and GCC does not
       find the one instruction that does each in the detour over masks; where it exists, it is named. The bits are the
       same either way. */
    #if defined(CLLM_AVX512)
    #define CLLM_CHOOSE(V, F, PS, NATIVE)                                                                         \\
    static inline __attribute__((always_inline)) V cllm_max_##F(V a, V b)                                         \\
        { return (V)_mm512_max_##PS((NATIVE)a, (NATIVE)b); }                                                      \\
    static inline __attribute__((always_inline)) V cllm_min_##F(V a, V b)                                         \\
        { return (V)_mm512_min_##PS((NATIVE)a, (NATIVE)b); }                                                      \\
    static inline __attribute__((always_inline)) V cllm_select_positive_##F(V c, V a, V b)                        \\
        { return (V)_mm512_mask_blend_##PS(_mm512_cmp_##PS##_mask((NATIVE)c, _mm512_setzero_##PS(), _CMP_GT_OQ),  \\
                                           (NATIVE)b, (NATIVE)a); }
    CLLM_CHOOSE(cllm_vf32, f32, ps, __m512)
    CLLM_CHOOSE(cllm_vf64, f64, pd, __m512d)
    #elif defined(CLLM_AVX)
    #define CLLM_CHOOSE(V, F, PS, NATIVE)                                                                         \\
    static inline __attribute__((always_inline)) V cllm_max_##F(V a, V b)                                         \\
        { return (V)_mm256_max_##PS((NATIVE)a, (NATIVE)b); }                                                      \\
    static inline __attribute__((always_inline)) V cllm_min_##F(V a, V b)                                         \\
        { return (V)_mm256_min_##PS((NATIVE)a, (NATIVE)b); }                                                      \\
    static inline __attribute__((always_inline)) V cllm_select_positive_##F(V c, V a, V b)                        \\
        { return (V)_mm256_blendv_##PS((NATIVE)b, (NATIVE)a,                                                      \\
                                       _mm256_cmp_##PS((NATIVE)c, _mm256_setzero_##PS(), _CMP_GT_OQ)); }
    CLLM_CHOOSE(cllm_vf32, f32, ps, __m256)
    CLLM_CHOOSE(cllm_vf64, f64, pd, __m256d)
    #else
    #define CLLM_CHOOSE(V, I, F)                                                                                  \\
    static inline __attribute__((always_inline)) V cllm_max_##F(V a, V b)                                         \\
        { I m = (I)(a > b); return (V)(((I)a & m) | ((I)b & ~m)); }                                               \\
    static inline __attribute__((always_inline)) V cllm_min_##F(V a, V b)                                         \\
        { I m = (I)(a < b); return (V)(((I)a & m) | ((I)b & ~m)); }                                               \\
    static inline __attribute__((always_inline)) V cllm_select_positive_##F(V c, V a, V b)                        \\
        { I m = (I)(c > (V){0}); return (V)(((I)a & m) | ((I)b & ~m)); }
    CLLM_CHOOSE(cllm_vf32, cllm_vi32, f32)
    CLLM_CHOOSE(cllm_vf64, cllm_vi64, f64)
    #endif

    /* a b + c and c - a b, rounded once where the processor has an instruction for it, else twice. */
    #if defined(CLLM_AVX512)
    #define CLLM_FUSE(V, F, PS, NATIVE)                                                                           \\
    static inline __attribute__((always_inline)) V cllm_fma_##F(V a, V b, V c)                                    \\
        { return (V)_mm512_fmadd_##PS((NATIVE)a, (NATIVE)b, (NATIVE)c); }                                         \\
    static inline __attribute__((always_inline)) V cllm_fnma_##F(V a, V b, V c)                                   \\
        { return (V)_mm512_fnmadd_##PS((NATIVE)a, (NATIVE)b, (NATIVE)c); }
    CLLM_FUSE(cllm_vf32, f32, ps, __m512)
    CLLM_FUSE(cllm_vf64, f64, pd, __m512d)
    #elif defined(CLLM_AVX) && defined(__FMA__)
    #define CLLM_FUSE(V, F, PS, NATIVE)                                                                           \\
    static inline __attribute__((always_inline)) V cllm_fma_##F(V a, V b, V c)                                    \\
        { return (V)_mm256_fmadd_##PS((NATIVE)a, (NATIVE)b, (NATIVE)c); }                                         \\
    static inline __attribute__((always_inline)) V cllm_fnma_##F(V a, V b, V c)                                   \\
        { return (V)_mm256_fnmadd_##PS((NATIVE)a, (NATIVE)b, (NATIVE)c); }
    CLLM_FUSE(cllm_vf32, f32, ps, __m256)
    CLLM_FUSE(cllm_vf64, f64, pd, __m256d)
    #elif defined(CLLM_NEON)
    #define CLLM_FUSE(V, F, NATIVE)                                                                               \\
    static inline __attribute__((always_inline)) V cllm_fma_##F(V a, V b, V c)                                    \\
        { return (V)vfmaq_##F((NATIVE)c, (NATIVE)a, (NATIVE)b); }                                                 \\
    static inline __attribute__((always_inline)) V cllm_fnma_##F(V a, V b, V c)                                   \\
        { return (V)vfmsq_##F((NATIVE)c, (NATIVE)a, (NATIVE)b); }
    CLLM_FUSE(cllm_vf32, f32, float32x4_t)
    CLLM_FUSE(cllm_vf64, f64, float64x2_t)
    #elif defined(CLLM_PLAIN_VECTORS)
    #define CLLM_FUSE(V, F, FUSED)                                                                                \\
    static inline __attribute__((always_inline)) V cllm_fma_##F(V a, V b, V c)                                    \\
        { for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) c[i] = FUSED(a[i], b[i], c[i]); return c; }         \\
    static inline __attribute__((always_inline)) V cllm_fnma_##F(V a, V b, V c) { return cllm_fma_##F(-a, b, c); }
    CLLM_FUSE(cllm_vf32, f32, __builtin_fmaf)
    CLLM_FUSE(cllm_vf64, f64, __builtin_fma)
    #else
    #define CLLM_FUSE(V, F)                                                                                       \\
    static inline __attribute__((always_inline)) V cllm_fma_##F(V a, V b, V c) { return a * b + c; }              \\
    static inline __attribute__((always_inline)) V cllm_fnma_##F(V a, V b, V c) { return c - a * b; }
    CLLM_FUSE(cllm_vf32, f32)
    CLLM_FUSE(cllm_vf64, f64)
    #endif
    /* a b + c of single numbers. */
    #if defined(__FMA__) || defined(__aarch64__)
    #define CLLM_FMA_FLOAT(a, b, c) __builtin_fmaf(a, b, c)
    #define CLLM_FMA_DOUBLE(a, b, c) __builtin_fma(a, b, c)
    #else
    #define CLLM_FMA_FLOAT(a, b, c) ((a) * (b) + (c))
    #define CLLM_FMA_DOUBLE(a, b, c) ((a) * (b) + (c))
    #endif

    #define CLLM_VECTOR_HELPERS(S, V, F)                                                                          \\
    static inline __attribute__((always_inline)) V cllm_load_##F(const void *p, Py_ssize_t i)                     \\
        { V v; memcpy(&v, (const S *)p + i, sizeof v); return v; }                                                \\
    static inline __attribute__((always_inline)) void cllm_store_##F(void *p, Py_ssize_t i, V v)                  \\
        { memcpy((S *)p + i, &v, sizeof v); }                                                                     \\
    static inline V cllm_load_partial_##F(const void *p, Py_ssize_t i, Py_ssize_t n)                              \\
        { V v = {0}; memcpy(&v, (const S *)p + i, (size_t)n * sizeof(S)); return v; }                             \\
    static inline void cllm_store_partial_##F(void *p, Py_ssize_t i, V v, Py_ssize_t n)                           \\
        { memcpy((S *)p + i, &v, (size_t)n * sizeof(S)); }                                                        \\
    static inline __attribute__((always_inline)) V cllm_splat_##F(S s)                                            \\
        { return s - (V){0}; }                                                                                    \\
    static inline __attribute__((always_inline)) V cllm_splat_at_##F(const void *p, Py_ssize_t i)                 \\
        { return ((const S *)p)[i] - (V){0}; }                                                                    \\
    static inline S cllm_lane_##F(V v, int i) { return v[i]; }                                                    \\
    static inline __attribute__((always_inline)) void cllm_stream_##F(void *p, Py_ssize_t i, V v)                 \\
        { CLLM_STREAM((V *)((S *)p + i), v); }

    /* Stores that go to memory past the caches, to an address that is a multiple of the vector; ordinary ones where the
       compiler has no way to ask. The fence puts them in order with what follows. */
    #if defined(__clang__)
    #define CLLM_STREAM(P, v) __builtin_nontemporal_store(v, P)
    #elif defined(CLLM_AVX512)
    #define CLLM_STREAM(P, v) _mm512_stream_si512((__m512i *)(P), (__m512i)(v))
    #elif defined(CLLM_AVX)
    #define CLLM_STREAM(P, v) _mm256_stream_si256((__m256i *)(P), (__m256i)(v))
    #else
    #define CLLM_STREAM(P, v) memcpy(P, &(v), sizeof(v))
    #endif
    static inline void cllm_stream_end(void)
    {
    #if defined(CLLM_AVX)
        _mm_sfence();
    #else
        __sync_synchronize();
    #endif
    }

    CLLM_VECTOR_HELPERS(float, cllm_vf32, f32)
    CLLM_VECTOR_HELPERS(double, cllm_vf64, f64)
    """
    ctypedef float vf32 "cllm_vf32"
    ctypedef double vf64 "cllm_vf64"
    const int VECTOR_BYTES "CLLM_VECTOR_BYTES"
    const int LANES_F32 "CLLM_LANES_F32"
    const int LANES_F64 "CLLM_LANES_F64"
    vf32 load_f32 "cllm_load_f32"(const void *p, Py_ssize_t i) noexcept nogil
    vf64 load_f64 "cllm_load_f64"(const void *p, Py_ssize_t i) noexcept nogil
    void store_f32 "cllm_store_f32"(void *p, Py_ssize_t i, vf32 v) noexcept nogil
    void store_f64 "cllm_store_f64"(void *p, Py_ssize_t i, vf64 v) noexcept nogil
    vf32 load_partial_f32 "cllm_load_partial_f32"(const void *p, Py_ssize_t i, Py_ssize_t n) noexcept nogil
    vf64 load_partial_f64 "cllm_load_partial_f64"(const void *p, Py_ssize_t i, Py_ssize_t n) noexcept nogil
    void store_partial_f32 "cllm_store_partial_f32"(void *p, Py_ssize_t i, vf32 v, Py_ssize_t n) noexcept nogil
    void store_partial_f64 "cllm_store_partial_f64"(void *p, Py_ssize_t i, vf64 v, Py_ssize_t n) noexcept nogil
    vf32 splat_f32 "cllm_splat_f32"(float s) noexcept nogil
    vf64 splat_f64 "cllm_splat_f64"(double s) noexcept nogil
    vf32 splat_at_f32 "cllm_splat_at_f32"(const void *p, Py_ssize_t i) noexcept nogil
    vf64 splat_at_f64 "cllm_splat_at_f64"(const void *p, Py_ssize_t i) noexcept nogil
    vf32 max_f32 "cllm_max_f32"(vf32 a, vf32 b) noexcept nogil
    vf64 max_f64 "cllm_max_f64"(vf64 a, vf64 b) noexcept nogil
    vf32 min_f32 "cllm_min_f32"(vf32 a, vf32 b) noexcept nogil
    vf64 min_f64 "cllm_min_f64"(vf64 a, vf64 b) noexcept nogil
    vf32 select_positive_f32 "cllm_select_positive_f32"(vf32 c, vf32 a, vf32 b) noexcept nogil
    vf64 select_positive_f64 "cllm_select_positive_f64"(vf64 c, vf64 a, vf64 b) noexcept nogil
    void stream_f32 "cllm_stream_f32"(void *p, Py_ssize_t i, vf32 v) noexcept nogil
    void stream_f64 "cllm_stream_f64"(void *p, Py_ssize_t i, vf64 v) noexcept nogil
    void stream_end "cllm_stream_end"() noexcept nogil
    vf32 fma_f32 "cllm_fma_f32"(vf32 a, vf32 b, vf32 c) noexcept nogil
    vf64 fma_f64 "cllm_fma_f64"(vf64 a, vf64 b, vf64 c) noexcept nogil
    vf32 fnma_f32 "cllm_fnma_f32"(vf32 a, vf32 b, vf32 c) noexcept nogil
    vf64 fnma_f64 "cllm_fnma_f64"(vf64 a, vf64 b, vf64 c) noexcept nogil
    double fma_double "CLLM_FMA_DOUBLE"(double a, double b, double c) noexcept nogil
    float lane_f32 "cllm_lane_f32"(vf32 v, int i) noexcept nogil
    double lane_f64 "cllm_lane_f64"(vf64 v, int i) noexcept nogil

ctypedef fused vec:
    vf32
    vf64


cdef inline int lanes(const vec *p) noexcept nogil:
    """Elements in one vector of the type that p points to."""
    if vec is vf32:
        return LANES_F32
    else:
        return LANES_F64


cdef inline vec* address(const vec *p, Py_ssize_t i) noexcept nogil:
    """Address of element i."""
    if vec is vf32:
        return <vec*> (<float*> p + i)
    else:
        return <vec*> (<double*> p + i)


cdef inline vec load(const vec *p, Py_ssize_t i) noexcept nogil:
    """Elements i .. i+lanes-1."""
    if vec is vf32:
        return load_f32(p, i)
    else:
        return load_f64(p, i)


cdef inline void store(vec *p, Py_ssize_t i, vec v) noexcept nogil:
    if vec is vf32:
        store_f32(p, i, v)
    else:
        store_f64(p, i, v)


cdef inline void store_far(vec *p, Py_ssize_t i, vec v, bint far) noexcept nogil:
    """`store`, or where `far` past the caches; the piece of work then ends with `stream_end`."""
    if not far:
        store(p, i, v)
    elif vec is vf32:
        stream_f32(p, i, v)
    else:
        stream_f64(p, i, v)


cdef inline vec load_partial(const vec *p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Elements i .. i+n-1, zero in the lanes beyond; 0 <= n <= lanes."""
    if vec is vf32:
        return load_partial_f32(p, i, n)
    else:
        return load_partial_f64(p, i, n)


cdef inline void store_partial(vec *p, Py_ssize_t i, vec v, Py_ssize_t n) noexcept nogil:
    """The first n lanes to elements i .. i+n-1."""
    if vec is vf32:
        store_partial_f32(p, i, v, n)
    else:
        store_partial_f64(p, i, v, n)


cdef inline vec splat(const vec *like, double s) noexcept nogil:
    """s, rounded once to the element type, in every lane; `like` only tells the type and is not read."""
    if vec is vf32:
        return splat_f32(<float> s)
    else:
        return splat_f64(s)


cdef inline vec splat_at(const vec *p, Py_ssize_t i) noexcept nogil:
    """Element i in every lane."""
    if vec is vf32:
        return splat_at_f32(p, i)
    else:
        return splat_at_f64(p, i)


cdef inline vec vmax(vec a, vec b) noexcept nogil:
    """The larger of each lane; b where a is NaN."""
    if vec is vf32:
        return max_f32(a, b)
    else:
        return max_f64(a, b)


cdef inline vec vmin(vec a, vec b) noexcept nogil:
    """The smaller of each lane; b where a is NaN."""
    if vec is vf32:
        return min_f32(a, b)
    else:
        return min_f64(a, b)


cdef inline vec select_positive(vec c, vec a, vec b) noexcept nogil:
    """a in the lanes where c > 0, b in the others."""
    if vec is vf32:
        return select_positive_f32(c, a, b)
    else:
        return select_positive_f64(c, a, b)


cdef inline vec fma(vec a, vec b, vec c) noexcept nogil:
    """a b + c in each lane, rounded once where the processor can."""
    if vec is vf32:
        return fma_f32(a, b, c)
    else:
        return fma_f64(a, b, c)


cdef inline vec fnma(vec a, vec b, vec c) noexcept nogil:
    """c - a b in each lane, rounded once where the processor can."""
    if vec is vf32:
        return fnma_f32(a, b, c)
    else:
        return fnma_f64(a, b, c)
