# The inside of every matrix product: the register tile, the packing that feeds it, and one piece of a product.
#
#     C[m, n] = start[m, n] + A[m, 0] B[0, n] + A[m, 1] B[1, n] + ... + A[m, k-1] B[k-1, n]
#
# Each element is one chain acc = fma(A[m, k], B[k, n], acc) in the order of k, which begins at `start`: what C holds, a
# row of bias, or zero. A chain may rest in C between two blocks of k, since storing and loading a float changes no bit.
# So neither the blocks nor the threads can be seen in the result. At the edges the tile is filled up with zeros, runs as
# any other, and only the elements that exist are stored; what a NaN does to the others is lost with them.

cdef extern from *:
    """
    /* Rows of the register tile: TILE_ROWS x TILE_VECTORS accumulators, a vector of B for each column, one of A. */
    #define CLLM_TILE_VECTORS 2
    #if CLLM_VECTOR_BYTES == 64
    #define CLLM_TILE_ROWS 14          /* 28 + 2 + 1 of the 32 registers of AVX-512 */
    #elif defined(__aarch64__)
    #define CLLM_TILE_ROWS 12          /* 24 + 2 + 1 of the 32 registers of NEON */
    #else
    #define CLLM_TILE_ROWS 6           /* 12 + 2 + 1 of the 16 registers of AVX2 and SSE2 */
    #endif
    #define CLLM_DEPTH 256
    #define CLLM_PITCH (CLLM_DEPTH + 16)
    """
    enum:
        TILE_ROWS "CLLM_TILE_ROWS"
        TILE_VECTORS "CLLM_TILE_VECTORS"
        DEPTH "CLLM_DEPTH"
        PITCH "CLLM_PITCH"
    void prefetch "__builtin_prefetch"(const void *p, int for_writing, int locality) noexcept nogil

# Columns of B that are packed at once: DEPTH x WIDTH floats are half of a level-2 cache of 1 MiB.
cdef enum:
    WIDTH = 512
    REACH_BYTES = 8 << 20      # C's columns are taken in strips of about this size, so that they stay in level 3

cdef struct Product:
    # C[m, n] = start + A B, one triple (pointer, step to the next row, step to the next column) each; steps in elements
    const void *a
    Py_ssize_t a_row
    Py_ssize_t a_col
    const void *b
    Py_ssize_t b_row
    Py_ssize_t b_col
    void *c
    Py_ssize_t c_row
    const void *bias       # the chain starts here (a row for all rows of C), or
    bint accumulate        # at what C holds, or at zero
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t depth


cdef inline void gemm_tile(const vec *a, const Py_ssize_t a_row, const Py_ssize_t a_step, const vec *b, Py_ssize_t depth,
                           const vec *start, Py_ssize_t start_row, vec *c, Py_ssize_t c_row) noexcept nogil:
    """One register tile: c = start + a b, over `depth` steps."""
    cdef vec acc[TILE_ROWS * TILE_VECTORS]
    cdef vec right[TILE_VECTORS]
    cdef vec left
    cdef int i, j
    cdef Py_ssize_t k
    for i in range(TILE_ROWS):
        for j in range(TILE_VECTORS):
            acc[i * TILE_VECTORS + j] = load(start, i * start_row + j * lanes(c))
    for k in range(depth):
        for j in range(TILE_VECTORS):
            right[j] = load(b, (k * TILE_VECTORS + j) * lanes(c))
        for i in range(TILE_ROWS):
            left = splat_at(a, i * a_row + k * a_step)
            for j in range(TILE_VECTORS):
                acc[i * TILE_VECTORS + j] = left * right[j] + acc[i * TILE_VECTORS + j]
    for i in range(TILE_ROWS):
        for j in range(TILE_VECTORS):
            store(c, i * c_row + j * lanes(c), acc[i * TILE_VECTORS + j])


cdef inline vec* address(const vec *p, Py_ssize_t i) noexcept nogil:
    """Address of element i."""
    if vec is vf32:
        return <vec*> (<float*> p + i)
    else:
        return <vec*> (<double*> p + i)


cdef inline void copy_block(const vec *source, Py_ssize_t source_row, vec *target, Py_ssize_t target_row,
                            Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t full_rows,
                            Py_ssize_t full_columns) noexcept nogil:
    """Copy rows x columns elements; the rest of full_rows x full_columns becomes zero."""
    cdef Py_ssize_t i, j
    for i in range(full_rows):
        j = 0
        if i < rows:
            while j + lanes(source) <= columns:
                store(target, i * target_row + j, load(source, i * source_row + j))
                j += lanes(source)
            if j < columns:
                store_partial(target, i * target_row + j, load_partial(source, i * source_row + j, columns - j),
                              min(<Py_ssize_t> lanes(source), full_columns - j))
                j += lanes(source)
        while j < full_columns:
            store_partial(target, i * target_row + j, splat(source, 0.0),
                          min(<Py_ssize_t> lanes(source), full_columns - j))
            j += lanes(source)


cdef inline void transpose_block(const vec *source, Py_ssize_t source_row, vec *target, Py_ssize_t target_row,
                                 Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t full_rows) noexcept nogil:
    """target[j, i] = source[i, j] for i < rows, j < columns; zero for rows <= i < full_rows."""
    cdef Py_ssize_t i, j
    if vec is vf32:
        for j in range(columns):
            for i in range(rows):
                (<float*> target)[j * target_row + i] = (<const float*> source)[i * source_row + j]
            for i in range(rows, full_rows):
                (<float*> target)[j * target_row + i] = 0
    else:
        for j in range(columns):
            for i in range(rows):
                (<double*> target)[j * target_row + i] = (<const double*> source)[i * source_row + j]
            for i in range(rows, full_rows):
                (<double*> target)[j * target_row + i] = 0


cdef inline Py_ssize_t piece_workspace(Py_ssize_t columns, Py_ssize_t depth) noexcept nogil:
    """Elements that one call of multiply_piece needs: a block of B, a panel of A, an edge tile, a row of zeros."""
    cdef Py_ssize_t tile_columns = TILE_VECTORS * max(LANES_F32, LANES_F64)
    cdef Py_ssize_t width = min(<Py_ssize_t> WIDTH, (columns + tile_columns - 1) // tile_columns * tile_columns)
    return min(<Py_ssize_t> DEPTH, depth) * width + TILE_ROWS * PITCH + (TILE_ROWS + 1) * tile_columns + 16


cdef void multiply_piece(const Product *p, Py_ssize_t row0, Py_ssize_t row1, Py_ssize_t column0, Py_ssize_t column1,
                         vec *workspace) noexcept nogil:
    """Rows row0 .. row1-1 and columns column0 .. column1-1 of the product, on one thread."""
    cdef Py_ssize_t tile_columns = TILE_VECTORS * lanes(workspace)
    cdef Py_ssize_t strip, strip0, strip1, j0, j1, j, k0, depth, i0, rows, columns, c_start
    cdef vec *panel = workspace
    cdef vec *edge = address(panel, TILE_ROWS * PITCH)
    cdef vec *zeros = address(edge, TILE_ROWS * tile_columns)
    cdef vec *block = address(zeros, tile_columns)
    cdef const vec *a
    cdef const vec *b
    cdef const vec *start
    cdef vec *c
    for j in range(TILE_VECTORS):
        store(zeros, j * lanes(zeros), splat(zeros, 0.0))
    strip = REACH_BYTES // (VECTOR_BYTES // lanes(zeros)) // max(row1 - row0, 1)
    strip = max(strip // WIDTH, 1) * WIDTH
    strip0 = column0
    while strip0 < column1:
        strip1 = min(strip0 + strip, column1)
        k0 = 0
        while k0 < p.depth or k0 == 0:
            depth = min(p.depth - k0, <Py_ssize_t> DEPTH)
            j0 = strip0
            while j0 < strip1:
                j1 = min(j0 + WIDTH, strip1)
                j = j0
                while j < j1:
                    columns = min(tile_columns, j1 - j)
                    b = address(<const vec*> p.b, k0 * p.b_row + j * p.b_col)
                    if p.b_col == 1:
                        copy_block(b, p.b_row, address(block, (j - j0) * depth), tile_columns, depth, columns, depth,
                                   tile_columns)
                    else:
                        transpose_block(b, p.b_col, address(block, (j - j0) * depth), tile_columns, columns, depth,
                                        tile_columns)
                    j += tile_columns
                i0 = row0
                while i0 < row1:
                    rows = min(<Py_ssize_t> TILE_ROWS, row1 - i0)
                    a = address(<const vec*> p.a, i0 * p.a_row + k0 * p.a_col)
                    if p.a_col == 1:
                        copy_block(a, p.a_row, panel, PITCH, rows, depth, TILE_ROWS, depth)
                    else:
                        copy_block(a, p.a_col, panel, TILE_ROWS, depth, rows, depth, TILE_ROWS)
                    j = j0
                    while j < j1:
                        columns = min(tile_columns, j1 - j)
                        c = address(<vec*> p.c, i0 * p.c_row + j)
                        if k0 > 0 or p.accumulate:
                            start = c
                            c_start = p.c_row
                        elif p.bias != NULL:
                            start = address(<const vec*> p.bias, j)
                            c_start = 0
                        else:
                            start = zeros
                            c_start = 0
                        b = address(block, (j - j0) * depth)
                        if rows == TILE_ROWS and columns == tile_columns:
                            if p.a_col == 1:
                                gemm_tile(panel, PITCH, 1, b, depth, start, c_start, c, p.c_row)
                            else:
                                gemm_tile(panel, 1, TILE_ROWS, b, depth, start, c_start, c, p.c_row)
                        else:
                            copy_block(start, c_start, edge, tile_columns, rows, columns, TILE_ROWS, tile_columns)
                            if p.a_col == 1:
                                gemm_tile(panel, PITCH, 1, b, depth, edge, tile_columns, edge, tile_columns)
                            else:
                                gemm_tile(panel, 1, TILE_ROWS, b, depth, edge, tile_columns, edge, tile_columns)
                            copy_block(edge, tile_columns, c, p.c_row, rows, columns, rows, columns)
                        j += tile_columns
                    i0 += TILE_ROWS
                j0 += WIDTH
            k0 += DEPTH

        strip0 += strip
