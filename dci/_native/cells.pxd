from libc.stdint cimport int16_t, int32_t


cdef class Cells:
    cdef readonly object arrays
    cdef const float[:, :, :, ::1] coordinates
    cdef const int16_t[:, :, :, ::1] shorts
    cdef const float[:, ::1] bias, steps
    cdef const int32_t[::1] ids, first_panel, sizes
    cdef const float[:, :, ::1] centers
    cdef const float[::1] center_bias
    cdef readonly bint quantized
    cdef readonly Py_ssize_t n_centers, n_cells, n_composite, n_simple
