# Forward and kept probabilities: a block of queries of one head, and how heads and blocks are shared out to the threads.
#
# As many units (key heads, attention_layout.pxi) as fill all threads are done a unit at a time, one thread each; of the
# rest, the blocks of queries of all heads are shared out.


cdef void pack_keys(const vec *qkv, const Attention *at, Py_ssize_t unit, Py_ssize_t block, vec *work,
                    vec *scratch) noexcept nogil:
    """Rows first, one after the other, since they come from far; then the transpose of what lies near."""
    cdef Py_ssize_t rows = block_rows(at, block)
    cdef const vec *k = place(qkv, key_place(at, unit, block), at.qkv_narrow)
    pack_rows(k, at.stride, rows, at.head_dim, 1.0, scratch, at.wide, at.qkv_narrow)
    pack_rows(place(k, at.kv_heads * at.head_dim, at.qkv_narrow), at.stride, rows, at.head_dim, 1.0,
              plane(work, at, V_PANELS, block), at.row, at.qkv_narrow)
    finish_keys(at, unit, block, work, scratch)


cdef inline void finish_keys(const Attention *at, Py_ssize_t unit, Py_ssize_t block, vec *work,
                             vec *k_rows) noexcept nogil:
    """Turn packed rows of k, add what the terms want, and lay them out in panels."""
    rotate_rows(at, unit // at.kv_heads, block, False, k_rows)
    if at.crystal != NULL:
        add_key_terms(at, unit, block, k_rows, work)
    pack_panels(k_rows, at.wide, block_rows(at, block), at.depth, plane_panels(work, at, K_PANELS, block))


cdef inline void pack_queries(const vec *qkv, const Attention *at, Py_ssize_t head, Py_ssize_t block,
                              vec *q_rows) noexcept nogil:
    pack_rows(place(qkv, query_place(at, head, block, at.stride), at.qkv_narrow), at.stride, block_rows(at, block),
              at.head_dim, 1.0 if at.qkv_narrow else at.scale, q_rows, at.wide, at.qkv_narrow)
    rotate_rows(at, head // at.heads, block, False, q_rows)
    if at.crystal != NULL:
        add_query_terms(at, head, block, q_rows)


cdef void scale_scores(double scale, Py_ssize_t rows, vec *s) noexcept nogil:
    cdef Py_ssize_t i
    cdef vec factor = splat(s, scale)
    for i from 0 <= i < rows * BLOCK by lanes(s):
        store(s, i, load(s, i) * factor)


cdef void score_tile(const Attention *at, const vec *work, const vec *q_rows, Py_ssize_t head, Py_ssize_t block,
                     Py_ssize_t key_block, const Span *seen, vec *s, vec *far, vec *slope) noexcept nogil:
    """The scores of a tile; with distances their logarithms into `far`, with a soft cap its slope into `slope`."""
    cdef Py_ssize_t rows = block_rows(at, block)
    scores(q_rows, at.wide, plane_panels(work, at, K_PANELS, key_block), at.depth, rows, seen, s)
    if at.qkv_narrow:
        scale_scores(at.scale, rows, s)
    if at.crystal != NULL and at.crystal.coordinates != NULL:
        fall_off(at, work, head, block, key_block, seen, s, far)
    if at.cap != 0.0:
        soften(at.cap, rows, seen, s, slope)


cdef void forward_block(const Attention *at, const vec *qkv, const vec *work, Py_ssize_t head, Py_ssize_t block,
                        vec *own, vec *y, vec *lse) noexcept nogil:
    """y and lse of one tile of queries; `own` are the thread's own planes and tiles."""
    cdef Py_ssize_t i, j, k, first, stop, tiles, rows = block_rows(at, block), sequence = head // at.heads
    cdef Span seen[STRETCH]
    cdef Py_ssize_t keys[STRETCH]
    cdef vec *q_rows = plane(own, at, Q_ROWS, 0)
    cdef vec *s = address(own, at.work)
    cdef vec *out = address(s, at.tiles * BLOCK * BLOCK)
    cdef vec *total = address(out, BLOCK * at.row)
    cdef vec *top = address(total, BLOCK * line(s))
    cdef double weight
    pack_queries(qkv, at, head, block, q_rows)
    if at.bounded:
        clear_rows(out, at.row, rows)
    clear_rows(total, line(s), rows)
    for i in range(rows):
        put(top, i, -INFINITY)
    find_reach(at, sequence, block, &first, &stop)
    for k from first // STRETCH * STRETCH <= k < stop by STRETCH:
        tiles = 0
        for j in range(max(k, first), min(k + STRETCH, stop)):
            if look(at, sequence, block, j, &seen[tiles]):
                score_tile(at, work, q_rows, head, block, j, &seen[tiles], address(s, tiles * BLOCK * BLOCK),
                           <vec *> NULL, <vec *> NULL)
                keys[tiles] = j
                tiles += 1
        softmax_online(s, rows, tiles, seen, top, total, out, at.row)
        for i in range(tiles):
            mix(address(s, i * BLOCK * BLOCK), plane(work, at, V_PANELS, keys[i]), at.row, rows, &seen[i],
                keys[i] > 0 or at.bounded, out)
    y = place(y, query_place(at, head, block, at.channels), at.y_narrow)
    lse = address(lse, head * at.time + block * BLOCK)
    for i in range(rows):
        weight = line_sum(address(total, i * line(s)))
        put(lse, i, element(top, i) + log(weight))
        unpack_rows(address(out, i * at.row), at.row, 1, at.head_dim, 1.0 / weight if weight != 0.0 else 0.0,
                    place(y, i * at.channels, at.y_narrow), at.channels, at.y_narrow)


cdef void forward_heads(const vec *qkv, Py_ssize_t n_units, const Attention *at, vec *y, vec *lse,
                        vec *workspace) noexcept nogil:
    cdef Py_ssize_t unit, item, block, head, alone = n_units - n_units % _threads, rest = n_units % _threads
    cdef Py_ssize_t heads = rest * at.group
    cdef vec *work
    for unit in prange(alone, schedule="dynamic", num_threads=_threads):
        work = share(workspace, at, threadid())
        for block in range(at.blocks):
            pack_keys(qkv, at, unit, block, work, address(work, at.work))
        for head in range(unit * at.group, (unit + 1) * at.group):
            for block in range(at.blocks):
                forward_block(at, qkv, work, head, block, work, y, lse)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_keys(qkv, at, alone + item % rest, item // rest, share(workspace, at, item % rest),
                  address(share(workspace, at, threadid()), at.work))
    for item in prange(heads * at.blocks, schedule="dynamic", num_threads=_threads):  # the longest rows first
        forward_block(at, qkv, share(workspace, at, item % heads // at.group), alone * at.group + item % heads,
                      at.blocks - 1 - item // heads, share(workspace, at, threadid()), y, lse)


# --- kept probabilities -----------------------------------------------------------------------------------------------

cdef void copy_row(const vec *x, vec *y, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    """The first n of `length` elements, zero in the others."""
    cdef Py_ssize_t j, left
    for j from 0 <= j < length by lanes(x):
        left = max(<Py_ssize_t> 0, min(n - j, <Py_ssize_t> lanes(x)))
        store_partial(y, j, load_partial(x, j, left), min(length - j, <Py_ssize_t> lanes(x)))


cdef void probabilities_block(const Attention *at, const vec *qkv, const vec *work, const vec *lse, Py_ssize_t head,
                              Py_ssize_t block, vec *own, vec *probs) noexcept nogil:
    """All of p for one tile of queries, zero where a key is not seen."""
    cdef Py_ssize_t i, j, first, stop, rows = block_rows(at, block), sequence = head // at.heads, keys
    cdef Span seen
    cdef vec *q_rows = plane(own, at, Q_ROWS, 0)
    cdef vec *p = address(own, at.work)
    cdef bint some
    probs = address(probs, (head * at.time + block * BLOCK) * at.time)
    pack_queries(qkv, at, head, block, q_rows)
    find_reach(at, sequence, block, &first, &stop)
    for j in range(at.blocks):
        keys = block_rows(at, j)
        some = first <= j < stop and look(at, sequence, block, j, &seen)
        if some:
            score_tile(at, work, q_rows, head, block, j, &seen, p, <vec *> NULL, <vec *> NULL)
            softmax_known(p, address(lse, head * at.time + block * BLOCK), rows, &seen)
        for i in range(rows):
            copy_row(address(p, i * BLOCK), address(probs, i * at.time + j * BLOCK), keys if some else 0, keys)


cdef void probabilities_heads(const vec *qkv, const vec *lse, Py_ssize_t n_units, const Attention *at, vec *probs,
                              vec *workspace) noexcept nogil:
    cdef Py_ssize_t unit, item, block, head, alone = n_units - n_units % _threads, rest = n_units % _threads
    cdef Py_ssize_t heads = rest * at.group
    cdef vec *work
    for unit in prange(alone, schedule="dynamic", num_threads=_threads):
        work = share(workspace, at, threadid())
        for block in range(at.blocks):
            pack_keys(qkv, at, unit, block, work, address(work, at.work))
        for head in range(unit * at.group, (unit + 1) * at.group):
            for block in range(at.blocks):
                probabilities_block(at, qkv, work, lse, head, block, work, probs)
    if rest == 0:
        return
    for item in prange(rest * at.blocks, num_threads=_threads):
        pack_keys(qkv, at, alone + item % rest, item // rest, share(workspace, at, item % rest),
                  address(share(workspace, at, threadid()), at.work))
    for item in prange(heads * at.blocks, schedule="dynamic", num_threads=_threads):
        probabilities_block(at, qkv, share(workspace, at, item % heads // at.group), lse, alone * at.group + item % heads,
                            at.blocks - 1 - item // heads, share(workspace, at, threadid()), probs)
