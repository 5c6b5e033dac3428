"""Points in cells: the assignment, and the panels in the order of the cells."""
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from ._kernels cimport LANES, Kernels, table

cdef enum:
    GROUP = 8


def nearest(const float[:, ::1] coordinates, const float[:, :, ::1] centers,
            const float[::1] bias, int32_t[::1] out, float[::1] gap):
    """Index of the nearest centre of each row, and the squared distance to it.

    Parameters
    ----------
    coordinates : (b, >= M) float32
    centers : (p, M, 16) float32, panels
    bias : (p * 16,) float32
        Squared norms of the centres, infinity in lanes that hold none.
    out : (b,) int32, written
    gap : (b,) float32, written
    """
    cdef Py_ssize_t n = coordinates.shape[0], dim = centers.shape[1]
    cdef Py_ssize_t group, i, j, k, count
    cdef Py_ssize_t n_scores = centers.shape[0] * LANES
    cdef const Kernels *kernels = table()
    cdef float *scratch = <float *>malloc(GROUP * (dim + n_scores) * sizeof(float))
    cdef float *scores = scratch + GROUP * dim
    cdef const float *rows[GROUP]
    if scratch == NULL:
        raise MemoryError("scores of cells")
    with nogil:
        for j in range(GROUP):
            rows[j] = scratch + j * dim
        for group in range((n + GROUP - 1) // GROUP):
            i = group * GROUP
            count = min(<Py_ssize_t>GROUP, n - i)
            for j in range(count):
                for k in range(dim):
                    scratch[j * dim + k] = -2 * coordinates[i + j, k]
            kernels.affine(rows, count, dim, &centers[0, 0, 0], &bias[0], centers.shape[0],
                           scores, n_scores)
            for j in range(count):
                k = kernels.argmin(scores + j * n_scores, n_scores)
                out[i + j] = <int32_t>k
                gap[i + j] = max(<float>0, scores[j * n_scores + k]
                                 + kernels.norm2(&coordinates[i + j, 0], dim))
    free(scratch)


cdef class Cells:
    """Projected points in the order of their cells.

    Parameters
    ----------
    coordinates : (L, panels, m, 16) float32
        Projections of the points on the m directions of each composite index; a cell starts a panel.
    bias : (L, panels * 16) float32
        What ranking by sum adds to -2 x'.q'; infinity in lanes that hold no point.
    ids : (panels * 16,) int32
        Row of the point in each position, -1 where there is none.
    first_panel : (cells + 1,) int32
    sizes : (cells,) int32
    centers : (p, L * m, 16) float32
        Centres of the cells as panels; cells past the last centre are opened by every query.
    center_bias : (p * 16,) float32
    """
    def __init__(self, coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers):
        self.arrays = (coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers)
        self.coordinates, self.bias, self.ids = coordinates, bias, ids
        self.first_panel, self.sizes = first_panel, sizes
        self.centers, self.center_bias = centers, center_bias
        self.n_centers, self.n_cells = n_centers, sizes.shape[0]
        self.n_composite, self.n_simple = coordinates.shape[0], coordinates.shape[2]

    def __reduce__(self):
        return Cells, self.arrays
