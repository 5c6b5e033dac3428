from libc.stdint cimport int32_t


cdef class Strays:
    cdef Py_ssize_t width
    cdef int32_t[::1] ids, cells, taken
    cdef float[:, :, ::1] panels
    cdef float[::1] no_bias

    cdef Py_ssize_t choose(self, const float *scores, float least, int32_t *chosen, float *panels) noexcept nogil
