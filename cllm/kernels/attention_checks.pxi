# The checks that the kernels of attention share, and what they note of their arguments.

cdef int check_rows(str kernel, const Attention *at, str name, Py_ssize_t n_rows, Py_ssize_t n_columns,
                    Py_ssize_t must_rows, Py_ssize_t must_columns) except -1:
    check_length(kernel, f"{name}.shape[0]", n_rows, must_rows)
    check_length(kernel, f"{name}.shape[1]", n_columns, must_columns)
    return 0


cdef int check_scores(str kernel, const Attention *at, str name, Py_ssize_t batch, Py_ssize_t n_sequences,
                      Py_ssize_t n_heads, Py_ssize_t time) except -1:
    check_length(kernel, f"{name}.shape[0]", n_sequences, batch)
    check_length(kernel, f"{name}.shape[1]", n_heads, at.heads)
    check_length(kernel, f"{name}.shape[2]", time, at.time)
    return 0


cdef Py_ssize_t check_step(str kernel, str name, Py_ssize_t length, Py_ssize_t n_rows, Py_ssize_t time) except -1:
    """Elements from one sequence to the next in an array with a number for each row, or for each place."""
    if length == n_rows:
        return time
    if length != time:
        raise ShapeError(kernel, f"{name} must have an element for each of {n_rows} rows or {time} places", str(length),
                         "Pass an int32 array of one dimension.")
    return 0


cdef int take_rotation(str kernel, Attention *at, Py_ssize_t n_rows, const floating[:, ::1] cos,
                       const floating[:, ::1] sin, const int32_t[::1] positions, bint documents) except -1:
    if (cos is None) != (sin is None) or (cos is None and positions is not None and not documents):
        raise ShapeError(kernel, "cos and sin must both be given, or neither and no positions", "some of them",
                         "Pass both tables for a rotation by position.")
    if documents and positions is None:
        raise ShapeError(kernel, "documents must have the positions of their rows", "None",
                         "Pass positions that count from 0 in each document.")
    if positions is not None:
        at.positions_step = check_step(kernel, "positions", positions.shape[0], n_rows, at.time)
        at.positions = &positions[0] if n_rows else NULL
    at.documents = documents
    if cos is None:
        return 0
    check_length(kernel, "sin.shape[0]", sin.shape[0], cos.shape[0])
    check_length(kernel, "sin.shape[1]", sin.shape[1], cos.shape[1])
    if 2 * cos.shape[1] > at.head_dim:
        raise ShapeError(kernel, f"cos and sin must have at most {at.head_dim // 2} columns, half of a head",
                         str(cos.shape[1]), "Pass tables for at most as many pairs of channels as a head has.")
    if positions is None and cos.shape[0] < at.time:
        raise ShapeError(kernel, f"cos and sin must have at least {at.time} rows", str(cos.shape[0]),
                         "Pass tables as long as the sequences, or the positions of the rows.")
    if at.time == 0 or cos.shape[0] * cos.shape[1] == 0:
        return 0
    at.cos, at.sin, at.half = &cos[0, 0], &sin[0, 0], cos.shape[1]
    return 0


cdef int take_arguments(str kernel, Attention *at, Crystal *crystal, const Rows *qkv, int batch, int heads,
                        kv_heads, scale, const floating[:, ::1] cos, const floating[:, ::1] sin,
                        const int32_t[::1] positions, const int32_t[::1] first, const int32_t[::1] last, softcap,
                        const int32_t[::1] tokens, const floating[:, ::1] coordinates, const floating[::1] alpha,
                        const floating[:, ::1] beta, bint turns, bint documents,
                        const floating[::1] workspace) except -1:
    """Check all that the kernels of attention read but lse and probs, and note it in `at` and `crystal`."""
    cdef int keys = heads if kv_heads is None else kv_heads
    cdef bint bounded = first is not None or last is not None or documents, capped = softcap is not None
    cdef Py_ssize_t n_rows = qkv.rows, n_columns = qkv.columns, pieces
    if batch < 1 or heads < 1:
        raise ShapeError(kernel, "batch and heads must be at least 1", f"batch={batch}, heads={heads}",
                         "Pass the number of sequences and of heads.")
    if keys < 1 or heads % keys:
        raise ShapeError(kernel, f"kv_heads must divide the {heads} heads", str(keys),
                         "Pass the number of key and value heads, each read by as many query heads.")
    pieces = heads + 2 * keys
    if n_rows % batch or n_columns % pieces:
        raise ShapeError(kernel, f"qkv must have a multiple of {batch} rows and of {pieces} columns",
                         f"{n_rows} x {n_columns}", "Pass q | k | v of whole sequences, all heads beside each other.")
    lay_out(at, n_rows // batch, heads, keys, n_columns // pieces, sizeof(floating), alpha is not None,
            beta is not None, bounded, capped)
    check_room(kernel, "workspace", workspace.shape[0],
               attention_workspace(batch, at.time, heads, at.head_dim, _threads, sizeof(floating), alpha is not None,
                                   beta is not None, keys, bounded, capped))
    at.qkv_narrow = qkv.narrow
    if alpha is not None or beta is not None or turns:
        check_wide(kernel, "qkv", qkv)
    if scale is not None:
        at.scale = scale
    at.cap = checked_cap(kernel, softcap)
    take_rotation(kernel, at, n_rows, cos, sin, positions, documents)
    if first is not None:
        at.first_step = check_step(kernel, "first", first.shape[0], n_rows, at.time)
        at.first = &first[0] if n_rows else NULL
    if last is not None:
        at.last_step = check_step(kernel, "last", last.shape[0], n_rows, at.time)
        at.last = &last[0] if n_rows else NULL
    take_terms(kernel, at, crystal, n_rows, tokens, coordinates, alpha, beta, turns)
    return 0
