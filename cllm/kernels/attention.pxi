# Attention: forward, kept probabilities, backward.
#
#   s_ij  = scale q_i . k_j for each key j that row i sees   (B, H, T, T), only ever a tile of it
#           or, with a soft cap c, c tanh(that / c)
#   lse_i = log sum_j exp(s_ij),  p_ij = exp(s_ij - lse_i)
#   y_i   = sum_j p_ij v_j
#
#   dp_ij = dy_i . v_j,  delta_i = sum_j p_ij dp_ij = dy_i . y_i,  ds_ij = p_ij (dp_ij - delta_i)
#           with a soft cap also times 1 - (s_ij / c)^2
#   dv_j  = sum_i p_ij dy_i,   dk_j = scale sum_i ds_ij q_i,   dq_i = scale sum_j ds_ij k_j
#
# Forward walks over tiles of keys with the largest score so far (the "online softmax" of Milakov and Gimelshein, 2018,
# in tiles as in FlashAttention, Dao et al., 2022); backward rebuilds each tile of p from q, k and lse.
#
# The columns of qkv are q | k | v: H query heads, then K key heads, then K value heads of D channels. Each key head is
# read by H/K query heads that follow each other (Ainslie et al., 2023); K = H where nothing else is said. q and k may be
# turned by position on their way in (attention_packing.pxi). Which keys a row sees, all up to itself where nothing else
# is said, stands in attention_span.pxi.
#
# A row's sum over keys is cut into tiles at multiples of BLOCK from the start of its sequence, dq adds keys and dk, dv
# add queries in ascending order, head after head of a group. So the bits do not depend on how the work is shared out.
#
# The terms of crystalline attention, all off by default, stand in crystal.pxi.


def attention_workspace(Py_ssize_t batch, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t head_dim, int threads,
                        Py_ssize_t itemsize, bint distance=False, bint bias=False, kv_heads=None, bint bounded=False,
                        bint capped=False):
    """Elements of workspace for every kernel of attention: linear in the time, some planes of a head for each thread.

    Parameters
    ----------
    batch, time, heads, head_dim : int
    threads : int
        Threads that the kernels will use.
    itemsize : int
        Bytes of an element: 4 or 8.
    distance, bias : bool
        Whether the score has those terms of crystalline attention.
    kv_heads : int or None
        Key and value heads; None is as many as query heads.
    bounded : bool
        Whether `first`, `last` or `documents` is given.
    capped : bool
        Whether there is a soft cap.

    Returns
    -------
    int
    """
    cdef Attention at
    if batch * time * heads == 0:
        return 0
    lay_out(&at, time, heads, heads if kv_heads is None else kv_heads, head_dim, itemsize, distance,
            bias, bounded, capped)
    return threads * (at.work + at.scratch) + 64 // itemsize + (batch * heads * (1 + GROUPS) if distance or bias else 0)


cdef inline void *aligned(void *p) noexcept nogil:
    """p, moved up to a multiple of 64 bytes, a cache line and the widest vector."""
    return <void *> ((<size_t> p + 63) // 64 * 64)


def attention_forward(qkv, int batch, int heads, const int32_t[::1] tokens=None, coordinates=None, alpha=None,
                      beta=None, bint turns=False, kv_heads=None, scale=None, cos=None, sin=None,
                      const int32_t[::1] positions=None, const int32_t[::1] first=None, const int32_t[::1] last=None,
                      softcap=None, bint documents=False, *, y, floating[:, :, ::1] lse not None,
                      floating[::1] workspace not None):
    """y = softmax(scale q k^T) v for each sequence and head, and the log-sum-exp of each row of scores.

    Parameters
    ----------
    qkv : array of shape N (H+2K)D
        Columns q | k | v, heads beside each other. May be bfloat16, but not with the terms of crystalline attention.
    batch, heads : int
        B and H; N = B*T, C = H*D.
    tokens : int32 array of shape N, or None
        Needed by each of the terms of crystalline attention, all off by default:
    coordinates, alpha : arrays of shape V 3 and H, or None
        The distance.
    beta : array of shape H 12, or None
        The bias.
    turns : bool
        The rotation by token; D even.
    kv_heads : int or None
        K, which divides H; None is H.
    scale : float or None
        None is 1/sqrt(D).
    cos, sin : arrays of shape P R/2, or None
        The rotation by position of the first R channels of q and k, row by row.
    positions : int32 array of N elements, or of T for all sequences alike, or None
        Rows of cos and sin, each below P; not checked here. None is the place in the sequence.
    first, last : int32 arrays of N elements, or of T for all sequences alike, or None
        Row i sees keys first[i] to last[i] of its sequence. None is 0 for first, i for last.
    softcap : float or None
        c of c tanh(s / c), taken of scores before the softmax.
    documents : bool
        A sequence holds several documents, in each of which positions count from 0: row i sees no key before
        i - positions[i] of its sequence.
    y : array of shape N C, written
        May be bfloat16.
    lse : array of shape B H T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    cdef Crystal crystal
    cdef Rows given, out
    take_rows("attention_forward", "qkv", qkv, sizeof(floating), False, &given)
    # lse, the first argument that says so, decides between float32 and float64
    take_arguments[floating]("attention_forward", &at, &crystal, &given, batch, heads, kv_heads, scale, cos, sin,
                             positions, first, last, softcap, tokens, coordinates, alpha, beta, turns, documents,
                             workspace)
    take_rows("attention_forward", "y", y, sizeof(floating), True, &out)
    check_rows("attention_forward", &at, "y", out.rows, out.columns, given.rows, at.channels)
    at.y_narrow = out.narrow
    check_scores("attention_forward", &at, "lse", batch, lse.shape[0], lse.shape[1], lse.shape[2])
    if at.time * at.head_dim == 0:
        return
    with nogil:
        if floating is float:
            forward_heads(<const vf32 *> given.at, batch * at.kv_heads, &at, <vf32 *> out.at,
                          <vf32 *> &lse[0, 0, 0], <vf32 *> aligned(&workspace[0]))
        else:
            forward_heads(<const vf64 *> given.at, batch * at.kv_heads, &at, <vf64 *> out.at,
                          <vf64 *> &lse[0, 0, 0], <vf64 *> aligned(&workspace[0]))


def attention_probabilities(qkv, const floating[:, :, ::1] lse not None, int batch,
                            int heads, const int32_t[::1] tokens=None, const floating[:, ::1] coordinates=None,
                            const floating[::1] alpha=None, const floating[:, ::1] beta=None, bint turns=False,
                            kv_heads=None, scale=None, const floating[:, ::1] cos=None,
                            const floating[:, ::1] sin=None, const int32_t[::1] positions=None,
                            const int32_t[::1] first=None, const int32_t[::1] last=None, softcap=None, bint documents=False, *,
                            floating[:, :, :, ::1] probs not None, floating[::1] workspace not None):
    """exp(s - lse), zero where a key is not seen: for a strategy that keeps the probabilities.

    The tiles are those that `attention_backward` rebuilds, so that its bits are the same with or without them.

    Parameters
    ----------
    qkv : array of shape N (H+2K)D
        May be bfloat16.
    lse : array of shape B H T
    batch, heads, and all that may be left out : as in `attention_forward`
    probs : array of shape B H T T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    cdef Crystal crystal
    cdef Rows given
    take_rows("attention_probabilities", "qkv", qkv, sizeof(floating), False, &given)
    take_arguments("attention_probabilities", &at, &crystal, &given, batch, heads, kv_heads, scale, cos, sin, positions,
                   first, last, softcap, tokens, coordinates, alpha, beta, turns, documents, workspace)
    check_scores("attention_probabilities", &at, "lse", batch, lse.shape[0], lse.shape[1], lse.shape[2])
    check_scores("attention_probabilities", &at, "probs", batch, probs.shape[0], probs.shape[1], probs.shape[2])
    check_length("attention_probabilities", "probs.shape[3]", probs.shape[3], at.time)
    if at.time * at.head_dim == 0:
        return
    with nogil:
        if floating is float:
            probabilities_heads(<const vf32 *> given.at, <const vf32 *> &lse[0, 0, 0], batch * at.kv_heads, &at,
                                <vf32 *> &probs[0, 0, 0, 0], <vf32 *> aligned(&workspace[0]))
        else:
            probabilities_heads(<const vf64 *> given.at, <const vf64 *> &lse[0, 0, 0], batch * at.kv_heads, &at,
                                <vf64 *> &probs[0, 0, 0, 0], <vf64 *> aligned(&workspace[0]))


def attention_backward(const floating[:, ::1] dy not None, qkv, y, const floating[:, :, ::1] lse not None,
                       int batch, int heads, const floating[:, :, :, ::1] probs, const int32_t[::1] tokens=None,
                       const floating[:, ::1] coordinates=None, const floating[::1] alpha=None,
                       const floating[:, ::1] beta=None, bint turns=False, kv_heads=None, scale=None,
                       const floating[:, ::1] cos=None, const floating[:, ::1] sin=None,
                       const int32_t[::1] positions=None, const int32_t[::1] first=None, const int32_t[::1] last=None,
                       softcap=None, bint documents=False, *, floating[:, ::1] dqkv not None, floating[::1] dalpha=None,
                       floating[:, ::1] dbeta=None, floating[::1] workspace not None):
    """dq | dk | dv from dy; the probabilities are rebuilt tile by tile from lse, or read where they were kept.

    Parameters
    ----------
    dy : array of shape N C
    qkv : array of shape N (H+2K)D
        May be bfloat16, as may y.
    y : array of shape N C
    lse : array of shape B H T
    batch, heads, and all that may be left out : as in `attention_forward`
    probs : array of shape B H T T or None
        What `attention_probabilities` wrote.
    dqkv : array of shape N (H+2K)D, written
    dalpha, dbeta : arrays of the shapes of alpha and beta, added to; None where those are
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    cdef Crystal crystal
    cdef Rows given, out
    cdef const floating *kept = NULL
    take_rows("attention_backward", "qkv", qkv, sizeof(floating), False, &given)
    take_arguments("attention_backward", &at, &crystal, &given, batch, heads, kv_heads, scale, cos, sin, positions,
                   first, last, softcap, tokens, coordinates, alpha, beta, turns, documents, workspace)
    take_rows("attention_backward", "y", y, sizeof(floating), False, &out)
    check_rows("attention_backward", &at, "dy", dy.shape[0], dy.shape[1], given.rows, at.channels)
    check_rows("attention_backward", &at, "y", out.rows, out.columns, given.rows, at.channels)
    check_rows("attention_backward", &at, "dqkv", dqkv.shape[0], dqkv.shape[1], given.rows, given.columns)
    at.y_narrow = out.narrow
    check_scores("attention_backward", &at, "lse", batch, lse.shape[0], lse.shape[1], lse.shape[2])
    if probs is not None:
        check_scores("attention_backward", &at, "probs", batch, probs.shape[0], probs.shape[1], probs.shape[2])
        check_length("attention_backward", "probs.shape[3]", probs.shape[3], at.time)
    check_term_gradients("attention_backward", &at, alpha, beta, dalpha, dbeta)
    if at.time * at.head_dim == 0:
        return
    if probs is not None:
        kept = &probs[0, 0, 0, 0]
    if alpha is not None or beta is not None:
        crystal.sums = &workspace[workspace.shape[0] - batch * heads * (1 + GROUPS)]
    with nogil:
        if floating is float:
            backward_heads(<const vf32 *> &dy[0, 0], <const vf32 *> given.at, <const vf32 *> out.at,
                           <const vf32 *> &lse[0, 0, 0], <const vf32 *> kept, batch * at.kv_heads, &at,
                           <vf32 *> &dqkv[0, 0], <vf32 *> aligned(&workspace[0]))
        else:
            backward_heads(<const vf64 *> &dy[0, 0], <const vf64 *> given.at, <const vf64 *> out.at,
                           <const vf64 *> &lse[0, 0, 0], <const vf64 *> kept, batch * at.kv_heads, &at,
                           <vf64 *> &dqkv[0, 0], <vf64 *> aligned(&workspace[0]))
    if alpha is not None or beta is not None:
        add_term_gradients(&at, batch, <floating *> crystal.sums, dalpha, dbeta)
