from libc.stdint cimport int32_t, uint8_t


# To measure these anew: python -m comparisons run --suite attention_layers
cpdef enum:
    BLOCK = 64  # queries that share a linear form

cdef enum:
    VISITORS = 48  # queries that visit a cell together: full tiles of every kernel, whose scores stay in fast memory
    TILE = 256  # keys that are scored at once
    LOCAL_TILE = 128  # of these, of the keys that queries see in part


cdef class Workspace:
    cdef Py_ssize_t capacity, n, block, n_pairs, touched, dim, width, value_pad
    cdef float *zeros  # a bias of panels, and what queries are prepared with
    cdef int32_t *row
    cdef float *queries
    cdef float *shift
    cdef float *sum
    cdef float *out
    cdef float *risk
    cdef const float **pointers
    cdef float *means
    cdef float *projected
    cdef float *keys
    cdef float *values
    cdef float *shares
    cdef float *slopes
    cdef float *gaps
    cdef float *gaps_projected
    cdef float *trust
    cdef float *means_projected
    cdef uint8_t *is_outlier
    cdef uint8_t *is_apart
    cdef float *products
    cdef float *variances
    cdef float *apart_scores
    cdef float *spreads
    cdef float *widest
    cdef float *unlike
    cdef float *wide
    cdef float *quadratic
    cdef float *bias
    cdef float *scores
    cdef float *stray_scores
    cdef float *stray_means
    cdef float *stray_panels
    cdef int32_t *stray_ids
    cdef float *sums
    cdef float *small
    cdef int32_t *taken
    cdef int32_t *pairs
    cdef int32_t *ends
    cdef int32_t *visitors
    cdef float *panel
    cdef int32_t *limits
    cdef const uint8_t *wanted

    cdef bint allocate(self, Py_ssize_t n, Py_ssize_t n_cells, Py_ssize_t cells, Py_ssize_t dim, Py_ssize_t width,
                       Py_ssize_t m, Py_ssize_t deviation_pad, Py_ssize_t strays) noexcept nogil


cdef inline bint is_wanted(Workspace w, Py_ssize_t query) noexcept nogil:
    return w.wanted == NULL or w.wanted[query]


cdef inline void add_pair(Workspace w, Py_ssize_t cell, Py_ssize_t query) noexcept nogil:
    if not is_wanted(w, query):
        return
    w.pairs[2 * w.n_pairs] = <int32_t>cell
    w.pairs[2 * w.n_pairs + 1] = <int32_t>query
    w.n_pairs += 1
