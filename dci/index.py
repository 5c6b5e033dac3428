"""The index."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ._api import validation as check
from ._api.answers import IndexStats, Neighbors, Request
from ._api.params import Params
from ._runtime.blas import one_blas_thread
from ._runtime.threads import Work
from ._runtime.types import FloatArray, IndexArray
from ._search.dispatch import answer
from ._search.exact import ExactSearch
from ._search.ranked import Ranker
from ._tuning.build import build
from ._tuning.engine import Engine
from .errors import InvalidValueError, NotFittedError

_LARGE = 20_000  # rows from which `verbose` shows a bar for queries
_STRUCTURE = ("metric", "directions", "ranking", "n_composite", "n_simple", "n_levels", "recall")
_PARAMETERS = (*_STRUCTURE, "random_state", "num_threads", "verbose")


class DCI:
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
    The index keeps the array it was fitted to, without a copy if that is C-contiguous float32: do
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
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose
        self._check_params(self.get_params())
        self._engine: Engine | None = None  # replaced as a whole: a call that has it sees no other

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as they were given.

        Parameters
        ----------
        deep : bool
            Without effect, since no parameter has parameters; scikit-learn passes it.
        """
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> "DCI":
        """Change arguments of the constructor.

        What is fitted stays as it is until the next `fit`; `num_threads` and `verbose` count for queries at once.

        Parameters
        ----------
        **params
            Arguments of the constructor; others keep their values.

        Returns
        -------
        self

        Raises
        ------
        InvalidValueError, InvalidTypeError
            A name is unknown or a value cannot be used; nothing is changed then.
        """
        unknown = sorted(set(params) - set(_PARAMETERS))
        if unknown:
            raise InvalidValueError(f"set_params: expected names among {_PARAMETERS}, received {unknown}")
        self._check_params(self.get_params() | params)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self, X: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> "DCI":
        """Index the rows of X.

        Parameters
        ----------
        X : (n, d) array of numbers, n >= 0
            Converted to C-contiguous float32 if it is anything else.
        queries : (t, d) array of numbers, optional
            A sample of the queries to come; without it, points of X stand for them.

        Returns
        -------
        self

        Raises
        ------
        InvalidValueError, InvalidTypeError
            X or `queries` has the wrong shape or dtype, or holds NaN or infinity.
        """
        params = self._check_params(self.get_params())
        points, absmax = check.as_points(X, "X")
        if len(points) >= 2**31:
            raise InvalidValueError(f"X: expected fewer than 2^31 rows, received {len(points)}")
        sample = None
        if queries is not None:
            sample = check.as_points(queries, "queries", dim=points.shape[1])
        elif isinstance(params.directions, str) and params.directions == "query":
            raise InvalidValueError(
                'directions="query": expected fit(X, queries=...) with a sample of queries, received none'
            )
        if sample is not None and len(sample[0]) == 0:
            raise InvalidValueError(f"queries: expected at least one row, received {sample[0].shape}")
        _check_directions(params.directions, points)
        rng = check.check_random_state(self.random_state)
        threads = check.check_num_threads(self.num_threads)
        # Points pass twice: when they are assigned to cells and when they are copied there.
        with one_blas_thread(), Work(threads, 2 * len(points), "fit", "points", self.verbose) as work:
            engine = build(points, absmax, sample, params, rng, work)
            work.finish()
        with Work(1) as work:
            engine.stats = engine.describe(work)
        self._engine = engine
        return self

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
        engine = self._fitted()
        n, dim = engine.X.shape
        queries, absmax, single = check.as_queries(Q, dim, "Q")
        k = check.check_k(k)
        candidates = check.check_budget(max_candidates, n, "max_candidates")
        visits = check.check_budget(max_visits, engine.total_visits, "max_visits")
        if recall is not None and (candidates is not None or visits is not None):
            raise InvalidValueError("query: expected either recall or max_candidates / max_visits, received both")
        wanted = engine.params.recall if recall is None else check.check_recall(recall)
        threads = check.check_num_threads(self.num_threads if num_threads is None else num_threads)
        allowed = None if filter is None else check.as_filter(filter, n, "filter")
        if allowed is not None and allowed.count == n:
            allowed = None
        request = Request(queries, absmax, k, wanted, visits, candidates, allowed)
        show = bool(self.verbose) and len(queries) >= _LARGE
        with Work(threads, len(queries), "query", "queries", show) as work:
            found = answer(engine, request, work)
        return _first(found) if single else found

    @property
    def n_points(self) -> int:
        """Number of points."""
        return self._shape()[0]

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return self._shape()[1]

    @property
    def stats_(self) -> IndexStats:
        """What was chosen and measured while fitting."""
        return self._fitted("stats_").stats

    def __len__(self) -> int:
        return self.n_points

    def __repr__(self) -> str:
        engine = self._engine
        n, dim = (0, 0) if engine is None else engine.X.shape
        metric = check.check_metric(self.metric) if engine is None else engine.params.metric
        method = "not fitted" if engine is None else engine.stats.method
        return f"<DCI {metric}, {n} x {dim}, {method}>"

    @staticmethod
    def _check_params(params: dict[str, Any]) -> Params:
        checked = Params.checked(**{name: params[name] for name in _STRUCTURE})
        check.check_random_state(params["random_state"])
        check.check_num_threads(params["num_threads"])
        return checked

    def _shape(self) -> tuple[int, int]:
        engine = self._engine
        return (0, 0) if engine is None else engine.X.shape

    def _fitted(self, what: str = "query") -> Engine:
        engine = self._engine
        if engine is None:
            raise NotFittedError(f"{what}: expected a fitted index, received one before fit(X)")
        return engine

    def _candidates(
        self,
        Q: npt.ArrayLike,
        max_candidates: int | float | None = None,
        max_visits: int | float | None = None,
    ) -> list[list[IndexArray]]:
        """Sorted ids of the candidates of each query by composite index (for tests)."""
        engine = self._fitted()
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


def _first(found: Neighbors) -> Neighbors:
    """Answer of the only query of a batch."""
    return Neighbors(found.distances[0], found.indices[0])


def _check_directions(directions: str | FloatArray, points: FloatArray) -> None:
    if not isinstance(directions, str) and directions.shape[1] != points.shape[1]:
        raise InvalidValueError(
            f"directions: expected rows of X's {points.shape[1]} coordinates, received shape {directions.shape}"
        )


def knn(X: npt.ArrayLike, k: int = 10, **options: Any) -> Neighbors:
    """Find the k nearest neighbours of every row of X among the other rows.

    Parameters
    ----------
    X : (n, d) array of numbers
    k : int
    **options
        Those of `DCI`.

    Returns
    -------
    Neighbors
        `distances` and `indices`, (n, k) each; row i never holds i itself.
    """
    k = check.check_k(k)
    index = DCI(**options)
    index.fit(X)
    engine = index._fitted()
    n = len(engine.X)
    threads = check.check_num_threads(index.num_threads)
    own = np.arange(n, dtype=np.int32)
    request = Request(engine.X, engine.exact.absmax, k, engine.params.recall, exclude=own)
    with Work(threads, n, "query", "queries", bool(index.verbose) and n >= _LARGE) as work:
        return answer(engine, request, work)


def exact(
    X: npt.ArrayLike,
    Q: npt.ArrayLike,
    k: int = 10,
    metric: str = "l2",
    num_threads: int | None = None,
) -> Neighbors:
    """Exact k-nearest-neighbour search without an index.

    Parameters
    ----------
    X : (n, d) array of numbers
    Q : (nq, d) or (d,) array of numbers
    k : int
    metric : {"l2", "ip", "cosine"}, or {"euclidean", "inner_product"}
    num_threads : int, optional

    Returns
    -------
    Neighbors

    Notes
    -----
    Scores are float32 in blocks; answers that fail the rounding-error check are computed in float64.
    O(nq * n * d) time, under 150 MB on top of the arguments.

    Examples
    --------
    >>> import dci
    >>> dci.exact([[0.0, 0.0], [3.0, 4.0]], [0.0, 0.0], k=2).distances
    array([0., 5.], dtype=float32)
    """
    points, absmax = check.as_points(X, "X")
    queries, q_absmax, single = check.as_queries(Q, points.shape[1], "Q")
    k = check.check_k(k)
    exact_search = ExactSearch(points, absmax, check.check_metric(metric))
    with Work(check.check_num_threads(num_threads)) as work:
        found = Neighbors(*exact_search.search(queries, q_absmax, k, work))
    return _first(found) if single else found
