# Causal attention: forward, kept probabilities, backward.
#
#   s_ij  = q_i . k_j / sqrt(D) for j <= i             (B, H, T, T), only ever a tile of it
#   lse_i = log sum_j exp(s_ij),  p_ij = exp(s_ij - lse_i)
#   y_i   = sum_j p_ij v_j
#
#   dp_ij = dy_i . v_j,  delta_i = sum_j p_ij dp_ij = dy_i . y_i,  ds_ij = p_ij (dp_ij - delta_i)
#   dv_j  = sum_i p_ij dy_i,   dk_j = sum_i ds_ij q_i / sqrt(D),   dq_i = sum_j ds_ij k_j / sqrt(D)
#
# Forward walks over tiles of keys with the largest score so far (the "online softmax" of Milakov and Gimelshein, 2018,
# in tiles as in FlashAttention, Dao et al., 2022); backward rebuilds each tile of p from q, k and lse. The columns of
# qkv are q | k | v, head h at columns h*D of each.
#
# A row's sum over keys is cut into tiles at multiples of BLOCK from the start of its sequence, dq adds keys and dk, dv
# add queries in ascending order. So the bits do not depend on how the work is shared out (attention_heads.pxi).
#
# The terms of crystalline attention, all off by default, stand in crystal.pxi.


def attention_workspace(Py_ssize_t batch, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t head_dim, int threads,
                        Py_ssize_t itemsize, bint distance=False, bint bias=False):
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

    Returns
    -------
    int
    """
    cdef Attention at
    if batch * time * heads == 0:
        return 0
    lay_out(&at, time, heads, head_dim, VECTOR_BYTES // itemsize, distance, bias)
    return threads * (at.work + at.scratch) + 64 // itemsize + (batch * heads * (1 + GROUPS) if distance or bias else 0)


cdef int check_attention(str kernel, Attention *at, Py_ssize_t n_rows, Py_ssize_t n_columns, int batch, int heads,
                         Py_ssize_t room, Py_ssize_t itemsize, bint distance, bint bias) except -1:
    """Check qkv and the workspace, and lay out the planes."""
    if batch < 1 or heads < 1:
        raise ShapeError(kernel, "batch and heads must be at least 1", f"batch={batch}, heads={heads}",
                         "Pass the number of sequences and of heads.")
    if n_rows % batch or n_columns % (3 * heads):
        raise ShapeError(kernel, f"qkv must have a multiple of {batch} rows and of {3 * heads} columns",
                         f"{n_rows} x {n_columns}", "Pass q | k | v of whole sequences, all heads beside each other.")
    lay_out(at, n_rows // batch, heads, n_columns // (3 * heads), VECTOR_BYTES // itemsize, distance, bias)
    check_room(kernel, "workspace", room, attention_workspace(batch, at.time, heads, at.head_dim, _threads, itemsize,
                                                              distance, bias))
    return 0


cdef inline void *aligned(void *p) noexcept nogil:
    """p, moved up to a multiple of 64 bytes, a cache line and the widest vector."""
    return <void *> ((<size_t> p + 63) // 64 * 64)


def attention_forward(const floating[:, ::1] qkv not None, int batch, int heads, const int32_t[::1] tokens=None,
                      const floating[:, ::1] coordinates=None, const floating[::1] alpha=None,
                      const floating[:, ::1] beta=None, bint turns=False, *, floating[:, ::1] y not None,
                      floating[:, :, ::1] lse not None, floating[::1] workspace not None):
    """y = softmax(q k^T / sqrt(D), causal) v for each sequence and head, and the log-sum-exp of each row of scores.

    Parameters
    ----------
    qkv : array of shape N 3C
        Columns q | k | v, head h at columns h*D of each.
    batch, heads : int
        B and H; N = B*T, C = H*D.
    tokens : int32 array of shape N, or None
        Needed by each of the terms of crystalline attention, all off by default:
    coordinates, alpha : arrays of shape V 3 and H, or None
        The distance.
    beta : array of shape H 12, or None
        The bias.
    turns : bool
        The rotation; D even.
    y : array of shape N C, written
    lse : array of shape B H T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    check_attention("attention_forward", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating), alpha is not None, beta is not None)
    take_terms("attention_forward", &at, qkv.shape[0], tokens, coordinates, alpha, beta, turns)
    check_length("attention_forward", "y.shape[0]", y.shape[0], qkv.shape[0])
    check_length("attention_forward", "y.shape[1]", y.shape[1], at.channels)
    check_length("attention_forward", "lse.shape[0]", lse.shape[0], batch)
    check_length("attention_forward", "lse.shape[1]", lse.shape[1], heads)
    check_length("attention_forward", "lse.shape[2]", lse.shape[2], at.time)
    if at.time * at.head_dim == 0:
        return
    if floating is float:
        forward_heads(<const vf32 *> &qkv[0, 0], batch * heads, &at, <vf32 *> &y[0, 0], <vf32 *> &lse[0, 0, 0],
                      <vf32 *> aligned(&workspace[0]))
    else:
        forward_heads(<const vf64 *> &qkv[0, 0], batch * heads, &at, <vf64 *> &y[0, 0], <vf64 *> &lse[0, 0, 0],
                      <vf64 *> aligned(&workspace[0]))


def attention_probabilities(const floating[:, ::1] qkv not None, const floating[:, :, ::1] lse not None, int batch,
                            int heads, const int32_t[::1] tokens=None, const floating[:, ::1] coordinates=None,
                            const floating[::1] alpha=None, const floating[:, ::1] beta=None, bint turns=False, *,
                            floating[:, :, :, ::1] probs not None, floating[::1] workspace not None):
    """exp(s - lse), zero above the diagonal: for a strategy that keeps the probabilities.

    The tiles are those that `attention_backward` rebuilds, so that its bits are the same with or without them.

    Parameters
    ----------
    qkv : array of shape N 3C
    lse : array of shape B H T
    batch, heads : int
    tokens, coordinates, alpha, beta, turns : as in `attention_forward`
    probs : array of shape B H T T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    check_attention("attention_probabilities", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating), alpha is not None, beta is not None)
    take_terms("attention_probabilities", &at, qkv.shape[0], tokens, coordinates, alpha, beta, turns)
    check_length("attention_probabilities", "lse.shape[0]", lse.shape[0], batch)
    check_length("attention_probabilities", "lse.shape[1]", lse.shape[1], heads)
    check_length("attention_probabilities", "lse.shape[2]", lse.shape[2], at.time)
    check_length("attention_probabilities", "probs.shape[0]", probs.shape[0], batch)
    check_length("attention_probabilities", "probs.shape[1]", probs.shape[1], heads)
    check_length("attention_probabilities", "probs.shape[2]", probs.shape[2], at.time)
    check_length("attention_probabilities", "probs.shape[3]", probs.shape[3], at.time)
    if at.time * at.head_dim == 0:
        return
    if floating is float:
        probabilities_heads(<const vf32 *> &qkv[0, 0], <const vf32 *> &lse[0, 0, 0], batch * heads, &at,
                            <vf32 *> &probs[0, 0, 0, 0], <vf32 *> aligned(&workspace[0]))
    else:
        probabilities_heads(<const vf64 *> &qkv[0, 0], <const vf64 *> &lse[0, 0, 0], batch * heads, &at,
                            <vf64 *> &probs[0, 0, 0, 0], <vf64 *> aligned(&workspace[0]))


def attention_backward(const floating[:, ::1] dy not None, const floating[:, ::1] qkv not None,
                       const floating[:, ::1] y not None, const floating[:, :, ::1] lse not None, int batch, int heads,
                       const floating[:, :, :, ::1] probs, const int32_t[::1] tokens=None,
                       const floating[:, ::1] coordinates=None, const floating[::1] alpha=None,
                       const floating[:, ::1] beta=None, bint turns=False, *, floating[:, ::1] dqkv not None,
                       floating[::1] dalpha=None, floating[:, ::1] dbeta=None, floating[::1] workspace not None):
    """dq | dk | dv from dy; the probabilities are rebuilt tile by tile from lse, or read where they were kept.

    Parameters
    ----------
    dy : array of shape N C
    qkv : array of shape N 3C
    y : array of shape N C
    lse : array of shape B H T
    batch, heads : int
    probs : array of shape B H T T or None
        What `attention_probabilities` wrote.
    tokens, coordinates, alpha, beta, turns : as in `attention_forward`
    dqkv : array of shape N 3C, written
    dalpha, dbeta : arrays of the shapes of alpha and beta, added to; None where those are
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    cdef const floating *kept = NULL
    check_attention("attention_backward", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating), alpha is not None, beta is not None)
    take_terms("attention_backward", &at, qkv.shape[0], tokens, coordinates, alpha, beta, turns)
    check_length("attention_backward", "dy.shape[0]", dy.shape[0], qkv.shape[0])
    check_length("attention_backward", "dy.shape[1]", dy.shape[1], at.channels)
    check_length("attention_backward", "y.shape[0]", y.shape[0], qkv.shape[0])
    check_length("attention_backward", "y.shape[1]", y.shape[1], at.channels)
    check_length("attention_backward", "lse.shape[0]", lse.shape[0], batch)
    check_length("attention_backward", "lse.shape[1]", lse.shape[1], heads)
    check_length("attention_backward", "lse.shape[2]", lse.shape[2], at.time)
    check_length("attention_backward", "dqkv.shape[0]", dqkv.shape[0], qkv.shape[0])
    check_length("attention_backward", "dqkv.shape[1]", dqkv.shape[1], qkv.shape[1])
    if probs is not None:
        check_length("attention_backward", "probs.shape[0]", probs.shape[0], batch)
        check_length("attention_backward", "probs.shape[1]", probs.shape[1], heads)
        check_length("attention_backward", "probs.shape[2]", probs.shape[2], at.time)
        check_length("attention_backward", "probs.shape[3]", probs.shape[3], at.time)
    check_term_gradients("attention_backward", &at, dalpha, dbeta)
    if at.time * at.head_dim == 0:
        return
    if probs is not None:
        kept = &probs[0, 0, 0, 0]
    if alpha is not None or beta is not None:
        at.sums = &workspace[workspace.shape[0] - batch * heads * (1 + GROUPS)]
    if floating is float:
        backward_heads(<const vf32 *> &dy[0, 0], <const vf32 *> &qkv[0, 0], <const vf32 *> &y[0, 0],
                       <const vf32 *> &lse[0, 0, 0], <const vf32 *> kept, batch * heads, &at, <vf32 *> &dqkv[0, 0],
                       <vf32 *> aligned(&workspace[0]))
    else:
        backward_heads(<const vf64 *> &dy[0, 0], <const vf64 *> &qkv[0, 0], <const vf64 *> &y[0, 0],
                       <const vf64 *> &lse[0, 0, 0], <const vf64 *> kept, batch * heads, &at, <vf64 *> &dqkv[0, 0],
                       <vf64 *> aligned(&workspace[0]))
    if at.sums != NULL:
        add_term_gradients(&at, batch, <floating *> at.sums, dalpha, dbeta)
