"""The judge: what a rival returns is checked, its distances are computed again, and ties count.

Recall is counted by distance: an answer is right when it is no farther than the true k-th neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from comparisons.data.datasets import Dataset

TIE = 1e-5  # relative: float32 distances this near are equal


class InvalidAnswerError(Exception):
    """A rival returned ids that no index may return."""


def recompute(data: Dataset, ids: np.ndarray, k: int) -> np.ndarray:
    """Return the Euclidean distances of returned ids, or reject them.

    Parameters
    ----------
    data : Dataset
    ids : ndarray of shape (nq, k), integer
        -1 stands for nothing found, and its distance is infinite.

    Returns
    -------
    ndarray of shape (nq, k), float32

    Raises
    ------
    InvalidAnswerError
        For a wrong shape or dtype, an id that is not a point, an id twice in one row.
    """
    ids = np.asarray(ids)
    expected = (len(data.queries), k)
    if ids.shape != expected or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidAnswerError(f"expected integer ids of shape {expected}, got {ids.dtype} of shape {ids.shape}")
    if ids.size and (ids.min() < -1 or ids.max() >= len(data.points)):
        raise InvalidAnswerError(f"expected ids in [-1, {len(data.points)}), got {ids.min()} to {ids.max()}")
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if twice.any():
        row = int(np.flatnonzero(twice.any(axis=1))[0])
        raise InvalidAnswerError(f"an id is returned twice for query {row}: {ids[row].tolist()}")
    distances = np.empty(expected, dtype=np.float32)
    for rows in blocks(len(ids), 256):
        difference = data.points[ids[rows]] - data.queries[rows, None]
        distances[rows] = np.sqrt(np.einsum("qkd,qkd->qk", difference, difference))
    distances[ids < 0] = np.inf
    return distances


def true_radius(data: Dataset, k: int) -> np.ndarray:
    """Return each query's distance to its true k-th neighbour, float32 of shape (nq,).

    A few more than k are found by BLAS in float32; their distances are then recomputed as those of the rivals are.
    """
    count = min(k + 8, len(data.points))
    ids = np.empty((len(data.queries), count), dtype=np.int64)
    try:
        import faiss

        ids[:] = faiss.knn(data.queries, data.points, count)[1]
    except ImportError:
        squared_norms = np.einsum("nd,nd->n", data.points, data.points)
        for rows in blocks(len(ids), 64):
            scores = squared_norms - 2 * (data.queries[rows] @ data.points.T)
            ids[rows] = np.argpartition(scores, count - 1, axis=1)[:, :count]
    return np.sort(recompute(data, ids, count), axis=1)[:, min(k, count) - 1]


def recall(distances: np.ndarray, radius: np.ndarray) -> float:
    """Return the share of answers no farther than the true k-th neighbour, ties included.

    Examples
    --------
    >>> recall(np.array([[1.0, 2.0], [1.0, 5.0]]), np.array([2.0, 2.0]))
    0.75
    """
    return float(np.mean(distances <= radius[:, None] * (1 + TIE)))


def blocks(n: int, size: int) -> Iterator[slice]:
    """Cut range(n) into slices of `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
