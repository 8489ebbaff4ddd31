# Operands and values in bfloat16: the upper half of a float32, kept as uint16.
#
#     r16(x)   to nearest, ties to even; NaN stays NaN (quiet), what is subnormal in float32 becomes zero of its sign
#
# So no bfloat16 here is subnormal: a float32 that is not rounds to one that is not. The processors' own conversions
# (VCVTNEPS2BF16) and products (VDPBF16PS) do the same. What is computed from a bfloat16 is computed in float32.
#
# A product of operands in bfloat16 runs with subnormal results and operands as zeros (`flush_begin`), as VDPBF16PS does
# whatever the thread's settings are.
#
# Kernels that read or write either kind take a pointer and `narrow`: where that holds the pointer addresses uint16
# rather than the elements of its type. It is a constant wherever float32 must lose nothing by it.

from cpython.buffer cimport (
    Py_buffer,
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint16_t

from cllm.errors import DtypeError

cdef extern from *:
    """
    #if defined(__SSE__)
    #include <xmmintrin.h>
    #endif
    typedef uint32_t cllm_vu32 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    typedef uint16_t cllm_vu16 __attribute__((vector_size(CLLM_VECTOR_BYTES / 2)));

    /* r16 of each lane, as a float32. */
    static inline __attribute__((always_inline)) cllm_vf32 cllm_r16(cllm_vf32 v)
    {
        const cllm_vu32 u = (cllm_vu32)v, size = u & 0x7fffffffu;
        const cllm_vu32 nan = (cllm_vu32)((cllm_vi32)size > 0x7f800000);
        const cllm_vu32 tiny = (cllm_vu32)((cllm_vi32)size < 0x00800000);
        const cllm_vu32 rounded = u + 0x7fffu + ((u >> 16) & 1u);
        const cllm_vu32 kept = ((rounded & ~nan) | ((u | 0x00400000u) & nan)) & 0xffff0000u;
        return (cllm_vf32)((kept & ~tiny) | (u & 0x80000000u & tiny));
    }
    /* GCC takes __builtin_convertvector to 16 bits apart, element by element; where an instruction packs, it is named. */
    static inline __attribute__((always_inline)) cllm_vu16 cllm_upper_halves(cllm_vu32 u)
    {
    #if defined(CLLM_AVX512)
        return (cllm_vu16)_mm512_cvtepi32_epi16((__m512i)(u >> 16));
    #elif defined(CLLM_AVX) && defined(__AVX2__)
        const __m256i packed = _mm256_packus_epi32((__m256i)(u >> 16), (__m256i)(u >> 16));
        return (cllm_vu16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
    #else
        return __builtin_convertvector(u >> 16, cllm_vu16);
    #endif
    }
    static inline __attribute__((always_inline)) cllm_vf32 cllm_load_narrow(const void *p, Py_ssize_t i)
    {
        cllm_vu16 h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (cllm_vf32)(__builtin_convertvector(h, cllm_vu32) << 16);
    }
    static inline cllm_vf32 cllm_load_partial_narrow(const void *p, Py_ssize_t i, Py_ssize_t n)
    {
        cllm_vu16 h = {0};
        memcpy(&h, (const uint16_t *)p + i, (size_t)n * 2);
        return (cllm_vf32)(__builtin_convertvector(h, cllm_vu32) << 16);
    }
    static inline __attribute__((always_inline)) void cllm_store_narrow(void *p, Py_ssize_t i, cllm_vf32 v)
    {
        const cllm_vu16 h = cllm_upper_halves((cllm_vu32)cllm_r16(v));
        memcpy((uint16_t *)p + i, &h, sizeof h);
    }
    static inline void cllm_store_partial_narrow(void *p, Py_ssize_t i, cllm_vf32 v, Py_ssize_t n)
    {
        const cllm_vu16 h = cllm_upper_halves((cllm_vu32)cllm_r16(v));
        memcpy((uint16_t *)p + i, &h, (size_t)n * 2);
    }
    static inline void cllm_widen(float *target, const uint16_t *source, Py_ssize_t n)
    {
        for (Py_ssize_t i = 0; i < n; i++) {
            const uint32_t u = (uint32_t)source[i] << 16;
            memcpy(target + i, &u, sizeof u);
        }
    }

    /* Subnormal results and operands as zeros, in this thread, until the end; what was set before is handed back. */
    static inline size_t cllm_flush_begin(void)
    {
    #if defined(__SSE__)
        const unsigned before = _mm_getcsr();
        _mm_setcsr(before | 0x8040u);
    #elif defined(__aarch64__)
        size_t before;
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | (size_t)1 << 24) : "memory");
    #else
        const size_t before = 0;
    #endif
        __asm__ volatile("" : : : "memory");
        return before;
    }
    static inline void cllm_flush_end(size_t before)
    {
        __asm__ volatile("" : : : "memory");
    #if defined(__SSE__)
        _mm_setcsr((unsigned)before);
    #elif defined(__aarch64__)
        __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
    #else
        (void)before;
    #endif
    }
    """
    vf32 r16 "cllm_r16"(vf32 v) noexcept nogil
    vf32 load_narrow "cllm_load_narrow"(const void *p, Py_ssize_t i) noexcept nogil
    vf32 load_partial_narrow "cllm_load_partial_narrow"(const void *p, Py_ssize_t i, Py_ssize_t n) noexcept nogil
    void store_narrow "cllm_store_narrow"(void *p, Py_ssize_t i, vf32 v) noexcept nogil
    void store_partial_narrow "cllm_store_partial_narrow"(void *p, Py_ssize_t i, vf32 v, Py_ssize_t n) noexcept nogil
    void widen_elements "cllm_widen"(float *target, const uint16_t *source, Py_ssize_t n) noexcept nogil
    size_t flush_begin "cllm_flush_begin"() noexcept nogil
    void flush_end "cllm_flush_end"(size_t before) noexcept nogil

cdef struct Rows:
    # An array of rows: float32, float64, or bfloat16.
    const void *at
    Py_ssize_t rows, columns
    bint narrow


cdef int take_rows(str kernel, str name, array, Py_ssize_t itemsize, bint written, Rows *rows) except -1:
    """Note where an array's rows lie. Its elements have `itemsize` bytes; float32 may be bfloat16 instead.

    The caller's own reference to the array keeps the memory.
    """
    cdef Py_buffer view
    cdef str must
    PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if written else 0))
    try:
        rows.narrow = view.format[0] == c"H" and itemsize == sizeof(float)
        if view.ndim != 2:
            raise ShapeError(kernel, f"{name} must have two axes", str(view.ndim), "Pass rows of columns.")
        if view.format[1] != 0 or not (rows.narrow or view.format[0] == (c"f" if itemsize == sizeof(float) else c"d")):
            must = "float32, or uint16 that holds bfloat16" if itemsize == sizeof(float) else "float64"
            raise DtypeError(kernel, f"{name} must be {must}", view.format.decode(), "Pass arrays of one dtype.")
        rows.at, rows.rows, rows.columns = view.buf, view.shape[0], view.shape[1]
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int take_bias(str kernel, array, Py_ssize_t itemsize, Py_ssize_t must, const void **at) except -1:
    """Where a vector of so many elements of `itemsize` bytes lies; None is nowhere. The caller's reference keeps the memory."""
    cdef Py_buffer view
    at[0] = NULL
    if array is None:
        return 0
    PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    try:
        if view.ndim != 1 or view.format[1] != 0 or view.format[0] != (c"f" if itemsize == sizeof(float) else c"d"):
            raise DtypeError(kernel, f"bias must be a vector of {'float32' if itemsize == sizeof(float) else 'float64'}",
                             f"{view.ndim} axes of {view.format.decode()}", "Pass arrays of one dtype.")
        check_length(kernel, "length of bias", view.shape[0], must)
        at[0] = view.buf
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int check_wide(str kernel, str name, const Rows *rows) except -1:
    if rows.narrow:
        raise DtypeError(kernel, f"{name} must be float32 here", "bfloat16", "Widen it first.")
    return 0


cdef inline Py_ssize_t itemsize_of(array) except -1:
    """8 for an array of float64, 4 for others."""
    return 8 if array.itemsize == 8 else 4


cdef inline vec* place(const vec *p, Py_ssize_t i, bint narrow) noexcept nogil:
    """Address of element i."""
    if vec is vf32:
        if narrow:
            return <vec*> (<uint16_t*> p + i)
    return address(p, i)


cdef inline vec load_as(const vec *p, Py_ssize_t i, bint narrow) noexcept nogil:
    """`load`."""
    if vec is vf32:
        if narrow:
            return load_narrow(p, i)
    return load(p, i)


cdef inline vec load_partial_as(const vec *p, Py_ssize_t i, Py_ssize_t n, bint narrow) noexcept nogil:
    """`load_partial`."""
    if vec is vf32:
        if narrow:
            return load_partial_narrow(p, i, n)
    return load_partial(p, i, n)


cdef inline void store_as(vec *p, Py_ssize_t i, vec v, bint far, bint narrow) noexcept nogil:
    """`store_far`, rounded where narrow, which never goes far."""
    if vec is vf32:
        if narrow:
            store_narrow(p, i, v)
            return
    store_far(p, i, v, far)


cdef inline void store_partial_as(vec *p, Py_ssize_t i, vec v, Py_ssize_t n, bint narrow) noexcept nogil:
    """`store_partial`."""
    if vec is vf32:
        if narrow:
            store_partial_narrow(p, i, v, n)
            return
    store_partial(p, i, v, n)


cdef inline vec rounded(const vec *like, vec v, bint rounds) noexcept nogil:
    """r16 of each lane where `rounds`; `like` only tells the type."""
    if vec is vf32:
        if rounds:
            return r16(v)
    return v


cdef inline void round_elements(vec *p, Py_ssize_t n) noexcept nogil:
    """r16 of n elements in place."""
    cdef Py_ssize_t i = 0
    if vec is vf32:
        while i + lanes(p) <= n:
            store(p, i, r16(load(p, i)))
            i += lanes(p)
        if i < n:
            store_partial(p, i, r16(load_partial(p, i, n - i)), n - i)


cdef void copy_pieces(const vec *x, vec *y, Py_ssize_t size, bint x_narrow, bint y_narrow) noexcept nogil:
    cdef Py_ssize_t p, i, stop
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        i = p * SPAN
        stop = min(size, i + SPAN)
        while i + lanes(x) <= stop:
            store_as(y, i, load_as(x, i, x_narrow), False, y_narrow)
            i = i + lanes(x)
        if i < stop:
            store_partial_as(y, i, load_partial_as(x, i, stop - i, x_narrow), stop - i, y_narrow)


def copy_values(x, *, y):
    """y = x, rounded where y is bfloat16 and x is not.

    Parameters
    ----------
    x : array of shape N C
    y : array of shape N C, written
    """
    cdef Py_ssize_t itemsize = itemsize_of(x)
    cdef Rows given, out
    take_rows("copy_values", "x", x, itemsize, False, &given)
    take_rows("copy_values", "y", y, itemsize, True, &out)
    check_length("copy_values", "len(y)", out.rows, given.rows)
    check_length("copy_values", "y.shape[1]", out.columns, given.columns)
    with nogil:
        if itemsize == sizeof(float):
            copy_pieces(<const vf32*> given.at, <vf32*> out.at, given.rows * given.columns, given.narrow, out.narrow)
        else:
            copy_pieces(<const vf64*> given.at, <vf64*> out.at, given.rows * given.columns, False, False)
