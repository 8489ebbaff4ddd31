# Places in one slab for buffers with lifetimes: each in turn at the lowest offset that is free for its whole lifetime.
#
#     place = 0;  while a placed buffer, alive with this one, lies within place .. place + size:  place = its end
#
# No offset below that end was free, so where nothing lies in the way any more, place is the lowest that is. A hung
# buffer goes as high as it may instead: right below the bound if all that is alive with it ends below, else into the
# highest hole.
#
# Compiled because a plan of a deep network has 10^5 buffers, each with hundreds alive beside it. Time is cut into
# pieces of `width` operations. Of each piece two rows are kept, runs of `rows` that grow as buffers are placed: those
# that begin in it (from begins[piece] on), and those that reach into it from before (from reaches[piece] on). What is
# alive with a buffer stands among those that reach its first piece and those that begin in its pieces.

from libc.stdint cimport int64_t, uint8_t


def first_fit(const int64_t[::1] order not None, const int64_t[::1] first not None, const int64_t[::1] last not None,
              const int64_t[::1] nbytes not None, const uint8_t[::1] hung not None, int64_t bound, int64_t width,
              const int64_t[::1] begins not None, const int64_t[::1] reaches not None, *, int64_t[::1] rows not None,
              int64_t[::1] filled not None, int64_t[:, ::1] near not None, int64_t[::1] offsets not None):
    """Offsets of buffers placed in that order; returns the size of the slab.

    Parameters
    ----------
    order : array of length n
        Numbers of the buffers.
    first, last, nbytes, hung : arrays of length n
        Operations between which each is alive, its size, and whether it goes as high as it may.
    begins, reaches : arrays, one element for each piece of time
        Where its two rows begin within `rows`.
    rows, filled, near : workspaces
        As long as all rows together; two elements for each piece; of shape (2, n).
    offsets : array of length n
    """
    cdef Py_ssize_t n = order.shape[0], pieces = begins.shape[0], room = n
    for name, got, must in (("first", first.shape[0], n), ("last", last.shape[0], n), ("nbytes", nbytes.shape[0], n),
                            ("hung", hung.shape[0], n), ("reaches", reaches.shape[0], pieces),
                            ("filled", filled.shape[0], 2 * pieces), ("near", near.shape[0], 2),
                            ("near", near.shape[1], n), ("offsets", offsets.shape[0], n)):
        check_length("first_fit", name, got, must)
    cdef Py_ssize_t i, k, p
    for i in range(n):
        room += last[i] // width - first[i] // width
    check_length("first_fit", "rows", rows.shape[0], room)
    if n == 0:
        return 0
    cdef int64_t total = 0
    cdef int64_t *begun = &filled[0]
    cdef int64_t *reached = &filled[pieces]
    cdef int64_t *held = &rows[0]  # a row of none may begin where all rows end
    cdef _Alive near_by
    filled[:] = 0
    near_by.first, near_by.last, near_by.nbytes, near_by.offsets = &first[0], &last[0], &nbytes[0], &offsets[0]
    near_by.start, near_by.end = &near[0, 0], &near[1, 0]
    with nogil:
        for k in range(n):
            i = order[k]
            p = first[i] // width
            near_by.count = 0
            _add_alive(&near_by, i, held + reaches[p], reached[p])
            for p in range(first[i] // width, last[i] // width + 1):
                _add_alive(&near_by, i, held + begins[p], begun[p])
            offsets[i] = _highest(&near_by, nbytes[i], bound) if hung[i] else _lowest(&near_by, nbytes[i])
            total = max(total, offsets[i] + nbytes[i])
            p = first[i] // width
            rows[begins[p] + begun[p]] = i
            begun[p] += 1
            for p in range(first[i] // width + 1, last[i] // width + 1):
                rows[reaches[p] + reached[p]] = i
                reached[p] += 1
    return total


cdef struct _Alive:
    # All buffers, and where those lie that are alive with one.
    const int64_t *first
    const int64_t *last
    const int64_t *nbytes
    const int64_t *offsets
    int64_t *start
    int64_t *end
    Py_ssize_t count


cdef inline void _add_alive(_Alive *near, Py_ssize_t i, const int64_t *row, Py_ssize_t length) noexcept nogil:
    """Add the places of those in a row that are alive with buffer i."""
    cdef Py_ssize_t k, j
    for k in range(length):
        j = row[k]
        if near.first[j] <= near.last[i] and near.last[j] >= near.first[i]:
            near.start[near.count] = near.offsets[j]
            near.end[near.count] = near.offsets[j] + near.nbytes[j]
            near.count += 1


cdef inline int64_t _lowest(_Alive *near, int64_t size) noexcept nogil:
    """The lowest offset at which `size` bytes lie beside all that is near, which is used up."""
    cdef int64_t place = 0, before = -1
    cdef Py_ssize_t k, left
    while place != before:
        before, left = place, 0
        for k in range(near.count):
            if near.end[k] > place:
                if near.start[k] < place + size:
                    place = near.end[k]
                else:
                    near.start[left], near.end[left] = near.start[k], near.end[k]
                    left += 1
        near.count = left
    return place


cdef inline int64_t _highest(_Alive *near, int64_t size, int64_t bound) noexcept nogil:
    """The highest offset at which they do, below the bound or in a hole; above all that is near if there is none."""
    cdef int64_t top = 0, place = -1, before = -2
    cdef Py_ssize_t k
    for k in range(near.count):
        top = max(top, near.end[k])
        place = max(place, near.start[k])
    if bound - top >= size:
        return bound - size
    place -= size
    while place != before:
        before = place
        for k in range(near.count):
            if near.end[k] > place and near.start[k] < place + size:
                place = near.start[k] - size
    return place if place >= 0 else top
