"""The keys of one head that decoding attends to through cells: a plan, a field, and a threshold from recent queries."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dci._runtime.types import FloatArray

from .._core.head import ALL_NEAR, make_field
from .._core.planning import HeadPlan, make_plan
from .._core.threshold_search import Look, ThresholdSearch, search_size
from .._native.far_field import Field
from ..options import AttentionOptions

# To measure these anew: python -m comparisons run --suite attention_decoding
DIRECTIONS = 16  # of the moments, which every token reads all of: with more, fewer keys are near, but it takes longer
_ROWS, _LEAST_TOKENS = 256, 128  # of the sample
_UPPER_CONFIDENCE, _WORST = 3.0, 4.0  # standard errors, and times the worst token, that a bound adds to squared errors
_TOO_MUCH = 0.7  # times the squared tolerance: what a query is suspected of, and attends to more keys
_FIRST = 0.05  # threshold
_SEARCH = ThresholdSearch(least=1e-4, most=np.inf, looks=16, refinements=2)
_MOST = 200.0  # times the squared tolerance: a cell of such a weight is near even where the sample does not ask for it
_NONE_NEAR, _SIZE_LOOKS = 64.0, 10
_PAYS = 0.6  # of the keys: touching more takes longer than attending to all


@dataclass(frozen=True)
class Choice:
    """What was decided about a head, and is decided again as it grows.

    Attributes
    ----------
    plan : HeadPlan
    planned : int
        How many keys there were when the plan was made.
    threshold : float
        Of a near cell; `ALL_NEAR` where exact attention is as fast.
    """

    plan: HeadPlan
    planned: int
    threshold: float


@dataclass(frozen=True)
class Prefix:
    """The first keys of one head, in cells. Never changes, so that copies of a sequence can share it.

    Attributes
    ----------
    choice : Choice
    field : Field
    error : float
        Relative L2 error of the sample, of the worst of the query heads; 0.0 where all is exact.
    most_risk : ndarray of shape (G,), float64
        Squared error that a query may be suspected of; one that is suspected of more attends to more keys.
    """

    choice: Choice
    field: Field
    error: float
    most_risk: npt.NDArray[np.float64]


def make_prefix(
    key: FloatArray,
    value: FloatArray,
    query: FloatArray,
    scale: float,
    options: AttentionOptions,
    old: Choice | None,
) -> Prefix:
    """Put keys into cells and find the threshold, on the calling thread alone.

    Parameters
    ----------
    key, value : (n, E) and (n, Ev) float32
    query : (tokens, G, E) float32, C-contiguous
        Recent queries, the last ones last.
    scale : float
    options : AttentionOptions
    old : Choice, optional
        For fewer or more of these keys: lends its plan, until there are twice as many, and where to look for the
        threshold.
    """
    n_keys, width = key.shape
    if old is not None and n_keys < 2 * old.planned:
        plan, planned = old.plan, old.planned
    else:
        directions = min(DIRECTIONS, width) if options.directions == "auto" else options.directions
        planned_with = options.replace(directions=directions)
        fitted = query[::2].reshape(-1, width)  # not those of the sample, which would seem to err less than others
        plan, planned = make_plan(fitted, key, n_keys, scale, planned_with, 1), n_keys
    # With strays the sample errs less and the threshold is larger, so that tokens unlike the sample's err more.
    field = make_field(plan, key, value, scale, options, 1, with_strays=False)
    field.advance(n_keys)
    sample = TokenSample(field, query[1::2])
    if options.near is None:
        look = sample.search(options.tolerance, _FIRST if old is None or old.threshold == ALL_NEAR else old.threshold)
        pays = look.bound <= options.tolerance and look.touched <= _PAYS * n_keys
    else:
        near = options.near if isinstance(options.near, int) else options.near * n_keys
        look = search_size(sample.measure, near, _SEARCH.least, _NONE_NEAR, _SIZE_LOOKS)
        pays = near < n_keys
    threshold, error = (look.threshold, look.error) if pays else (ALL_NEAR, 0.0)
    most_risk = sample.most_risk(look.threshold, options.tolerance if options.near is None else np.inf)
    field.release()
    return Prefix(Choice(plan, planned, threshold), field, error, most_risk)


class TokenSample:
    """Tokens whose attention to a field is known exactly, each attending as when it is decoded."""

    def __init__(self, field: Field, query: FloatArray) -> None:
        n_tokens, group, width = query.shape
        size = min(n_tokens, max(_LEAST_TOKENS, _ROWS // group))
        chosen = np.linspace(0, n_tokens - 1, size).round().astype(int)
        self.query = np.ascontiguousarray(query[chosen]).reshape(-1, width)
        self.tokens = np.arange(len(self.query), dtype=np.int32).reshape(-1, group)
        self.field = field
        self.out = np.empty((len(self.query), field.width), np.float32)
        self.risks = np.empty(len(self.query), np.float32)
        field.attend_rows(self.query, self.tokens.reshape(-1), ALL_NEAR, self.out)
        self.exact = self.out.copy()
        self.norm = np.maximum(np.sqrt(self._sums(self.exact).sum(0)), float(np.finfo(np.float32).tiny))

    def measure(self, threshold: float) -> Look:
        """Attend with the sample: the error of the worst query head, and a bound for other tokens."""
        touched = 0
        for rows in self.tokens:
            touched += self.field.attend_rows(self.query, rows, threshold, self.out, risks=self.risks)[0]
        with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite: no bound holds then
            squares = self._sums(self.out - self.exact)
            error = np.sqrt(squares.sum(0)) / self.norm
            bound = np.sqrt(_largest_sum(squares)) / self.norm
        return Look(threshold, float(error.max()), float(bound.max()), touched / len(self.query))

    def most_risk(self, threshold: float, tolerance: float) -> npt.NDArray[np.float64]:
        """Suspected squared error, (G,), of a query that errs by too much, as the sample's errors tell."""
        self.measure(threshold)
        suspected = self.risks.reshape(self.tokens.shape).sum(0, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            allowed = _TOO_MUCH * np.square(tolerance * self.norm) / len(self.tokens)
            most = allowed * suspected / self._sums(self.out - self.exact).sum(0)
        return np.where(most > 0, most, np.inf)

    def _sums(self, rows: FloatArray) -> npt.NDArray[np.float64]:
        """Squared norms, (tokens, G)."""
        sums: npt.NDArray[np.float64] = np.square(rows).sum(1, dtype=np.float64).reshape(self.tokens.shape)
        return sums

    def search(self, tolerance: float, first: float) -> Look:
        """Look for the largest threshold whose bound is within the tolerance; if none is, return the smallest."""

        def settled(look: Look, good: Look | None, bad: Look | None) -> bool:
            return look is good and look.bound > 0.7 * tolerance

        most = _MOST * tolerance**2
        return _SEARCH._replace(most=most).find(self.measure, tolerance, min(first, most), settled)


def _largest_sum(squares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bound the sum of the squared errors of as many other tokens, (tokens, G) to (G,), though their tail be heavy."""
    errors = np.sqrt(np.square(squares).sum(0))
    bound: npt.NDArray[np.float64] = squares.sum(0) + _UPPER_CONFIDENCE * errors + _WORST * squares.max(0)
    return bound
