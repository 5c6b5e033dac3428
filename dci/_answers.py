"""Answers of a fitted engine: by ranking, by exact search, or by exact search of the allowed points alone."""

import numpy as np
import numpy.typing as npt

from ._engine import Engine
from ._exact_search import ExactSearch
from ._ranker import Ranker
from ._threads import Work
from ._types import BoolArray, FloatArray, IdArray

Found = tuple[FloatArray, npt.NDArray[np.int64]]  # distances and indices, (nq, k) each

_SPARSE_FILTER = 0.1  # share of allowed points below which they are searched exactly


def is_flat(engine: Engine) -> bool:
    """Whether points are ranked without cells."""
    return engine.ranker is not None and engine.ranker.plan.n_cells == 0


def total_visits(engine: Engine) -> int:
    """All that a query can visit: entries of sorted lists with one level, else points."""
    n, ranker = len(engine.X), engine.ranker
    return n if ranker is None or ranker.plan.n_cells else n * ranker.plan.n_simple


def search(
    engine: Engine,
    queries: FloatArray,
    absmax: float,
    k: int,
    plan: tuple[int, int] | None,
    work: Work,
    allowed: BoolArray | None = None,
    exclude: IdArray | None = None,
) -> Found:
    """Find the k nearest of the allowed points with a plan of (visits, candidates), exactly without one.

    `exclude`, not together with `allowed`: a point that is no answer to this query, one a query.
    """
    n_allowed = len(engine.X) if allowed is None else int(np.count_nonzero(allowed))
    if allowed is not None and (plan is None or n_allowed < _SPARSE_FILTER * len(engine.X)):
        return _search_subset(engine.exact, queries, absmax, k, np.flatnonzero(allowed), work)
    if plan is None or engine.ranker is None:
        return engine.exact.search(queries, absmax, k, work, exclude=exclude)
    visits, candidates = plan
    if is_flat(engine) and visits < total_visits(engine):
        return _search_limited(engine, engine.ranker, queries, absmax, k, visits, candidates, allowed, work)
    found = engine.ranker.search(engine.X, queries, absmax, k, visits, candidates, work, allowed, exclude)
    if allowed is not None and candidates >= k:
        _fill_up(engine.exact, queries, absmax, k, allowed, n_allowed, found, work)
    return found


def _search_subset(
    exact: ExactSearch, queries: FloatArray, absmax: float, k: int, ids: npt.NDArray[np.int64], work: Work
) -> Found:
    """Exact search of these points only."""
    subset = ExactSearch(exact.X[ids], exact.absmax, exact.metric)
    distances, indices = subset.search(queries, absmax, k, work)
    return distances, np.where(indices >= 0, ids[indices] if len(ids) else -1, -1)


def _search_limited(
    engine: Engine,
    ranker: Ranker,
    queries: FloatArray,
    absmax: float,
    k: int,
    visits: int,
    candidates: int,
    allowed: BoolArray | None,
    work: Work,
) -> Found:
    """One level with max_visits: as published, one query at a time, O(n L m) each."""
    rows = ranker.embedding.queries(queries, absmax)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for i in range(len(queries)):
        mask = np.zeros(len(engine.X), bool)
        for ids in ranker.candidates(rows, i, visits, candidates, limited=True):
            mask[ids] = True
        if allowed is not None:
            mask &= allowed
        distances[i : i + 1], indices[i : i + 1] = engine.exact.search(
            queries[i : i + 1], absmax, k, work, mask.view(np.uint8)
        )
    return distances, indices


def _fill_up(
    exact: ExactSearch,
    queries: FloatArray,
    absmax: float,
    k: int,
    allowed: BoolArray,
    n_allowed: int,
    found: Found,
    work: Work,
) -> None:
    """Answer exactly the queries that found fewer allowed points than there are."""
    if n_allowed == 0:
        return
    short = np.flatnonzero(found[1][:, min(k, n_allowed) - 1] < 0)
    if len(short):
        queries = np.ascontiguousarray(queries[short])
        again = exact.search(queries, absmax, k, work.silent(), allowed.view(np.uint8))
        found[0][short], found[1][short] = again
