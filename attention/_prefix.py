"""The keys of one head that decoding attends to through cells: a plan, a field, and a threshold from recent queries."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ._field import Field
from ._head import ALL_NEAR
from ._plan import FloatArray, Plan, make_plan
from .options import AttentionOptions

DIRECTIONS = 16  # of the moments, which every token reads all of: with more, fewer keys are near, but it takes longer
_ROWS, _LEAST_TOKENS = 128, 32  # of the sample
_MARGIN = 0.85  # of the tolerance: queries to come may err more than those of the sample
_FIRST, _STEP = 0.1, 4.0  # thresholds
_MOST, _LEAST = 64.0, 1e-4  # above the first nothing is near
_PAYS = 0.6  # of the keys: touching more takes longer than attending to all


@dataclass(frozen=True)
class Choice:
    """What was decided about a head, and is decided again as it grows.

    Attributes
    ----------
    plan : Plan
    planned : int
        How many keys there were when the plan was made.
    threshold : float
        Of a near cell; `ALL_NEAR` where exact attention is as fast.
    """

    plan: Plan
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
        Relative L2 error of the sample; 0.0 where all is exact.
    """

    choice: Choice
    field: Field
    error: float


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
        plan, planned = make_plan(query.reshape(-1, width), key, n_keys, scale, planned_with, 1), n_keys
    for_keys, for_queries = plan.moments or (None, None)
    field = Field(
        key,
        value,
        plan.cells_of(key, value, options.sink, 1),
        plan.references,
        for_keys,
        for_queries,
        second_order=options.far_field is False or options.far_field != 0,
    )
    field.advance(n_keys)
    sample = _Sample(field, query, scale, options.far_field is not False)
    if options.near is None:
        tolerance = options.tolerance * _MARGIN
        look = sample.search(tolerance, _FIRST if old is None or old.threshold == ALL_NEAR else old.threshold)
        pays = look.bound <= tolerance and look.touched <= _PAYS * n_keys
    else:
        near = options.near if isinstance(options.near, int) else options.near * n_keys
        look, pays = sample.search_size(near), near < n_keys
    threshold, error = (look.threshold, look.error) if pays else (ALL_NEAR, 0.0)
    field.release()
    return Prefix(Choice(plan, planned, threshold), field, error)


class Look(NamedTuple):
    """A threshold, the sample's relative L2 error with it and a bound for others, and what a query touches."""

    threshold: float
    error: float
    bound: float
    touched: float


class _Sample:
    """Tokens whose attention to a field is known exactly, each attending as when it is decoded."""

    def __init__(self, field: Field, query: FloatArray, scale: float, keep_far: bool) -> None:
        n_tokens, group, width = query.shape
        size = min(n_tokens, max(_LEAST_TOKENS, _ROWS // group))
        chosen = np.linspace(0, n_tokens - 1, size).round().astype(int)
        self.query = np.ascontiguousarray(query[chosen]).reshape(-1, width)
        self.tokens = np.arange(len(self.query), dtype=np.int32).reshape(-1, group)
        self.field, self.scale, self.keep_far = field, scale, keep_far
        self.out = np.empty((len(self.query), field.width), np.float32)
        field.attend(self.query, self.tokens.reshape(-1), scale, ALL_NEAR, keep_far, self.out)
        self.exact = self.out.copy()
        self.norm = max(float(np.linalg.norm(self.exact)), float(np.finfo(np.float32).tiny))

    def measure(self, threshold: float) -> Look:
        """Attend with the sample."""
        touched = 0
        for rows in self.tokens:
            touched += self.field.attend(self.query, rows, self.scale, threshold, self.keep_far, self.out)[0]
        squares = np.square(self.out - self.exact).reshape(len(self.tokens), -1).sum(1, dtype=np.float64)
        # One standard error more: where few tokens make up the error, those to come may bring more of them.
        bound = np.sqrt(squares.sum() + np.sqrt(np.square(squares).sum()))
        return Look(
            threshold, float(np.sqrt(squares.sum())) / self.norm, float(bound) / self.norm, touched / len(self.query)
        )

    def search(self, tolerance: float, first: float) -> Look:
        """Look for the largest threshold whose bound is within the tolerance; if none is, return the smallest."""
        good, bad = None, None
        look = self.measure(first)
        while good is None or bad is None:
            if look.bound <= tolerance:
                good = look
                if look.threshold >= _MOST or look.bound > 0.7 * tolerance:
                    return good
                step = _STEP
            else:
                bad = look
                if look.threshold <= _LEAST:
                    return good or bad
                step = 1 / _STEP
            if good is None or bad is None:
                look = self.measure(float(np.clip(look.threshold * step, _LEAST, _MOST)))
        for _ in range(2):
            look = self.measure(float(np.sqrt(good.threshold * bad.threshold)))
            if look.bound <= tolerance:
                good = look
            else:
                bad = look
        return good

    def search_size(self, size: float) -> Look:
        """Bisect for the threshold whose near field has about `size` keys."""
        none_near = look = self.measure(_MOST)
        low, high = np.log(_LEAST), np.log(_MOST)
        for _ in range(10):
            middle = (low + high) / 2
            look = self.measure(float(np.exp(middle)))
            low, high = (low, middle) if look.touched - none_near.touched < size else (middle, high)
        return look
