"""True distances of candidates, and the k best of them."""
import numpy as np

from cython cimport final
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, frexp, ldexp, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .codes cimport Codes
from .kernels cimport Reservoir, Reservoirs, entry, entry_score, reservoir_cut, select_keys, sort_keys, table

METRICS = ("l2", "ip", "cosine")

cdef enum:
    L2 = 0
    IP = 1
    COSINE = 2
    # To measure anew: `python -m comparisons run --suite latency,batch`.
    STEP = 32  # candidates between two looks at whether the others may be left out
    MAX_LINES = 16   # cache lines of a candidate fetched ahead; from there the processor goes on
    IN_FLIGHT = 64   # cache lines fetched ahead in all

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil


cdef double power_of_two(double absmax) noexcept nogil:
    """The power of two that brings absmax to about 1, within float32's range."""
    cdef int exponent
    if absmax == 0:
        return 1
    frexp(absmax, &exponent)
    return ldexp(1, -min(max(exponent, -120), 120))


cdef double unit_of(const float *query, Py_ssize_t dim, int metric, double absmax) noexcept nogil:
    """Factor that distances of points up to absmax are compared with, a power of two.

    Their order survives where they are beyond float32's range.  It is the query's own: in units of
    another one's, its distances could all be zero.
    """
    cdef uint32_t bits = table().absmax_bits(query, dim)
    cdef float largest
    cdef double most
    cdef int exponent
    memcpy(&largest, &bits, sizeof(largest))
    if metric == IP:
        return power_of_two(absmax) * power_of_two(largest)
    most = (absmax + largest) * sqrt(<double>dim)
    if metric == COSINE or most <= FLT_MAX:
        return 1
    frexp(most, &exponent)
    return ldexp(1, 127 - exponent)


cdef float distance(const float *point, const float *query, Py_ssize_t dim, int metric,
                    double query_norm2, double unit) noexcept nogil:
    """Smaller is nearer: Euclidean distance or negative inner product in a unit, or cosine distance."""
    cdef double product, norm2, cosine
    if metric == L2:
        return <float>(sqrt(table().distance2(point, query, dim)) * unit)
    product = table().dot(point, query, dim)
    if metric == IP:
        return <float>(-product * unit)
    norm2 = table().dot(point, point, dim) * query_norm2
    # A zero vector has no direction: it is at distance 1 of everything.
    cosine = product / sqrt(norm2) if norm2 > 0 else 0.0
    return <float>(1.0 - min(max(cosine, -1.0), 1.0))


@final
cdef class TrueDistances:
    """Distances from queries to the rows of X, in full.

    Parameters
    ----------
    X : (n, d) float32, or Codes
    metric : index into METRICS
    absmax : float
        Largest |x| of the points.
    """
    def __init__(self, X, int metric, double absmax):
        self.coded = isinstance(X, Codes)
        if self.coded:
            self.codes = X
        else:
            self.X = X
        self.dim = X.shape[1]
        self.metric, self.absmax = metric, absmax
        self.lines = max(<Py_ssize_t>1, min(<Py_ssize_t>MAX_LINES, (self.dim * 4 + 63) // 64))
        if self.coded:
            self.lines = self.codes.lines

    cdef const float *row(self, Py_ssize_t i, float *room) noexcept nogil:
        if not self.coded:
            return &self.X[i, 0]
        self.codes.decode(i, 0, self.dim, room)
        return room

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        cdef Py_ssize_t line
        if self.coded:
            self.codes.fetch(i)
            return
        for line in range(self.lines):
            prefetch(&self.X[i, 0] + line * 16)


cdef Py_ssize_t gather(Reservoirs reservoirs, Py_ssize_t i, Py_ssize_t n_queries,
                       const int32_t[::1] ids, uint64_t *keys) noexcept nogil:
    """Rows of X of the candidates of query i, each once, to keys; returns how many."""
    cdef Py_ssize_t n_lists = reservoirs.size // n_queries, part, j, total = 0, kept = 0
    cdef const Reservoir *reservoir
    for part in range(n_lists):
        reservoir = &reservoirs.item[part * n_queries + i]
        if reservoir.count > reservoir.keep:
            select_keys(reservoir.entries, reservoir.count, reservoir.keep, reservoir.keep)
        for j in range(min(reservoir.count, reservoir.keep)):
            keys[total] = <uint32_t>reservoir.entries[j]
            total += 1
    if n_lists > 1:  # a point may be a candidate of several composite indices
        sort_keys(keys, total)
        for j in range(total):
            if j == 0 or keys[j] != keys[j - 1]:
                keys[kept] = keys[j]
                kept += 1
        total = kept
    if ids is not None:
        for j in range(total):
            keys[j] = <uint64_t>ids[keys[j]]
    return total


cdef Py_ssize_t measure(TrueDistances points, const float *query, double unit, int64_t excluded,
                        Py_ssize_t total, uint64_t *keys, float *room) noexcept nogil:
    """From `total` rows of X, but `excluded`, to entries of their distances and themselves; returns how many."""
    cdef Py_ssize_t dim = points.dim, j, kept = 0
    cdef Py_ssize_t ahead = IN_FLIGHT // points.lines
    cdef double norm2 = 0
    if points.metric == COSINE:
        norm2 = table().dot(query, query, dim)
    for j in range(min(ahead, total)):
        points.fetch(keys[j])
    for j in range(total):
        if j + ahead < total:
            points.fetch(keys[j + ahead])
        if <int64_t>keys[j] == excluded:
            continue
        keys[kept] = entry(distance(points.row(keys[j], room), query, dim, points.metric, norm2, unit),
                           <uint32_t>keys[j])
        kept += 1
    return kept


def rescore(TrueDistances points, const float[:, ::1] Q, Reservoirs reservoirs, const int32_t[::1] ids,
            const int32_t[::1] exclude, float[:, ::1] distances, int64_t[:, ::1] indices):
    """The k nearest among the candidates of each query, by distance and then by index.

    Parameters
    ----------
    points : TrueDistances
    Q : (b, d) float32
    reservoirs : of size L * b
        Candidates of query i are in reservoirs i, i + b, ...
    ids : (positions,) int32, optional
        From positions in the reservoirs to rows of X; None if they are the same.
    exclude : (b,) int32, optional
        A row of X that is no answer to this query.
    distances, indices : (b, k), written; -1 and infinity where there are fewer than k candidates.
    """
    cdef Py_ssize_t n_queries = Q.shape[0], k = distances.shape[1], i, kept
    cdef bint products = points.metric == IP
    cdef double unit
    cdef uint64_t *keys
    cdef float *room
    if n_queries == 0:
        return
    keys = <uint64_t *>malloc(reservoirs.size // n_queries * reservoirs.item[0].capacity * sizeof(uint64_t))
    room = <float *>malloc(max(points.dim, 1) * sizeof(float))
    if keys == NULL or room == NULL:
        free(keys)
        free(room)
        raise MemoryError("candidates of a query")
    with nogil:
        for i in range(n_queries):
            unit = unit_of(&Q[i, 0], Q.shape[1], points.metric, points.absmax)
            kept = measure(points, &Q[i, 0], unit, -1 if exclude is None else exclude[i],
                           gather(reservoirs, i, n_queries, ids, keys), keys, room)
            write_best(keys, kept, unit, products, k, &distances[i, 0], &indices[i, 0])
    free(keys)
    free(room)


cdef void write_best(uint64_t *keys, Py_ssize_t kept, double unit, bint products, Py_ssize_t k,
                     float *distances, int64_t *indices) noexcept nogil:
    """The k best of some entries, in order."""
    cdef Py_ssize_t last = min(k, kept), j
    cdef float value
    select_keys(keys, kept, last, last)
    sort_keys(keys, last)
    for j in range(k):
        if j < last:
            value = entry_score(keys[j])
            indices[j] = <uint32_t>keys[j]
            distances[j] = <float>(0.0 - value / unit) if products else <float>(value / unit)
        else:
            indices[j] = -1
            distances[j] = -INFINITY if products else INFINITY


cdef struct Question:
    const float *query
    double unit
    int64_t excluded  # a row of X that is no answer; -1 for none
    Py_ssize_t k
    const double *bound  # scale, stretch, slack, base


cdef double score_limit(const double *bound, double distance, int metric) noexcept nogil:
    """The score from which on points are farther than this, also after all rounding."""
    cdef double length = distance * bound[0]
    if metric == COSINE:
        length = sqrt(2 * (distance + ldexp(1, -22)))  # of the difference of two unit vectors
    length = length * (1 + ldexp(1, -21)) * bound[1] + bound[2]
    return length * length - bound[3]


cdef bint measure_bounded(TrueDistances points, const Question *asked, Reservoir *reservoir, uint64_t *keys,
                          float *room, Py_ssize_t *kept) noexcept nogil:
    """Measure candidates in order of their scores until the others are too far; returns whether they all are."""
    cdef Py_ssize_t done = 0, count, j, k = asked.k
    cdef double limit = INFINITY
    cdef uint64_t worst
    reservoir_cut(reservoir, reservoir.keep)
    sort_keys(reservoir.entries, reservoir.count)
    kept[0] = 0
    while done < reservoir.count and not entry_score(reservoir.entries[done]) > limit:
        count = min(<Py_ssize_t>STEP if done else k, reservoir.count - done)
        for j in range(count):
            keys[kept[0] + j] = <uint32_t>reservoir.entries[done + j]
        kept[0] += measure(points, asked.query, asked.unit, asked.excluded, count, keys + kept[0], room)
        done += count
        if kept[0] >= k:
            select_keys(keys, kept[0], k, k)
            worst = keys[0]
            for j in range(1, k):
                worst = max(worst, keys[j])
            limit = score_limit(asked.bound, entry_score(worst) / asked.unit, points.metric)
    return done < reservoir.count or reservoir.tau > limit or reservoir.tau == INFINITY


def rescore_bounded(TrueDistances points, const float[:, ::1] Q, Reservoirs reservoirs, Py_ssize_t first,
                    const int32_t[::1] exclude, const double[:, ::1] bounds, float[:, ::1] distances,
                    int64_t[:, ::1] indices):
    """The k nearest of all points, where scores bound how near those outside the reservoirs can be.

    Parameters
    ----------
    points : TrueDistances
        Not of "ip".
    Q : (b, d) float32
    reservoirs : of size first + b, or more
        Positions are rows of X; candidates of query i are in reservoir first + i.
    exclude : (b,) int32, optional
        A row of X that is no answer to this query.
    bounds : (b, 4) float64
        scale, stretch, slack and base: a point at distance D, times scale ("cosine": at sqrt(2 D)), has a score of at
        most (D stretch + slack)^2 - base.
    distances, indices : (b, k), k >= 1, written as by `rescore`

    Returns
    -------
    (b,) bool
        Which answers are proven to be the nearest of all.
    """
    cdef Py_ssize_t n_queries = Q.shape[0], i, kept = 0
    cdef Question asked
    proven = np.zeros(n_queries, bool)
    cdef uint8_t[::1] view = proven.view(np.uint8)
    cdef uint64_t *keys
    cdef float *room
    if n_queries == 0:
        return proven
    keys = <uint64_t *>malloc(reservoirs.item[0].capacity * sizeof(uint64_t))
    room = <float *>malloc(max(points.dim, 1) * sizeof(float))
    if keys == NULL or room == NULL:
        free(keys)
        free(room)
        raise MemoryError("candidates of a query")
    asked.k = distances.shape[1]
    with nogil:
        for i in range(n_queries):
            asked.query, asked.bound = &Q[i, 0], &bounds[i, 0]
            asked.unit = unit_of(asked.query, Q.shape[1], points.metric, points.absmax)
            asked.excluded = -1 if exclude is None else exclude[i]
            view[i] = measure_bounded(points, &asked, &reservoirs.item[first + i], keys, room, &kept)
            write_best(keys, kept, asked.unit, False, asked.k, &distances[i, 0], &indices[i, 0])
    free(keys)
    free(room)
    return proven
