"""k-d ordering: an order of rows in which blocks of neighbours are alike, the leaves of a k-d tree."""
import numpy as np

from libc.stdint cimport int32_t, uint32_t, uint64_t

from dci._native.kernels cimport entry, select_keys

cdef enum:
    LOOKED_AT = 128  # rows of a part that tell its widest coordinate; to measure anew: suite attention_layers


def kd_order(const float[:, ::1] coordinates, Py_ssize_t leaf):
    """Split rows at the median of their widest coordinate until parts have `leaf` rows.

    Parameters
    ----------
    coordinates : (n, m) float32
        Finite.
    leaf : int
        All parts but the last have exactly this size.

    Returns
    -------
    (n,) int32
        The rows, part after part; O(n (m + log n)) time.
    """
    cdef Py_ssize_t n = coordinates.shape[0]
    out = np.arange(n, dtype=np.int32)
    cdef int32_t[::1] order = out
    cdef uint64_t[::1] keys = np.empty(n + 1, np.uint64)
    if n > leaf and coordinates.shape[1]:
        with nogil:
            split(coordinates, &order[0], &keys[0], n, leaf)
    return out


cdef void split(const float[:, ::1] coordinates, int32_t *order, uint64_t *keys, Py_ssize_t n,
                Py_ssize_t leaf) noexcept nogil:
    cdef Py_ssize_t half, axis, i
    while n > leaf:
        axis = widest(coordinates, order, n)
        half = (n + leaf - 1) // leaf // 2 * leaf
        for i in range(n):
            keys[i] = entry(coordinates[order[i], axis], <uint32_t>order[i])
        select_keys(keys, n, half, half)
        for i in range(n):
            order[i] = <int32_t>(keys[i] & 0xffffffffu)
        split(coordinates, order, keys, half, leaf)
        order += half
        n -= half


cdef Py_ssize_t widest(const float[:, ::1] coordinates, const int32_t *order, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t step = (n + LOOKED_AT - 1) // LOOKED_AT, count = (n + step - 1) // step, k, i, best = 0
    cdef double total, squares, x, spread, most = -1
    for k in range(coordinates.shape[1]):
        total = squares = 0
        for i in range(count):
            x = coordinates[order[i * step], k]
            total += x
            squares += x * x
        spread = squares - total * total / count
        if spread > most:
            best, most = k, spread
    return best
