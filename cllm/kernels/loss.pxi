# Cross entropy, and the sum of losses: one value for each row, in float64; target -1 is ignored.
#
#     lse = max_v z_v + log sum_v exp(z_v - max),   loss = lse - z_target
#     dz_v = (exp(z_v - lse) - [v = target]) * scale
#     where z = c tanh(f x / c) of an x (`scale_and_cap`): dx_v = dz_v f (1 - (z_v / c)^2)
#
# scale is one over the number of targets of the whole batch, so the backward writes the gradient of the mean.
# The exponentials of the log-sum-exp are float64 whatever the dtype. At the target the gradient is expm1(z - lse),
# which does not cancel where the model is sure.

from libc.math cimport INFINITY, expm1, log
from libc.stdint cimport int32_t
from libc.string cimport memset


cdef inline double row_max(const vec *z, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """The largest element; NaN may be passed over here, the sum of exponentials meets it."""
    cdef Py_ssize_t L = lanes(z), i = 0, j
    cdef vec m = splat(z, -INFINITY)
    cdef double largest = -INFINITY
    while i + L <= n:
        m = vmax(m, load(z, start + i))
        i += L
    for j in range(L):
        largest = max(largest, lane(m, j))
    while i < n:
        largest = max(largest, element(z, start + i))
        i += 1
    return largest


cdef inline double lane(vec v, Py_ssize_t j) noexcept nogil:
    if vec is vf32:
        return lane_f32(v, <int> j)
    else:
        return lane_f64(v, <int> j)


cdef inline double log_sum_exp(const vec *z, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    cdef vf64 acc[WIDE_VECTORS]
    cdef double tail[WIDE_LANES]
    cdef double largest = row_max(z, start, n)
    cdef vf64 m = splat_f64(largest), twice, half_power
    cdef Py_ssize_t i = 0, j
    for j in range(WIDE_VECTORS):
        acc[j] = splat_f64(0.0)
    while i + WIDE_LANES <= n:
        for j in range(WIDE_VECTORS):
            twice = vexp_parts(load_wide(z, start + i + j * LANES_F64) - m, &half_power)
            acc[j] = fma(twice, half_power, acc[j])
        i += WIDE_LANES
    if i < n:
        gather_wide(z, start + i, n - i, -INFINITY, tail)
        for j in range(WIDE_VECTORS):
            twice = vexp_parts(load_f64(tail, j * LANES_F64) - m, &half_power)
            acc[j] = fma(twice, half_power, acc[j])
    return largest + log(wide_tree(acc))


cdef void cross_entropy_rows(const vec *logits, const int32_t *targets, double *losses, Py_ssize_t n_rows,
                             Py_ssize_t n_vocab) noexcept nogil:
    cdef Py_ssize_t r, p, rows = rows_per_piece(n_vocab), pieces = (n_rows + rows - 1) // rows
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_vocab >= PARALLEL_FROM,
                    schedule="static"):
        for r in range(p * rows, min(n_rows, (p + 1) * rows)):
            if targets[r] == -1:
                losses[r] = 0.0
            else:
                losses[r] = (log_sum_exp(logits, r * n_vocab, n_vocab)
                             - element(logits, r * n_vocab + targets[r]))


def cross_entropy_forward(const floating[:, ::1] logits not None, const int32_t[::1] targets not None, *,
                          double[::1] losses not None):
    """Cross-entropy of each row.

    Parameters
    ----------
    logits : array of shape R V
    targets : int32 array of shape R
        Each below V, or -1 for a row that is ignored; not checked here.
    losses : float64 array of shape R, written
        lse - logit[target], 0 where the target is -1.
    """
    cdef Py_ssize_t n_rows = logits.shape[0], n_vocab = logits.shape[1]
    check_length("cross_entropy_forward", "len(targets)", targets.shape[0], n_rows)
    check_length("cross_entropy_forward", "len(losses)", losses.shape[0], n_rows)
    if n_rows == 0 or n_vocab == 0:
        return
    with nogil:
        if floating is float:
            cross_entropy_rows(<const vf32*> &logits[0, 0], &targets[0], &losses[0], n_rows, n_vocab)
        else:
            cross_entropy_rows(<const vf64*> &logits[0, 0], &targets[0], &losses[0], n_rows, n_vocab)


cdef inline vec logit_gradient(vec z, vec high, vec low, vec factor, vec share, bint capped) noexcept nogil:
    """Of logits other than the target; `share` is one over the cap. A logit without a cap may be -inf."""
    cdef vec t, p = vexp((z - high) - low) * factor
    if not capped:
        return p
    t = z * share
    return p * fnma(t, t, splat(&z, 1.0))


cdef inline void softmax_gradient(vec *z, Py_ssize_t start, Py_ssize_t n, Py_ssize_t target, double lse, double scale,
                                  double share) noexcept nogil:
    """One row of dlogits over its logits."""
    cdef Py_ssize_t L = lanes(z), i = 0
    cdef vec high = splat(z, lse), low = splat(z, low_part(z, lse)), factor = splat(z, scale), per_cap = splat(z, share)
    cdef double t = element(z, start + target) * share, at_target = expm1(element(z, start + target) - lse) * scale
    cdef bint capped = share != 0.0
    if capped:
        at_target = at_target * (1.0 - t * t)
    while i + L <= n:
        store(z, start + i, logit_gradient(load(z, start + i), high, low, factor, per_cap, capped))
        i += L
    if i < n:
        L = n - i
        store_partial(z, start + i, logit_gradient(load_partial(z, start + i, L), high, low, factor, per_cap, capped),
                      L)
    store_partial(z, start + target, splat(z, at_target), 1)


cdef void cross_entropy_backward_rows(const int32_t *targets, double scale, double share, vec *logits, double *losses,
                                      Py_ssize_t n_rows, Py_ssize_t n_vocab) noexcept nogil:
    cdef Py_ssize_t r, p, rows = rows_per_piece(n_vocab), pieces = (n_rows + rows - 1) // rows
    cdef Py_ssize_t row_bytes = n_vocab * (VECTOR_BYTES // lanes(logits))
    cdef double lse
    for p in prange(pieces, num_threads=_threads, use_threads_if=n_rows * n_vocab >= PARALLEL_FROM,
                    schedule="static"):
        for r in range(p * rows, min(n_rows, (p + 1) * rows)):
            if targets[r] == -1:
                losses[r] = 0.0
                memset(<char*> logits + r * row_bytes, 0, row_bytes)
            else:
                lse = log_sum_exp(logits, r * n_vocab, n_vocab)
                losses[r] = lse - element(logits, r * n_vocab + targets[r])
                softmax_gradient(logits, r * n_vocab, n_vocab, targets[r], lse, scale, share)


def cross_entropy_backward(const int32_t[::1] targets not None, const double[::1] scale not None,
                           double logit_scale=1.0, softcap=None, *, floating[:, ::1] logits not None,
                           double[::1] losses not None):
    """Cross-entropy of each row, and its gradient in place of the logits.

    Parameters
    ----------
    targets : int32 array of shape R
        Each below V, or -1 for a row that is ignored; not checked here.
    scale : float64 array of shape 1
        Factor of the gradient: one over the number of targets of the whole batch.
    logit_scale, softcap : float, float or None
        What made the logits out of a product (`scale_and_cap`): the gradient is that of the product.
    logits : array of shape R V, overwritten by dlogits
        (softmax - onehot) * scale, times logit_scale and the slope of the cap; zero in a row that is ignored.
    losses : float64 array of shape R, written
        The bits of `cross_entropy_forward`.
    """
    cdef Py_ssize_t n_rows = logits.shape[0], n_vocab = logits.shape[1]
    cdef double cap = checked_cap("cross_entropy_backward", softcap), share = 1.0 / cap if cap != 0.0 else 0.0
    check_length("cross_entropy_backward", "len(targets)", targets.shape[0], n_rows)
    check_length("cross_entropy_backward", "len(scale)", scale.shape[0], 1)
    check_length("cross_entropy_backward", "len(losses)", losses.shape[0], n_rows)
    if n_rows == 0 or n_vocab == 0:
        return
    with nogil:
        if floating is float:
            cross_entropy_backward_rows(&targets[0], scale[0] * logit_scale, share, <vf32*> &logits[0, 0], &losses[0],
                                        n_rows, n_vocab)
        else:
            cross_entropy_backward_rows(&targets[0], scale[0] * logit_scale, share, <vf64*> &logits[0, 0], &losses[0],
                                        n_rows, n_vocab)


def accumulate_losses(const double[::1] losses not None, *, double[::1] loss not None):
    """Add the losses to one number, in order of rows.

    Parameters
    ----------
    losses : float64 array of shape R
    loss : float64 array of shape 1, added to
    """
    cdef Py_ssize_t r
    cdef double total
    check_length("accumulate_losses", "len(loss)", loss.shape[0], 1)
    total = loss[0]
    for r in range(losses.shape[0]):
        total += losses[r]
    loss[0] = total                                                                                       # +=
