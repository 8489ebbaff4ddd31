# Activations, element by element.
#
#     gelu(z) = 0.5 z (1 + tanh(u)),   u = sqrt(2/pi) (z + 0.044715 z^3)
#     0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u)) = s,   so   gelu(z) = z s   and
#     gelu'(z) = s + z s (1 - s) 2 du/dz,   du/dz = sqrt(2/pi) (1 + 3 * 0.044715 z^2)
#
#     tanh'(z) = 1 - tanh(z)^2 = 4 e / (1 + e)^2,   e = exp(-2|z|)
#
#     silu(z) = z s,   s = 1 / (1 + exp(-z)),   silu'(z) = s + z s (1 - s)
#     exact gelu(z) = z Phi(z),   gelu'(z) = Phi(z) + z phi(z),   Phi and phi those of the normal distribution
#
# The form with s needs one exponential and keeps the left tail, where 1 + tanh cancels. The slope is computed at |z|,
# where 1 - s = exp(-2u) s neither cancels nor overflows, and gelu'(-z) = 1 - gelu'(z) gives the other side; so it is for
# silu and the exact gelu, too. exp(-2u) is taken as a power of two: the rounding of its argument is that of u.

from libc.math cimport M_LOG2E, M_PI, sqrt

cdef enum:
    GELU = 0
    RELU = 1
    TANH = 2
    SILU = 3
    GELU_ERF = 4


cdef inline vec gelu_exponential(const vec *like, vec z, vec *half_power) noexcept nogil:
    """exp(-2u), the product of what is returned and of `half_power`."""
    cdef vec linear = splat(like, -2.0 * sqrt(2.0 / M_PI) * M_LOG2E)
    cdef vec cubic = splat(like, -2.0 * sqrt(2.0 / M_PI) * M_LOG2E * 0.044715)
    return vexp2_parts(z * fma(cubic, z * z, linear), half_power)


cdef inline vec gelu(const vec *like, vec z) noexcept nogil:
    cdef vec half_power, twice = gelu_exponential(like, z, &half_power)
    return z / fma(twice, half_power, splat(like, 1.0))


cdef inline vec gelu_slope(const vec *like, vec z, vec *value) noexcept nogil:
    """gelu'(z), and gelu(z) into `value`.

    Beyond 64 the slope is exactly 0 or 1: the clamp keeps z^2 finite, and lets NaN through.
    """
    cdef vec one = splat(like, 1.0), a = vmin(splat(like, 64.0), copysign(z, one))
    cdef vec constant = splat(like, 2.0 * sqrt(2.0 / M_PI)), square = splat(like, 6.0 * sqrt(2.0 / M_PI) * 0.044715)
    cdef vec half_power, twice = gelu_exponential(like, a, &half_power)
    cdef vec e = twice * half_power, s = one / (one + e), rest = e * s
    cdef vec bend = rest * (a * s), slope = fma(square, a * a, constant)
    value[0] = z * select_positive(z, s, rest)
    return select_positive(z, fma(bend, slope, s), fnma(bend, slope, rest))


cdef inline vec silu(const vec *like, vec z) noexcept nogil:
    return z / (splat(like, 1.0) + vexp(-z))


cdef inline vec silu_slope(const vec *like, vec z, vec *value) noexcept nogil:
    """silu'(z), and silu(z) into `value`; at 1000 the exponential has long been 0."""
    cdef vec one = splat(like, 1.0), a = vmin(splat(like, 1000.0), copysign(z, one))
    cdef vec e = vexp(-a), s = one / (one + e), rest = e * s, bend = a * s
    value[0] = z * select_positive(z, s, rest)
    return select_positive(z, fma(rest, bend, s), fnma(rest, bend, rest))


cdef inline vec gelu_erf_slope(const vec *like, vec z, vec *value) noexcept nogil:
    """The slope of the exact gelu, and its value; at 64 density and tail have long been 0."""
    cdef vec one = splat(like, 1.0), a = vmin(splat(like, 64.0), copysign(z, one)), density
    cdef vec tail = normal_tail(a, &density), rest = one - tail
    value[0] = z * select_positive(z, rest, tail)
    return select_positive(z, fma(a, density, rest), fnma(a, density, tail))


cdef inline vec tanh_slope(const vec *like, vec z) noexcept nogil:
    """tanh'(z) = 4 e / (1 + e)^2, e = exp(-2|z|): even, and without the cancellation of 1 - tanh^2."""
    cdef vec e = vexp2(splat(like, 2.0 * M_LOG2E) * copysign(z, splat(like, -1.0)))
    cdef vec s = splat(like, 2.0) / (splat(like, 1.0) + e)
    return e * (s * s)


cdef inline vec activate(const vec *like, int kind, vec z) noexcept nogil:
    cdef vec value
    if kind == GELU:
        return gelu(like, z)
    if kind == RELU:
        return vmax(splat(like, 0.0), z)
    if kind == TANH:
        return vtanh(z)
    if kind == SILU:
        return silu(like, z)
    gelu_erf_slope(like, z, &value)
    return value


cdef inline vec activate_slope(const vec *like, int kind, vec z, vec *value) noexcept nogil:
    """The derivative at z, and what `activate` gives, but for the last bits, into `value`."""
    if kind == GELU:
        return gelu_slope(like, z, value)
    if kind == RELU:
        value[0] = vmax(splat(like, 0.0), z)
        return select_positive(z, splat(like, 1.0), splat(like, 0.0))
    if kind == TANH:
        value[0] = vtanh(z)
        return tanh_slope(like, z)
    if kind == SILU:
        return silu_slope(like, z, value)
    return gelu_erf_slope(like, z, value)


cdef inline vec activate_backward(const vec *like, int kind, vec dy, vec z) noexcept nogil:
    cdef vec value
    if kind == RELU:    # what did not pass is 0, be it NaN
        return select_positive(z, dy, splat(like, 0.0))
    return dy * activate_slope(like, kind, z, &value)


cdef inline void activation_span(const vec *x, int kind, vec *y, bint far, bint x_narrow, bint y_narrow, Py_ssize_t i,
                                 Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    while i + L <= stop:
        store_as(y, i, activate(x, kind, load_as(x, i, x_narrow)), far, y_narrow)
        i += L
    if i < stop:
        store_partial_as(y, i, activate(x, kind, load_partial_as(x, i, stop - i, x_narrow)), stop - i, y_narrow)


cdef inline void activation_backward_span(const vec *dy, const vec *x, int kind, vec *dx, bint far, bint narrow,
                                          Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    while i + L <= stop:
        store_far(dx, i, activate_backward(x, kind, load(dy, i), load_as(x, i, narrow)), far)
        i += L
    if i < stop:
        store_partial(dx, i, activate_backward(x, kind, load_partial(dy, i, stop - i),
                                               load_partial_as(x, i, stop - i, narrow)), stop - i)


cdef inline void activation_kinds(const vec *x, int kind, vec *y, bint far, bint x_narrow, bint y_narrow, Py_ssize_t i,
                                  Py_ssize_t stop) noexcept nogil:
    """One loop for each kind: the choice is made outside the loop."""
    if kind == GELU:
        activation_span(x, GELU, y, far, x_narrow, y_narrow, i, stop)
    elif kind == RELU:
        activation_span(x, RELU, y, far, x_narrow, y_narrow, i, stop)
    elif kind == TANH:
        activation_span(x, TANH, y, far, x_narrow, y_narrow, i, stop)
    elif kind == SILU:
        activation_span(x, SILU, y, far, x_narrow, y_narrow, i, stop)
    else:
        activation_span(x, GELU_ERF, y, far, x_narrow, y_narrow, i, stop)


cdef inline void activation_backward_kinds(const vec *dy, const vec *x, int kind, vec *dx, bint far, bint narrow,
                                           Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    if kind == GELU:
        activation_backward_span(dy, x, GELU, dx, far, narrow, i, stop)
    elif kind == RELU:
        activation_backward_span(dy, x, RELU, dx, far, narrow, i, stop)
    elif kind == TANH:
        activation_backward_span(dy, x, TANH, dx, far, narrow, i, stop)
    elif kind == SILU:
        activation_backward_span(dy, x, SILU, dx, far, narrow, i, stop)
    else:
        activation_backward_span(dy, x, GELU_ERF, dx, far, narrow, i, stop)


cdef void activation_spans(const vec *x, int kind, vec *y, Py_ssize_t size, bint x_narrow,
                           bint y_narrow) noexcept nogil:
    cdef Py_ssize_t p, i, stop
    cdef bint far = goes_far(y, size, x) and not y_narrow
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        i = p * SPAN
        stop = min(size, i + SPAN)
        if x_narrow or y_narrow:
            activation_kinds(x, kind, y, far, x_narrow, y_narrow, i, stop)
        else:
            activation_kinds(x, kind, y, far, False, False, i, stop)
        if far:
            stream_end()


cdef void activation_backward_spans(const vec *dy, const vec *x, int kind, vec *dx, Py_ssize_t size,
                                    bint narrow) noexcept nogil:
    cdef Py_ssize_t p, i, stop
    cdef bint far = goes_far(dx, size, dy) and dx != x
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        i = p * SPAN
        stop = min(size, i + SPAN)
        if narrow:
            activation_backward_kinds(dy, x, kind, dx, far, True, i, stop)
        else:
            activation_backward_kinds(dy, x, kind, dx, far, False, i, stop)
        if far:
            stream_end()


cdef int check_kind(str kernel, int kind) except -1:
    if kind < GELU or kind > GELU_ERF:
        raise ConfigError(f"{kernel}(kind=...)", "must be 0 (gelu), 1 (relu), 2 (tanh), 3 (silu) or 4 (exact gelu)",
                          str(kind), "Pass one of these numbers.")
    return 0


def activation_forward(x, int kind, *, y):
    """Apply the activation to every element.

    Parameters
    ----------
    x : array of shape N F
        May be bfloat16.
    kind : int
        0 gelu in its tanh form, 1 relu, 2 tanh, 3 silu, 4 gelu in its exact form (erf).
    y : array of shape N F, written
        May be bfloat16; may be x itself.
    """
    cdef Py_ssize_t itemsize = itemsize_of(x), size
    cdef Rows given, out
    take_rows("activation_forward", "x", x, itemsize, False, &given)
    take_rows("activation_forward", "y", y, itemsize, True, &out)
    check_kind("activation_forward", kind)
    check_length("activation_forward", "len(y)", out.rows, given.rows)
    check_length("activation_forward", "y.shape[1]", out.columns, given.columns)
    size = given.rows * given.columns
    if size == 0:
        return
    with nogil:
        if itemsize == sizeof(float):
            activation_spans(<const vf32*> given.at, kind, <vf32*> out.at, size, given.narrow, out.narrow)
        else:
            activation_spans(<const vf64*> given.at, kind, <vf64*> out.at, size, False, False)


def activation_backward(const floating[:, ::1] dy not None, x, int kind, *, floating[:, ::1] dx not None):
    """dx = dy times the activation's derivative at x.

    Parameters
    ----------
    dy, x : arrays of shape N F
        x is the input of the forward, and may be bfloat16.
    kind : int
        As in `activation_forward`; relu's derivative is 0 at the kink.
    dx : array of shape N F, written
        May be dy itself.
    """
    cdef Rows given
    cdef Py_ssize_t size
    take_rows("activation_backward", "x", x, sizeof(floating), False, &given)
    check_kind("activation_backward", kind)
    check_length("activation_backward", "len(dy)", dy.shape[0], given.rows)
    check_length("activation_backward", "dy.shape[1]", dy.shape[1], given.columns)
    check_length("activation_backward", "len(dx)", dx.shape[0], given.rows)
    check_length("activation_backward", "dx.shape[1]", dx.shape[1], given.columns)
    size = given.rows * given.columns
    if size == 0:
        return
    with nogil:
        if floating is float:
            activation_backward_spans(<const vf32*> &dy[0, 0], <const vf32*> given.at, kind, <vf32*> &dx[0, 0], size,
                                      given.narrow)
        else:
            activation_backward_spans(<const vf64*> &dy[0, 0], <const vf64*> given.at, kind, <vf64*> &dx[0, 0], size,
                                      False)
