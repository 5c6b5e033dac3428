from .codes cimport Codes


cdef double unit_of(const float *query, Py_ssize_t dim, int metric, double absmax) noexcept nogil
cdef float distance(const float *point, const float *query, Py_ssize_t dim, int metric,
                    double query_norm2, double unit) noexcept nogil


cdef class TrueDistances:
    cdef const float[:, ::1] X
    cdef Codes codes
    cdef bint coded
    cdef Py_ssize_t dim, lines
    cdef const float *row(self, Py_ssize_t i, float *room) noexcept nogil
    cdef void fetch(self, Py_ssize_t i) noexcept nogil
    cdef int metric
    cdef double absmax
