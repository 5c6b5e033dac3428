"""Points in fewer bytes: as float16 or int8, and what these numbers are multiples of.

float16 numbers are multiples of one power of two, so that points of any magnitude keep 11 binary digits. int8 numbers
are multiples of a step of their coordinate, beside an offset. A coding never cuts numbers off: rows beyond its range
need another one, with room for more of the kind, in which all rows are written anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .._native.codes import Codes, encode_bytes
from .._runtime.types import DoubleArray, FloatArray, IdArray

Matrix = FloatArray | Codes  # (n, d) float32, or read as such
Stored = npt.NDArray[Any]  # float32, float16 or int8

_FLOAT32 = float(np.finfo(np.float32).max)
_FLOAT16 = 65504.0
_BYTE = 127
_HALF_EXPONENT = 14  # the largest number is written as up to 2^14: there is room for others four times as large
_LEAST_EXPONENT, _MOST_EXPONENT = -126, 114  # of a step of float16: its largest multiple is a float32, and 1 / step
_ROOM = 1.25  # times the range that is needed, for a coordinate that has left its own …
_SPARE = 1 / 8  # … or would be left with less than this share of it to spare
_OTHER = 1.13  # steps of another coding of equal points: about as coarse, and errors that have no part in the first
_BLOCK = 1 << 18  # numbers that are written at once


@dataclass(frozen=True, eq=False)
class Coding:
    """How rows are kept.

    Attributes
    ----------
    dtype : dtype
        float32, float16 or int8.
    steps : (1,) float32 for float16, (d,) for int8
    offsets : (d,) float32 for int8
    """

    dtype: np.dtype[Any]
    steps: FloatArray | None = None
    offsets: FloatArray | None = None

    @classmethod
    def of(cls, rows: Matrix) -> "Coding":
        """Return the coding of rows that are kept."""
        if isinstance(rows, Codes):
            return cls(rows.array.dtype, rows.steps, rows.offsets)
        return cls(rows.dtype)

    @classmethod
    def fitted(cls, dtype: npt.DTypeLike, rows: FloatArray) -> "Coding":
        """Return the finest coding that holds these rows."""
        kind = np.dtype(dtype)
        if kind == np.float32:
            return cls(kind)
        if kind == np.float16:
            return cls(kind, _half_step(largest(rows)))
        if len(rows) == 0:
            return cls(kind, *_steps(np.zeros(rows.shape[1]), np.zeros(rows.shape[1])))
        return cls(kind, *_steps(*_range(rows)))

    @cached_property
    def reach(self) -> tuple[DoubleArray, DoubleArray]:
        """The lowest and the highest number of each coordinate, for int8."""
        assert self.steps is not None and self.offsets is not None  # noqa: S101, PT018 - for the type checker
        offsets, reach = self.offsets.astype(np.float64), _BYTE * self.steps.astype(np.float64)
        return offsets - reach, offsets + reach

    def holds(self, rows: FloatArray) -> bool:
        """Whether rows are within the range."""
        if self.steps is None or len(rows) == 0:
            return True
        if self.offsets is None:
            return largest(rows) <= _FLOAT16 * float(self.steps[0])
        (low, high), (least, most) = self.reach, _range(rows)
        slack = 0.5 * self.steps
        return bool(((least >= low - slack) & (most <= high + slack)).all())

    def including(self, kept: Matrix, rows: FloatArray) -> "Coding":
        """Return a coding of rows that are kept in this one and of others; this one, if it holds them."""
        if self.steps is None or (len(kept) and self.holds(rows)):
            return self
        if len(kept) == 0 or self.offsets is None or not isinstance(kept, Codes):
            return Coding.fitted(self.dtype, rows)
        steps, offsets = self.steps.astype(np.float64), self.offsets.astype(np.float64)
        least, most = _range(rows)
        least = np.minimum(least, offsets + steps * kept.array.min(axis=0))
        most = np.maximum(most, offsets + steps * kept.array.max(axis=0))
        spare = _SPARE * (most - least) / 2
        low, high = self.reach
        tight = (least - spare < low) | (most + spare > high)
        wider = _steps(least, most, _ROOM)
        mixed = [np.where(tight, new, old) for new, old in zip(wider, (self.steps, self.offsets), strict=True)]
        return Coding(self.dtype, *mixed)

    def absmax(self, largest: float) -> float:
        """Bound the magnitudes of rows as they are read, whose own are at most `largest`."""
        if self.steps is None:
            return largest
        if self.offsets is None:
            step = float(self.steps[0])
            return float(np.float16(largest / step)) * step
        bound = float(_bounds(self.steps, self.offsets).max(initial=0.0))
        rounded = np.float32(bound)  # up, as rows may be when they are read
        return float(rounded if rounded >= bound else np.nextafter(rounded, np.float32(np.inf)))

    def matrix(self, array: Stored) -> Matrix:
        """Return the matrix of an array that `write` has filled."""
        if self.steps is None:
            return array
        return Codes(array, self.steps, self.offsets)

    def write(self, rows: Matrix, out: Stored) -> None:
        """Write rows as the nearest numbers that there are."""
        if isinstance(rows, Codes) and rows.steps is self.steps:
            out[:] = rows.array
        elif self.steps is None and not isinstance(rows, Codes):
            out[:] = rows
        else:
            n, dim = rows.shape
            step = max(1, _BLOCK // max(dim, 1))
            for start in range(0, n, step):
                part = np.arange(start, min(n, start + step))
                self._write(rows[part], out[part[0] : part[-1] + 1])

    def _write(self, rows: FloatArray, out: Stored) -> None:
        assert self.steps is not None  # noqa: S101 - for the type checker
        if self.offsets is None:
            out[:] = rows * np.float32(1.0 / float(self.steps[0]))
        else:
            encode_bytes(rows, self.steps, self.offsets, out)

    def encoded(self, rows: Matrix) -> Matrix:
        """Return rows in this coding; those of float32 as they are."""
        if self.steps is None and not isinstance(rows, Codes):
            return rows
        out = np.empty(rows.shape, self.dtype)
        self.write(rows, out)
        return self.matrix(out)


def store_of(rows: Matrix) -> str:
    """Return the name of the numbers that rows are kept in."""
    return Coding.of(rows).dtype.name


def taken(rows: Matrix, chosen: IdArray) -> Matrix:
    """Return some of the rows, copied as they are kept."""
    if isinstance(rows, Codes):
        return Codes(rows.array[chosen], rows.steps, rows.offsets)
    return rows[chosen]


def is_recoded(before: Matrix, after: Matrix) -> bool:
    """Whether rows that both have were written anew, in another coding."""
    return isinstance(before, Codes) and isinstance(after, Codes) and before.steps is not after.steps


def is_within(array: npt.NDArray[Any], steps: FloatArray, offsets: FloatArray | None, absmax: float) -> bool:
    """Whether rows, as they are read, are finite and of magnitudes up to `absmax`."""
    if offsets is not None:
        bound = _bounds(steps, offsets).max(initial=0.0)
        return bool((steps >= 0).all() and bound <= absmax and array.min(initial=0) >= -_BYTE)
    if not 2.0**_LEAST_EXPONENT <= float(steps[0]) <= 2.0**_MOST_EXPONENT:
        return False
    bits = int((array.view(np.uint16) & 0x7FFF).max(initial=0))
    return bits < 0x7C00 and float(np.uint16(bits).view(np.float16)) * float(steps[0]) <= absmax


def coarser(before: Matrix, after: Matrix) -> float:
    """Return by what share of themselves the squared errors of int8 have grown as rows were recoded."""
    if not is_recoded(before, after) or Coding.of(after).offsets is None:
        return 0.0
    energies = [float(np.square(Coding.of(rows).steps, dtype=np.float64).sum()) for rows in (before, after)]
    return energies[1] / energies[0] - 1.0 if energies[0] else np.inf


def coded_again(rows: Codes) -> Matrix:
    """Return rows in another coding that is about as coarse: they stand to it as points to their own coding."""
    return Coding(rows.array.dtype, rows.steps * np.float32(_OTHER), rows.offsets).encoded(rows)


def largest(rows: FloatArray) -> float:
    """Largest magnitude, 0 without any."""
    return max(-float(rows.min(initial=0.0)), float(rows.max(initial=0.0)))


def _bounds(steps: FloatArray, offsets: FloatArray) -> DoubleArray:
    """Largest magnitudes of coordinates of int8."""
    bounds: DoubleArray = np.abs(offsets.astype(np.float64)) + _BYTE * steps.astype(np.float64)
    return bounds


def _range(rows: FloatArray) -> tuple[DoubleArray, DoubleArray]:
    return rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)


def _half_step(absmax: float) -> FloatArray:
    """Return the power of two that float16 numbers are multiples of."""
    exponent = int(np.frexp(absmax)[1]) - _HALF_EXPONENT if absmax else 0
    return np.array([2.0 ** min(max(exponent, _LEAST_EXPONENT), _MOST_EXPONENT)], np.float32)


def _steps(low: DoubleArray, high: DoubleArray, room: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Return steps and offsets of int8 numbers from `low` to `high`, and beyond by a factor of the range."""
    offsets = ((low + high) / 2).astype(np.float32)
    middle = offsets.astype(np.float64)
    wanted = room * np.maximum(high - middle, middle - low) / _BYTE
    steps = wanted.astype(np.float32)
    steps = np.where(steps < wanted, np.nextafter(steps, np.float32(np.inf)), steps)
    most = np.nextafter(((_FLOAT32 - np.abs(middle)) / _BYTE).astype(np.float32), np.float32(0.0))  # that stay finite
    return np.minimum(steps, most), offsets
