# Compressed copies of values, 16 or 8 bits an element.
#
#     bfloat16   the upper half of a float32, rounded to nearest, ties to even; NaN stays NaN (quiet)
#     int8       groups of 128: s = max|x| / 127,  q = round(x 127 / max|x|),  x' = q s
#                rounded to nearest, ties to even; or at random, q = floor(x 127 / max|x| + u), 0 < u < 1 uniform,
#                whose mean is x (Connolly, Higham, Mary: Stochastic Rounding and its Probabilistic Backward Error
#                Analysis, 2021)
#
# A float64 goes through float32. In int8 a group with NaN or infinity comes back as NaN, so that it is seen, and one whose
# largest magnitude is below 2^-112 as zeros: its scale would leave the range of a float. Groups are cut from the start of
# each row of the array, a sequence of the batch; an element's code depends on its group alone, so no cut of the batch into
# micro-batches changes it.
#
# u = (r + 1/2) / 2^16 with r sixteen bits of the generator of random.pxi: element e of the whole batch takes half e mod 8,
# the lower one of a word first, of the counter e/8. Finer would be lost: a float32 between 64 and 128 has 2^-17 as its
# last place. So the mean is x to 2^-17 of a step.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t

cdef enum:
    INT8_GROUP = 128  # elements to a scale: 3 % more than the codes; small enough that one outlier spoils little
    INT8_LEAST = 0x07800000  # bits of 2^-112, whose scale is still far from denormal
    INT8_MOST = 0x7f7ffff0  # 16 steps below the largest float: 127 scales stay finite, though the scale was rounded
    INT8_HALVES = 256  # random halves of a group, of its first counter before it, and what draw_words may add
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
    /* |x steps| may pass 127 by its rounding, and r adds up to one: hence the bounds, on whole numbers, where they
       vectorise. */
    static inline int8_t cllm_rounded_at_random(float x, float steps, uint16_t r)
    {
        int32_t code = (int32_t)floorf(CLLM_FMA_FLOAT(x, steps, (float)r * 0x1p-16f + 0x1p-17f));
        code = code > 127 ? 127 : code;
        return (int8_t)(code < -127 ? -127 : code);
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
    int8_t rounded_at_random "cllm_rounded_at_random"(float x, float steps, uint16_t r) noexcept nogil
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


cdef inline float steps_per_unit(const floating *x, int8_t *codes, float *scale, Py_ssize_t n) noexcept nogil:
    """The scale of a group, and what x is multiplied by to be rounded; -1 where NaN or infinity has made the codes.

    The bits of |x| order as its values do, and NaN above all, so a maximum of integers finds either.
    """
    cdef uint32_t largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, magnitude(<float> x[i]))
    if largest >= 0x7f800000u:
        scale[0] = float_of(0x7fc00000u)
        for i in range(n):
            codes[i] = 1
        return -1
    if largest < <uint32_t> INT8_LEAST:
        largest = 0
    elif largest > <uint32_t> INT8_MOST:
        largest = INT8_MOST
    scale[0] = float_of(largest) / 127
    return 127 / float_of(largest) if largest else 0


cdef void quantise(const floating *x, int8_t *codes, float *scale, Py_ssize_t n) noexcept nogil:
    """One group, to nearest."""
    cdef float inverse = steps_per_unit(x, codes, scale, n)
    cdef Py_ssize_t i
    if inverse < 0:
        return
    for i in range(n):
        codes[i] = <int8_t> rintf(<float> x[i] * inverse)


cdef void quantise_at_random(const floating *x, int8_t *codes, float *scale, Py_ssize_t n, Stream s,
                             uint64_t first) noexcept nogil:
    """One group, at random; its first element is number `first` of the whole batch."""
    cdef uint16_t halves[INT8_HALVES]
    cdef const uint16_t *half = &halves[first & 7]
    cdef float inverse = steps_per_unit(x, codes, scale, n)
    cdef Py_ssize_t i
    if inverse < 0:
        return
    draw_words(s, first >> 3, (n + <Py_ssize_t> (first & 7) + 1) >> 1, halves)
    for i in range(n):
        codes[i] = rounded_at_random(<float> x[i], inverse, half[i])


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


cdef inline Py_ssize_t groups_of(Py_ssize_t n_columns) noexcept nogil:
    """Groups in one row."""
    return (n_columns + INT8_GROUP - 1) // INT8_GROUP


def int8_bytes(Py_ssize_t n_rows, Py_ssize_t n_columns):
    """Bytes of rows of so many elements as int8: the scales of all groups, then the codes."""
    return n_rows * (groups_of(n_columns) * 4 + n_columns)


def compress_int8(const floating[:, ::1] x not None, *, uint8_t[::1] y not None):
    """y = scales and codes of x, group by group, rounded to nearest.

    Parameters
    ----------
    x : array of shape (rows, columns)
        Groups are cut from the start of each row: give each sequence of a batch as a row.
    y : array of at least ``int8_bytes(rows, columns)`` bytes, 4-byte aligned

    Raises
    ------
    ShapeError
    """
    cdef Py_ssize_t n = x.shape[1], groups = groups_of(n), total = x.shape[0] * groups, g, at
    cdef float *scales
    cdef int8_t *codes
    check_room("compress_int8", "y", y.shape[0], int8_bytes(x.shape[0], n))
    if total == 0:
        return
    scales = <float *> &y[0]
    codes = <int8_t *> (scales + total)
    for g in prange(total, nogil=True, schedule="static", num_threads=_threads):
        at = g % groups * INT8_GROUP
        quantise(&x[g // groups, at], codes + g // groups * n + at, scales + g, min(<Py_ssize_t> INT8_GROUP, n - at))


def compress_int8_stochastic(const floating[:, ::1] x not None, const uint64_t[::1] key not None, unsigned int site,
                             Py_ssize_t elements_a_row, *, uint8_t[::1] y not None):
    """y = scales and codes of x, rounded at random so that the mean is x.

    Parameters
    ----------
    x : array of shape (rows, columns)
        As for `compress_int8`.
    key : uint64 array of shape 3
        Seed, step, and the number of the first row of the model (a token, N of a batch) within the whole batch.
    site : int
        Number of the value in the model, apart from those of dropout masks.
    elements_a_row : int
        Elements of x for each row of the model.
    y : array of at least ``int8_bytes(rows, columns)`` bytes, 4-byte aligned

    Raises
    ------
    ShapeError
    """
    cdef Py_ssize_t n = x.shape[1], groups = groups_of(n), total = x.shape[0] * groups, g, at
    cdef float *scales
    cdef int8_t *codes
    cdef Stream s
    check_room("compress_int8_stochastic", "y", y.shape[0], int8_bytes(x.shape[0], n))
    set_key("compress_int8_stochastic", key, site, elements_a_row, &s)
    if total == 0:
        return
    scales = <float *> &y[0]
    codes = <int8_t *> (scales + total)
    for g in prange(total, nogil=True, schedule="static", num_threads=_threads):
        at = g % groups * INT8_GROUP
        quantise_at_random(&x[g // groups, at], codes + g // groups * n + at, scales + g,
                           min(<Py_ssize_t> INT8_GROUP, n - at), s, s.first + <uint64_t> (g // groups * n + at))


def expand_int8(const uint8_t[::1] x not None, *, floating[:, ::1] y not None):
    """y = the values of the codes x; shapes as `compress_int8`."""
    cdef Py_ssize_t n = y.shape[1], groups = groups_of(n), total = y.shape[0] * groups, g, at
    cdef const float *scales
    cdef const int8_t *codes
    check_room("expand_int8", "x", x.shape[0], int8_bytes(y.shape[0], n))
    if total == 0:
        return
    scales = <const float *> &x[0]
    codes = <const int8_t *> (scales + total)
    for g in prange(total, nogil=True, schedule="static", num_threads=_threads):
        at = g % groups * INT8_GROUP
        dequantise(codes + g // groups * n + at, scales[g], &y[g // groups, at], min(<Py_ssize_t> INT8_GROUP, n - at))
