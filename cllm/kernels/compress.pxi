# Compressed copies of values, 16 or 8 bits an element.
#
#     bfloat16   the upper half of a float32, rounded to nearest, ties to even; NaN stays NaN (quiet)
#     int8       groups of 128: s = max|x| / 127,  q = round(x 127 / max|x|) to nearest, ties to even,  x' = q s
#
# A float64 goes through float32. In int8 a group with NaN or infinity comes back as NaN, so that it is seen, and one whose
# largest magnitude is below 2^-112 as zeros: its scale would leave the range of a float. Groups are cut from the start of
# the array; an element's code depends on its group alone.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t

cdef enum:
    INT8_GROUP = 128  # elements to a scale: 3 % more than the codes; small enough that one outlier spoils little
    INT8_LEAST = 0x07800000  # bits of 2^-112, whose scale is still far from denormal
    INT8_MOST = 0x7f7ffff0  # 16 steps below the largest float: 127 scales stay finite, though the scale was rounded
    COMPRESS_CHUNK = 16384  # elements in one piece of work, whole groups: 64 KB of float32, half of a level 1 cache

cdef extern from *:
    """
    static inline uint16_t cllm_bfloat16(float x)
    {
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
    }
    static inline float cllm_from_bfloat16(uint16_t h)
    {
        uint32_t u = (uint32_t)h << 16;
        float x;
        memcpy(&x, &u, sizeof x);
        return x;
    }
    static inline uint32_t cllm_magnitude(float x)
    {
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        return u & 0x7fffffffu;
    }
    static inline float cllm_float_of(uint32_t u)
    {
        float x;
        memcpy(&x, &u, sizeof x);
        return x;
    }
    """
    uint16_t to_bfloat16 "cllm_bfloat16"(float x) noexcept nogil
    float from_bfloat16 "cllm_from_bfloat16"(uint16_t h) noexcept nogil
    uint32_t magnitude "cllm_magnitude"(float x) noexcept nogil
    float float_of "cllm_float_of"(uint32_t u) noexcept nogil
    float rintf(float x) noexcept nogil


cdef void narrow(const floating *x, uint16_t *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = to_bfloat16(<float> x[i])


cdef void widen(const uint16_t *x, floating *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = from_bfloat16(x[i])


cdef void quantise(const floating *x, int8_t *codes, float *scale, Py_ssize_t n) noexcept nogil:
    """One group. The bits of |x| order as its values do, and NaN above all, so a maximum of integers finds either."""
    cdef uint32_t largest = 0
    cdef float inverse
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, magnitude(<float> x[i]))
    if largest >= 0x7f800000u:
        scale[0] = float_of(0x7fc00000u)
        for i in range(n):
            codes[i] = 1
        return
    if largest < <uint32_t> INT8_LEAST:
        largest = 0
    elif largest > <uint32_t> INT8_MOST:
        largest = INT8_MOST
    scale[0] = float_of(largest) / 127
    inverse = 127 / float_of(largest) if largest else 0
    for i in range(n):
        codes[i] = <int8_t> rintf(<float> x[i] * inverse)


cdef void dequantise(const int8_t *codes, float scale, floating *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = codes[i] * scale


def compress_bfloat16(const floating[::1] x not None, *, uint16_t[::1] y not None):
    """y = bfloat16 of x, rounded to nearest, ties to even.

    Parameters
    ----------
    x, y : arrays of one length, y of uint16

    Raises
    ------
    ShapeError
    """
    cdef Py_ssize_t n = x.shape[0], piece, start
    check_length("compress_bfloat16", "length of y", y.shape[0], n)
    if n == 0:
        return
    for piece in prange((n - 1) // COMPRESS_CHUNK + 1, nogil=True, schedule="static", num_threads=_threads):
        start = piece * COMPRESS_CHUNK
        narrow(&x[start], &y[start], min(<Py_ssize_t> COMPRESS_CHUNK, n - start))


def expand_bfloat16(const uint16_t[::1] x not None, *, floating[::1] y not None):
    """y = the values of bfloat16 x; lengths as `compress_bfloat16`."""
    cdef Py_ssize_t n = y.shape[0], piece, start
    check_length("expand_bfloat16", "length of x", x.shape[0], n)
    if n == 0:
        return
    for piece in prange((n - 1) // COMPRESS_CHUNK + 1, nogil=True, schedule="static", num_threads=_threads):
        start = piece * COMPRESS_CHUNK
        widen(&x[start], &y[start], min(<Py_ssize_t> COMPRESS_CHUNK, n - start))


def int8_bytes(Py_ssize_t n):
    """Bytes of n elements as int8: the scales of all groups, then the codes."""
    return (n + INT8_GROUP - 1) // INT8_GROUP * 4 + n


def compress_int8(const floating[::1] x not None, *, uint8_t[::1] y not None):
    """y = scales and codes of x, group by group.

    Parameters
    ----------
    x : array of length n
    y : array of at least `int8_bytes(n)` bytes, 4-byte aligned

    Raises
    ------
    ShapeError
    """
    cdef Py_ssize_t n = x.shape[0], groups = (n + INT8_GROUP - 1) // INT8_GROUP, g
    cdef float *scales
    cdef int8_t *codes
    check_room("compress_int8", "y", y.shape[0], int8_bytes(n))
    if n == 0:
        return
    scales = <float *> &y[0]
    codes = <int8_t *> (scales + groups)
    for g in prange(groups, nogil=True, schedule="static", num_threads=_threads):
        quantise(&x[g * INT8_GROUP], codes + g * INT8_GROUP, scales + g, min(<Py_ssize_t> INT8_GROUP, n - g * INT8_GROUP))


def expand_int8(const uint8_t[::1] x not None, *, floating[::1] y not None):
    """y = the values of the codes x; lengths as `compress_int8`."""
    cdef Py_ssize_t n = y.shape[0], groups = (n + INT8_GROUP - 1) // INT8_GROUP, g
    cdef const float *scales
    cdef const int8_t *codes
    check_room("expand_int8", "x", x.shape[0], int8_bytes(n))
    if n == 0:
        return
    scales = <const float *> &x[0]
    codes = <const int8_t *> (scales + groups)
    for g in prange(groups, nogil=True, schedule="static", num_threads=_threads):
        dequantise(codes + g * INT8_GROUP, scales[g], &y[g * INT8_GROUP], min(<Py_ssize_t> INT8_GROUP, n - g * INT8_GROUP))
