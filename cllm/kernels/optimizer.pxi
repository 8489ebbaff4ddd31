# Optimizers, over lists of arrays: each call is one parallel region over the pieces of all.
#
#     g = grad + weight_decay param where the decay is coupled (L2 regularisation), else grad
#     adamw   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
#             param -= lr ((m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + (weight_decay where decoupled) param)
#     sgd     velocity = momentum velocity + g,   param -= lr velocity
#
# Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019: there the decay stays out of m and v.

from libc.math cimport pow, sqrt


cdef inline vec with_decay(const vec *like, vec g, double weight_decay, vec p) noexcept nogil:
    """The gradient with its coupled decay; product and sum are rounded each."""
    return g + splat(like, weight_decay) * p if weight_decay > 0.0 else g


cdef struct AdamW:
    double beta1
    double beta2
    double rate             # lr / (1 - beta1^t)
    double root             # 1 / sqrt(1 - beta2^t)
    double eps
    double coupled          # weight_decay of the array, or 0
    double decoupled        # lr * weight_decay of the array, or 0


cdef inline vec adamw_vector(const vec *like, AdamW s, vec g, vec p, vec *m, vec *v) noexcept nogil:
    """The new parameters; m and v point to one vector each and are replaced."""
    g = with_decay(like, g, s.coupled, p)
    m[0] = fma(splat(like, 1.0 - s.beta1), g, splat(like, s.beta1) * m[0])
    v[0] = fma(splat(like, 1.0 - s.beta2) * g, g, splat(like, s.beta2) * v[0])
    return p - fma(splat(like, s.rate), m[0] / fma(vsqrt(v[0]), splat(like, s.root), splat(like, s.eps)),
                   splat(like, s.decoupled) * p)


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


cdef inline void adamw_piece(const vec *like, AdamW s, const double *weight_decay, double lr, bint coupled, Flats grads,
                             Flats params, Flats m, Flats v, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(grads, p)
    cdef Py_ssize_t k = at.array
    s.coupled = weight_decay[k] if coupled else 0.0
    s.decoupled = 0.0 if coupled else lr * weight_decay[k]
    adamw_span(<const vec*> grads.flats[k].data, s, <vec*> params.flats[k].data, <vec*> m.flats[k].data,
               <vec*> v.flats[k].data, at.start, at.stop)


cdef void adamw_pieces(const vec *like, AdamW s, const double *weight_decay, double lr, bint coupled, Flats grads,
                       Flats params, Flats m, Flats v) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange(grads.n_pieces, num_threads=_threads, use_threads_if=grads.size >= PARALLEL_FROM,
                    schedule="static"):
        adamw_piece(like, s, weight_decay, lr, coupled, grads, params, m, v, p)


def adamw_update(ArrayList grads not None, double lr, double beta1, double beta2, double eps,
                 const double[::1] weight_decay not None, bint coupled, long long step, *, ArrayList params not None,
                 ArrayList m not None, ArrayList v not None):
    """One step of AdamW; of Adam with L2 regularisation when `coupled`.

    Parameters
    ----------
    grads : ArrayList
        Gradients of the parameters, array by array.
    lr, beta1, beta2, eps : float
    weight_decay : array of shape len(grads)
        0 for arrays that do not decay.
    coupled : bool
        Whether the decay is part of the gradient (Adam) or not (AdamW).
    step : int
        Counts from 1.
    params, m, v : ArrayList, updated
    """
    cdef AdamW s
    check_length("adamw_update", "len(weight_decay)", weight_decay.shape[0], grads.bound.n)
    check_list("adamw_update", "params", params, grads)
    check_list("adamw_update", "m", m, grads)
    check_list("adamw_update", "v", v, grads)
    if step < 1:
        raise ConfigError("adamw_update(step=...)", "must be at least 1", str(step), "Count steps from 1.")
    if grads.bound.n == 0:
        return
    s.beta1, s.beta2, s.eps, s.coupled, s.decoupled = beta1, beta2, eps, 0.0, 0.0
    s.rate = lr / (1.0 - pow(beta1, <double> step))
    s.root = 1.0 / sqrt(1.0 - pow(beta2, <double> step))
    with nogil:
        if grads.is_double:
            adamw_pieces(<const vf64*> NULL, s, &weight_decay[0], lr, coupled, grads.bound, params.bound, m.bound,
                         v.bound)
        else:
            adamw_pieces(<const vf32*> NULL, s, &weight_decay[0], lr, coupled, grads.bound, params.bound, m.bound,
                         v.bound)


cdef inline void sgd_span(const vec *grad, double lr, double momentum, double weight_decay, vec *param, vec *velocity,
                          Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t L = lanes(grad), n
    cdef vec rate = splat(grad, lr), keep = splat(grad, momentum), step, p
    while i < stop:
        n = min(L, stop - i)
        p = load_partial(param, i, n) if n < L else load(param, i)
        step = with_decay(grad, load_partial(grad, i, n) if n < L else load(grad, i), weight_decay, p)
        if velocity != NULL:
            if n < L:
                step = fma(keep, load_partial(velocity, i, n), step)
                store_partial(velocity, i, step, n)
            else:
                step = fma(keep, load(velocity, i), step)
                store(velocity, i, step)
        if n < L:
            store_partial(param, i, fnma(rate, step, p), n)
        else:
            store(param, i, fnma(rate, step, p))
        i += L


cdef inline void sgd_piece(const vec *like, double lr, double momentum, const double *weight_decay, Flats grads,
                           Flats params, const Flats *velocity, Py_ssize_t p) noexcept nogil:
    cdef Piece at = piece_of(grads, p)
    cdef Py_ssize_t k = at.array
    sgd_span(<const vec*> grads.flats[k].data, lr, momentum, weight_decay[k], <vec*> params.flats[k].data,
             <vec*> (velocity.flats[k].data if velocity != NULL else NULL), at.start, at.stop)


cdef void sgd_pieces(const vec *like, double lr, double momentum, const double *weight_decay, Flats grads, Flats params,
                     const Flats *velocity) noexcept nogil:
    cdef Py_ssize_t p
    for p in prange(grads.n_pieces, num_threads=_threads, use_threads_if=grads.size >= PARALLEL_FROM,
                    schedule="static"):
        sgd_piece(like, lr, momentum, weight_decay, grads, params, velocity, p)


def sgd_update(ArrayList grads not None, double lr, double momentum, const double[::1] weight_decay not None, *,
               ArrayList params not None, ArrayList velocity):
    """One step of gradient descent with momentum and L2 regularisation.

    Parameters
    ----------
    grads : ArrayList
        Gradients of the parameters, array by array.
    lr, momentum : float
    weight_decay : array of shape len(grads)
        0 for arrays that do not decay.
    params : ArrayList, updated
    velocity : ArrayList, updated, or None
        None stands for no momentum, which must then be 0.
    """
    cdef const Flats *w = NULL
    check_length("sgd_update", "len(weight_decay)", weight_decay.shape[0], grads.bound.n)
    check_list("sgd_update", "params", params, grads)
    if velocity is not None:
        check_list("sgd_update", "velocity", velocity, grads)
        w = &velocity.bound
    elif momentum != 0.0:
        raise ConfigError("sgd_update(velocity=...)", "must be a list when momentum is not 0", "None",
                          "Pass the arrays that hold the velocity.")
    if grads.bound.n == 0:
        return
    with nogil:
        if grads.is_double:
            sgd_pieces(<const vf64*> NULL, lr, momentum, &weight_decay[0], grads.bound, params.bound, w)
        else:
            sgd_pieces(<const vf32*> NULL, lr, momentum, &weight_decay[0], grads.bound, params.bound, w)
