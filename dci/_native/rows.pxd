from .codes cimport Codes


cdef class Rows:
    cdef const float[:, ::1] data
    cdef Codes codes
    cdef bint coded
    cdef Py_ssize_t dim
    cdef const float[::1] row_scale
    cdef const float[::1] center
    cdef const float[::1] extra
    cdef float scale
    cdef readonly Py_ssize_t size, width
    cdef Py_ssize_t lines
    cdef const float *row(self, Py_ssize_t i, float *room) noexcept nogil
    cdef void prepare(self, Py_ssize_t i, float *out) noexcept nogil
    cdef void fetch(self, Py_ssize_t i) noexcept nogil
