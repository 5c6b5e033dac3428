"""Exact attention of queries over the keys of cells, and over keys that a query sees in part.

What is attended to is added to the state of the queries in `Scratch`: a shift, a sum of exponentials, weighted values.
"""
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, expf
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from dci._native.kernels cimport LANES, table

from .moments cimport Moments
from .workspace cimport BLOCK, LOCAL_TILE, TILE, Scratch, add_pair, is_wanted

cdef float ROOM = 30  # a score so far above the shift makes a new shift


cdef void gather(Moments cells, Scratch s, const float[:, ::1] queries, const int32_t *order, Py_ssize_t n,
                 float scale) noexcept nogil:
    """Start with n rows of the queries, that have attended to nothing."""
    cdef Py_ssize_t i
    s.n = n
    s.n_pairs = 0
    for i in range(n):
        s.row[i] = order[i]
        table().prepare(&queries[order[i], 0], cells.dim, scale, &cells.no_bias[0],
                        s.queries + i * cells.dim)
    forget(cells, s)


cdef void forget(Moments cells, Scratch s) noexcept nogil:
    """Have attended to nothing yet."""
    cdef Py_ssize_t i
    for i in range(s.n):
        s.shift[i] = -FLT_MAX
        s.sum[i] = 0
        s.risk[i] = 0
    memset(s.out, 0, s.n * cells.value_pad * sizeof(float))


cdef void open_all(Moments cells, Scratch s) noexcept nogil:
    """Have every query choose every cell."""
    cdef Py_ssize_t i, c
    for i in range(s.n):
        for c in range(cells.n_cells + 1):
            add_pair(s, c, i)


cdef void near(Moments cells, Scratch s) noexcept nogil:
    """Attend to cells exactly, cell by cell, all the queries that chose it together."""
    cdef Py_ssize_t c, i, start, position
    memset(s.ends, 0, (cells.n_cells + 2) * sizeof(int32_t))
    for i in range(s.n_pairs):
        s.ends[s.pairs[2 * i] + 1] += 1
    for c in range(cells.n_cells + 1):
        s.ends[c + 1] += s.ends[c]
    for i in range(s.n_pairs):
        c = s.pairs[2 * i]
        s.visitors[s.ends[c]] = s.pairs[2 * i + 1]
        s.ends[c] += 1
    start = 0
    for c in range(cells.n_cells + 1):
        position = cells.first_panel[c]
        visit(cells, s, s.visitors + start, s.ends[c] - start,
              &cells.panels[0, 0, 0] + position * LANES * cells.dim,
              &cells.rows[0, 0] + position * LANES * cells.row_stride, cells.row_stride, cells.count[c], NULL)
        start = s.ends[c]


cdef void local(Moments cells, Scratch s, const int64_t *stops, Py_ssize_t boundary, Py_ssize_t length,
                const float[:, :] local_keys, const float[:, :] local_values) noexcept nogil:
    """Attend to the keys from `boundary` to each row's stop exactly."""
    cdef Py_ssize_t tile, first, count, i, n, j, k, last = boundary
    cdef float *values = s.panel + LOCAL_TILE * cells.dim
    for i in range(s.n):
        if is_wanted(s, i):
            last = max(last, stops[s.row[i] % length])
    for tile in range((last - boundary + LOCAL_TILE - 1) // LOCAL_TILE):
        first = boundary + tile * LOCAL_TILE
        count = min(<Py_ssize_t>LOCAL_TILE, last - first)
        memset(s.panel, 0, LOCAL_TILE * cells.dim * sizeof(float))
        memset(values, 0, LOCAL_TILE * cells.value_pad * sizeof(float))
        for j in range(count):
            memcpy(values + j * cells.value_pad, &local_values[first + j, 0], cells.width * sizeof(float))
        for j in range(count // LANES):
            table().transpose(&local_keys[first + j * LANES, 0], local_keys.strides[0] // <Py_ssize_t>sizeof(float),
                              cells.dim, s.panel + j * LANES * cells.dim)
        for j in range(count // LANES * LANES, count):
            for k in range(cells.dim):
                s.panel[(j // LANES * cells.dim + k) * LANES + j % LANES] = local_keys[first + j, k]
        n = 0
        for i in range(s.n):
            if <Py_ssize_t>stops[s.row[i] % length] > first and not s.off[i] and is_wanted(s, i):
                s.visitors[n] = <int32_t>i
                s.limits[n] = <int32_t>min(count, stops[s.row[i] % length] - first)
                n += 1
        visit(cells, s, s.visitors, n, s.panel, values, cells.value_pad, count, s.limits)


cdef void visit(Moments cells, Scratch s, const int32_t *visitors, Py_ssize_t n_visitors, const float *panels,
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
            s.pointers[i] = s.queries + visitors[first + i] * cells.dim
        for start from 0 <= start < n_keys by TILE:
            n = min(<Py_ssize_t>TILE, n_keys - start)
            width = (n + LANES - 1) // LANES * LANES
            table().affine(s.pointers, count, cells.dim, panels + start * cells.dim, &cells.no_bias[0], width // LANES,
                           s.scores, width)
            for i in range(count):
                q, row = visitors[first + i], s.scores + i * width
                for j in range(n if limits == NULL else limits[first + i], width):
                    row[j] = -INFINITY
                top = table().largest(row, width)
                if top > s.shift[q] + ROOM:
                    factor = expf(max(<float>-87, s.shift[q] - top))
                    s.shift[q] = top
                    s.sum[q] *= factor
                    s.risk[q] *= factor * factor
                    for k in range(cells.value_pad):
                        s.out[q * cells.value_pad + k] *= factor
                shift[i], sums[i] = s.shift[q], 0
            table().exponentials(s.scores, width, count, width, shift, sums)
            if limits != NULL:
                for i in range(count):
                    for j in range(limits[first + i], n):
                        s.scores[i * width + j] = 0
            memset(s.sums, 0, count * cells.value_pad * sizeof(float))
            table().combine(s.scores, width, 1, count, n, values + start * value_stride, value_stride,
                            cells.value_pad, s.sums, cells.value_pad)
            for i in range(count):
                q = visitors[first + i]
                s.sum[q] += sums[i]
                for k in range(cells.value_pad):
                    s.out[q * cells.value_pad + k] += s.sums[i * cells.value_pad + k]
            s.touched += count * n


cdef void write(Moments cells, Scratch s, float[:, ::1] out, float *risks) noexcept nogil:
    """Write what the queries have attended to, but for those that are out of reach."""
    cdef Py_ssize_t i, k
    cdef float share
    for i in range(s.n):
        if s.off[i]:
            continue
        share = 1 / s.sum[i] if s.sum[i] > 0 else 0
        for k in range(cells.width):
            out[s.row[i], k] = s.out[i * cells.value_pad + k] * share
        if risks != NULL:
            risks[s.row[i]] = s.risk[i] * share * share
