"""The index."""

from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from ._api import validation as check
from ._api.answers import IndexStats, Neighbors, RadiusNeighbors, Request
from ._api.subset import Subset
from ._runtime.threads import Work
from ._runtime.types import FloatArray, IndexArray
from ._search.radius import within
from ._search.ranked import Ranker
from ._search.single import answer_one
from ._search.versions import answer_version
from ._store.living_index import LivingIndex
from ._tuning.living import Version
from .errors import InvalidValueError

LARGE = 20_000  # rows from which `verbose` shows a bar for queries


class DCI(LivingIndex):
    """Prioritized Dynamic Continuous Indexing: k-nearest-neighbour search by ranking.

    Points are ordered by how near they are to the query along a few projection directions, and the
    best ranked are compared with it in full.  What is left "auto" is chosen and calibrated while
    fitting, so that `recall` is the one thing to say.

    Parameters
    ----------
    metric : {"l2", "ip", "cosine"}, or {"euclidean", "inner_product"}
        Euclidean distance, inner product (largest first) or cosine distance (1 - cosine; a zero
        vector is at distance 1 of everything).
    directions : {"auto", "random", "principal", "query"} or (L * m, d) array
        u_jl of the papers: random unit vectors, directions of largest spread of the points, or those
        that keep most of q - x (of q . x for "ip") given a sample of queries.  Row l * m + j of
        an array is direction j of composite index l.
    ranking : {"auto", "max", "sum"}
        Order of points within a composite index: the largest projected distance over its directions
        (the papers'), or the sum of their squares.
    n_composite, n_simple : int or "auto"
        L and m of the papers: composite indices, and directions in each of them.
    n_levels : int or "auto"
        1 ranks all points (the algorithm of 2017); with more, points belong to cells (about
        n^(1 - 1 / n_levels) of them), and the points of the best ranked cells are ranked.
    recall : float in (0, 1]
        Share of the true k nearest neighbours to find; 1.0, or 1, is exact.
    store : {"float32", "float16", "int8"}
        What points are kept in: float16 takes half of the memory, int8 (steps of each coordinate times a
        factor of each point) a quarter.
        Candidates are compared in full as they are kept; `recall` counts true neighbours among the points as
        they were given.  Where rounding alone loses more than that, search is exact, and `stats_` says what is
        reached.
    random_state : int, numpy.random.Generator or None
        The same state gives the same answers, whatever the number of threads.
    num_threads : int or None
        None is DCI_NUM_THREADS or the number of processors.
    verbose : bool
        Show a progress bar in `fit` and in large batches of queries.

    Attributes
    ----------
    n_points, dim : int
    stats_ : IndexStats
        What was chosen and measured while fitting.

    Notes
    -----
    The index keeps the array it was fitted to, without a copy if that is C-contiguous float32 and `store` too: do
    not change it afterwards.  On top come about (m + 1) * L + 1 numbers of 4 bytes a point, half of that
    for fitted directions ranked by sum.  Fitting takes
    O(n m (d + n_cells)) plus exact answers to 256 held-out queries; `n` is limited to 2^31 - 1.
    Any number of threads may query one index at once, also while it is fitted again: a call sees one fit
    or the other.  A copy or a pickle holds the points once.  Sources: Li & Malik 2016 (arXiv 1512.00442),
    Li & Malik 2017 (arXiv 1703.00440), Mao, Ester & Li 2024 (arXiv 2405.02842).

    Examples
    --------
    >>> import numpy as np
    >>> import dci
    >>> X = np.random.default_rng(0).standard_normal((2000, 8))
    >>> index = dci.DCI(random_state=0).fit(X)
    >>> distances, indices = index.query(X[:3], k=2)
    >>> indices[:, 0]
    array([0, 1, 2])
    """

    def __init__(
        self,
        metric: str = "l2",
        *,
        directions: str | npt.ArrayLike = "auto",
        ranking: str = "auto",
        n_composite: int | str = "auto",
        n_simple: int | str = "auto",
        n_levels: int | str = "auto",
        recall: float = 0.95,
        store: str = "float32",
        random_state: int | np.random.Generator | None = None,
        num_threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.metric = metric
        self.directions = directions
        self.ranking = ranking
        self.n_composite = n_composite
        self.n_simple = n_simple
        self.n_levels = n_levels
        self.recall = recall
        self.store = store
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose
        self._check_params(self.get_params())
        self._start_empty()

    def query(
        self,
        Q: npt.ArrayLike,
        k: int = 10,
        *,
        max_candidates: int | float | None = None,
        max_visits: int | float | None = None,
        recall: float | None = None,
        filter: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Neighbors:
        """Find the k nearest points of each query.

        Parameters
        ----------
        Q : (nq, d) or (d,) array of numbers
        k : int
        max_candidates : int or float, optional
            k0 of the papers: how many of the best ranked points of each composite index are compared
            in full; a count (int) or a share of the points in (0, 1] (float): 1 is one point, 1.0 all.
        max_visits : int or float, optional
            k1 of the papers.  With one level, entries visited in the sorted lists of each composite
            index; with more, points ranked (cells are opened, best first, until they hold so many).  A
            count (int) or a share of all entries or points (float): 1 is one of them, 1.0 all.
        recall : float, optional
            Another recall than the index was fitted for, in (0, 1]; 1.0, or 1, is exact.  Not together
            with explicit budgets.  What no calibration covers yet (a k beyond 64, a far higher recall) is
            answered exactly by a call too small to repay one.
        filter : (n,) bool or (a,) int, optional
            The points that are allowed as answers: a mask, or their indices.  Few of them are searched
            exactly, in O(a) time and memory where indices are given.
        num_threads : int, optional

        Returns
        -------
        Neighbors
            `distances` and `indices`, (nq, k) each, or (k,) for one query.  Of the points that are
            compared in full, equal ones go by their index; exact answers compare all.  A budget of fewer
            than k visits or candidates may leave places empty, a recall never does.

        Raises
        ------
        NotFittedError
        InvalidValueError, InvalidTypeError
        """
        version = self._fitted()
        if filter is None and max_candidates is None and max_visits is None and num_threads is None:
            one = answer_one(version, Q, k, recall)
            if one is not None:
                return one
        engine, n, dim = version.engine, version.points.n_live, version.points.rows.shape[1]
        queries, absmax, single = check.as_queries(Q, dim, "Q")
        k = check.check_k(k)
        candidates = check.check_budget(max_candidates, n, "max_candidates")
        visits = check.check_budget(max_visits, engine.total_visits, "max_visits")
        if recall is not None and (candidates is not None or visits is not None):
            raise InvalidValueError("query: expected either recall or max_candidates / max_visits, received both")
        wanted = engine.params.recall if recall is None else check.check_recall(recall)
        allowed = None if filter is None else self._subset(version, filter)
        request = Request(queries, absmax, k, wanted, visits, candidates, allowed)
        found = self._ask(version, request, num_threads)
        return found.first if single else found

    def _ask(self, version: Version, request: Request, num_threads: int | None = None) -> Neighbors:
        """Answer, by `version` or by one of the same points."""
        if request.allowed is None and request.exclude is None:
            version = self._catch_up(version, len(request))
        show = bool(self.verbose) and len(request) >= LARGE
        with Work(self._threads(num_threads), len(request), "query", "queries", show) as work:
            return answer_version(version, request, work)

    def _subset(self, version: Version, filter: npt.ArrayLike) -> Subset | None:
        """Rows of the points that a filter allows, None for all."""
        points, n = version.points, len(version.points.rows)
        if points.ids is None and points.live is None:
            subset = check.as_filter(filter, n, "filter")
        else:
            if check.is_mask(filter):
                chosen = check.as_filter(filter, points.n_live, "filter").ids
                rows = chosen if points.live is None else points.live[chosen]
            else:
                wanted = check.as_ids(filter, "filter")
                found = version.store.find(points, wanted)
                if (found < 0).any():
                    raise InvalidValueError(f"filter: expected ids of the index, received {wanted[found < 0][0]}")
                rows = np.unique(found)
            subset = Subset(n, ids=rows.astype(np.int32))
        return None if subset.count == points.n_live else subset

    def query_by_id(self, ids: npt.ArrayLike, k: int = 10, *, num_threads: int | None = None) -> Neighbors:
        """Find the k nearest points of points of the index, themselves left out.

        Parameters
        ----------
        ids : int or (m,) array of int
        k : int
        num_threads : int, optional

        Returns
        -------
        Neighbors
            (m, k) each, or (k,) for one id.

        Raises
        ------
        UnknownIdError
            The index has no such ids.
        InvalidValueError, InvalidTypeError
        """
        version = self._fitted("query_by_id")
        k = check.check_k(k)
        rows = self._rows_of(version, check.as_ids(ids, "ids"))
        queries = version.points.rows[rows]
        absmax = float(np.abs(queries).max(initial=0.0))
        recall = version.engine.params.recall
        request = Request(queries, absmax, k, recall, exclude=rows.astype(np.int32))
        found = self._ask(version, request, num_threads)
        return found.first if np.ndim(ids) == 0 else found

    def query_radius(
        self,
        Q: npt.ArrayLike,
        r: npt.ArrayLike,
        max_results: int | None = None,
        *,
        num_threads: int | None = None,
    ) -> RadiusNeighbors:
        """Find the points within a radius of each query.

        Parameters
        ----------
        Q : (nq, d) or (d,) array of numbers
        r : float or (nq,) array of float
            Largest distance, at least 0; for inner products the smallest one, of any sign.
        max_results : int, optional
            Of a query, the nearest ones.
        num_threads : int, optional

        Returns
        -------
        RadiusNeighbors
            Of these points, the recall of the index is found, exactly all where `recall` is 1.0.

        Raises
        ------
        NotFittedError
        InvalidValueError, InvalidTypeError

        Notes
        -----
        Queries are asked for 32 neighbours, those with so many within their radius for four times as many, and so on:
        the time is that of a few calls of `query` for as many neighbours as there are.
        """
        version = self._fitted("query_radius")
        queries, absmax, _ = check.as_queries(Q, version.points.rows.shape[1], "Q")
        radius = check.as_radius(r, len(queries), version.engine.params.metric)
        most = version.points.n_live
        most = most if max_results is None else min(most, check.check_count(max_results, "max_results"))
        recall = version.engine.params.recall

        def search(some: FloatArray, k: int) -> Neighbors:
            return self._ask(version, Request(some, absmax, k, recall), num_threads)

        return within(search, queries, radius, max(most, 1), descending=version.engine.params.metric == "ip")

    @property
    def stats_(self) -> IndexStats:
        """What was chosen and measured while fitting."""
        version = self._fitted("stats_")
        with Work(1) as work:
            return replace(version.engine.describe(work), n_points=version.points.n_live)

    def __repr__(self) -> str:
        version = self._version
        n, dim = self._shape()
        metric = check.check_metric(self.metric) if version is None else version.engine.params.metric
        method = "not fitted" if version is None else "exact" if version.engine.ranker is None else "ranked"
        return f"<DCI {metric}, {n} x {dim}, {method}>"

    def _candidates(
        self,
        Q: npt.ArrayLike,
        max_candidates: int | float | None = None,
        max_visits: int | float | None = None,
    ) -> list[list[IndexArray]]:
        """Sorted ids of the candidates of each query by composite index (for tests)."""
        engine = self._fitted().engine
        ranker, n = cast(Ranker, engine.ranker), len(engine.X)
        queries, absmax, _ = check.as_queries(Q, engine.X.shape[1], "Q")
        visits = check.check_budget(max_visits, engine.total_visits, "max_visits")
        keep = check.check_budget(max_candidates, n, "max_candidates") or n
        rows = ranker.embedding.queries(queries, absmax)
        limited = engine.is_flat and visits is not None
        return [
            [np.sort(ids).astype(np.int64) for ids in found]
            for found in (ranker.candidates(rows, i, visits or n, keep, limited) for i in range(len(queries)))
        ]
