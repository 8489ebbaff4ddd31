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
# add queries in ascending order. So the bits do not depend on how the work is shared: as many heads as fill all threads
# are done a head at a time, one thread each; the rest together, tile by tile. In the backward of the rest, tile (i, j)
# adds to dq after (i, j-1) and to dk, dv after (i-1, j): the tiles with equal i + j are free of each other.


cdef struct Attention:
    Py_ssize_t time, heads, head_dim
    Py_ssize_t channels     # C
    Py_ssize_t blocks       # tiles of BLOCK along the time
    Py_ssize_t row          # elements of a packed row: head_dim in whole vectors
    Py_ssize_t plane        # elements of a packed array of one head
    Py_ssize_t work         # elements of all planes of a head
    Py_ssize_t scratch      # elements of one thread's tiles
    double scale

# Planes of a head in the workspace. Forward uses the first three, V_PANELS holding v in rows.
cdef enum:
    K_PANELS, Q_ROWS, V_PANELS, K_ROWS, DY_ROWS, DQ, DK, DV, DELTA, PLANES


cdef void lay_out(Attention *at, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t head_dim, Py_ssize_t n_lanes) noexcept nogil:
    at.time, at.heads, at.head_dim, at.channels = time, heads, head_dim, heads * head_dim
    at.blocks = (time + BLOCK - 1) // BLOCK
    at.row = round_up(head_dim, n_lanes)
    at.plane = at.blocks * BLOCK * at.row
    at.work = DELTA * at.plane + at.blocks * BLOCK
    # forward: s, out, top, total (a vector a row); backward: p, ds
    at.scratch = 2 * BLOCK * BLOCK + BLOCK * at.row + BLOCK * (1 + n_lanes)
    at.scale = 1.0 / sqrt(<double> head_dim) if head_dim else 1.0


cdef inline vec *plane(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of a head's workspace."""
    if which == DELTA:
        return address(work, DELTA * at.plane + block * BLOCK)
    return address(work, which * at.plane + block * BLOCK * at.row)


cdef inline Py_ssize_t block_rows(const Attention *at, Py_ssize_t block) noexcept nogil:
    return min(<Py_ssize_t> BLOCK, at.time - block * BLOCK)


cdef inline Py_ssize_t place(const Attention *at, Py_ssize_t head, Py_ssize_t block, Py_ssize_t stride) noexcept nogil:
    """The first element of a block of a head (0 .. B*H-1) in an array of shape N stride."""
    return (head // at.heads * at.time + block * BLOCK) * stride + head % at.heads * at.head_dim


# --- forward ----------------------------------------------------------------------------------------------------------

cdef void pack_forward(const vec *qkv, const Attention *at, Py_ssize_t head, Py_ssize_t block, vec *work) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(at, block), stride = 3 * at.channels
    cdef const vec *q = address(qkv, place(at, head, block, stride))
    pack_rows(q, stride, rows, at.head_dim, at.scale, plane(work, at, Q_ROWS, block), at.row)
    pack_panels(address(q, at.channels), stride, rows, at.head_dim, plane_panels(work, at, K_PANELS, block))
    pack_rows(address(q, 2 * at.channels), stride, rows, at.head_dim, 1.0, plane(work, at, V_PANELS, block), at.row)


cdef inline vec *plane_panels(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of panels."""
    return address(work, which * at.plane + block * BLOCK * at.head_dim)


cdef void forward_block(const Attention *at, const vec *work, Py_ssize_t head, Py_ssize_t block, vec *scratch, vec *y,
                        vec *lse) noexcept nogil:
    """y and lse of one tile of queries."""
    cdef Py_ssize_t i, j, keys, rows = block_rows(at, block)
    cdef vec *s = scratch
    cdef vec *out = address(s, BLOCK * BLOCK)
    cdef vec *total = address(out, BLOCK * at.row)
    cdef vec *top = address(total, BLOCK * lanes(s))
    cdef double weight
    for j in range(block + 1):
        keys = block_rows(at, j)
        scores(plane(work, at, Q_ROWS, block), at.row, plane_panels(work, at, K_PANELS, j), at.head_dim, rows, keys,
               j == block, s)
        softmax_online(s, rows, j == block, j == 0, top, total, out, at.row)
        mix(s, plane(work, at, V_PANELS, j), at.row, rows, keys, j == block, j > 0, out)
    y = address(y, place(at, head, block, at.channels))
    lse = address(lse, head * at.time + block * BLOCK)
    for i in range(rows):
        weight = lane_sum(load(total, i * lanes(s)))
        put(lse, i, element(top, i) + log(weight))
        unpack_rows(address(out, i * at.row), at.row, 1, at.head_dim, 1.0 / weight, address(y, i * at.channels),
                    at.channels)


cdef void forward_heads(const vec *qkv, Py_ssize_t n_heads, const Attention *at, vec *y, vec *lse,
                        vec *workspace) noexcept nogil:
    cdef Py_ssize_t head, item, block, alone = n_heads - n_heads % _threads, rest = n_heads % _threads
    cdef Py_ssize_t share = at.work + at.scratch
    cdef vec *work
    for head in prange(alone, schedule="dynamic", num_threads=_threads):
        work = address(workspace, threadid() * share)
        for block in range(at.blocks):
            pack_forward(qkv, at, head, block, work)
        for block in range(at.blocks):
            forward_block(at, work, head, block, address(work, at.work), y, lse)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_forward(qkv, at, alone + item % rest, item // rest, address(workspace, item % rest * share))
    for item in prange(rest * at.blocks, schedule="dynamic", num_threads=_threads):  # the longest rows first
        forward_block(at, address(workspace, item % rest * share), alone + item % rest, at.blocks - 1 - item // rest,
                      address(workspace, threadid() * share + at.work), y, lse)


# --- kept probabilities -----------------------------------------------------------------------------------------------

cdef void rebuild_tile(const Attention *at, const vec *work, const vec *lse, Py_ssize_t head, Py_ssize_t block,
                       Py_ssize_t key_block, vec *p) noexcept nogil:
    """p of one tile, from q, k and the log-sum-exp."""
    cdef Py_ssize_t rows = block_rows(at, block)
    scores(plane(work, at, Q_ROWS, block), at.row, plane_panels(work, at, K_PANELS, key_block), at.head_dim, rows,
           block_rows(at, key_block), block == key_block, p)
    softmax_known(p, address(lse, head * at.time + block * BLOCK), rows, block == key_block)


cdef void copy_row(const vec *x, vec *y, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    """The first n of `length` elements, zero in the others."""
    cdef Py_ssize_t j, left
    for j from 0 <= j < length by lanes(x):
        left = max(<Py_ssize_t> 0, min(n - j, <Py_ssize_t> lanes(x)))
        store_partial(y, j, load_partial(x, j, left), min(length - j, <Py_ssize_t> lanes(x)))


cdef void load_tile(const Attention *at, const vec *probs, Py_ssize_t head, Py_ssize_t block, Py_ssize_t key_block,
                    vec *p) noexcept nogil:
    """p of one tile from the kept probabilities."""
    cdef Py_ssize_t i, rows = block_rows(at, block)
    cdef bint diagonal = block == key_block
    probs = address(probs, (head * at.time + block * BLOCK) * at.time + key_block * BLOCK)
    for i in range(rows):
        copy_row(address(probs, i * at.time), address(p, i * BLOCK), i + 1 if diagonal else BLOCK,
                 row_length(i, lanes(p), diagonal))


cdef void probabilities_block(const Attention *at, const vec *work, const vec *lse, Py_ssize_t head, Py_ssize_t block,
                              vec *scratch, vec *probs) noexcept nogil:
    """All of p for one tile of queries, zero above the diagonal."""
    cdef Py_ssize_t i, j, rows = block_rows(at, block), start
    cdef bint diagonal
    probs = address(probs, (head * at.time + block * BLOCK) * at.time)
    for j in range(block + 1):
        rebuild_tile(at, work, lse, head, block, j, scratch)
        start, diagonal = j * BLOCK, j == block
        for i in range(rows):
            copy_row(address(scratch, i * BLOCK), address(probs, i * at.time + start), i + 1 if diagonal else BLOCK,
                     at.time - start if diagonal else BLOCK)


cdef void probabilities_heads(const vec *qkv, const vec *lse, Py_ssize_t n_heads, const Attention *at, vec *probs,
                              vec *workspace) noexcept nogil:
    cdef Py_ssize_t head, item, block, alone = n_heads - n_heads % _threads, rest = n_heads % _threads
    cdef Py_ssize_t share = at.work + at.scratch
    cdef vec *work
    for head in prange(alone, schedule="dynamic", num_threads=_threads):
        work = address(workspace, threadid() * share)
        for block in range(at.blocks):
            pack_forward(qkv, at, head, block, work)
        for block in range(at.blocks):
            probabilities_block(at, work, lse, head, block, address(work, at.work), probs)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_forward(qkv, at, alone + item % rest, item // rest, address(workspace, item % rest * share))
    for item in prange(rest * at.blocks, schedule="dynamic", num_threads=_threads):
        probabilities_block(at, address(workspace, item % rest * share), lse, alone + item % rest,
                            at.blocks - 1 - item // rest, address(workspace, threadid() * share + at.work), probs)


# --- backward ---------------------------------------------------------------------------------------------------------

cdef void pack_backward(const vec *qkv, const vec *dy, const vec *y, const Attention *at, Py_ssize_t head,
                        Py_ssize_t block, vec *work) noexcept nogil:
    cdef Py_ssize_t i, j, rows = block_rows(at, block), stride = 3 * at.channels, left
    cdef const vec *q = address(qkv, place(at, head, block, stride))
    cdef const vec *k = address(q, at.channels)
    cdef vec *delta = plane(work, at, DELTA, block)
    cdef vec total
    dy = address(dy, place(at, head, block, at.channels))
    y = address(y, place(at, head, block, at.channels))
    pack_rows(q, stride, rows, at.head_dim, at.scale, plane(work, at, Q_ROWS, block), at.row)
    pack_rows(k, stride, rows, at.head_dim, 1.0, plane(work, at, K_ROWS, block), at.row)
    pack_rows(dy, at.channels, rows, at.head_dim, 1.0, plane(work, at, DY_ROWS, block), at.row)
    pack_panels(k, stride, rows, at.head_dim, plane_panels(work, at, K_PANELS, block))
    pack_panels(address(k, at.channels), stride, rows, at.head_dim, plane_panels(work, at, V_PANELS, block))
    for i in range(rows):
        total = splat(dy, 0.0)
        for j from 0 <= j < at.head_dim by lanes(dy):
            left = min(at.head_dim - j, <Py_ssize_t> lanes(dy))
            total = load_partial(dy, i * at.channels + j, left) * load_partial(y, i * at.channels + j, left) + total
        put(delta, i, lane_sum(total))


cdef void backward_tile(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head,
                        Py_ssize_t block, Py_ssize_t key_block, vec *scratch) noexcept nogil:
    """What tile (block, key_block) adds to dq of its queries and to dk and dv of its keys."""
    cdef Py_ssize_t rows = block_rows(at, block), keys = block_rows(at, key_block)
    cdef bint diagonal = block == key_block
    cdef vec *p = scratch
    cdef vec *ds = address(p, BLOCK * BLOCK)
    cdef vec *dy = plane(work, at, DY_ROWS, block)
    if probs is NULL:
        rebuild_tile(at, work, lse, head, block, key_block, p)
    else:
        load_tile(at, probs, head, block, key_block, p)
    scores(dy, at.row, plane_panels(work, at, V_PANELS, key_block), at.head_dim, rows, keys, diagonal, ds)
    softmax_backward(p, plane(work, at, DELTA, block), rows, diagonal, ds)
    mix_transposed(p, dy, at.row, rows, keys, diagonal, not diagonal, plane(work, at, DV, key_block))
    mix_transposed(ds, plane(work, at, Q_ROWS, block), at.row, rows, keys, diagonal, not diagonal,
                   plane(work, at, DK, key_block))
    mix(ds, plane(work, at, K_ROWS, key_block), at.row, rows, keys, diagonal, key_block > 0,
        plane(work, at, DQ, block))


cdef void unpack_backward(const Attention *at, const vec *work, Py_ssize_t head, Py_ssize_t block,
                          vec *dqkv) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(at, block), stride = 3 * at.channels
    cdef vec *dq = address(dqkv, place(at, head, block, stride))
    unpack_rows(plane(work, at, DQ, block), at.row, rows, at.head_dim, at.scale, dq, stride)
    unpack_rows(plane(work, at, DK, block), at.row, rows, at.head_dim, 1.0, address(dq, at.channels), stride)
    unpack_rows(plane(work, at, DV, block), at.row, rows, at.head_dim, 1.0, address(dq, 2 * at.channels), stride)


cdef void backward_heads(const vec *dy, const vec *qkv, const vec *y, const vec *lse, const vec *probs,
                         Py_ssize_t n_heads, const Attention *at, vec *dqkv, vec *workspace) noexcept nogil:
    cdef Py_ssize_t head, item, block, key_block, alone = n_heads - n_heads % _threads, rest = n_heads % _threads
    cdef Py_ssize_t share = at.work + at.scratch, step, first, count
    cdef vec *work
    for head in prange(alone, schedule="dynamic", num_threads=_threads):
        work = address(workspace, threadid() * share)
        for block in range(at.blocks):
            pack_backward(qkv, dy, y, at, head, block, work)
        for key_block in range(at.blocks):
            for block in range(key_block, at.blocks):
                backward_tile(at, work, lse, probs, head, block, key_block, address(work, at.work))
        for block in range(at.blocks):
            unpack_backward(at, work, head, block, dqkv)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_backward(qkv, dy, y, at, alone + item % rest, item // rest, address(workspace, item % rest * share))
    for step in range(2 * at.blocks - 1):
        first = max(<Py_ssize_t> 0, step - at.blocks + 1)  # key blocks first .. step // 2 meet queries step - key block
        count = rest * (step // 2 - first + 1)
        for item in prange(count, schedule="dynamic", num_threads=_threads):
            backward_tile(at, address(workspace, item % rest * share), lse, probs, alone + item % rest,
                          step - first - item // rest, first + item // rest,
                          address(workspace, threadid() * share + at.work))
    for item in prange(rest * at.blocks, num_threads=_threads):
        unpack_backward(at, address(workspace, item % rest * share), alone + item % rest, item // rest, dqkv)


# --- calls ------------------------------------------------------------------------------------------------------------

def attention_workspace(Py_ssize_t batch, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t head_dim, int threads,
                        Py_ssize_t itemsize):
    """Elements of workspace for every kernel of attention: linear in the time, some planes of a head for each thread.

    Parameters
    ----------
    batch, time, heads, head_dim : int
    threads : int
        Threads that the kernels will use.
    itemsize : int
        Bytes of an element: 4 or 8.

    Returns
    -------
    int
    """
    cdef Attention at
    if batch * time * heads == 0:
        return 0
    lay_out(&at, time, heads, head_dim, VECTOR_BYTES // itemsize)
    return threads * (at.work + at.scratch) + 64 // itemsize


cdef int check_attention(str kernel, Attention *at, Py_ssize_t n_rows, Py_ssize_t n_columns, int batch, int heads,
                         Py_ssize_t room, Py_ssize_t itemsize) except -1:
    """Check qkv and the workspace, and lay out the planes."""
    if batch < 1 or heads < 1:
        raise ShapeError(kernel, "batch and heads must be at least 1", f"batch={batch}, heads={heads}",
                         "Pass the number of sequences and of heads.")
    if n_rows % batch or n_columns % (3 * heads):
        raise ShapeError(kernel, f"qkv must have a multiple of {batch} rows and of {3 * heads} columns",
                         f"{n_rows} x {n_columns}", "Pass q | k | v of whole sequences, all heads beside each other.")
    lay_out(at, n_rows // batch, heads, n_columns // (3 * heads), VECTOR_BYTES // itemsize)
    check_room(kernel, "workspace", room, attention_workspace(batch, at.time, heads, at.head_dim, _threads, itemsize))
    return 0


cdef inline void *aligned(void *p) noexcept nogil:
    """p, moved up to a multiple of 64 bytes, a cache line and the widest vector."""
    return <void *> ((<size_t> p + 63) // 64 * 64)


def attention_forward(const floating[:, ::1] qkv not None, int batch, int heads, *, floating[:, ::1] y not None,
                      floating[:, :, ::1] lse not None, floating[::1] workspace not None):
    """y = softmax(q k^T / sqrt(D), causal) v for each sequence and head, and the log-sum-exp of each row of scores.

    Parameters
    ----------
    qkv : array of shape N 3C
        Columns q | k | v, head h at columns h*D of each.
    batch, heads : int
        B and H; N = B*T, C = H*D.
    y : array of shape N C, written
    lse : array of shape B H T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    check_attention("attention_forward", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating))
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
                            int heads, *, floating[:, :, :, ::1] probs not None, floating[::1] workspace not None):
    """exp(s - lse), zero above the diagonal: for a strategy that keeps the probabilities.

    The tiles are those that `attention_backward` rebuilds, so that its bits are the same with or without them.

    Parameters
    ----------
    qkv : array of shape N 3C
    lse : array of shape B H T
    batch, heads : int
    probs : array of shape B H T T, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    check_attention("attention_probabilities", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating))
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
                       const floating[:, :, :, ::1] probs, *, floating[:, ::1] dqkv not None,
                       floating[::1] workspace not None):
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
    dqkv : array of shape N 3C, written
    workspace : array of at least `attention_workspace` elements, written
    """
    cdef Attention at
    cdef const floating *kept = NULL
    check_attention("attention_backward", &at, qkv.shape[0], qkv.shape[1], batch, heads, workspace.shape[0],
                    sizeof(floating))
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
    if at.time * at.head_dim == 0:
        return
    if probs is not None:
        kept = &probs[0, 0, 0, 0]
    if floating is float:
        backward_heads(<const vf32 *> &dy[0, 0], <const vf32 *> &qkv[0, 0], <const vf32 *> &y[0, 0],
                       <const vf32 *> &lse[0, 0, 0], <const vf32 *> kept, batch * heads, &at, <vf32 *> &dqkv[0, 0],
                       <vf32 *> aligned(&workspace[0]))
    else:
        backward_heads(<const vf64 *> &dy[0, 0], <const vf64 *> &qkv[0, 0], <const vf64 *> &y[0, 0],
                       <const vf64 *> &lse[0, 0, 0], <const vf64 *> kept, batch * heads, &at, <vf64 *> &dqkv[0, 0],
                       <vf64 *> aligned(&workspace[0]))
