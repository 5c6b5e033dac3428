"""Keys and values of one head in cells, and attention over them: near cells exactly, far cells by moments.

A block of similar queries shares one linear form of every cell's Gaussian closure (design in `_head`): around the
block's mean query, a cell is one key and one value, so that the far field of a block is a small dense attention.
"""
import numpy as np

from libc.math cimport INFINITY, expf, log, sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from dci._kernels cimport LANES, table

from dci._rows import panels_of

cdef enum:
    BLOCK = 64  # queries that share a linear form, and that visit a cell together
    TILE = 256  # keys that are scored at once
    LOCAL_TILE = 128  # of these, of the keys that queries see in part
    BLOCKS = 16  # of queries whose linear forms are made in one pass over the moments

cdef float NOTHING = -1e30  # the score of what is not there
cdef float ROOM = 30  # a score so far above the shift makes a new shift
cdef float ODD = 2  # times the block's mean, the least variance by which a query is out of reach
cdef float CLOSURE = 4  # the largest variance of scores within a cell that its closure may stand for


cdef class Scratch:
    """Memory of one thread at work on some queries; a field keeps it from call to call."""
    cdef Py_ssize_t capacity, n, n_pairs, touched
    cdef int32_t *row
    cdef float *queries
    cdef float *shift
    cdef float *sum
    cdef float *out
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
    cdef uint8_t *off
    cdef float *spreads
    cdef float *wide
    cdef float *quadratic
    cdef float *bias
    cdef float *scores
    cdef float *sums
    cdef float *small
    cdef int32_t *taken
    cdef int32_t *pairs
    cdef int32_t *ends
    cdef int32_t *visitors
    cdef float *panel
    cdef int32_t *limits
    cdef const uint8_t *wanted

    def __dealloc__(self):
        free(self.row)
        free(self.queries)
        free(self.shift)
        free(self.sum)
        free(self.out)
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
        free(self.off)
        free(self.spreads)
        free(self.wide)
        free(self.quadratic)
        free(self.bias)
        free(self.scores)
        free(self.sums)
        free(self.small)
        free(self.taken)
        free(self.pairs)
        free(self.ends)
        free(self.visitors)
        free(self.panel)
        free(self.limits)


def round_up(n):
    return -(-n // LANES) * LANES


cdef class Field:
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
    cdef readonly Py_ssize_t n_keys, n_cells, dim, width, n_directions
    cdef Py_ssize_t value_pad, deviation_pad, row_stride, cell_pad
    cdef const float[:, :] keys
    cdef const float[:, :] values
    cdef const float[:, ::1] centers
    cdef float[:, :, ::1] panels
    cdef float[:, ::1] rows
    cdef int32_t[::1] ids, first_panel
    cdef readonly object counts
    cdef int32_t[::1] count
    cdef float[:, ::1] first, key_sums
    cdef float[:, :, ::1] second
    cdef float[:, :, ::1] mean_keys
    cdef float[:, ::1] mean_values
    cdef float[:, :, :, ::1] sigma
    cdef float[:, :, :, ::1] gamma
    cdef float[::1] log_counts, no_bias
    cdef float mean_count
    cdef const float[:, ::1] for_keys, for_queries
    cdef float[:, :, ::1] query_panels
    cdef float[:, ::1] covariance, lifted, mean_sigma
    cdef bint projected, second_order
    cdef list idle

    def __init__(self, const float[:, :] keys, const float[:, :] values, const int32_t[::1] cell_of,
                 const float[:, ::1] centers, for_keys=None, for_queries=None, bint second_order=True):
        cdef Py_ssize_t c
        self.keys, self.values, self.centers = keys, values, centers
        self.idle = []
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
        sizes = np.bincount(cell_of, minlength=self.n_cells + 1)
        n_panels = -(-sizes // LANES)
        self.first_panel = np.concatenate([[0], np.cumsum(n_panels)]).astype(np.int32)
        order = np.argsort(np.asarray(cell_of).astype(np.uint16), kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        total = self.first_panel[self.n_cells + 1]
        ids = np.full(total * LANES, -1, np.int32)
        shifts = np.asarray(self.first_panel)[: self.n_cells + 1].astype(np.int64) * LANES - starts[: self.n_cells + 1]
        places = np.arange(self.n_keys) + np.repeat(shifts, sizes)
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
        self.sigma = np.zeros((self.cell_pad // LANES, self.dim, m, LANES), np.float32)
        self.gamma = np.zeros((cells, self.value_pad // LANES, m, LANES), np.float32)
        self.log_counts = np.full(self.cell_pad, NOTHING, np.float32)
        self.no_bias = np.zeros(max(self.cell_pad * self.dim, self.value_pad * m, TILE) + LANES, np.float32)
        self.covariance = np.zeros((m, self.deviation_pad), np.float32)
        self.mean_sigma = np.zeros((self.dim, self.deviation_pad), np.float32)
        self.lifted = np.zeros((self.dim, self.deviation_pad), np.float32)
        cdef float[:, ::1] scratch = np.empty((LANES, self.dim), np.float32)
        with nogil:
            for c in range(self.n_cells + 1):
                self.pack(c, &scratch[0, 0])

    cdef void pack(self, Py_ssize_t c, float *scratch) noexcept nogil:
        """Copy the keys (transposed) and the values and deviations (as rows) of a cell."""
        cdef Py_ssize_t position, panel, lane
        cdef int32_t i
        cdef float *row
        cdef float *key
        for panel in range(self.first_panel[c], self.first_panel[c + 1]):
            memset(scratch, 0, LANES * self.dim * sizeof(float))
            for lane in range(LANES):
                i = self.ids[panel * LANES + lane]
                if i < 0:
                    break
                memcpy(scratch + lane * self.dim, &self.keys[i, 0], self.dim * sizeof(float))
                memcpy(&self.rows[panel * LANES + lane, 0], &self.values[i, 0], self.width * sizeof(float))
            table().transpose(scratch, self.dim, self.dim, &self.panels[panel, 0, 0])
            if c == self.n_cells:
                continue
            for lane in range(LANES):
                position = panel * LANES + lane
                if self.ids[position] < 0:
                    break
                key, row = scratch + lane * self.dim, &self.rows[position, self.value_pad]
                if not self.projected:
                    table().prepare(key, self.dim, 1, &self.centers[c, 0], row)
                else:
                    table().prepare(key, self.dim, 1, &self.centers[c, 0], key)
                    table().combine(key, 0, 1, 1, self.dim, &self.for_keys[0, 0], self.deviation_pad,
                                    self.deviation_pad, row, self.deviation_pad)

    def moments(self):
        """Copy what `attend` reads of the keys taken so far, for `restore`."""
        return self.mean_count, tuple(np.array(array) for array in self.read())

    def restore(self, moments):
        """Let `attend` read an earlier state; `advance` needs a `reset` first."""
        self.mean_count = moments[0]
        for array, copy in zip(self.read(), moments[1]):
            np.asarray(array)[...] = copy

    def reset(self):
        """Return to the state before any key was taken."""
        for array in (*self.read(), self.first, self.second, self.key_sums):
            np.asarray(array)[...] = 0
        np.asarray(self.log_counts)[...] = NOTHING

    cdef tuple read(self):
        return (self.count, self.mean_keys, self.mean_values, self.sigma, self.gamma, self.log_counts,
                self.mean_sigma)

    def release(self):
        """Give back the memory that only `advance`, `reset` and `exact` need: they are over."""
        self.keys, self.values = np.empty((0, self.dim), np.float32), np.empty((0, self.width), np.float32)
        self.second, self.key_sums = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)
        self.idle.clear()

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
        cdef float share, total = 0
        cdef float shares[LANES]
        cdef float *sigma
        for c in range(self.n_cells):
            total += self.count[c]
        memset(&self.mean_sigma[0, 0], 0, self.dim * self.deviation_pad * sizeof(float))
        if total == 0:
            return
        for panel in range(self.cell_pad // LANES):
            for lane in range(LANES):
                c = panel * LANES + lane
                shares[lane] = self.count[c] / total if c < self.n_cells else 0
            for e in range(self.dim):
                for k in range(self.n_directions):
                    sigma = &self.sigma[panel, e, k, 0]
                    share = 0
                    for lane in range(LANES):
                        share += shares[lane] * sigma[lane]
                    self.mean_sigma[e, k] += share

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
        """Covariances of the deviations in a panel of cells, from m to E coordinates where they are projected."""
        cdef Py_ssize_t c, k, j, first, lane, count, m = self.n_directions
        cdef float share, mean
        cdef float *gap
        cdef float *row
        if self.projected:
            for c in range(panel * LANES, min(self.n_cells, (panel + 1) * LANES)):
                if self.count[c]:
                    self.lift(c, <float>1 / self.count[c])
            return
        for k in range(m):
            for first from 0 <= first < m by LANES:
                count = min(<Py_ssize_t>LANES, m - first)
                for lane in range(min(<Py_ssize_t>LANES, self.n_cells - panel * LANES)):
                    c = panel * LANES + lane
                    if not self.count[c]:
                        continue
                    share = <float>1 / self.count[c]
                    gap = &self.first[c, self.value_pad]
                    row = &self.second[c, k, self.value_pad]
                    mean = gap[k] * share
                    for j in range(first, first + count):
                        self.sigma[panel, j, k, lane] = (row[j] - gap[j] * mean) * share

    cdef void lift(self, Py_ssize_t c, float share) noexcept nogil:
        """sigma = for_queries @ covariance of the projected deviations, from m to E coordinates."""
        cdef Py_ssize_t m = self.n_directions, pad = self.deviation_pad, lane = c % LANES, panel = c // LANES, e, j, k
        cdef float *gap = &self.first[c, self.value_pad]
        cdef float *lifted = &self.lifted[0, 0]
        for k in range(m):
            for j in range(m):
                self.covariance[k, j] = (self.second[c, k, self.value_pad + j] - gap[j] * gap[k] * share) * share
        memset(lifted, 0, self.dim * pad * sizeof(float))
        table().combine(&self.for_queries[0, 0], m, 1, self.dim, m, &self.covariance[0, 0], pad, pad, lifted, pad)
        for e in range(self.dim):
            for k in range(m):
                self.sigma[panel, e, k, lane] = lifted[e * pad + k]

    def attend(self, const float[:, ::1] queries, const int32_t[::1] order, float scale, float threshold,
               bint keep_far, float[:, ::1] out, const int64_t[::1] stops=None, Py_ssize_t boundary=0,
               const uint8_t[::1] wanted=None, float reach=INFINITY, const float[:, :] local_keys=None,
               const float[:, :] local_values=None):
        """Attention of some rows over the keys taken so far, and over those from `boundary` to each row's stop.

        Parameters
        ----------
        queries : (G * L, E) float32
        order : (n,) int32
            Rows, similar ones together.
        scale : float
            Of the scores.
        threshold : float
            A cell whose estimated share of a query's mass, times its gain, is above is attended to exactly;
            negative: every cell is.
        keep_far : bool
            Whether the other cells are estimated, or left out.
        out : (G * L, Ev) float32, written at these rows
        stops : (L,) int64, optional
            Row g * L + i also attends to the keys from `boundary` to stops[i], exactly.
        boundary : int
        wanted : (n,) uint8, optional
            Rows whose output is wanted; the others only lend their blocks their company.
        reach : float
            The largest variance of scores within a cell by which a query may differ from the mean of its block.
        local_keys, local_values : (n, E) and (n, Ev) float32, unit stride along the last axis, optional
            What `boundary` and `stops` count rows of, if not the keys and values of the field.

        Returns
        -------
        touched : int
            How many pairs of a query and a key were scored.
        beyond : (r,) int32
            Rows out of reach: their output is not written.
        """
        cdef Py_ssize_t n = order.shape[0], i, j, start, count, n_beyond = 0
        cdef Py_ssize_t step = self.blocks() * BLOCK
        beyond = np.empty(n, np.int32)
        cdef int32_t[::1] rows_beyond = beyond
        if n == 0:
            return 0, beyond
        cdef Scratch scratch = self.scratch(min(n, step))
        cdef const int64_t *stop_of = NULL
        cdef const uint8_t *keep = NULL
        if wanted is not None:
            keep = &wanted[0]
        if stops is not None:
            stop_of = &stops[0]
        if local_keys is None:
            local_keys, local_values = self.keys, self.values
        with nogil:
            for i in range((n + step - 1) // step):
                start = i * step
                count = min(step, n - start)
                self.gather(scratch, queries, &order[start], count, scale)
                scratch.wanted = NULL if keep == NULL else &keep[start]
                memset(scratch.off, 0, count)
                if threshold < 0:
                    self.open_all(scratch)
                else:
                    self.far(scratch, threshold, reach)
                    if not keep_far:
                        self.forget(scratch)
                self.near(scratch)
                if stop_of != NULL:
                    self.local(scratch, stop_of, boundary, stops.shape[0], local_keys, local_values)
                self.write(scratch, out)
                for j in range(count):
                    if scratch.off[j] and is_wanted(scratch, j):
                        rows_beyond[n_beyond] = order[start + j]
                        n_beyond += 1
        self.idle.append(scratch)
        return scratch.touched, beyond[:n_beyond]

    def exact(self, const float[:, ::1] queries, const int32_t[::1] rows, float scale, float[:, ::1] out,
              const int64_t[::1] stops):
        """Attention of some rows to all the keys before their stops, whatever the field has taken.

        Parameters
        ----------
        queries : (G * L, E) float32
        rows : (n,) int32
        scale : float
        out : (n, Ev) float32, written
        stops : (L,) int64
        """
        cdef Py_ssize_t n = rows.shape[0], i
        if n == 0:
            return
        cdef Scratch scratch = self.scratch(n)
        with nogil:
            self.gather(scratch, queries, &rows[0], n, scale)
            memset(scratch.off, 0, n)
            scratch.wanted = NULL
            self.local(scratch, &stops[0], 0, stops.shape[0], self.keys, self.values)
            for i in range(n):
                scratch.row[i] = <int32_t>i
            self.write(scratch, out)
        self.idle.append(scratch)

    cdef Scratch scratch(self, Py_ssize_t n):
        """Take memory for n queries at once."""
        cdef Scratch scratch
        n = max(n, self.blocks() * BLOCK)
        try:
            scratch = self.idle.pop()
        except IndexError:
            scratch = None
        if scratch is None or scratch.capacity < n:
            scratch = Scratch()
            if not self.allocate(scratch, n):
                raise MemoryError("scratch of attention")
            scratch.capacity = n
        scratch.touched = 0
        return scratch

    cdef Py_ssize_t blocks(self) noexcept nogil:
        """Blocks of queries whose linear forms fill about 2 MB."""
        cdef Py_ssize_t bytes_each = 4 * self.cell_pad * (self.dim + self.value_pad)
        return max(<Py_ssize_t>4, min(<Py_ssize_t>BLOCKS, (2 << 20) // bytes_each))

    cdef bint allocate(self, Scratch s, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t cells = self.cell_pad, m = self.n_directions
        cdef Py_ssize_t n_blocks = (n + BLOCK - 1) // BLOCK
        cdef Py_ssize_t score_width = max(cells, <Py_ssize_t>TILE)
        s.row = <int32_t *>malloc(n * sizeof(int32_t))
        s.queries = <float *>malloc(n * self.dim * sizeof(float))
        s.shift = <float *>malloc(n * sizeof(float))
        s.sum = <float *>malloc(n * sizeof(float))
        s.out = <float *>malloc(n * self.value_pad * sizeof(float))
        s.pointers = <const float **>malloc((n + n_blocks) * sizeof(float *))
        s.means = <float *>malloc(n_blocks * self.dim * sizeof(float))
        s.projected = <float *>malloc(n * self.deviation_pad * sizeof(float))
        s.means_projected = <float *>malloc(n_blocks * self.deviation_pad * sizeof(float))
        s.off = <uint8_t *>malloc(n)
        s.trust = <float *>malloc(n * sizeof(float))
        s.gaps_projected = <float *>malloc(n * self.deviation_pad * sizeof(float))
        s.keys = <float *>malloc(n_blocks * cells * self.dim * sizeof(float))
        s.values = <float *>malloc(n_blocks * cells * self.value_pad * sizeof(float))
        s.shares = <float *>malloc(n_blocks * cells * sizeof(float))
        s.slopes = <float *>malloc(n_blocks * self.value_pad * m * sizeof(float))
        s.gaps = <float *>malloc(n * self.dim * sizeof(float))
        s.spreads = <float *>malloc(n_blocks * self.dim * m * sizeof(float))
        s.wide = <float *>malloc(self.dim * self.deviation_pad * sizeof(float))
        s.quadratic = <float *>malloc(n_blocks * cells * sizeof(float))
        s.bias = <float *>malloc(3 * cells * sizeof(float))
        s.scores = <float *>malloc(BLOCK * score_width * sizeof(float))
        s.sums = <float *>malloc(BLOCK * max(self.value_pad, self.deviation_pad) * sizeof(float))
        s.small = <float *>malloc(3 * BLOCK * sizeof(float))
        s.taken = <int32_t *>malloc((cells + 1) * sizeof(int32_t))
        s.pairs = <int32_t *>malloc(2 * n * (self.n_cells + 1) * sizeof(int32_t))
        s.ends = <int32_t *>malloc((self.n_cells + 2) * sizeof(int32_t))
        s.visitors = <int32_t *>malloc(n * (self.n_cells + 1) * sizeof(int32_t))
        s.panel = <float *>malloc(LOCAL_TILE * (self.dim + self.value_pad) * sizeof(float))
        s.limits = <int32_t *>malloc(n * sizeof(int32_t))
        return (s.row and s.queries and s.shift and s.sum and s.out and s.pointers and s.means and s.projected
                and s.keys and s.values and s.shares and s.slopes and s.gaps and s.gaps_projected
                and s.means_projected and s.off and s.trust and s.spreads and s.wide and s.quadratic
                and s.bias and s.scores and s.sums and s.small
                and s.taken and s.pairs and s.ends and s.visitors and s.panel and s.limits)

    cdef void gather(self, Scratch s, const float[:, ::1] queries, const int32_t *order, Py_ssize_t n,
                     float scale) noexcept nogil:
        cdef Py_ssize_t i
        s.n = n
        s.n_pairs = 0
        for i in range(n):
            s.row[i] = order[i]
            table().prepare(&queries[order[i], 0], self.dim, scale, &self.no_bias[0],
                            s.queries + i * self.dim)
        self.forget(s)

    cdef void forget(self, Scratch s) noexcept nogil:
        """Have attended to nothing yet."""
        cdef Py_ssize_t i
        for i in range(s.n):
            s.shift[i] = NOTHING
            s.sum[i] = 0
        memset(s.out, 0, s.n * self.value_pad * sizeof(float))

    cdef void open_all(self, Scratch s) noexcept nogil:
        cdef Py_ssize_t i, c
        for i in range(s.n):
            for c in range(self.n_cells + 1):
                add_pair(s, c, i)

    cdef void far(self, Scratch s, float threshold, float reach) noexcept nogil:
        """Estimate every cell for every query; cells above the threshold are left for `near`."""
        cdef Py_ssize_t dim = self.dim, cells = self.cell_pad, m = self.n_directions, pad = self.deviation_pad
        cdef Py_ssize_t b, i, k, first, count, n_blocks = (s.n + BLOCK - 1) // BLOCK
        cdef float *row
        if self.projected:
            for i in range(s.n):
                s.pointers[i] = s.queries + i * dim
            table().affine(s.pointers, s.n, dim, &self.query_panels[0, 0, 0], &self.no_bias[0], pad // LANES,
                           s.projected, pad)
        else:
            for i in range(s.n):
                row = s.projected + i * pad
                memcpy(row, s.queries + i * dim, dim * sizeof(float))
                memset(row + dim, 0, (pad - dim) * sizeof(float))
        for b in range(n_blocks):
            self.center(s, b, reach)
            s.pointers[b] = s.means_projected + b * pad
        table().affine(s.pointers, n_blocks, m, &self.sigma[0, 0, 0, 0], &self.mean_keys[0, 0, 0],
                       cells // LANES * dim, s.keys, cells * dim)
        table().affine(s.pointers, n_blocks, m, &self.gamma[0, 0, 0, 0], &self.mean_values[0, 0],
                       self.n_cells * self.value_pad // LANES, s.values, cells * self.value_pad)
        for b in range(n_blocks):
            s.pointers[b] = s.spreads + b * dim * m
        table().affine(s.pointers, n_blocks, dim * m, &self.sigma[0, 0, 0, 0], &self.no_bias[0], cells // LANES,
                       s.quadratic, cells)
        for b in range(n_blocks):
            self.far_block(s, b, threshold)
        memset(s.slopes, 0, n_blocks * self.value_pad * m * sizeof(float))
        table().combine(s.shares, cells, 1, n_blocks, self.n_cells, &self.gamma[0, 0, 0, 0], self.value_pad * m,
                        self.value_pad * m, s.slopes, self.value_pad * m)
        for b in range(n_blocks):
            first, count = b * BLOCK, min(<Py_ssize_t>BLOCK, s.n - b * BLOCK)
            for i in range(count):
                row = s.gaps_projected + (first + i) * pad
                for k in range(m):
                    row[k] *= s.sum[first + i] * s.trust[first + i]
                s.pointers[i] = row
            table().affine(s.pointers, count, m, s.slopes + b * self.value_pad * m, &self.no_bias[0],
                           self.value_pad // LANES, s.sums, self.value_pad)
            for i in range(count * self.value_pad):
                s.out[first * self.value_pad + i] += s.sums[i]

    cdef void center(self, Scratch s, Py_ssize_t b, float reach) noexcept nogil:
        """The mean of a block and the deviations from it, without the queries that its linear forms do not reach.

        Scores of a query at the deviation g have the variance g.S g within a cell of covariance S, which the linear
        forms leave out but for its mean over the block.
        """
        cdef Py_ssize_t dim = self.dim, m = self.n_directions, pad = self.deviation_pad, i, k, far_off = 0
        cdef Py_ssize_t first = b * BLOCK, count = min(<Py_ssize_t>BLOCK, s.n - first)
        cdef float *gaps = s.gaps + first * dim
        cdef float *gaps_projected = s.gaps_projected + first * pad
        cdef float *spread = s.spreads + b * dim * m
        cdef float variance, mean_variance = 0
        memset(s.off + first, 0, count)
        self.deviations(s, b, 0)
        if count > 1:
            memset(s.sums, 0, count * pad * sizeof(float))
            table().combine(gaps, dim, 1, count, dim, &self.mean_sigma[0, 0], pad, pad, s.sums, pad)
            for i in range(count):
                variance = 0
                for k in range(m):
                    variance += s.sums[i * pad + k] * gaps_projected[i * pad + k]
                s.scores[i] = variance
                mean_variance += variance / count
            for i in range(count):
                if s.scores[i] > max(reach, ODD * mean_variance):
                    s.off[first + i] = 1
                    far_off += 1
            if far_off:
                self.deviations(s, b, far_off)
        memset(s.wide, 0, dim * pad * sizeof(float))
        table().combine(gaps, 1, dim, dim, count, gaps_projected, pad, pad, s.wide, pad)
        for i in range(dim):
            for k in range(m):
                spread[i * m + k] = s.wide[i * pad + k] / (count - far_off)

    cdef void deviations(self, Scratch s, Py_ssize_t b, Py_ssize_t far_off) noexcept nogil:
        """Mean of the block's queries that are not far off, and what they deviate by; none for those that are."""
        cdef Py_ssize_t dim = self.dim, pad = self.deviation_pad, i, k
        cdef Py_ssize_t first = b * BLOCK, count = min(<Py_ssize_t>BLOCK, s.n - first)
        cdef float *mean = s.means + b * dim
        cdef float *mean_projected = s.means_projected + b * pad
        memset(mean, 0, dim * sizeof(float))
        memset(mean_projected, 0, pad * sizeof(float))
        for i in range(first, first + count):
            if not s.off[i]:
                for k in range(dim):
                    mean[k] += s.queries[i * dim + k]
                for k in range(pad):
                    mean_projected[k] += s.projected[i * pad + k]
        for k in range(dim):
            mean[k] /= count - far_off
        for k in range(pad):
            mean_projected[k] /= count - far_off
        for i in range(first, first + count):
            if s.off[i]:
                memset(s.gaps + i * dim, 0, dim * sizeof(float))
                memset(s.gaps_projected + i * pad, 0, pad * sizeof(float))
                continue
            for k in range(dim):
                s.gaps[i * dim + k] = s.queries[i * dim + k] - mean[k]
            for k in range(pad):
                s.gaps_projected[i * pad + k] = s.projected[i * pad + k] - mean_projected[k]

    cdef void far_block(self, Scratch s, Py_ssize_t b, float threshold) noexcept nogil:
        cdef Py_ssize_t dim = self.dim, cells = self.cell_pad, c, i, j, k, panel, lane, taken
        cdef Py_ssize_t first = b * BLOCK, count = min(<Py_ssize_t>BLOCK, s.n - first)
        cdef float *keys = s.keys + b * cells * dim
        cdef float *values = s.values + b * cells * self.value_pad
        cdef float *mean = s.means + b * dim
        cdef float *bias = s.bias
        cdef float *gains = s.bias + cells
        cdef float *shrink = s.bias + 2 * cells
        cdef float *shares = s.shares + b * cells
        cdef float *inverse = s.small + 2 * BLOCK
        cdef float *tile_row
        cdef float variance, own, spread, near_sum
        memset(bias, 0, cells * sizeof(float))
        for panel in range(cells // LANES):  # variance of the mean query's scores within each cell
            for k in range(dim):
                tile_row = keys + (panel * dim + k) * LANES
                for lane in range(LANES):
                    bias[panel * LANES + lane] += mean[k] * (tile_row[lane] - self.mean_keys[panel, k, lane])
        for c in range(cells):
            own, spread = max(bias[c], <float>0), max(s.quadratic[b * cells + c], <float>0)
            variance = own + spread
            shrink[c] = 1
            if variance > CLOSURE:
                shrink[c] = CLOSURE / variance
                self.shrink_cell(keys, values, c, shrink[c])
            bias[c] = self.log_counts[c] + shrink[c] * (spread - own) / 2
            gains[c] = self.gain(variance, self.log_counts[c])
        for i in range(count):
            s.pointers[i] = s.queries + (first + i) * dim
        table().affine(s.pointers, count, dim, keys, bias, cells // LANES, s.scores, cells)
        for i in range(count):
            s.shift[first + i] = table().largest(s.scores + i * cells, cells)
        table().exponentials(s.scores, cells, count, cells, s.shift + first, s.sum + first)
        for i in range(count):
            if s.off[first + i]:
                memset(s.scores + i * cells, 0, cells * sizeof(float))
                s.sum[first + i] = inverse[i] = 0
                continue
            taken = table().take_above(s.scores + i * cells, gains, cells, threshold * s.sum[first + i], s.taken,
                                       &near_sum)
            for j in range(taken):
                if self.log_counts[s.taken[j]] > NOTHING:
                    add_pair(s, s.taken[j], first + i)
            s.sum[first + i] = max(<float>0, s.sum[first + i] - near_sum)
            inverse[i] = 1 / (s.sum[first + i] * count) if s.sum[first + i] > 0 else 0
            if self.count[self.n_cells]:
                add_pair(s, self.n_cells, first + i)
        memset(shares, 0, cells * sizeof(float))
        table().combine(inverse, 0, 1, 1, count, s.scores, cells, cells, shares, cells)
        for i in range(count):  # what `slopes` are worth to a query that attends elsewhere than its block
            s.trust[first + i] = min(<float>1, 2 * table().overlap(s.scores + i * cells, inverse[i] * count, shares,
                                                                   cells))
        for c in range(cells):
            shares[c] *= shrink[c]
        table().combine(s.scores, cells, 1, count, self.n_cells, values, self.value_pad, self.value_pad,
                        s.out + first * self.value_pad, self.value_pad)
        s.touched += count * self.n_cells

    cdef float gain(self, float variance, float log_count) noexcept nogil:
        """What a cell's share of the mass is weighed with: measured errors a key grow about so."""
        cdef float excess = 0, deviation, frozen
        if variance > CLOSURE:
            # The mass of n Gaussian scores is that of the closure only up to s = sqrt(2 log n); beyond, the largest
            # alone count.
            deviation, frozen = sqrtf(variance), sqrtf(2 * max(log_count, <float>0))
            excess = variance / 2 if deviation < frozen else deviation * frozen - log_count
            excess = min(<float>40, max(<float>0, excess - CLOSURE / 2))
        return sqrtf((<float>0.3 + min(variance, CLOSURE)) * self.mean_count) * expf(excess - log_count / 2)

    cdef void shrink_cell(self, float *keys, float *values, Py_ssize_t c, float factor) noexcept nogil:
        cdef Py_ssize_t k, v, panel = c // LANES, lane = c % LANES
        cdef float *key
        for k in range(self.dim):
            key = keys + (panel * self.dim + k) * LANES + lane
            key[0] = self.mean_keys[panel, k, lane] + factor * (key[0] - self.mean_keys[panel, k, lane])
        if c < self.n_cells:
            for v in range(self.value_pad):
                key = values + c * self.value_pad + v
                key[0] = self.mean_values[c, v] + factor * (key[0] - self.mean_values[c, v])

    cdef void near(self, Scratch s) noexcept nogil:
        """Attend to cells exactly, cell by cell, all the queries that chose it together."""
        cdef Py_ssize_t c, i, start, position
        memset(s.ends, 0, (self.n_cells + 2) * sizeof(int32_t))
        for i in range(s.n_pairs):
            s.ends[s.pairs[2 * i] + 1] += 1
        for c in range(self.n_cells + 1):
            s.ends[c + 1] += s.ends[c]
        for i in range(s.n_pairs):
            c = s.pairs[2 * i]
            s.visitors[s.ends[c]] = s.pairs[2 * i + 1]
            s.ends[c] += 1
        start = 0
        for c in range(self.n_cells + 1):
            position = self.first_panel[c]
            self.visit(s, s.visitors + start, s.ends[c] - start, &self.panels[0, 0, 0] + position * LANES * self.dim,
                       &self.rows[0, 0] + position * LANES * self.row_stride, self.row_stride, self.count[c], NULL)
            start = s.ends[c]

    cdef void local(self, Scratch s, const int64_t *stops, Py_ssize_t boundary, Py_ssize_t length,
                    const float[:, :] local_keys, const float[:, :] local_values) noexcept nogil:
        """Attend to the keys from `boundary` to each row's stop exactly."""
        cdef Py_ssize_t tile, first, count, i, n, j, k, last = boundary
        cdef float *values = s.panel + LOCAL_TILE * self.dim
        for i in range(s.n):
            if is_wanted(s, i):
                last = max(last, stops[s.row[i] % length])
        for tile in range((last - boundary + LOCAL_TILE - 1) // LOCAL_TILE):
            first = boundary + tile * LOCAL_TILE
            count = min(<Py_ssize_t>LOCAL_TILE, last - first)
            memset(s.panel, 0, LOCAL_TILE * self.dim * sizeof(float))
            memset(values, 0, LOCAL_TILE * self.value_pad * sizeof(float))
            for j in range(count):
                memcpy(values + j * self.value_pad, &local_values[first + j, 0], self.width * sizeof(float))
            for j in range(count // LANES):
                table().transpose(&local_keys[first + j * LANES, 0], local_keys.strides[0] // <Py_ssize_t>sizeof(float),
                                  self.dim, s.panel + j * LANES * self.dim)
            for j in range(count // LANES * LANES, count):
                for k in range(self.dim):
                    s.panel[(j // LANES * self.dim + k) * LANES + j % LANES] = local_keys[first + j, k]
            n = 0
            for i in range(s.n):
                if <Py_ssize_t>stops[s.row[i] % length] > first and not s.off[i] and is_wanted(s, i):
                    s.visitors[n] = <int32_t>i
                    s.limits[n] = <int32_t>min(count, stops[s.row[i] % length] - first)
                    n += 1
            self.visit(s, s.visitors, n, s.panel, values, self.value_pad, count, s.limits)

    cdef void visit(self, Scratch s, const int32_t *visitors, Py_ssize_t n_visitors, const float *panels,
                    const float *values, Py_ssize_t value_stride, Py_ssize_t n_keys,
                    const int32_t *limits) noexcept nogil:
        """Softmax over n_keys keys in panels, merged into the state of the visiting queries."""
        cdef Py_ssize_t i, j, q, k, first, count, start, n, width
        cdef float *shift = s.small
        cdef float *sums = s.small + BLOCK
        cdef float *row
        cdef float top, factor
        for first from 0 <= first < n_visitors by BLOCK:
            count = min(<Py_ssize_t>BLOCK, n_visitors - first)
            for i in range(count):
                s.pointers[i] = s.queries + visitors[first + i] * self.dim
            for start from 0 <= start < n_keys by TILE:
                n = min(<Py_ssize_t>TILE, n_keys - start)
                width = (n + LANES - 1) // LANES * LANES
                table().affine(s.pointers, count, self.dim, panels + start * self.dim, &self.no_bias[0], width // LANES,
                               s.scores, width)
                for i in range(count):
                    q, row = visitors[first + i], s.scores + i * width
                    for j in range(n if limits == NULL else limits[first + i], width):
                        row[j] = NOTHING
                    top = table().largest(row, width)
                    if top > s.shift[q] + ROOM:
                        factor = expf(max(<float>-87, s.shift[q] - top))
                        s.shift[q] = top
                        s.sum[q] *= factor
                        for k in range(self.value_pad):
                            s.out[q * self.value_pad + k] *= factor
                    shift[i], sums[i] = s.shift[q], 0
                table().exponentials(s.scores, width, count, width, shift, sums)
                if limits != NULL:
                    for i in range(count):
                        for j in range(limits[first + i], n):
                            s.scores[i * width + j] = 0
                memset(s.sums, 0, count * self.value_pad * sizeof(float))
                table().combine(s.scores, width, 1, count, n, values + start * value_stride, value_stride,
                                self.value_pad, s.sums, self.value_pad)
                for i in range(count):
                    q = visitors[first + i]
                    s.sum[q] += sums[i]
                    for k in range(self.value_pad):
                        s.out[q * self.value_pad + k] += s.sums[i * self.value_pad + k]
                s.touched += count * n

    cdef void write(self, Scratch s, float[:, ::1] out) noexcept nogil:
        cdef Py_ssize_t i, k
        cdef float share
        for i in range(s.n):
            if s.off[i]:
                continue
            share = 1 / s.sum[i] if s.sum[i] > 0 else 0
            for k in range(self.width):
                out[s.row[i], k] = s.out[i * self.value_pad + k] * share


cdef inline bint is_wanted(Scratch s, Py_ssize_t query) noexcept nogil:
    return s.wanted == NULL or s.wanted[query]


cdef inline void add_pair(Scratch s, Py_ssize_t cell, Py_ssize_t query) noexcept nogil:
    if not is_wanted(s, query):
        return
    s.pairs[2 * s.n_pairs] = <int32_t>cell
    s.pairs[2 * s.n_pairs + 1] = <int32_t>query
    s.n_pairs += 1
