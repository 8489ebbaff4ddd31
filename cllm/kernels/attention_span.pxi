# Which keys a query sees: first[i] .. last[i] of its sequence, from 0 and up to i where nothing else is said.
#
# One pair of arrays says causal attention, a window (first = i - W + 1), attention in both directions (last = end of the
# sequence) and a window on both sides. Where a sequence holds several documents, positions that count from 0 in each say
# where its document begins, i - positions[i], before which it sees nothing: with `first`, the later of the two. A tile that
# no row sees is skipped, so a window of W keys costs T x W; a tile that every row sees whole is not masked; in the others
# each row sees a range of keys. A row that sees no key has y = 0.

cdef struct Span:
    bint whole              # all rows see all of a full tile; nothing below is then filled in
    int start[BLOCK]        # row i sees keys start[i] .. stop[i]-1 of the tile
    int stop[BLOCK]
    # Of each group of ROWS rows: no key outside some_start .. some_stop-1 is seen by any; all_start .. all_stop-1 are seen
    # by all, a multiple of ROWS and never before all_start.
    int some_start[BLOCK]
    int some_stop[BLOCK]
    int all_start[BLOCK]
    int all_stop[BLOCK]
    # Of each group of ROWS keys: the first row that sees one of them, and the one after the last.
    int first_row[BLOCK]
    int stop_row[BLOCK]


cdef bint look(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, Py_ssize_t key_block,
               Span *seen) noexcept nogil:
    """What the queries of a block see of a block of keys; false where it is nothing."""
    if at.bounded:
        return look_closely(at, sequence, block, key_block, seen)
    seen.whole = key_block < block
    if key_block == block:
        look_back(block_rows(at, block), seen)
    return key_block <= block


cdef void look_back(Py_ssize_t rows, Span *seen) noexcept nogil:
    """The tile on the diagonal, each row of which sees up to itself."""
    cdef int i
    for i in range(<int> rows):
        seen.start[i], seen.stop[i] = 0, i + 1
    for i in range(BLOCK // ROWS):
        seen.some_start[i], seen.some_stop[i] = 0, min((i + 1) * ROWS, <int> rows)
        seen.all_start[i], seen.all_stop[i] = 0, i * ROWS
        seen.first_row[i], seen.stop_row[i] = i * ROWS, <int> rows


cdef inline Py_ssize_t lowest_key(const Attention *at, Py_ssize_t sequence, Py_ssize_t row) noexcept nogil:
    """The first key that a row sees."""
    cdef Py_ssize_t low = at.first[sequence * at.first_step + row] if at.first != NULL else 0
    if at.documents:
        low = max(low, row - at.positions[sequence * at.positions_step + row])
    return low


cdef bint look_closely(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, Py_ssize_t key_block,
                       Span *seen) noexcept nogil:
    """Any tile, from the bounds of its rows."""
    cdef Py_ssize_t rows = block_rows(at, block), keys = block_rows(at, key_block)
    cdef Py_ssize_t row0 = block * BLOCK, key0 = key_block * BLOCK, i, k, low, high
    cdef bint some = False
    seen.whole = keys == BLOCK
    for k in range(BLOCK // ROWS):
        seen.some_start[k], seen.some_stop[k] = BLOCK, 0
        seen.all_start[k], seen.all_stop[k] = 0, BLOCK
        seen.first_row[k], seen.stop_row[k] = BLOCK, 0
    for i in range(rows):
        low = lowest_key(at, sequence, row0 + i) - key0
        high = (at.last[sequence * at.last_step + row0 + i] if at.last != NULL else row0 + i) + 1 - key0
        low = min(max(low, 0), keys)
        high = max(min(high, keys), low)
        seen.start[i], seen.stop[i] = <int> low, <int> high
        seen.whole = seen.whole and high - low == BLOCK
        k = i // ROWS
        seen.all_start[k] = max(seen.all_start[k], <int> low)
        seen.all_stop[k] = min(seen.all_stop[k], <int> high)
        if low < high:
            some = True
            seen.some_start[k] = min(seen.some_start[k], <int> low)
            seen.some_stop[k] = max(seen.some_stop[k], <int> high)
            for k in range(low // ROWS, (high + ROWS - 1) // ROWS):
                seen.first_row[k] = min(seen.first_row[k], <int> i)
                seen.stop_row[k] = <int> i + 1
    for k in range((rows + ROWS - 1) // ROWS):
        seen.all_stop[k] = max(seen.all_start[k], seen.all_stop[k] // ROWS * ROWS)
    return some


cdef void find_reach(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, Py_ssize_t *first,
                     Py_ssize_t *stop) noexcept nogil:
    """Key blocks first .. stop-1 hold all that the queries of a block see."""
    cdef Py_ssize_t i, low = at.time, high = -1, row0 = block * BLOCK
    first[0], stop[0] = 0, block + 1
    if at.first != NULL or at.documents:
        for i in range(row0, row0 + block_rows(at, block)):
            low = min(low, lowest_key(at, sequence, i))
        first[0] = max(low, 0) // BLOCK
    if at.last != NULL:
        for i in range(row0, row0 + block_rows(at, block)):
            high = max(high, <Py_ssize_t> at.last[sequence * at.last_step + i])
        stop[0] = min(high // BLOCK + 1, at.blocks) if high >= 0 else 0


cdef inline int32_t *reach_of(const vec *work, const Attention *at, Py_ssize_t block) noexcept nogil:
    """Where the backward keeps `find_reach` of each block."""
    return <int32_t *> address(work, at.reach + 2 * block)


cdef inline bint meets(const vec *work, const Attention *at, Py_ssize_t block, Py_ssize_t key_block) noexcept nogil:
    cdef const int32_t *reach
    if not at.bounded:
        return key_block <= block
    reach = reach_of(work, at, block)
    return reach[0] <= key_block < reach[1]


cdef inline Py_ssize_t vectors_from(Py_ssize_t start, Py_ssize_t n_lanes) noexcept nogil:
    """A row that sees keys start .. stop-1 is used from here, in whole vectors."""
    return start // n_lanes * n_lanes


cdef inline Py_ssize_t vectors_to(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t n_lanes) noexcept nogil:
    """Up to here; nothing of a row that sees no key."""
    return round_up(stop, n_lanes) if start < stop else 0


cdef inline void row_vectors(const Span *seen, Py_ssize_t i, Py_ssize_t n_lanes, Py_ssize_t *begin,
                             Py_ssize_t *end) noexcept nogil:
    """Where row i of a tile is used, in whole vectors."""
    begin[0], end[0] = 0, BLOCK
    if not seen.whole:
        begin[0] = vectors_from(seen.start[i], n_lanes)
        end[0] = vectors_to(seen.start[i], seen.stop[i], n_lanes)
