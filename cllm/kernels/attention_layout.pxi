# What attention is told, and where it keeps what: the planes of a key head in the workspace.
#
# A key head and the query heads that read it, `group` of them, are one unit of work: k and v are packed once, and the
# query heads follow each other, so the room is that of one head. Query heads are counted over the batch (0 .. B*H-1),
# units too (0 .. B*K-1): those of unit u are group * u and on.

from libc.stdint cimport int32_t

cdef struct Crystal:
    # The terms of crystal.pxi, each NULL or false where it is off.
    const int32_t *tokens   # N
    const void *coordinates  # V x 3
    const void *alpha       # H
    const void *beta        # H x GROUPS
    bint turns
    void *sums              # B*H x (1 + GROUPS): a head's share of dalpha and dbeta

cdef struct Attention:
    Py_ssize_t time, heads, kv_heads, group, head_dim
    Py_ssize_t channels     # H D, columns of y
    Py_ssize_t stride       # (H + 2K) D, columns of qkv
    Py_ssize_t depth        # packed channels of q and k: head_dim, and GROUPS more where a bias is part of the score
    Py_ssize_t wide         # elements of a packed row of q and k: depth in whole vectors
    Py_ssize_t blocks       # tiles of BLOCK along the time
    Py_ssize_t tiles        # score tiles of a thread: of a stretch in forward, p and ds in backward
    Py_ssize_t row          # elements of a packed row: head_dim in whole vectors
    Py_ssize_t plane        # elements of a packed array of one head
    Py_ssize_t terms        # where in a unit's planes those of crystal.pxi begin
    Py_ssize_t reach        # where the key blocks that each block of queries meets begin
    Py_ssize_t work         # elements of all planes of a unit
    Py_ssize_t scratch      # elements of one thread's tiles
    double scale
    double cap              # 0 where scores have no soft cap
    bint qkv_narrow, y_narrow  # these arrays are bfloat16
    # Rotation by position, all NULL where there is none; `half` pairs of channels turn.
    const void *cos         # P x half
    const void *sin
    Py_ssize_t half
    const int32_t *positions  # rows of cos and sin, places in documents; NULL: the place in the sequence
    # Row i sees keys first[i] .. last[i] of its sequence; NULL: from 0, up to i.
    const int32_t *first
    const int32_t *last
    bint documents          # nor does it see a key before i - positions[i]
    bint bounded            # one of these is given
    # Elements from one sequence's positions, first or last to the next one's: the time, or 0 where all share them.
    Py_ssize_t positions_step, first_step, last_step
    const Crystal *crystal  # NULL where there are no terms

# Planes of a unit in the workspace. Forward uses K_PANELS, V_PANELS holding v in rows, and of Q_ROWS one block.
cdef enum:
    K_PANELS, Q_ROWS, V_PANELS, K_ROWS, DY_ROWS, DQ, DK, DV, DELTA


cdef void lay_out(Attention *at, Py_ssize_t time, Py_ssize_t heads, Py_ssize_t kv_heads, Py_ssize_t head_dim,
                  Py_ssize_t itemsize, bint distance, bint bias, bint bounded, bint capped) noexcept nogil:
    """Sizes and places; everything that is optional is off."""
    cdef Py_ssize_t n_lanes = VECTOR_BYTES // itemsize, n_line = LINE_VECTORS * n_lanes
    memset(at, 0, sizeof(Attention))
    at.time, at.heads, at.kv_heads, at.group, at.head_dim = time, heads, kv_heads, heads // kv_heads, head_dim
    at.channels, at.stride = heads * head_dim, (heads + 2 * kv_heads) * head_dim
    at.blocks = (time + BLOCK - 1) // BLOCK
    at.tiles = max(<Py_ssize_t> 2, min(at.blocks, <Py_ssize_t> STRETCH))
    at.row = round_up(head_dim, n_lanes)
    at.depth = head_dim + GROUPS if bias else head_dim
    at.wide = round_up(at.depth, n_lanes)
    at.plane = at.blocks * BLOCK * at.wide
    at.terms = DELTA * at.plane + at.blocks * BLOCK
    at.reach = at.terms + (at.blocks * terms_room(n_line) if distance else 0)
    at.bounded = bounded
    at.work = at.reach + (2 * at.blocks if bounded else 0)
    # forward: s of a stretch, out, top, total (a line a row); backward: p, ds, ln(1 + d), the slope of the soft cap
    at.scratch = (at.tiles * BLOCK * BLOCK + BLOCK * at.row + BLOCK * (1 + n_line) + (BLOCK * BLOCK if distance else 0)
                  + (BLOCK * BLOCK if capped else 0))
    at.scale = 1.0 / sqrt(<double> head_dim) if head_dim else 1.0


cdef inline vec *plane(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of rows in a unit's workspace."""
    if which == DELTA:
        return address(work, DELTA * at.plane + block * BLOCK)
    return address(work, which * at.plane + block * BLOCK * (at.row if which in (V_PANELS, DY_ROWS, DV) else at.wide))


cdef inline vec *plane_panels(const vec *work, const Attention *at, int which, Py_ssize_t block) noexcept nogil:
    """Block `block` of a plane of panels."""
    return address(work, which * at.plane + block * BLOCK * (at.depth if which == K_PANELS else at.head_dim))


cdef inline Py_ssize_t block_rows(const Attention *at, Py_ssize_t block) noexcept nogil:
    return min(<Py_ssize_t> BLOCK, at.time - block * BLOCK)


cdef inline Py_ssize_t query_place(const Attention *at, Py_ssize_t head, Py_ssize_t block,
                                   Py_ssize_t stride) noexcept nogil:
    """The first element of a block of a query head in an array of rows of `stride`: qkv, y, and their gradients."""
    return (head // at.heads * at.time + block * BLOCK) * stride + head % at.heads * at.head_dim


cdef inline Py_ssize_t key_place(const Attention *at, Py_ssize_t unit, Py_ssize_t block) noexcept nogil:
    """The first element of k of a block of a unit in qkv; v stands kv_heads * head_dim further."""
    return ((unit // at.kv_heads * at.time + block * BLOCK) * at.stride
            + (at.heads + unit % at.kv_heads) * at.head_dim)


cdef inline vec *share(const vec *workspace, const Attention *at, Py_ssize_t part) noexcept nogil:
    """One of the equal parts of the workspace: the planes of a unit, and behind them a thread's tiles."""
    return address(workspace, part * (at.work + at.scratch))
