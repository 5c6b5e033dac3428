"""One shard: an index of some of the points, under ids of all, whose budgets are measured beside the other shards'."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from .._api.answers import Neighbors, Request
from .._api.subset import Subset
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import BoolArray, FloatArray, IndexArray
from .._search.versions import answer_version
from .._store.points import PointStore
from ..index import DCI


class Batch(NamedTuple):
    """Queries that are validated.

    Attributes
    ----------
    queries : (nq, d) float32
    absmax : float
        Largest |q|.
    ids : (nq,) int64, optional
        Of queries that are points: they are no answers to themselves.
    """

    queries: FloatArray
    absmax: float
    ids: IndexArray | None = None


class Spending(NamedTuple):
    """What a query may spend in a shard of so many points: visits and candidates."""

    visits: int
    candidates: int


@dataclass(frozen=True)
class ShardInfo:
    """What is known of a shard without having it.

    Attributes
    ----------
    n, dim : int
    first_id, last_id : int
        The least and the largest id; 0 and -1 if there are no points.
    built : int
        How many points there were when its structure was made.
    nbytes : int
    ranked : bool
        Whether it has a structure.
    """

    n: int
    dim: int
    first_id: int
    last_id: int
    built: int
    nbytes: int
    ranked: bool

    def may_have(self, ids: IndexArray) -> bool:
        """Whether some of these ids lie between its least and its largest."""
        return bool(((ids >= self.first_id) & (ids <= self.last_id)).any())


class Reached(NamedTuple):
    """What a shard has to spend for those of the true neighbours that it holds.

    Attributes
    ----------
    places : (m,) int64
        Places of these in the table of the neighbours of all queries.
    visits, ranks : (m,) int64
        As in `Calibration`.
    width, n_cells, n : int
        Of its structure; a width of 0 where search is exact.
    """

    places: IndexArray
    visits: IndexArray
    ranks: IndexArray
    width: int
    n_cells: int
    n: int


class Shard(DCI):
    """A `DCI` that changes as a value: `with_points` and `without` return another one, and this one stays.

    So a scheduler may run a change again, or keep both, and what is asked meanwhile sees one of them.
    """

    _measures = False

    def named(self, ids: IndexArray) -> Self:
        """Give the points, which have just been fitted, these ids, (n,) int64."""
        version, upkeep = self._state
        if version is not None and upkeep is not None:
            ascending = bool(np.all(ids[1:] > ids[:-1]))
            next_id = max(int(ids.max(initial=-1)) + 1, 0)
            points = replace(version.points, ids=ids, ascending=ascending, next_id=next_id)
            self._state = replace(version, points=points, store=PointStore(points)), upkeep
        return self

    def with_points(self, rows: FloatArray, ids: IndexArray) -> "Shard":
        """Return the shard with points (m, d) under ids that are not in use."""
        changed = self._successor()
        changed.add(rows, ids)
        return changed

    def without(self, ids: IndexArray) -> "Shard":
        """Return the shard without those of these ids that it has."""
        changed = self._successor()
        changed.remove(ids, missing="ignore")
        return changed

    def _successor(self) -> "Shard":
        other = Shard.__new__(Shard)
        other.__dict__.update(self.__dict__)  # versions never change, and their store is made for calls that failed
        other._writer = Lock()
        return other

    def info(self) -> ShardInfo:
        """Return what is known of it elsewhere."""
        version, ids = self._fitted(), self.ids
        first, last = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
        ranked = version.engine.ranker is not None
        return ShardInfo(version.points.n_live, self.dim, first, last, version.built, self.nbytes, ranked)

    def has(self, ids: IndexArray) -> BoolArray:
        """Tell which ids it has."""
        version = self._fitted()
        return np.asarray(version.store.find(version.points, ids) >= 0)

    def sample(self, places: IndexArray) -> Batch:
        """Return points as queries, `places` counting those that are there."""
        version = self._fitted()
        points = version.points
        rows = places if points.live is None else points.live[places]
        queries = np.ascontiguousarray(points.rows[rows], np.float32)
        return Batch(queries, float(np.abs(queries).max(initial=0.0)), points.ids_of(rows))

    def nearest(self, batch: Batch, k: int, spending: Spending | None, allowed: IndexArray | None = None) -> Neighbors:
        """Find the k nearest points of queries.

        Parameters
        ----------
        batch : Batch
        k : int
        spending : Spending, optional
            Exact search if not given, or where it is faster.
        allowed : (any,) int64, optional
            Ids of all shards that may be answers.
        """
        version = self._fitted()
        request = Request(batch.queries, batch.absmax, k)
        if batch.ids is not None:
            request = replace(request, exclude=version.store.find(version.points, batch.ids).astype(np.int32))
        if allowed is not None:
            rows = version.store.find(version.points, allowed)
            inside = np.unique(rows[rows >= 0]).astype(np.int32)
            request = replace(request, allowed=Subset(len(version.points.rows), ids=inside))
        if spending is not None:
            n = len(version.engine.X)
            visits, candidates = min(spending.visits, n), min(spending.candidates, n)
            if version.engine.pays(visits, candidates):
                request = replace(request, max_visits=visits, max_candidates=candidates)
        with Work(self._threads()) as work:
            return answer_version(version, request, work)

    def reach(self, batch: Batch, truth: IndexArray, effort: int) -> Reached:
        """Find what it takes to reach those of the true neighbours that are here.

        Parameters
        ----------
        batch : Batch
        truth : (nq, K) int64
            Ids of all shards; all queries have K.
        effort : int
            How far neighbours are followed.
        """
        version = self._fitted()
        engine, find = version.engine, version.store.find
        rows = find(version.points, truth.ravel()).reshape(truth.shape)
        places = np.flatnonzero(rows.ravel() >= 0)
        ranker, n = engine.ranker, version.n_indexed
        if ranker is None:
            free = np.zeros(len(places), np.int64)
            return Reached(places, free, free, 0, 0, n)
        asked = np.flatnonzero((rows >= 0).any(axis=1))
        rows = rows[asked]
        pending = rows >= n  # searched exactly whatever is spent
        own = None if batch.ids is None else find(version.points, batch.ids[asked]).astype(np.int32)
        if own is not None:
            own[own >= n] = -1
        queries = np.ascontiguousarray(batch.queries[asked]), batch.absmax
        with Work(self._threads()) as work:
            known = engine.follow(ranker, queries, np.where(pending, -1, rows), own, effort, work)
        visits, ranks = (np.where(pending, 0, numbers)[rows >= 0] for numbers in (known.visits, known.ranks))
        width = ranker.plan.n_composite * ranker.plan.n_simple
        return Reached(places, visits, ranks, width, ranker.cells.n_centers, n)
