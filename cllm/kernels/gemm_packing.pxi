# A product of two matrices, and its operands packed for the tiles that make it: as elements, rounded or not (gemm_tile.pxi),
# or as words of two k (pair_packing.pxi).

cdef enum:
    # Rows of A packed at once where its rows are k: whole cache lines of each row of the source are used up.
    GROUP_ROWS = 48

cdef enum:
    # How a product rounds its operands to bfloat16 and sums them; 0 is not at all.
    IN_CHAINS = 1
    IN_UNITS = 2


cdef struct Product:
    # C[m, n] = start + A B: a pointer, the step to the next row, the step to the next column, in elements
    const void *a
    Py_ssize_t a_row
    Py_ssize_t a_col
    const void *b
    Py_ssize_t b_row
    Py_ssize_t b_col
    void *c
    Py_ssize_t c_row
    const void *bias       # the chain starts at this row, whatever the row of C, or
    bint accumulate        # at what C holds, or at zero
    void *sums             # += B[0, n] + B[1, n] + ..., in this order, of a B as wide as C with columns one apart; or NULL
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t depth
    # Operands are rounded to bfloat16 while they are packed, and summed in chains or in units (see matmul.pxi); those that
    # are so already say `narrow`, as does a C that is rounded in the end. `way` of pairs.pxi is filled in by multiply_piece.
    int rounds
    bint a_narrow, b_narrow, c_narrow
    Py_ssize_t sequence         # units begin anew after each so many k; 0 is never
    const StoredMatrix *stored  # what B is read from, b being no address then: its rows are B's, or
    bint stored_turned          # B's columns,
    Py_ssize_t stored_column    # and B's first column is this one
    int way
    Py_ssize_t block            # bytes of a block of B, filled in by `multiply` and `block_multiply`


cdef inline Py_ssize_t steps_of(const Product *p, Py_ssize_t depth) noexcept nogil:
    """Elements or words of so many k, in each row or column that is packed."""
    return (depth + 1) // 2 if in_pairs(p.way) else depth


cdef inline void pack_stored(const Product *p, Py_ssize_t k0, Py_ssize_t depth, Py_ssize_t column0, Py_ssize_t column1,
                             Py_ssize_t full, int vectors, vec *block) noexcept nogil:
    """A block of B whose last panel, behind `full` columns, has `vectors` vectors."""
    cdef Py_ssize_t tile_columns = TILE_VECTORS * lanes(block)
    cdef Py_ssize_t first = p.stored_column + column0, j = 0
    if vec is vf32:
        if not p.stored_turned:
            pack_stored_rows(p.stored, k0, first, full, TILE_VECTORS, depth, block)
            pack_stored_rows(p.stored, k0, first + full, column1 - column0 - full, vectors, depth,
                             address(block, full * depth))
            return
        while j < full:
            pack_stored_columns(p.stored, first + j, k0, tile_columns, depth, tile_columns, address(block, j * depth))
            j += tile_columns
        pack_stored_columns(p.stored, first + full, k0, column1 - column0 - full, depth, vectors * lanes(block),
                            address(block, full * depth))


cdef inline void pack_right_elements(const Product *p, Py_ssize_t k0, Py_ssize_t depth, Py_ssize_t column0,
                                     Py_ssize_t column1, Py_ssize_t full, int vectors, vec *block) noexcept nogil:
    """A block of B, as pack_stored; rounded where the product is."""
    cdef const vec *b = place(<const vec*> p.b, k0 * p.b_row + column0 * p.b_col, p.b_narrow)
    cdef Py_ssize_t tile_columns = TILE_VECTORS * lanes(block), j = 0
    if p.stored != NULL:
        pack_stored(p, k0, depth, column0, column1, full, vectors, block)
    elif p.b_col == 1:
        pack_right_rows(b, p.b_row, full, TILE_VECTORS, depth, p.b_narrow, block)
        pack_right_rows(place(b, full, p.b_narrow), p.b_row, column1 - column0 - full, vectors, depth, p.b_narrow,
                        address(block, full * depth))
    else:
        while j < full:
            pack_right_columns(address(b, j * p.b_col), p.b_col, tile_columns, depth, tile_columns,
                               address(block, j * depth))
            j += tile_columns
        pack_right_columns(address(b, full * p.b_col), p.b_col, column1 - column0 - full, depth,
                           vectors * lanes(block), address(block, full * depth))
    if p.rounds and not p.b_narrow:
        round_elements(block, (full + vectors * lanes(block)) * depth)


cdef inline void pack_right(const Product *p, Py_ssize_t k0, Py_ssize_t depth, Py_ssize_t column0, Py_ssize_t column1,
                            vec *block) noexcept nogil:
    """A block of B, columns column0 .. column1-1 of k0 .. k0+depth-1: panels of TILE_VECTORS vectors, the last of fewer."""
    cdef Py_ssize_t width = TILE_VECTORS * lanes(block), pairs = (depth + 1) // 2, j
    cdef Py_ssize_t full = (column1 - column0) // width * width, rest = column1 - column0 - full
    cdef int vectors = <int> ((rest + lanes(block) - 1) // lanes(block))
    cdef const vf32 *b
    cdef uint32_t *words = <uint32_t*> block
    if not in_pairs(p.way) or p.stored != NULL:
        pack_right_elements(p, k0, depth, column0, column1, full, vectors, block)
        if in_pairs(p.way):
            for j from 0 <= j < full by width:
                join_rows(words + j * depth, width, depth, words + j * pairs)
            join_rows(words + full * depth, vectors * lanes(block), depth, words + full * pairs)
        return
    b = place(<const vf32*> p.b, k0 * p.b_row + column0 * p.b_col, p.b_narrow)
    if p.b_col == 1:
        pack_right_pairs_rows(p.way, b, p.b_row, full, TILE_VECTORS, depth, p.b_narrow, words)
        pack_right_pairs_rows(p.way, place(b, full, p.b_narrow), p.b_row, rest, vectors, depth, p.b_narrow,
                              words + full * pairs)
    else:
        for j from 0 <= j < full by width:
            pack_right_pairs_columns(p.way, address(b, j * p.b_col), p.b_col, width, depth, width, words + j * pairs)
        pack_right_pairs_columns(p.way, address(b, full * p.b_col), p.b_col, rest, depth, vectors * lanes(block),
                                 words + full * pairs)


cdef inline void pack_left(const Product *p, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t k0, Py_ssize_t depth,
                           vec *group) noexcept nogil:
    """Rows row .. row+rows-1 of A, of k0 .. k0+depth-1: one panel where its k are contiguous, else as many as hold them."""
    cdef const vec *a = place(<const vec*> p.a, row * p.a_row + k0 * p.a_col, p.a_narrow)
    cdef bint by_rows = p.a_col == 1
    cdef Py_ssize_t i
    if in_pairs(p.way):
        if by_rows:
            pack_left_pairs_rows(p.way, <const vf32*> a, p.a_row, rows, depth, p.a_narrow, <uint32_t*> group)
        else:
            pack_left_pairs_columns(p.way, <const vf32*> a, p.a_col, rows, depth, p.a_narrow, <uint32_t*> group)
        return
    if not by_rows:
        pack_left_columns(a, p.a_col, rows, depth, p.a_narrow, group)
        if p.rounds and not p.a_narrow:
            round_elements(group, (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS * depth)
        return
    pack_left_rows(a, p.a_row, rows, depth, p.a_narrow, group)
    if p.rounds and not p.a_narrow:
        for i in range(rows):
            round_elements(address(group, i * (PITCH_BYTES // (VECTOR_BYTES // lanes(group)))), depth)
