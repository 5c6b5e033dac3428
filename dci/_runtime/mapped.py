"""Mapped files: which of their pages a process holds.

The system keeps a file's pages for all processes, and takes them back when memory is short. Those that a process has
looked at count as its own all the same (RSS), and it gets more than it looks at: the pages around each one too, up to
2 MB of them (Linux maps what lies in one folio). So of large arrays, rows here and there are read from the file
instead, and pages that were scanned are given back.
"""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

AROUND = 1 << 21  # bytes that may come with one row
_RESIDENT = 1 << 30  # bytes of an array from which on its pages are not left to the system; of these, how many are held

_RANDOM, _NORMAL, _RELEASE = (getattr(mmap, f"MADV_{name}", None) for name in ("RANDOM", "NORMAL", "DONTNEED"))


class Map(mmap.mmap):
    """A file, mapped to be read.

    Attributes
    ----------
    file : FileIO
        The same file, open as long as this.
    scattered : (start, length) or None
        The array of which rows are read here and there: its bytes.
    looked_at : int
        Bytes of it that were scanned since its pages were given back.
    lock : Lock
        Of `looked_at`.
    """

    file: FileIO
    scattered: tuple[int, int] | None
    looked_at: int
    lock: threading.Lock

    @classmethod
    def of(cls, file: FileIO, length: int) -> "Map":
        """Map so many bytes of a file."""
        made = cls(file.fileno(), length, access=mmap.ACCESS_READ)
        made.file = FileIO(os.dup(file.fileno()))
        made.scattered, made.looked_at, made.lock = None, 0, threading.Lock()
        return made

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def advise(self, advice: int | None) -> None:
        """Say something about the whole pages of the scattered array."""
        if advice is not None and self.scattered is not None:
            start, length = self.scattered
            first, last = -(-start // mmap.PAGESIZE), (start + length) // mmap.PAGESIZE
            if last > first:
                self.madvise(advice, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    @property
    def is_large(self) -> bool:
        return self.scattered is not None and self.scattered[1] > _RESIDENT


def scatter(array: npt.NDArray[Any]) -> None:
    """Tell the system that rows of a mapped array are read here and there, so that it reads no others ahead.

    Arrays that are not mapped stay as they are.
    """
    found = _map_of(array)
    if found is not None:
        found.scattered = array.ctypes.data - np.frombuffer(found, np.uint8).ctypes.data, array.nbytes
        found.advise(_RANDOM)


def file_of(array: npt.NDArray[Any]) -> tuple[FileIO, int] | None:
    """Return the file to read rows from, and where row 0 begins; None where they may be looked at in memory."""
    found = _map_of(array)
    return (found.file, found.scattered[0]) if found is not None and found.scattered and found.is_large else None


def most_bytes(array: npt.NDArray[Any], num_threads: int) -> int | None:
    """Return how many bytes each thread may look at before it calls `looked_at`; None for any number."""
    found = _map_of(array)
    return None if found is None or not found.is_large else _RESIDENT // (4 * num_threads)


def looked_at(array: npt.NDArray[Any], nbytes: int) -> None:
    """Count bytes that were looked at; where there are too many, give the pages back.

    They come again from the system's memory, or from the disk, when they are looked at again, also by threads that
    are at it right now.
    """
    found = _map_of(array)
    if found is None or not found.is_large:
        return
    with found.lock:
        found.looked_at += nbytes
        full = found.looked_at > _RESIDENT // 2
        if full:
            found.looked_at = 0
    if full:
        found.advise(_RELEASE)


@contextmanager
def in_order(array: npt.NDArray[Any]) -> Iterator[None]:
    """Read a scattered array from its beginning to its end meanwhile."""
    found = _map_of(array)
    if found is None:
        yield
        return
    found.advise(_NORMAL)
    try:
        yield
    finally:
        found.advise(_RANDOM)


def _map_of(array: npt.NDArray[Any]) -> Map | None:
    """Return the map that an array is a view of."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    while isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, Map) else None
