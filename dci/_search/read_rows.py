"""Candidates whose rows are read from a file, where an array is too large to be held: what `rescore` does elsewhere."""

from collections.abc import Callable
from io import FileIO

import numpy as np

from .._geometry.quantization import Coding, Matrix, stored
from .._native.cell_search import positions
from .._native.file_rows import read_rows
from .._native.kernels import Reservoirs
from .._native.rescore import METRICS, TrueDistances, rescore
from .._runtime.mapped import file_of
from .._runtime.types import FloatArray, IdArray, IndexArray

_BYTES = 64 << 20  # of the rows that are read at once


Rescore = Callable[
    [FloatArray, Reservoirs, int, IdArray | None, IdArray | None, tuple[FloatArray, IndexArray]], None
]  # queries, reservoirs, candidates of a reservoir, ids, exclude, found: as `FileRows.rescore` has them


def rescorer(X: Matrix, metric: str, absmax: float, file_rows: "FileRows | None") -> Rescore:
    """Return what finds the nearest among candidates: in memory, or in a file if there are rows of one."""
    if file_rows is not None:
        return file_rows.rescore
    points = TrueDistances(X, METRICS.index(metric), absmax)
    return lambda Q, reservoirs, _, ids, exclude, found: rescore(points, Q, reservoirs, ids, exclude, *found)


class FileRows:
    """Rows of an array in a file.

    Parameters
    ----------
    X : (n, d) float32, or Codes
        Mapped; only its shape and coding are looked at.
    file : FileIO
    start : int
        Byte at which row 0 begins.
    metric, absmax
        Of the points.
    """

    def __init__(self, X: Matrix, file: FileIO, start: int, metric: str, absmax: float) -> None:
        self._file, self._start = file, start
        kept = stored(X)
        self._n, self._width, self._coding = len(kept), kept.shape[1], Coding.of(X)
        self._metric, self._absmax = METRICS.index(metric), absmax

    @classmethod
    def of(cls, X: Matrix, metric: str, absmax: float) -> "FileRows | None":
        """Return the rows of an array that is too large to be held, None for others."""
        place = file_of(stored(X))
        return None if place is None else cls(X, *place, metric, absmax)

    def at_once(self, candidates: int) -> int:
        """Return how many queries of so many candidates go together."""
        most: int = _BYTES // (self._width * self._coding.dtype.itemsize * candidates)
        return max(1, most)

    def read(self, ids: IdArray) -> Matrix:
        """Return rows, (len(ids), d)."""
        rows = np.empty((len(ids), self._width), self._coding.dtype)
        read_rows(self._file.fileno(), self._start, ids, rows.view(np.uint8))
        return self._coding.matrix(rows)

    def rescore(
        self,
        Q: FloatArray,
        reservoirs: Reservoirs,
        keep: int,
        ids: IdArray | None,
        exclude: IdArray | None,
        found: tuple[FloatArray, IndexArray],
    ) -> None:
        """Find the k nearest among the candidates of each query, by distance and then by index.

        Parameters
        ----------
        Q : (b, d) float32
        reservoirs, ids, exclude
            As `dci._native.rescore.rescore` takes them.
        keep : int
            Candidates of a reservoir.
        found : (b, k) float32, (b, k) int64
            Distances and indices, written.
        """
        held = positions(reservoirs, keep)
        held = held[held >= 0]
        rows = held.astype(np.int32) if ids is None else ids[held]
        wanted, local = np.unique(rows, return_inverse=True)
        local_of = np.empty(self._n if ids is None else len(ids), np.int32)  # what is not written takes no memory
        local_of[held] = local
        own = None
        if exclude is not None:
            place = np.searchsorted(wanted, exclude)
            there = np.append(wanted, -1)[place] == exclude
            own = np.where(there, place, -1).astype(np.int32)
        points = TrueDistances(self.read(wanted), self._metric, self._absmax)
        distances, indices = found
        rescore(points, Q, reservoirs, local_of, own, distances, indices)
        inside = indices >= 0
        indices[inside] = wanted[indices[inside]]
