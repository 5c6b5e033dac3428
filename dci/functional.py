"""Searches without an index that is kept."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ._api import validation as check
from ._api.answers import Neighbors, Request
from ._runtime.threads import Work
from ._search.dispatch import answer
from ._search.exact import ExactSearch
from .index import DCI, LARGE


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
    points, absmax = check.as_points(X, "X")
    engine = index.fit(points)._fitted().engine
    n = len(points)
    threads = check.check_num_threads(index.num_threads)
    own = np.arange(n, dtype=np.int32)
    request = Request(points, absmax, k, engine.params.recall, exclude=own)
    with Work(threads, n, "query", "queries", bool(index.verbose) and n >= LARGE) as work:
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
    Scores are float32 in blocks; what their rounding leaves in doubt is settled in float64.
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
    return found.first if single else found
