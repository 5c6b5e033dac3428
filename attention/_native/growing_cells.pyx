"""Keys and values of one head in cells that grow, with moments that follow.

A key goes to the end of its cell, so that what is added costs about as much for many keys before it as for few.
"""
import numpy as np

from libc.math cimport INFINITY, log, sqrtf
from libc.stdint cimport int32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .workspace cimport TILE

from dci._native.rows import panels_of

cdef enum:
    CHUNK = 64  # panels of memory that are got at once
    GROWTH = 8  # a cell that is full grows by one part in so many

# Of the mean: also a cell of equal values has a mass to err in. To measure anew: python -m comparisons run --suite
# attention_truth
cdef float LEAST_SPREAD = 0.25


def round_up(n):
    return -(-n // LANES) * LANES


cdef class GrowingCells:
    """Cells of keys and values, empty at first, and one more of keys that every query attends to exactly.

    Parameters
    ----------
    n_cells : int
        Cell number `n_cells` is the one beside them.
    for_keys, for_queries : (E, m) float32
        Directions of the second moments.
    width : int
        Ev.
    second_order : bool
        Whether the moments go beyond the means.

    Attributes
    ----------
    counts : (n_cells + 1,) int32
        Keys of each cell.
    n_keys : int
        Of all cells.
    """

    def __init__(self, Py_ssize_t n_cells, for_keys, for_queries, Py_ssize_t width, bint second_order=True):
        self.arguments = (n_cells, for_keys, for_queries, width, second_order)
        self.n_cells, self.width, self.second_order = n_cells, width, second_order
        self.dim, self.n_directions = for_keys.shape
        self.value_pad, self.deviation_pad = round_up(width), round_up(self.n_directions)
        self.cell_pad = round_up(max(n_cells, 1))
        self.n_products = self.n_directions * (self.n_directions + 1) // 2
        padded = np.zeros((self.dim, self.deviation_pad), np.float32)
        padded[:, : self.n_directions] = for_keys
        self.for_keys = padded
        self.query_panels = panels_of(np.ascontiguousarray(for_queries.T, dtype=np.float32))
        self.memory = []
        self.first_extent, self.last_extent = np.full(n_cells + 1, -1, np.int32), np.full(n_cells + 1, -1, np.int32)
        self.writing, self.filled = np.zeros(n_cells + 1, np.int32), np.zeros(n_cells + 1, np.int32)
        self.counts = np.zeros(n_cells + 1, np.int32)
        self.count, self.room = self.counts, np.zeros(n_cells + 1, np.int32)
        panels, second = self.cell_pad // LANES, n_cells if second_order else 0
        self.mean_keys = np.zeros((panels, self.dim, LANES), np.float32)
        self.products = np.zeros((panels if second else 0, self.n_products, LANES), np.float32)
        self.mean_values = np.zeros((n_cells, self.value_pad), np.float32)
        self.gamma = np.zeros((second, self.n_directions, self.value_pad), np.float32)
        self.log_counts = np.full(self.cell_pad, -np.inf, np.float32)
        self.inverse_counts, self.spreads = np.zeros(self.cell_pad, np.float32), np.zeros(self.cell_pad, np.float32)
        self.value_squares, self.mean_value = np.zeros(n_cells, np.float32), np.zeros(self.value_pad, np.float32)
        self.zeros = np.zeros(max(self.deviation_pad, self.cell_pad), np.float32)
        of_key = self.dim + self.deviation_pad + self.value_pad
        products = self.n_directions * (self.deviation_pad + self.value_pad)
        self.scratch = np.empty((TILE + 1) * of_key + products, np.float32)

    def __dealloc__(self):
        free(self.extents)

    def copy(self):
        """Return cells with the same keys in memory of their own."""
        cdef GrowingCells other = type(self)(*self.arguments)
        cdef Py_ssize_t c, n, done
        cdef Extent *mine
        cdef Extent *its
        other.reserve(self.counts)
        for c in range(self.n_cells + 1):
            if self.count[c] == 0:
                continue
            done, mine, its = 0, self.extents + self.first_extent[c], other.extents + other.first_extent[c]
            while True:
                n = min(mine.room, self.count[c] - done)
                memcpy(its.keys + done * self.dim, mine.keys, round_panels(n) * self.dim * sizeof(float))
                memcpy(its.values + done * self.value_pad, mine.values, n * self.value_pad * sizeof(float))
                done += n
                if done == self.count[c]:
                    break
                mine = self.extents + mine.following
            other.filled[c] = self.count[c]
        for source, target in zip(self.state(), other.state()):
            np.asarray(target)[...] = source
        other.n_keys, other.mean_count, other.mean_spread = self.n_keys, self.mean_count, self.mean_spread
        return other

    def state(self):
        """What follows the keys."""
        return (self.count, self.mean_keys, self.products, self.mean_values, self.gamma, self.log_counts,
                self.inverse_counts, self.spreads, self.value_squares, self.mean_value)

    def reserve(self, more):
        """Make room for so many keys more of each cell, (n_cells + 1,) int."""
        cdef Py_ssize_t c, wanted
        free_room = np.asarray(self.room) - np.asarray(self.count)
        missing = -(-np.maximum(np.asarray(more, np.int64) - free_room, 0) // LANES)
        missing = np.where(missing > 0, np.maximum(missing, np.asarray(self.count) // (GROWTH * LANES)), 0)
        wanted = int(missing.sum())
        if wanted > self.panels_stop - self.panel:
            wanted = max(wanted, <Py_ssize_t>CHUNK)
            self.memory.append((np.zeros((wanted, self.dim, LANES), np.float32),
                                np.zeros((wanted * LANES, self.value_pad), np.float32)))
            self.panel, self.panels_stop = 0, wanted
        for c in np.flatnonzero(missing):
            self.add_extent(c, missing[c])

    cdef bint add_extent(self, Py_ssize_t c, Py_ssize_t n_panels) except False:
        """Give a cell some of the panels that are free."""
        cdef float[:, :, ::1] keys
        cdef float[:, ::1] values
        cdef Extent *extent
        cdef void *moved
        cdef int32_t here = <int32_t>self.n_extents
        keys, values = self.memory[len(self.memory) - 1]
        if self.n_extents == self.extents_room:
            moved = realloc(self.extents, (2 * self.extents_room + 64) * sizeof(Extent))
            if moved == NULL:
                raise MemoryError("extents of cells")
            self.extents, self.extents_room = <Extent *>moved, 2 * self.extents_room + 64
        extent = self.extents + here
        extent.keys, extent.values = &keys[self.panel, 0, 0], &values[self.panel * LANES, 0]
        extent.room, extent.following = n_panels * LANES, -1
        if self.first_extent[c] < 0:
            self.first_extent[c] = self.writing[c] = here
        else:
            self.extents[self.last_extent[c]].following = here
        self.last_extent[c] = here
        self.room[c] += <int32_t>extent.room
        self.panel += n_panels
        self.n_extents += 1
        return True

    def append(self, const float[:, ::1] keys, const float[:, ::1] values, cell_of):
        """Add keys.

        Parameters
        ----------
        keys, values : (n, E) and (n, Ev) float32, C-contiguous
        cell_of : (n,) int32
            Cell of each key.
        """
        cdef Py_ssize_t start = 0, c, stop
        if len(cell_of) == 0:
            return
        sizes = np.bincount(cell_of, minlength=self.n_cells + 1)
        self.reserve(sizes)
        cdef int32_t[::1] order = np.argsort(cell_of, kind="stable").astype(np.int32)
        cdef int32_t[::1] ends = np.cumsum(sizes).astype(np.int32)
        with nogil:
            for c in range(self.n_cells + 1):
                stop = ends[c]
                while start < stop:
                    self.merge(c, keys, values, &order[start], min(<Py_ssize_t>TILE, stop - start))
                    start += min(<Py_ssize_t>TILE, stop - start)
            self.n_keys += start
            self.average()

    cdef void place(self, Py_ssize_t c, const float *key, const float *value) noexcept nogil:
        """Copy a key, transposed, and its value to the end of a cell, where there is room."""
        cdef Extent *extent = self.extents + self.writing[c]
        cdef Py_ssize_t k
        cdef float *panel
        if self.filled[c] == extent.room:
            self.writing[c], self.filled[c] = extent.following, 0
            extent = self.extents + self.writing[c]
        panel = extent.keys + self.filled[c] // LANES * LANES * self.dim + self.filled[c] % LANES
        for k in range(self.dim):
            panel[k * LANES] = key[k]
        memcpy(extent.values + self.filled[c] * self.value_pad, value, self.width * sizeof(float))
        self.filled[c] += 1

    cdef void merge(self, Py_ssize_t c, const float[:, ::1] keys, const float[:, ::1] values, const int32_t *ids,
                    Py_ssize_t n) noexcept nogil:
        """Add at most `TILE` keys to a cell, and to its moments.

        Deviations are taken from the means so far, or for the first keys from a key, so that nothing cancels.
        """
        cdef Py_ssize_t dim = self.dim, pad = self.deviation_pad, width = self.value_pad, m = self.n_directions
        cdef Py_ssize_t before = self.count[c], total = before + n, i, j, k, v, lane = c % LANES, panel = c // LANES
        cdef float *gaps = &self.scratch[0]
        cdef float *projected = gaps + (TILE + 1) * dim
        cdef float *rows = projected + (TILE + 1) * pad
        cdef float *scatter = rows + (TILE + 1) * width
        cdef float *squares = scatter + m * width
        cdef float *key_shift = gaps + n * dim
        cdef float *shift = projected + n * pad
        cdef float *value_shift = rows + n * width
        cdef float share = <float>1 / total, old = <float>before / total
        for j in range(n):
            self.place(c, &keys[ids[j], 0], &values[ids[j], 0])
        self.count[c] = <int32_t>total
        if c == self.n_cells:
            return
        if before == 0:
            for k in range(dim):
                self.mean_keys[panel, k, lane] = keys[ids[0], k]
            memcpy(&self.mean_values[c, 0], &values[ids[0], 0], self.width * sizeof(float))
        memset(key_shift, 0, dim * sizeof(float))
        memset(value_shift, 0, width * sizeof(float))
        memset(projected, 0, (n + 1) * pad * sizeof(float))
        for j in range(n):
            for k in range(dim):
                gaps[j * dim + k] = keys[ids[j], k] - self.mean_keys[panel, k, lane]
                key_shift[k] += gaps[j * dim + k] * share
            for v in range(self.width):
                rows[j * width + v] = values[ids[j], v] - self.mean_values[c, v]
                value_shift[v] += rows[j * width + v] * share
            for v in range(self.width, width):
                rows[j * width + v] = 0
            self.value_squares[c] += table().norm2(&values[ids[j], 0], self.width)
        for k in range(dim):
            self.mean_keys[panel, k, lane] += key_shift[k]
        for v in range(self.width):
            self.mean_values[c, v] += value_shift[v]
        self.log_counts[c], self.inverse_counts[c] = <float>log(total), share
        if not self.second_order:
            return
        table().combine(gaps, dim, 1, n + 1, dim, &self.for_keys[0, 0], pad, pad, projected, pad)
        memset(scatter, 0, m * width * sizeof(float))
        table().combine(projected, 1, pad, m, n, rows, width, width, scatter, width)
        for k in range(m):
            for v in range(self.width):
                self.gamma[c, k, v] = (old * self.gamma[c, k, v] + share * scatter[k * width + v]
                                       - shift[k] * value_shift[v])
        memset(squares, 0, m * pad * sizeof(float))
        table().combine(projected, 1, pad, m, n, projected, pad, pad, squares, pad)
        i = 0
        for k in range(m):  # twice what lies beside the diagonal: q.S q is a sum over k <= j
            for j in range(k, m):
                self.products[panel, i, lane] = (old * self.products[panel, i, lane] + (2 if j > k else 1)
                                                 * (share * squares[k * pad + j] - shift[k] * shift[j]))
                i += 1

    cdef void average(self) noexcept nogil:
        """Mean squared distance of all values to their mean, and by how much a cell's are farther, as a factor."""
        cdef Py_ssize_t c, v, total = self.n_keys - self.count[self.n_cells]
        cdef double mean, product, spread, squares = 0
        cdef float share
        cdef float *sums = &self.mean_value[0]
        self.mean_count = <float>max(<Py_ssize_t>1, total) / max(<Py_ssize_t>1, self.n_cells)
        memset(sums, 0, self.value_pad * sizeof(float))
        for c in range(self.n_cells):
            share = <float>self.count[c] / max(<Py_ssize_t>1, total)
            for v in range(self.width):
                sums[v] += self.mean_values[c, v] * share
        mean = table().dot(sums, sums, self.width)
        for c in range(self.n_cells):
            self.spreads[c] = 0
            if self.count[c]:
                product = table().dot(sums, &self.mean_values[c, 0], self.width)
                spread = max(<double>0, self.value_squares[c] / self.count[c] - 2 * product + mean)
                self.spreads[c] = <float>spread
                squares += spread * self.count[c] / total
        self.mean_spread = <float>squares
        for c in range(self.n_cells):
            if self.count[c] == 0:
                continue
            if 0 < self.mean_spread < INFINITY:
                self.spreads[c] = sqrtf(self.spreads[c] / self.mean_spread + LEAST_SPREAD)
            else:
                self.spreads[c] = 1


cdef inline Py_ssize_t round_panels(Py_ssize_t n) noexcept nogil:
    return (n + LANES - 1) // LANES * LANES
