"""An index that changes: what becomes of its structure as points come and go.

New points are searched exactly until there are enough of them to be put into the cells that there are, which copies
panels but projects nothing again. After some growth budgets are too large, and are measured anew as soon as the
queries that came would have repaid it; directions and cells are chosen anew after more: the work for a point added is
that of one or two fitted ones, whatever the order in which points come. How much has changed is counted in surprise:
points that are as near to their cells' centres as those that the cells were made for count once, others up to ten
times, so that drift and new clusters renew budgets and structure sooner.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .._api.params import Params
from .._api.subset import Subset
from .._geometry.quantization import is_recoded
from .._native.codes import Codes
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IdArray, IndexArray
from .._search.exact import ExactSearch
from .._store.points import Points, PointStore
from .build import build, of_other_codes
from .engine import HELD_OUT, Engine

# To measure anew: `python -m comparisons run --suite dynamic`.
_PENDING = 256, 1 / 32  # points searched exactly: at most so many, or this share of the others
_MEASURE_AGAIN = 0.5  # surprise since budgets were measured, as a share of the points then ...
_MUST_MEASURE = 1.5  # ... from which they are measured whether somebody asks or not: points may come from elsewhere
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
        How many points there were when the structure was chosen, and when budgets were measured.
    surprise, unmeasured : float
        What has come since.
    demand : Demand
    """

    points: Points
    store: PointStore
    engine: Engine
    built: int
    measured: int
    surprise: float = 0.0
    unmeasured: float = 0.0
    demand: Demand = field(default_factory=Demand)

    @cached_property
    def is_stale(self) -> bool:
        """Whether its budgets are larger than they need to be."""
        if self.engine.ranker is None:
            return False
        return self.unmeasured >= _MEASURE_AGAIN * self.measured or self.points.n_live < _HALVED * self.measured

    def repays_measuring(self) -> bool:
        """Whether the queries since took as much longer as it takes to measure budgets anew."""
        share = max(1.0 - 1.0 / self.engine.growth, 1.0 - self.points.n_live / max(self.measured, 1))
        return self.engine.repays_calibration(self.demand.queries, share)

    @property
    def n_indexed(self) -> int:
        """Rows that the engine has."""
        return len(self.engine.X)

    @cached_property
    def pending(self) -> tuple[ExactSearch, IdArray | None] | None:
        """Search of the rows behind, and which of them are not gone; None if there are none."""
        start = self.n_indexed
        rows, gone = self.points.rows[start:], self.points.gone
        if len(rows) == 0:
            return None
        live = None if gone is None else np.flatnonzero(~gone[start:]).astype(np.int32)
        absmax = max(self.points.absmax, self.engine.exact.absmax)
        return ExactSearch(rows, absmax, self.engine.exact.metric), live


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
    def room(version: Version, n_rows: int) -> int:
        """Return how many of so many rows in all may still come, negative if too many have, before it is time."""
        least, share = _PENDING
        return int(max(least, share * version.n_indexed)) - (n_rows - version.n_indexed)

    @staticmethod
    def waiting(version: Version, points: Points) -> Version | None:
        """Return the version with these points, whose last rows are new, if these may wait; None if it is time."""
        if Upkeep.room(version, len(points.rows)) < 0:
            return None
        engine = version.engine
        if is_recoded(engine.X, points.rows):  # all are a little elsewhere
            return None
        if engine.X.base is not points.rows.base:  # rows have moved: the array before is the caller's or memory to free
            engine = engine.on(points.rows[: version.n_indexed])
        return Version(  # `replace` takes five times as long, which single points feel
            points, version.store, engine, version.built, version.measured, version.surprise, version.unmeasured,
            version.demand,
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
            embedding = ranker.embedding.with_rows(points.rows, points.absmax)
            if embedding is None:
                surprise = np.inf  # what the structure stands on has changed
                ranker = None
            else:
                ranker, surprise = ranker.with_rows(embedding, start, work)
                gone = None if points.gone is None else start + np.flatnonzero(points.gone[start:])
                if gone is not None and len(gone):
                    ranker = ranker.without_rows(gone)
        unmeasured = version.unmeasured + surprise  # where points come, cells fill up, whatever goes elsewhere
        engine = replace(
            engine, exact=exact, ranker=ranker, live=_live(points, n), known=_UNKNOWN, lock=Lock(),
            calibrations=dict(engine.calibrations), growth=1.0 + unmeasured / max(version.measured, 1),
        )  # fmt: skip
        return replace(version, engine=engine, surprise=version.surprise + surprise, unmeasured=unmeasured)

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
            rows, absmax = points.rows, points.absmax
            engine = build(rows, absmax, self.queries, self.params, rng, work, settle=self.measures)
            return first_version(points, store, engine)
        must_measure = version.unmeasured >= _MUST_MEASURE * version.measured
        if self.measures and version.is_stale and (must_measure or version.repays_measuring()):
            return self.measured(version, rng, work)
        return version

    @staticmethod
    def caught_up(version: Version, rng: np.random.Generator, work: Work, *, fold: bool, measure: bool) -> Version:
        """Return the version with its pending rows in the structure, or with budgets measured anew, or both."""
        if fold:
            folded = Upkeep.folded(version, work)
            if folded.engine.ranker is not None or version.engine.ranker is None:
                version = folded
        return Upkeep.measured(version, rng, work) if measure else version

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
        return replace(version, engine=engine, measured=version.points.n_live, unmeasured=0.0, demand=Demand())


def _live(points: Points, n: int) -> Subset | None:
    """Return the first n rows that are not gone; None if all are there."""
    if points.gone is None or not points.gone[:n].any():
        return None
    return Subset(n, mask=~points.gone[:n])
