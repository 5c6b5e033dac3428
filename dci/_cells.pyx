"""Points in cells: the assignment, and the panels in the order of the cells."""
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc

from ._kernels cimport LANES, table

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
    cdef Py_ssize_t n = coordinates.shape[0], dim = centers.shape[1], i
    cdef Py_ssize_t n_scores = centers.shape[0] * LANES
    cdef float *scaled = minus_twice(coordinates, dim)
    cdef float *scores = <float *>malloc(GROUP * n_scores * sizeof(float))
    cdef const float **rows = <const float **>malloc((n + 1) * sizeof(float *))
    cdef int32_t *places = <int32_t *>calloc(n + 1, sizeof(int32_t))
    try:
        if not (scaled and scores and rows and places):
            raise MemoryError("scores of cells")
        with nogil:
            for i in range(n):
                rows[i] = scaled + i * dim
                places[i] = <int32_t>i
            nearest_of(rows, places, n, dim, &centers[0, 0, 0], &bias[0], centers.shape[0], scores,
                       &out[0], &gap[0])
            add_norms(coordinates, dim, gap)
    finally:
        free(scaled)
        free(scores)
        free(rows)
        free(places)


def nearest_by_region(const float[:, ::1] coordinates, const float[:, :, ::1] regions,
                      const float[::1] region_bias, const float[:, :, :, ::1] centers,
                      const float[:, ::1] bias, const int32_t[:, ::1] names,
                      int32_t[::1] out, float[::1] gap):
    """`nearest` among the centres around the region that a row lies in.

    Parameters
    ----------
    regions : (r, M, 16) float32, panels
    region_bias : (r * 16,) float32
    centers : (R, p, M, 16) float32
        For each region, the panels of the centres around it.
    bias : (R, p * 16) float32
    names : (R, p * 16) int32
        Which centre each lane of `centers` holds.
    """
    cdef Py_ssize_t n = coordinates.shape[0], dim = regions.shape[1], i, r, start
    cdef Py_ssize_t n_regions = centers.shape[0], n_panels = centers.shape[1]
    cdef Py_ssize_t n_scores = max(regions.shape[0], n_panels) * LANES
    cdef float *scaled = minus_twice(coordinates, dim)
    cdef float *scores = <float *>malloc(GROUP * n_scores * sizeof(float))
    cdef const float **rows = <const float **>malloc((n + 1) * sizeof(float *))
    cdef int32_t *places = <int32_t *>calloc(n + 1, sizeof(int32_t))
    cdef int32_t *region_of = <int32_t *>malloc((n + 1) * sizeof(int32_t))
    cdef Py_ssize_t *ends = <Py_ssize_t *>malloc((n_regions + 1) * sizeof(Py_ssize_t))
    try:
        if not (scaled and scores and rows and places and region_of and ends):
            raise MemoryError("scores of cells")
        with nogil:
            for i in range(n):
                rows[i] = scaled + i * dim
                places[i] = <int32_t>i
            nearest_of(rows, places, n, dim, &regions[0, 0, 0], &region_bias[0], regions.shape[0],
                       scores, region_of, &gap[0])
            for r in range(n_regions + 1):
                ends[r] = 0
            for i in range(n):
                ends[region_of[i] + 1] += 1
            for r in range(n_regions):
                ends[r + 1] += ends[r]
            for i in range(n):  # ends[r] moves from the region's start to its end
                r = region_of[i]
                rows[ends[r]] = scaled + i * dim
                places[ends[r]] = <int32_t>i
                ends[r] += 1
            start = 0
            for r in range(n_regions):
                nearest_of(rows + start, places + start, ends[r] - start, dim,
                           &centers[r, 0, 0, 0], &bias[r, 0], n_panels, scores, &out[0], &gap[0])
                for i in range(start, ends[r]):
                    out[places[i]] = names[r, out[places[i]]]
                start = ends[r]
            add_norms(coordinates, dim, gap)
    finally:
        free(scaled)
        free(scores)
        free(rows)
        free(places)
        free(region_of)
        free(ends)


cdef float *minus_twice(const float[:, ::1] coordinates, Py_ssize_t dim) noexcept nogil:
    """The first `dim` coordinates of each row times -2, as scores need them; the caller frees."""
    cdef Py_ssize_t i, k
    cdef float *out = <float *>malloc((coordinates.shape[0] * dim + 1) * sizeof(float))
    if out != NULL:
        for i in range(coordinates.shape[0]):
            for k in range(dim):
                out[i * dim + k] = -2 * coordinates[i, k]
    return out


cdef void nearest_of(const float **rows, const int32_t *places, Py_ssize_t n, Py_ssize_t dim,
                     const float *panels, const float *bias, Py_ssize_t n_panels, float *scores,
                     int32_t *out, float *gap) noexcept nogil:
    """The least score of each row and the lane that has it, to out[place] and gap[place]."""
    cdef Py_ssize_t group, i, j, best, n_scores = n_panels * LANES
    for group in range((n + GROUP - 1) // GROUP):
        i = group * GROUP
        table().affine(rows + i, min(<Py_ssize_t>GROUP, n - i), dim, panels, bias, n_panels,
                       scores, n_scores)
        for j in range(min(<Py_ssize_t>GROUP, n - i)):
            best = table().argmin(scores + j * n_scores, n_scores)
            out[places[i + j]] = <int32_t>best
            gap[places[i + j]] = scores[j * n_scores + best]


cdef void add_norms(const float[:, ::1] coordinates, Py_ssize_t dim, float[::1] gap) noexcept nogil:
    """From scores |c|^2 - 2 x.c to squared distances."""
    cdef Py_ssize_t i
    for i in range(coordinates.shape[0]):
        gap[i] = max(<float>0, gap[i] + table().norm2(&coordinates[i, 0], dim))


cdef class Cells:
    """Projected points in the order of their cells.

    Parameters
    ----------
    coordinates : (L, panels, m, 16) float32 or int16
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
    steps : (L, panels * 16) float32, optional
        What coordinates in int16 are multiples of.
    """
    def __init__(self, coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers,
                 steps=None):
        self.arrays = (coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers,
                       steps)
        self.quantized = steps is not None
        if self.quantized:
            self.shorts, self.steps = coordinates, steps
        else:
            self.coordinates = coordinates
        self.bias, self.ids = bias, ids
        self.first_panel, self.sizes = first_panel, sizes
        self.centers, self.center_bias = centers, center_bias
        self.n_centers, self.n_cells = n_centers, sizes.shape[0]
        self.n_composite, self.n_simple = coordinates.shape[0], coordinates.shape[2]

    def __reduce__(self):
        return Cells, self.arrays
