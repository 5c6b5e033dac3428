"""One request, one way: by ranking, by exact search, or by exact search of the allowed points alone."""

import numpy as np

from .._api.answers import Neighbors, Request
from .._runtime.threads import Work
from .._tuning.engine import Engine
from .exact import ExactSearch
from .ranked import Ranker

# Share of allowed points below which they are searched exactly. No suite measures it: to do so, time
# `index.query(Q, filter=ids)` for shares from 0.01 to 0.5 with this set to 0 and to 1.
_SPARSE_FILTER = 0.1
# Times the points' largest value: beyond it a query is answered exactly, since projections in float32 say nothing.
EXTREME = 2.0**30


def answer(engine: Engine, request: Request, work: Work) -> Neighbors:
    """Find the k nearest of the allowed points: ranked where there is a budget for it, exactly otherwise."""
    budget = choose_budget(engine, request, work)
    ranker = engine.ranker
    if budget is None or ranker is None:
        ids = engine.live_ids if request.allowed is None else request.allowed.ids
        found = engine.exact.search(request.queries, request.absmax, request.k, work, ids, request.exclude)
        return Neighbors(*found)
    visits, candidates = budget
    if engine.is_flat and visits < engine.total_visits:
        return _search_limited(engine.exact, ranker, request, visits, candidates, work)
    neighbors = Neighbors(*ranker.search(engine.X, request, visits, candidates, work))
    if request.allowed is not None and candidates >= request.k:
        _fill_up(engine.exact, request, neighbors, work)
    return neighbors


def choose_budget(engine: Engine, request: Request, work: Work) -> tuple[int, int] | None:
    """Return (visits, candidates) of each query, None for exact search."""
    n, allowed = len(engine.X), request.allowed
    if engine.ranker is None or request.k >= engine.n_live or len(request) == 0:
        return None
    if request.absmax > EXTREME * max(engine.exact.absmax, 1e-30):
        return None
    if allowed is not None and allowed.count < _SPARSE_FILTER * n:
        return None
    if request.max_candidates is not None or request.max_visits is not None:
        # No limit on one of them means all; fewer than k candidates could not give k answers.
        return request.max_visits or engine.total_visits, request.max_candidates or n
    n_allowed = None if allowed is None else allowed.count
    budget = engine.budget(request.k, request.recall, work, len(request), n_allowed)
    if budget is None:
        return None
    visits = engine.total_visits if engine.is_flat else budget.visits
    own = request.exclude is not None  # an excluded point takes a place in the ranking
    return visits + own, budget.candidates + own


def _search_limited(
    exact: ExactSearch, ranker: Ranker, request: Request, visits: int, candidates: int, work: Work
) -> Neighbors:
    """One level with max_visits: as published, one query at a time, O(n L m) each."""
    queries, absmax, k, allowed = request.queries, request.absmax, request.k, request.allowed
    rows = ranker.embedding.queries(queries, absmax)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for i in range(len(queries)):
        ids = np.unique(np.concatenate(ranker.candidates(rows, i, visits, candidates, limited=True)))
        if allowed is not None:
            ids = ids[allowed.mask[ids]]
        distances[i : i + 1], indices[i : i + 1] = exact.search(queries[i : i + 1], absmax, k, work, ids)
    return Neighbors(distances, indices)


def _fill_up(exact: ExactSearch, request: Request, neighbors: Neighbors, work: Work) -> None:
    """Answer exactly the queries that found fewer allowed points than there are."""
    allowed, k = request.allowed, request.k
    if allowed is None or allowed.count == 0:
        return
    short = np.flatnonzero(neighbors.indices[:, min(k, allowed.count) - 1] < 0)
    if len(short):
        again = np.ascontiguousarray(request.queries[short])
        found = exact.search(again, request.absmax, k, work.silent(), allowed.ids)
        neighbors.distances[short], neighbors.indices[short] = found
