"""Attention over the keys and values of one head in cells: near cells exactly, far cells by moments.

A block of similar queries shares one linear form of every cell's Gaussian closure (`attention._core.head`): around the
block's mean query, a cell is one key and one value, so that the far field of a block is a small dense attention.
"""
import numpy as np

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, expf, sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .moments cimport Moments
from .near_field cimport forget, gather, local, near, open_all, write
from .workspace cimport BLOCK, Scratch, add_pair

cdef enum:
    BLOCKS = 16  # of queries whose linear forms are made in one pass over the moments

cdef float ODD = 2  # times the block's mean, the least variance by which a query is out of reach, but for
cdef float MOST_ODD = 2  # a variance that is out of it in any block
cdef float SPREAD = 0.1  # of the squared variance that the linear forms leave out, in the squared error of a mass
cdef float MOST_GAIN = 1e9  # that a suspected error counts
cdef float CLOSURE = 4  # the largest variance of scores within a cell that its closure may stand for


cdef class Field(Moments):
    """`Moments` that queries attend to; the arguments are the same."""
    cdef list idle  # scratch memory that no thread has

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.idle = []

    def release(self):
        """Give back what only `advance`, `reset` and `exact` need, and scratch memory."""
        super().release()
        self.idle.clear()

    def attend(self, const float[:, ::1] queries, const int32_t[::1] order, float scale, float threshold,
               bint keep_far, float[:, ::1] out, const int64_t[::1] stops=None, Py_ssize_t boundary=0,
               const uint8_t[::1] wanted=None, float reach=INFINITY, const float[:, :] local_keys=None,
               const float[:, :] local_values=None, float[::1] risks=None):
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
        cdef float *risk_of = NULL
        if wanted is not None:
            keep = &wanted[0]
        if risks is not None:
            risk_of = &risks[0]
        if stops is not None:
            stop_of = &stops[0]
        if local_keys is None:
            local_keys, local_values = self.keys, self.values
        with nogil:
            for i in range((n + step - 1) // step):
                start = i * step
                count = min(step, n - start)
                gather(self, scratch, queries, &order[start], count, scale)
                if keep != NULL:
                    scratch.wanted = &keep[start]
                memset(scratch.off, 0, count)
                if threshold < 0:
                    open_all(self, scratch)
                else:
                    self.far(scratch, threshold, reach)
                    if not keep_far:
                        forget(self, scratch)
                near(self, scratch)
                if stop_of != NULL:
                    local(self, scratch, stop_of, boundary, stops.shape[0], local_keys, local_values)
                write(self, scratch, out, risk_of)
                for j in range(count):
                    if scratch.off[j]:
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
            gather(self, scratch, queries, &rows[0], n, scale)
            memset(scratch.off, 0, n)
            local(self, scratch, &stops[0], 0, stops.shape[0], self.keys, self.values)
            for i in range(n):
                scratch.row[i] = <int32_t>i
            write(self, scratch, out, NULL)
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
            if not scratch.allocate(n, self.n_cells, self.cell_pad, self.dim, self.value_pad, self.n_directions,
                                    self.deviation_pad):
                raise MemoryError("scratch of attention")
        scratch.touched, scratch.wanted = 0, NULL
        return scratch

    cdef Py_ssize_t blocks(self) noexcept nogil:
        """Blocks of queries whose linear forms fill about 2 MB."""
        cdef Py_ssize_t bytes_each = 4 * self.cell_pad * (self.dim + self.value_pad)
        return max(<Py_ssize_t>4, min(<Py_ssize_t>BLOCKS, (2 << 20) // bytes_each))

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
                if s.scores[i] > max(reach, min(ODD * mean_variance, MOST_ODD)):
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
        cdef float *doubts = s.bias + 3 * cells
        cdef float lanes[LANES]
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
            gains[c] = self.gain(variance, spread, self.log_counts[c]) * self.spreads[c]
            doubts[c] = min(gains[c], MOST_GAIN) * min(gains[c], MOST_GAIN) * self.mean_spread / self.mean_count
        for i in range(count):
            s.pointers[i] = s.queries + (first + i) * dim
        table().affine(s.pointers, count, dim, keys, bias, cells // LANES, s.scores, cells)
        for i in range(count):
            s.shift[first + i] = max(-FLT_MAX, table().largest(s.scores + i * cells, cells))
        table().exponentials(s.scores, cells, count, cells, s.shift + first, s.sum + first)
        for i in range(count):
            if s.off[first + i]:
                memset(s.scores + i * cells, 0, cells * sizeof(float))
                s.sum[first + i] = inverse[i] = 0
                continue
            taken = table().take_above(s.scores + i * cells, gains, cells, threshold * s.sum[first + i], s.taken,
                                       &near_sum)
            for j in range(taken):
                add_pair(s, s.taken[j], first + i)
            s.sum[first + i] = max(<float>0, s.sum[first + i] - near_sum)
            inverse[i] = 1 / (s.sum[first + i] * count) if s.sum[first + i] > 0 else 0
            memset(lanes, 0, LANES * sizeof(float))
            for c from 0 <= c < cells by LANES:
                for lane in range(LANES):
                    tile_row = s.scores + i * cells + c
                    lanes[lane] += tile_row[lane] * tile_row[lane] * doubts[c + lane]
            for lane in range(LANES):
                s.risk[first + i] += lanes[lane]
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

    cdef float gain(self, float variance, float spread, float log_count) noexcept nogil:
        """What a cell's share of the mass is weighed with: measured errors grow about so.

        The error of a sum over n keys falls with n, but not what the linear forms leave out of the mass.
        """
        cdef float excess = 0, deviation, frozen
        if log_count == -INFINITY:  # no keys
            return 0
        if variance > CLOSURE:
            # The mass of n Gaussian scores is that of the closure only up to s = sqrt(2 log n); beyond, the largest
            # alone count.
            deviation, frozen = sqrtf(variance), sqrtf(2 * max(log_count, <float>0))
            excess = variance / 2 if deviation < frozen else deviation * frozen - log_count
            excess = min(<float>40, max(<float>0, excess - CLOSURE / 2))
        return expf(excess) * sqrtf(
            self.mean_count * ((<float>0.3 + min(variance, CLOSURE)) * expf(-log_count) + SPREAD * spread * spread)
        )

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
