"""One query of an index that ranks: everything that does not depend on the query is made before it comes."""

from typing import Any

import numpy as np

from .._api.answers import Neighbors
from .._native import cell_search
from .._native.kernels import Reservoirs, survey
from .._native.rescore import METRICS, TrueDistances, rescore
from .._native.rows import project
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IndexArray
from .._tuning.living import Version
from .dispatch import EXTREME
from .read_rows import FileRows

_FLOAT32 = np.dtype(np.float32)
_MOST_WAYS = 64  # pairs of k and recall that are remembered
_FIRST = np.zeros(1, np.int32)


class Way:
    """The way of single queries of one k and recall through a version: what `answer_version` answers, sooner.

    Parameters
    ----------
    version : Version
        Ranked, without pending points.
    k, visits, candidates : int
    """

    def __init__(self, version: Version, k: int, visits: int, candidates: int) -> None:
        engine = version.engine
        ranker = engine.ranker
        assert ranker is not None  # noqa: S101 - for the type checker
        self._embedding, self._cells = ranker.embedding, ranker.cells
        self._panels, self._bias = ranker.scoring_panels
        self._ids = version.points.ids
        self._use_max = ranker.plan.ranking == "max"
        self._n_composite, self._keep = ranker.plan.n_composite, min(candidates, len(engine.X))
        self._visits, self._k = visits, k
        embedding = ranker.embedding
        self._points = TrueDistances(engine.X, METRICS.index(embedding.metric), embedding.absmax)
        self._spare: list[Reservoirs] = []  # calls at the same time have one each
        self.dim = engine.X.shape[1]
        self.most = EXTREME * max(engine.exact.absmax, 1e-30)

    def answer(self, query: FloatArray, absmax: float) -> Neighbors:
        """Answer a query, (1, d) float32 and finite, with (1, k) each."""
        k = self._k
        distances: FloatArray = np.empty((1, k), np.float32)
        indices: IndexArray = np.empty((1, k), np.int64)
        coordinates = np.empty((1, len(self._bias)), np.float32)
        project(self._embedding.queries(query, absmax), _FIRST, self._panels, self._bias, coordinates)
        try:
            reservoirs = self._spare.pop()
            reservoirs.clear(self._n_composite)
        except IndexError:
            reservoirs = Reservoirs(self._n_composite, self._keep)
        cell_search.search(self._cells, coordinates, self._visits, self._use_max, reservoirs)
        rescore(self._points, query, reservoirs, self._cells.arrays.ids, None, distances, indices)
        self._spare.append(reservoirs)
        if self._ids is not None:
            indices = np.where(indices < 0, -1, self._ids[indices])
        return Neighbors(distances, indices)


def answer_one(version: Version, query: Any, k: Any, recall: Any) -> Neighbors | None:
    """Answer one query, (d,) or (1, d) float32 in one piece; None where it takes the way of batches, or an error.

    The answer is the same.
    """
    if type(query) is not np.ndarray or query.dtype is not _FLOAT32:
        return None
    row = query[np.newaxis] if query.ndim == 1 else query
    if row.ndim != 2 or len(row) != 1:
        return None
    way = version.ways.get((k, recall)) if type(k) is int else None
    if way is None:
        way = _way(version, k, recall)
        if way is None:
            return None
    flags = row.flags
    if row.shape[1] != way.dim or not flags.c_contiguous or not flags.aligned:
        return None
    first_bad, absmax = survey(row)
    if first_bad >= 0 or absmax > way.most:
        return None
    version.demand.queries += 1
    found = way.answer(row, absmax)
    return found.first if query.ndim == 1 else found


def _way(version: Version, k: Any, recall: Any) -> Way | None:
    """Find the way of such queries, which is the same as long as the version is; None if there is none yet."""
    engine = version.engine
    if engine.ranker is None or engine.is_flat or type(k) is not int or not 0 < k < engine.n_live:
        return None
    if version.pending is not None or version.is_stale:  # the next query may change the version
        return None
    if not (recall is None or (type(recall) is float and 0 < recall < 1)):
        return None
    embedding = engine.ranker.embedding
    if FileRows.of(engine.X, embedding.metric, embedding.absmax) is not None:
        return None
    with Work(1) as work:
        budget = engine.budget(k, engine.params.recall if recall is None else recall, work, 1)
    if budget is None:
        return None
    ways = version.ways
    if len(ways) >= _MOST_WAYS:
        ways.clear()
    way = ways[k, recall] = Way(version, k, budget.visits, budget.candidates)
    return way
