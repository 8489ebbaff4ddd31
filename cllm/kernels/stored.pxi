# Matrices of weights as they lie in a file: rows of a dtype, or of quantised blocks. They are read a run of a row at a
# time, on the way into a packed block of a product, or into a row of an embedding; no expanded copy exists.
#
#   F32, F16, BF16    elements, one after the other
#   Q8_0    34 bytes of 32 weights: d, 32 int8 q                               w = d q
#   Q4_0    18 bytes of 32 weights: d, 16 bytes of two 4-bit q                 w = d (q - 8)
#   Q4_1    20 bytes of 32 weights: d, m, 16 bytes of two 4-bit q              w = d q + m
#
# d and m are float16; the low halves of the 16 bytes are weights 0 .. 15, the high ones 16 .. 31. Each operation is
# rounded to float32, as cllm/weights/blocks.py does: the bits are those of the expanded copy. Widening moves bits alone,
# so it is exact where a thread takes subnormal numbers for zero.

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, uint8_t

cdef extern from *:
    """
    typedef int8_t cllm_vi8 __attribute__((vector_size(CLLM_VECTOR_BYTES / 4)));
    typedef uint8_t cllm_vu8 __attribute__((vector_size(CLLM_VECTOR_BYTES / 4)));
    enum { CLLM_F32, CLLM_F16, CLLM_BF16, CLLM_Q8_0, CLLM_Q4_0, CLLM_Q4_1, CLLM_KINDS };
    #define CLLM_BLOCK 32   /* weights of a block; a multiple of two vectors */

    static inline __attribute__((always_inline)) cllm_vf32 cllm_from_half(cllm_vu16 h)
    {
        const cllm_vu32 u = __builtin_convertvector(h, cllm_vu32), size = u & 0x7fffu;
        const cllm_vi32 tiny = (cllm_vi32)size < 0x400, huge = (cllm_vi32)size >= 0x7c00;
        /* What is subnormal in float16 is not in float32: its whole number of 2^-24. */
        const cllm_vf32 small = __builtin_convertvector((cllm_vi32)size, cllm_vf32) * 0x1p-24f;
        const cllm_vu32 usual = (size << 13) + 0x38000000u + ((cllm_vu32)huge & 0x38000000u);
        return (cllm_vf32)((usual & ~(cllm_vu32)tiny) | ((cllm_vu32)small & (cllm_vu32)tiny) | (u & 0x8000u) << 16);
    }
    /* The same of one. */
    static inline float cllm_half_at(const uint8_t *p)
    {
        const uint32_t u = p[0] | (uint32_t)p[1] << 8, size = u & 0x7fffu;
        const float small = (float)(int32_t)size * 0x1p-24f;
        uint32_t bits;
        float value;
        memcpy(&bits, &small, sizeof bits);
        if (size >= 0x400) bits = (size << 13) + (size >= 0x7c00 ? 0x70000000u : 0x38000000u);
        bits |= (u & 0x8000u) << 16;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    CLLM_INLINE void cllm_block_q8_0(const uint8_t *block, float *target)
    {
        const float d = cllm_half_at(block);
        for (int i = 0; i < CLLM_BLOCK; i += CLLM_LANES_F32) {
            cllm_vi8 q;
            memcpy(&q, block + 2 + i, sizeof q);
            const cllm_vf32 w = __builtin_convertvector(__builtin_convertvector(q, cllm_vi32), cllm_vf32) * d;
            memcpy(target + i, &w, sizeof w);
        }
    }
    /* Both kinds of 4 bits: w = (q - zero) d + m, where m is added if there is one. */
    CLLM_INLINE void cllm_block_q4(const uint8_t *block, int zero, int has_least, float *target)
    {
        const float d = cllm_half_at(block), m = cllm_half_at(block + 2);
        const uint8_t *packed = block + (has_least ? 4 : 2);
        for (int i = 0; i < CLLM_BLOCK / 2; i += CLLM_LANES_F32) {
            cllm_vu8 q;
            memcpy(&q, packed + i, sizeof q);
            cllm_vf32 low = __builtin_convertvector(__builtin_convertvector(q & 15, cllm_vi32) - zero, cllm_vf32) * d;
            cllm_vf32 high = __builtin_convertvector(__builtin_convertvector(q >> 4, cllm_vi32) - zero, cllm_vf32) * d;
            if (has_least) low = low + m, high = high + m;
            memcpy(target + i, &low, sizeof low);
            memcpy(target + CLLM_BLOCK / 2 + i, &high, sizeof high);
        }
    }
    CLLM_INLINE void cllm_block(int kind, const uint8_t *block, float *target)
    {
        if (kind == CLLM_Q8_0) cllm_block_q8_0(block, target);
        else if (kind == CLLM_Q4_0) cllm_block_q4(block, 8, 0, target);
        else cllm_block_q4(block, 0, 1, target);
    }
    /* n weights from number `start` of a row on; blocks of which only a part is wanted go through a room of their own. */
    CLLM_INLINE void cllm_unpack_blocks(const int kind, const int nbytes, const uint8_t *row, Py_ssize_t start,
                                        Py_ssize_t n, float *target)
    {
        float room[CLLM_BLOCK];
        Py_ssize_t skip = start % CLLM_BLOCK, count;
        for (row += start / CLLM_BLOCK * nbytes; n > 0; row += nbytes, target += count, n -= count, skip = 0) {
            count = CLLM_BLOCK - skip < n ? CLLM_BLOCK - skip : n;
            if (count == CLLM_BLOCK) {
                cllm_block(kind, row, target);
            } else {
                cllm_block(kind, row, room);
                memcpy(target, room + skip, (size_t)count * sizeof *target);
            }
        }
    }
    CLLM_INLINE void cllm_unpack_halves(const int is_bfloat16, const uint8_t *row, Py_ssize_t n, float *target)
    {
        for (Py_ssize_t i = 0; i < n; i += CLLM_LANES_F32) {
            const Py_ssize_t count = n - i < CLLM_LANES_F32 ? n - i : CLLM_LANES_F32;
            cllm_vu16 h = {0};
            cllm_vf32 w;
            if (count == CLLM_LANES_F32) memcpy(&h, row + 2 * i, sizeof h);
            else memcpy(&h, row + 2 * i, (size_t)count * 2);
            w = is_bfloat16 ? (cllm_vf32)(__builtin_convertvector(h, cllm_vu32) << 16) : cllm_from_half(h);
            if (count == CLLM_LANES_F32) memcpy(target + i, &w, sizeof w);
            else memcpy(target + i, &w, (size_t)count * sizeof *target);
        }
    }
    static void cllm_unpack(int kind, const void *row, Py_ssize_t start, Py_ssize_t n, void *target)
    {
        switch (kind) {
        case CLLM_F32: memcpy(target, (const uint8_t *)row + 4 * start, (size_t)n * sizeof(float)); return;
        case CLLM_F16: cllm_unpack_halves(0, (const uint8_t *)row + 2 * start, n, target); return;
        case CLLM_BF16: cllm_unpack_halves(1, (const uint8_t *)row + 2 * start, n, target); return;
        case CLLM_Q8_0: cllm_unpack_blocks(CLLM_Q8_0, 34, row, start, n, target); return;
        case CLLM_Q4_0: cllm_unpack_blocks(CLLM_Q4_0, 18, row, start, n, target); return;
        case CLLM_Q4_1: cllm_unpack_blocks(CLLM_Q4_1, 20, row, start, n, target); return;
        }
    }
    """
    void unpack "cllm_unpack"(int kind, const void *row, Py_ssize_t start, Py_ssize_t n, void *target) noexcept nogil

cdef enum:
    UNPACKED = 64           # elements of a row that are unpacked at once where they are turned on their way
    MOST_LANES = 16         # of any register
    MOST_COLUMNS = 384      # of the widest block of b

# Kinds in the order of the C enum, and the bytes of how many elements in a row.
STORED_KINDS = {"F32": (4, 1), "F16": (2, 1), "BF16": (2, 1), "Q8_0": (34, 32), "Q4_0": (18, 32), "Q4_1": (20, 32)}
_KIND_NUMBERS = {kind: number for number, kind in enumerate(STORED_KINDS)}


cdef struct StoredPiece:
    const char *data
    Py_ssize_t row_bytes
    const int32_t *order    # the place in the file of each row; NULL is its own
    int kind
    Py_ssize_t stop         # the first row of the matrix beyond it


cdef struct StoredMatrix:
    StoredPiece *pieces
    Py_ssize_t n_pieces
    Py_ssize_t rows
    Py_ssize_t length


cdef class StoredRows:
    """Rows of a matrix as they lie in memory or in a mapped file, in one piece or several.

    Parameters
    ----------
    parts : iterable of (str, array, array or None)
        Kind of the elements ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"), bytes (uint8 array of rows, C-contiguous), and
        int32 the row of it that each row of the matrix is, or None, where they are in order.
    length : int
        Elements of a row.
    turned : bool
        The matrix that is meant is (length, rows), as where a file keeps (out, in).

    Raises
    ------
    ShapeError, DtypeError
    """

    cdef readonly tuple parts
    cdef readonly bint turned
    cdef tuple views        # while they exist, the memory stays where it is
    cdef StoredMatrix bound

    def __cinit__(self, parts, Py_ssize_t length, bint turned=False):
        cdef Py_ssize_t k, there
        cdef StoredPiece *piece
        cdef const uint8_t[:, ::1] data
        cdef const int32_t[::1] order
        self.parts, self.turned = tuple(parts), turned
        self.bound.length = length
        self.bound.pieces = <StoredPiece*> PyMem_Calloc(len(self.parts) + 1, sizeof(StoredPiece))
        if self.bound.pieces == NULL:
            raise MemoryError("StoredRows(parts)")
        views = []
        for k, (kind, array, ordered) in enumerate(self.parts):
            where = f"StoredRows(parts)[{k}]"
            if kind not in STORED_KINDS:
                raise DtypeError(where, f"must be of {', '.join(STORED_KINDS)}", repr(kind), "Expand it first.")
            nbytes, count = STORED_KINDS[kind]
            data, piece = array, &self.bound.pieces[k]
            if length % count or data.shape[1] != length // count * nbytes:
                raise ShapeError(where, f"rows of {length} elements of {kind} must be whole, {count} at a time",
                                 f"{data.shape[1]} bytes", "Pass each row's bytes, whole.")
            piece.kind, piece.row_bytes, there = _KIND_NUMBERS[kind], data.shape[1], data.shape[0]
            piece.data = <const char*> &data[0, 0] if data.shape[0] and data.shape[1] else NULL
            if ordered is not None:
                order = ordered
                for row in order:
                    if not 0 <= row < data.shape[0]:
                        raise ShapeError(where, f"rows must be named from 0 to {data.shape[0] - 1}", str(row), "Check them.")
                piece.order, there = &order[0] if order.shape[0] else NULL, order.shape[0]
                views.append(order)
            self.bound.rows += there
            piece.stop = self.bound.rows
            views.append(data)
        self.views, self.bound.n_pieces = tuple(views), len(self.parts)

    def __dealloc__(self):
        PyMem_Free(self.bound.pieces)

    @property
    def shape(self):
        """Of the matrix that is meant."""
        return (self.bound.length, self.bound.rows) if self.turned else (self.bound.rows, self.bound.length)


cdef inline void unpack_row(const StoredMatrix *m, Py_ssize_t row, Py_ssize_t start, Py_ssize_t n,
                            void *target) noexcept nogil:
    """n elements of a row from number `start` on, in float32."""
    cdef const StoredPiece *piece = m.pieces
    cdef Py_ssize_t first = 0
    while row >= piece.stop:
        first = piece.stop
        piece += 1
    row -= first
    if piece.order != NULL:
        row = piece.order[row]
    unpack(piece.kind, piece.data + row * piece.row_bytes, start, n, target)


cdef inline void pack_stored_rows(const StoredMatrix *m, Py_ssize_t row0, Py_ssize_t column0, Py_ssize_t columns,
                                  int vectors, Py_ssize_t depth, vf32 *panels) noexcept nogil:
    """Panels of `vectors` vectors: panel[k, j] = element column0 + j of row row0 + k; zero beyond `columns`."""
    cdef Py_ssize_t width = vectors * lanes(panels)
    cdef Py_ssize_t at, many, k, j, n
    cdef float[MOST_COLUMNS] room
    cdef char *target
    if columns == 0:
        return
    for at from 0 <= at < columns by MOST_COLUMNS // width * width:
        many = min(MOST_COLUMNS // width * width, columns - at)
        for k in range(depth):
            unpack_row(m, row0 + k, column0 + at, many, room)
            j = 0
            while j < many:
                n = min(width, many - j)
                target = <char*> address(panels, (at + j) * depth + k * width)
                copy_bytes(target, &room[j], n * sizeof(float))
                memset(target + n * sizeof(float), 0, (width - n) * sizeof(float))
                j += width


cdef inline void pack_stored_columns(const StoredMatrix *m, Py_ssize_t row0, Py_ssize_t k0, Py_ssize_t width,
                                     Py_ssize_t depth, Py_ssize_t panel_width, vf32 *panel) noexcept nogil:
    """panel[k, j] = element k0 + k of row row0 + j for j < width <= panel_width."""
    cdef float[MOST_LANES * UNPACKED] room
    cdef Py_ssize_t j, k, i, n, deep, rows
    cdef float *target
    j = 0
    while j < panel_width:
        rows = min(<Py_ssize_t> lanes(panel), width - j)
        for k from 0 <= k < depth by UNPACKED:
            n = min(<Py_ssize_t> UNPACKED, depth - k)
            for i in range(rows):
                unpack_row(m, row0 + j + i, k0 + k, n, &room[i * UNPACKED])
            target = <float*> panel + k * panel_width + j
            deep = 0
            while deep + lanes(panel) <= n:
                transpose_f32(&room[deep], UNPACKED, rows, target + deep * panel_width, panel_width)
                deep += lanes(panel)
            while deep < n:
                for i in range(lanes(panel)):
                    target[deep * panel_width + i] = room[min(i, rows - 1) * UNPACKED + deep]
                deep += 1
        j += lanes(panel)


def stored_values(StoredRows matrix not None, Py_ssize_t start, *, float[:, ::1] y not None):
    """Expand some rows of the matrix that is meant.

    Parameters
    ----------
    matrix : StoredRows
        Of shape I O.
    start : int
    y : float32 array of shape K O, written
        Rows start .. start + K - 1.
    """
    cdef const StoredMatrix *m = &matrix.bound
    cdef Py_ssize_t rows = y.shape[0], columns = y.shape[1], row, k, i, n
    cdef float[UNPACKED] room
    cdef bint turned = matrix.turned
    check_length("stored_values", "y.shape[1]", columns, matrix.shape[1])
    if start < 0 or start + rows > matrix.shape[0]:
        raise ShapeError("stored_values", f"rows must be of {matrix.shape[0]}", f"{start} to {start + rows}",
                         "Ask for rows that there are.")
    with nogil:
        if turned:
            for row in range(columns):
                for k from 0 <= k < rows by UNPACKED:
                    n = min(<Py_ssize_t> UNPACKED, rows - k)
                    unpack_row(m, row, start + k, n, room)
                    for i in range(n):
                        y[k + i, row] = room[i]
        elif columns > 0:
            for row in range(rows):
                unpack_row(m, start + row, 0, columns, &y[row, 0])
