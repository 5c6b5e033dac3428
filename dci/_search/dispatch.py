"""Answers of a fitted engine: by ranking, by exact search, or by exact search of the allowed points alone."""

import numpy as np
import numpy.typing as npt

from .._api.subset import Subset
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IdArray
from .._tuning.build import Engine
from .exact import ExactSearch
from .ranked import Ranker

Found = tuple[FloatArray, npt.NDArray[np.int64]]  # distances and indices, (nq, k) each

_SPARSE_FILTER = 0.1  # share of allowed points below which they are searched exactly
_EXTREME = 2.0**30  # times the points' largest value: beyond it a query is answered exactly


def is_flat(engine: Engine) -> bool:
    """Whether points are ranked without cells."""
    return engine.ranker is not None and engine.ranker.plan.n_cells == 0


def total_visits(engine: Engine) -> int:
    """All that a query can visit: entries of sorted lists with one level, else points."""
    n, ranker = len(engine.X), engine.ranker
    return n if ranker is None or ranker.plan.n_cells else n * ranker.plan.n_simple


def make_plan(
    engine: Engine,
    k: int,
    recall: float,
    candidates: int | None,
    visits: int | None,
    absmax: float,
    n_queries: int,
    work: Work,
    allowed: Subset | None = None,
) -> tuple[int, int] | None:
    """(visits, candidates) of queries, None for exact search."""
    n = len(engine.X)
    if engine.ranker is None or k >= n or n_queries == 0 or absmax > _EXTREME * max(engine.exact.absmax, 1e-30):
        return None
    if allowed is not None and allowed.count < _SPARSE_FILTER * n:
        return None
    if candidates is not None or visits is not None:
        # What is not limited is not limited; fewer than k candidates could not give k answers.
        return visits or total_visits(engine), candidates or n
    budget = engine.budget(k, recall, work, n_queries, None if allowed is None else allowed.count)
    if budget is None:
        return None
    return total_visits(engine) if is_flat(engine) else budget.visits, budget.candidates


def search(
    engine: Engine,
    queries: FloatArray,
    absmax: float,
    k: int,
    plan: tuple[int, int] | None,
    work: Work,
    allowed: Subset | None = None,
    exclude: IdArray | None = None,
) -> Found:
    """Find the k nearest of the allowed points with a plan of (visits, candidates), exactly without one.

    `exclude`, not together with `allowed`: a point that is no answer to this query, one a query.
    """
    if plan is None or engine.ranker is None:
        return engine.exact.search(queries, absmax, k, work, None if allowed is None else allowed.ids, exclude)
    visits, candidates = plan
    if is_flat(engine) and visits < total_visits(engine):
        return _search_limited(engine, engine.ranker, queries, absmax, k, visits, candidates, allowed, work)
    mask = None if allowed is None else allowed.mask
    found = engine.ranker.search(engine.X, queries, absmax, k, visits, candidates, work, mask, exclude)
    if allowed is not None and candidates >= k:
        _fill_up(engine.exact, queries, absmax, k, allowed, found, work)
    return found


def _search_limited(
    engine: Engine,
    ranker: Ranker,
    queries: FloatArray,
    absmax: float,
    k: int,
    visits: int,
    candidates: int,
    allowed: Subset | None,
    work: Work,
) -> Found:
    """One level with max_visits: as published, one query at a time, O(n L m) each."""
    rows = ranker.embedding.queries(queries, absmax)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for i in range(len(queries)):
        ids = np.unique(np.concatenate(ranker.candidates(rows, i, visits, candidates, limited=True)))
        if allowed is not None:
            ids = ids[allowed.mask[ids]]
        distances[i : i + 1], indices[i : i + 1] = engine.exact.search(queries[i : i + 1], absmax, k, work, ids)
    return distances, indices


def _fill_up(
    exact: ExactSearch, queries: FloatArray, absmax: float, k: int, allowed: Subset, found: Found, work: Work
) -> None:
    """Answer exactly the queries that found fewer allowed points than there are."""
    if allowed.count == 0:
        return
    short = np.flatnonzero(found[1][:, min(k, allowed.count) - 1] < 0)
    if len(short):
        again = exact.search(np.ascontiguousarray(queries[short]), absmax, k, work.silent(), allowed.ids)
        found[0][short], found[1][short] = again
