"""Attention of single queries over cells that grow: near cells exactly, far cells by moments.

Here each query has linear forms of its own: with q' = `for_queries`ᵀq, the scores within a cell have the variance v =
q'·Σq', and the cell's Gaussian closure is one key of score log n + q·μ + v/2 and the value ν + Γᵀq'. A query's output
depends on no other query of the call. For blocks of many similar queries `far_field` is faster.
"""
import numpy as np

from libc.math cimport expf, sqrtf
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from dci._native.kernels cimport LANES, table

from .growing_cells cimport Extent, GrowingCells
from .near_field cimport (
    LocalKeys,
    Panels,
    attend_local_keys,
    attend_panels,
    load_queries,
    sort_pairs,
    write_outputs,
)
from .workspace cimport BLOCK, Workspace, add_pair

# To measure these anew: python -m comparisons run --suite attention_decoding
cdef float ABOVE = 3  # standard deviations by which some key of a cell may score above the mean of them
cdef float MOST_GAIN = 1e9  # that a suspected error counts
cdef float CLOSURE = 4  # the largest variance of scores within a cell that its closure may stand for
cdef float LARGEST = 1e30  # variance
cdef float RISKY = 0.4  # times the threshold, for a query that is suspected of too large an error
cdef float SLOPE = 0.03  # of the error at the threshold: slopes of cells that matter less are left out


cdef class RowWorkspace(Workspace):
    """Buffers of some queries, each of which attends by linear forms of its own."""
    cdef float *products
    cdef float *variances
    cdef float *gains
    cdef float *slopes_of

    def __dealloc__(self):
        free(self.products)
        free(self.variances)
        free(self.gains)
        free(self.slopes_of)

    cdef bint allocate_rows(self, Py_ssize_t n, Py_ssize_t cells, Py_ssize_t m) noexcept nogil:
        self.products = <float *>malloc(n * m * (m + 1) // 2 * sizeof(float))
        self.variances = <float *>malloc(n * cells * sizeof(float))
        self.gains = <float *>malloc(n * cells * sizeof(float))
        self.slopes_of = <float *>malloc(n * m * sizeof(float))
        return self.products and self.variances and self.gains and self.slopes_of


cdef class ExactRows:
    """Some queries that attend exactly to keys that come part by part.

    Parameters
    ----------
    queries : (n, E) float32
    width : int
        Ev.
    scale : float
        Of the scores.
    """
    cdef Workspace w
    cdef readonly Py_ssize_t n_keys

    def __init__(self, const float[:, ::1] queries, Py_ssize_t width, float scale):
        cdef Py_ssize_t n = queries.shape[0]
        cdef int32_t[::1] order = np.arange(n, dtype=np.int32)
        self.w = Workspace()
        if not self.w.allocate(max(n, <Py_ssize_t>1), 0, LANES, queries.shape[1], width, 1, LANES, 0):
            raise MemoryError("workspace of attention")
        self.w.wanted = NULL
        memset(self.w.is_outlier, 0, n)
        load_queries(self.w, queries, &order[0], n, scale)

    def take(self, const float[:, :] keys, const float[:, :] values):
        """Attend to more keys (n, E) and values (n, Ev)."""
        cdef LocalKeys local = LocalKeys(keys, values, np.array([keys.shape[0]], np.int64))
        with nogil:
            attend_local_keys(self.w, local)
        self.n_keys += keys.shape[0]

    def write(self, float[:, ::1] out):
        """Write the attention to all keys so far, (n, Ev)."""
        write_outputs(self.w, out, NULL, NULL)


cdef class GrowingField(GrowingCells):
    """`GrowingCells` that queries attend to.

    Parameters
    ----------
    *arguments
        Those of `GrowingCells`.
    scale : float
        Of the scores.
    keep_far : bool
        Whether cells below the threshold are estimated, or left out.
    """
    cdef float scale
    cdef bint keep_far
    cdef list workspaces  # those that no thread uses

    def __init__(self, n_cells, for_keys, for_queries, width, second_order, float scale, bint keep_far):
        super().__init__(n_cells, for_keys, for_queries, width, second_order)
        self.arguments = (n_cells, for_keys, for_queries, width, second_order, scale, keep_far)
        self.scale, self.keep_far = scale, keep_far
        self.workspaces = []

    def release(self):
        """Give back workspaces."""
        self.workspaces.clear()

    def attend_rows(self, const float[:, ::1] queries, const int32_t[::1] rows, float threshold, float[:, ::1] out,
                    LocalKeys local=None, float[::1] risks=None, const float[::1] most_risks=None):
        """Attention of some rows over the keys in cells, and over local keys.

        Parameters
        ----------
        queries : (R, E) float32
        rows : (n,) int32
        threshold : float
            A cell whose estimated share of a query's mass, local keys' among it, times its gain, is above is attended
            to exactly; negative: every cell is.
        out : (R, Ev) float32, written at these rows
        local : LocalKeys, optional
            Keys beside those in cells.
        risks : (R,) float32, optional
            Receives at these rows the squared errors that the estimates are suspected of.
        most_risks : (R,) float32, optional
            A row that is suspected of more than there attends with a smaller threshold.

        Returns
        -------
        int
            How many pairs of a query and a key, or a cell, were scored.
        """
        cdef Py_ssize_t n = rows.shape[0], start
        cdef RowWorkspace w = self.take_workspace(min(n, <Py_ssize_t>BLOCK))
        cdef float *risk_of = NULL
        cdef const float *most = NULL
        if risks is not None:
            risk_of = &risks[0]
        if most_risks is not None:
            most = &most_risks[0]
        with nogil:
            for start from 0 <= start < n by BLOCK:
                load_queries(w, queries, &rows[start], min(<Py_ssize_t>BLOCK, n - start), self.scale)
                memset(w.is_outlier, 0, w.n)
                if local is not None:
                    attend_local_keys(w, local)
                if threshold < 0:
                    self.choose_all(w)
                else:
                    self.attend_far(w, threshold, most)
                self.attend_near(w)
                write_outputs(w, out, risk_of, NULL)
        self.workspaces.append(w)
        return w.touched

    cdef RowWorkspace take_workspace(self, Py_ssize_t n):
        """Take memory for n queries at once."""
        cdef RowWorkspace w
        try:
            w = self.workspaces.pop()
        except IndexError:
            w = None
        if w is None or w.capacity < n:
            w = RowWorkspace()
            if not (w.allocate(n, self.n_cells, self.cell_pad, self.dim, self.width, self.n_directions,
                               self.deviation_pad, 0)
                    and w.allocate_rows(n, self.cell_pad, self.n_directions)):
                raise MemoryError("workspace of attention")
        w.touched, w.wanted = 0, NULL
        return w

    cdef void choose_all(self, RowWorkspace w) noexcept nogil:
        """Make every cell near for every query."""
        cdef Py_ssize_t i, c
        for i in range(w.n):
            for c in range(self.n_cells + 1):
                add_pair(w, c, i)

    cdef void attend_far(self, RowWorkspace w, float threshold, const float *most) noexcept nogil:
        """Estimate every cell for every query; cells above the threshold are left for `attend_near`."""
        cdef Py_ssize_t cells = self.cell_pad, i, c
        cdef float *least = w.small  # of squared errors by slopes that matter
        cdef float *scores
        cdef float far, total, limit
        self.score_cells(w)
        for i in range(w.n):
            scores, far = w.scores + i * cells, 0
            self.lift_shift(w, i, table().largest(scores, cells))
            table().exponentials(scores, cells, 1, cells, w.shift + i, &far)
            total = far + w.sum[i]
            limit = threshold * total
            far -= self.take_near(w, i, limit)
            if most != NULL and w.risk[i] > most[w.row[i]] * total * total:
                limit *= RISKY
                far -= self.take_near(w, i, limit)
            least[i] = SLOPE * SLOPE * limit * limit / self.mean_count
            if self.count[self.n_cells]:
                add_pair(w, self.n_cells, i)
            if self.keep_far:
                w.sum[i] += max(<float>0, far)
            else:
                w.risk[i] = 0
        w.touched += w.n * self.n_cells
        if not self.keep_far:
            return
        table().combine(w.scores, cells, 1, w.n, self.n_cells, &self.mean_values[0, 0], self.value_pad,
                        self.value_pad, w.out, self.value_pad)
        if self.second_order:
            for c in range(self.n_cells):
                self.add_slopes(w, c, least)

    cdef void lift_shift(self, RowWorkspace w, Py_ssize_t i, float top) noexcept nogil:
        """Have a query's shift at least at the largest score, and what it attended to so far fit it."""
        cdef float shift = max(w.shift[i], top), factor
        cdef Py_ssize_t v
        if shift > w.shift[i] and w.sum[i] > 0:
            factor = expf(max(<float>-87, w.shift[i] - shift))
            w.sum[i] *= factor
            for v in range(self.value_pad):
                w.out[i * self.value_pad + v] *= factor
        w.shift[i] = shift

    cdef float take_near(self, RowWorkspace w, Py_ssize_t i, float limit) noexcept nogil:
        """Put down a query's cells above a limit as near ones, and suspect the others; return what the former weigh."""
        cdef Py_ssize_t cells = self.cell_pad, j, c, taken
        cdef float *scores = w.scores + i * cells
        cdef float *gains = w.gains + i * cells
        cdef float near_sum, suspected, risk = 0
        cdef float lanes[LANES]
        taken = table().take_above(scores, gains, cells, limit, w.taken, &near_sum)
        for j in range(taken):
            add_pair(w, w.taken[j], i)
        memset(lanes, 0, LANES * sizeof(float))
        for c from 0 <= c < cells by LANES:
            for j in range(LANES):
                suspected = scores[c + j] * min(gains[c + j], MOST_GAIN)
                lanes[j] += suspected * suspected
        for j in range(LANES):
            risk += lanes[j]
        w.risk[i] = risk * self.mean_spread / self.mean_count
        return near_sum

    cdef void score_cells(self, RowWorkspace w) noexcept nogil:
        """Scores of all cells by their closures, and their gains: what a share of the mass errs by, about."""
        cdef Py_ssize_t cells = self.cell_pad, m = self.n_directions, pad = self.deviation_pad, i, j, k, c
        cdef float *row
        cdef float *product
        cdef float *scores
        cdef float *variances
        cdef float *gains
        cdef float variance, closure
        for i in range(w.n):
            w.pointers[i] = w.queries + i * self.dim
        table().affine(w.pointers, w.n, self.dim, &self.mean_keys[0, 0, 0], &self.log_counts[0], cells // LANES,
                       w.scores, cells)
        memset(w.variances, 0, w.n * cells * sizeof(float))
        if self.second_order:
            table().affine(w.pointers, w.n, self.dim, &self.query_panels[0, 0, 0], &self.zeros[0], pad // LANES,
                           w.projected, pad)
            for i in range(w.n):
                row, product = w.projected + i * pad, w.products + i * self.n_products
                w.pointers[i] = product
                for k in range(m):
                    for j in range(m - k):
                        product[j] = row[k] * row[k + j]
                    product += m - k
            table().affine(w.pointers, w.n, self.n_products, &self.products[0, 0, 0], &self.zeros[0], cells // LANES,
                           w.variances, cells)
        for i in range(w.n):
            scores, variances, gains = w.scores + i * cells, w.variances + i * cells, w.gains + i * cells
            for c in range(cells):
                variance = min(max(variances[c], <float>0), LARGEST)
                closure = min(variance, CLOSURE)
                variances[c] = variance
                scores[c] += closure / 2
                # The mass, over that of the closure, of a single key far above the mean of them.
                gains[c] = min(<float>30, ABOVE * sqrtf(variance) - self.log_counts[c] - closure / 2)
        memset(w.small, 0, 2 * BLOCK * sizeof(float))
        table().exponentials(w.gains, cells, w.n, cells, w.small, w.small + BLOCK)
        for i in range(w.n):
            variances, gains = w.variances + i * cells, w.gains + i * cells
            for c in range(cells):
                closure = min(variances[c], CLOSURE)
                gains[c] = self.spreads[c] * sqrtf(
                    self.mean_count * ((<float>0.3 + closure) * self.inverse_counts[c] + gains[c] * gains[c])
                )

    cdef void add_slopes(self, RowWorkspace w, Py_ssize_t c, const float *least) noexcept nogil:
        """Add by how much the value of a cell differs from the mean of it, for the queries where that matters."""
        cdef Py_ssize_t cells = self.cell_pad, m = self.n_directions, i, k
        cdef float *weights
        cdef float *row
        cdef float variance, share, suspected
        cdef bint any_matters = False
        for i in range(w.n):
            weights, row = w.slopes_of + i * m, w.projected + i * self.deviation_pad
            variance = w.variances[i * cells + c]
            share = w.scores[i * cells + c]
            if variance > CLOSURE:
                share *= CLOSURE / variance
            suspected = share * self.spreads[c]
            if suspected * suspected * variance > least[i]:
                any_matters = True
                for k in range(m):
                    weights[k] = share * row[k]
            else:
                memset(weights, 0, m * sizeof(float))
        if any_matters:
            table().combine(w.slopes_of, m, 1, w.n, m, &self.gamma[c, 0, 0], self.value_pad, self.value_pad, w.out,
                            self.value_pad)

    cdef void attend_near(self, RowWorkspace w) noexcept nogil:
        """Attend to near cells exactly, cell by cell, all the queries that chose it together."""
        cdef Py_ssize_t c, left, start = 0
        cdef Panels panels
        cdef Extent *extent
        panels.value_stride = self.value_pad
        sort_pairs(w, self.n_cells + 1)
        for c in range(self.n_cells + 1):
            left = self.count[c] if w.ends[c] > start else 0
            if left:
                extent = self.extents + self.first_extent[c]
            while left:
                panels.keys, panels.values, panels.n_keys = extent.keys, extent.values, min(left, extent.room)
                attend_panels(w, w.visitors + start, w.ends[c] - start, &panels, NULL)
                left -= panels.n_keys
                if left:
                    extent = self.extents + extent.following
            start = w.ends[c]
