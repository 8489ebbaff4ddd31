# Optimizers and what surrounds a step, over flat arrays.
#
#     adamw   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
#             param -= lr ((m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay param)
#     sgd     velocity = momentum velocity + g,   param -= lr velocity
#
# Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019: the decay stays out of m and v.
# Sums over an array are float64, pieces of fixed size added in order.

from libc.math cimport pow, sqrt

cdef enum:
    SUM_PIECES = 256        # pieces whose sums are held before they are added in order


cdef struct AdamW:
    double beta1
    double beta2
    double rate             # lr / (1 - beta1^t)
    double root             # 1 / sqrt(1 - beta2^t)
    double eps
    double decay            # lr * weight_decay


cdef inline vec adamw_vector(const vec *like, AdamW s, vec g, vec p, vec *m, vec *v) noexcept nogil:
    """The new parameters; m and v point to one vector each and are replaced."""
    m[0] = splat(like, 1.0 - s.beta1) * g + splat(like, s.beta1) * m[0]
    v[0] = (splat(like, 1.0 - s.beta2) * g) * g + splat(like, s.beta2) * v[0]
    return p - (splat(like, s.rate) * (m[0] / (vsqrt(v[0]) * splat(like, s.root) + splat(like, s.eps)))
                + splat(like, s.decay) * p)


cdef inline void adamw_span(const vec *grad, AdamW s, vec *param, vec *m, vec *v, Py_ssize_t i,
                            Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(grad)
    cdef vec new_m, new_v
    while i + L <= stop:
        new_m = load(m, i)
        new_v = load(v, i)
        store(param, i, adamw_vector(grad, s, load(grad, i), load(param, i), &new_m, &new_v))
        store(m, i, new_m)
        store(v, i, new_v)
        i += L
    if i < stop:
        L = stop - i
        new_m = load_partial(m, i, L)
        new_v = load_partial(v, i, L)
        store_partial(param, i, adamw_vector(grad, s, load_partial(grad, i, L), load_partial(param, i, L), &new_m,
                                             &new_v), L)
        store_partial(m, i, new_m, L)
        store_partial(v, i, new_v, L)


cdef void adamw_spans(const vec *grad, AdamW s, vec *param, vec *m, vec *v, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        adamw_span(grad, s, param, m, v, p * SPAN, min(size, (p + 1) * SPAN))


def adamw_update(const floating[::1] grad not None, double lr, double beta1, double beta2, double eps,
                 double weight_decay, long long step, *, floating[::1] param not None, floating[::1] m not None,
                 floating[::1] v not None):
    """One step of AdamW.

    Parameters
    ----------
    grad : array of shape P
    lr, beta1, beta2, eps, weight_decay : float
        weight_decay is 0 for arrays that do not decay.
    step : int
        Counts from 1.
    param, m, v : arrays of shape P, updated
    """
    cdef Py_ssize_t size = grad.shape[0]
    cdef AdamW s
    check_length("adamw_update", "len(param)", param.shape[0], size)
    check_length("adamw_update", "len(m)", m.shape[0], size)
    check_length("adamw_update", "len(v)", v.shape[0], size)
    if step < 1:
        raise ConfigError("adamw_update(step=...)", "must be at least 1", str(step), "Count steps from 1.")
    if size == 0:
        return
    s.beta1, s.beta2, s.eps, s.decay = beta1, beta2, eps, lr * weight_decay
    s.rate = lr / (1.0 - pow(beta1, <double> step))
    s.root = 1.0 / sqrt(1.0 - pow(beta2, <double> step))
    with nogil:
        if floating is float:
            adamw_spans(<const vf32*> &grad[0], s, <vf32*> &param[0], <vf32*> &m[0], <vf32*> &v[0], size)
        else:
            adamw_spans(<const vf64*> &grad[0], s, <vf64*> &param[0], <vf64*> &m[0], <vf64*> &v[0], size)


cdef inline void sgd_span(const vec *grad, double lr, double momentum, vec *param, vec *velocity, Py_ssize_t i,
                          Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(grad), n
    cdef vec rate = splat(grad, lr), keep = splat(grad, momentum), step
    while i < stop:
        n = min(L, stop - i)
        step = load_partial(grad, i, n) if n < L else load(grad, i)
        if velocity != NULL:
            if n < L:
                step = keep * load_partial(velocity, i, n) + step
                store_partial(velocity, i, step, n)
            else:
                step = keep * load(velocity, i) + step
                store(velocity, i, step)
        if n < L:
            store_partial(param, i, load_partial(param, i, n) - rate * step, n)
        else:
            store(param, i, load(param, i) - rate * step)
        i += L


cdef void sgd_spans(const vec *grad, double lr, double momentum, vec *param, vec *velocity,
                    Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        sgd_span(grad, lr, momentum, param, velocity, p * SPAN, min(size, (p + 1) * SPAN))


def sgd_update(const floating[::1] grad not None, double lr, double momentum, *, floating[::1] param not None,
               floating[::1] velocity):
    """One step of gradient descent with momentum.

    Parameters
    ----------
    grad : array of shape P
    lr, momentum : float
    param : array of shape P, updated
    velocity : array of shape P, updated, or None
        None stands for no momentum, which must then be 0.
    """
    cdef Py_ssize_t size = grad.shape[0]
    cdef floating *w = NULL
    check_length("sgd_update", "len(param)", param.shape[0], size)
    if velocity is not None:
        check_length("sgd_update", "len(velocity)", velocity.shape[0], size)
    elif momentum != 0.0:
        raise ConfigError("sgd_update(velocity=...)", "must be an array when momentum is not 0", "None",
                          "Pass the array that holds the velocity.")
    if size == 0:
        return
    if velocity is not None:
        w = &velocity[0]
    with nogil:
        if floating is float:
            sgd_spans(<const vf32*> &grad[0], lr, momentum, <vf32*> &param[0], <vf32*> w, size)
        else:
            sgd_spans(<const vf64*> &grad[0], lr, momentum, <vf64*> &param[0], <vf64*> w, size)


cdef double squares_in_order(const vec *x, Py_ssize_t size) noexcept nogil:
    cdef double sums[SUM_PIECES]
    cdef double *piece = &sums[0]
    cdef double total = 0.0
    cdef Py_ssize_t first = 0, p, count
    while first < size:
        count = min(<Py_ssize_t> SUM_PIECES, (size - first + SPAN - 1) // SPAN)
        for p in prange(count, num_threads=_threads, use_threads_if=size - first >= PARALLEL_FROM, schedule="static"):
            piece[p] = wide_squares(x, first + p * SPAN, min(<Py_ssize_t> SPAN, size - first - p * SPAN))
        for p in range(count):
            total += piece[p]
        first += SUM_PIECES * SPAN
    return total


def sum_of_squares(const floating[::1] x not None):
    """The sum of the squares of an array of shape P, in float64."""
    cdef double total
    if x.shape[0] == 0:
        return 0.0
    with nogil:
        if floating is float:
            total = squares_in_order(<const vf32*> &x[0], x.shape[0])
        else:
            total = squares_in_order(<const vf64*> &x[0], x.shape[0])
    return total


cdef inline void scale_span(double factor, vec *x, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    cdef vec s = splat(x, factor)
    while i + L <= stop:
        store(x, i, load(x, i) * s)
        i += L
    if i < stop:
        store_partial(x, i, load_partial(x, i, stop - i) * s, stop - i)


cdef void scale_spans(double factor, vec *x, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        scale_span(factor, x, p * SPAN, min(size, (p + 1) * SPAN))


def scale_in_place(double factor, *, floating[::1] x not None):
    """Multiply an array of shape P by a number, rounded to its dtype first."""
    if x.shape[0] == 0:
        return
    with nogil:
        if floating is float:
            scale_spans(factor, <vf32*> &x[0], x.shape[0])
        else:
            scale_spans(factor, <vf64*> &x[0], x.shape[0])


cdef inline void zero_span(vec *x, bint far, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(x)
    while i + L <= stop:
        store_far(x, i, splat(x, 0.0), far)
        i += L
    store_partial(x, i, splat(x, 0.0), stop - i)


cdef void zero_spans(vec *x, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t p
    cdef bint far = goes_far(x, size, <const vec*> NULL)
    for p in prange((size + SPAN - 1) // SPAN, num_threads=_threads, use_threads_if=size >= PARALLEL_FROM,
                    schedule="static"):
        zero_span(x, far, p * SPAN, min(size, (p + 1) * SPAN))
        if far:
            stream_end()


def fill_zero(*, floating[::1] x not None):
    """Set every element of an array of shape P to zero."""
    if x.shape[0] == 0:
        return
    with nogil:
        if floating is float:
            zero_spans(<vf32*> &x[0], x.shape[0])
        else:
            zero_spans(<vf64*> &x[0], x.shape[0])


def add_in_place(const floating[::1] x not None, *, floating[::1] y not None):
    """y += x, arrays of shape P."""
    check_length("add_in_place", "len(y)", y.shape[0], x.shape[0])
    if x.shape[0] == 0:
        return
    with nogil:
        if floating is float:
            sum_spans(<const vf32*> &y[0], <const vf32*> &x[0], <vf32*> &y[0], x.shape[0])                # +=
        else:
            sum_spans(<const vf64*> &y[0], <const vf64*> &x[0], <vf64*> &y[0], x.shape[0])                # +=


cdef inline bint span_is_finite(const vec *x, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    """x - x is 0 for a finite x and NaN for any other, and NaN stays in a sum."""
    cdef Py_ssize_t L = lanes(x), j
    cdef vec a = splat(x, 0.0), b = splat(x, 0.0), c
    cdef double total = 0.0
    while i + 2 * L <= stop:
        c = load(x, i)
        a = a + (c - c)
        c = load(x, i + L)
        b = b + (c - c)
        i += 2 * L
    while i < stop:
        c = load_partial(x, i, min(L, stop - i))
        a = a + (c - c)
        i += L
    a = a + b
    for j in range(L):
        total += lane(a, j)
    return total == 0.0


cdef Py_ssize_t nonfinite_index(const vec *x, Py_ssize_t size) noexcept nogil:
    cdef bint finite[SUM_PIECES]
    cdef bint *piece = &finite[0]
    cdef Py_ssize_t first = 0, p, i, count
    while first < size:
        count = min(<Py_ssize_t> SUM_PIECES, (size - first + SPAN - 1) // SPAN)
        for p in prange(count, num_threads=_threads, use_threads_if=size - first >= PARALLEL_FROM, schedule="static"):
            piece[p] = span_is_finite(x, first + p * SPAN, min(size, first + (p + 1) * SPAN))
        for p in range(count):
            if not piece[p]:
                for i in range(first + p * SPAN, min(size, first + (p + 1) * SPAN)):
                    if element(x, i) - element(x, i) != 0.0:
                        return i
        first += SUM_PIECES * SPAN
    return -1


def first_nonfinite(const floating[::1] x not None):
    """Index of the first NaN or infinity in an array of shape P, -1 if every element is finite."""
    cdef Py_ssize_t found
    if x.shape[0] == 0:
        return -1
    with nogil:
        if floating is float:
            found = nonfinite_index(<const vf32*> &x[0], x.shape[0])
        else:
            found = nonfinite_index(<const vf64*> &x[0], x.shape[0])
    return found
