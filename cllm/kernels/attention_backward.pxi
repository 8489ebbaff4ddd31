# The backward of a head of attention, and how heads and tiles are shared out to the threads.
#
# Tile (i, j) of a head adds to dq of its queries after (i, j-1), and to dk and dv of its keys after (i-1, j) and after
# all tiles of the head before it in the group: so dq adds keys in ascending order, dk and dv add queries in ascending
# order, head by head. As in the forward, as many units as fill all threads are done a unit at a time. The rest go
# together, head after head of their groups, tile by tile: the tiles (or squares of tiles) with equal i + j are free of
# each other, and each sum keeps the order that it has on one thread. Where threads are many and tiles few, that leaves
# threads idle and has a parallel region for every i + j; then the blocks of keys and the blocks of queries are shared out
# instead, all at once, and each makes the p and ds that it needs for itself: seven products a tile rather than five.

cdef enum:
    FOR_KEYS = 1            # what is made of a tile: dk and dv,
    FOR_QUERIES = 2         # dq, or both


cdef void pack_keys_backward(const vec *qkv, const Attention *at, Py_ssize_t unit, Py_ssize_t block, vec *work,
                             vec *scratch) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(at, block), first = 0, stop = 0
    cdef const vec *k = place(qkv, key_place(at, unit, block), at.qkv_narrow)
    cdef vec *k_rows = plane(work, at, K_ROWS, block)
    pack_rows(k, at.stride, rows, at.head_dim, 1.0, k_rows, at.wide, at.qkv_narrow)
    pack_rows(place(k, at.kv_heads * at.head_dim, at.qkv_narrow), at.stride, rows, at.head_dim, 1.0, scratch, at.row,
              at.qkv_narrow)
    finish_keys(at, unit, block, work, k_rows)
    pack_panels(scratch, at.row, rows, at.head_dim, plane_panels(work, at, V_PANELS, block))
    if at.bounded:
        clear_rows(plane(work, at, DK, block), at.wide, rows)
        clear_rows(plane(work, at, DV, block), at.row, rows)
        find_reach(at, unit // at.kv_heads, block, &first, &stop)
        reach_of(work, at, block)[0] = <int32_t> first
        reach_of(work, at, block)[1] = <int32_t> stop


cdef void pack_queries_backward(const vec *qkv, const vec *dy, const vec *y, const Attention *at, Py_ssize_t head,
                                Py_ssize_t block, vec *work) noexcept nogil:
    cdef Py_ssize_t i, j, k, left, rows = block_rows(at, block), first = query_place(at, head, block, at.channels)
    cdef vec *dy_rows = plane(work, at, DY_ROWS, block)
    cdef vec *delta = plane(work, at, DELTA, block)
    cdef vec total[LINE_VECTORS]
    pack_queries(qkv, at, head, block, plane(work, at, Q_ROWS, block))
    pack_rows(address(dy, first), at.channels, rows, at.head_dim, 1.0, dy_rows, at.row, False)
    if at.bounded:
        clear_rows(plane(work, at, DQ, block), at.wide, rows)
    if at.crystal != NULL:
        clear_term_sums(at, work, block)
    y = place(y, first, at.y_narrow)
    for i in range(rows):
        for k in range(LINE_VECTORS):
            total[k] = splat(y, 0.0)
        for j from 0 <= j <= at.head_dim - line(y) by line(y):
            for k in range(LINE_VECTORS):
                total[k] = fma(load(dy_rows, i * at.row + j + k * lanes(y)),
                               load_as(y, i * at.channels + j + k * lanes(y), at.y_narrow), total[k])
        for k in range(LINE_VECTORS):
            left = min(at.head_dim - j - k * lanes(y), <Py_ssize_t> lanes(y))
            if left > 0:
                total[k] = fma(load(dy_rows, i * at.row + j + k * lanes(y)),
                               load_partial_as(y, i * at.channels + j + k * lanes(y), left, at.y_narrow),
                               total[k])
        put(delta, i, line_sum(<const vec *> total))


cdef void load_tile(const Attention *at, const vec *probs, Py_ssize_t head, Py_ssize_t block, Py_ssize_t key_block,
                    vec *p) noexcept nogil:
    """p of one tile from the kept probabilities, which are zero where a key is not seen."""
    cdef Py_ssize_t i
    probs = address(probs, (head * at.time + block * BLOCK) * at.time + key_block * BLOCK)
    for i in range(block_rows(at, block)):
        copy_row(address(probs, i * at.time), address(p, i * BLOCK), block_rows(at, key_block), BLOCK)


cdef void backward_tile(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head,
                        Py_ssize_t block, Py_ssize_t key_block, int wanted, vec *scratch) noexcept nogil:
    """What tile (block, key_block) adds to dq of its queries and to dk and dv of its keys, as far as wanted."""
    cdef Py_ssize_t rows = block_rows(at, block)
    # With bounds anything may come first, and sums start from zeros; without, tiles of the diagonal and of keys 0 do.
    cdef bint add_to_keys = at.bounded or block > key_block or head % at.group > 0
    cdef bint add_to_queries = at.bounded or key_block > 0
    cdef bint distance = at.crystal != NULL and at.crystal.coordinates != NULL
    cdef Span seen
    cdef vec *p = scratch
    cdef vec *ds = address(p, BLOCK * BLOCK)
    cdef vec *dy = plane(work, at, DY_ROWS, block)
    cdef vec *q = plane(work, at, Q_ROWS, block)
    cdef vec *far = address(ds, BLOCK * BLOCK)
    cdef vec *slope = address(far, BLOCK * BLOCK if distance else 0)
    if not look(at, head // at.heads, block, key_block, &seen):
        return
    if probs is NULL or at.cap != 0.0:
        score_tile(at, work, q, head, block, key_block, &seen, p, far, slope)
    elif distance:
        fall_off(at, work, head, block, key_block, &seen, <vec *> NULL, far)
    if probs is NULL:
        softmax_known(p, address(lse, head * at.time + block * BLOCK), rows, &seen)
    else:
        load_tile(at, probs, head, block, key_block, p)
    scores(dy, at.row, plane_panels(work, at, V_PANELS, key_block), at.head_dim, rows, &seen, ds)
    softmax_backward(p, plane(work, at, DELTA, block), rows, &seen, ds)
    if at.cap != 0.0:
        soften_backward(slope, rows, &seen, ds)
    if distance:
        add_falls(at, work, block, &seen, ds, far)
    if wanted & FOR_KEYS:
        mix_transposed(p, dy, at.row, rows, &seen, add_to_keys, plane(work, at, DV, key_block))
        mix_transposed(ds, q, at.wide, rows, &seen, add_to_keys, plane(work, at, DK, key_block))
    if wanted & FOR_QUERIES:
        mix(ds, plane(work, at, K_ROWS, key_block), at.wide, rows, &seen, add_to_queries, plane(work, at, DQ, block))


cdef void backward_square(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head,
                          Py_ssize_t block0, Py_ssize_t key_block0, Py_ssize_t side, vec *scratch) noexcept nogil:
    """The tiles in a square of `side` tiles that some row sees: keys, then queries, in ascending order."""
    cdef Py_ssize_t block, key_block
    for key_block in range(key_block0, min(key_block0 + side, at.blocks)):
        for block in range(block0, min(block0 + side, at.blocks)):
            if meets(work, at, block, key_block):
                backward_tile(at, work, lse, probs, head, block, key_block, FOR_KEYS | FOR_QUERIES, scratch)


cdef void unpack_queries(const Attention *at, vec *work, Py_ssize_t head, Py_ssize_t block, vec *dqkv) noexcept nogil:
    cdef vec *dq = plane(work, at, DQ, block)
    if at.crystal != NULL and at.crystal.turns:
        turn_rows(at, head // at.heads, block, True, dq)
    rotate_rows(at, head // at.heads, block, True, dq)
    unpack_rows(dq, at.wide, block_rows(at, block), at.head_dim, at.scale,
                address(dqkv, query_place(at, head, block, at.stride)), at.stride, False)


cdef void unpack_keys(const Attention *at, vec *work, Py_ssize_t unit, Py_ssize_t block, vec *dqkv) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(at, block)
    cdef vec *dk = plane(work, at, DK, block)
    if at.crystal != NULL and at.crystal.turns:
        turn_rows(at, unit // at.kv_heads, block, True, dk)
    rotate_rows(at, unit // at.kv_heads, block, True, dk)
    dqkv = address(dqkv, key_place(at, unit, block))
    unpack_rows(dk, at.wide, rows, at.head_dim, at.scale if at.qkv_narrow else 1.0, dqkv, at.stride, False)
    unpack_rows(plane(work, at, DV, block), at.row, rows, at.head_dim, 1.0, address(dqkv, at.kv_heads * at.head_dim),
                at.stride, False)


cdef void backward_unit(const vec *dy, const vec *qkv, const vec *y, const vec *lse, const vec *probs, Py_ssize_t unit,
                        const Attention *at, vec *dqkv, vec *work) noexcept nogil:
    """All of a key head and its query heads, on one thread."""
    cdef Py_ssize_t head, block
    cdef vec *scratch = address(work, at.work)
    for block in range(at.blocks):
        pack_keys_backward(qkv, at, unit, block, work, scratch)
    for head in range(unit * at.group, (unit + 1) * at.group):
        for block in range(at.blocks):
            pack_queries_backward(qkv, dy, y, at, head, block, work)
        backward_square(at, work, lse, probs, head, 0, 0, at.blocks, scratch)
        for block in range(at.blocks):
            unpack_queries(at, work, head, block, dqkv)
        sum_terms(at, work, head)
    for block in range(at.blocks):
        unpack_keys(at, work, unit, block, dqkv)


cdef inline Py_ssize_t square_side(const Attention *at) noexcept nogil:
    """Side of the squares of tiles that are one piece of work, so that the threads meet seldom: four squares along the time
    for each thread."""
    return max(<Py_ssize_t> 1, at.blocks // (4 * _threads))


cdef bint blocks_are_faster(const Attention *at, Py_ssize_t rest) noexcept nogil:
    """Whether `backward_blocks` ends before `backward_tiles`, counted in products of a tile.

    One takes about four microseconds, a parallel region of 16 threads as long. Terms of crystal.pxi add to sums of their own,
    tile by tile.
    """
    cdef Py_ssize_t side = square_side(at), squares = (at.blocks + side - 1) // side, step, items
    cdef Py_ssize_t tiles = at.blocks * (at.blocks + 1) // 2 if at.last == NULL else at.blocks * at.blocks
    cdef double waves = 0.0
    if at.crystal != NULL:
        return False
    for step in range(2 * squares - 1):
        items = rest * ((step // 2 if at.last == NULL else min(step, squares - 1))
                        - max(<Py_ssize_t> 0, step - squares + 1) + 1)
        waves += 5.0 * side * side * ((items + _threads - 1) // _threads) + _threads / 16.0
    return max(7.0 * rest * tiles / _threads, 4.0 * at.blocks) + 2.0 + _threads / 16.0 < waves


cdef void backward_block(const Attention *at, vec *work, const vec *lse, const vec *probs, Py_ssize_t head, Py_ssize_t block,
                         int wanted, vec *scratch) noexcept nogil:
    """dk and dv of a block of keys, or dq of a block of queries."""
    cdef Py_ssize_t other
    for other in range(at.blocks):
        if wanted == FOR_KEYS and meets(work, at, other, block):
            backward_tile(at, work, lse, probs, head, other, block, wanted, scratch)
        elif wanted == FOR_QUERIES and meets(work, at, block, other):
            backward_tile(at, work, lse, probs, head, block, other, wanted, scratch)


cdef void backward_blocks(const vec *lse, const vec *probs, const Attention *at, Py_ssize_t head0, Py_ssize_t rest,
                          vec *workspace) noexcept nogil:
    """One head of each of the last `rest` units: block by block, those with most tiles first."""
    cdef Py_ssize_t item, unit, place
    for item in prange(2 * rest * at.blocks, schedule="dynamic", num_threads=_threads):
        unit, place = item % rest, item // rest
        backward_block(at, share(workspace, at, unit), lse, probs, head0 + unit * at.group,
                       place // 2 if place % 2 == 0 else at.blocks - 1 - place // 2,
                       FOR_KEYS if place % 2 == 0 else FOR_QUERIES, address(share(workspace, at, threadid()), at.work))


cdef void backward_tiles(const vec *lse, const vec *probs, const Attention *at, Py_ssize_t head0, Py_ssize_t rest,
                         vec *workspace) noexcept nogil:
    """One head of each of the last `rest` units, head0, head0 + group, ...: tile by tile."""
    cdef Py_ssize_t step, first, last, item, side = square_side(at), squares = (at.blocks + side - 1) // side
    for step in range(2 * squares - 1):
        first = max(<Py_ssize_t> 0, step - squares + 1)  # keys of square first .. last meet queries of step - that
        last = step // 2 if at.last == NULL else min(step, squares - 1)
        for item in prange(rest * (last - first + 1), schedule="dynamic", num_threads=_threads):
            backward_square(at, share(workspace, at, item % rest), lse, probs, head0 + item % rest * at.group,
                            (step - first - item // rest) * side, (first + item // rest) * side, side,
                            address(share(workspace, at, threadid()), at.work))


cdef void backward_heads(const vec *dy, const vec *qkv, const vec *y, const vec *lse, const vec *probs,
                         Py_ssize_t n_units, const Attention *at, vec *dqkv, vec *workspace) noexcept nogil:
    cdef Py_ssize_t unit, head0, item, alone = n_units - n_units % _threads, rest = n_units % _threads
    for unit in prange(alone, schedule="dynamic", num_threads=_threads):
        backward_unit(dy, qkv, y, lse, probs, unit, at, dqkv, share(workspace, at, threadid()))
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_keys_backward(qkv, at, alone + item % rest, item // rest, share(workspace, at, item % rest),
                           address(share(workspace, at, threadid()), at.work))
    for head0 in range(alone * at.group, (alone + 1) * at.group):
        for item in prange(rest * at.blocks, num_threads=_threads):
            pack_queries_backward(qkv, dy, y, at, head0 + item % rest * at.group, item // rest,
                                  share(workspace, at, item % rest))
        if blocks_are_faster(at, rest):
            backward_blocks(lse, probs, at, head0, rest, workspace)
        else:
            backward_tiles(lse, probs, at, head0, rest, workspace)
        for item in prange(rest * at.blocks, num_threads=_threads):
            unpack_queries(at, share(workspace, at, item % rest), head0 + item % rest * at.group, item // rest, dqkv)
        for item in range(rest):
            sum_terms(at, share(workspace, at, item), head0 + item * at.group)
    for item in prange(rest * at.blocks, num_threads=_threads):
        unpack_keys(at, share(workspace, at, item % rest), alone + item % rest, item // rest, dqkv)
