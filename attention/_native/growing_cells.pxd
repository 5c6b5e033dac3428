from libc.stdint cimport int32_t


cdef struct Extent:  # a piece of a cell's memory
    float *keys  # transposed, LANES at a time
    float *values  # rows, value_pad apart
    Py_ssize_t room  # keys that fit
    int32_t following  # extent of the same cell, or -1


cdef class GrowingCells:
    cdef readonly Py_ssize_t n_cells, dim, width, n_directions, n_keys
    cdef Py_ssize_t value_pad, deviation_pad, cell_pad, n_products
    cdef bint second_order
    cdef readonly tuple arguments
    cdef list memory
    cdef Extent *extents
    cdef Py_ssize_t n_extents, extents_room
    cdef Py_ssize_t panel, panels_stop  # of the last memory: what is free
    cdef int32_t[::1] first_extent, last_extent, writing, filled, count, room
    cdef readonly object counts
    cdef float[:, ::1] for_keys
    cdef float[:, :, ::1] query_panels, mean_keys, products
    cdef float[:, ::1] mean_values
    cdef float[:, :, ::1] gamma
    cdef float[::1] log_counts, inverse_counts, spreads, value_squares, mean_value, zeros, scratch
    cdef float mean_count, mean_spread

    cdef bint add_extent(self, Py_ssize_t c, Py_ssize_t n_panels) except False
    cdef void place(self, Py_ssize_t c, const float *key, const float *value) noexcept nogil
    cdef void merge(self, Py_ssize_t c, const float[:, ::1] keys, const float[:, ::1] values, const int32_t *ids,
                    Py_ssize_t n) noexcept nogil
    cdef void average(self) noexcept nogil
