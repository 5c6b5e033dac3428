"""Searches without an index that is kept, and answers of several indexes as one."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ._api import validation as check
from ._api.answers import Neighbors, RadiusNeighbors, Request
from ._runtime.threads import Work
from ._search import merging
from ._search.dispatch import answer
from ._search.exact import ExactSearch
from .errors import InvalidTypeError, InvalidValueError
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


@overload
def merge(answers: Sequence[Neighbors], k: int, metric: str = "l2") -> Neighbors: ...
@overload
def merge(answers: Sequence[RadiusNeighbors], k: int | None = None, metric: str = "l2") -> RadiusNeighbors: ...
def merge(
    answers: Sequence[Neighbors] | Sequence[RadiusNeighbors], k: int | None = None, metric: str = "l2"
) -> Neighbors | RadiusNeighbors:
    """Merge what several indexes of different points answered to the same queries.

    Parameters
    ----------
    answers : sequence of Neighbors, (nq, any) or (any,) each, or of RadiusNeighbors
        At least one. Their ids are those of one common numbering: where each index counts from 0, add where its
        points start first.
    k : int, optional
        Neighbours of a query; where there are fewer, the rest is id -1 at an infinite distance. None, which only
        answers within a radius allow, keeps all.
    metric : {"l2", "ip", "cosine"}, or {"euclidean", "inner_product"}
        Of the indexes: the largest inner products are the best.

    Returns
    -------
    Neighbors or RadiusNeighbors
        By distance, equal ones by id: the order of the answers has no part in it. Exact where all answers are exact and
        have k neighbours, or all that their index has.

    Raises
    ------
    InvalidValueError
        No answers, of different numbers of queries, or a point in two of them.
    InvalidTypeError
        Something else than answers, or of both kinds.

    Notes
    -----
    O(nq * m log m) time for m neighbours of a query in all answers. Merging some answers first, and then the merged
    ones, gives the same.

    Examples
    --------
    >>> import numpy as np
    >>> import dci
    >>> X = np.arange(6.0).reshape(6, 1)
    >>> left, right = dci.exact(X[:3], [2.6], k=2), dci.exact(X[3:], [2.6], k=2)
    >>> right = dci.Neighbors(right.distances, right.indices + 3)
    >>> dci.merge([left, right], k=3).indices
    array([3, 2, 4])
    """
    descending = check.check_metric(metric) == "ip"
    if not answers:
        raise InvalidValueError("answers: expected at least one, received none")
    nearest = [answer for answer in answers if isinstance(answer, Neighbors)]
    within = [answer for answer in answers if isinstance(answer, RadiusNeighbors)]
    if len(within) == len(answers):
        if len({len(answer.offsets) for answer in within}) > 1:
            raise InvalidValueError(
                "answers: expected the same number of queries in each, received "
                f"{[len(answer.offsets) - 1 for answer in within]}"
            )
        twice = merging.repeated_within(within)
        if twice is not None:
            raise InvalidValueError(f"answers: expected different points in each, received id {twice} in two of them")
        return merging.merge_radius(within, None if k is None else check.check_k(k), descending=descending)
    if len(nearest) < len(answers):
        names = sorted({type(answer).__name__ for answer in answers})
        raise InvalidTypeError(f"answers: expected all to be Neighbors, or all RadiusNeighbors, received {names}")
    shapes = [np.shape(part) for answer in nearest for part in answer]
    single = len(shapes[0]) == 1
    if any(len(shape) != 2 - single or shape[:-1] != shapes[0][:-1] for shape in shapes) or shapes[::2] != shapes[1::2]:
        raise InvalidValueError(
            f"answers: expected (nq, any) for the same nq, or (any,), in each, received shapes {shapes}"
        )
    parts = [
        Neighbors(np.atleast_2d(np.asarray(a.distances, np.float32)), np.atleast_2d(np.asarray(a.indices, np.int64)))
        for a in nearest
    ]
    found = merging.merge(parts, check.check_k(k), descending=descending)
    twice = merging.repeated(found.indices)
    if twice is not None:
        raise InvalidValueError(f"answers: expected different points in each, received id {twice} in two of them")
    return found.first if single else found
