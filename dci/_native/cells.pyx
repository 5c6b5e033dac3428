"""Points in cells: the assignment, and the panels in the order of the cells."""
from typing import Any, NamedTuple

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from .kernels cimport LANES, table

cdef enum:
    GROUP = 24  # rows that go through the kernel together: whole tiles of 6 and of 8 rows


cdef struct Centers:
    const float *panels
    const float *bias  # what scores start from
    Py_ssize_t n_panels, dim


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
    cdef Workspace workspace = Workspace(n, dim, centers.shape[0] * LANES)
    with nogil:
        workspace.take(coordinates, dim)
        for i in range(n):
            workspace.rows[i] = workspace.scaled + i * dim
            workspace.places[i] = <int32_t>i
        assign(workspace, 0, n, Centers(&centers[0, 0, 0], &bias[0], centers.shape[0], dim), &out[0], &gap[0])
        add_norms(coordinates, dim, gap)


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
    cdef Workspace workspace = Workspace(n, dim, max(regions.shape[0], n_panels) * LANES, n_regions)
    cdef Py_ssize_t *ends = workspace.ends
    with nogil:
        workspace.take(coordinates, dim)
        for i in range(n):
            workspace.rows[i] = workspace.scaled + i * dim
            workspace.places[i] = <int32_t>i
        assign(workspace, 0, n, Centers(&regions[0, 0, 0], &region_bias[0], regions.shape[0], dim),
               workspace.region_of, &gap[0])
        for r in range(n_regions + 1):
            ends[r] = 0
        for i in range(n):
            ends[workspace.region_of[i] + 1] += 1
        for r in range(n_regions):
            ends[r + 1] += ends[r]
        for i in range(n):  # ends[r] moves from the region's start to its end
            r = workspace.region_of[i]
            workspace.rows[ends[r]] = workspace.scaled + i * dim
            workspace.places[ends[r]] = <int32_t>i
            ends[r] += 1
        start = 0
        for r in range(n_regions):
            assign(workspace, start, ends[r], Centers(&centers[r, 0, 0, 0], &bias[r, 0], n_panels, dim),
                   &out[0], &gap[0])
            for i in range(start, ends[r]):
                out[workspace.places[i]] = names[r, out[workspace.places[i]]]
            start = ends[r]
        add_norms(coordinates, dim, gap)


cdef class Workspace:
    """What assigning n rows needs for as long as one call."""
    cdef float *scaled             # the rows times -2, as scores need them
    cdef float *scores             # of a group of rows
    cdef const float **rows        # in the order of their regions
    cdef int32_t *places           # of these rows among all
    cdef int32_t *region_of
    cdef Py_ssize_t *ends          # of regions

    def __cinit__(self, Py_ssize_t n, Py_ssize_t dim, Py_ssize_t n_scores, Py_ssize_t n_regions=0):
        self.scaled = <float *>malloc((n * dim + 1) * sizeof(float))
        self.scores = <float *>malloc((GROUP * n_scores + 1) * sizeof(float))
        self.rows = <const float **>malloc((n + 1) * sizeof(float *))
        self.places = <int32_t *>malloc((n + 1) * sizeof(int32_t))
        self.region_of = <int32_t *>malloc((n + 1) * sizeof(int32_t))
        self.ends = <Py_ssize_t *>malloc((n_regions + 1) * sizeof(Py_ssize_t))
        if not (self.scaled and self.scores and self.rows and self.places and self.region_of and self.ends):
            raise MemoryError("scores of cells")

    def __dealloc__(self):
        free(self.scaled)
        free(self.scores)
        free(self.rows)
        free(self.places)
        free(self.region_of)
        free(self.ends)

    cdef void take(self, const float[:, ::1] coordinates, Py_ssize_t dim) noexcept nogil:
        """Copy the first `dim` coordinates of each row."""
        cdef Py_ssize_t i, k
        for i in range(coordinates.shape[0]):
            for k in range(dim):
                self.scaled[i * dim + k] = -2 * coordinates[i, k]


cdef void assign(Workspace workspace, Py_ssize_t start, Py_ssize_t stop, Centers centers,
                 int32_t *out, float *gap) noexcept nogil:
    """The least score of each row start:stop and the lane that has it, to out[place] and gap[place]."""
    cdef const float **rows = workspace.rows + start
    cdef const int32_t *places = workspace.places + start
    cdef float *scores = workspace.scores
    cdef Py_ssize_t n = stop - start, group, i, j, best, n_scores = centers.n_panels * LANES
    for group in range((n + GROUP - 1) // GROUP):
        i = group * GROUP
        table().affine(rows + i, min(<Py_ssize_t>GROUP, n - i), centers.dim, centers.panels, centers.bias,
                       centers.n_panels, scores, n_scores)
        for j in range(min(<Py_ssize_t>GROUP, n - i)):
            best = table().argmin(scores + j * n_scores, n_scores)
            out[places[i + j]] = <int32_t>best
            gap[places[i + j]] = scores[j * n_scores + best]


cdef void add_norms(const float[:, ::1] coordinates, Py_ssize_t dim, float[::1] gap) noexcept nogil:
    """From scores |c|^2 - 2 x.c to squared distances."""
    cdef Py_ssize_t i
    for i in range(coordinates.shape[0]):
        gap[i] = max(<float>0, gap[i] + table().norm2(&coordinates[i, 0], dim))


class CellArrays(NamedTuple):
    """Projected points in the order of their cells, and the centres of these.

    Attributes
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
    n_centers : int
    steps : (L, panels * 16) float32, optional
        What coordinates in int16 are multiples of.
    """
    coordinates: Any
    bias: Any
    ids: Any
    first_panel: Any
    sizes: Any
    centers: Any
    center_bias: Any
    n_centers: int
    steps: Any = None


cdef class Cells:
    """The arrays of `CellArrays` as the kernels see them."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.quantized = arrays.steps is not None
        if self.quantized:
            self.shorts, self.steps = arrays.coordinates, arrays.steps
        else:
            self.coordinates = arrays.coordinates
        self.bias, self.ids = arrays.bias, arrays.ids
        self.first_panel, self.sizes = arrays.first_panel, arrays.sizes
        self.centers, self.center_bias = arrays.centers, arrays.center_bias
        self.n_centers, self.n_cells = arrays.n_centers, arrays.sizes.shape[0]
        self.n_composite, self.n_simple = arrays.coordinates.shape[0], arrays.coordinates.shape[2]

    def __reduce__(self):
        return Cells, (self.arrays,)
