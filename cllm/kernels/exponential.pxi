# exp and tanh of whole vectors.
#
#   exp(x) = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2)/2
#   e^r    = 1 + r + r^2 q(r),   q a polynomial
#
# ln 2 is subtracted in two parts, the first with so few bits that n times it is exact. q is fitted to
# (e^r - 1 - r) / r^2 for the least relative error of e^r over |r| <= 0.347 (least squares on 120 Chebyshev points,
# reweighted forty times, in 60 digits): error 3.1e-9 = 0.05 units of the last place with five coefficients in float32,
# 3.7e-18 = 0.03 units with ten in float64. With rounding, exp is within 0.92 and tanh within 2.5 units of the last
# place in both types (1.21 and 2.5 without fused multiply-add); the tests hold them to 1.5 and 3.
#
# The factor is built from the bits of n as 2^(n-1), and the polynomial is doubled to make up for it: so the largest
# finite results do not overflow on the way, arguments above ln(largest) give infinity, and arguments below -87
# (float32; -708.1 in float64) give exactly zero, never a denormal. NaN stays NaN: it passes the clamps, and the last
# multiplication keeps it whatever the bits of n say.

cdef extern from *:
    """
    /* 2^(n-1) from t = n + bias - 1 + 1.5 * 2^mantissa: the low bits of t are the exponent, others drop out */
    static inline __attribute__((always_inline)) cllm_vf32 cllm_power_f32(cllm_vf32 t)
        { return (cllm_vf32)((cllm_vi32)t << 23); }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_power_f64(cllm_vf64 t)
        { return (cllm_vf64)((cllm_vi64)t << 52); }
    static inline __attribute__((always_inline)) cllm_vf32 cllm_copysign_f32(cllm_vf32 a, cllm_vf32 s)
        { cllm_vi32 m = INT32_MIN - (cllm_vi32){0}; return (cllm_vf32)(((cllm_vi32)a & ~m) | ((cllm_vi32)s & m)); }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_copysign_f64(cllm_vf64 a, cllm_vf64 s)
        { cllm_vi64 m = INT64_MIN - (cllm_vi64){0}; return (cllm_vf64)(((cllm_vi64)a & ~m) | ((cllm_vi64)s & m)); }
    """
    vf32 power_f32 "cllm_power_f32"(vf32 t) noexcept nogil
    vf64 power_f64 "cllm_power_f64"(vf64 t) noexcept nogil
    vf32 copysign_f32 "cllm_copysign_f32"(vf32 a, vf32 s) noexcept nogil
    vf64 copysign_f64 "cllm_copysign_f64"(vf64 a, vf64 s) noexcept nogil


cdef inline vec exp_series(vec r) noexcept nogil:
    """2 q(r), so that 2 e^r = 2 + r (2 + r * exp_series(r))."""
    cdef vec q
    if vec is vf32:
        q = splat(&r, 2 * 0.0013814425328746438)
        q = q * r + splat(&r, 2 * 0.008368785493075848)
        q = q * r + splat(&r, 2 * 0.041668396443128586)
        q = q * r + splat(&r, 2 * 0.1666651964187622)
        q = q * r + splat(&r, 2 * 0.4999999403953552)
    else:
        q = splat(&r, 2 * 2.500020811478388e-08)
        q = q * r + splat(&r, 2 * 2.7630379637509436e-07)
        q = q * r + splat(&r, 2 * 2.7557586598226274e-06)
        q = q * r + splat(&r, 2 * 2.4801492759248175e-05)
        q = q * r + splat(&r, 2 * 0.00019841269505566615)
        q = q * r + splat(&r, 2 * 0.0013888888943926847)
        q = q * r + splat(&r, 2 * 0.008333333333495273)
        q = q * r + splat(&r, 2 * 0.04166666666652917)
        q = q * r + splat(&r, 2 * 0.1666666666666641)
        q = q * r + splat(&r, 2 * 0.5000000000000011)
    return q


cdef inline vec exp_reduce(vec x, vec *half_power) noexcept nogil:
    """r of x = n ln 2 + r, and 2^(n-1) into `half_power`; n within the exponents of the type."""
    cdef vec t, n, shift
    if vec is vf32:
        shift = splat(&x, 12582912.0 + 126.0)
        t = x * splat(&x, 1.4426950408889634) + shift
        n = t - shift
        half_power[0] = power_f32(t)
        return (x - n * splat(&x, 0.693145751953125)) - n * splat(&x, 1.4286068203094173e-06)
    else:
        shift = splat(&x, 6755399441055744.0 + 1022.0)
        t = x * splat(&x, 1.4426950408889634) + shift
        n = t - shift
        half_power[0] = power_f64(t)
        return (x - n * splat(&x, 0.6931471805582987)) - n * splat(&x, 1.6465949582897082e-12)


cdef inline vec vexp(vec x) noexcept nogil:
    """e^x in each lane, within 0.92 units of the last place; zero below -87 (float64: -708.1)."""
    cdef vec r, half_power, two = splat(&x, 2.0)
    if vec is vf32:
        x = vmin(splat(&x, 88.8), vmax(splat(&x, -87.5), x))
    else:
        x = vmin(splat(&x, 710.0), vmax(splat(&x, -708.5), x))
    r = exp_reduce(x, &half_power)
    return ((exp_series(r) * r + two) * r + two) * half_power


cdef inline vec vtanh(vec x) noexcept nogil:
    """tanh x = -u / (2 + u), u = e^(-2|x|) - 1, in each lane; within 2.5 units of the last place.

    u = 2^n (e^r - 1) + (2^n - 1) has no cancellation: n = 0 where |x| is small. Beyond |x| = 20 it is -1.
    """
    cdef vec r, half_power, u, power, one = splat(&x, 1.0), two = splat(&x, 2.0)
    r = exp_reduce(vmax(splat(&x, -40.0), -two * vmax(x, -x)), &half_power)
    power = half_power + half_power
    u = exp_series(r) * (r * r * splat(&x, 0.5)) + r
    u = u * power + (power - one)
    u = u / (two + u)
    if vec is vf32:
        return copysign_f32(u, x)
    else:
        return copysign_f64(u, x)


cdef inline void map_exponential(const vec *x, bint tanh, vec *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, left
    cdef vec v
    for i from 0 <= i < n by lanes(x):
        left = min(n - i, <Py_ssize_t> lanes(x))
        v = load_partial(x, i, left)
        store_partial(y, i, vtanh(v) if tanh else vexp(v), left)


def exponential(const floating[::1] x not None, bint tanh=False, *, floating[::1] y not None):
    """e^x, or tanh x, element by element: the functions as the kernels have them, for tests and profiling.

    Parameters
    ----------
    x : array of shape N
    tanh : bool
        Write tanh x rather than e^x.
    y : array of shape N, written
    """
    check_length("exponential", "len(y)", y.shape[0], x.shape[0])
    if x.shape[0] == 0:
        return
    if floating is float:
        map_exponential(<const vf32*> &x[0], tanh, <vf32*> &y[0], x.shape[0])
    else:
        map_exponential(<const vf64*> &x[0], tanh, <vf64*> &y[0], x.shape[0])
