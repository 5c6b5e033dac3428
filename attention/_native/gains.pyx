"""What the estimate of a cell may err by, and the estimates of queries that stand apart from their block.

Such a query is out of reach of the block's linear forms. Its scores within each cell have a variance of its own,
q.S q, read from products of two of its coordinates.
"""
from libc.math cimport INFINITY, expf, sqrtf

from dci._native.kernels cimport LANES, table

from .moments cimport Moments
from .workspace cimport Workspace

# To measure these anew: python -m comparisons run --suite attention_truth
cdef float SPREAD = 0.1  # of the squared variance that the linear forms leave out, in the squared error of a mass
cdef float ABOVE = 3  # standard deviations by which some key of a cell may score above the mean of them
cdef float MOST_GAIN = 1e9  # that a suspected error counts


cdef float gain(Moments cells, Py_ssize_t c, float variance, float spread) noexcept nogil:
    """What a cell's share of the mass is weighed with: measured errors grow about so.

    The error of a sum over n keys falls with n, but not what the linear forms leave out of the mass, nor what a
    single key far above the others weighs.
    """
    cdef float closure = min(variance, <float>CLOSURE), log_count = cells.log_counts[c], above
    if log_count == -INFINITY:  # no keys
        return 0
    above = expf(min(<float>30, ABOVE * sqrtf(variance) - log_count - closure / 2))
    return cells.spreads[c] * sqrtf(
        cells.mean_count * ((<float>0.3 + closure) * expf(-log_count) + SPREAD * spread * spread + above * above)
    )


cdef float doubt(Moments cells, float gain) noexcept nogil:
    """The squared error that a cell of a gain is suspected of, over its squared mass."""
    return min(gain, MOST_GAIN) * min(gain, MOST_GAIN) * cells.mean_spread / cells.mean_count


cdef void score_apart(Moments cells, Workspace w, Py_ssize_t b) noexcept nogil:
    """Put the scores of every cell in the place of those by linear forms, for the queries of a block that stand apart.

    The variances stay in the workspace, for one such query after the other.
    """
    cdef Py_ssize_t dim = cells.dim, pad = cells.cell_pad, pairs = cells.squares.shape[1], i, j, k, n = 0
    cdef Py_ssize_t first = b * w.block, count = min(w.block, w.n - first)
    cdef float *product
    cdef float *query
    for i in range(count):
        if w.is_apart[first + i]:
            product, query = w.products + n * pairs, w.projected + (first + i) * cells.deviation_pad
            for k in range(cells.n_directions):
                for j in range(k + 1):
                    product[j] = query[k] * query[j]
                product += k + 1
            w.pointers[n] = w.queries + (first + i) * dim
            n += 1
    if n == 0:
        return
    table().affine(w.pointers, n, dim, &cells.mean_keys[0, 0, 0], &cells.log_counts[0], pad // LANES, w.apart_scores,
                   pad)
    for i in range(n):
        w.pointers[i] = w.products + i * pairs
    table().affine(w.pointers, n, pairs, &cells.squares[0, 0, 0], &cells.no_bias[0], pad // LANES, w.variances, pad)
    n = 0
    for i in range(count):
        if w.is_apart[first + i]:
            for k in range(pad):
                w.variances[n * pad + k] = max(<float>0, w.variances[n * pad + k])
                w.scores[i * pad + k] = w.apart_scores[n * pad + k] + min(w.variances[n * pad + k], <float>CLOSURE) / 2
            n += 1
        w.pointers[i] = w.queries + (first + i) * dim


cdef void weigh_apart(Moments cells, float *gains, float *doubts, const float *variances) noexcept nogil:
    """Gain and expected squared error of every cell for a query with these variances."""
    cdef Py_ssize_t c
    for c in range(cells.cell_pad):
        gains[c] = gain(cells, c, variances[c], 0)
        doubts[c] = doubt(cells, gains[c])
