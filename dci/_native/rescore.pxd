cdef double unit_of(const float *query, Py_ssize_t dim, int metric, double absmax) noexcept nogil
cdef float distance(const float *point, const float *query, Py_ssize_t dim, int metric,
                    double query_norm2, double unit) noexcept nogil


cdef class TrueDistances:
    cdef const float[:, ::1] X
    cdef int metric
    cdef double absmax
