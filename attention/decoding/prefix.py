"""The keys of one head that decoding attends to through cells: a plan, a field, and a threshold from recent queries.

Both making a prefix and measuring it anew is done in small steps, which say what they took.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np

from dci._runtime.types import FloatArray

from .._core.head import ALL_NEAR
from .._core.planning import HeadPlan, ValueBound, plan_steps
from .._core.threshold_search import ThresholdSearch, search_size
from .._native.growing_field import GrowingField
from ..options import AttentionOptions
from .sample import Source, Steps, TokenSample

# To measure these anew: python -m comparisons run --suite attention_decoding
DIRECTIONS = 16  # of the moments
_CELLS = 2.0  # times those of a call without a cache: here a query's estimate of a cell is cheaper
_FIRST = 0.05  # threshold
_SEARCH = ThresholdSearch(least=1e-4, most=np.inf, looks=16, refinements=2)
# Times the squared tolerance and the root of a cell's keys: a cell of such a weight is near even where the sample does
# not ask for it, as a rare token may weigh one of its keys much. With more keys always near, the sample would err less,
# thresholds would be larger and rare tokens err more.
_MOST = 6.5
_NONE_NEAR, _SIZE_LOOKS = 64.0, 10
_PAYS = 0.6  # of the keys: touching more takes longer than attending to all
_PINNED = 256  # keys that belong to every near field, beyond twice of which a plan no longer fits
COPIED, ASSIGNED, ADDED = 16384, 2048, 512  # keys of a step
VALUES = 2048  # that tell which of all are outliers
ROUNDS = 4  # multiply-adds of a step that takes as long as one where memory is waited for


@dataclass(frozen=True)
class Choice:
    """What was decided about a head, and is decided again as it grows.

    Attributes
    ----------
    plan : HeadPlan
    bound : ValueBound
        Of values that are not outliers.
    planned : int
        How many keys there were when the plan was made.
    pinned : int
        How many of these belonged to every near field.
    threshold : float
        Of a near cell; `ALL_NEAR` where exact attention is as fast.
    """

    plan: HeadPlan
    bound: ValueBound
    planned: int
    pinned: int
    threshold: float


@dataclass(frozen=True)
class Prefix:
    """The first keys of one head, in cells. Copies of a sequence share it, until keys are added.

    Attributes
    ----------
    choice : Choice
    field : GrowingField
    error : float
        Relative L2 error of the sample, of the worst of the query heads; 0.0 where all is exact.
    most_risk : ndarray of shape (G,), float32
        Squared error that a query may be suspected of; one that is suspected of more attends to more keys.
    """

    choice: Choice
    field: GrowingField
    error: float
    most_risk: FloatArray

    def fits(self, growth: float) -> bool:
        """Whether the plan suits the keys: not `growth` times those it was made for, and few are far from all cells."""
        field = self.field
        pinned = int(field.counts[field.n_cells])
        return field.n_keys < growth * self.choice.planned and pinned <= 2 * (self.choice.pinned + _PINNED)

    def copy(self) -> "Prefix":
        """Return a prefix with cells of its own."""
        return replace(self, field=self.field.copy())

    def append(self, key: FloatArray, value: FloatArray) -> None:
        """Add keys (n, E) and values (n, Ev), float32 and C-contiguous, to the cells."""
        self.field.append(key, value, self.choice.plan.cells_of_more(key, value, self.choice.bound))


class PrefixJob:
    """Making the prefix of one head, or measuring the threshold of one anew, in steps.

    Parameters
    ----------
    span : (int, int)
        The keys [start, stop) of a sequence.
    query : (tokens, G, E) float32, C-contiguous
        Recent queries, the last ones last.
    scale : float
    options : AttentionOptions
    old : Prefix, optional
        Of these keys: says where to look for the threshold.
    growth : float
        The old one is measured anew if its plan still fits (see `Prefix.fits`), else replaced.

    Attributes
    ----------
    source : callable or None
        Where steps read keys; set before each.
    prefix : Prefix or None
        What comes out, in the end.
    """

    def __init__(
        self,
        span: tuple[int, int],
        query: FloatArray,
        scale: float,
        options: AttentionOptions,
        old: Prefix | None,
        growth: float,
    ) -> None:
        self.source: Source | None = None
        self.prefix: Prefix | None = None
        self._span, self._query, self._scale, self._options, self._old = span, query, scale, options, old
        self._keeps = old is not None and old.fits(growth)

    def _rows(self, start: int, stop: int) -> tuple[FloatArray, FloatArray]:
        assert self.source is not None  # noqa: S101 - set before a step
        return self.source(start, stop)

    def steps(self) -> Steps:
        """Do it all."""
        if self._old is not None and self._keeps:
            field, choice = self._old.field, self._old.choice
        else:
            choice = yield from self._plan()
            field = self._empty(choice)
            yield from self._fill(field, choice)
            choice = replace(choice, pinned=int(field.counts[field.n_cells]))
        sample = TokenSample(field, self._query[1::2], self._scale)
        yield from sample.take_exact(self._rows, self._span)
        yield from self._search(sample, field, choice)

    def _plan(self) -> Generator[int, None, Choice]:
        n_keys, width = self._span[1] - self._span[0], self._query.shape[2]
        options = self._options
        directions = min(DIRECTIONS, width) if options.directions == "auto" else options.directions
        fitted = self._query[::2].reshape(-1, width)  # not those of the sample, which would seem to err less
        planned_with = options.replace(directions=directions)
        key, values, every = np.empty((n_keys, width), np.float32), [], -(-n_keys // VALUES)
        for first in range(0, n_keys, COPIED):
            start = self._span[0] + first
            keys, value = self._rows(start, min(start + COPIED, self._span[1]))
            key[first : first + len(keys)] = keys
            values.append(value[::every].copy())
            yield ROUNDS * (keys.size + value.size)
        bound = ValueBound.of(np.concatenate(values), n_keys)
        plan = yield from plan_steps(fitted, key, n_keys, self._scale, planned_with, 1, more_cells=_CELLS)
        return Choice(plan, bound, n_keys, 0, ALL_NEAR if self._old is None else self._old.choice.threshold)

    def _empty(self, choice: Choice) -> GrowingField:
        plan, options, width = choice.plan, self._options, self._query.shape[2]
        every = np.eye(width, dtype=np.float32)
        for_keys, for_queries = plan.moments or (every, every)
        value = self._rows(self._span[0], self._span[0] + 1)[1]
        second_order = options.far_field != "mean"  # without a far field too: a better choice of near cells
        return GrowingField(
            len(plan.centers),
            for_keys,
            for_queries,
            value.shape[1],
            second_order,
            self._scale,
            options.far_field != "none",
        )

    def _fill(self, field: GrowingField, choice: Choice) -> Steps:
        start, stop = self._span
        cell_of = np.empty(stop - start, np.int32)
        for first in range(start, stop, ASSIGNED):
            key, value = self._rows(first, min(first + ASSIGNED, stop))
            cell_of[first - start :][: len(key)] = choice.plan.cells_of_more(key, value, choice.bound)
            yield ROUNDS * len(key) * (key.shape[1] + value.shape[1] + 16 * field.n_cells)
        cell_of[: self._options.sink] = field.n_cells
        field.reserve(np.bincount(cell_of, minlength=field.n_cells + 1))
        m = field.n_directions
        for first in range(start, stop, ADDED):
            key, value = self._rows(first, min(first + ADDED, stop))
            field.append(key, value, cell_of[first - start :][: len(key)])
            a_key, a_cell = (m + 8) * (key.shape[1] + value.shape[1] + m), m * value.shape[1]
            yield ROUNDS * (len(key) * a_key + min(len(key), field.n_cells) * a_cell)

    def _search(self, sample: TokenSample, field: GrowingField, choice: Choice) -> Steps:
        options, n_keys = self._options, field.n_keys
        if options.near is None:
            first = _FIRST if choice.threshold == ALL_NEAR else choice.threshold
            most = _MOST * options.tolerance**2 * math.sqrt(n_keys / field.n_cells)
            search = _SEARCH._replace(most=most).looking(
                options.tolerance,
                min(first, most),
                lambda look, good, bad: look is good and look.bound > 0.7 * options.tolerance,
            )
            look = yield from sample.follow(search)
            pays = look.bound <= options.tolerance and look.touched <= _PAYS * n_keys
        else:
            near = options.near if isinstance(options.near, int) else options.near * n_keys
            look = yield from sample.follow(search_size(near, _SEARCH.least, _NONE_NEAR, _SIZE_LOOKS))
            pays = near < n_keys
        most_risk = sample.most_risk(look, options.tolerance if options.near is None else np.inf)
        field.release()
        threshold, error = (look.threshold, look.error) if pays else (ALL_NEAR, 0.0)
        self.prefix = Prefix(replace(choice, threshold=threshold), field, error, most_risk)
