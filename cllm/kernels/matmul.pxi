# Matrix products of a linear layer:
#
#     y  = x W + bias          dx = dy W^T          dW += x^T dy          dbias += sum over rows of dy
#
# Each is one call of `multiply` (gemm_blocks.pxi) with A, B and C read through their own steps, so that nothing is
# transposed but on its way into a packed block.
#
# Products in bfloat16 (`rounds`) take r16 of both operands (bfloat16.pxi), which are rounded while they are packed
# unless they are kept so, and sum in float32. The definition, for any processor: an element is the chain
#
#     acc = flush(fma(r16(a[k]), r16(b[k]), acc)), k ascending,   and last acc + 0;   flush: subnormals become zero
#
# and so does what the chain starts at. By its description VDPBF16PS computes the same where the even k of a pair are in
# its high half, which it adds first; its rounding and flushing are these, and it looks at no setting of the thread. The
# sum with + 0 makes a zero of either sign + 0: neither that an odd depth is filled up with a pair of zeros can be seen,
# nor where a batch is cut. A processor without fused multiply-add differs only where the product alone, which float32
# holds exactly, leaves its range; one that flushes before it rounds (Arm) only where a sum rounds up to the least
# number that is not subnormal.
#
# Where `rounds` says so, sums are in units of 32 instead (units.pxi). A gradient of weights sums over rows: there units are
# counted from the start of each sequence, so that a cut of the batch between sequences cannot be seen.


def linear_workspace(Py_ssize_t n_rows, Py_ssize_t n_in, Py_ssize_t n_out, int threads, int itemsize,
                     bint narrow=False):
    """Elements of scratch that the three products of a linear layer need.

    Parameters
    ----------
    n_rows, n_in, n_out : int
        N, I, O of ``x`` (N I) and ``weight`` (I O).
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
    cdef Py_ssize_t forward = piece_workspace(n_out, n_in, itemsize)
    if narrow:
        forward += rest_room(n_rows, n_out, itemsize)
    return threads * max(forward, piece_workspace(n_in, n_out, itemsize), piece_workspace(n_out, n_rows, itemsize))


cdef int check_product(str kernel, Product *p, Py_ssize_t room, int itemsize) except -1:
    """Scratch is long enough, and what is bfloat16 is asked for."""
    cdef int workers = 1 if pieces_of(p.rows, p.columns, p.depth) == 1 else _threads
    check_room(kernel, "workspace", room, workers * product_workspace(p, itemsize))
    return check_mode(kernel, p, itemsize)


cdef int take_sequence(str kernel, Product *p, Py_ssize_t rows) except -1:
    """The depth of p is rows of sequences, of so many each: where units begin anew."""
    if rows < 0:
        raise ConfigError(kernel, "sequence must be a number of rows, or 0", str(rows), "Pass the rows of one sequence.")
    if p.rounds == IN_UNITS and rows == 1:  # a unit would be one product and 31 zeros
        p.rounds = IN_CHAINS
    p.sequence = rows if p.rounds == IN_UNITS and rows % UNIT else 0  # whole units follow each other
    return 0


cdef int check_mode(str kernel, const Product *p, int itemsize) except -1:
    if not 0 <= p.rounds <= IN_UNITS:
        raise ConfigError(kernel, "rounds must be 0, 1 or 2", str(p.rounds), "Pass one of these.")
    if (p.a_narrow or p.b_narrow or p.c_narrow) and not p.rounds or p.rounds and itemsize != sizeof(float):
        raise DtypeError(kernel, "must have rounds=1 or 2 where an array is bfloat16, and not in float64",
                         f"rounds={p.rounds}, {itemsize} bytes an element", "Products in bfloat16 sum in float32.")
    if p.rounds == IN_UNITS:
        decided_units()
    elif p.rounds:
        decided_way()
    return 0


cdef int take_weight(str kernel, weight, Py_ssize_t itemsize, bint transposed, Product *p, Rows *rows) except -1:
    """B is a weight, or its transpose: an array, or `StoredRows`. Its shape is left in `rows`.

    The caller's own reference keeps the memory.
    """
    if not isinstance(weight, StoredRows):
        take_rows(kernel, "weight", weight, itemsize, False, rows)
        check_wide(kernel, "weight", rows)
        p.b = rows.at
        p.b_row = 1 if transposed else rows.columns
        p.b_col = rows.columns if transposed else 1
        return 0
    if itemsize != sizeof(float):
        raise DtypeError(kernel, "weight must be an array in float64", "rows of a file", "Expand it: numpy.asarray(weight).")
    rows.rows, rows.columns = weight.shape
    p.stored = &(<StoredRows> weight).bound
    p.stored_turned = (<StoredRows> weight).turned != transposed
    return 0


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_forward(x, weight not None, bias, int rounds=0, *, y, floating[::1] workspace not None):
    """y = x W + bias.

    Parameters
    ----------
    x : array of shape N I
        May be bfloat16, where `rounds`.
    weight : array of shape I O, or StoredRows of that shape
    bias : array of shape O, or None
    rounds : int
        1: both operands are rounded to bfloat16; sums, in chains, and what is not bfloat16 already, are float32. 2: so they
        are, and sums are in units of 32. 0 is neither.
    y : array of shape N O
        Written. May be bfloat16, where `rounds`.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize, y is bfloat16)`` elements
        Scratch.
    """
    cdef str me = "linear_forward"
    cdef Product p
    cdef Rows left, right, out
    memset(&p, 0, sizeof(p))
    take_rows(me, "x", x, sizeof(floating), False, &left)
    take_weight(me, weight, sizeof(floating), False, &p, &right)
    take_rows(me, "y", y, sizeof(floating), True, &out)
    check_length(me, "rows of weight", right.rows, left.columns)
    check_length(me, "rows of y", out.rows, left.rows)
    check_length(me, "columns of y", out.columns, right.columns)
    take_bias(me, bias, sizeof(floating), right.columns, &p.bias)
    p.rows, p.columns, p.depth = out.rows, out.columns, left.columns
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, left.narrow, False, out.narrow
    check_product(me, &p, workspace.shape[0], sizeof(floating))
    p.a, p.a_row, p.a_col = left.at, p.depth, 1
    p.c, p.c_row, p.accumulate = <void*> out.at, p.columns, False
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
        else:
            multiply(&p, <vf64*> &workspace[0])


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_backward_input(dy, weight not None, bias=None, int rounds=0, *, floating[:, ::1] dx not None,
                          floating[::1] workspace not None):
    """dx = dy W^T, or, as the forward of a layer whose weight is kept (out, in), dy W^T + bias.

    Parameters
    ----------
    dy : array of shape N O
        May be bfloat16, where `rounds`.
    weight : array of shape I O, or StoredRows of that shape
    bias : array of shape I, or None
    rounds : int
        As in `linear_forward`.
    dx : array of shape N I
        Written.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "linear_backward_input"
    cdef Product p
    cdef Rows left, right
    memset(&p, 0, sizeof(p))
    take_rows(me, "dy", dy, sizeof(floating), False, &left)
    take_weight(me, weight, sizeof(floating), True, &p, &right)
    check_length(me, "columns of weight", right.columns, left.columns)
    check_length(me, "rows of dx", dx.shape[0], left.rows)
    check_length(me, "columns of dx", dx.shape[1], right.rows)
    take_bias(me, bias, sizeof(floating), right.rows, &p.bias)
    p.rows, p.columns, p.depth = dx.shape[0], dx.shape[1], left.columns
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, left.narrow, False, False
    check_product(me, &p, workspace.shape[0], sizeof(floating))
    p.a, p.a_row, p.a_col = left.at, p.depth, 1
    p.c, p.c_row, p.accumulate = &dx[0, 0], p.columns, False
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
        else:
            multiply(&p, <vf64*> &workspace[0])


@cython.boundscheck(False)  # the address of an empty operand is taken, and not used
def linear_backward_weight(x, dy, int rounds=0, Py_ssize_t sequence=0, *, floating[:, ::1] dweight not None,
                           floating[::1] dbias, floating[::1] workspace not None):
    """dW += x^T dy and dbias += sum over rows of dy.

    Parameters
    ----------
    x : array of shape N I
        May be bfloat16, where `rounds`.
    dy : array of shape N O
        May be bfloat16, where `rounds` and dbias is None.
    rounds : int
        As in `linear_forward`; dbias adds what dy holds.
    sequence : int
        Rows of a sequence, of which the first begins with the first row: units are counted anew from the start of each, and
        of sequences of one row sums are chains. 0: all rows are one sum.
    dweight : array of shape I O
        += ; rows of x and dy are added in their order.
    dbias : array of shape O, or None
        += ; likewise.
    workspace : array of at least ``linear_workspace(N, I, O, get_threads(), itemsize)`` elements
        Scratch.
    """
    cdef str me = "linear_backward_weight"
    cdef Product p
    cdef Rows left, right
    memset(&p, 0, sizeof(p))
    take_rows(me, "x", x, sizeof(floating), False, &left)
    take_rows(me, "dy", dy, sizeof(floating), False, &right)
    check_length(me, "rows of dy", right.rows, left.rows)
    check_length(me, "rows of dweight", dweight.shape[0], left.columns)
    check_length(me, "columns of dweight", dweight.shape[1], right.columns)
    if dbias is not None:
        check_length(me, "length of dbias", dbias.shape[0], right.columns)
        check_wide(me, "dy", &right)
    p.rows, p.columns, p.depth = dweight.shape[0], dweight.shape[1], left.rows
    p.rounds, p.a_narrow, p.b_narrow, p.c_narrow = rounds, left.narrow, right.narrow, False
    take_sequence(me, &p, sequence)
    check_product(me, &p, workspace.shape[0], sizeof(floating))
    p.a, p.a_row, p.a_col = left.at, 1, p.rows
    p.b, p.b_row, p.b_col = right.at, p.columns, 1
    p.c, p.c_row, p.accumulate = &dweight[0, 0], p.columns, True
    if dbias is not None:
        p.sums = &dbias[0]
    with nogil:
        if floating is float:
            multiply(&p, <vf32*> &workspace[0])
        else:
            multiply(&p, <vf64*> &workspace[0])


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
