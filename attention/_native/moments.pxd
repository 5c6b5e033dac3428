from libc.stdint cimport int32_t

cdef class Moments:
    cdef readonly Py_ssize_t n_keys, n_cells, dim, width, n_directions
    cdef Py_ssize_t value_pad, deviation_pad, row_stride, cell_pad
    cdef const float[:, :] keys
    cdef const float[:, :] values
    cdef const float[:, ::1] centers
    cdef float[:, :, ::1] panels
    cdef float[:, ::1] rows
    cdef int32_t[::1] ids, first_panel
    cdef readonly object counts
    cdef int32_t[::1] count
    cdef float[:, ::1] first, key_sums
    cdef float[:, :, ::1] second
    cdef float[:, :, ::1] mean_keys
    cdef float[:, ::1] mean_values
    cdef float[:, :, :, ::1] sigma
    cdef float[:, :, :, ::1] gamma
    cdef float[:, :, ::1] squares
    cdef float[::1] mean_value, log_counts, no_bias, value_squares, spreads, lines
    cdef float mean_count, mean_spread
    cdef const float[:, ::1] for_keys, for_queries
    cdef float[:, :, ::1] query_panels
    cdef float[:, ::1] mean_sigma
    cdef float[:, :, ::1] covariances, lifted
    cdef bint projected, second_order

    cdef void pack(self, Py_ssize_t c, float *buffer) noexcept nogil
    cdef tuple read(self)
    cdef void average(self) noexcept nogil
    cdef void spread(self, float total) noexcept nogil
    cdef bint take(self, Py_ssize_t c, Py_ssize_t boundary) noexcept nogil
    cdef void close(self, Py_ssize_t panel) noexcept nogil
    cdef void covary(self, Py_ssize_t c, float *out) noexcept nogil
    cdef void lift(self, const float *covariances) noexcept nogil
