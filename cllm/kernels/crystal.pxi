# The terms of crystalline attention, each of which may be off.
#
#   g(t)  = t mod 12, the symmetry group of token t;  a(t) = 2 pi g(t) / 12
#   turn    q and k: channel pairs (u, v) = (2m, 2m+1) become (u cos a - v sin a, u sin a + v cos a)
#   d_ij  = the distance of the lattice coordinates of tokens t_i and t_j
#   s_ij  = q_i . k_j / sqrt(D) - softplus(alpha) ln(1 + d_ij) + beta[(g(t_i) - g(t_j)) mod 12]
#
#   dalpha  = -sigmoid(alpha) sum_ij ds_ij ln(1 + d_ij),   dbeta[g] = sum_ij ds_ij [(g(t_i) - g(t_j)) mod 12 = g]
#
# Turning is done where rows are packed, and undone (by -a) where the gradients are unpacked. The bias is twelve more
# channels of the product: of q_i, beta[(g(t_i) - c) mod 12] for c = 0 .. 11, of k_j, one where c = g(t_j), else zero. So
# the tiles add it, and the same channels of dq_i are sum_j ds_ij [g(t_j) = c], from which dbeta is gathered. Only the
# distance is a pass of its own over each tile, between the scores and their softmax; no array is T x T.
#
# A head's share of dalpha and dbeta is summed in an order that its sequence alone decides (dalpha by tiles of queries,
# keys in ascending order; dbeta by rows), and the shares are added sequence by sequence: no cut of the batch changes a bit.

cdef extern from *:
    """
    static void cllm_rotate_f32(float *x, Py_ssize_t n, float c, float s)
    {
        for (Py_ssize_t m = 0; m < n; m += 2) {
            float u = x[m], v = x[m + 1];
            x[m] = CLLM_FMA_FLOAT(u, c, -(v * s));
            x[m + 1] = CLLM_FMA_FLOAT(u, s, v * c);
        }
    }
    static void cllm_rotate_f64(double *x, Py_ssize_t n, double c, double s)
    {
        for (Py_ssize_t m = 0; m < n; m += 2) {
            double u = x[m], v = x[m + 1];
            x[m] = CLLM_FMA_DOUBLE(u, c, -(v * s));
            x[m + 1] = CLLM_FMA_DOUBLE(u, s, v * c);
        }
    }

    /* x = 2^e m with m in [sqrt(1/2), sqrt(2)): bits of x less those of sqrt(1/2) have e where the exponent stands. */
    static inline __attribute__((always_inline)) cllm_vf32 cllm_exponent_f32(cllm_vf32 x)
        { return __builtin_convertvector(((cllm_vi32)x - 0x3f3504f3) >> 23, cllm_vf32); }
    static inline __attribute__((always_inline)) cllm_vf32 cllm_mantissa_f32(cllm_vf32 x)
        { return (cllm_vf32)((cllm_vi32)x - ((((cllm_vi32)x - 0x3f3504f3) >> 23) << 23)); }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_exponent_f64(cllm_vf64 x)
        { return __builtin_convertvector(((cllm_vi64)x - 0x3fe6a09e667f3bcdLL) >> 52, cllm_vf64); }
    static inline __attribute__((always_inline)) cllm_vf64 cllm_mantissa_f64(cllm_vf64 x)
        { return (cllm_vf64)((cllm_vi64)x - ((((cllm_vi64)x - 0x3fe6a09e667f3bcdLL) >> 52) << 52)); }

    static const double cllm_cosines[12] = {1, 0.8660254037844387, 0.5, 0, -0.5, -0.8660254037844387, -1,
                                            -0.8660254037844387, -0.5, 0, 0.5, 0.8660254037844387};
    """
    void rotate_f32 "cllm_rotate_f32"(float *x, Py_ssize_t n, float c, float s) noexcept nogil
    void rotate_f64 "cllm_rotate_f64"(double *x, Py_ssize_t n, double c, double s) noexcept nogil
    vf32 exponent_f32 "cllm_exponent_f32"(vf32 x) noexcept nogil
    vf32 mantissa_f32 "cllm_mantissa_f32"(vf32 x) noexcept nogil
    vf64 exponent_f64 "cllm_exponent_f64"(vf64 x) noexcept nogil
    vf64 mantissa_f64 "cllm_mantissa_f64"(vf64 x) noexcept nogil
    const double *COSINES "cllm_cosines"   # of a = 2 pi g / 12; the sine of g is the cosine of g - 3

from libc.math cimport exp, log1p

cdef enum:
    GROUPS = 12


cdef inline vec vlog(vec x) noexcept nogil:
    """ln x for normal x > 0 in each lane; ln 1 is exactly 0.

    ln m = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1), |s| < 0.172: the first term left out is below 2e-9 of the
    sum in float32 and 3e-17 in float64.
    """
    cdef vec m, e, s, z, r, one = splat(&x, 1.0)
    cdef int k
    if vec is vf32:
        m, e = mantissa_f32(x), exponent_f32(x)
        k = 9
    else:
        m, e = mantissa_f64(x), exponent_f64(x)
        k = 19
    s = (m - one) / (m + one)
    z = s * s
    r = splat(&x, 2.0 / k)
    while k > 3:
        k -= 2
        r = fma(r, z, splat(&x, 2.0 / k))
    s = fma(r * z, s, s + s)
    return fma(e, splat(&x, 0.6931471805599453), s)


# --- rows -------------------------------------------------------------------------------------------------------------

cdef inline const int32_t *tokens_of(const Attention *at, Py_ssize_t sequence, Py_ssize_t block) noexcept nogil:
    return at.crystal.tokens + (sequence * at.time + block * BLOCK)


cdef void turn_rows(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, bint back, vec *x) noexcept nogil:
    """Turn packed rows of q or k by the angle of their tokens, or back."""
    cdef const int32_t *tokens = tokens_of(at, sequence, block)
    cdef Py_ssize_t i, g
    for i in range(block_rows(at, block)):
        g = tokens[i] % GROUPS
        if back:
            g = (GROUPS - g) % GROUPS
        if vec is vf32:
            rotate_f32(<float *> x + i * at.wide, at.head_dim, <float> COSINES[g], <float> COSINES[(g + 9) % GROUPS])
        else:
            rotate_f64(<double *> x + i * at.wide, at.head_dim, COSINES[g], COSINES[(g + 9) % GROUPS])


cdef void add_query_terms(const Attention *at, Py_ssize_t head, Py_ssize_t block, vec *q_rows) noexcept nogil:
    """Turn packed rows of q, and append the channels whose product with those of k is the bias."""
    cdef const int32_t *tokens = tokens_of(at, head // at.heads, block)
    cdef const vec *beta
    cdef Py_ssize_t i, c, more = at.wide - at.head_dim
    if at.crystal.turns:
        turn_rows(at, head // at.heads, block, False, q_rows)
    if at.crystal.beta == NULL:
        return
    beta = address(<const vec *> at.crystal.beta, head % at.heads * GROUPS)
    for i in range(block_rows(at, block)):
        for c in range(more):
            put(q_rows, i * at.wide + at.head_dim + c,
                element(beta, (tokens[i] % GROUPS - c + GROUPS) % GROUPS) if c < GROUPS else 0.0)


cdef void add_key_terms(const Attention *at, Py_ssize_t unit, Py_ssize_t block, vec *k_rows, vec *work) noexcept nogil:
    """Turn packed rows of k, append their channels, and put the coordinates of their tokens into `work`."""
    cdef Py_ssize_t sequence = unit // at.kv_heads, i, c, more = at.wide - at.head_dim
    cdef const int32_t *tokens = tokens_of(at, sequence, block)
    if at.crystal.turns:
        turn_rows(at, sequence, block, False, k_rows)
    if at.crystal.beta != NULL:
        for i in range(block_rows(at, block)):
            for c in range(more):
                put(k_rows, i * at.wide + at.head_dim + c, 1.0 if c == tokens[i] % GROUPS else 0.0)
    if at.crystal.coordinates != NULL:
        pack_coordinates(at, sequence, block, coordinates_of(at, work, block))


# --- the distance -----------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t terms_room(Py_ssize_t n_lanes) noexcept nogil:
    """Elements for each block: three rows of coordinates, and a vector of dalpha."""
    return 3 * BLOCK + n_lanes


cdef inline vec *coordinates_of(const Attention *at, const vec *work, Py_ssize_t block) noexcept nogil:
    return address(work, at.terms + block * terms_room(lanes(work)))


cdef void pack_coordinates(const Attention *at, Py_ssize_t sequence, Py_ssize_t block, vec *packed) noexcept nogil:
    """The coordinates of a block's tokens, one axis after the other."""
    cdef const int32_t *tokens = tokens_of(at, sequence, block)
    cdef Py_ssize_t i, axis, rows = block_rows(at, block)
    for axis in range(3):
        for i in range(BLOCK):
            put(packed, axis * BLOCK + i,
                element(<const vec *> at.crystal.coordinates, 3 * <Py_ssize_t> tokens[i] + axis) if i < rows else 0.0)


cdef inline double strength(const Attention *at, Py_ssize_t head, const vec *like) noexcept nogil:
    """softplus(alpha) of a head."""
    cdef double alpha = element(<const vec *> at.crystal.alpha, head % at.heads)
    return log1p(exp(alpha)) if alpha < 30.0 else alpha + log1p(exp(-alpha))


cdef void fall_off(const Attention *at, const vec *work, Py_ssize_t head, Py_ssize_t block, Py_ssize_t key_block,
                   const Span *seen, vec *s, vec *far) noexcept nogil:
    """s -= softplus(alpha) ln(1 + d) over what is seen of a tile; ln(1 + d) into `far`; either is NULL."""
    cdef const vec *ours = coordinates_of(at, work, block)
    cdef const vec *theirs = coordinates_of(at, work, key_block)
    cdef vec x, y, z, dx, dy, dz, fall, one = splat(work, 1.0)
    cdef vec factor = splat(work, -strength(at, head, work))
    cdef Py_ssize_t i, j, begin, end
    for i in range(block_rows(at, block)):
        row_vectors(seen, i, lanes(work), &begin, &end)
        x, y, z = splat_at(ours, i), splat_at(ours, BLOCK + i), splat_at(ours, 2 * BLOCK + i)
        for j from begin <= j < end by lanes(work):
            dx = load(theirs, j) - x
            dy = load(theirs, BLOCK + j) - y
            dz = load(theirs, 2 * BLOCK + j) - z
            fall = vlog(one + vsqrt(fma(dz, dz, fma(dy, dy, dx * dx))))
            if far != NULL:
                store(far, i * BLOCK + j, fall)
            if s != NULL:
                store(s, i * BLOCK + j, fma(factor, fall, load(s, i * BLOCK + j)))


cdef void clear_term_sums(const Attention *at, vec *work, Py_ssize_t block) noexcept nogil:
    """The vector of dalpha of a block of queries starts from zero with each head."""
    if at.crystal.coordinates != NULL:
        store(coordinates_of(at, work, block), 3 * BLOCK, splat(work, 0.0))


cdef void add_falls(const Attention *at, vec *work, Py_ssize_t block, const Span *seen, const vec *ds,
                    const vec *far) noexcept nogil:
    """Add sum of ds ln(1 + d) over a tile to the vector of its queries; ds is zero where a key is not seen."""
    cdef vec *total = address(coordinates_of(at, work, block), 3 * BLOCK)
    cdef vec found = splat(work, 0.0)
    cdef Py_ssize_t i, j, begin, end
    for i in range(block_rows(at, block)):
        row_vectors(seen, i, lanes(work), &begin, &end)
        for j from begin <= j < end by lanes(work):
            found = fma(load(ds, i * BLOCK + j), load(far, i * BLOCK + j), found)
    store(total, 0, load(total, 0) + found)                                                               # +=


# --- sums of a head, and of the batch ---------------------------------------------------------------------------------

cdef void sum_terms(const Attention *at, const vec *work, Py_ssize_t head) noexcept nogil:
    """A head's share of dalpha and dbeta, once its dq is complete."""
    cdef vec *sums
    cdef const int32_t *tokens
    cdef const vec *dq
    cdef double total[GROUPS]
    cdef double found = 0
    cdef Py_ssize_t block, i, c
    if at.crystal == NULL or at.crystal.sums == NULL:
        return
    sums = address(<const vec *> at.crystal.sums, head * (1 + GROUPS))
    if at.crystal.coordinates != NULL:
        for block in range(at.blocks):
            found += lane_sum(load(coordinates_of(at, work, block), 3 * BLOCK))
        put(sums, 0, -found / (1.0 + exp(-element(<const vec *> at.crystal.alpha, head % at.heads))))
    if at.crystal.beta == NULL:
        return
    for c in range(GROUPS):
        total[c] = 0
    for block in range(at.blocks):
        dq = plane(work, at, DQ, block)
        tokens = tokens_of(at, head // at.heads, block)
        for i in range(block_rows(at, block)):
            for c in range(GROUPS):
                total[(tokens[i] % GROUPS - c + GROUPS) % GROUPS] += element(dq, i * at.wide + at.head_dim + c)
    for c in range(GROUPS):
        put(sums, 1 + c, total[c])


cdef void add_term_gradients(const Attention *at, Py_ssize_t batch, const floating *sums, floating[::1] dalpha,
                             floating[:, ::1] dbeta) noexcept:
    """dalpha and dbeta, sequence by sequence."""
    cdef Py_ssize_t b, h, c
    for b in range(batch):
        for h in range(at.heads):
            if dalpha is not None:
                dalpha[h] += sums[(b * at.heads + h) * (1 + GROUPS)]                                      # +=
            if dbeta is not None:
                for c in range(GROUPS):
                    dbeta[h, c] += sums[(b * at.heads + h) * (1 + GROUPS) + 1 + c]                        # +=


# --- checks -----------------------------------------------------------------------------------------------------------

cdef int take_terms(str kernel, Attention *at, Crystal *crystal, Py_ssize_t n_rows, const int32_t[::1] tokens,
                    const floating[:, ::1] coordinates, const floating[::1] alpha, const floating[:, ::1] beta,
                    bint turns) except -1:
    """Check the terms and note them in `crystal`, and that in `at`; nothing where there are none."""
    if (coordinates is None) != (alpha is None):
        raise ShapeError(kernel, "coordinates and alpha must both be given, or neither",
                         "one of them", "Pass both for the distance, None for no distance.")
    if alpha is None and beta is None and not turns:
        return 0
    if tokens is None:
        raise ShapeError(kernel, "tokens must be given with any term", "None", "Pass the token of each row.")
    check_length(kernel, "len(tokens)", tokens.shape[0], n_rows)
    if turns and at.head_dim % 2:
        raise ShapeError(kernel, "a rotation needs an even number of channels in a head", str(at.head_dim),
                         "Choose another number of heads, or leave the rotation out.")
    memset(crystal, 0, sizeof(Crystal))
    if alpha is not None:
        check_length(kernel, "len(alpha)", alpha.shape[0], at.heads)
        check_length(kernel, "coordinates.shape[1]", coordinates.shape[1], 3)
        if coordinates.shape[0] == 0:
            raise ShapeError(kernel, "coordinates must have a row for each token", "none", "Pass one row for each id.")
        crystal.alpha, crystal.coordinates = &alpha[0], &coordinates[0, 0]
    if beta is not None:
        check_length(kernel, "beta.shape[0]", beta.shape[0], at.heads)
        check_length(kernel, "beta.shape[1]", beta.shape[1], GROUPS)
        crystal.beta = &beta[0, 0]
    crystal.turns = turns
    if n_rows:
        crystal.tokens = &tokens[0]
    at.crystal = crystal
    return 0


cdef int check_term_gradients(str kernel, const Attention *at, const floating[::1] alpha,
                              const floating[:, ::1] beta, floating[::1] dalpha, floating[:, ::1] dbeta) except -1:
    if (alpha is None) != (dalpha is None) or (beta is None) != (dbeta is None):
        raise ShapeError(kernel, "dalpha and dbeta must be given where alpha and beta are", "one without the other",
                         "Pass the gradient of each term that is on, None for the others.")
    if dalpha is not None:
        check_length(kernel, "len(dalpha)", dalpha.shape[0], at.heads)
    if dbeta is not None:
        check_length(kernel, "dbeta.shape[0]", dbeta.shape[0], at.heads)
        check_length(kernel, "dbeta.shape[1]", dbeta.shape[1], GROUPS)
    return 0
