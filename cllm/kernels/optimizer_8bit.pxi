# AdamW with a byte for each element of m and of v: block-wise dynamic quantisation (Dettmers et al., 8-bit Optimizers via
# Block-wise Quantization, 2022). Steps are those of `optimizer.pxi`, each rounded to float32; between two steps
#
#     m_i = code[byte_i] scale      of the 2048 elements of a block; scale is the greatest magnitude among them
#
# and byte_i is that of the nearest code. Codes are the dynamic map: 0, 1, and 10^(k - 6) f for k = 0 .. 6, where f are the
# middles of 2^k equal parts of [0.1, 1] (of m, which has a sign), or of 2^(k + 1) (of v, which has none): seven decades, the
# finer the greater. A v that is not zero never becomes zero: m over the root of it would be without bound, where a row of an
# embedding had no gradient for long and shares its block with one that had.

from libc.math cimport fabsf, sqrtf


cdef extern from *:
    """
    static inline uint32_t cllm_bits_of_magnitude(float x)
    {
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        return u & 0x7fffffffu;
    }
    static inline float cllm_float_of_bits(uint32_t u)
    {
        float x;
        memcpy(&x, &u, sizeof x);
        return x;
    }
    """
    unsigned int bits_of_magnitude "cllm_bits_of_magnitude"(float x) noexcept nogil
    float float_of_bits "cllm_float_of_bits"(unsigned int u) noexcept nogil


cdef enum:
    CODE_BLOCK = 2048       # elements to a scale, as in the paper; SPAN is a multiple
    FINE_SHIFT = 17         # bits of a float32 below its exponent and six more: a bucket has few codes in it
    LEAST_BUCKET = 6656     # of 2^-23, below half of the least code
    BUCKETS = 1473          # up to that of 1


cdef struct Codes:          # magnitudes, ascending from 0
    int n
    float value[256]
    float middle[256]       # between a code and the next
    unsigned char start[BUCKETS]    # the code of the least number in a bucket


cdef Codes SIGNED_CODES, UNSIGNED_CODES
cdef float SIGNED_VALUE[256]


cdef void make_codes(Codes *c, int parts) noexcept:
    """The dynamic map whose least decade has so many parts."""
    cdef int k, j, n = parts, b
    cdef float edge
    cdef double low, high, decade = 1e-6
    c.n = 1
    c.value[0] = 0.0
    for k in range(7):
        for j in range(n):
            low, high = 0.1 + j * (0.9 / n), 0.1 + (j + 1) * (0.9 / n)
            c.value[c.n] = <float> (decade * (0.5 * (low + high)))
            c.n += 1
        n *= 2
        decade *= 10.0
    c.value[c.n] = 1.0
    c.n += 1
    for k in range(c.n - 1):
        c.middle[k] = <float> (0.5 * (<double> c.value[k] + <double> c.value[k + 1]))
    k = 0
    for b in range(BUCKETS):
        edge = float_of_bits(<unsigned int> (b + LEAST_BUCKET) << FINE_SHIFT) if b else 0.0
        while k < c.n - 1 and c.middle[k] < edge:
            k += 1
        c.start[b] = <unsigned char> k


cdef void make_all_codes() noexcept:
    cdef int k
    make_codes(&SIGNED_CODES, 1)
    make_codes(&UNSIGNED_CODES, 2)
    for k in range(256):
        SIGNED_VALUE[k] = SIGNED_CODES.value[k - 127] if k >= 127 else -SIGNED_CODES.value[127 - k]


make_all_codes()


cdef inline int nearest_code(const Codes *c, float x) noexcept nogil:
    """Number of the code nearest to a magnitude of at most 1, the lower one in the middle of two."""
    cdef long bucket = <long> (bits_of_magnitude(x) >> FINE_SHIFT) - LEAST_BUCKET
    cdef int k
    bucket = 0 if bucket < 0 else BUCKETS - 1 if bucket >= BUCKETS else bucket
    k = c.start[bucket]
    while k < c.n - 1 and c.middle[k] < x:
        k += 1
    return k


cdef struct AdamW8:
    float beta1
    float beta2
    float other1            # 1 - beta1
    float other2
    float rate              # lr / (1 - beta1^t)
    float root              # 1 / sqrt(1 - beta2^t)
    float eps
    float decay             # lr * weight_decay of the array, or 0


cdef inline void encode_signed(const float *m, Py_ssize_t n, unsigned char *codes, float *scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef int k
    cdef float top = 0.0, x
    for i in range(n):
        x = fabsf(m[i])
        top = x if x > top else top
    scale[0] = top
    for i in range(n):
        k = nearest_code(&SIGNED_CODES, fabsf(m[i]) / top) if top > 0.0 else 0
        codes[i] = <unsigned char> (127 + k if m[i] >= 0.0 else 127 - min(k, 127))


cdef inline void encode_unsigned(const float *v, Py_ssize_t n, unsigned char *codes, float *scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef int k
    cdef float top = 0.0
    for i in range(n):
        top = v[i] if v[i] > top else top
    scale[0] = top
    for i in range(n):
        k = nearest_code(&UNSIGNED_CODES, v[i] / top) if top > 0.0 else 0
        codes[i] = <unsigned char> (1 if k == 0 and v[i] > 0.0 else k)


cdef void adamw8_block(const float *grad, AdamW8 s, float *param, unsigned char *m_codes, float *m_scale,
                       unsigned char *v_codes, float *v_scale, Py_ssize_t n) noexcept nogil:
    cdef float m[CODE_BLOCK]
    cdef float v[CODE_BLOCK]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = SIGNED_VALUE[m_codes[i]] * m_scale[0]
        v[i] = UNSIGNED_CODES.value[v_codes[i]] * v_scale[0]
    for i in range(n):
        m[i] = s.beta1 * m[i] + s.other1 * grad[i]
        v[i] = s.beta2 * v[i] + (s.other2 * grad[i]) * grad[i]
        param[i] = param[i] - (s.rate * (m[i] / (sqrtf(v[i]) * s.root + s.eps)) + s.decay * param[i])
    encode_signed(m, n, m_codes, m_scale)
    encode_unsigned(v, n, v_codes, v_scale)


cdef void adamw8_piece(AdamW8 s, double lr, const double *weight_decay, Flats grads, Flats params, Flats m, Flats m_scales,
                       Flats v, Flats v_scales, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(grads, p)
    cdef Py_ssize_t k = at.array, i = at.start
    s.decay = <float> (lr * weight_decay[k])
    while i < at.stop:
        adamw8_block(<const float*> grads.flats[k].data + i, s, <float*> params.flats[k].data + i,
                     <unsigned char*> m.flats[k].data + i, <float*> m_scales.flats[k].data + i // CODE_BLOCK,
                     <unsigned char*> v.flats[k].data + i, <float*> v_scales.flats[k].data + i // CODE_BLOCK,
                     min(<Py_ssize_t> CODE_BLOCK, at.stop - i))
        i += CODE_BLOCK


def adamw8bit_update(ArrayList grads not None, double lr, double beta1, double beta2, double eps,
                     const double[::1] weight_decay not None, long long step, *, ArrayList params not None,
                     CodeList m not None, ArrayList m_scales not None, CodeList v not None, ArrayList v_scales not None):
    """One step of AdamW with a byte for each element of m and v.

    Parameters
    ----------
    grads : ArrayList of float32
        Gradients of the parameters, array by array.
    lr, beta1, beta2, eps : float
    weight_decay : array of shape len(grads)
        0 for arrays that do not decay.
    step : int
        Counts from 1.
    params : ArrayList, updated
    m, v : CodeList, updated
        As long as the gradients.
    m_scales, v_scales : ArrayList, updated
        An element for each 2048 of theirs. Where all is zero, m and v are.
    """
    cdef AdamW8 s
    cdef Py_ssize_t p
    check_length("adamw8bit_update", "len(weight_decay)", weight_decay.shape[0], grads.bound.n)
    check_list("adamw8bit_update", "params", params, grads)
    check_sizes("adamw8bit_update", "m", m.bound, grads.bound)
    check_sizes("adamw8bit_update", "v", v.bound, grads.bound)
    check_sizes("adamw8bit_update", "m_scales", m_scales.bound, grads.bound, CODE_BLOCK)
    check_sizes("adamw8bit_update", "v_scales", v_scales.bound, grads.bound, CODE_BLOCK)
    if step < 1:
        raise ConfigError("adamw8bit_update(step=...)", "must be at least 1", str(step), "Count steps from 1.")
    if grads.is_double or m_scales.is_double or v_scales.is_double:
        raise DtypeError("adamw8bit_update", "arrays must be float32", "float64", "Keep states of a byte for float32 alone.")
    if grads.bound.n == 0:
        return
    s.beta1, s.beta2, s.other1, s.other2, s.eps, s.decay = beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, 0.0
    s.rate = lr / (1.0 - pow(beta1, <double> step))
    s.root = 1.0 / sqrt(1.0 - pow(beta2, <double> step))
    for p in prange(grads.bound.n_pieces, nogil=True, num_threads=_threads, schedule="static",
                    use_threads_if=grads.bound.size >= PARALLEL_FROM):
        adamw8_piece(s, lr, &weight_decay[0], grads.bound, params.bound, m.bound, m_scales.bound, v.bound, v_scales.bound, p)


def dynamic_codes(bint signed, *, float[::1] out not None):
    """The numbers that bytes stand for, times a block's scale.

    Parameters
    ----------
    signed : bool
        Of m, else of v.
    out : array of shape 256, written
    """
    cdef int k
    check_length("dynamic_codes", "len(out)", out.shape[0], 256)
    for k in range(256):
        out[k] = SIGNED_VALUE[k] if signed else UNSIGNED_CODES.value[k]
