"""Exact attention of queries over the keys of cells, and over keys that a query sees in part.

What is attended to is added to the state of queries in a workspace: a shift, a sum of exponentials, weighted values.
"""
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, expf, logf
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .moments cimport Moments
from .workspace cimport BLOCK, LOCAL_TILE, TILE, VISITORS, Workspace, add_pair, is_wanted

cdef float ROOM = 30  # a score so far above the shift makes a new shift


cdef class LocalKeys:
    """Keys that each query sees from a boundary to a stop of its own, and attends to exactly.

    Parameters
    ----------
    keys, values : (n, E) and (n, Ev) float32, unit stride along the last axis
    stops : (L,) int64
        Row g * L + i sees the keys from `boundary` to stops[i]. Read in each call, so that it may be changed.
    boundary : int
    """

    def __init__(self, const float[:, :] keys, const float[:, :] values, const int64_t[::1] stops,
                 Py_ssize_t boundary=0):
        self.keys, self.values, self.stops, self.boundary = keys, values, stops, boundary


cdef void load_queries(Workspace w, const float[:, ::1] queries, const int32_t *order, Py_ssize_t n,
                       float scale) noexcept nogil:
    """Put n rows of the queries, scaled, into the workspace; they have attended to nothing."""
    cdef Py_ssize_t i
    w.n = n
    w.n_pairs = 0
    for i in range(n):
        w.row[i] = order[i]
        table().prepare(&queries[order[i], 0], w.dim, scale, w.zeros, w.queries + i * w.dim)
    reset_state(w)


cdef void reset_state(Workspace w) noexcept nogil:
    """Return the queries to the state of having attended to nothing."""
    cdef Py_ssize_t i
    for i in range(w.n):
        w.shift[i] = -FLT_MAX
        w.sum[i] = 0
        w.risk[i] = 0
    memset(w.out, 0, w.n * w.value_pad * sizeof(float))


cdef void choose_all_cells(Moments cells, Workspace w) noexcept nogil:
    """Make every cell near for every query."""
    cdef Py_ssize_t i, c
    for i in range(w.n):
        for c in range(cells.n_cells + 1):
            add_pair(w, c, i)


cdef void attend_near_cells(Moments cells, Workspace w) noexcept nogil:
    """Attend to cells exactly, cell by cell, all the queries that chose it together."""
    cdef Py_ssize_t c, start = 0, position
    cdef Panels panels
    sort_pairs(w, cells.n_cells + 1)
    for c in range(cells.n_cells + 1):
        position = cells.first_panel[c]
        panels.keys = &cells.panels[0, 0, 0] + position * LANES * cells.dim
        panels.values = &cells.rows[0, 0] + position * LANES * cells.row_stride
        panels.value_stride, panels.n_keys = cells.row_stride, cells.count[c]
        attend_panels(w, w.visitors + start, w.ends[c] - start, &panels, NULL)
        start = w.ends[c]


cdef void sort_pairs(Workspace w, Py_ssize_t n_cells) noexcept nogil:
    """List the visitors of every cell: those of c are from the end of c - 1 to its own."""
    cdef Py_ssize_t c, i
    memset(w.ends, 0, (n_cells + 1) * sizeof(int32_t))
    for i in range(w.n_pairs):
        w.ends[w.pairs[2 * i] + 1] += 1
    for c in range(n_cells):
        w.ends[c + 1] += w.ends[c]
    for i in range(w.n_pairs):
        c = w.pairs[2 * i]
        w.visitors[w.ends[c]] = w.pairs[2 * i + 1]
        w.ends[c] += 1


cdef void attend_local_keys(Workspace w, LocalKeys local) noexcept nogil:
    """Attend to the keys from the boundary to each row's stop exactly."""
    cdef Py_ssize_t tile, first, count, i, n, j, k, last = local.boundary, length = local.stops.shape[0]
    cdef const int64_t *stops = &local.stops[0]
    cdef Panels panels
    cdef float *values = w.panel + LOCAL_TILE * w.dim
    for i in range(w.n):
        if is_wanted(w, i):
            last = max(last, stops[w.row[i] % length])
    memset(values, 0, LOCAL_TILE * w.value_pad * sizeof(float))
    for tile in range((last - local.boundary + LOCAL_TILE - 1) // LOCAL_TILE):
        first = local.boundary + tile * LOCAL_TILE
        count = min(<Py_ssize_t>LOCAL_TILE, last - first)
        if count % LANES:
            memset(w.panel + count // LANES * LANES * w.dim, 0, LANES * w.dim * sizeof(float))
        for j in range(count):
            memcpy(values + j * w.value_pad, &local.values[first + j, 0], w.width * sizeof(float))
        for j in range(count // LANES):
            table().transpose(&local.keys[first + j * LANES, 0], local.keys.strides[0] // <Py_ssize_t>sizeof(float),
                              w.dim, w.panel + j * LANES * w.dim)
        for j in range(count // LANES * LANES, count):
            for k in range(w.dim):
                w.panel[(j // LANES * w.dim + k) * LANES + j % LANES] = local.keys[first + j, k]
        n = 0
        for i in range(w.n):
            if <Py_ssize_t>stops[w.row[i] % length] > first and not w.is_outlier[i] and is_wanted(w, i):
                w.visitors[n] = <int32_t>i
                w.limits[n] = <int32_t>min(count, stops[w.row[i] % length] - first)
                n += 1
        panels.keys, panels.values, panels.value_stride, panels.n_keys = w.panel, values, w.value_pad, count
        attend_panels(w, w.visitors, n, &panels, w.limits)


cdef void attend_panels(Workspace w, const int32_t *visitors, Py_ssize_t n_visitors,
                        const Panels *panels, const int32_t *limits) noexcept nogil:
    """Softmax over the keys of panels, up to each query's limit, merged into the state of the visiting queries."""
    cdef Py_ssize_t i, j, q, k, first, count, start, n, width, n_keys = panels.n_keys
    cdef Py_ssize_t value_stride = panels.value_stride
    cdef const float *keys = panels.keys
    cdef const float *values = panels.values
    cdef float *shift = w.small
    cdef float *sums = w.small + BLOCK
    cdef float *row
    cdef float top, factor
    for first from 0 <= first < n_visitors by VISITORS:
        count = min(<Py_ssize_t>VISITORS, n_visitors - first)
        for i in range(count):
            w.pointers[i] = w.queries + visitors[first + i] * w.dim
        for start from 0 <= start < n_keys by TILE:
            n = min(<Py_ssize_t>TILE, n_keys - start)
            width = (n + LANES - 1) // LANES * LANES
            table().affine(w.pointers, count, w.dim, keys + start * w.dim, w.zeros, width // LANES,
                           w.scores, width)
            for i in range(count):
                q, row = visitors[first + i], w.scores + i * width
                for j in range(n if limits == NULL else limits[first + i], width):
                    row[j] = -INFINITY
                top = table().largest(row, width)
                if top > w.shift[q] + ROOM:
                    factor = expf(max(<float>-87, w.shift[q] - top))
                    w.shift[q] = top
                    w.sum[q] *= factor
                    w.risk[q] *= factor * factor
                    for k in range(w.value_pad):
                        w.out[q * w.value_pad + k] *= factor
                shift[i], sums[i] = w.shift[q], 0
            table().exponentials(w.scores, width, count, width, shift, sums)
            if limits != NULL:
                for i in range(count):
                    for j in range(limits[first + i], n):
                        w.scores[i * width + j] = 0
            memset(w.sums, 0, count * w.value_pad * sizeof(float))
            table().combine(w.scores, width, 1, count, n, values + start * value_stride, value_stride,
                            w.value_pad, w.sums, w.value_pad)
            for i in range(count):
                q = visitors[first + i]
                w.sum[q] += sums[i]
                for k in range(w.value_pad):
                    w.out[q * w.value_pad + k] += w.sums[i * w.value_pad + k]
            w.touched += count * n


cdef void write_outputs(Workspace w, float[:, ::1] out, float *risks, float *lse) noexcept nogil:
    """Write what the queries have attended to, but for those that are out of reach.

    Where they are wanted: suspected errors, and logarithms of the sums of all exponentials.
    """
    cdef Py_ssize_t i, k
    cdef float share
    for i in range(w.n):
        if w.is_outlier[i]:
            continue
        share = 1 / w.sum[i] if w.sum[i] > 0 else 0
        for k in range(w.width):
            out[w.row[i], k] = w.out[i * w.value_pad + k] * share
        if risks != NULL:
            risks[w.row[i]] = w.risk[i] * share * share
        if lse != NULL:
            lse[w.row[i]] = w.shift[i] + logf(w.sum[i]) if w.sum[i] > 0 else -INFINITY
