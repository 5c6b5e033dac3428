"""Decompositions of small matrices on one BLAS thread.

BLAS keeps its threads spinning for about 50 ms after a call, on the processors that our own threads
need next; matrices of these sizes are not faster on several threads.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .fork import Lock

_lock = Lock()
_inside: set[object] = set()  # calls within `one_blas_thread`
_before: list[tuple[Any, int]] = []  # the libraries' numbers of threads before the first of them


@cache
def _pools() -> ThreadpoolController:
    """Look for the libraries, NumPy's among them, once: it takes a millisecond."""
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit NumPy's BLAS to one thread in the whole process until the last of several such contexts ends.

    Setting the limit takes a while, and other threads can take the interpreter meanwhile: work that
    decomposes many matrices enters once.
    """
    global _before
    call = object()
    with _lock:
        if not _inside:
            _before = [(pool, pool.get_num_threads()) for pool in _pools().select(user_api="blas").lib_controllers]
            for pool, _ in _before:
                pool.set_num_threads(1)
        _inside.add(call)
    try:
        yield
    finally:
        with _lock:
            if call in _inside:  # else this is a child that was forked within
                _inside.remove(call)
                if not _inside:
                    _restore()


def _restore() -> None:
    global _before
    for pool, num_threads in _before:
        pool.set_num_threads(num_threads)
    _before = []


def _forget() -> None:
    """Reset in a forked child, where the threads that were inside do not exist."""
    _inside.clear()
    _restore()


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
