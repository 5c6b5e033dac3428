"""Decompositions of small matrices on one BLAS thread.

BLAS keeps its threads spinning for some 50 ms after a call, on the processors that our own threads
need next; on these sizes it gains nothing from them.
"""

import threading
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()  # two calls at once would restore each other's limit


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.linalg.eigh`."""
    with _lock, _pools().limit(limits=1, user_api="blas"):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`numpy.linalg.svd`."""
    with _lock, _pools().limit(limits=1, user_api="blas"):
        left, values, right = np.linalg.svd(matrix)
    return left, values, right


def qr(matrix: np.ndarray) -> np.ndarray:
    """Return the orthonormal factor of `numpy.linalg.qr`."""
    with _lock, _pools().limit(limits=1, user_api="blas"):
        return np.linalg.qr(matrix)[0]
