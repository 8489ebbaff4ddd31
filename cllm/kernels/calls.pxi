# What an executor does in turn: methods of layers with their arguments, ready to be called.
#
# Compiled because it stands between kernels. These sweep the caches, so that whatever Python touches between two of them comes
# from memory again: there a partial, a dictionary of keywords and a frame take many times what they take in a loop that does
# nothing else, and all threads but one wait for them.

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport PyObject
from libc.string cimport memset

cdef extern from "Python.h":
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    object PyObject_Vectorcall(object callable, PyObject **arguments, size_t count, PyObject *names)


cdef class BoundCall:
    """``method(*reads, **writes)``, to be called without arguments.

    Scratch is an operation's own to its end, though a kernel may need less of it for some shapes: so its last element is set to
    zero before, and whoever looks for the highest byte written finds what was reserved.

    Parameters
    ----------
    method : callable
        What it returns is dropped.
    reads : sequence
    writes : dict
    scratch : sequence of arrays
        C-contiguous, and arguments too.
    """

    cdef object method
    cdef tuple arguments, names
    cdef PyObject **stack           # a free place, which a bound method puts its object into, and the arguments
    cdef list scratch
    cdef char **ends
    cdef Py_ssize_t *sizes

    def __cinit__(self, method, reads, dict writes not None, scratch=()):
        cdef Py_ssize_t i
        cdef Py_buffer view
        self.method = method
        self.arguments = (*reads, *writes.values())
        self.names = tuple(writes)
        self.scratch = [array for array in scratch if array.size]
        self.stack = <PyObject**> PyMem_Malloc((len(self.arguments) + 1) * sizeof(PyObject*))
        self.ends = <char**> PyMem_Malloc(len(self.scratch) * sizeof(char*))
        self.sizes = <Py_ssize_t*> PyMem_Malloc(len(self.scratch) * sizeof(Py_ssize_t))
        if self.stack == NULL or self.ends == NULL or self.sizes == NULL:
            raise MemoryError
        for i in range(len(self.arguments)):
            self.stack[i + 1] = <PyObject*> self.arguments[i]
        for i in range(len(self.scratch)):
            PyObject_GetBuffer(self.scratch[i], &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            self.sizes[i] = view.itemsize
            self.ends[i] = <char*> view.buf + view.len - view.itemsize
            PyBuffer_Release(&view)

    def __dealloc__(self):
        PyMem_Free(self.stack)
        PyMem_Free(self.ends)
        PyMem_Free(self.sizes)

    cdef int run(self) except -1:
        cdef Py_ssize_t i, named = len(self.names)
        for i in range(len(self.scratch)):
            memset(self.ends[i], 0, self.sizes[i])
        PyObject_Vectorcall(self.method, self.stack + 1, (len(self.arguments) - named) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                            <PyObject*> self.names if named else NULL)
        return 0

    def __call__(self):
        self.run()

    def writing(self, **writes):
        """The same call, of which some results go elsewhere.

        Raises
        ------
        KeyError
            When it does not write one of that name.
        """
        cdef dict written = dict(zip(self.names, self.arguments[len(self.arguments) - len(self.names):], strict=True))
        if unknown := set(writes) - set(written):
            raise KeyError(f"writes {', '.join(written)}, not {', '.join(unknown)}")
        return BoundCall(self.method, self.arguments[:len(self.arguments) - len(self.names)], written | writes, self.scratch)


cdef int call_one(call) except -1:
    if type(call) is BoundCall:
        (<BoundCall> call).run()
    else:
        call()
    return PyErr_CheckSignals()


def call_each(list calls not None):
    """Call each in turn."""
    for call in calls:
        call_one(call)
