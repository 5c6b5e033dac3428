"""An index that changes: what becomes of its structure as points come and go.

New points are searched exactly until there are enough of them to be put into the cells that there are, which copies
panels but projects nothing again. Where no query came since that was done last, many more may wait: the next query puts
them there. After some growth budgets are too large, and are measured anew as soon as the queries that came would have
repaid it; directions and cells are chosen anew after more: the work for a point added is that of one or two fitted
ones, whatever the order in which points come. How much has changed is counted in surprise:
points that are as near to their cells' centres as those that the cells were made for count once, others up to ten
times, so that drift and new clusters renew budgets and structure sooner.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .._api.params import Params
from .._api.subset import Subset
from .._geometry.metric import MetricEmbedding
from .._geometry.quantization import is_recoded
from .._native.codes import Codes
from .._runtime.cached import cached
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IdArray, IndexArray
from .._search.exact import ExactSearch
from .._store.points import Points, PointStore
from .build import build, of_other_codes
from .cost_model import most_ranked_cost
from .engine import HELD_OUT, Engine

# To measure anew: `python -m comparisons run --suite dynamic`.
_PENDING = 256, 1 / 32  # points searched exactly: at most so many, or this share of the others ...
_UNASKED = 1 / 4  # ... or that one, as long as nobody searches
_MEASURE_AGAIN = 0.5  # surprise since budgets were measured, as a share of the points then ...
_MUST_MEASURE = 1.5  # ... from which they are measured as soon as anybody asks: points may come from elsewhere
_BUILD_AGAIN = 5.0  # surprise since the structure was built, as a share of the points then ...
_BUILD_EXACT_AGAIN = 1.0  # ... where there is none, and ranking may pay by now
_HALVED = 0.5  # share of the points left from which smaller budgets are enough
_SHRUNK = 0.25  # share of the points left from which less structure is enough
_MOST_GONE = 0.5  # share of the rows that are gone before the others move together
_UNKNOWN: IndexArray = np.empty((0, 0), np.int64)  # neighbours of held-out queries, once points have come or gone


@dataclass
class Demand:
    """How many queries there were since budgets were measured, about: threads may lose a few."""

    queries: int = 0


@dataclass(frozen=True)
class Version:
    """What a query sees: it never changes.

    Attributes
    ----------
    points : Points
    store : PointStore
        Makes the next points, and finds ids among these.
    engine : Engine
        Of the first rows; those behind are pending.
    built, measured : int
        How many points there were when the structure was chosen, and when budgets were measured; 0 if never since.
    surprise, unmeasured : float
        What has come since.
    answered : int
        What `demand` had counted when points were put into the structure last.
    demand : Demand
    """

    points: Points
    store: PointStore
    engine: Engine
    built: int
    measured: int
    surprise: float = 0.0
    unmeasured: float = 0.0
    answered: int = 0
    demand: Demand = field(default_factory=Demand)

    @cached
    def is_stale(self) -> bool:
        """Whether its budgets are larger than they need to be."""
        if self.engine.ranker is None:
            return False
        return self.unmeasured >= _MEASURE_AGAIN * self.measured or self.points.n_live < _HALVED * self.measured

    def wants_measuring(self) -> bool:
        """Whether budgets should be measured anew for the queries that there were since."""
        if not self.is_stale or self.demand.queries == 0:
            return False
        return self.unmeasured >= _MUST_MEASURE * self.measured or self._repays_measuring()

    def _repays_measuring(self) -> bool:
        """Whether the queries since took as much longer as it takes to measure budgets anew."""
        share = max(1.0 - 1.0 / self.engine.growth, 1.0 - self.points.n_live / max(self.measured, 1))
        return self.engine.repays_calibration(self.demand.queries, share)

    @property
    def n_indexed(self) -> int:
        """Rows that the engine has."""
        return len(self.engine.X)

    def room(self, n_rows: int) -> int:
        """Return how many of so many rows in all may still come, negative if too many have, before it is time.

        Time to put those behind the engine's into the structure.
        """
        share = _UNASKED if self.demand.queries == self.answered else _PENDING[1]
        return _most_pending(self.n_indexed, share) - (n_rows - self.n_indexed)

    def is_behind(self) -> bool:
        """Whether more rows are pending than may be where somebody searches."""
        return len(self.points.rows) - self.n_indexed > _most_pending(self.n_indexed, _PENDING[1])

    @cached
    def ways(self) -> dict[tuple[int, float | None], Any]:
        """Return what single queries of a k and a recall have prepared, kept as long as the version is."""
        return {}

    @cached
    def embedding(self) -> MetricEmbedding | None:
        """Return that of the structure, of all rows; None if there is none or the rows behind do not fit it."""
        ranker = self.engine.ranker
        return None if ranker is None else ranker.embedding.with_rows(self.points.rows, self.points.absmax)

    def can_fold(self) -> bool:
        """Whether there are rows behind the engine's, and its structure, if any, can take them."""
        return self.pending is not None and (self.engine.ranker is None or self.embedding is not None)

    @cached
    def pending(self) -> tuple[ExactSearch, IdArray | None] | None:
        """Search of the rows behind, and which of them are not gone; None if there are none."""
        start = self.n_indexed
        rows, gone = self.points.rows[start:], self.points.gone
        if len(rows) == 0:
            return None
        live = None if gone is None else np.flatnonzero(~gone[start:]).astype(np.int32)
        absmax = max(self.points.absmax, self.engine.exact.absmax)
        return ExactSearch(rows, absmax, self.engine.exact.metric), live


def _most_pending(n_indexed: int, share: float) -> int:
    return int(max(_PENDING[0], share * n_indexed))


def first_version(points: Points, store: PointStore, engine: Engine) -> Version:
    """Return the version after a fit."""
    return Version(points, store, engine, points.n_live, points.n_live)


class Upkeep:
    """Decides when a structure is renewed.

    Parameters
    ----------
    params : Params
    queries : ((t, d) float32, float) or None
        The sample of queries that was given, and its largest magnitude.
    measures : bool
        Whether budgets are measured on these points alone.
    """

    def __init__(self, params: Params, queries: tuple[FloatArray, float] | None, measures: bool = True) -> None:
        self.params = params
        self.queries = queries
        self.measures = measures

    @staticmethod
    def waiting(version: Version, points: Points) -> Version | None:
        """Return the version with these points, whose last rows are new, if these may wait; None if it is time."""
        if version.room(len(points.rows)) < 0:
            return None
        engine = version.engine
        kept = engine.X
        if is_recoded(kept, points.rows):  # all are a little elsewhere
            return None
        if kept.base is not points.rows.base:  # rows have moved: the array before is the caller's or memory to free
            engine = engine.on(points.rows[: version.n_indexed])
        return Version(  # `replace` takes five times as long, which single points feel
            points, version.store, engine, version.built, version.measured, version.surprise, version.unmeasured,
            version.answered, version.demand,
        )  # fmt: skip

    def grown(self, version: Version, points: Points, rng: np.random.Generator, work: Work) -> Version:
        """Return the version with these points in its structure, or in another one."""
        return self.renewed(self.folded(replace(version, points=points), work), rng, work)

    @staticmethod
    def shrunk(version: Version, points: Points, rows: IndexArray) -> Version:
        """Return the version with these points, of which `rows` have just gone."""
        engine = version.engine
        rows = rows[rows < version.n_indexed]
        if len(rows) and engine.ranker is not None:
            engine = replace(engine, ranker=engine.ranker.without_rows(rows))
        engine = replace(
            engine, live=_live(points, version.n_indexed), known=_UNKNOWN, calibrations=dict(engine.calibrations),
            lock=Lock(),
        )  # fmt: skip
        return replace(version, points=points, engine=engine)

    @staticmethod
    def folded(version: Version, work: Work) -> Version:
        """Return the version with its pending rows in the structure; without one where they do not fit it."""
        engine, points = version.engine, version.points
        start, n = version.n_indexed, len(points.rows)
        new = n - start
        exact = ExactSearch(points.rows, points.absmax, engine.exact.metric)
        surprise = float(new)
        ranker = engine.ranker
        if ranker is not None:
            embedding = version.embedding
            if embedding is None:
                surprise = np.inf  # what the structure stands on has changed
                ranker = None
            else:
                ranker, surprise = ranker.with_rows(embedding, start, work)
                gone = None if points.gone is None else start + np.flatnonzero(points.gone[start:])
                if gone is not None and len(gone):
                    ranker = ranker.without_rows(gone)
        # Among more points ranking pays sooner, unless it was asked for whatever it costs.
        most_cost = np.inf if np.isinf(engine.most_cost) else most_ranked_cost(*points.rows.shape)
        unmeasured = version.unmeasured + surprise  # where points come, cells fill up, whatever goes elsewhere
        engine = replace(
            engine, exact=exact, ranker=ranker, most_cost=most_cost, live=_live(points, n), known=_UNKNOWN, lock=Lock(),
            calibrations=dict(engine.calibrations), growth=1.0 + unmeasured / max(version.measured or version.built, 1),
        )  # fmt: skip
        return replace(
            version, engine=engine, surprise=version.surprise + surprise, unmeasured=unmeasured,
            answered=version.demand.queries,
        )  # fmt: skip

    def renewed(self, version: Version, rng: np.random.Generator, work: Work) -> Version:
        """Build or measure anew, where it is time."""
        points, engine = version.points, version.engine
        again = _BUILD_AGAIN if engine.ranker is not None else _BUILD_EXACT_AGAIN
        n_gone = len(points.rows) - points.n_live
        loose = n_gone > max(_PENDING[0], _MOST_GONE * len(points.rows))
        few = points.n_live < _SHRUNK * version.built
        if engine.ranker is not None:  # budgets are measured on points that it holds
            few = few or engine.n_live < max(2, _SHRUNK * version.built)
        if loose or few or version.surprise >= again * version.built:
            store = version.store
            if n_gone:
                store, points = store.compacted(points)
            asked = version.demand.queries > 0 or not self.measures
            calibrated = asked and self.measures
            engine = build(points.rows, points.absmax, self.queries, self.params, rng, work, calibrated=calibrated)
            version = first_version(points, store, engine)
            return version if asked else replace(version, measured=0)
        if self.measures and version.wants_measuring():
            return self.measured(version, rng, work)
        return version

    def caught_up(self, version: Version, rng: np.random.Generator, work: Work, *, fold: bool) -> Version:
        """Return the version with its pending rows in the structure, if asked, and with budgets of now, if wanted."""
        if fold:
            version = self.folded(version, work)
        return self.measured(version, rng, work) if self.measures and version.wants_measuring() else version

    @staticmethod
    def measured(version: Version, rng: np.random.Generator, work: Work) -> Version:
        """Return the version with budgets measured anew, on points of today where points stand for queries."""
        engine = version.engine
        held_out, absmax, ids = engine.held_out, engine.held_out_absmax, engine.held_out_ids
        if ids is not None:
            live = engine.live.ids if engine.live is not None else np.arange(len(engine.X), dtype=np.int32)
            ids = np.sort(rng.choice(live, min(HELD_OUT, len(live)), replace=False)).astype(np.int32)
            held_out, absmax = engine.X[ids], engine.exact.absmax
        engine = replace(
            engine, held_out=held_out, held_out_absmax=absmax, held_out_ids=ids, calibrations={}, growth=1.0,
            known=_UNKNOWN, lock=Lock(),
        )  # fmt: skip
        if isinstance(engine.X, Codes):
            engine.ceilings = engine.measure_ceilings(of_other_codes(engine), work)
        engine.settle(work)
        n = version.points.n_live
        return replace(version, engine=engine, measured=n, unmeasured=0.0, answered=0, demand=Demand())


def _live(points: Points, n: int) -> Subset | None:
    """Return the first n rows that are not gone; None if all are there."""
    if points.gone is None or not points.gone[:n].any():
        return None
    return Subset(n, mask=~points.gone[:n])
