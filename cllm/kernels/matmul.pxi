# Matrix products of a linear layer:
#
#     y  = x W + bias          dx = dy W^T          dW += x^T dy          dbias += sum over rows of dy
#
# Each is one call of `multiply` (gemm_blocks.pxi) with A, B and C read through their own steps, so that nothing is
# transposed but on its way into a packed block.


cdef void add_rows(const vec *dy, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t column0, Py_ssize_t column1,
                   vec *dbias) noexcept nogil:
    """dbias[j] += dy[0, j] + dy[1, j] + ..., in this order, for column0 <= j < column1."""
    cdef Py_ssize_t i0, i, j, n
    cdef vec total
    for i0 in range(0, rows, 8):
        j = column0
        while j < column1:
            n = column1 - j
            if n >= lanes(dy):
                total = load(dbias, j)
                for i in range(i0, min(i0 + 8, rows)):
                    total = total + load(dy, i * columns + j)
                store(dbias, j, total)
            else:
                total = load_partial(dbias, j, n)
                for i in range(i0, min(i0 + 8, rows)):
                    total = total + load_partial(dy, i * columns + j, n)
                store_partial(dbias, j, total, n)
            j += lanes(dy)


cdef void sum_rows(const vec *dy, Py_ssize_t rows, Py_ssize_t columns, vec *dbias) noexcept nogil:
    """dbias += column sums of dy; the threads share out the columns."""
    cdef int pieces = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> _threads, rows * columns // (THREAD_WORK // 16)))
    cdef int piece
    cdef Py_ssize_t unit = 4 * lanes(dy)
    if pieces == 1:
        add_rows(dy, rows, columns, 0, columns, dbias)
    else:
        for piece in prange(pieces, num_threads=pieces, schedule="static"):
            add_rows(dy, rows, columns, share_start(columns, unit, piece, pieces),
                     share_start(columns, unit, piece + 1, pieces), dbias)


def linear_workspace(Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out, int threads, int itemsize):
    """Elements of scratch that the three products of a linear layer need.

    Parameters
    ----------
    n_rows, n_in, n_out : int
        N, I, O of ``x`` (N I) and ``weight`` (I O).
    threads : int
        Threads that the kernels will use.
    itemsize : int
        Bytes of an element, 4 or 8.

    Returns
    -------
    int
        Elements of the array's own type; never smaller for more rows, and bounded by a constant for each thread.
    """
    return threads * max(piece_workspace(n_out, n_in, itemsize), piece_workspace(n_in, n_out, itemsize),
                         piece_workspace(n_out, n_rows, itemsize))


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_forward(const floating[:, ::1] x not None, const floating[:, ::1] weight not None,
                   const floating[::1] bias, *, floating[:, ::1] y not None, floating[::1] workspace not None):
    """y = x W + bias.

    Parameters
    ----------
    x : array of shape N I
    weight : array of shape I O
    bias : array of shape O, or None
    y : array of shape N O
        Written.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "linear_forward"
    cdef Product p
    check_length(me, "rows of weight", weight.shape[0], x.shape[1])
    check_length(me, "rows of y", y.shape[0], x.shape[0])
    check_length(me, "columns of y", y.shape[1], weight.shape[1])
    if bias is not None:
        check_length(me, "length of bias", bias.shape[0], weight.shape[1])
    p.rows, p.columns, p.depth = y.shape[0], y.shape[1], x.shape[1]
    check_room(me, "workspace", workspace.shape[0],
               pieces_of(p.rows, p.columns, p.depth) * piece_workspace(p.columns, p.depth, sizeof(floating)))
    p.a, p.a_row, p.a_col = &x[0, 0], p.depth, 1
    p.b, p.b_row, p.b_col = &weight[0, 0], p.columns, 1
    p.c, p.c_row, p.accumulate = &y[0, 0], p.columns, False
    p.bias = NULL
    if bias is not None:
        p.bias = <const void*> &bias[0]
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
        else:
            multiply(&p, <vf64*> &workspace[0])


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_backward_input(const floating[:, ::1] dy not None, const floating[:, ::1] weight not None,
                          const floating[::1] bias=None, *, floating[:, ::1] dx not None,
                          floating[::1] workspace not None):
    """dx = dy W^T, or, as the forward of a layer whose weight is kept (out, in), dy W^T + bias.

    Parameters
    ----------
    dy : array of shape N O
    weight : array of shape I O
    bias : array of shape I, or None
    dx : array of shape N I
        Written.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "linear_backward_input"
    cdef Product p
    check_length(me, "columns of weight", weight.shape[1], dy.shape[1])
    check_length(me, "rows of dx", dx.shape[0], dy.shape[0])
    check_length(me, "columns of dx", dx.shape[1], weight.shape[0])
    if bias is not None:
        check_length(me, "length of bias", bias.shape[0], weight.shape[0])
    p.rows, p.columns, p.depth = dx.shape[0], dx.shape[1], dy.shape[1]
    check_room(me, "workspace", workspace.shape[0],
               pieces_of(p.rows, p.columns, p.depth) * piece_workspace(p.columns, p.depth, sizeof(floating)))
    p.a, p.a_row, p.a_col = &dy[0, 0], p.depth, 1
    p.b, p.b_row, p.b_col = &weight[0, 0], 1, p.depth
    p.c, p.c_row, p.accumulate = &dx[0, 0], p.columns, False
    p.bias = NULL
    if bias is not None:
        p.bias = <const void*> &bias[0]
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
        else:
            multiply(&p, <vf64*> &workspace[0])


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_backward_weight(const floating[:, ::1] x not None, const floating[:, ::1] dy not None, *,
                           floating[:, ::1] dweight not None, floating[::1] dbias, floating[::1] workspace not None):
    """dW += x^T dy and dbias += sum over rows of dy.

    Parameters
    ----------
    x : array of shape N I
    dy : array of shape N O
    dweight : array of shape I O
        += ; rows of x and dy are added in their order.
    dbias : array of shape O, or None
        += ; likewise.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "linear_backward_weight"
    cdef Product p
    check_length(me, "rows of dy", dy.shape[0], x.shape[0])
    check_length(me, "rows of dweight", dweight.shape[0], x.shape[1])
    check_length(me, "columns of dweight", dweight.shape[1], dy.shape[1])
    if dbias is not None:
        check_length(me, "length of dbias", dbias.shape[0], dy.shape[1])
    p.rows, p.columns, p.depth = dweight.shape[0], dweight.shape[1], x.shape[0]
    check_room(me, "workspace", workspace.shape[0],
               pieces_of(p.rows, p.columns, p.depth) * piece_workspace(p.columns, p.depth, sizeof(floating)))
    p.a, p.a_row, p.a_col = &x[0, 0], 1, p.rows
    p.b, p.b_row, p.b_col = &dy[0, 0], p.columns, 1
    p.c, p.c_row, p.accumulate = &dweight[0, 0], p.columns, True
    p.bias = NULL
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
            if dbias is not None:
                sum_rows(<const vf32*> &dy[0, 0], p.depth, p.columns, <vf32*> &dbias[0])
        else:
            multiply(&p, <vf64*> &workspace[0])
            if dbias is not None:
                sum_rows(<const vf64*> &dy[0, 0], p.depth, p.columns, <vf64*> &dbias[0])


def linear_backward_bias(const floating[:, ::1] dy not None, *, floating[::1] dbias not None):
    """dbias += sum over rows of dy, alone.

    Parameters
    ----------
    dy : array of shape N O
    dbias : array of shape O
        += ; rows are added in their order.
    """
    check_length("linear_backward_bias", "length of dbias", dbias.shape[0], dy.shape[1])
    if dy.shape[0] == 0 or dy.shape[1] == 0:
        return
    with nogil:
        if floating is float:
            sum_rows(<const vf32*> &dy[0, 0], dy.shape[0], dy.shape[1], <vf32*> &dbias[0])
        else:
            sum_rows(<const vf64*> &dy[0, 0], dy.shape[0], dy.shape[1], <vf64*> &dbias[0])
