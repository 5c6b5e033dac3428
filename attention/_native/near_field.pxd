from libc.stdint cimport int32_t, int64_t

from .moments cimport Moments
from .workspace cimport Workspace


cdef class LocalKeys:
    cdef const float[:, :] keys
    cdef const float[:, :] values
    cdef const int64_t[::1] stops
    cdef Py_ssize_t boundary


cdef struct Panels:  # keys transposed, LANES at a time, and their values as rows
    const float *keys
    const float *values
    Py_ssize_t value_stride, n_keys


cdef void load_queries(Workspace w, const float[:, ::1] queries, const int32_t *order, Py_ssize_t n,
                       float scale) noexcept nogil
cdef void reset_state(Workspace w) noexcept nogil
cdef void choose_all_cells(Moments cells, Workspace w) noexcept nogil
cdef void sort_pairs(Workspace w, Py_ssize_t n_cells) noexcept nogil
cdef void attend_near_cells(Moments cells, Workspace w) noexcept nogil
cdef void attend_panels(Workspace w, const int32_t *visitors, Py_ssize_t n_visitors, const Panels *panels,
                        const int32_t *limits) noexcept nogil
cdef void attend_local_keys(Workspace w, LocalKeys local) noexcept nogil
cdef void write_outputs(Workspace w, float[:, ::1] out, float *risks, float *lse) noexcept nogil
