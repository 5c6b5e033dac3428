"""The points of an index: rows in the order in which they came, their ids, and which of them are gone.

A `Points` never changes: whoever has one sees the same rows whatever is added and removed meanwhile. `PointStore` makes
the next one from the last; it is for one writer at a time. Rows are never moved while they are in use: memory is
doubled, in a new array, and a removed row stays where it is until `PointStore.compacted`.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .._geometry.quantization import Coding, Matrix, Stored, taken
from .._native.codes import Codes
from .._runtime.cached import cached
from .._runtime.fork import Lock
from .._runtime.types import BoolArray, FloatArray, IdArray
from ..errors import InvalidValueError

Ids = npt.NDArray[np.int64]

_LEAST_ROOM = 1024  # rows
_SPARE_BYTES = 1 << 30
_LOOSE = 1024  # rows whose ids are looked up in a dict before they are sorted


@dataclass(frozen=True)
class Points:
    """One version of the points.

    Attributes
    ----------
    rows : (n, d) float32, or Codes
    ids : (n,) int64 or None
        Of each row; None where they are the rows' numbers.
    ascending : bool
        Each id is larger than the one before.
    gone : (n,) bool or None
        Rows that have been removed.
    n_live : int
    next_id : int
        Above every id that there has been.
    absmax : float
        At least the largest |x|, of rows as they are kept.
    """

    rows: Matrix
    absmax: float
    ids: Ids | None = None
    ascending: bool = True
    gone: BoolArray | None = None
    n_live: int = 0
    next_id: int = 0

    @classmethod
    def of(cls, rows: Matrix, absmax: float) -> "Points":
        """Return the points of an array, whose ids are its rows' numbers."""
        return cls(rows, absmax, n_live=len(rows), next_id=len(rows))

    @cached
    def live(self) -> IdArray | None:
        """Return the rows that are not gone, ascending; None if all are there."""
        return None if self.gone is None else np.flatnonzero(~self.gone).astype(np.int32)

    def ids_of(self, rows: npt.NDArray[np.integer]) -> Ids:
        """Ids of rows, of any shape; -1 stays -1."""
        if self.ids is None:
            return np.asarray(rows, np.int64)
        if len(self.ids) == 0:
            return np.full(rows.shape, -1, np.int64)
        return np.where(rows < 0, -1, self.ids[rows])

    def ids_from(self, start: int) -> Ids:
        """Ids of the rows from one on, a copy."""
        if self.ids is None:
            return np.arange(start, len(self.rows), dtype=np.int64)
        return self.ids[start:].copy()

    def all_ids(self) -> Ids:
        """Ids of the points in the order in which they came, a copy."""
        ids = np.arange(len(self.rows), dtype=np.int64) if self.ids is None else self.ids
        return ids.copy() if self.live is None else ids[self.live]


class PointStore:
    """Makes versions of points.

    Parameters
    ----------
    points : Points
        The first one. Its rows are copied before they grow, never written to.
    """

    def __init__(self, points: Points) -> None:
        self._rows: Stored = points.rows.array if isinstance(points.rows, Codes) else points.rows
        self._coding = Coding.of(points.rows)
        self._ids: Ids | None = points.ids
        self._owned = False
        self._lock = Lock()  # of the lookup
        self._sorted: tuple[Ids, npt.NDArray[np.int64]] | None = None  # ids ascending, and the row of each
        self._loose: dict[int, int] = {}  # rows behind those; wrong entries do no harm, they are looked at
        self._n_known = self._n_seen = 0  # rows that are sorted; that were ever looked at

    def find(self, points: Points, ids: Ids) -> npt.NDArray[np.int64]:
        """Return the row of each id, (m,) int64, -1 where there is none."""
        n = len(points.rows)
        if n == 0 or len(ids) == 0:
            return np.full(len(ids), -1, np.int64)
        if points.ids is None:
            rows = np.where((ids >= 0) & (ids < n), ids, -1)
        elif points.ascending:
            place = np.minimum(np.searchsorted(points.ids, ids), n - 1)
            rows = np.where(points.ids[place] == ids, place, -1)
        else:
            with self._lock:
                rows = self._look_up(points, ids)
        if points.gone is not None:
            rows = np.where((rows >= 0) & points.gone[rows], -1, rows)
        return rows

    def _look_up(self, points: Points, ids: Ids) -> npt.NDArray[np.int64]:
        column, n = points.ids, len(points.rows)
        assert column is not None  # noqa: S101 - for the type checker
        if n < self._n_seen:  # of a version before others that were asked already
            order = np.argsort(column, kind="stable")
            known = column[order]
            place = np.searchsorted(known, ids, side="right") - 1
            return np.where((place >= 0) & (known[place] == ids), order[place], -1)
        if self._sorted is None or n - self._n_known > max(_LOOSE, self._n_known // 4):
            order = np.argsort(column[:n], kind="stable")  # of equal ids, the last row is the one that may be live
            self._sorted, self._loose, self._n_known = (column[order], order), {}, n
        else:
            for row in range(self._n_seen, n):
                self._loose[int(column[row])] = row
        self._n_seen = n
        known, order = self._sorted
        place = np.searchsorted(known, ids, side="right") - 1
        rows = np.where((place >= 0) & (known[place] == ids), order[place], -1)
        if self._loose:
            later = np.fromiter((self._loose.get(i, -1) for i in ids.tolist()), np.int64, len(ids))
            rows = np.where(later >= 0, later, rows)
        return rows

    def append(self, points: Points, rows: FloatArray, absmax: float, ids: Ids | None) -> Points:
        """Return the points with rows behind them; `ids` are not in use, None assigns them.

        Codes are written anew, all of them, where their coding does not hold the new rows.
        """
        n, count = len(points.rows), len(rows)
        stop = n + count
        first = points.next_id
        if ids is None and first + count > 2**63:
            raise InvalidValueError(f"ids: expected explicit ones, received none, and none are left above {first - 1}")
        if ids is None and self._ids is not None:  # maybe of a call that failed: it wants no gaps
            ids = np.arange(first, first + count, dtype=np.int64)
        coding = self._coding  # of float32 there is one
        if isinstance(points.rows, Codes):
            coding = Coding.of(points.rows).including(points.rows, rows)
        made = self._reserve(points, stop, coding, explicit=ids is not None)
        made = max(made, coding.write(rows, self._rows[n:stop]))
        column, ascending, next_id = None, points.ascending, first + count
        if ids is not None and count:
            assert self._ids is not None  # noqa: S101 - reserved above
            self._ids[n:stop] = ids
            next_id = max(first, int(ids.max()) + 1)
            ascending = (
                ascending and (n == 0 or int(ids[0]) > int(self._ids[n - 1])) and bool(np.all(ids[1:] > ids[:-1]))
            )
        if self._ids is not None:
            column = self._ids[:stop]
        gone = points.gone
        if gone is not None:
            gone = self._longer(gone, stop)
        kept, absmax = coding.matrix(self._rows[:stop]), max(points.absmax, absmax, made)
        return Points(kept, absmax, column, ascending, gone, points.n_live + count, next_id)

    def _longer(self, gone: BoolArray, stop: int) -> BoolArray:
        """Return which rows are gone, of more rows."""
        room = gone.base  # where no version has set what lies behind its rows
        if not (isinstance(room, np.ndarray) and room.dtype == np.bool_ and len(room) >= stop):
            room = np.zeros(max(stop, len(self._rows)), np.bool_)
            room[: len(gone)] = gone
        return room[:stop]

    def remove(self, points: Points, rows: npt.NDArray[np.int64]) -> Points:
        """Return the points without these rows, which are there."""
        n = len(points.rows)
        gone = np.zeros(max(n, len(self._rows)), np.bool_)[:n]
        if points.gone is not None:
            gone[:] = points.gone
        gone[rows] = True
        return replace(points, gone=gone, n_live=points.n_live - len(rows))

    @staticmethod
    def compacted(points: Points) -> tuple["PointStore", Points]:
        """Return the points in an array without the rows that are gone, and their store; ids do not change."""
        if points.live is None:
            return PointStore(points), points
        points = replace(points, rows=taken(points.rows, points.live), ids=points.all_ids(), gone=None)
        store = PointStore(points)
        store._owned = True
        return store, points

    def _reserve(self, points: Points, stop: int, coding: Coding, explicit: bool) -> float:
        """Make room for so many rows, in memory of our own; return what `Coding.write` does of those there are."""
        n, made, dim = len(points.rows), 0.0, points.rows.shape[1]
        # What is not used yet takes no memory, but some systems count it: twice as much of many rows, else four times.
        spare = _SPARE_BYTES // (4 * max(dim, 1))
        room = max(2 * stop + min(2 * stop, spare), _LEAST_ROOM)
        if not self._owned or len(self._rows) < stop or coding.steps is not self._coding.steps:
            larger = coding.empty(room, dim)
            made = coding.write(points.rows, larger[:n])
            self._rows, self._coding, self._owned = larger, coding, True
        explicit = explicit or self._ids is not None
        if explicit and (self._ids is None or len(self._ids) < len(self._rows)):
            column = np.empty(len(self._rows), np.int64)
            column[:n] = np.arange(n) if points.ids is None else points.ids
            self._ids = column
        return made
