"""Attention over the keys and values of one head in cells: near cells exactly, far cells by moments.

A block of similar queries shares one linear form of every cell's Gaussian closure (`attention._core.head`): around the
block's mean query, a cell is one key and one value, so that the far field of a block is a small dense attention.
"""
import numpy as np

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, expf, logf, sqrtf
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .gains cimport CLOSURE, doubt, gain, score_apart, weigh_apart
from .moments cimport Moments
from .near_field cimport (
    LocalKeys,
    attend_local_keys,
    attend_near_cells,
    choose_all_cells,
    load_queries,
    reset_state,
    write_outputs,
)
from .strays cimport Strays
from .workspace cimport BLOCK, Workspace, add_pair

# To measure these anew: errors by `python -m comparisons run --suite attention_truth`, times by `attention_layers`.
cdef enum:
    BLOCKS = 24  # of queries whose linear forms are made in one pass over the moments

# An outlier query deviates from its block by a variance of scores beyond the block's reach, and beyond this many times
# the block's mean or this variance, whichever is less.
cdef float OUTLIER_RATIO = 2
cdef float OUTLIER_VARIANCE = 2
cdef float LEAST_VARIANCE = 1e-3  # of scores, which rounding alone may make; what differs by less is alike
cdef float SUSPECTED = 2  # a stray's score below what makes its cell near, from which it is a risk
# Some of a block may score a stray higher than its mean query does, by so many standard deviations of the scores within
# a cell of the query that is farthest from the mean. A stray is about twice as far from its cell's mean as other keys.
cdef float STRAY_REACH = 4


cdef class Field(Moments):
    """`Moments` that queries attend to.

    Parameters
    ----------
    *arguments, **named
        Those of `Moments`.
    scale : float
        Of the scores.
    keep_far : bool
        Whether cells below the threshold are estimated, or left out.
    strays : (n,) int32, ascending, optional
        Keys that are far from the others of their cell: a query that one of them weighs much for attends to its cell
        exactly.

    Attributes
    ----------
    lse : (G * L,) float32 or None
        Where calls put, at their rows, the logarithm of the sum of all exponentials; None at first, for nowhere.
    apart : float
        Times the threshold, for queries out of their block's reach: each has the variances of its own scores within the
        cells, and shares the block's form of the values. At 0, as at first, calls leave them out and return them.
    """
    cdef public float[::1] lse
    cdef public float apart
    cdef list workspaces  # those that no thread uses
    cdef Strays strays
    cdef float scale
    cdef bint keep_far

    def __init__(self, keys, values, cell_of, *arguments, float scale, bint keep_far=True, strays=(), **named):
        super().__init__(keys, values, cell_of, *arguments, **named)
        self.scale, self.keep_far = scale, keep_far
        self.strays = Strays(keys, np.asarray(strays, np.int32), cell_of)
        self.lse = None  # a view that was never set is not
        self.workspaces = []

    def advance(self, Py_ssize_t boundary):
        """Take the keys before `boundary` into the moments; it may only grow."""
        super().advance(boundary)
        self.strays.advance(boundary)

    cdef tuple read(self):
        return (*Moments.read(self), self.strays.taken)

    def release(self):
        """Give back what only `advance` and `reset` need, and workspaces."""
        super().release()
        self.workspaces.clear()

    def attend_rows(self, const float[:, ::1] queries, const int32_t[::1] order, float threshold, float[:, ::1] out,
                    LocalKeys local=None, const uint8_t[::1] wanted=None, float reach=INFINITY,
                    float[::1] risks=None):
        """Attention of some rows over the keys taken so far, and over local keys.

        Parameters
        ----------
        queries : (G * L, E) float32
        order : (n,) int32
            Rows, similar ones together.
        threshold : float
            A cell whose estimated share of a query's mass, times its gain, is above is attended to exactly;
            negative: every cell is.
        out : (G * L, Ev) float32, written at these rows
        local : LocalKeys, optional
            Keys beside those in cells.
        wanted : (n,) uint8, optional
            Rows whose output is wanted; the others only count in the means of their blocks.
        reach : float
            The largest variance of scores within a cell by which a query may differ from the mean of its block; at 0
            each has linear forms of its own, and none is out of reach.
        risks : (G * L,) float32, optional
            Receives at these rows the squared errors that the estimates are suspected of.

        Returns
        -------
        touched : int
            How many pairs of a query and a key were scored.
        outliers : (r,) int32
            Rows out of their block's reach: their output is not written.
        """
        cdef Py_ssize_t n = order.shape[0], block = BLOCK if reach > 0 else 1, start, count, i, n_outliers = 0
        cdef Py_ssize_t step = self.blocks() * block
        outliers = np.empty(n, np.int32)
        cdef int32_t[::1] outlier_rows = outliers
        if n == 0:
            return 0, outliers
        cdef Workspace w = self.take_workspace(min(n, step))
        cdef float *risk_of = NULL
        w.block = block
        cdef float *lse = NULL
        if self.lse is not None:
            lse = &self.lse[0]
        if risks is not None:
            risk_of = &risks[0]
        with nogil:
            for start from 0 <= start < n by step:
                count = min(step, n - start)
                load_queries(w, queries, &order[start], count, self.scale)
                if wanted is not None:
                    w.wanted = &wanted[start]
                self.attend_loaded(w, threshold, reach, local)
                write_outputs(w, out, risk_of, lse)
                for i in range(count):
                    if w.is_outlier[i]:
                        outlier_rows[n_outliers] = order[start + i]
                        n_outliers += 1
        self.workspaces.append(w)
        return w.touched, outliers[:n_outliers]

    def exact_rows(self, const float[:, ::1] queries, const int32_t[::1] rows, float[:, ::1] out, LocalKeys local):
        """Attention of some rows to local keys alone, whatever the field has taken.

        Parameters
        ----------
        queries : (G * L, E) float32
        rows : (n,) int32
        out : (n, Ev) float32, written
        local : LocalKeys
        """
        cdef Py_ssize_t n = rows.shape[0], i
        if n == 0:
            return
        cdef Workspace w = self.take_workspace(n)
        with nogil:
            load_queries(w, queries, &rows[0], n, self.scale)
            memset(w.is_outlier, 0, n)
            attend_local_keys(w, local)
            for i in range(n):
                if self.lse is not None:
                    self.lse[rows[i]] = w.shift[i] + logf(w.sum[i])
                w.row[i] = <int32_t>i
            write_outputs(w, out, NULL, NULL)
        self.workspaces.append(w)

    cdef void attend_loaded(self, Workspace w, float threshold, float reach, LocalKeys local) noexcept nogil:
        """Attend with the queries in the workspace."""
        memset(w.is_outlier, 0, w.n)
        if threshold < 0:
            choose_all_cells(self, w)
        else:
            self.attend_far_cells(w, threshold, reach)
            if not self.keep_far:
                reset_state(w)
        attend_near_cells(self, w)
        if local is not None:
            attend_local_keys(w, local)

    cdef Workspace take_workspace(self, Py_ssize_t n):
        """Take memory for n queries at once."""
        cdef Workspace w
        n = max(n, self.blocks() * BLOCK)
        try:
            w = self.workspaces.pop()
        except IndexError:
            w = None
        if w is None or w.capacity < n:
            w = Workspace()
            if not w.allocate(n, self.n_cells, self.cell_pad, self.dim, self.width, self.n_directions,
                              self.deviation_pad, self.strays.width):
                raise MemoryError("workspace of attention")
        w.touched, w.wanted = 0, NULL
        return w

    cdef Py_ssize_t blocks(self) noexcept nogil:
        """Blocks of queries whose linear forms fill about 2 MB."""
        cdef Py_ssize_t bytes_each = 4 * self.cell_pad * (self.dim + self.value_pad)
        return max(<Py_ssize_t>4, min(<Py_ssize_t>BLOCKS, (2 << 20) // bytes_each))

    cdef void attend_far_cells(self, Workspace w, float threshold, float reach) noexcept nogil:
        """Estimate every cell for every query; cells above the threshold are left for `attend_near_cells`."""
        cdef Py_ssize_t dim = self.dim, cells = self.cell_pad, m = self.n_directions, pad = self.deviation_pad
        cdef Py_ssize_t b, i, k, first, count, n_blocks = (w.n + w.block - 1) // w.block
        cdef float *row
        if self.projected:
            for i in range(w.n):
                w.pointers[i] = w.queries + i * dim
            table().affine(w.pointers, w.n, dim, &self.query_panels[0, 0, 0], &self.no_bias[0], pad // LANES,
                           w.projected, pad)
        else:
            for i in range(w.n):
                row = w.projected + i * pad
                memcpy(row, w.queries + i * dim, dim * sizeof(float))
                memset(row + dim, 0, (pad - dim) * sizeof(float))
        for b in range(n_blocks):
            self.center_block(w, b, reach)
            w.pointers[b] = w.means_projected + b * pad
        table().affine(w.pointers, n_blocks, m, &self.sigma[0, 0, 0, 0], &self.mean_keys[0, 0, 0],
                       cells // LANES * dim, w.keys, cells * dim)
        table().affine(w.pointers, n_blocks, m, &self.gamma[0, 0, 0, 0], &self.mean_values[0, 0],
                       self.n_cells * self.value_pad // LANES, w.values, cells * self.value_pad)
        for b in range(n_blocks):
            w.pointers[b] = w.spreads + b * dim * m
        table().affine(w.pointers, n_blocks, dim * m, &self.sigma[0, 0, 0, 0], &self.no_bias[0], cells // LANES,
                       w.quadratic, cells)
        if self.strays.taken[0]:
            for b in range(n_blocks):
                w.pointers[b] = w.means + b * dim
            table().affine(w.pointers, n_blocks, dim, &self.strays.panels[0, 0, 0], &self.strays.no_bias[0],
                           self.strays.width // LANES, w.stray_means, self.strays.width)
        for b in range(n_blocks):
            self.weigh_cells(w, b)
            self.attend_block(w, b, threshold)
        memset(w.slopes, 0, n_blocks * self.value_pad * m * sizeof(float))
        table().combine(w.shares, cells, 1, n_blocks, self.n_cells, &self.gamma[0, 0, 0, 0], self.value_pad * m,
                        self.value_pad * m, w.slopes, self.value_pad * m)
        for b in range(n_blocks):
            first, count = b * w.block, min(w.block, w.n - b * w.block)
            for i in range(count):
                row = w.gaps_projected + (first + i) * pad
                for k in range(m):
                    row[k] *= w.sum[first + i] * w.trust[first + i]
                w.pointers[i] = row
            table().affine(w.pointers, count, m, w.slopes + b * self.value_pad * m, &self.no_bias[0],
                           self.value_pad // LANES, w.sums, self.value_pad)
            for i in range(count * self.value_pad):
                w.out[first * self.value_pad + i] += w.sums[i]

    cdef void center_block(self, Workspace w, Py_ssize_t b, float reach) noexcept nogil:
        """The mean of a block and the deviations from it, without the queries that its linear forms do not reach.

        Scores of a query at the deviation g have the variance g.S g within a cell of covariance S, which the linear
        forms leave out but for its mean over the block.
        """
        cdef Py_ssize_t dim = self.dim, m = self.n_directions, pad = self.deviation_pad, i, k, n_outliers = 0
        cdef Py_ssize_t first = b * w.block, count = min(w.block, w.n - first)
        cdef float *gaps = w.gaps + first * dim
        cdef float *gaps_projected = w.gaps_projected + first * pad
        cdef float *spread = w.spreads + b * dim * m
        cdef float variance, mean_variance = 0
        memset(w.is_outlier + first, 0, count)
        memset(w.is_apart + first, 0, count)
        w.widest[b] = 0
        w.unlike[first] = 1
        self.set_deviations(w, b, 0)
        if count > 1:
            memset(w.sums, 0, count * pad * sizeof(float))
            table().combine(gaps, dim, 1, count, dim, &self.mean_sigma[0, 0], pad, pad, w.sums, pad)
            for i in range(count):
                variance = 0
                for k in range(m):
                    variance += w.sums[i * pad + k] * gaps_projected[i * pad + k]
                w.scores[i] = variance
                mean_variance += variance / count
            for i in range(count):
                w.unlike[first + i] = max(<float>1, w.scores[i] / max(mean_variance, LEAST_VARIANCE))
                if w.scores[i] > max(reach, min(OUTLIER_RATIO * mean_variance, OUTLIER_VARIANCE)):
                    w.is_outlier[first + i] = 1
                    n_outliers += 1
                    if self.apart == 0:
                        continue
                    w.unlike[first + i] = 1 / self.apart
                w.widest[b] = max(w.widest[b], w.scores[i])
            if self.apart > 0 and n_outliers == count:  # the mean of all is as good as any
                memcpy(w.is_apart + first, w.is_outlier + first, count)
                memset(w.is_outlier + first, 0, count)
                n_outliers = 0
            if n_outliers:
                self.set_deviations(w, b, n_outliers)
        memset(w.wide, 0, dim * pad * sizeof(float))
        table().combine(gaps, 1, dim, dim, count, gaps_projected, pad, pad, w.wide, pad)
        for i in range(dim):
            for k in range(m):
                spread[i * m + k] = w.wide[i * pad + k] / (count - n_outliers)
        if self.apart > 0 and n_outliers:
            self.set_apart(w, b)

    cdef void set_apart(self, Workspace w, Py_ssize_t b) noexcept nogil:
        """Let the outliers of a block attend with variances of their own; they deviate from the mean of the others."""
        cdef Py_ssize_t pad = self.deviation_pad, i, k, first = b * w.block, count = min(w.block, w.n - first)
        for i in range(first, first + count):
            if w.is_outlier[i]:
                w.is_outlier[i], w.is_apart[i] = 0, 1
                for k in range(pad):
                    w.gaps_projected[i * pad + k] = w.projected[i * pad + k] - w.means_projected[b * pad + k]

    cdef void set_deviations(self, Workspace w, Py_ssize_t b, Py_ssize_t n_outliers) noexcept nogil:
        """Mean of the block's queries but for outliers, and what they deviate by; no deviation for outliers."""
        cdef Py_ssize_t dim = self.dim, pad = self.deviation_pad, i, k
        cdef Py_ssize_t first = b * w.block, count = min(w.block, w.n - first)
        cdef float *mean = w.means + b * dim
        cdef float *mean_projected = w.means_projected + b * pad
        memset(mean, 0, dim * sizeof(float))
        memset(mean_projected, 0, pad * sizeof(float))
        for i in range(first, first + count):
            if not w.is_outlier[i]:
                for k in range(dim):
                    mean[k] += w.queries[i * dim + k]
                for k in range(pad):
                    mean_projected[k] += w.projected[i * pad + k]
        for k in range(dim):
            mean[k] /= count - n_outliers
        for k in range(pad):
            mean_projected[k] /= count - n_outliers
        for i in range(first, first + count):
            if w.is_outlier[i]:
                memset(w.gaps + i * dim, 0, dim * sizeof(float))
                memset(w.gaps_projected + i * pad, 0, pad * sizeof(float))
                continue
            for k in range(dim):
                w.gaps[i * dim + k] = w.queries[i * dim + k] - mean[k]
            for k in range(pad):
                w.gaps_projected[i * pad + k] = w.projected[i * pad + k] - mean_projected[k]

    cdef void weigh_cells(self, Workspace w, Py_ssize_t b) noexcept nogil:
        """Bias, gain and expected squared error of every cell for the queries of a block; wide closures shrink."""
        cdef Py_ssize_t dim = self.dim, cells = self.cell_pad, c, k, panel, lane
        cdef float *keys = w.keys + b * cells * dim
        cdef float *values = w.values + b * cells * self.value_pad
        cdef float *mean = w.means + b * dim
        cdef float *bias = w.bias
        cdef float *gains = w.bias + cells
        cdef float *shrink = w.bias + 2 * cells
        cdef float *doubts = w.bias + 3 * cells
        cdef float *tile_row
        cdef float variance, own, spread
        memset(bias, 0, cells * sizeof(float))
        for panel in range(cells // LANES):  # variance of the mean query's scores within each cell
            for k in range(dim):
                tile_row = keys + (panel * dim + k) * LANES
                for lane in range(LANES):
                    bias[panel * LANES + lane] += mean[k] * (tile_row[lane] - self.mean_keys[panel, k, lane])
        for c in range(cells):
            own, spread = max(bias[c], <float>0), max(w.quadratic[b * cells + c], <float>0)
            variance = own + spread
            shrink[c] = 1
            if variance > CLOSURE:
                shrink[c] = CLOSURE / variance
                self.shrink_cell(keys, values, c, shrink[c])
            bias[c] = self.log_counts[c] + shrink[c] * (spread - own) / 2
            gains[c] = gain(self, c, variance, spread)
            doubts[c] = doubt(self, gains[c])

    cdef void attend_block(self, Workspace w, Py_ssize_t b, float threshold) noexcept nogil:
        """Softmax over the cells for each query of a block, but for the near ones, which are put down as pairs."""
        cdef Py_ssize_t dim = self.dim, cells = self.cell_pad, c, i, lane, taken, n_strays
        cdef Py_ssize_t first = b * w.block, count = min(w.block, w.n - first)
        cdef float *keys = w.keys + b * cells * dim
        cdef float *values = w.values + b * cells * self.value_pad
        cdef float *bias = w.bias
        cdef float *gains = w.bias + cells
        cdef float *shrink = w.bias + 2 * cells
        cdef float *shares = w.shares + b * cells
        cdef float *doubts = w.bias + 3 * cells
        cdef float lanes[LANES]
        cdef float *inverse = w.small + 2 * BLOCK
        cdef float *tile_row
        cdef float limit, near_sum
        cdef Py_ssize_t n_apart = 0
        for i in range(count):
            w.pointers[i] = w.queries + (first + i) * dim
        table().affine(w.pointers, count, dim, keys, bias, cells // LANES, w.scores, cells)
        score_apart(self, w, b)
        for i in range(count):
            w.shift[first + i] = max(-FLT_MAX, table().largest(w.scores + i * cells, cells))
        table().exponentials(w.scores, cells, count, cells, w.shift + first, w.sum + first)
        n_strays = self.score_strays(w, b, threshold)
        for i in range(count):
            if w.is_outlier[first + i]:
                memset(w.scores + i * cells, 0, cells * sizeof(float))
                w.sum[first + i] = inverse[i] = 0
                continue
            # The error of a mass grows with how much farther than the others of its block the query is from the mean.
            limit = threshold * w.sum[first + i] / w.unlike[first + i]
            gains, doubts = w.bias + cells, w.bias + 3 * cells
            if w.is_apart[first + i]:
                gains, doubts = w.bias + 4 * cells, w.bias + 5 * cells
                weigh_apart(self, gains, doubts, w.variances + n_apart * cells)
                n_apart += 1
            taken = table().take_above(w.scores + i * cells, gains, cells, limit, w.taken, &near_sum)
            near_sum += self.take_strays(w, i, first + i, threshold, taken, n_strays)
            w.sum[first + i] = max(<float>0, w.sum[first + i] - near_sum)
            inverse[i] = 1 / (w.sum[first + i] * count) if w.sum[first + i] > 0 else 0
            memset(lanes, 0, LANES * sizeof(float))
            for c from 0 <= c < cells by LANES:
                for lane in range(LANES):
                    tile_row = w.scores + i * cells + c
                    lanes[lane] += tile_row[lane] * tile_row[lane] * doubts[c + lane]
            for lane in range(LANES):  # a query that is less like its block errs more than the mean of it
                w.risk[first + i] += lanes[lane] * w.unlike[first + i] * w.unlike[first + i]
            if self.count[self.n_cells]:
                add_pair(w, self.n_cells, first + i)
        memset(shares, 0, cells * sizeof(float))
        table().combine(inverse, 0, 1, 1, count, w.scores, cells, cells, shares, cells)
        for i in range(count):  # what `slopes` are worth to a query that attends elsewhere than its block
            w.trust[first + i] = min(<float>1, 2 * table().overlap(w.scores + i * cells, inverse[i] * count, shares,
                                                                   cells))
        for c in range(cells):
            shares[c] *= shrink[c]
        table().combine(w.scores, cells, 1, count, self.n_cells, values, self.value_pad, self.value_pad,
                        w.out + first * self.value_pad, self.value_pad)
        w.touched += count * self.n_cells

    cdef float alone(self, Workspace w, Py_ssize_t query, float threshold) noexcept nogil:
        """The score of a key whose mass alone, all of it an error, is that of a cell at the threshold."""
        return w.shift[query] + logf(threshold * w.sum[query] / sqrtf(self.mean_count))

    cdef Py_ssize_t score_strays(self, Workspace w, Py_ssize_t b, float threshold) noexcept nogil:
        """Score the strays that may weigh much for some query of a block; return how many they are."""
        cdef Py_ssize_t i, n, first = b * w.block, count = min(w.block, w.n - b * w.block)
        cdef Py_ssize_t n_reached = 0
        cdef float least, total = 0
        if self.strays.taken[0] == 0 or threshold <= 0:
            return 0
        for i in range(count):
            if not w.is_outlier[first + i]:
                total += self.alone(w, first + i, threshold)
                n_reached += 1
        least = total / max(<Py_ssize_t>1, n_reached) - SUSPECTED - STRAY_REACH * sqrtf(w.widest[b])
        n = self.strays.choose(w.stray_means + b * self.strays.width, least, w.stray_ids, w.stray_panels)
        table().affine(w.pointers, count, self.dim, w.stray_panels, &self.strays.no_bias[0], (n + LANES - 1) // LANES,
                       w.stray_scores, self.strays.width)
        return n

    cdef float take_strays(self, Workspace w, Py_ssize_t i, Py_ssize_t query, float threshold, Py_ssize_t taken,
                           Py_ssize_t n_strays) noexcept nogil:
        """Put down the near cells of a block's query i: the `taken` ones, and those of strays that weigh much alone.

        Returns what the latter cells weighed.
        """
        cdef float *scores = w.scores + i * self.cell_pad
        cdef float *stray_scores = w.stray_scores + i * self.strays.width
        cdef float level, mass, near_sum = 0
        cdef Py_ssize_t j, k
        cdef int32_t c
        if n_strays:
            level = self.alone(w, query, threshold)
            if table().largest(stray_scores, (n_strays + LANES - 1) // LANES * LANES) <= level - SUSPECTED:
                n_strays = 0
        for j in range(n_strays):
            if stray_scores[j] <= level - SUSPECTED:
                continue
            c, k = self.strays.cells[w.stray_ids[j]], 0
            while k < taken and w.taken[k] != c:
                k += 1
            if k < taken:
                continue
            if stray_scores[j] > level:
                w.taken[taken] = c
                taken += 1
                near_sum += scores[c]
                scores[c] = 0
            else:
                mass = expf(stray_scores[j] - w.shift[query])
                w.risk[query] += mass * mass * self.mean_spread
        for j in range(taken):
            add_pair(w, w.taken[j], query)
        return near_sum

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
