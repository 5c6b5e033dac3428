"""Tokens of the past whose attention to a field is known exactly, by which its threshold is measured."""

from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt

from dci._runtime.types import FloatArray

from .._core.threshold_search import Look
from .._native.growing_field import ExactRows, GrowingField

# To measure these anew: python -m comparisons run --suite attention_decoding
_ROWS, _LEAST_TOKENS = 256, 128  # of the sample
_UPPER_CONFIDENCE, _WORST = 3.0, 4.0  # standard errors, and times the worst token, that a bound adds to squared errors
_TOO_MUCH = 0.7  # times the squared tolerance: what a query is suspected of, and attends to more keys
_UNLIKE = 4.0  # times what a query of the sample is suspected of: one that is suspected of more attends to more keys
_STEP = 8_000_000  # multiply-adds, at most
_LEAST_ROWS, _LEAST_KEYS = 16, 16  # of a step

Steps = Generator[int, None, None]  # yields the work of each, in multiply-adds
Source = Callable[[int, int], tuple[FloatArray, FloatArray]]  # keys and values [start, stop), float32, C-contiguous
Squares = npt.NDArray[np.float64]


class TokenSample:
    """A sample of tokens, each of which attends as when it is decoded.

    Parameters
    ----------
    field : GrowingField
    query : (tokens, G, E) float32
    scale : float
    """

    def __init__(self, field: GrowingField, query: FloatArray, scale: float) -> None:
        n_tokens, group, width = query.shape
        size = min(n_tokens, max(_LEAST_TOKENS, _ROWS // group))
        chosen = np.linspace(0, n_tokens - 1, size).round().astype(int)
        self.query = np.ascontiguousarray(query[chosen]).reshape(-1, width)
        self.shape = (size, group)
        self.field = field
        self.out = np.empty((len(self.query), field.width), np.float32)
        self.exact = np.empty_like(self.out)
        self.risks = np.empty(len(self.query), np.float32)
        self.norm = np.empty(0)
        self._exact_rows = ExactRows(self.query, field.width, scale)
        self._touched = float(field.n_keys)  # by a row, at the last threshold
        self._seen: dict[float, tuple[Squares, Squares]] = {}  # errors and suspected ones of the last threshold

    def take_exact(self, rows: Source, span: tuple[int, int]) -> Steps:
        """Attend to keys [start, stop) exactly."""
        each = len(self.query) * (self.query.shape[1] + self.field.width)
        size = max(_LEAST_KEYS, _STEP // max(1, each))
        for start in range(*span, size):
            key, value = rows(start, min(start + size, span[1]))
            self._exact_rows.take(key, value)
            yield len(key) * each
        self._exact_rows.write(self.exact)
        self.norm = np.maximum(np.sqrt(self._sums(self.exact).sum(0)), float(np.finfo(np.float32).tiny))

    def follow(self, search: Generator[float, Look, Look]) -> Generator[int, None, Look]:
        """Look at the thresholds that a search asks for; return what it found."""
        threshold = next(search)
        while True:
            look = yield from self.measure(threshold)
            try:
                threshold = search.send(look)
            except StopIteration as end:
                found: Look = end.value
                if found.threshold not in self._seen:
                    yield from self.measure(found.threshold)
                return found

    def measure(self, threshold: float) -> Generator[int, None, Look]:
        """Attend with the sample: the error of the worst query head, and a bound for other tokens."""
        field, touched = self.field, 0
        a_cell = field.dim + field.n_directions * (field.n_directions // 2 + field.width)
        a_key = field.dim + field.width
        rows = np.arange(len(self.query), dtype=np.int32)
        size = max(_LEAST_ROWS, int(_STEP // max(1, field.n_cells * a_cell + self._touched * a_key)))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            pairs = field.attend_rows(self.query, some, threshold, self.out, risks=self.risks)
            touched += pairs
            yield len(some) * field.n_cells * (a_cell - a_key) + pairs * a_key
        with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite: no bound holds then
            squares = self._sums(self.out - self.exact)
            error = np.sqrt(squares.sum(0)) / self.norm
            bound = np.sqrt(_largest_sum(squares)) / self.norm
        self._seen = {threshold: (squares, self.risks.reshape(self.shape).sum(0, dtype=np.float64))}
        self._touched = touched / len(self.query)
        return Look(threshold, float(error.max()), float(bound.max()), self._touched)

    def most_risk(self, look: Look, tolerance: float) -> FloatArray:
        """Suspected squared error, (G,), of a query that errs by too much, as the sample's errors at `look` tell."""
        squares, suspected = self._seen[look.threshold]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            allowed = _TOO_MUCH * np.square(tolerance * self.norm) / self.shape[0]
            most = np.minimum(allowed / squares.sum(0), _UNLIKE / self.shape[0]) * suspected
            return np.where((most > 0) & (tolerance < np.inf), most, np.inf).astype(np.float32)

    def _sums(self, rows: FloatArray) -> Squares:
        """Squared norms, (tokens, G)."""
        sums: Squares = np.square(rows).sum(1, dtype=np.float64).reshape(self.shape)
        return sums


def _largest_sum(squares: Squares) -> Squares:
    """Bound the sum of the squared errors of as many other tokens, (tokens, G) to (G,), though their tail be heavy."""
    errors = np.sqrt(np.square(squares).sum(0))
    bound: Squares = squares.sum(0) + _UPPER_CONFIDENCE * errors + _WORST * squares.max(0)
    return bound
