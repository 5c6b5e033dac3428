"""Keys and values of one head in cells, with the moments of a prefix of them."""
import numpy as np

from libc.math cimport INFINITY, log, sqrtf
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .workspace cimport TILE

from dci._native.panels import lay_out, sizes_of
from dci._native.rows import panels_of


def round_up(n):
    return -(-n // LANES) * LANES


# Of the mean: also a cell of equal values has a mass to err in. To measure anew: python -m comparisons run --suite
# attention_truth
cdef float LEAST_SPREAD = 0.25


cdef class Moments:
    """Keys and values of one head in the order of their cells, with moments of a prefix of them.

    Parameters
    ----------
    keys : (S, E) float32, unit stride along E
    values : (S, Ev) float32, unit stride along Ev
    cell_of : (S,) int32
        Cell of each key; `n_cells` for keys that every query attends to exactly.
    centers : (n_cells + 1, E) float32
        What deviations are taken from: near the mean key of each cell.
    for_keys, for_queries : (E, m) float32, optional
        Directions of the moments; the coordinates themselves if not given.
    second_order : bool
        Whether the moments go beyond the means.
    """

    def __init__(self, const float[:, :] keys, const float[:, :] values, const int32_t[::1] cell_of,
                 const float[:, ::1] centers, for_keys=None, for_queries=None, bint second_order=True):
        cdef Py_ssize_t c
        self.keys, self.values, self.centers = keys, values, centers
        self.n_keys, self.dim, self.width = keys.shape[0], keys.shape[1], values.shape[1]
        self.n_cells = centers.shape[0] - 1
        self.projected, self.second_order = for_keys is not None, second_order
        self.n_directions = for_keys.shape[1] if self.projected else self.dim
        self.value_pad = round_up(self.width)
        self.deviation_pad = round_up(self.n_directions)
        self.row_stride = self.value_pad + self.deviation_pad
        self.cell_pad = round_up(max(self.n_cells, 1))
        if self.projected:
            padded = np.zeros((self.dim, self.deviation_pad), np.float32)
            padded[:, : self.n_directions] = for_keys
            self.for_keys = padded
            self.for_queries = np.ascontiguousarray(for_queries, dtype=np.float32)
            self.query_panels = panels_of(self.for_queries.T)
        first_panel, places = lay_out(sizes_of(np.asarray(cell_of), self.n_cells + 1))
        self.first_panel = first_panel.astype(np.int32)
        order = np.argsort(np.asarray(cell_of).astype(np.uint16), kind="stable").astype(np.int32)
        total = self.first_panel[self.n_cells + 1]
        ids = np.full(total * LANES, -1, np.int32)
        ids[places] = order
        self.ids = ids
        self.panels = np.empty((total, self.dim, LANES), np.float32)
        self.rows = np.zeros((total * LANES, self.row_stride), np.float32)
        self.counts = np.zeros(self.n_cells + 1, np.int32)
        self.count = self.counts
        cells, m = self.n_cells, self.n_directions
        self.first = np.zeros((cells, self.row_stride), np.float32)
        self.second = np.zeros((cells, m, self.row_stride), np.float32)
        self.key_sums = np.zeros((cells if self.projected else 0, self.dim), np.float32)
        self.mean_keys = np.zeros((self.cell_pad // LANES, self.dim, LANES), np.float32)
        self.mean_values = np.zeros((cells, self.value_pad), np.float32)
        self.mean_value = np.zeros(self.value_pad, np.float32)
        self.sigma = np.zeros((self.cell_pad // LANES, self.dim, m, LANES), np.float32)
        self.squares = np.zeros((self.cell_pad // LANES, m * (m + 1) // 2, LANES), np.float32)
        self.gamma = np.zeros((cells, self.value_pad // LANES, m, LANES), np.float32)
        self.log_counts = np.full(self.cell_pad, -np.inf, np.float32)
        self.value_squares = np.zeros(cells, np.float32)
        self.spreads = np.zeros(self.cell_pad, np.float32)
        self.no_bias = np.zeros(max(self.cell_pad * self.dim, self.value_pad * m, TILE) + LANES, np.float32)
        self.covariances = np.zeros((LANES, m, self.deviation_pad), np.float32)
        self.lines = np.zeros(m * LANES, np.float32)
        self.mean_sigma = np.zeros((self.dim, self.deviation_pad), np.float32)
        self.lifted = np.zeros((LANES if self.projected else 0, self.dim, self.deviation_pad), np.float32)
        cdef float[:, ::1] buffer = np.empty((LANES, self.dim), np.float32)
        with nogil:
            for c in range(self.n_cells + 1):
                self.pack(c, &buffer[0, 0])

    cdef void pack(self, Py_ssize_t c, float *buffer) noexcept nogil:
        """Copy the keys (transposed) and the values and deviations (as rows) of a cell."""
        cdef Py_ssize_t position, panel, lane
        cdef int32_t i
        cdef float *row
        cdef float *key
        for panel in range(self.first_panel[c], self.first_panel[c + 1]):
            memset(buffer, 0, LANES * self.dim * sizeof(float))
            for lane in range(LANES):
                i = self.ids[panel * LANES + lane]
                if i < 0:
                    break
                memcpy(buffer + lane * self.dim, &self.keys[i, 0], self.dim * sizeof(float))
                memcpy(&self.rows[panel * LANES + lane, 0], &self.values[i, 0], self.width * sizeof(float))
            table().transpose(buffer, self.dim, self.dim, &self.panels[panel, 0, 0])
            if c == self.n_cells:
                continue
            for lane in range(LANES):
                position = panel * LANES + lane
                if self.ids[position] < 0:
                    break
                key, row = buffer + lane * self.dim, &self.rows[position, self.value_pad]
                if not self.projected:
                    table().prepare(key, self.dim, 1, &self.centers[c, 0], row)
                else:
                    table().prepare(key, self.dim, 1, &self.centers[c, 0], key)
                    table().combine(key, 0, 1, 1, self.dim, &self.for_keys[0, 0], self.deviation_pad,
                                    self.deviation_pad, row, self.deviation_pad)

    def state(self):
        """Copy what attention reads of the keys taken so far, for `restore`."""
        return (self.mean_count, self.mean_spread), tuple(np.array(array) for array in self.read())

    def restore(self, state):
        """Let attention read an earlier state; `advance` needs a `reset` first."""
        self.mean_count, self.mean_spread = state[0]
        for array, copy in zip(self.read(), state[1]):
            np.asarray(array)[...] = copy

    def reset(self):
        """Return to the state before any key was taken."""
        for array in (*self.read(), self.first, self.second, self.key_sums, self.value_squares):
            np.asarray(array)[...] = 0
        np.asarray(self.log_counts)[...] = -np.inf

    cdef tuple read(self):
        return (self.count, self.mean_keys, self.mean_values, self.sigma, self.squares, self.gamma, self.log_counts,
                self.mean_sigma, self.spreads)

    def release(self):
        """Give back the memory that only `advance` and `reset` need: they are over."""
        self.keys, self.values = np.empty((0, self.dim), np.float32), np.empty((0, self.width), np.float32)
        self.second, self.key_sums = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)

    def advance(self, Py_ssize_t boundary):
        """Take the keys before `boundary` into the moments; it may only grow."""
        cdef Py_ssize_t c, panel
        cdef bint changed
        self.mean_count = <float>boundary / max(self.n_cells, 1)
        with nogil:
            for panel in range(self.cell_pad // LANES):
                changed = False
                for c in range(panel * LANES, min(self.n_cells, (panel + 1) * LANES)):
                    changed = self.take(c, boundary) or changed
                if changed and self.second_order:
                    self.close(panel)
            self.take(self.n_cells, boundary)
            self.average()

    cdef void average(self) noexcept nogil:
        """Mean of the cells' sigma, weighed by their counts."""
        cdef Py_ssize_t c, e, k, panel, lane
        cdef float total = 0
        cdef float shares[LANES]
        for c in range(self.n_cells):
            total += self.count[c]
        memset(&self.mean_sigma[0, 0], 0, self.dim * self.deviation_pad * sizeof(float))
        if total == 0:
            return
        self.spread(total)
        for panel in range(self.cell_pad // LANES):
            for lane in range(LANES):
                c = panel * LANES + lane
                shares[lane] = self.count[c] / total if c < self.n_cells else 0
            for e in range(self.dim):
                for k in range(self.n_directions):
                    self.mean_sigma[e, k] += <float>table().dot(shares, &self.sigma[panel, e, k, 0], LANES)

    cdef void spread(self, float total) noexcept nogil:
        """Mean squared distance of all values to their mean, and by how much a cell's are farther, as a factor."""
        cdef Py_ssize_t c, v
        cdef double mean, product, squares = 0
        cdef float *sums = &self.mean_value[0]
        memset(sums, 0, self.value_pad * sizeof(float))
        for c in range(self.n_cells):
            for v in range(self.width):
                sums[v] += self.mean_values[c, v] * (self.count[c] / total)
        mean = table().dot(sums, sums, self.width)
        for c in range(self.n_cells):
            self.spreads[c] = 0
            if self.count[c]:
                product = table().dot(sums, &self.mean_values[c, 0], self.width)
                self.spreads[c] = <float>max(<double>0, self.value_squares[c] / self.count[c] - 2 * product + mean)
                squares += self.spreads[c] * self.count[c] / total
        self.mean_spread = <float>squares
        for c in range(self.n_cells):
            if 0 < self.mean_spread < INFINITY:
                self.spreads[c] = sqrtf(self.spreads[c] / self.mean_spread + LEAST_SPREAD)
            else:
                self.spreads[c] = 1

    cdef bint take(self, Py_ssize_t c, Py_ssize_t boundary) noexcept nogil:
        """Add a cell's keys before `boundary` to its sums and means; return whether there were any new ones."""
        cdef Py_ssize_t start = self.first_panel[c] * LANES, before = self.count[c], n = before, k, j, v
        cdef Py_ssize_t stop = self.first_panel[c + 1] * LANES - start
        cdef Py_ssize_t m = self.n_directions, lane = c % LANES, panel = c // LANES
        cdef float one = 1, share, mean
        cdef float *gap
        cdef float *sums
        cdef float *row
        cdef float *out
        while n < stop and 0 <= self.ids[start + n] < boundary:
            n += 1
        if n == before:
            return False
        self.count[c] = <int32_t>n
        if c == self.n_cells:
            return True
        sums = &self.first[c, 0]
        table().combine(&one, 0, 0, 1, n - before, &self.rows[start + before, 0], self.row_stride, self.row_stride,
                        sums, self.row_stride)
        for j in range(before, n):
            self.value_squares[c] += table().norm2(&self.rows[start + j, 0], self.width)
        share = <float>1 / n
        gap = sums + self.value_pad
        for k in range(self.dim):
            if self.projected:
                for j in range(before, n):
                    self.key_sums[c, k] += self.keys[self.ids[start + j], k] - self.centers[c, k]
                mean = self.key_sums[c, k] * share
            else:
                mean = gap[k] * share
            self.mean_keys[panel, k, lane] = self.centers[c, k] + mean
        for v in range(self.width):
            self.mean_values[c, v] = sums[v] * share
        self.log_counts[c] = <float>log(n)
        if not self.second_order:
            return True
        table().combine(&self.rows[start + before, self.value_pad], 1, self.row_stride, m, n - before,
                        &self.rows[start + before, 0], self.row_stride, self.row_stride, &self.second[c, 0, 0],
                        self.row_stride)
        for k in range(m):
            row = &self.second[c, k, 0]
            mean = gap[k] * share
            for v in range(self.value_pad // LANES):
                out = &self.gamma[c, v, k, 0]
                for j in range(LANES):
                    out[j] = (row[v * LANES + j] - sums[v * LANES + j] * mean) * share
        return True

    cdef void close(self, Py_ssize_t panel) noexcept nogil:
        """Covariances of the deviations in a panel of cells, from m to E coordinates where they are projected.

        They are computed cell by cell and then transposed, since storing them lane by lane would miss the cache.
        """
        cdef Py_ssize_t m = self.n_directions, pad = self.deviation_pad, size = m * pad, lane, c, e, j, k
        cdef float *covariances = &self.covariances[0, 0, 0]
        cdef float *squares = &self.squares[panel, 0, 0]
        cdef float *lines
        for lane in range(LANES):
            c = panel * LANES + lane
            if c < self.n_cells and self.count[c]:
                self.covary(c, covariances + lane * size)
            else:
                memset(covariances + lane * size, 0, size * sizeof(float))
        for k in range(m):
            lines = &self.lines[0] if self.projected else &self.sigma[panel, k, 0, 0]
            table().transpose(covariances + k * pad, size, m, lines)
            # What a product of two coordinates, once for both orders, counts in a variance.
            for j in range(k * LANES):
                squares[j] = 2 * lines[j]
            memcpy(squares + k * LANES, lines + k * LANES, LANES * sizeof(float))
            squares += (k + 1) * LANES
        if self.projected:
            self.lift(covariances)
            for e in range(self.dim):
                table().transpose(&self.lifted[0, e, 0], self.dim * pad, m, &self.sigma[panel, e, 0, 0])

    cdef void covary(self, Py_ssize_t c, float *out) noexcept nogil:
        """Covariances of a cell's deviations, (m, deviation_pad)."""
        cdef Py_ssize_t m = self.n_directions, j, k
        cdef float share = <float>1 / self.count[c], mean
        cdef float *gap = &self.first[c, self.value_pad]
        cdef float *row
        for k in range(m):
            row, mean = &self.second[c, k, self.value_pad], gap[k] * share
            for j in range(m):
                out[j] = (row[j] - gap[j] * mean) * share
            out += self.deviation_pad

    cdef void lift(self, const float *covariances) noexcept nogil:
        """lifted = for_queries @ covariances of the projected deviations, from m to E coordinates, for a panel."""
        cdef Py_ssize_t m = self.n_directions, pad = self.deviation_pad, lane
        memset(&self.lifted[0, 0, 0], 0, LANES * self.dim * pad * sizeof(float))
        for lane in range(LANES):
            table().combine(&self.for_queries[0, 0], m, 1, self.dim, m, covariances + lane * m * pad, pad, pad,
                            &self.lifted[lane, 0, 0], pad)
