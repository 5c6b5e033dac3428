"""Decompositions of small matrices on one BLAS thread.

BLAS keeps its threads spinning for some 50 ms after a call, on the processors that our own threads
need next; on these sizes it gains nothing from them.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0  # calls within `one_blas_thread`
_limit: Any = None  # of the first of them


@cache
def _pools() -> ThreadpoolController:
    """Look for the libraries, NumPy's among them, once: it takes a millisecond."""
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's BLAS, in the whole process, to one thread; the last of several at once ends it.

    Setting the limit takes a while, and other threads can take the interpreter meanwhile: work that
    decomposes many matrices enters once.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = _pools().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


def _forget() -> None:
    """Start anew in a forked child, where the threads that were inside are no more."""
    global _lock, _inside
    _lock, _inside = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.linalg.eigh`."""
    with one_blas_thread():
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`numpy.linalg.svd`."""
    with one_blas_thread():
        left, values, right = np.linalg.svd(matrix)
    return left, values, right


def qr(matrix: np.ndarray) -> np.ndarray:
    """Return the orthonormal factor of `numpy.linalg.qr`."""
    with one_blas_thread():
        return np.linalg.qr(matrix)[0]
