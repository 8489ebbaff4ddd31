# Random numbers that are computed from where they are used and never stored, and dropout, which uses them.
#
#     Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011), ten rounds of
#     (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),  (k0, k1) += (W0, W1)
#
#     element (n, c) has number e = (first_row + n) C + c; it is word e mod 4 of the counter
#     (low e/4, high e/4, low step, site) under the key (low seed, high seed ^ high step)
#     kept where word >= rate 2^32:   y = x / (1 - rate) where kept, x * 0 where not
#
# An element that is dropped is multiplied by zero, so NaN and infinity are still seen.
# Counters go several at a time, each word in a 64-bit lane, where the low and the high half of a product meet.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    typedef uint64_t cllm_vu64 __attribute__((vector_size(CLLM_VECTOR_BYTES)));
    #define CLLM_COUNTERS (CLLM_VECTOR_BYTES / 8)
    static inline __attribute__((always_inline)) cllm_vu64 cllm_splat_u64(uint64_t s) { return s - (cllm_vu64){0}; }
    static inline __attribute__((always_inline)) void cllm_store_u64(void *p, cllm_vu64 v) { memcpy(p, &v, sizeof v); }
    static inline __attribute__((always_inline)) cllm_vu64 cllm_count_u64(uint64_t first)
        { cllm_vu64 v; for (int i = 0; i < CLLM_COUNTERS; i++) v[i] = first + (uint64_t)i; return v; }

    /* The product of the low halves of each lane. Compilers do not see that the high halves do not matter and multiply
       64 by 64 bits, so the instruction is named where there is one. */
    static inline __attribute__((always_inline)) cllm_vu64 cllm_multiply_low(cllm_vu64 a, cllm_vu64 b)
    {
    #if defined(__AVX512F__)
        return (cllm_vu64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
    #elif defined(__AVX2__)
        return (cllm_vu64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
    #else
        return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
    #endif
    }

    /* Lanes of a and b in turn: a0 b0 a1 b1 ... to p. */
    static inline __attribute__((always_inline)) void cllm_store_in_turn(void *p, cllm_vu64 a, cllm_vu64 b)
    {
    #if CLLM_COUNTERS == 8
        cllm_vu64 first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        cllm_vu64 second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    #elif CLLM_COUNTERS == 4
        cllm_vu64 first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        cllm_vu64 second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    #else
        cllm_vu64 first = __builtin_shufflevector(a, b, 0, 2);
        cllm_vu64 second = __builtin_shufflevector(a, b, 1, 3);
    #endif
        memcpy(p, &first, sizeof first);
        memcpy((char *)p + sizeof first, &second, sizeof second);
    }
    """
    ctypedef uint64_t vu64 "cllm_vu64"
    vu64 splat_u64 "cllm_splat_u64"(uint64_t s) noexcept nogil
    void store_u64 "cllm_store_u64"(void *p, vu64 v) noexcept nogil
    vu64 count_u64 "cllm_count_u64"(uint64_t first) noexcept nogil
    vu64 multiply_low "cllm_multiply_low"(vu64 a, vu64 b) noexcept nogil
    void store_in_turn "cllm_store_in_turn"(void *p, vu64 a, vu64 b) noexcept nogil
    enum:
        COUNTERS "CLLM_COUNTERS"        # counters at once

cdef enum:
    DROPOUT_SPAN = 1024         # elements whose factors are held at once
    DROPOUT_WORDS = 1088        # words for them, and for the counters that begin before or end behind

# Multipliers and key increments of the paper (its table of Philox constants; the golden ratio and sqrt(3) - 1).
cdef extern from *:
    """
    #define CLLM_PHILOX_M0 0xD2511F53u
    #define CLLM_PHILOX_M1 0xCD9E8D57u
    #define CLLM_PHILOX_W0 0x9E3779B9u
    #define CLLM_PHILOX_W1 0xBB67AE85u
    """
    const uint32_t PHILOX_M0 "CLLM_PHILOX_M0"
    const uint32_t PHILOX_M1 "CLLM_PHILOX_M1"
    const uint32_t PHILOX_W0 "CLLM_PHILOX_W0"
    const uint32_t PHILOX_W1 "CLLM_PHILOX_W1"


cdef inline void philox(vu64 *c, uint32_t k0, uint32_t k1) noexcept nogil:
    """Ten rounds on four vectors of counter words, in place. High halves of lanes hold anything meanwhile: a product
    reads the low ones alone."""
    cdef vu64 m0 = splat_u64(PHILOX_M0), m1 = splat_u64(PHILOX_M1), low = splat_u64(0xFFFFFFFFu), a, b
    cdef vu64 shift = splat_u64(32)
    cdef int r
    for r in range(10):
        a = multiply_low(m0, c[0])
        b = multiply_low(m1, c[2])
        c[0] = (b >> shift) ^ c[1] ^ splat_u64(k0)
        c[1] = b
        c[2] = (a >> shift) ^ c[3] ^ splat_u64(k1)
        c[3] = a
        k0 += PHILOX_W0
        k1 += PHILOX_W1
    for r in range(4):
        c[r] = c[r] & low


def philox4x32(const uint32_t[::1] counter not None, const uint32_t[::1] key not None):
    """The generator itself: four 32-bit words for a counter of four words and a key of two."""
    cdef vu64 c[4]
    cdef uint64_t words[COUNTERS]
    cdef list out = []
    cdef int j
    check_length("philox4x32", "len(counter)", counter.shape[0], 4)
    check_length("philox4x32", "len(key)", key.shape[0], 2)
    for j in range(4):
        c[j] = splat_u64(counter[j])
    philox(c, key[0], key[1])
    for j in range(4):
        store_u64(words, c[j])
        out.append(words[0])
    return tuple(out)


cdef struct Stream:
    uint32_t k0
    uint32_t k1
    uint32_t step
    uint32_t site
    uint64_t first          # number of the array's first element
    uint32_t threshold      # dropout: an element is kept from this word on


cdef inline void draw_words(Stream s, uint64_t first, Py_ssize_t need, void *words) noexcept nogil:
    """Words of the counters first, first + 1, ... in order, at least `need`, to room for 4 COUNTERS - 1 more."""
    cdef Py_ssize_t have = 0
    cdef vu64 c[4]
    cdef vu64 shift = splat_u64(32), mask = splat_u64(0xFFFFFFFFu), number = count_u64(first)
    while have < need:
        c[0] = number & mask
        c[1] = number >> shift
        c[2] = splat_u64(s.step)
        c[3] = splat_u64(s.site)
        philox(c, s.k0, s.k1)
        store_in_turn(<uint32_t*> words + have, c[0] | (c[1] << shift), c[2] | (c[3] << shift))
        number = number + splat_u64(COUNTERS)
        have += 4 * COUNTERS


cdef inline void keep_factors(Stream s, double factor, Py_ssize_t at, Py_ssize_t n, vec *factors) noexcept nogil:
    """`factor` for kept and 0 for dropped elements at .. at+n-1; room for DROPOUT_SPAN elements."""
    cdef uint32_t words[DROPOUT_WORDS]
    cdef uint64_t first = s.first + <uint64_t> at
    cdef const uint32_t *word = &words[first & 3]
    cdef Py_ssize_t j
    draw_words(s, first >> 2, n + <Py_ssize_t> (first & 3), words)
    if vec is vf32:
        for j in range(n):
            (<float*> factors)[j] = <float> factor if word[j] >= s.threshold else <float> 0.0
    else:
        for j in range(n):
            (<double*> factors)[j] = factor if word[j] >= s.threshold else 0.0


cdef inline void dropout_span(const vec *x, const vec *branch, Stream s, double factor, vec *y, Py_ssize_t at,
                              Py_ssize_t stop) noexcept nogil:
    """y = branch * factors, or x + branch * factors where x is given."""
    cdef double room[DROPOUT_SPAN]
    cdef vec *factors = <vec*> &room[0]
    cdef Py_ssize_t L = lanes(y), i = 0, n = stop - at, left
    keep_factors(s, factor, at, n, factors)
    while x == NULL and i + L <= n:
        store(y, at + i, load(branch, at + i) * load(factors, i))
        i += L
    while i + L <= n:
        store(y, at + i, fma(load(branch, at + i), load(factors, i), load(x, at + i)))
        i += L
    left = n - i
    if left > 0 and x == NULL:
        store_partial(y, at + i, load_partial(branch, at + i, left) * load_partial(factors, i, left), left)
    elif left > 0:
        store_partial(y, at + i, fma(load_partial(branch, at + i, left), load_partial(factors, i, left),
                                     load_partial(x, at + i, left)), left)


cdef void dropout_spans(const vec *x, const vec *branch, Stream s, double factor, vec *y,
                        Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange((size + DROPOUT_SPAN - 1) // DROPOUT_SPAN, num_threads=_threads,
                    use_threads_if=size >= PARALLEL_FROM, schedule="static"):
        dropout_span(x, branch, s, factor, y, p * DROPOUT_SPAN, min(size, (p + 1) * DROPOUT_SPAN))


cdef int set_key(str kernel, const uint64_t[::1] key, unsigned int site, Py_ssize_t n_columns, Stream *s) except -1:
    """The stream of a site from (seed, step, first row of the whole batch), with `n_columns` elements to a row."""
    check_length(kernel, "len(key)", key.shape[0], 3)
    s.k0 = <uint32_t> key[0]
    s.k1 = <uint32_t> (key[0] >> 32) ^ <uint32_t> (key[1] >> 32)
    s.step = <uint32_t> key[1]
    s.site = site
    s.first = key[2] * <uint64_t> n_columns
    return 0


cdef int set_stream(str kernel, const uint64_t[::1] key, unsigned int site, double rate, Py_ssize_t n_columns,
                    Stream *s) except -1:
    set_key(kernel, key, site, n_columns, s)
    if not 0.0 < rate < 1.0:
        raise ConfigError(f"{kernel}(rate=...)", "must be above 0 and below 1", str(rate),
                          "Leave the call out where nothing is dropped.")
    s.threshold = <uint32_t> (rate * 4294967296.0)
    return 0


def dropout_forward(const floating[:, ::1] x not None, const uint64_t[::1] key not None, unsigned int site,
                    double rate, *, floating[:, ::1] y not None):
    """Zero a random share of the elements and scale the others by 1 / (1 - rate).

    Parameters
    ----------
    x : array of shape N C
    key : uint64 array of shape 3
        Seed, step, and the number of the first row within the whole batch.
    site : int
        Number of the place in the model.
    rate : float
        Share that is dropped, above 0 and below 1.
    y : array of shape N C, written
        May be x itself.
    """
    cdef Py_ssize_t size = x.shape[0] * x.shape[1]
    cdef Stream s
    check_length("dropout_forward", "len(y)", y.shape[0], x.shape[0])
    check_length("dropout_forward", "y.shape[1]", y.shape[1], x.shape[1])
    set_stream("dropout_forward", key, site, rate, x.shape[1], &s)
    if size == 0:
        return
    with nogil:
        if floating is float:
            dropout_spans(<const vf32*> NULL, <const vf32*> &x[0, 0], s, 1.0 / (1.0 - rate), <vf32*> &y[0, 0], size)
        else:
            dropout_spans(<const vf64*> NULL, <const vf64*> &x[0, 0], s, 1.0 / (1.0 - rate), <vf64*> &y[0, 0], size)


def residual_dropout_forward(const floating[:, ::1] x not None, const floating[:, ::1] branch not None,
                             const uint64_t[::1] key not None, unsigned int site, double rate, *,
                             floating[:, ::1] y not None):
    """y = x + dropout(branch).

    Parameters
    ----------
    x, branch : arrays of shape N C
    key, site, rate
        As for `dropout_forward`.
    y : array of shape N C, written
        May be x or branch itself.
    """
    cdef Py_ssize_t size = x.shape[0] * x.shape[1]
    cdef Stream s
    check_length("residual_dropout_forward", "len(branch)", branch.shape[0], x.shape[0])
    check_length("residual_dropout_forward", "branch.shape[1]", branch.shape[1], x.shape[1])
    check_length("residual_dropout_forward", "len(y)", y.shape[0], x.shape[0])
    check_length("residual_dropout_forward", "y.shape[1]", y.shape[1], x.shape[1])
    set_stream("residual_dropout_forward", key, site, rate, x.shape[1], &s)
    if size == 0:
        return
    with nogil:
        if floating is float:
            dropout_spans(<const vf32*> &x[0, 0], <const vf32*> &branch[0, 0], s, 1.0 / (1.0 - rate),
                          <vf32*> &y[0, 0], size)
        else:
            dropout_spans(<const vf64*> &x[0, 0], <const vf64*> &branch[0, 0], s, 1.0 / (1.0 - rate),
                          <vf64*> &y[0, 0], size)


def dropout_backward(const floating[:, ::1] dy not None, const uint64_t[::1] key not None, unsigned int site,
                     double rate, *, floating[:, ::1] dx not None):
    """Gradient of the branch: dy where its element was kept, scaled by 1 / (1 - rate), and zero elsewhere.

    Parameters
    ----------
    dy : array of shape N C
    key, site, rate
        As in the forward.
    dx : array of shape N C, written
        May be dy itself.
    """
    cdef Py_ssize_t size = dy.shape[0] * dy.shape[1]
    cdef Stream s
    check_length("dropout_backward", "len(dx)", dx.shape[0], dy.shape[0])
    check_length("dropout_backward", "dx.shape[1]", dx.shape[1], dy.shape[1])
    set_stream("dropout_backward", key, site, rate, dy.shape[1], &s)
    if size == 0:
        return
    with nogil:
        if floating is float:
            dropout_spans(<const vf32*> NULL, <const vf32*> &dy[0, 0], s, 1.0 / (1.0 - rate), <vf32*> &dx[0, 0], size)
        else:
            dropout_spans(<const vf64*> NULL, <const vf64*> &dy[0, 0], s, 1.0 / (1.0 - rate), <vf64*> &dx[0, 0], size)
