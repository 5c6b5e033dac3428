"""Memory for intermediate results while a field attends with some queries."""
from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport calloc, free, malloc

from dci._native.kernels cimport LANES


cdef class Workspace:
    """Buffers of one thread; a field keeps them from call to call."""

    def __dealloc__(self):
        free(self.zeros)
        free(self.row)
        free(self.queries)
        free(self.shift)
        free(self.sum)
        free(self.out)
        free(self.risk)
        free(self.pointers)
        free(self.means)
        free(self.projected)
        free(self.keys)
        free(self.values)
        free(self.shares)
        free(self.slopes)
        free(self.gaps)
        free(self.gaps_projected)
        free(self.trust)
        free(self.means_projected)
        free(self.is_outlier)
        free(self.is_apart)
        free(self.products)
        free(self.variances)
        free(self.apart_scores)
        free(self.spreads)
        free(self.widest)
        free(self.unlike)
        free(self.wide)
        free(self.quadratic)
        free(self.bias)
        free(self.scores)
        free(self.stray_scores)
        free(self.stray_means)
        free(self.stray_panels)
        free(self.stray_ids)
        free(self.sums)
        free(self.small)
        free(self.taken)
        free(self.pairs)
        free(self.ends)
        free(self.visitors)
        free(self.panel)
        free(self.limits)

    cdef bint allocate(self, Py_ssize_t n, Py_ssize_t n_cells, Py_ssize_t cells, Py_ssize_t dim, Py_ssize_t width,
                       Py_ssize_t m, Py_ssize_t deviation_pad, Py_ssize_t strays) noexcept nogil:
        """Get memory for n queries; cells is n_cells rounded up, as strays are. False if there is none left."""
        cdef Py_ssize_t n_blocks = (n + BLOCK - 1) // BLOCK
        cdef Py_ssize_t score_width = max(cells, <Py_ssize_t>TILE)
        cdef Py_ssize_t value_pad = (width + LANES - 1) // LANES * LANES
        self.dim, self.width, self.value_pad = dim, width, value_pad
        self.zeros = <float *>calloc(max(dim, <Py_ssize_t>TILE), sizeof(float))
        self.row = <int32_t *>malloc(n * sizeof(int32_t))
        self.queries = <float *>malloc(n * dim * sizeof(float))
        self.shift = <float *>malloc(n * sizeof(float))
        self.sum = <float *>malloc(n * sizeof(float))
        self.out = <float *>malloc(n * value_pad * sizeof(float))
        self.risk = <float *>malloc(n * sizeof(float))
        self.pointers = <const float **>malloc((n + n_blocks) * sizeof(float *))
        self.means = <float *>malloc(n_blocks * dim * sizeof(float))
        self.projected = <float *>malloc(n * deviation_pad * sizeof(float))
        self.means_projected = <float *>malloc(n_blocks * deviation_pad * sizeof(float))
        self.is_outlier = <uint8_t *>malloc(n)
        self.is_apart = <uint8_t *>malloc(n)
        self.products = <float *>malloc(BLOCK * m * (m + 1) // 2 * sizeof(float))
        self.variances = <float *>malloc(BLOCK * cells * sizeof(float))
        self.apart_scores = <float *>malloc(BLOCK * cells * sizeof(float))
        self.unlike = <float *>malloc(n * sizeof(float))
        self.trust = <float *>malloc(n * sizeof(float))
        self.gaps_projected = <float *>malloc(n * deviation_pad * sizeof(float))
        self.keys = <float *>malloc(n_blocks * cells * dim * sizeof(float))
        self.values = <float *>malloc(n_blocks * cells * value_pad * sizeof(float))
        self.shares = <float *>malloc(n_blocks * cells * sizeof(float))
        self.slopes = <float *>malloc(n_blocks * value_pad * m * sizeof(float))
        self.gaps = <float *>malloc(n * dim * sizeof(float))
        self.spreads = <float *>malloc(n_blocks * dim * m * sizeof(float))
        self.widest = <float *>malloc(n_blocks * sizeof(float))
        self.wide = <float *>malloc(dim * deviation_pad * sizeof(float))
        self.quadratic = <float *>malloc(n_blocks * cells * sizeof(float))
        self.bias = <float *>malloc(6 * cells * sizeof(float))
        self.scores = <float *>malloc(BLOCK * score_width * sizeof(float))
        self.stray_scores = <float *>malloc(max(<Py_ssize_t>1, BLOCK * strays) * sizeof(float))
        self.stray_means = <float *>malloc(max(<Py_ssize_t>1, n_blocks * strays) * sizeof(float))
        self.stray_panels = <float *>malloc(max(<Py_ssize_t>1, dim * strays) * sizeof(float))
        self.stray_ids = <int32_t *>malloc(max(<Py_ssize_t>1, strays) * sizeof(int32_t))
        self.sums = <float *>malloc(BLOCK * max(value_pad, deviation_pad) * sizeof(float))
        self.small = <float *>malloc(3 * BLOCK * sizeof(float))
        self.taken = <int32_t *>malloc((cells + 1) * sizeof(int32_t))
        self.pairs = <int32_t *>malloc(2 * n * (n_cells + 1) * sizeof(int32_t))
        self.ends = <int32_t *>malloc((n_cells + 2) * sizeof(int32_t))
        self.visitors = <int32_t *>malloc(n * (n_cells + 1) * sizeof(int32_t))
        self.panel = <float *>malloc(LOCAL_TILE * (dim + value_pad) * sizeof(float))
        self.limits = <int32_t *>malloc(n * sizeof(int32_t))
        self.capacity = n
        return (self.zeros and self.row and self.queries and self.shift and self.sum and self.out and self.risk
                and self.pointers and self.means
                and self.projected and self.keys and self.values and self.shares and self.slopes and self.gaps
                and self.is_apart and self.products and self.variances and self.apart_scores
                and self.gaps_projected and self.means_projected and self.is_outlier and self.trust and self.spreads
                and self.widest and self.unlike and self.wide and self.quadratic and self.bias and self.scores
                and self.stray_scores
                and self.stray_means and self.stray_panels and self.stray_ids and self.sums and self.small
                and self.taken and self.pairs and self.ends and self.visitors and self.panel and self.limits)
