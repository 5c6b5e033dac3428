from libc.stdint cimport int8_t, uint16_t


cdef class Codes:
    cdef readonly object array, steps, offsets
    cdef readonly tuple shape
    cdef Py_ssize_t lines
    cdef bint halved  # float16, else int8
    cdef const uint16_t[:, ::1] halves
    cdef const int8_t[:, ::1] bytes
    cdef const float[::1] step
    cdef const float[::1] offset
    cdef void decode(self, Py_ssize_t i, Py_ssize_t first, Py_ssize_t count, float *out) noexcept nogil
    cdef void fetch(self, Py_ssize_t i) noexcept nogil
