from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "csrc/kernels.h" nogil:
    cpdef enum:
        LANES "DCI_LANES"

    ctypedef struct Reservoir "dci_reservoir":
        uint64_t *entries
        float tau
        Py_ssize_t count
        Py_ssize_t keep
        Py_ssize_t capacity

    ctypedef struct Kernels "dci_kernels":
        const char *name
        void (*affine)(const float **rows, Py_ssize_t n_rows, Py_ssize_t dim, const float *panels,
                       const float *bias, Py_ssize_t n_panels, float *out,
                       Py_ssize_t out_stride) noexcept nogil
        void (*scan_sum)(const float **rows, Reservoir **reservoirs, Py_ssize_t n_rows,
                         Py_ssize_t dim, const float *panels, const float *bias,
                         Py_ssize_t n_panels, uint32_t position,
                         const uint8_t *allowed) noexcept nogil
        void (*scan_short)(const float **rows, Reservoir **reservoirs, Py_ssize_t n_rows,
                           Py_ssize_t dim, const int16_t *panels, const float *steps,
                           const float *bias, Py_ssize_t n_panels, uint32_t position,
                           const uint8_t *allowed) noexcept nogil
        void (*widen)(const int16_t *panels, const float *steps, Py_ssize_t n_panels,
                      Py_ssize_t dim, float *out) noexcept nogil
        void (*scan_max)(const float **rows, Reservoir **reservoirs, Py_ssize_t n_rows,
                         Py_ssize_t dim, const float *panels, Py_ssize_t n_panels,
                         uint32_t position, const uint8_t *allowed) noexcept nogil
        Py_ssize_t (*argmin)(const float *values, Py_ssize_t n) noexcept nogil
        void (*prepare)(const float *row, Py_ssize_t dim, float scale, const float *center,
                        float *out) noexcept nogil
        void (*decode_halves)(const uint16_t *halves, Py_ssize_t dim, float step, float *out) noexcept nogil
        void (*decode_bytes)(const int8_t *codes, Py_ssize_t dim, float factor, const float *steps,
                             const float *offsets, float *out) noexcept nogil
        void (*transpose)(const float *rows, Py_ssize_t stride, Py_ssize_t dim,
                          float *panel) noexcept nogil
        float (*norm2)(const float *row, Py_ssize_t dim) noexcept nogil
        uint32_t (*absmax_bits)(const float *row, Py_ssize_t dim) noexcept nogil
        double (*distance2)(const float *a, const float *b, Py_ssize_t dim) noexcept nogil
        double (*dot)(const float *a, const float *b, Py_ssize_t dim) noexcept nogil
        void (*combine)(const float *weights, Py_ssize_t row_stride, Py_ssize_t depth_stride,
                        Py_ssize_t n_rows, Py_ssize_t depth, const float *values,
                        Py_ssize_t value_stride, Py_ssize_t width, float *out,
                        Py_ssize_t out_stride) noexcept nogil
        void (*exponentials)(float *scores, Py_ssize_t stride, Py_ssize_t n_rows, Py_ssize_t n,
                             const float *shifts, float *sums) noexcept nogil
        float (*largest)(const float *values, Py_ssize_t n) noexcept nogil
        Py_ssize_t (*take_above)(float *values, const float *gains, Py_ssize_t n, float limit,
                                 int32_t *taken, float *taken_sum) noexcept nogil
        float (*overlap)(const float *a, float scale, const float *b, Py_ssize_t n) noexcept nogil

    void reservoir_cut "dci_reservoir_cut"(Reservoir *reservoir, Py_ssize_t most)
    void reservoir_push "dci_reservoir_push"(Reservoir *reservoir, float score, uint32_t position)
    Py_ssize_t select_keys "dci_select"(uint64_t *keys, Py_ssize_t n, Py_ssize_t low,
                                        Py_ssize_t high)
    void sort_keys "dci_sort"(uint64_t *keys, Py_ssize_t n)
    uint64_t entry "dci_entry"(float score, uint32_t position)
    float entry_score "dci_entry_score"(uint64_t entry)


# The table in use: every other module calls the kernels through it.
cdef const Kernels *table() noexcept nogil


cdef class Reservoirs:
    cdef Reservoir *item
    cdef uint64_t *storage
    cdef readonly Py_ssize_t size
