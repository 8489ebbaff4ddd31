# The block-diagonal products of lattice projections: head h reads and writes its own D channels only.
#
#     y[n, s*C + h*D + d]  = bias + sum over i of weight[s, h, d, i] x[n, h*D + i]
#     dx[n, h*D + i]       = sum over s, d of dy[n, s*C + h*D + d] weight[s, h, d, i]
#     dweight[s, h, d, i] += sum over n of dy[n, s*C + h*D + d] x[n, h*D + i]
#
# S*H small products (H for dx, whose S terms follow each other in one chain), each of them the product of
# gemm_tile.pxi. The threads share out the blocks, and the rows too where rows are independent.

cdef enum:
    # Rows that one task of the forward and of the input's backward takes; a multiple of the tile's heights, 6 and 8.
    TASK_ROWS = 384


cdef inline Py_ssize_t row_tasks(Py_ssize_t rows) noexcept nogil:
    """Tasks that the rows are cut into."""
    return (rows + TASK_ROWS - 1) // TASK_ROWS


cdef void block_forward_task(const Product *p, Py_ssize_t heads, Py_ssize_t task, vec *workspace) noexcept nogil:
    """One head and one run of rows, all parts."""
    cdef Py_ssize_t head = task % heads
    cdef Py_ssize_t row = task // heads * TASK_ROWS
    cdef Py_ssize_t width = heads * p.depth
    cdef Product q = p[0]
    cdef Py_ssize_t part
    q.a = place(<const vec*> p.a, head * p.depth, p.a_narrow)
    for part in range(p.c_row // width):
        q.b = address(<const vec*> p.b, (part * heads + head) * p.depth * p.depth)
        q.c = place(<vec*> p.c, part * width + head * p.depth, p.c_narrow)
        if p.bias != NULL:
            q.bias = address(<const vec*> p.bias, part * width + head * p.depth)
        multiply_piece(&q, row, min(row + TASK_ROWS, p.rows), 0, p.columns, workspace)


cdef void block_input_task(const Product *p, Py_ssize_t heads, Py_ssize_t task, vec *workspace) noexcept nogil:
    """One head and one run of rows; the parts follow each other in one chain."""
    cdef Py_ssize_t head = task % heads
    cdef Py_ssize_t row = task // heads * TASK_ROWS
    cdef Py_ssize_t width = heads * p.depth
    cdef Product q = p[0]
    cdef Py_ssize_t part
    q.c = address(<vec*> p.c, head * p.depth)
    for part in range(p.a_row // width):
        q.a = address(<const vec*> p.a, part * width + head * p.depth)
        q.b = address(<const vec*> p.b, (part * heads + head) * p.depth * p.depth)
        q.accumulate = part > 0
        multiply_piece(&q, row, min(row + TASK_ROWS, p.rows), 0, p.columns, workspace)


cdef void block_weight_task(const Product *p, Py_ssize_t heads, Py_ssize_t task, vec *workspace) noexcept nogil:
    """One part and one head, all rows."""
    cdef Product q = p[0]
    q.a = address(<const vec*> p.a, task * p.rows)
    q.b = place(<const vec*> p.b, task % heads * p.rows, p.b_narrow)
    q.c = address(<vec*> p.c, task * p.rows * p.rows)
    multiply_piece(&q, 0, p.rows, 0, p.columns, workspace)


cdef inline void block_task(const Product *p, int which, Py_ssize_t heads, Py_ssize_t task,
                            vec *workspace) noexcept nogil:
    """One task of product `which`: 0 forward, 1 input, 2 weight."""
    if which == 0:
        block_forward_task(p, heads, task, workspace)
    elif which == 1:
        block_input_task(p, heads, task, workspace)
    else:
        block_weight_task(p, heads, task, workspace)


cdef void block_multiply(const Product *p, int which, Py_ssize_t heads, Py_ssize_t tasks, Py_ssize_t work,
                         vec *workspace) noexcept nogil:
    """All tasks of product `which`; `work` is the multiply-adds of all of them."""
    cdef int pieces = <int> max(<Py_ssize_t> 1, min(<Py_ssize_t> _threads, min(tasks, work // THREAD_WORK)))
    cdef Py_ssize_t room = product_workspace(p, VECTOR_BYTES // lanes(workspace))
    cdef Py_ssize_t task
    cdef Shares shares
    cdef Shares *left = &shares
    cdef Product cut = p[0]
    cdef const Product *q = &cut
    cut.block = block_limit(1 if pieces == 1 else _threads)
    if pieces == 1:
        for task in range(tasks):
            block_task(q, which, heads, task, workspace)
    else:
        share_out(left, tasks, _threads)
        for task in prange(tasks, num_threads=_threads, schedule="dynamic"):
            block_task(q, which, heads, next_share(left, threadid()), address(workspace, threadid() * room))


def block_linear_workspace(Py_ssize_t n_rows, Py_ssize_t parts, Py_ssize_t heads, Py_ssize_t head_dim, int threads,
                           int itemsize, bint narrow=False):
    """Elements of scratch that the three block-diagonal products need.

    Parameters
    ----------
    n_rows, parts, heads, head_dim : int
        N, S, H, D of ``x`` (N H*D) and ``weight`` (S H D D).
    threads : int
        Threads that the kernels will use.
    itemsize : int
        Bytes of an element, 4 or 8.
    narrow : bool
        Whether ``y`` is bfloat16.

    Returns
    -------
    int
        Elements of the array's own type; never smaller for more rows, and bounded by a constant for each thread.
    """
    cdef Py_ssize_t forward = piece_workspace(head_dim, head_dim, itemsize)
    if narrow:
        forward += rest_room(n_rows, head_dim, itemsize)
    return threads * max(forward, piece_workspace(head_dim, n_rows, itemsize))


cdef int check_blocks_product(str me, const Product *p, Py_ssize_t room, int itemsize) except -1:
    check_room(me, "workspace", room, _threads * product_workspace(p, itemsize))
    return check_mode(me, p, itemsize)


cdef int check_blocks(str me, const floating[:, :, :, ::1] weight, Py_ssize_t n_in, Py_ssize_t n_out) except -1:
    """The shapes that all three share: weight S H D D, x with H*D columns, y with S*H*D."""
    check_length(me, "last axis of weight", weight.shape[3], weight.shape[2])
    check_length(me, "columns of x", n_in, weight.shape[1] * weight.shape[2])
    check_length(me, "columns of y", n_out, weight.shape[0] * weight.shape[1] * weight.shape[2])
    return 0


def block_linear_forward(x, const floating[:, :, :, ::1] weight not None, const floating[::1] bias,
                         int rounds=0, *, y, floating[::1] workspace not None):
    """y[n, s*C + h*D + d] = bias + sum over i of weight[s, h, d, i] x[n, h*D + i].

    Parameters
    ----------
    x : array of shape N C, C = H*D
        May be bfloat16, where `rounds`.
    weight : array of shape S H D D
    bias : array of shape S*C, or None
    rounds : int
        As in `linear_forward`.
    y : array of shape N S*C
        Written. May be bfloat16, where `rounds`.
    workspace : array of ``block_linear_workspace(N, S, H, D, get_threads(), itemsize, y is bfloat16)`` elements
        Scratch.
    """
    cdef str me = "block_linear_forward"
    cdef Py_ssize_t heads = weight.shape[1]
    cdef Product p
    cdef Rows left, out
    memset(&p, 0, sizeof(p))
    take_rows(me, "x", x, sizeof(floating), False, &left)
    take_rows(me, "y", y, sizeof(floating), True, &out)
    check_blocks(me, weight, left.columns, out.columns)
    check_length(me, "rows of y", out.rows, left.rows)
    if bias is not None:
        check_length(me, "length of bias", bias.shape[0], out.columns)
    p.rows, p.columns, p.depth = left.rows, weight.shape[2], weight.shape[2]
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, left.narrow, False, out.narrow
    check_blocks_product(me, &p, workspace.shape[0], sizeof(floating))
    if p.rows == 0 or out.columns == 0:
        return
    p.a, p.a_row, p.a_col = left.at, left.columns, 1
    p.b, p.b_row, p.b_col = &weight[0, 0, 0, 0], 1, p.depth
    p.c, p.c_row, p.accumulate = <void*> out.at, out.columns, False
    p.bias = NULL
    if bias is not None:
        p.bias = <const void*> &bias[0]
    with nogil:
        if floating is float:
            block_multiply(&p, 0, heads, heads * row_tasks(p.rows), p.rows * out.columns * p.depth,
                           <vf32*> &workspace[0])
        else:
            block_multiply(&p, 0, heads, heads * row_tasks(p.rows), p.rows * out.columns * p.depth,
                           <vf64*> &workspace[0])


def block_linear_backward_input(const floating[:, ::1] dy not None, const floating[:, :, :, ::1] weight not None,
                                int rounds=0, *, floating[:, ::1] dx not None, floating[::1] workspace not None):
    """dx[n, h*D + i] = sum over s, then d, of dy[n, s*C + h*D + d] weight[s, h, d, i].

    Parameters
    ----------
    dy : array of shape N S*C, C = H*D
    weight : array of shape S H D D
    rounds : int
        As in `linear_forward`.
    dx : array of shape N C
        Written.
    workspace : array of at least ``block_linear_workspace(N, S, H, D, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "block_linear_backward_input"
    cdef Py_ssize_t heads = weight.shape[1]
    cdef Product p
    memset(&p, 0, sizeof(p))
    check_blocks(me, weight, dx.shape[1], dy.shape[1])
    check_length(me, "rows of dx", dx.shape[0], dy.shape[0])
    p.rows, p.columns, p.depth = dy.shape[0], weight.shape[2], weight.shape[2]
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, False, False, False
    check_blocks_product(me, &p, workspace.shape[0], sizeof(floating))
    if p.rows == 0 or dy.shape[1] == 0:
        dx[:, :] = 0
        return
    p.a, p.a_row, p.a_col = &dy[0, 0], dy.shape[1], 1
    p.b, p.b_row, p.b_col = &weight[0, 0, 0, 0], p.columns, 1
    p.c, p.c_row, p.accumulate = &dx[0, 0], dx.shape[1], False
    p.bias = NULL
    with nogil:
        if floating is float:
            block_multiply(&p, 1, heads, heads * row_tasks(p.rows), p.rows * dy.shape[1] * p.depth,
                           <vf32*> &workspace[0])
        else:
            block_multiply(&p, 1, heads, heads * row_tasks(p.rows), p.rows * dy.shape[1] * p.depth,
                           <vf64*> &workspace[0])


def block_linear_backward_weight(x, const floating[:, ::1] dy not None, int rounds=0, Py_ssize_t sequence=0, *,
                                 floating[:, :, :, ::1] dweight not None, floating[::1] dbias,
                                 floating[::1] workspace not None):
    """dweight[s, h, d, i] += sum over n of dy[n, s*C + h*D + d] x[n, h*D + i], and dbias += sum over rows of dy.

    Parameters
    ----------
    x : array of shape N C, C = H*D
        May be bfloat16, where `rounds`.
    dy : array of shape N S*C
    rounds : int
        As in `linear_forward`; dbias adds what dy holds.
    sequence : int
        As in `linear_backward_weight`.
    dweight : array of shape S H D D
        += ; rows of x and dy are added in their order.
    dbias : array of shape S*C, or None
        += ; likewise.
    workspace : array of at least ``block_linear_workspace(N, S, H, D, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "block_linear_backward_weight"
    cdef Py_ssize_t heads = dweight.shape[1]
    cdef Product p
    cdef Rows right
    memset(&p, 0, sizeof(p))
    take_rows(me, "x", x, sizeof(floating), False, &right)
    check_blocks(me, dweight, right.columns, dy.shape[1])
    check_length(me, "rows of dy", dy.shape[0], right.rows)
    if dbias is not None:
        check_length(me, "length of dbias", dbias.shape[0], dy.shape[1])
    p.rows, p.columns, p.depth = dweight.shape[2], dweight.shape[2], right.rows
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, False, right.narrow, False
    take_sequence(me, &p, sequence)
    check_blocks_product(me, &p, workspace.shape[0], sizeof(floating))
    if p.depth == 0 or dy.shape[1] == 0:
        return
    p.a, p.a_row, p.a_col = &dy[0, 0], 1, dy.shape[1]
    p.b, p.b_row, p.b_col = right.at, right.columns, 1
    p.c, p.c_row, p.accumulate = &dweight[0, 0, 0, 0], p.rows, True
    p.bias = NULL
    with nogil:
        if floating is float:
            block_multiply(&p, 2, heads, dweight.shape[0] * heads, p.depth * dy.shape[1] * p.rows,
                           <vf32*> &workspace[0])
            if dbias is not None:
                sum_rows(<const vf32*> &dy[0, 0], p.depth, dy.shape[1], <vf32*> &dbias[0])
        else:
            block_multiply(&p, 2, heads, dweight.shape[0] * heads, p.depth * dy.shape[1] * p.rows,
                           <vf64*> &workspace[0])
            if dbias is not None:
                sum_rows(<const vf64*> &dy[0, 0], p.depth, dy.shape[1], <vf64*> &dbias[0])
