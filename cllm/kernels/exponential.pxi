# exp, tanh and powers of two of whole vectors.
#
#   exp(x) = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2)/2
#   e^r    = 1 + r + r^2 q(r),   q a polynomial
#
# ln 2 is subtracted in two parts, the first with so few bits that n times it is exact. q is fitted to
# (e^r - 1 - r) / r^2 for the least relative error of e^r over |r| <= 0.347 (least squares on 120 Chebyshev points,
# reweighted forty times, in 60 digits): error 3.1e-9 = 0.05 units of the last place with five coefficients in float32,
# 3.7e-18 = 0.03 units with ten in float64. With rounding, exp is within 0.92 and tanh within 2.6 units of the last
# place in both types (1.21 and 2.6 without fused multiply-add); the tests hold them to 1.5 and 3.
#
# The factor is built from the bits of n as 2^(n-1), and the polynomial is doubled to make up for it: so the largest
# finite results do not overflow on the way, arguments above ln(largest) give infinity, and arguments below -87
# (float32; -708.1 in float64) give exactly zero, never a denormal. NaN stays NaN: it passes the clamps, and the last
# multiplication keeps it whatever the bits of n say.
#
#   2^x    = 2^n 2^r,   n = round(x),   r = x - n, which is exact,   |r| <= 1/2
#   2^r    = 1 + r p(r)
#
# is for arguments of our own making, whose factor log2(e) goes into constants: it spares the three multiplications of
# the reduction, and a term of the polynomial where what is rounded is the argument anyway. p is fitted as q is, with
# error 9.4e-8 of 2^r with five coefficients in float32, 2.3e-16 with ten in float64: each 0.8 to 1 unit of the last
# place. (Six and eleven, as accurate as q, would be 3.0e-9 and 4.2e-18.)

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
        q = fma(q, r, splat(&r, 2 * 0.008368785493075848))
        q = fma(q, r, splat(&r, 2 * 0.041668396443128586))
        q = fma(q, r, splat(&r, 2 * 0.1666651964187622))
        q = fma(q, r, splat(&r, 2 * 0.4999999403953552))
    else:
        q = splat(&r, 2 * 2.500020811478388e-08)
        q = fma(q, r, splat(&r, 2 * 2.7630379637509436e-07))
        q = fma(q, r, splat(&r, 2 * 2.7557586598226274e-06))
        q = fma(q, r, splat(&r, 2 * 2.4801492759248175e-05))
        q = fma(q, r, splat(&r, 2 * 0.00019841269505566615))
        q = fma(q, r, splat(&r, 2 * 0.0013888888943926847))
        q = fma(q, r, splat(&r, 2 * 0.008333333333495273))
        q = fma(q, r, splat(&r, 2 * 0.04166666666652917))
        q = fma(q, r, splat(&r, 2 * 0.1666666666666641))
        q = fma(q, r, splat(&r, 2 * 0.5000000000000011))
    return q


cdef inline vec exp_reduce(vec x, vec *half_power) noexcept nogil:
    """r of x = n ln 2 + r, and 2^(n-1) into `half_power`; n within the exponents of the type."""
    cdef vec t, n, shift
    if vec is vf32:
        shift = splat(&x, 12582912.0 + 126.0)
        t = fma(x, splat(&x, 1.4426950408889634), shift)
        n = t - shift
        half_power[0] = power_f32(t)
        return fnma(n, splat(&x, 1.4286068203094173e-06), fnma(n, splat(&x, 0.693145751953125), x))
    else:
        shift = splat(&x, 6755399441055744.0 + 1022.0)
        t = fma(x, splat(&x, 1.4426950408889634), shift)
        n = t - shift
        half_power[0] = power_f64(t)
        return fnma(n, splat(&x, 1.6465949582897082e-12), fnma(n, splat(&x, 0.6931471805582987), x))


cdef inline vec vexp_parts(vec x, vec *half_power) noexcept nogil:
    """2 e^r, where e^x = e^r 2^n and 2^(n-1) goes into `half_power`: for sums that round the product with them."""
    cdef vec r, two = splat(&x, 2.0)
    if vec is vf32:
        x = vmin(splat(&x, 88.8), vmax(splat(&x, -87.5), x))
    else:
        x = vmin(splat(&x, 710.0), vmax(splat(&x, -708.5), x))
    r = exp_reduce(x, half_power)
    return fma(fma(exp_series(r), r, two), r, two)


cdef inline vec vexp(vec x) noexcept nogil:
    """e^x in each lane, within 0.92 units of the last place; zero below -87 (float64: -708.1)."""
    cdef vec half_power, twice = vexp_parts(x, &half_power)
    return twice * half_power


cdef inline vec vexp2_parts(vec x, vec *half_power) noexcept nogil:
    """2 2^r, where 2^x = 2^r 2^n and 2^(n-1) goes into `half_power`; as `vexp_parts`."""
    cdef vec t, r, shift, p, two = splat(&x, 2.0)
    if vec is vf32:
        shift = splat(&x, 12582912.0 + 126.0)
        x = vmin(splat(&x, 128.1), vmax(splat(&x, -126.4), x))
        t = x + shift
        half_power[0] = power_f32(t)
    else:
        shift = splat(&x, 6755399441055744.0 + 1022.0)
        x = vmin(splat(&x, 1024.1), vmax(splat(&x, -1022.4), x))
        t = x + shift
        half_power[0] = power_f64(t)
    r = x - (t - shift)
    if vec is vf32:
        p = splat(&x, 2 * 0.0013269593473523855)
        p = fma(p, r, splat(&x, 2 * 0.00967139471322298))
        p = fma(p, r, splat(&x, 2 * 0.0555071122944355))
        p = fma(p, r, splat(&x, 2 * 0.24022245407104492))
        p = fma(p, r, splat(&x, 2 * 0.6931470036506653))
    else:
        p = splat(&x, 2 * 7.038018841179432e-09)
        p = fma(p, r, splat(&x, 2 * 1.020836871254481e-07))
        p = fma(p, r, splat(&x, 2 * 1.3215655007583873e-06))
        p = fma(p, r, splat(&x, 2 * 1.5252659220369777e-05))
        p = fma(p, r, splat(&x, 2 * 0.00015403529990378422))
        p = fma(p, r, splat(&x, 2 * 0.0013333558226085772))
        p = fma(p, r, splat(&x, 2 * 0.00961812910798707))
        p = fma(p, r, splat(&x, 2 * 0.0555041086644807))
        p = fma(p, r, splat(&x, 2 * 0.2402265069590909))
        p = fma(p, r, splat(&x, 2 * 0.6931471805599492))
    return fma(p, r, two)


cdef inline vec vexp2(vec x) noexcept nogil:
    """2^x in each lane, within 2 units of the last place; zero below -125.5 (float64: -1021.5)."""
    cdef vec half_power, twice = vexp2_parts(x, &half_power)
    return twice * half_power


cdef inline vec copysign(vec a, vec s) noexcept nogil:
    """The magnitude of a with the sign of s."""
    if vec is vf32:
        return copysign_f32(a, s)
    else:
        return copysign_f64(a, s)


cdef inline vec vtanh(vec x) noexcept nogil:
    """tanh x = -u / (2 + u), u = e^(-2|x|) - 1, in each lane; within 2.6 units of the last place.

    u = 2^n (e^r - 1) + (2^n - 1) has no cancellation: n = 0 where |x| is small. Beyond |x| = 20 it is -1. ln 2 is
    subtracted in one part: n times its rounding error is made small by 2^n.
    """
    cdef vec a = copysign(x, splat(&x, -1.0)), shift, t, n, r, u, half_power, power, two = splat(&x, 2.0)
    a = vmax(splat(&x, -40.0), a + a)
    if vec is vf32:
        shift = splat(&x, 12582912.0 + 126.0)
        t = fma(a, splat(&x, 1.4426950408889634), shift)
        half_power = power_f32(t)
    else:
        shift = splat(&x, 6755399441055744.0 + 1022.0)
        t = fma(a, splat(&x, 1.4426950408889634), shift)
        half_power = power_f64(t)
    n = t - shift
    r = fnma(n, splat(&x, 0.6931471805599453), a)
    power = half_power + half_power
    u = fma(exp_series(r) * r, r, r + r)
    u = fma(u, half_power, power - splat(&x, 1.0))
    return copysign(u / (two + u), x)


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
