"""Points in cells: assignment, the cell-ordered panels, and the ranked search through them.

A batch is searched cell by cell: a cell's coordinates are read once for all the queries that opened
it.  Within the cells opened, every point is ranked.
"""
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from ._kernels cimport (
    LANES, Kernels, Reservoir, Reservoirs, entry, reservoir_cut, select_keys, sort_keys, table,
)
from ._rows cimport Rows

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
    cdef readonly object arrays
    cdef const float[:, :, :, ::1] coordinates
    cdef const float[:, ::1] bias
    cdef const int32_t[::1] ids, first_panel, sizes
    cdef const float[:, :, ::1] centers
    cdef const float[::1] center_bias
    cdef readonly Py_ssize_t n_centers, n_cells, n_composite, n_simple

    def __init__(self, coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers):
        self.arrays = (coordinates, bias, ids, first_panel, sizes, centers, center_bias, n_centers)
        self.coordinates, self.bias, self.ids = coordinates, bias, ids
        self.first_panel, self.sizes = first_panel, sizes
        self.centers, self.center_bias = centers, center_bias
        self.n_centers, self.n_cells = n_centers, sizes.shape[0]
        self.n_composite, self.n_simple = coordinates.shape[0], coordinates.shape[2]

    def __reduce__(self):
        return Cells, self.arrays


cdef struct Opened:
    # Pairs (cell << 32 | row of the batch) in the order in which they were opened.
    uint64_t *pairs
    Py_ssize_t count, capacity


cdef int open_cell(Opened *opened, Py_ssize_t cell, Py_ssize_t row) noexcept nogil:
    cdef uint64_t *larger
    if opened.count == opened.capacity:
        larger = <uint64_t *>realloc(opened.pairs, 2 * opened.capacity * sizeof(uint64_t))
        if larger == NULL:
            return -1
        opened.pairs = larger
        opened.capacity *= 2
    opened.pairs[opened.count] = <uint64_t>cell << 32 | <uint64_t>row
    opened.count += 1
    return 0


cdef int open_cells(Cells cells, const float *scores, Py_ssize_t row, Py_ssize_t max_visits,
                    uint64_t *keys, Opened *nearest_cells, Opened *others) noexcept nogil:
    """Cells in order of their centres' scores until they hold max_visits points."""
    cdef Py_ssize_t n = cells.n_centers, c, done = 0, visited = 0, step
    cdef Py_ssize_t average
    for c in range(n):
        keys[c] = entry(scores[c], <uint32_t>c)
    for c in range(n, cells.n_cells):
        visited += cells.sizes[c]
        if open_cell(others, c, row):
            return -1
    average = max(<Py_ssize_t>1, cells.ids.shape[0] // max(<Py_ssize_t>1, cells.n_cells))
    step = min(n, max_visits // average + max_visits // (4 * average) + 4)
    while done < n and (visited < max_visits or done == 0):
        if done % step == 0:  # the next `step` cells, in order
            select_keys(keys + done, n - done, min(step, n - done), min(step, n - done))
            sort_keys(keys + done, min(step, n - done))
        c = <Py_ssize_t>(keys[done] & <uint64_t>0xFFFFFFFF)
        visited += cells.sizes[c]
        if open_cell(nearest_cells if done == 0 else others, c, row):
            return -1
        done += 1
    return 0


cdef int scan_opened(Cells cells, Opened *opened, Py_ssize_t n_rows, const float *queries,
                     Py_ssize_t stride, bint use_max, Reservoir *reservoirs,
                     const uint8_t *allowed) noexcept nogil:
    """Rank the points of the cells opened, cell by cell."""
    cdef Py_ssize_t n_cells = cells.n_cells, c, i, l, start, count, row
    cdef Py_ssize_t m = cells.n_simple
    cdef Py_ssize_t *offsets = <Py_ssize_t *>malloc((n_cells + 1) * sizeof(Py_ssize_t))
    cdef int32_t *members = <int32_t *>malloc(max(opened.count, 1) * sizeof(int32_t))
    cdef const float **rows = <const float **>malloc(n_rows * sizeof(float *))
    cdef Reservoir **targets = <Reservoir **>malloc(n_rows * sizeof(Reservoir *))
    cdef const Kernels *kernels = table()
    cdef const float *panels
    cdef int failed = not (offsets and members and rows and targets)
    cdef uint32_t position
    if not failed:
        for c in range(n_cells + 1):
            offsets[c] = 0
        for i in range(opened.count):
            offsets[(opened.pairs[i] >> 32) + 1] += 1
        for c in range(n_cells):
            offsets[c + 1] += offsets[c]
        for i in range(opened.count):
            c = <Py_ssize_t>(opened.pairs[i] >> 32)
            members[offsets[c]] = <int32_t>(opened.pairs[i] & <uint64_t>0xFFFFFFFF)
            offsets[c] += 1
        start = 0
        for c in range(n_cells):
            count = offsets[c] - start
            if count > 0 and cells.sizes[c] > 0:
                position = <uint32_t>(cells.first_panel[c] * LANES)
                for l in range(cells.n_composite):
                    for i in range(count):
                        row = members[start + i]
                        rows[i] = queries + row * stride + l * m
                        targets[i] = &reservoirs[l * n_rows + row]
                    panels = &cells.coordinates[l, cells.first_panel[c], 0, 0]
                    if use_max:
                        kernels.scan_max(rows, targets, count, m, panels,
                                         cells.first_panel[c + 1] - cells.first_panel[c],
                                         position, allowed)
                    else:
                        kernels.scan_sum(rows, targets, count, m, panels,
                                         &cells.bias[l, position],
                                         cells.first_panel[c + 1] - cells.first_panel[c],
                                         position, allowed)
            start = offsets[c]
    free(offsets)
    free(members)
    free(rows)
    free(targets)
    return failed


def search(Cells cells, const float[:, ::1] queries, Py_ssize_t max_visits, bint use_max,
           Reservoirs reservoirs, const uint8_t[::1] allowed=None):
    """Rank the points of the best cells for a batch of queries.

    Parameters
    ----------
    queries : (b, >= L * m) float32
        Projections of the queries, multiplied by -2 unless `use_max`.
    max_visits : int
        Cells are opened, best first, until they hold so many points.
    reservoirs : of size L * b
        Written; candidates of query i by composite index l are in reservoir l * b + i.
    allowed : (positions,) uint8, optional
    """
    cdef Py_ssize_t n_rows = queries.shape[0], group, i, j, k, count
    cdef Py_ssize_t dim = cells.centers.shape[1], n_scores = cells.centers.shape[0] * LANES
    cdef const uint8_t *mask = NULL if allowed is None else &allowed[0]
    cdef Opened first, others
    cdef int failed = 0
    cdef float *scratch
    cdef uint64_t *keys
    cdef const float *rows[GROUP]
    if n_rows == 0:
        return
    first.count = others.count = 0
    first.capacity = n_rows
    others.capacity = 16 * n_rows
    first.pairs = <uint64_t *>malloc(first.capacity * sizeof(uint64_t))
    others.pairs = <uint64_t *>malloc(others.capacity * sizeof(uint64_t))
    scratch = <float *>malloc(GROUP * (dim + n_scores) * sizeof(float))
    keys = <uint64_t *>malloc(max(n_scores, <Py_ssize_t>1) * sizeof(uint64_t))
    if not (first.pairs and others.pairs and scratch and keys):
        failed = 1
    else:
        with nogil:
            for group in range((n_rows + GROUP - 1) // GROUP):
                i = group * GROUP
                count = min(<Py_ssize_t>GROUP, n_rows - i)
                for j in range(count):
                    rows[j] = &queries[i + j, 0]
                    if use_max:
                        rows[j] = scratch + j * dim
                        for k in range(dim):
                            scratch[j * dim + k] = -2 * queries[i + j, k]
                table().affine(rows, count, dim, &cells.centers[0, 0, 0], &cells.center_bias[0],
                               cells.centers.shape[0], scratch + GROUP * dim, n_scores)
                for j in range(count):
                    failed |= open_cells(cells, scratch + GROUP * dim + j * n_scores, i + j,
                                         max_visits, keys, &first, &others)
            # The nearest cells first: they set the thresholds that spare most of the work after.
            if not failed:
                failed = scan_opened(cells, &first, n_rows, &queries[0, 0], queries.shape[1],
                                     use_max, reservoirs.item, mask)
            if not failed:
                failed = scan_opened(cells, &others, n_rows, &queries[0, 0], queries.shape[1],
                                     use_max, reservoirs.item, mask)
    free(first.pairs)
    free(others.pairs)
    free(scratch)
    free(keys)
    if failed:
        raise MemoryError("cells of a batch of queries")


def positions(Reservoirs reservoirs, Py_ssize_t keep):
    """Positions in each reservoir in order of rank, (size, keep) int64, -1 past the last."""
    out = np.full((reservoirs.size, keep), -1, np.int64)
    cdef long long[:, ::1] view = out
    cdef Py_ssize_t i, j
    for i in range(reservoirs.size):
        reservoir_cut(&reservoirs.item[i], reservoirs.item[i].keep)
        sort_keys(reservoirs.item[i].entries, reservoirs.item[i].count)
        for j in range(min(keep, <Py_ssize_t>reservoirs.item[i].count)):
            view[i, j] = <uint32_t>reservoirs.item[i].entries[j]
    return out
