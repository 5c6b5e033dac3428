"""Exact search: every point scored in float32 by the tile kernels, or one by one in float64.

The first is a filter: `uncertain` is the rounding-error check, and `scan_direct` answers the queries that fail it.
"""
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .kernels cimport (
    LANES, Kernels, Reservoir, Reservoirs, entry_score, reservoir_cut, reservoir_push, sort_keys, table,
)
from .rescore cimport distance, unit_of
from .rows cimport Rows

cdef enum:
    # To measure anew: `python -m comparisons run --suite batch`.
    BLOCK_BYTES = 256 * 1024  # panels of a block stay in the second-level cache
    AHEAD = 8  # rows of a subset that are fetched ahead: nothing foresees where they are


cdef struct Block:
    float *rows    # of one panel, as the points stand for them
    float *panels
    float *bias


cdef float fill(Block *block, Rows points, const int32_t[::1] ids, Py_ssize_t first, Py_ssize_t count,
                Py_ssize_t stop, bint squared) noexcept nogil:
    """Panels and bias of the `count` places from `first`; returns the largest |x|^2 among them."""
    cdef Py_ssize_t dim = points.width, i, k, p, lane, row
    cdef const Kernels *kernels = table()
    cdef float norm2, longest = 0
    for p in range((count + LANES - 1) // LANES):
        for lane in range(LANES):
            i = p * LANES + lane
            if i < count:
                row = first + i
                if ids is not None:
                    if row + AHEAD < stop:
                        points.fetch(ids[row + AHEAD])
                    row = ids[row]
                points.prepare(row, block.rows + lane * dim)
                norm2 = kernels.norm2(block.rows + lane * dim, dim)
                longest = max(longest, norm2)
                block.bias[i] = norm2 if squared else 0
            else:  # never below a threshold
                block.bias[i] = INFINITY
                for k in range(dim):
                    block.rows[lane * dim + k] = 0
        kernels.transpose(block.rows, dim, dim, block.panels + p * LANES * dim)
    return longest


def scan(Rows points, const int32_t[::1] ids, Py_ssize_t start, Py_ssize_t stop,
         const float[:, ::1] queries, Reservoirs reservoirs, bint squared):
    """Push the scores of places start:stop for every query into the query's reservoir.

    Parameters
    ----------
    ids : (places,) int32, optional
        The point in each place, ascending; None if places are points.
    queries : (b, width) float32
        Multiplied by -2 if `squared` (scores |x|^2 - 2 x.q), else by -1 (scores -x.q).
    reservoirs : of size b
        Positions are places.

    Returns
    -------
    float
        The largest |x|^2 among these points.
    """
    cdef Py_ssize_t dim = points.width, n_rows = queries.shape[0]
    cdef Py_ssize_t size = max(<Py_ssize_t>1, BLOCK_BYTES // (2 * LANES * 4 * dim)) * 2 * LANES
    cdef Py_ssize_t step, first, i, count
    cdef const float **rows = <const float **>malloc(n_rows * sizeof(float *))
    cdef Reservoir **targets = <Reservoir **>malloc(n_rows * sizeof(Reservoir *))
    cdef Block block
    cdef float longest = 0
    block.rows = <float *>malloc(LANES * dim * sizeof(float))
    block.panels = <float *>malloc(size * dim * sizeof(float))
    block.bias = <float *>malloc(size * sizeof(float))
    try:
        if not (rows and targets and block.rows and block.panels and block.bias):
            raise MemoryError(f"a block of {size} points of {dim} coordinates")
        with nogil:
            for i in range(n_rows):
                rows[i] = &queries[i, 0]
                targets[i] = &reservoirs.item[i]
            for step in range((stop - start + size - 1) // size):
                first = start + step * size
                count = min(size, stop - first)
                longest = max(longest, fill(&block, points, ids, first, count, stop, squared))
                table().scan_sum(rows, targets, n_rows, dim, block.panels, block.bias, (count + LANES - 1) // LANES,
                                 <uint32_t>first, NULL)
    finally:
        free(rows)
        free(targets)
        free(block.rows)
        free(block.panels)
        free(block.bias)
    return longest


def merge(lists):
    """One set of reservoirs that holds the best of several, by score and then by position.

    `reservoir_push` refuses what ties with the threshold, right only where positions ascend: here
    they do not, so that all are selected from at once.
    """
    cdef Reservoirs first = lists[0], other
    cdef Reservoirs out = Reservoirs(first.size, first.item[0].keep if first.size else 1)
    cdef Reservoir *into
    cdef Reservoir *item
    cdef Py_ssize_t i
    for other in lists:
        for i in range(out.size):
            into, item = &out.item[i], &other.item[i]
            reservoir_cut(item, item.keep)
            # Both have at most `keep` now, and there is room for twice as many.
            memcpy(into.entries + into.count, item.entries, item.count * sizeof(into.entries[0]))
            into.count += item.count
            # What a list has dropped scored no better than its worst, so no better than the worst here.
            reservoir_cut(into, into.keep)
    return out


def uncertain(Reservoirs reservoirs, Py_ssize_t k, Py_ssize_t n_points, const double[::1] error):
    """Which queries may have lost one of their k nearest to the rounding of scores.

    A point outside a reservoir scored at least its threshold, so that if the k-th best score is
    below the threshold by twice the largest error, the k nearest are inside.

    Parameters
    ----------
    reservoirs : of size b
    n_points : int
        Points that were offered; a reservoir that never filled must hold them all.
    error : (b,) float64
        Largest absolute error of a score, per query.

    Returns
    -------
    (b,) bool
    """
    out = np.zeros(reservoirs.size, bool)
    cdef uint8_t[::1] view = out.view(np.uint8)
    cdef Reservoir *item
    cdef Py_ssize_t i
    for i in range(reservoirs.size):
        item = &reservoirs.item[i]
        reservoir_cut(item, item.keep)
        if item.tau == INFINITY or item.count >= n_points:
            view[i] = item.count < n_points
        elif item.count < k:
            view[i] = True
        else:
            sort_keys(item.entries, item.count)
            view[i] = not (entry_score(item.entries[k - 1]) + 2 * error[i] < item.tau)
    return out


def scan_direct(Rows points, const int32_t[::1] ids, Py_ssize_t start, Py_ssize_t stop,
                const float[::1] query, int metric, double absmax, Reservoirs reservoirs):
    """Push the true distances of places start:stop, in float64, into the first reservoir.

    `points` gives their data as it is: neither scaled nor centred.
    """
    cdef Py_ssize_t i, row, dim = points.dim
    cdef double norm2, unit
    cdef float *room = <float *>malloc(max(dim, 1) * sizeof(float))
    if room == NULL:
        raise MemoryError("a row of points")
    with nogil:
        unit = unit_of(&query[0], dim, metric, absmax)
        norm2 = table().dot(&query[0], &query[0], dim)
        for i in range(start, stop):
            row = i
            if ids is not None:
                if i + AHEAD < stop:
                    points.fetch(ids[i + AHEAD])
                row = ids[i]
            reservoir_push(&reservoirs.item[0],
                           distance(points.row(row, room), &query[0], dim, metric, norm2, unit), <uint32_t>i)
    free(room)
