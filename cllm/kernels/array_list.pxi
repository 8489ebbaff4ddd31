# Lists of arrays: what an optimizer does, it does to every parameter of a model, and most of them are small. One call
# goes over a whole list in one parallel region, so that Python and the opening of the region are paid for once (the
# field's "foreach" or "multi-tensor apply").
#
#     array     0            1        2     3
#     piece     0  1  2  3   4  5     6     7        SPAN elements of one array, or what is left of it
#
# Pieces are numbered through the list. Each belongs to one array and begins at a multiple of SPAN in it, so what is
# computed piece by piece, the sum of an array's squares too, is the same whatever else is in the list.

from cpython.buffer cimport Py_buffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.memoryview cimport PyMemoryView_GET_BUFFER

from cllm.errors import DtypeError, LayoutError


cdef struct Flat:           # one array
    void *data
    Py_ssize_t size         # elements
    Py_ssize_t first        # number of its first piece


cdef struct Flats:          # all of them
    Flat *flats
    Py_ssize_t n
    Py_ssize_t n_pieces
    Py_ssize_t size         # elements together


cdef struct Piece:
    Py_ssize_t array
    Py_ssize_t start        # elements of the array
    Py_ssize_t stop


cdef inline Piece piece_of(Flats x, Py_ssize_t p) noexcept nogil:
    """Where piece p is: in the last array whose first piece is not beyond it. (An empty array has none, and shares the
    number of its first with the next.)"""
    cdef Py_ssize_t low = 0, high = x.n, middle
    cdef Piece found
    while high - low > 1:
        middle = (low + high) // 2
        if x.flats[middle].first <= p:
            low = middle
        else:
            high = middle
    found.array = low
    found.start = (p - x.flats[low].first) * SPAN
    found.stop = min(found.start + SPAN, x.flats[low].size)
    return found


cdef int bind_flats(Flats *bound, tuple views) except -1:
    """Places and pieces of the arrays behind `views`; what is allocated is freed by who holds the list."""
    cdef const Py_buffer *buffer
    cdef Flat *flat
    cdef Py_ssize_t k
    bound.n = len(views)
    bound.flats = <Flat*> PyMem_Calloc(bound.n + 1, sizeof(Flat))
    if bound.flats == NULL:
        raise MemoryError("a list of arrays")
    for k, view in enumerate(views):
        buffer = PyMemoryView_GET_BUFFER(view)
        flat = &bound.flats[k]
        flat.data = buffer.buf
        flat.size = buffer.len // buffer.itemsize
        flat.first = bound.n_pieces
        bound.n_pieces += (flat.size + SPAN - 1) // SPAN
        bound.size += flat.size
    return 0


cdef class ArrayList:
    """Arrays of any shapes, bound once, that kernels go over in one call.

    The list holds the arrays, not copies: they live as long as it does, and what is written into them is seen.

    Parameters
    ----------
    arrays : iterable of arrays
        C-contiguous, writable, all of float32 or all of float64.

    Attributes
    ----------
    arrays : tuple of arrays

    Raises
    ------
    DtypeError, LayoutError
    """

    cdef readonly tuple arrays
    cdef tuple views        # while they exist, the memory stays where it is
    cdef Flats bound
    cdef bint is_double

    def __cinit__(self, arrays):
        cdef Py_ssize_t k
        self.arrays = tuple(arrays)
        self.views = tuple([memoryview(array) for array in self.arrays])
        self.bound.n = len(self.views)
        self.is_double = self.bound.n > 0 and self.views[0].format == "d"
        for k, view in enumerate(self.views):
            if view.format != ("d" if self.is_double else "f"):
                raise DtypeError(f"ArrayList(arrays)[{k}]", "must be float32 or float64, the same for all arrays",
                                 str(self.arrays[k].dtype), "Bind arrays of each dtype in a list of their own.")
            if view.readonly or not view.c_contiguous:
                raise LayoutError(f"ArrayList(arrays)[{k}]", "must be C-contiguous and writable",
                                  "a read-only array" if view.readonly else f"strides {view.strides}",
                                  "Bind the array that holds the values, whole.")
        bind_flats(&self.bound, self.views)

    def __dealloc__(self):
        PyMem_Free(self.bound.flats)

    def __len__(self):
        return self.bound.n


cdef class CodeList:
    """Arrays of bytes, bound once: what `ArrayList` is to numbers.

    Parameters
    ----------
    arrays : iterable of arrays
        C-contiguous, writable, of uint8.

    Raises
    ------
    DtypeError, LayoutError
    """

    cdef readonly tuple arrays
    cdef tuple views
    cdef Flats bound

    def __cinit__(self, arrays):
        cdef Py_ssize_t k
        self.arrays = tuple(arrays)
        self.views = tuple([memoryview(array) for array in self.arrays])
        for k, view in enumerate(self.views):
            if view.format != "B":
                raise DtypeError(f"CodeList(arrays)[{k}]", "must be uint8", str(self.arrays[k].dtype), "Bind arrays of bytes.")
            if view.readonly or not view.c_contiguous:
                raise LayoutError(f"CodeList(arrays)[{k}]", "must be C-contiguous and writable",
                                  "a read-only array" if view.readonly else f"strides {view.strides}",
                                  "Bind the array that holds the bytes, whole.")
        bind_flats(&self.bound, self.views)

    def __dealloc__(self):
        PyMem_Free(self.bound.flats)

    def __len__(self):
        return self.bound.n


cdef int check_sizes(str kernel, str name, Flats got, Flats must, Py_ssize_t per=1) except -1:
    """Refuse a list whose arrays are not as many as those of another, with an element for each `per` of theirs."""
    cdef Py_ssize_t k
    check_length(kernel, f"len({name})", got.n, must.n)
    for k in range(must.n):
        check_length(kernel, f"{name}[{k}].size", got.flats[k].size, (must.flats[k].size + per - 1) // per)
    return 0


cdef int check_list(str kernel, str name, ArrayList got, ArrayList must) except -1:
    """Refuse a list whose arrays are not as many and as long as those of another, and of its dtype."""
    cdef Py_ssize_t k
    check_length(kernel, f"len({name})", got.bound.n, must.bound.n)
    if got.bound.n and got.is_double != must.is_double:
        raise DtypeError(kernel, f"{name} must be {'float64' if must.is_double else 'float32'}",
                         "float64" if got.is_double else "float32", "Pass lists of one dtype.")
    for k in range(must.bound.n):
        if got.bound.flats[k].size != must.bound.flats[k].size:
            check_length(kernel, f"{name}[{k}].size", got.bound.flats[k].size, must.bound.flats[k].size)
    return 0
