# A matrix product of any size, cut into the tiles of gemm_tile.pxi and shared out over threads.
#
#     C[m, n] = start[m, n] + sum over k, in order, of A[m, k] B[k, n]
#
# A product is cut like this; M, N and K are its rows, columns and depth, and everything in brackets is packed:
#
#     strip of columns that keeps C in level 3 > block of k > block of columns [B]
#         > group of rows [A: panels of TILE_ROWS] > panel > tile

cdef enum:
    # Columns of C are taken in strips of about this many bytes, which stay in level 3 from one block of k to the next.
    STRIP_BYTES = 8 << 20
    # Work that is worth waking a thread for: 2^19 multiply-adds take about 10 microseconds, a parallel region 2 to 5.
    THREAD_WORK = 1 << 19
    # A product is shared out in at most so many shares a thread, while none is narrower than so many bytes or lower than
    # so many rows: every block packs A again, every share of rows B.
    SHARES = 4
    SHARE_BYTES = 1152
    SHARE_ROWS = 192
    # Rows of a C in bfloat16 that rest in float32 until their chains have ended: every block of B is packed once for so
    # many, and so many of so many columns are 576 KiB.
    REST_ROWS = 384
    REST_BYTES = 1536

cdef struct Ahead:
    # What the next panels of A will be packed from. It is fetched to level 2 a few rows at a time, between the tiles,
    # so that packing need not wait for level 3 or memory.
    const void *start
    Py_ssize_t row_bytes    # step to the next row
    Py_ssize_t rows
    Py_ssize_t nbytes       # of a row


cdef inline void fetch_share(const Ahead *ahead, Py_ssize_t share, Py_ssize_t shares) noexcept nogil:
    """Ask for one of `shares` equal parts of the rows."""
    cdef Py_ssize_t i
    for i in range(ahead.rows * share // shares, ahead.rows * (share + 1) // shares):
        fetch_row(<const char*> ahead.start + i * ahead.row_bytes, ahead.nbytes)


cdef inline Py_ssize_t left_room(Py_ssize_t depth, int itemsize) noexcept nogil:
    """Elements of a packed group of A, whichever way its rows lie."""
    return max(<Py_ssize_t> TILE_ROWS * (PITCH_BYTES // itemsize), GROUP_ROWS * depth)


cdef inline Py_ssize_t even_step(Py_ssize_t length, Py_ssize_t most, Py_ssize_t unit) noexcept nogil:
    """The length of equal parts, each a multiple of `unit` and at most `most`, that make up `length`."""
    cdef Py_ssize_t parts = max((length + most - 1) // most, <Py_ssize_t> 1)
    return max(((length + parts - 1) // parts + unit - 1) // unit * unit, unit)


cdef inline Py_ssize_t block_width(Py_ssize_t steps, Py_ssize_t itemsize, Py_ssize_t block) noexcept nogil:
    """Columns of a block of B of so many bytes, whole tiles of them, that is so many elements or words deep."""
    cdef Py_ssize_t tile = TILE_VECTORS * VECTOR_BYTES // itemsize
    cdef Py_ssize_t most = min(<Py_ssize_t> WIDTH_BYTES, block // max(steps, <Py_ssize_t> 1)) // itemsize
    return max(most // tile * tile, tile)


cdef inline Py_ssize_t block_steps(Py_ssize_t steps, Py_ssize_t columns, Py_ssize_t itemsize, Py_ssize_t unit,
                                   Py_ssize_t block) noexcept nogil:
    """How deep a block of B is where all of k are so many elements or words: a multiple of `unit`.

    A is packed once for each block of columns, and that costs more than another visit to C: so where neither all of k
    nor all columns fit into the deepest block, it is less deep and wider.
    """
    cdef Py_ssize_t most = DEPTH_BYTES // itemsize
    if steps > most and columns > block_width(most, itemsize, block):
        most = USUAL_DEPTH_BYTES // itemsize
    return even_step(steps, most, unit)


cdef inline Py_ssize_t piece_workspace(Py_ssize_t columns, Py_ssize_t depth, int itemsize) noexcept nogil:
    """Elements that one call of multiply_piece needs: rows for edge tiles, a group of A, a block of B."""
    cdef Py_ssize_t tile = TILE_VECTORS * VECTOR_BYTES // itemsize
    cdef Py_ssize_t deep = min(<Py_ssize_t> DEPTH_BYTES // itemsize, depth)
    return ((TILE_ROWS + 1) * tile + left_room(deep, itemsize)
            + min(<Py_ssize_t> BLOCK_BYTES // itemsize, deep * ((columns + tile - 1) // tile * tile)))


cdef inline Py_ssize_t rest_width(Py_ssize_t columns, int itemsize) noexcept nogil:
    """Columns of a C in bfloat16 that rest in float32 at once."""
    cdef Py_ssize_t tile = TILE_VECTORS * VECTOR_BYTES // itemsize
    return min(<Py_ssize_t> REST_BYTES // itemsize, (columns + tile - 1) // tile * tile)


cdef inline Py_ssize_t rest_room(Py_ssize_t rows, Py_ssize_t columns, int itemsize) noexcept nogil:
    """Elements of room for them."""
    return min(<Py_ssize_t> REST_ROWS, rows) * rest_width(columns, itemsize)


cdef inline Py_ssize_t product_workspace(const Product *p, int itemsize) noexcept nogil:
    """Elements that one thread needs for a product."""
    return (piece_workspace(p.columns, p.depth, itemsize)
            + (rest_room(p.rows, p.columns, itemsize) if p.c_narrow else 0))


cdef inline void multiply_panel(const Product *p, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t row1, Py_ssize_t column0,
                                Py_ssize_t column1, Py_ssize_t k0, Py_ssize_t depth, const vec *panel,
                                const vec *block, const Ahead *ahead, vec *edge) noexcept nogil:
    """The tiles of one panel of rows, of all before row1, with all columns of one block of B.

    `edge` has TILE_ROWS rows of a tile, where one that is not full is run, and a row of zeros behind them.
    """
    cdef Py_ssize_t tile_columns = TILE_VECTORS * lanes(edge)
    cdef bint by_rows = p.a_col == 1
    cdef bint ends = p.rounds and not in_pairs(p.way) and k0 + depth == p.depth     # such a sum ends with + 0
    cdef const vec *zeros = address(edge, TILE_ROWS * tile_columns)
    cdef Py_ssize_t j = column0
    cdef Py_ssize_t columns, i, v, n, start_row
    cdef int vectors
    cdef vec *c
    cdef const vec *next
    cdef const vec *start
    cdef Py_ssize_t steps = steps_of(p, depth)
    cdef Py_ssize_t tile = 0, tiles = (column1 - column0 + tile_columns - 1) // tile_columns
    while j < column1:
        fetch_share(ahead, tile, tiles)
        tile += 1
        columns = min(tile_columns, column1 - j)
        vectors = <int> ((columns + lanes(edge) - 1) // lanes(edge))
        c = address(<vec*> p.c, row * p.c_row + j)
        # The tile that follows, as far as there is one: what lies behind it may be another thread's, which is writing there.
        next = c
        if j + columns < column1:
            next = address(c, min(columns, column1 - j - vectors * lanes(edge)))
        elif row + rows < row1:
            next = address(<vec*> p.c, (row + rows) * p.c_row + column0)
        if k0 > 0 or p.accumulate:
            start = c
            start_row = p.c_row
        elif p.bias != NULL:
            start = address(<const vec*> p.bias, j)
            start_row = 0
        else:
            start = zeros
            start_row = 0
        if columns == vectors * lanes(edge):
            product_tile(p.way, rows, vectors, by_rows, panel, block, steps, start, start_row, c, p.c_row, next)
            if ends:
                gemm_tile(rows, vectors, False, zeros, zeros, 1, c, p.c_row, c, p.c_row, next)
        else:
            n = columns - (vectors - 1) * lanes(edge)
            for i in range(rows):
                for v in range(vectors):
                    store(edge, i * tile_columns + v * lanes(edge),
                          load_partial(start, i * start_row + v * lanes(edge),
                                       n if v == vectors - 1 else <Py_ssize_t> lanes(edge)))
            product_tile(p.way, rows, vectors, by_rows, panel, block, steps, edge, tile_columns, edge, tile_columns, next)
            if ends:
                gemm_tile(rows, vectors, False, zeros, zeros, 1, edge, tile_columns, edge, tile_columns, next)
            for i in range(rows):
                for v in range(vectors):
                    store_partial(c, i * p.c_row + v * lanes(edge), load(edge, i * tile_columns + v * lanes(edge)),
                                  n if v == vectors - 1 else <Py_ssize_t> lanes(edge))
        block = address(block, steps * vectors * lanes(edge))
        j += columns


cdef inline void multiply_block(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0,
                                Py_ssize_t column1, Py_ssize_t k0, Py_ssize_t depth, vec *workspace) noexcept nogil:
    """Pack a block of B, columns column0 .. column1-1 of k0 .. k0+depth-1, and multiply all rows of A with it."""
    cdef vec *edge = workspace
    cdef vec *group = address(edge, (TILE_ROWS + 1) * TILE_VECTORS * lanes(workspace))
    cdef Py_ssize_t steps = steps_of(p, depth), row = row0, j, rows, end, k
    cdef vec *block = address(group, left_room(steps, VECTOR_BYTES // lanes(workspace)))
    cdef Py_ssize_t a_bytes = sizeof(uint16_t) if p.a_narrow else VECTOR_BYTES // lanes(workspace)
    cdef Ahead ahead
    pack_right(p, k0, depth, column0, column1, block)
    if vec is vf32:
        if in_tiles(p.way):
            multiply_tiles(p, row0, row1, column0, column1, k0, depth, <uint32_t*> group, <float*> block)
            return
    while row < row1:
        if p.a_col == 1:
            rows = tile_height(row1 - row)
            pack_left(p, row, rows, k0, depth, group)
            ahead.start = place(<const vec*> p.a, (row + rows) * p.a_row + k0, p.a_narrow)
            ahead.row_bytes = p.a_row * a_bytes
            ahead.rows = min(<Py_ssize_t> TILE_ROWS, row1 - row - rows)
            ahead.nbytes = depth * a_bytes
            multiply_panel(p, row, rows, row1, column0, column1, k0, depth, group, block, &ahead, edge)
            row += rows
        else:
            end = min(row + GROUP_ROWS, row1)
            pack_left(p, row, end - row, k0, depth, group)
            ahead.row_bytes = p.a_col * a_bytes
            ahead.nbytes = min(<Py_ssize_t> GROUP_ROWS, row1 - end) * a_bytes
            j = 0
            while row < end:
                # The tiles of a low last panel (4 + 2 + 1 rows) all read it from its own row on.
                rows = tile_height(end - row)
                # Each panel of this group asks for its part of the rows of the next.
                k = depth * j // GROUP_ROWS
                ahead.start = place(<const vec*> p.a, end + (k0 + k) * p.a_col, p.a_narrow)
                ahead.rows = depth * (j + rows) // GROUP_ROWS - k
                multiply_panel(p, row, rows, row1, column0, column1, k0, depth,
                               address(group, j // TILE_ROWS * TILE_ROWS * steps + j % TILE_ROWS), block, &ahead, edge)
                row += rows
                j += rows


cdef void multiply_wide(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0, Py_ssize_t column1,
                        vec *workspace) noexcept nogil:
    """Rows row0 .. row1-1 and columns column0 .. column1-1 of the product, whose C is not in bfloat16."""
    cdef Py_ssize_t itemsize = VECTOR_BYTES // lanes(workspace)
    cdef Py_ssize_t tile_columns = TILE_VECTORS * lanes(workspace)
    # Words of two k, but not where B becomes words only after it has been packed.
    cdef Py_ssize_t step = 2 if in_pairs(p.way) and p.stored == NULL else 1
    cdef Py_ssize_t k_step = step * block_steps(((p.sequence if p.sequence else p.depth) + step - 1) // step, column1 - column0,
                                                itemsize, UNIT if p.rounds == IN_UNITS else lanes(workspace), p.block)
    cdef Py_ssize_t most = block_width((min(k_step, p.depth) + step - 1) // step, itemsize, p.block)
    cdef Py_ssize_t strip_step = max(STRIP_BYTES // itemsize // max(row1 - row0, <Py_ssize_t> 1) // most, 1) * most
    cdef Py_ssize_t strip, strip_end, j, j_step, k, deep, i
    if row0 >= row1:
        return
    for i in range(TILE_VECTORS):
        store(workspace, (TILE_ROWS * TILE_VECTORS + i) * lanes(workspace), splat(workspace, 0.0))
    strip = column0
    while strip < column1:
        strip_end = min(strip + strip_step, column1)
        j_step = even_step(strip_end - strip, most, tile_columns)
        k = 0
        while k == 0 or k < p.depth:
            deep = min(k_step, p.depth - k)
            if p.sequence:
                deep = min(deep, p.sequence - k % p.sequence)
            j = strip
            while j < strip_end:
                multiply_block(p, row0, row1, j, min(j + j_step, strip_end), k, deep, workspace)
                j += j_step
            k += max(deep, <Py_ssize_t> 1)
        strip = strip_end


cdef void multiply_narrow(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0, Py_ssize_t column1,
                          vec *workspace) noexcept nogil:
    """The same of a C in bfloat16: some rows and columns at a time in float32, which are then rounded."""
    cdef int itemsize = VECTOR_BYTES // lanes(workspace)
    cdef Py_ssize_t width = rest_width(p.columns, itemsize), row, column, i, j
    cdef vec *rest = address(workspace, piece_workspace(p.columns, p.depth, itemsize))
    cdef Product q = p[0]
    q.c, q.c_row, q.c_narrow = rest, width, False
    for row from row0 <= row < row1 by REST_ROWS:
        q.rows = min(<Py_ssize_t> REST_ROWS, row1 - row)
        q.a = place(<const vec*> p.a, row * p.a_row, p.a_narrow)
        for column from column0 <= column < column1 by width:
            q.columns = min(width, column1 - column)
            q.b = place(<const vec*> p.b, column * p.b_col, p.b_narrow)
            q.stored_column = column
            if p.bias != NULL:
                q.bias = address(<const vec*> p.bias, column)
            multiply_wide(&q, 0, q.rows, 0, q.columns, workspace)
            for i in range(q.rows):
                j = 0
                while j + lanes(workspace) <= q.columns:
                    store_as(<vec*> p.c, (row + i) * p.c_row + column + j, load(rest, i * width + j), False, True)
                    j += lanes(workspace)
                if j < q.columns:
                    store_partial_as(<vec*> p.c, (row + i) * p.c_row + column + j,
                                     load_partial(rest, i * width + j, q.columns - j), q.columns - j, True)


cdef void multiply_piece(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0, Py_ssize_t column1,
                         vec *workspace) noexcept nogil:
    """Rows row0 .. row1-1 and columns column0 .. column1-1 of the product, on one thread."""
    cdef size_t before = flush_begin() if p.rounds else 0
    cdef Product q = p[0]
    if q.block == 0:
        q.block = BLOCK_BYTES
    q.way = units_way if p.rounds == IN_UNITS else bfloat16_way if p.rounds else SINGLES
    if q.way == AMX:
        tiles_begin()
    if p.c_narrow:
        multiply_narrow(&q, row0, row1, column0, column1, workspace)
    else:
        multiply_wide(&q, row0, row1, column0, column1, workspace)
    if q.way == AMX:
        tiles_end()
    if p.rounds:
        flush_end(before)


cdef inline int pieces_of(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t depth) noexcept nogil:
    """How many threads a product is worth.

    Where it is more than one, the region is opened for all of them nevertheless, here and in the other kernels: GNU's
    runtime ends the threads that a smaller region leaves out, and makes them anew for the next.
    """
    return <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> _threads, rows * columns * max(depth, 1) // THREAD_WORK))


cdef struct Grid:
    # Into how many parts the rows and the columns of a product are cut; each pair of them is one share of the work.
    Py_ssize_t rows, columns


cdef inline double share_cost(const Product *p, Py_ssize_t row_parts, Py_ssize_t column_parts,
                              Py_ssize_t itemsize) noexcept nogil:
    """Time of a share over that of its multiply-adds: lanes and rows of tiles that nobody needs, and the packing.

    An element of A is packed once for every block of columns, one of B once for all rows. To pack a vector takes the
    time of some four multiply-adds: read, rearranged or waited for, written.
    """
    cdef Py_ssize_t n_lanes = VECTOR_BYTES // itemsize
    cdef Py_ssize_t rows = ((p.rows + TILE_ROWS - 1) // TILE_ROWS + row_parts - 1) // row_parts * TILE_ROWS
    cdef Py_ssize_t columns = ((p.columns + n_lanes - 1) // n_lanes + column_parts - 1) // column_parts * n_lanes
    cdef Py_ssize_t width = block_width(block_steps(p.depth, columns, itemsize, n_lanes, p.block), itemsize, p.block)
    return ((<double> rows * row_parts / p.rows) * (<double> columns * column_parts / p.columns)
            * (1.0 + 4.0 / min(columns, width) + 4.0 / rows))


cdef inline Grid grid_of(const Product *p, int pieces, Py_ssize_t itemsize) noexcept nogil:
    """How a product is cut on `pieces` threads: into equally many shares for each.

    Over its longer side alone where that is long enough, so that the operand which all shares read is packed in the
    order in which it lies; over the rows where both are equal, lest threads write side by side in the same rows. Else over
    both: slices for 16 threads would be so thin that packing takes their time.
    """
    cdef bint by_columns = p.columns > p.rows
    cdef Py_ssize_t most = p.columns * itemsize // SHARE_BYTES if by_columns else p.rows // SHARE_ROWS
    cdef Py_ssize_t area = p.rows * p.columns * itemsize // (SHARE_ROWS * SHARE_BYTES)
    cdef Py_ssize_t parts = pieces * max(<Py_ssize_t> 1, min(<Py_ssize_t> SHARES, (most if most >= pieces else area) // pieces))
    cdef Py_ssize_t row_parts
    cdef Grid best
    best.rows = 1 if by_columns else parts
    best.columns = parts if by_columns else 1
    if most < pieces:
        for row_parts in range(1, parts + 1):
            if parts % row_parts == 0 and (share_cost(p, row_parts, parts // row_parts, itemsize)
                                           < share_cost(p, best.rows, best.columns, itemsize)):
                best.rows, best.columns = row_parts, parts // row_parts
    return best


cdef void multiply_share(const Product *p, Py_ssize_t share, Grid grid, vec *own) noexcept nogil:
    """Share number `share` of a product: those that follow each other read the same columns of B, and part their sums."""
    cdef Py_ssize_t row = share % grid.rows, column = share // grid.rows
    cdef Py_ssize_t column0 = share_start(p.columns, lanes(own), column, grid.columns)
    cdef Py_ssize_t column1 = share_start(p.columns, lanes(own), column + 1, grid.columns)
    multiply_piece(p, share_start(p.rows, TILE_ROWS, row, grid.rows), share_start(p.rows, TILE_ROWS, row + 1, grid.rows),
                   column0, column1, own)
    if p.sums != NULL:
        add_rows(<const vec*> p.b, p.depth, p.b_row,
                 column0 + share_start(column1 - column0, STRIP_VECTORS * lanes(own), row, grid.rows),
                 column0 + share_start(column1 - column0, STRIP_VECTORS * lanes(own), row + 1, grid.rows), <vec*> p.sums)


cdef void multiply(const Product *p, vec *workspace) noexcept nogil:
    """C = start + A B, all of it, and the sums over B if asked for, on as many threads as it is worth.

    Threads take the shares as they come, each from its own range first, so that a processor which another program slows
    takes fewer.
    """
    cdef int pieces = pieces_of(p.rows, p.columns, p.depth)
    cdef Py_ssize_t itemsize = VECTOR_BYTES // lanes(workspace)
    cdef Py_ssize_t room = product_workspace(p, itemsize)
    cdef Py_ssize_t turn
    cdef Shares shares
    cdef Shares *left = &shares
    cdef Grid grid
    cdef Product cut = p[0]
    cdef const Product *q = &cut
    cut.block = block_limit(1 if pieces == 1 else _threads)
    if p.columns == 0:
        return
    if pieces == 1:
        multiply_piece(q, 0, p.rows, 0, p.columns, workspace)
        if p.sums != NULL:
            sum_rows(<const vec*> p.b, p.depth, p.columns, <vec*> p.sums)
    else:
        grid = grid_of(q, pieces, itemsize)
        share_out(left, grid.rows * grid.columns, _threads)
        for turn in prange(grid.rows * grid.columns, num_threads=_threads, schedule="dynamic"):
            multiply_share(q, next_share(left, threadid()), grid, address(workspace, threadid() * room))
