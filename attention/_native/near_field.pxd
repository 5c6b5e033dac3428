from libc.stdint cimport int32_t, int64_t

from .moments cimport Moments
from .workspace cimport Scratch


cdef void gather(Moments cells, Scratch s, const float[:, ::1] queries, const int32_t *order, Py_ssize_t n,
                 float scale) noexcept nogil
cdef void forget(Moments cells, Scratch s) noexcept nogil
cdef void open_all(Moments cells, Scratch s) noexcept nogil
cdef void near(Moments cells, Scratch s) noexcept nogil
cdef void local(Moments cells, Scratch s, const int64_t *stops, Py_ssize_t boundary, Py_ssize_t length,
                const float[:, :] local_keys, const float[:, :] local_values) noexcept nogil
cdef void write(Moments cells, Scratch s, float[:, ::1] out, float *risks) noexcept nogil
