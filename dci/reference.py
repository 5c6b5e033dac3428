"""Prioritized DCI as published and exact search, in plain NumPy: for study and as the tests' oracle.

Slow on purpose. Points are coerced as everywhere in the package, so the oracle and the engine see
the same float32 numbers; all arithmetic is float64.

Source: Li & Malik, "Fast k-Nearest Neighbour Search via Prioritized DCI", ICML 2017
(https://arxiv.org/abs/1703.00440), Algorithms 1 and 2.
"""

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ._api.validation import (
    as_points,
    as_queries,
    check_budget,
    check_count,
    check_k,
    check_metric,
    check_random_state,
)
from ._runtime.types import DoubleArray, IndexArray
from .errors import InvalidValueError, NotFittedError


class PrioritizedDCI:
    """Prioritized Dynamic Continuous Indexing, step by step.

    L composite indices hold m simple indices each; a simple index is the list of all points sorted
    by their projection on one direction. For every composite index, a priority queue holds the next
    nearest point, in projection, of each of its simple indices. The nearest of those is visited; a
    point that all m simple indices have visited becomes a candidate. Euclidean distance only.

    Parameters
    ----------
    n_composite : int
        L, the number of composite indices.
    n_simple : int
        m, the number of simple indices in each.
    directions : array-like of shape (L * m, d), optional
        Row ``l * m + j`` is the direction of simple index j of composite index l. Used as given. By
        default, Gaussian vectors scaled to unit length.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the default directions.

    Examples
    --------
    >>> import numpy as np
    >>> from dci.reference import PrioritizedDCI
    >>> X = np.random.default_rng(0).normal(size=(200, 8))
    >>> index = PrioritizedDCI(n_composite=3, n_simple=4, random_state=0).fit(X)
    >>> distances, indices = index.query(X[7], k=3)
    >>> int(indices[0]), float(distances[0])
    (7, 0.0)

    Budgets bound the candidates (k0) and the visits (k1) of each composite index:

    >>> [len(ids) for ids in index.candidates(X[7], max_candidates=5)]
    [5, 5, 5]
    >>> [len(ids) for ids in index.candidates(X[7], max_visits=4)]
    [1, 1, 1]
    """

    def __init__(
        self,
        n_composite: int = 2,
        n_simple: int = 10,
        directions: npt.ArrayLike | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_composite = n_composite
        self.n_simple = n_simple
        self.directions = directions
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike) -> "PrioritizedDCI":
        """Construct the simple indices (Algorithm 1).

        Parameters
        ----------
        X : array-like of shape (n, d)

        Returns
        -------
        self : PrioritizedDCI
        """
        n_lists = check_count(self.n_composite, "n_composite") * check_count(self.n_simple, "n_simple")
        points = as_points(X)[0].astype(np.float64)
        dim = points.shape[1]
        if self.directions is None:
            directions = check_random_state(self.random_state).standard_normal((n_lists, dim))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        else:
            directions = as_points(self.directions, "directions", dim or None)[0].astype(np.float64)
            if len(directions) != n_lists:
                raise InvalidValueError(
                    f"directions: expected n_composite * n_simple = {n_lists} rows, received shape {directions.shape}"
                )
        self.points_ = points
        self.directions_ = directions
        projections = directions @ points.T
        self._order = np.argsort(projections, axis=1, kind="stable").astype(np.int64)
        self._keys = np.take_along_axis(projections, self._order, axis=1)
        return self

    def candidates(
        self,
        q: npt.ArrayLike,
        max_candidates: int | float | None = None,
        max_visits: int | float | None = None,
    ) -> list[IndexArray]:
        """Visit points in order of priority (Algorithm 2 up to the re-ranking).

        Parameters
        ----------
        q : array-like of shape (d,)
            One query.
        max_candidates : int, float or None
            k0, candidates after which a composite index stops: a count or a share of n.
        max_visits : int, float or None
            k1, visits after which a composite index stops: a count or a share of n * m.

        Returns
        -------
        candidates : list of L arrays of int64
            Ids in the order in which they became candidates of each composite index, which is
            ascending in their largest projected distance over the m directions.
        """
        return self._candidates(self._one_query(q), max_candidates, max_visits)

    def query(
        self,
        q: npt.ArrayLike,
        k: int = 10,
        max_candidates: int | float | None = None,
        max_visits: int | float | None = None,
    ) -> tuple[DoubleArray, IndexArray]:
        """Find the k candidates nearest to one query (Algorithm 2).

        Parameters
        ----------
        q : array-like of shape (d,)
        k : int
        max_candidates, max_visits
            See `candidates`.

        Returns
        -------
        distances : ndarray of shape (k,), float64
            Euclidean distances, ascending, ties by index; inf where there are no more candidates.
        indices : ndarray of shape (k,), int64
            Ids of the points, -1 where there are no more candidates.
        """
        query = self._one_query(q)
        k = check_k(k)
        candidates = self._candidates(query, max_candidates, max_visits)
        union = np.unique(np.concatenate(candidates))
        return _nearest(_distances(self.points_[union], query, "l2"), union, k)

    def _one_query(self, q: npt.ArrayLike) -> DoubleArray:
        if not hasattr(self, "points_"):
            raise NotFittedError("PrioritizedDCI: expected fit(X) before a query")
        queries, _, single = as_queries(q, self.points_.shape[1], "q")
        if not single:
            raise InvalidValueError(f"q: expected one query, a 1-D array, received {np.shape(q)}")
        query: DoubleArray = queries[0].astype(np.float64)
        return query

    def _candidates(
        self,
        query: DoubleArray,
        max_candidates: int | float | None,
        max_visits: int | float | None,
    ) -> list[IndexArray]:
        n, m = len(self.points_), self.n_simple
        k0 = check_budget(max_candidates, n, "max_candidates")
        k1 = check_budget(max_visits, n * m, "max_visits")
        if n == 0:
            return [np.empty(0, dtype=np.int64)] * self.n_composite
        k0 = n if k0 is None else k0
        k1 = n * m if k1 is None else k1
        projected = self.directions_ @ query
        composites = [range(first, first + m) for first in range(0, len(projected), m)]
        return [self._visit(lists, projected, k0, k1) for lists in composites]

    def _visit(self, lists: range, projected: DoubleArray, k0: int, k1: int) -> IndexArray:
        """Candidates of the composite index made of simple indices `lists`."""
        walks = {j: self._walk(j, projected[j]) for j in lists}
        queue = [(*next(walk), j) for j, walk in walks.items()]
        heapq.heapify(queue)
        counters = np.zeros(len(self.points_), dtype=np.int64)
        candidates: list[int] = []
        visits = 0
        while queue and visits < k1 and len(candidates) < k0:
            _, point, j = heapq.heappop(queue)
            following = next(walks[j], None)
            if following:
                heapq.heappush(queue, (*following, j))
            visits += 1
            counters[point] += 1
            if counters[point] == len(lists):
                candidates.append(point)
        return np.array(candidates, dtype=np.int64)

    def _walk(self, j: int, at: float) -> Iterator[tuple[float, int]]:
        """Yield (projected distance, id) of simple index j outward from position `at`."""
        keys, order = self._keys[j], self._order[j]
        right = int(np.searchsorted(keys, at))
        left = right - 1
        while left >= 0 or right < len(keys):
            below = at - keys[left] if left >= 0 else np.inf
            above = keys[right] - at if right < len(keys) else np.inf
            if below <= above:
                yield float(below), int(order[left])
                left -= 1
            else:
                yield float(above), int(order[right])
                right += 1


def exact_search(X: npt.ArrayLike, Q: npt.ArrayLike, k: int, metric: str = "l2") -> tuple[DoubleArray, IndexArray]:
    """Find the k nearest points of every query by computing every distance.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Points.
    Q : array-like of shape (nq, d) or (d,)
        Queries.
    k : int
        Neighbours a query.
    metric : {"l2", "ip", "cosine"}, or {"euclidean", "inner_product"}
        Euclidean distances ascending, inner products descending, or cosine distances (1 - cosine)
        ascending. Under cosine, a zero vector is at distance 1 from everything, itself included.

    Returns
    -------
    distances : ndarray of shape (nq, k) or (k,), float64
        Padded with inf (-inf for ``"ip"``) beyond n.
    indices : ndarray of shape (nq, k) or (k,), int64
        Ties by index; padded with -1.

    Examples
    --------
    >>> from dci.reference import exact_search
    >>> distances, indices = exact_search([[0, 0], [3, 4], [0, 1]], [0, 0], k=4)
    >>> distances, indices
    (array([ 0.,  1.,  5., inf]), array([ 0,  2,  1, -1]))
    """
    points = as_points(X)[0].astype(np.float64)
    queries, _, single = as_queries(Q, points.shape[1])
    k = check_k(k)
    metric = check_metric(metric)

    distances = np.empty((len(queries), k), dtype=np.float64)
    indices = np.empty((len(queries), k), dtype=np.int64)
    ids = np.arange(len(points), dtype=np.int64)
    sign = -1.0 if metric == "ip" else 1.0
    for row, query in enumerate(queries.astype(np.float64)):
        keys = sign * _distances(points, query, metric)
        nearest, indices[row] = _nearest(keys, ids, k)
        distances[row] = sign * nearest
    return (distances[0], indices[0]) if single else (distances, indices)


def _distances(points: DoubleArray, query: DoubleArray, metric: str) -> DoubleArray:
    """Distances (inner products for ``"ip"``) of shape (n,) from one query of shape (d,).

    Sums run over rows, not through BLAS, so that equal points get equal distances and tie.
    """
    if len(points) == 0:  # of any dimension, see `as_queries`
        return np.empty(0)
    if metric == "l2":
        squares: DoubleArray = ((points - query) ** 2).sum(axis=1)
        distances: DoubleArray = np.sqrt(squares)
        return distances
    products: DoubleArray = (points * query).sum(axis=1)
    if metric == "ip":
        return products
    norms = np.sqrt((points**2).sum(axis=1)) * np.sqrt((query**2).sum())
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    cosine_distances: DoubleArray = 1.0 - np.clip(cosines, -1.0, 1.0)
    return cosine_distances


def _nearest(keys: DoubleArray, ids: IndexArray, k: int) -> tuple[DoubleArray, IndexArray]:
    """Return the k smallest keys and their ids, ties by id (`ids` ascends), padded by inf and -1."""
    order = np.argsort(keys, kind="stable")[:k]
    distances = np.full(k, np.inf)
    indices = np.full(k, -1, dtype=np.int64)
    distances[: len(order)] = keys[order]
    indices[: len(order)] = ids[order]
    return distances, indices
