"""Points in fewer bytes: as float16 or int8, and what these numbers are multiples of.

float16 numbers are multiples of one power of two, so that points of any magnitude keep 11 binary digits. int8 numbers
are multiples of a step of their coordinate and of a factor of their point, beside an offset of the coordinate: what
lies farther from the offsets has coarser steps, and nothing else has. Nothing is cut off: for points beyond the range
all steps are made larger, and the factors of the others smaller.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .._native.codes import Codes, encode_bytes
from .._runtime.types import DoubleArray, FloatArray, IdArray

Matrix = FloatArray | Codes  # (n, d) float32, or read as such
Stored = npt.NDArray[Any]  # float32, float16 or int8

# To measure those of int8 anew: `python -m comparisons run --suite dynamic`, by the recall that is reachable.
_FLOAT16 = 65504.0
_HALF_EXPONENT = 14  # the largest number is written as up to 2^14: there is room for others four times as large
_LEAST_EXPONENT, _MOST_EXPONENT = -126, 114  # of a step of float16: its largest multiple is a float32, and 1 / step
_BYTE = 127
_FACTOR = 1.87  # the largest, 1.875, but for rounding …
_FIRST_FACTOR = 0.25  # … and that of the farthest point at first: there is room for others seven times as far
_SMALLEST_CODE = 127  # stands for the smallest factor but seven, about 2^-15; eight codes more are half the factor
_LEAST_SPREAD = 0.25  # of a coordinate, in spreads of them all: what points to come may need
_SAMPLE = 1 << 16  # points that spreads are measured on
_FEW = 1024  # points that say too little of those to come
_NORMAL = 2.0**-100  # products of such steps have all of their digits
_OTHER = 1.13  # steps of another coding of equal points: about as coarse, and errors that have no part in the first
_BLOCK = 1 << 18  # numbers that are written at once


def stored(rows: Matrix) -> Stored:
    """Return the array that rows are kept in."""
    return rows.array if isinstance(rows, Codes) else rows


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
        """Return a coding for rows like these."""
        kind = np.dtype(dtype)
        if kind == np.float32:
            return cls(kind)
        if kind == np.float16:
            return cls(kind, _half_step(largest(rows)))
        return cls(kind, *_steps(rows))

    def stays(self, n: int, rows: FloatArray) -> bool:
        """Whether n rows that are kept in this coding, and these behind them, can be kept in it together."""
        if self.steps is None or len(rows) == 0:
            return True
        if self.offsets is None:
            return n > 0 and largest(rows) <= _FLOAT16 * float(self.steps[0])
        return n > 0 and not n < _FEW <= n + len(rows) and _farthest(rows, self.steps, self.offsets) <= _FACTOR

    def including(self, kept: Matrix, rows: FloatArray) -> "Coding":
        """Return a coding of rows that are kept in this one and of others behind them; this one, if it stays."""
        n = len(kept)
        if self.steps is None or self.stays(n, rows):
            return self
        if n == 0 or self.offsets is None:
            return Coding.fitted(self.dtype, rows)  # the numbers of float16 are no larger in `kept`
        if n < _FEW <= n + len(rows):
            return Coding.fitted(self.dtype, np.concatenate([kept[np.arange(n)], rows]))
        ratio = _farthest(rows, self.steps, self.offsets) / _FIRST_FACTOR
        return Coding(self.dtype, self.steps * np.float32(2.0 ** np.ceil(np.log2(ratio))), self.offsets)

    def empty(self, n: int, dim: int) -> Stored:
        """Return room for so many rows."""
        return np.empty((n, dim + (self.offsets is not None)), self.dtype)

    def matrix(self, array: Stored) -> Matrix:
        """Return the matrix of an array that `write` has filled."""
        return array if self.steps is None else Codes(array, self.steps, self.offsets)

    def write(self, rows: Matrix, out: Stored) -> float:
        """Write rows as the nearest numbers that there are; return the largest magnitude that this may have made."""
        if self.steps is None and not isinstance(rows, Codes):
            out[:] = rows
            return 0.0
        if isinstance(rows, Codes) and rows.steps is self.steps:
            out[:] = rows.array
            return 0.0
        if isinstance(rows, Codes) and self.offsets is not None and rows.offsets is self.offsets:
            return self._write_scaled(rows, out)
        n, dim = rows.shape
        step = max(1, _BLOCK // max(dim, 1))
        made = 0.0
        for start in range(0, n, step):
            part = np.arange(start, min(n, start + step))
            made = max(made, self._write(rows[part], out[part[0] : part[-1] + 1]))
        return made

    def _write(self, rows: FloatArray, out: Stored) -> float:
        assert self.steps is not None  # noqa: S101 - for the type checker
        if self.offsets is not None:
            return encode_bytes(rows, self.steps, self.offsets, out)
        out[:] = rows * np.float32(1.0 / float(self.steps[0]))
        return float(np.abs(out).max(initial=0.0)) * float(self.steps[0])

    def _write_scaled(self, rows: Codes, out: Stored) -> float:
        """Write rows whose steps have been a power of two smaller: their numbers stay, their factors shrink."""
        assert self.steps is not None and self.offsets is not None  # noqa: S101, PT018 - for the type checker
        out[:] = rows.array
        shift = 8 * round(float(np.log2(float(self.steps[0]) / float(rows.steps[0]))))
        factors = out[:, -1].astype(np.int64) + shift
        small = np.flatnonzero(factors > _SMALLEST_CODE)
        out[:, -1] = np.minimum(factors, _SMALLEST_CODE)
        if len(small) == 0:
            return 0.0
        rounded = self.empty(len(small), rows.shape[1])
        made = encode_bytes(rows[small], self.steps, self.offsets, rounded)
        out[small] = rounded
        return made

    def encoded(self, rows: FloatArray) -> tuple[Matrix, float]:
        """Return rows in this coding, those of float32 as they are, and what `write` does."""
        if self.steps is None:
            return rows, 0.0
        out = self.empty(*rows.shape)
        made = self.write(rows, out)
        return self.matrix(out), made


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


def is_within(rows: Codes, absmax: float) -> bool:
    """Whether rows, as they are read, are finite and of magnitudes up to `absmax`."""
    step = max(1, _BLOCK // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = rows[np.arange(start, min(len(rows), start + step))]
        if not np.abs(part).max(initial=0.0) <= absmax:  # nor is NaN
            return False
    return True


def are_steps(steps: FloatArray, offsets: FloatArray | None) -> bool:
    """Whether steps of finite numbers can be those of a coding."""
    if offsets is not None:
        return bool((steps > 0).all())
    return bool(2.0**_LEAST_EXPONENT <= steps[0] <= 2.0**_MOST_EXPONENT)


def coded_again(rows: Codes) -> Codes:
    """Return rows in another coding that is about as coarse: they stand to it as points to their own coding."""
    steps = rows.steps * np.float32(_OTHER)
    if rows.offsets is None:
        halves = np.empty_like(rows.array)
        Coding(halves.dtype, steps).write(rows, halves)
        return Codes(halves, steps)
    out = cast(npt.NDArray[np.int8], rows.array.copy())  # the factors stay
    step = max(1, _BLOCK // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = np.arange(start, min(len(rows), start + step))
        encode_bytes(rows[part], steps, rows.offsets, out[part[0] : part[-1] + 1], True)
    return Codes(out, steps, rows.offsets)


def largest(rows: FloatArray) -> float:
    """Largest magnitude, 0 without any."""
    return max(-float(rows.min(initial=0.0)), float(rows.max(initial=0.0)))


def _half_step(absmax: float) -> FloatArray:
    """Return the power of two that float16 numbers are multiples of."""
    exponent = int(np.frexp(absmax)[1]) - _HALF_EXPONENT if absmax else 0
    return np.array([2.0 ** min(max(exponent, _LEAST_EXPONENT), _MOST_EXPONENT)], np.float32)


def _steps(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return steps and offsets of int8 numbers: multiples of the coordinates' spreads, and their means."""
    n, dim = rows.shape
    if n == 0:
        return np.ones(dim, np.float32), np.zeros(dim, np.float32)
    sample = rows[np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)].astype(np.float64)
    offsets = sample.mean(axis=0).astype(np.float32)
    constant = rows.min(axis=0) == rows.max(axis=0)
    offsets[constant] = rows[0, constant]
    spread = sample.std(axis=0)
    spread = np.maximum(spread, _LEAST_SPREAD * np.sqrt(np.square(spread).mean()))
    if not spread.all():
        spread = np.ones(dim)
    smallest, finite = np.finfo(np.float32).smallest_subnormal, float(np.finfo(np.float32).max)
    farthest = _farthest(rows, spread, offsets)
    unit = farthest / _FIRST_FACTOR if farthest else 1.0
    steps = np.clip(spread * unit, smallest, finite / 2).astype(np.float32)
    bits = steps.view(np.uint32)
    bits[steps >= _NORMAL] &= ~np.uint32(15)  # so that a product with a factor, of four bits, is exact
    return steps, offsets


def _farthest(rows: FloatArray, steps: FloatArray | DoubleArray, offsets: FloatArray) -> float:
    """Return the largest factor that these rows need."""
    low, high = (offsets - edge.astype(np.float64) for edge in (rows.max(axis=0), rows.min(axis=0)))
    return float((np.maximum(-low, high) / (_BYTE * steps.astype(np.float64))).max(initial=0.0))
