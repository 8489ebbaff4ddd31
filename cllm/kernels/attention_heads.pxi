# A head of attention, and how heads and tiles are shared out to the threads.
#
# As many heads as fill all threads are done a head at a time, one thread each; the rest together, tile by tile. In the
# backward of the rest, tile (i, j) adds to dq after (i, j-1) and to dk, dv after (i-1, j): the tiles (or squares of
# tiles) with equal i + j are free of each other, and each sum keeps the order that it has on one thread.

from libc.stdint cimport int32_t

cdef struct Attention:
    Py_ssize_t time, heads, head_dim
    Py_ssize_t channels     # C
    Py_ssize_t depth        # packed channels of q and k: head_dim, and GROUPS more where a bias is part of the score
    Py_ssize_t wide         # elements of a packed row of q and k: depth in whole vectors
    Py_ssize_t blocks       # tiles of BLOCK along the time
    Py_ssize_t row          # elements of a packed row: head_dim in whole vectors
    Py_ssize_t plane        # elements of a packed array of one head
    Py_ssize_t terms        # where in a head's planes those of crystal.pxi begin
    Py_ssize_t work         # elements of all planes of a head
    Py_ssize_t scratch      # elements of one thread's tiles
    double scale
    # The terms of crystalline attention, each NULL or false where it is off.
    const int32_t *tokens   # N
    const void *coordinates  # V x 3
    const void *alpha       # H
    const void *beta        # H x GROUPS
    bint turns
    void *sums              # B*H x (1 + GROUPS): a head's share of dalpha and dbeta

# Planes of a head in the workspace. Forward uses the first three, V_PANELS holding v in rows.
cdef enum:
    K_PANELS, Q_ROWS, V_PANELS, K_ROWS, DY_ROWS, DQ, DK, DV, DELTA


cdef void lay_out(Attention *at, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t head_dim, Py_ssize_t n_lanes,
                  bint distance, bint bias) noexcept nogil:
    at.time, at.heads, at.head_dim, at.channels = time, heads, head_dim, heads * head_dim
    at.blocks = (time + BLOCK - 1) // BLOCK
    at.row = round_up(head_dim, n_lanes)
    at.depth = head_dim + GROUPS if bias else head_dim
    at.wide = round_up(at.depth, n_lanes)
    at.plane = at.blocks * BLOCK * at.wide
    at.terms = DELTA * at.plane + at.blocks * BLOCK
    at.work = at.terms + (at.blocks * terms_room(n_lanes) if distance else 0)
    # forward: s, out, top, total (a vector a row); backward: p, ds
    at.scratch = 2 * BLOCK * BLOCK + BLOCK * at.row + BLOCK * (1 + n_lanes) + (BLOCK * BLOCK if distance else 0)
    at.scale = 1.0 / sqrt(<double> head_dim) if head_dim else 1.0
    at.tokens, at.coordinates, at.alpha, at.beta, at.turns, at.sums = NULL, NULL, NULL, NULL, False, NULL


cdef inline vec *plane(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of a head's workspace."""
    if which == DELTA:
        return address(work, DELTA * at.plane + block * BLOCK)
    return address(work, which * at.plane + block * BLOCK * (at.row if which in (V_PANELS, DY_ROWS, DV) else at.wide))


cdef inline Py_ssize_t block_rows(const Attention *at, Py_ssize_t block) noexcept nogil:
    return min(<Py_ssize_t> BLOCK, at.time - block * BLOCK)


cdef inline Py_ssize_t place(const Attention *at, Py_ssize_t head, Py_ssize_t block, Py_ssize_t stride) noexcept nogil:
    """The first element of a block of a head (0 .. B*H-1) in an array of shape N stride."""
    return (head // at.heads * at.time + block * BLOCK) * stride + head % at.heads * at.head_dim


# --- forward ----------------------------------------------------------------------------------------------------------

cdef inline vec *plane_panels(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of panels."""
    return address(work, which * at.plane + block * BLOCK * (at.depth if which == K_PANELS else at.head_dim))


cdef void pack_forward(const vec *qkv, const Attention *at, Py_ssize_t head, Py_ssize_t block, vec *work,
                       vec *scratch) noexcept nogil:
    """Rows first, one after the other, since they come from far; then the transpose of what lies near."""
    cdef Py_ssize_t rows = block_rows(at, block), stride = 3 * at.channels
    cdef const vec *q = address(qkv, place(at, head, block, stride))
    pack_rows(q, stride, rows, at.head_dim, at.scale, plane(work, at, Q_ROWS, block), at.wide)
    pack_rows(address(q, at.channels), stride, rows, at.head_dim, 1.0, scratch, at.wide)
    pack_rows(address(q, 2 * at.channels), stride, rows, at.head_dim, 1.0, plane(work, at, V_PANELS, block), at.row)
    add_terms(at, work, head, block, scratch)
    pack_panels(scratch, at.wide, rows, at.depth, plane_panels(work, at, K_PANELS, block))


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
        scores(plane(work, at, Q_ROWS, block), at.wide, plane_panels(work, at, K_PANELS, j), at.depth, rows, keys,
               j == block, s)
        if at.coordinates != NULL:
            fall_off(at, work, head, block, j, s, <vec *> NULL)
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
            pack_forward(qkv, at, head, block, work, address(work, at.work))
        for block in range(at.blocks):
            forward_block(at, work, head, block, address(work, at.work), y, lse)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_forward(qkv, at, alone + item % rest, item // rest, address(workspace, item % rest * share),
                     address(workspace, threadid() * share + at.work))
    for item in prange(rest * at.blocks, schedule="dynamic", num_threads=_threads):  # the longest rows first
        forward_block(at, address(workspace, item % rest * share), alone + item % rest, at.blocks - 1 - item // rest,
                      address(workspace, threadid() * share + at.work), y, lse)


# --- kept probabilities -----------------------------------------------------------------------------------------------

cdef void rebuild_tile(const Attention *at, const vec *work, const vec *lse, Py_ssize_t head, Py_ssize_t block,
                       Py_ssize_t key_block, vec *p, vec *far) noexcept nogil:
    """p of one tile, from q, k and the log-sum-exp; with distances, their logarithms into `far` unless it is NULL."""
    cdef Py_ssize_t rows = block_rows(at, block)
    scores(plane(work, at, Q_ROWS, block), at.wide, plane_panels(work, at, K_PANELS, key_block), at.depth, rows,
           block_rows(at, key_block), block == key_block, p)
    if at.coordinates != NULL:
        fall_off(at, work, head, block, key_block, p, far)
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
        rebuild_tile(at, work, lse, head, block, j, scratch, <vec *> NULL)
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
            pack_forward(qkv, at, head, block, work, address(work, at.work))
        for block in range(at.blocks):
            probabilities_block(at, work, lse, head, block, address(work, at.work), probs)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_forward(qkv, at, alone + item % rest, item // rest, address(workspace, item % rest * share),
                     address(workspace, threadid() * share + at.work))
    for item in prange(rest * at.blocks, schedule="dynamic", num_threads=_threads):
        probabilities_block(at, address(workspace, item % rest * share), lse, alone + item % rest,
                            at.blocks - 1 - item // rest, address(workspace, threadid() * share + at.work), probs)


# --- backward ---------------------------------------------------------------------------------------------------------

cdef void pack_backward(const vec *qkv, const vec *dy, const vec *y, const Attention *at, Py_ssize_t head,
                        Py_ssize_t block, vec *work, vec *scratch) noexcept nogil:
    cdef Py_ssize_t i, j, rows = block_rows(at, block), stride = 3 * at.channels, left
    cdef const vec *q = address(qkv, place(at, head, block, stride))
    cdef vec *k_rows = plane(work, at, K_ROWS, block)
    cdef vec *dy_rows = plane(work, at, DY_ROWS, block)
    cdef vec *delta = plane(work, at, DELTA, block)
    cdef vec total
    y = address(y, place(at, head, block, at.channels))
    pack_rows(q, stride, rows, at.head_dim, at.scale, plane(work, at, Q_ROWS, block), at.wide)
    pack_rows(address(q, at.channels), stride, rows, at.head_dim, 1.0, k_rows, at.wide)
    pack_rows(address(q, 2 * at.channels), stride, rows, at.head_dim, 1.0, scratch, at.row)
    pack_rows(address(dy, place(at, head, block, at.channels)), at.channels, rows, at.head_dim, 1.0, dy_rows, at.row)
    add_terms(at, work, head, block, k_rows)
    pack_panels(k_rows, at.wide, rows, at.depth, plane_panels(work, at, K_PANELS, block))
    pack_panels(scratch, at.row, rows, at.head_dim, plane_panels(work, at, V_PANELS, block))
    for i in range(rows):
        total = splat(y, 0.0)
        for j from 0 <= j < at.head_dim by lanes(y):
            left = min(at.head_dim - j, <Py_ssize_t> lanes(y))
            total = fma(load(dy_rows, i * at.row + j), load_partial(y, i * at.channels + j, left), total)
        put(delta, i, lane_sum(total))


cdef void backward_tile(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head,
                        Py_ssize_t block, Py_ssize_t key_block, vec *scratch) noexcept nogil:
    """What tile (block, key_block) adds to dq of its queries and to dk and dv of its keys."""
    cdef Py_ssize_t rows = block_rows(at, block), keys = block_rows(at, key_block)
    cdef bint diagonal = block == key_block
    cdef vec *p = scratch
    cdef vec *ds = address(p, BLOCK * BLOCK)
    cdef vec *dy = plane(work, at, DY_ROWS, block)
    cdef vec *far = address(ds, BLOCK * BLOCK)
    if probs is NULL:
        rebuild_tile(at, work, lse, head, block, key_block, p, far)
    else:
        load_tile(at, probs, head, block, key_block, p)
        if at.coordinates != NULL:
            fall_off(at, work, head, block, key_block, <vec *> NULL, far)
    scores(dy, at.row, plane_panels(work, at, V_PANELS, key_block), at.head_dim, rows, keys, diagonal, ds)
    softmax_backward(p, plane(work, at, DELTA, block), rows, diagonal, ds)
    if at.coordinates != NULL:
        add_falls(at, work, block, key_block, ds, far)
    mix_transposed(p, dy, at.row, rows, keys, diagonal, not diagonal, plane(work, at, DV, key_block))
    mix_transposed(ds, plane(work, at, Q_ROWS, block), at.wide, rows, keys, diagonal, not diagonal,
                   plane(work, at, DK, key_block))
    mix(ds, plane(work, at, K_ROWS, key_block), at.wide, rows, keys, diagonal, key_block > 0,
        plane(work, at, DQ, block))


cdef void backward_square(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head,
                          Py_ssize_t block0, Py_ssize_t key_block0, Py_ssize_t side, vec *scratch) noexcept nogil:
    """The tiles on and below the diagonal in a square of `side` tiles: keys, then queries, in ascending order."""
    cdef Py_ssize_t block, key_block
    for key_block in range(key_block0, min(key_block0 + side, at.blocks)):
        for block in range(max(block0, key_block), min(block0 + side, at.blocks)):
            backward_tile(at, work, lse, probs, head, block, key_block, scratch)


cdef void unpack_backward(const Attention *at, vec *work, Py_ssize_t head, Py_ssize_t block,
                          vec *dqkv) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(at, block), stride = 3 * at.channels
    cdef vec *dq = address(dqkv, place(at, head, block, stride))
    if at.turns:
        turn_rows(at, head, block, True, plane(work, at, DQ, block))
        turn_rows(at, head, block, True, plane(work, at, DK, block))
    unpack_rows(plane(work, at, DQ, block), at.wide, rows, at.head_dim, at.scale, dq, stride)
    unpack_rows(plane(work, at, DK, block), at.wide, rows, at.head_dim, 1.0, address(dq, at.channels), stride)
    unpack_rows(plane(work, at, DV, block), at.row, rows, at.head_dim, 1.0, address(dq, 2 * at.channels), stride)


cdef void backward_heads(const vec *dy, const vec *qkv, const vec *y, const vec *lse, const vec *probs,
                         Py_ssize_t n_heads, const Attention *at, vec *dqkv, vec *workspace) noexcept nogil:
    cdef Py_ssize_t head, item, block, alone = n_heads - n_heads % _threads, rest = n_heads % _threads
    cdef Py_ssize_t share = at.work + at.scratch, step, first, count, side, squares
    cdef vec *work
    for head in prange(alone, schedule="dynamic", num_threads=_threads):
        work = address(workspace, threadid() * share)
        for block in range(at.blocks):
            pack_backward(qkv, dy, y, at, head, block, work, address(work, at.work))
        backward_square(at, work, lse, probs, head, 0, 0, at.blocks, address(work, at.work))
        for block in range(at.blocks):
            unpack_backward(at, work, head, block, dqkv)
        sum_terms(at, work, head)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_backward(qkv, dy, y, at, alone + item % rest, item // rest, address(workspace, item % rest * share),
                      address(workspace, threadid() * share + at.work))
    # Squares of `side` tiles, so that the threads meet seldom; four squares along the time for each thread.
    side = max(<Py_ssize_t> 1, at.blocks // (4 * _threads))
    squares = (at.blocks + side - 1) // side
    for step in range(2 * squares - 1):
        first = max(<Py_ssize_t> 0, step - squares + 1)  # keys of square first .. step // 2 meet queries of step - that
        count = rest * (step // 2 - first + 1)
        for item in prange(count, schedule="dynamic", num_threads=_threads):
            backward_square(at, address(workspace, item % rest * share), lse, probs, alone + item % rest,
                            (step - first - item // rest) * side, (first + item // rest) * side, side,
                            address(workspace, threadid() * share + at.work))
    for item in prange(rest * at.blocks, num_threads=_threads):
        unpack_backward(at, address(workspace, item % rest * share), alone + item % rest, item // rest, dqkv)
    for item in range(rest):
        sum_terms(at, address(workspace, item * share), alone + item)
