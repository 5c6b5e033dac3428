"""The ranked search: cells are opened best first, and every point of an open cell is ranked.

A batch goes cell by cell, so that a cell's coordinates are read once for all the queries that
opened it.  A sample of the open cells comes first: it sets a threshold for each query that few
points beyond the wanted candidates will pass.  Should fewer pass, the query is scanned again
without; so the candidates are the best of all the points visited, whatever the sample.
"""
import numpy as np

from libc.math cimport INFINITY, ceil, nextafterf, sqrt
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from .cells cimport Cells
from .kernels cimport (
    LANES, Reservoir, Reservoirs, entry, reservoir_cut, select_keys, sort_keys, table,
)

cdef enum:
    # To measure anew: `python -m comparisons run --suite batch`.
    GROUP = 8  # queries from which a sample of the cells pays, and panels are made floats for all of them
    TILES = 24  # queries whose cells are scored together: whole tiles of 6 and of 8 rows
    SAMPLE = 16  # one panel in so many is sampled
    WIDENED = 16  # panels that are floats for a while, for many rows

cdef uint64_t LOW = 0xFFFFFFFF


cdef struct Batch:
    Py_ssize_t n_rows, stride
    const int32_t *sizes  # points of each cell that count as visits
    const float *queries
    const uint8_t *allowed
    bint use_max
    uint64_t *opened      # pairs (cell << 32 | row), in any order
    Py_ssize_t n_opened, capacity
    Py_ssize_t *offsets   # members[offsets[c]:offsets[c + 1]] are the rows that opened cell c
    int32_t *members
    const float **rows    # workspace of one call of a kernel
    Reservoir **targets
    float *widened


cdef int open_cell(Batch *batch, Py_ssize_t cell, Py_ssize_t row) noexcept nogil:
    cdef uint64_t *larger
    if batch.n_opened == batch.capacity:
        larger = <uint64_t *>realloc(batch.opened, 2 * batch.capacity * sizeof(uint64_t))
        if larger == NULL:
            return -1
        batch.opened = larger
        batch.capacity *= 2
    batch.opened[batch.n_opened] = <uint64_t>cell << 32 | <uint64_t>row
    batch.n_opened += 1
    return 0


cdef int open_best(Cells cells, const float *scores, Py_ssize_t row, Py_ssize_t max_visits,
                   uint64_t *keys, Batch *batch) noexcept nogil:
    """Open cells in order of their centres' scores until they hold max_visits points."""
    cdef Py_ssize_t n = cells.n_centers, c, done = 0, visited = 0, step, average
    for c in range(n):
        keys[c] = entry(scores[c], <uint32_t>c)
    for c in range(n, cells.n_cells):
        visited += batch.sizes[c]
        if open_cell(batch, c, row):
            return -1
    average = max(<Py_ssize_t>1, cells.ids.shape[0] // max(<Py_ssize_t>1, cells.n_cells))
    step = min(n, max_visits // average + max_visits // (4 * average) + 4)
    while done < n and (visited < max_visits or visited == 0):
        if done % step == 0:  # the next `step` cells, in order
            select_keys(keys + done, n - done, min(step, n - done), min(step, n - done))
            sort_keys(keys + done, min(step, n - done))
        c = <Py_ssize_t>(keys[done] & LOW)
        done += 1
        if batch.sizes[c] == 0:
            continue
        visited += batch.sizes[c]
        if open_cell(batch, c, row):
            return -1
    return 0


cdef int open_all(Cells cells, Batch *batch, Py_ssize_t max_visits) noexcept nogil:
    """Open the cells of every row."""
    cdef Py_ssize_t dim = cells.centers.shape[1], n_scores = cells.centers.shape[0] * LANES
    cdef Py_ssize_t group, i, j, k, count, most = min(batch.n_rows, <Py_ssize_t>TILES)
    cdef const float *rows[TILES]
    cdef int failed = 0
    cdef float *workspace = <float *>malloc(most * (dim + n_scores) * sizeof(float))
    cdef float *scores = workspace + most * dim
    cdef uint64_t *keys = <uint64_t *>malloc((n_scores + 1) * sizeof(uint64_t))
    if workspace == NULL or keys == NULL:
        failed = -1
    else:
        for group in range((batch.n_rows + TILES - 1) // TILES):
            i = group * TILES
            count = min(<Py_ssize_t>TILES, batch.n_rows - i)
            for j in range(count):
                rows[j] = batch.queries + (i + j) * batch.stride
                if batch.use_max:
                    for k in range(dim):
                        workspace[j * dim + k] = -2 * rows[j][k]
                    rows[j] = workspace + j * dim
            if n_scores:
                table().affine(rows, count, dim, &cells.centers[0, 0, 0], &cells.center_bias[0],
                               cells.centers.shape[0], scores, n_scores)
            for j in range(count):
                failed |= open_best(cells, scores + j * n_scores, i + j,
                                    max_visits, keys, batch)
    free(workspace)
    free(keys)
    return failed


cdef void sort_by_cell(Batch *batch, Py_ssize_t n_cells) noexcept nogil:
    """Offsets and members from the pairs."""
    cdef Py_ssize_t c, i
    for c in range(n_cells + 1):
        batch.offsets[c] = 0
    for i in range(batch.n_opened):
        batch.offsets[batch.opened[i] >> 32] += 1
    for c in range(n_cells):
        batch.offsets[c + 1] += batch.offsets[c]
    for i in range(batch.n_opened - 1, -1, -1):
        c = <Py_ssize_t>(batch.opened[i] >> 32)
        batch.offsets[c] -= 1
        batch.members[batch.offsets[c]] = <int32_t>(batch.opened[i] & LOW)


cdef void rank_panels(Cells cells, Batch *batch, Py_ssize_t composite, Py_ssize_t count,
                      Py_ssize_t panel, Py_ssize_t n_panels) noexcept nogil:
    cdef Py_ssize_t m = cells.n_simple, start, some
    cdef uint32_t position = <uint32_t>(panel * LANES)
    if batch.use_max:
        table().scan_max(batch.rows, batch.targets, count, m,
                         &cells.coordinates[composite, panel, 0, 0], n_panels, position,
                         batch.allowed)
    elif not cells.quantized:
        table().scan_sum(batch.rows, batch.targets, count, m,
                         &cells.coordinates[composite, panel, 0, 0],
                         &cells.bias[composite, position], n_panels, position, batch.allowed)
    elif count < GROUP:
        table().scan_short(batch.rows, batch.targets, count, m,
                           &cells.shorts[composite, panel, 0, 0], &cells.steps[composite, position],
                           &cells.bias[composite, position], n_panels, position, batch.allowed)
    else:
        for start from 0 <= start < n_panels by WIDENED:
            some = min(<Py_ssize_t>WIDENED, n_panels - start)
            position = <uint32_t>((panel + start) * LANES)
            table().widen(&cells.shorts[composite, panel + start, 0, 0],
                          &cells.steps[composite, position], some, m, batch.widened)
            table().scan_sum(batch.rows, batch.targets, count, m, batch.widened,
                             &cells.bias[composite, position], some, position, batch.allowed)


cdef void scan(Cells cells, Batch *batch, Reservoir *reservoirs, Py_ssize_t sample) noexcept nogil:
    """Rank one panel in `sample` of every open cell, for the rows that opened it."""
    cdef Py_ssize_t c, i, composite, p, count, row, first, last
    for c in range(cells.n_cells):
        count = batch.offsets[c + 1] - batch.offsets[c]
        first, last = cells.first_panel[c], cells.first_panel[c + 1]
        if count == 0 or first == last:
            continue
        for composite in range(cells.n_composite):
            for i in range(count):
                row = batch.members[batch.offsets[c] + i]
                batch.rows[i] = batch.queries + row * batch.stride + composite * cells.n_simple
                batch.targets[i] = &reservoirs[composite * batch.n_rows + row]
            if sample == 1:
                rank_panels(cells, batch, composite, count, first, last - first)
            else:
                for p in range((last - first + sample - 1 - c % sample) // sample):
                    rank_panels(cells, batch, composite, count, first + c % sample + p * sample, 1)


cdef void set_thresholds(Reservoirs samples, Reservoirs reservoirs) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(samples.size):
        reservoir_cut(&samples.item[i], samples.item[i].keep)
        if samples.item[i].tau < INFINITY:
            reservoirs.item[i].tau = nextafterf(samples.item[i].tau, INFINITY)


cdef void keep_short(Batch *batch, Reservoirs reservoirs) noexcept nogil:
    """Leave open only what rows opened whose threshold was too low, and reset these rows."""
    cdef Py_ssize_t i, part, row, kept = 0, n_lists = reservoirs.size // batch.n_rows
    cdef Reservoir *item
    cdef bint short
    for i in range(batch.n_opened):
        row = <Py_ssize_t>(batch.opened[i] & LOW)
        short = False
        for part in range(n_lists):
            item = &reservoirs.item[part * batch.n_rows + row]
            short |= item.count < item.keep and item.tau < INFINITY
        if short:
            batch.opened[kept] = batch.opened[i]
            kept += 1
    batch.n_opened = kept
    for i in range(kept):
        row = <Py_ssize_t>(batch.opened[i] & LOW)
        for part in range(n_lists):
            reservoirs.item[part * batch.n_rows + row].count = 0
            reservoirs.item[part * batch.n_rows + row].tau = INFINITY


cdef Py_ssize_t sample_rank(Py_ssize_t keep, Py_ssize_t visits) noexcept nogil:
    """Which of the best sampled scores becomes the threshold; 0 to go without.

    Of the best `keep`, about keep / SAMPLE are sampled, by chance more or fewer.
    """
    cdef double expected = keep / <double>SAMPLE
    cdef Py_ssize_t rank = <Py_ssize_t>ceil(expected + 2.5 * sqrt(expected) + 1)
    return rank if rank * SAMPLE * 2 < visits else 0


def search(Cells cells, const float[:, ::1] queries, Py_ssize_t max_visits, bint use_max,
           Reservoirs reservoirs, const uint8_t[::1] allowed=None, const int32_t[::1] sizes=None):
    """Rank the points of the best cells for a batch of queries.

    Parameters
    ----------
    queries : (b, >= L * m) float32
        Projections of the queries, multiplied by -2 unless `use_max`.
    max_visits : int
        Cells are opened, best first, until they hold so many points.
    reservoirs : of size L * b, empty
        Written; candidates of query i by composite index l are in reservoir l * b + i.
    allowed : (positions,) uint8, optional
    sizes : (cells,) int32, optional
        Allowed points of each cell: only they count as visits.
    """
    cdef Py_ssize_t n_rows = queries.shape[0], rank
    cdef Reservoirs samples
    cdef Batch batch
    cdef int failed = 0
    if n_rows == 0:
        return
    # For a few queries, reading the sample costs more time than its threshold saves.
    rank = sample_rank(reservoirs.item[0].keep, max_visits) if n_rows >= GROUP else 0
    samples = Reservoirs(reservoirs.size if rank else 0, rank)
    batch.n_rows, batch.stride, batch.queries = n_rows, queries.shape[1], &queries[0, 0]
    batch.allowed = NULL
    if allowed is not None:
        batch.allowed = &allowed[0]
    batch.use_max = use_max
    batch.sizes = &cells.sizes[0] if sizes is None else &sizes[0]
    batch.n_opened, batch.capacity = 0, 16 * n_rows
    batch.opened = <uint64_t *>malloc(batch.capacity * sizeof(uint64_t))
    batch.offsets = <Py_ssize_t *>malloc((cells.n_cells + 1) * sizeof(Py_ssize_t))
    batch.members = NULL
    batch.rows = <const float **>malloc(n_rows * sizeof(float *))
    batch.targets = <Reservoir **>malloc(n_rows * sizeof(Reservoir *))
    batch.widened = <float *>malloc(WIDENED * cells.n_simple * LANES * sizeof(float))
    if not (batch.opened and batch.offsets and batch.rows and batch.targets and batch.widened):
        failed = -1
    else:
        with nogil:
            failed = open_all(cells, &batch, max_visits)
            if not failed:
                batch.members = <int32_t *>malloc((batch.n_opened + 1) * sizeof(int32_t))
                failed = batch.members == NULL
            if not failed:
                sort_by_cell(&batch, cells.n_cells)
                if rank:
                    scan(cells, &batch, samples.item, SAMPLE)
                    set_thresholds(samples, reservoirs)
                scan(cells, &batch, reservoirs.item, 1)
                if rank:
                    keep_short(&batch, reservoirs)
                    sort_by_cell(&batch, cells.n_cells)
                    scan(cells, &batch, reservoirs.item, 1)
    free(batch.opened)
    free(batch.offsets)
    free(batch.members)
    free(batch.rows)
    free(batch.targets)
    free(batch.widened)
    if failed:
        raise MemoryError("open cells of a batch of queries")


def allowed_lanes(Cells cells, const uint8_t[::1] allowed):
    """A mask of points in the order of the cells.

    Parameters
    ----------
    allowed : (n,) uint8

    Returns
    -------
    lanes : (positions,) uint8
        0 also where there is no point.
    sizes : (cells,) int32
        Allowed points of each cell.
    """
    lanes = np.zeros(cells.ids.shape[0], np.uint8)
    sizes = np.zeros(cells.n_cells, np.int32)
    cdef uint8_t[::1] lane_view = lanes
    cdef int32_t[::1] size_view = sizes
    cdef Py_ssize_t c, i
    with nogil:
        for c in range(cells.n_cells):
            for i in range(cells.first_panel[c] * <Py_ssize_t>LANES, cells.first_panel[c + 1] * <Py_ssize_t>LANES):
                if cells.ids[i] >= 0 and allowed[cells.ids[i]]:
                    lane_view[i] = 1
                    size_view[c] += 1
    return lanes, sizes


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


def find_ranks(const long long[:, ::1] places, const long long[:, ::1] wanted,
               const long long[::1] own, long long[:, ::1] ranks, int32_t[::1] workspace):
    """Lower each rank to that of a wanted position among a query's places, if it is there.

    Parameters
    ----------
    places : (b, c) int64
        Positions in order of rank, -1 past the last.
    wanted : (b, k) int64
        Positions; -1 for none.
    own : (b,) int64
        A position of each query that does not count; -1 for none.
    ranks : (b, k) int64, written
        From 0.
    workspace : (positions,) int32
        Zeros, before and after.
    """
    cdef Py_ssize_t i, j
    cdef int32_t rank, skipped
    with nogil:
        for i in range(places.shape[0]):
            for j in range(places.shape[1]):
                if places[i, j] < 0:
                    break
                workspace[places[i, j]] = <int32_t>(j + 1)
            skipped = workspace[own[i]] if own[i] >= 0 else 0
            for j in range(wanted.shape[1]):
                rank = workspace[wanted[i, j]] if wanted[i, j] >= 0 else 0
                if rank:
                    ranks[i, j] = min(ranks[i, j], <long long>(rank - 1 - (0 < skipped < rank)))
            for j in range(places.shape[1]):
                if places[i, j] < 0:
                    break
                workspace[places[i, j]] = 0


def count_below(const float[:, ::1] scores, const float[:, ::1] limits):
    """How many of the scores in its row each limit exceeds, (h, k) int64."""
    out = np.zeros((limits.shape[0], limits.shape[1]), np.int64)
    cdef long long[:, ::1] view = out
    cdef Py_ssize_t h, k, i
    cdef float limit
    cdef int32_t count
    with nogil:
        for h in range(limits.shape[0]):
            for k in range(limits.shape[1]):
                limit = limits[h, k]
                count = 0
                for i in range(scores.shape[1]):
                    count += scores[h, i] < limit
                view[h, k] = count
    return out
