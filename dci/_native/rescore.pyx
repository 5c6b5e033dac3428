"""True distances of candidates, and the k best of them."""
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, frexp, ldexp, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .kernels cimport Reservoir, Reservoirs, entry, entry_score, select_keys, sort_keys, table

METRICS = ("l2", "ip", "cosine")

cdef enum:
    L2 = 0
    IP = 1
    COSINE = 2
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


def rescore(const float[:, ::1] X, const float[:, ::1] Q, Reservoirs reservoirs,
            Py_ssize_t n_lists, const int32_t[::1] ids, const int32_t[::1] exclude, int metric,
            double absmax, float[:, ::1] distances, int64_t[:, ::1] indices):
    """The k nearest among the candidates of each query, by distance and then by index.

    Parameters
    ----------
    X : (n, d) float32
    Q : (b, d) float32
    reservoirs : of size n_lists * b
        Candidates of query i are in reservoirs i, i + b, ...
    ids : (positions,) int32, optional
        From positions in the reservoirs to rows of X; None if they are the same.
    exclude : (b,) int32, optional
        A row of X that is no answer to this query.
    metric : index into METRICS
    absmax : float
        Largest |x| of the points.
    distances, indices : (b, k), written; -1 and infinity where there are fewer than k candidates.
    """
    cdef Py_ssize_t n_queries = Q.shape[0], k = distances.shape[1], dim = X.shape[1]
    cdef Py_ssize_t lines = max(<Py_ssize_t>1, min(<Py_ssize_t>MAX_LINES, (dim * 4 + 63) // 64))
    cdef Py_ssize_t ahead = IN_FLIGHT // lines
    cdef Py_ssize_t i, j, part, line, total, last, kept
    cdef double norm2 = 0, unit
    cdef float value
    cdef uint64_t *keys
    cdef const Reservoir *reservoir
    if n_queries == 0:
        return
    keys = <uint64_t *>malloc(n_lists * reservoirs.item[0].capacity * sizeof(uint64_t))
    if keys == NULL:
        raise MemoryError("candidates of a query")
    with nogil:
        for i in range(n_queries):
            total = 0
            for part in range(n_lists):
                reservoir = &reservoirs.item[part * n_queries + i]
                if reservoir.count > reservoir.keep:
                    select_keys(reservoir.entries, reservoir.count, reservoir.keep, reservoir.keep)
                for j in range(min(reservoir.count, reservoir.keep)):
                    keys[total] = <uint32_t>reservoir.entries[j]
                    total += 1
            if n_lists > 1:  # a point may be a candidate of several composite indices
                sort_keys(keys, total)
                kept = 0
                for j in range(total):
                    if j == 0 or keys[j] != keys[j - 1]:
                        keys[kept] = keys[j]
                        kept += 1
                total = kept
            if ids is not None:
                for j in range(total):
                    keys[j] = <uint64_t>ids[keys[j]]
            unit = unit_of(&Q[i, 0], dim, metric, absmax)
            if metric == COSINE:
                norm2 = table().dot(&Q[i, 0], &Q[i, 0], dim)
            for j in range(min(ahead, total)):
                for line in range(lines):
                    prefetch(&X[keys[j], 0] + line * 16)
            kept = 0
            for j in range(total):
                if j + ahead < total:
                    for line in range(lines):
                        prefetch(&X[keys[j + ahead], 0] + line * 16)
                if exclude is not None and <int64_t>keys[j] == exclude[i]:
                    continue
                value = distance(&X[keys[j], 0], &Q[i, 0], dim, metric, norm2, unit)
                keys[kept] = entry(value, <uint32_t>keys[j])
                kept += 1
            last = min(k, kept)
            select_keys(keys, kept, last, last)
            sort_keys(keys, last)
            for j in range(k):
                if j < last:
                    value = entry_score(keys[j])
                    indices[i, j] = <uint32_t>keys[j]
                    distances[i, j] = <float>(0.0 - value / unit) if metric == IP else <float>(value / unit)
                else:
                    indices[i, j] = -1
                    distances[i, j] = -INFINITY if metric == IP else INFINITY
    free(keys)
