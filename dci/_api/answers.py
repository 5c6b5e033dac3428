"""What goes down to a search and what comes back from it."""

from dataclasses import dataclass, fields
from typing import NamedTuple

from .._runtime.types import FloatArray, IdArray, IndexArray
from .subset import Subset


@dataclass(frozen=True)
class Request:
    """A search whose arguments are validated.

    Attributes
    ----------
    queries : (nq, d) float32
    absmax : float
        Largest |q|.
    k : int
    recall : float
        Wanted where there is no explicit budget.
    max_visits, max_candidates : int, optional
        Explicit budget.
    allowed : Subset, optional
        Points that may be answers; all if not given.
    exclude : (nq,) int32, optional
        A point that is no answer to this query. Not together with `allowed`.
    """

    queries: FloatArray
    absmax: float
    k: int
    recall: float = 1.0
    max_visits: int | None = None
    max_candidates: int | None = None
    allowed: Subset | None = None
    exclude: IdArray | None = None

    def __len__(self) -> int:
        return len(self.queries)


class Neighbors(NamedTuple):
    """Answer of a search.

    Attributes
    ----------
    distances : (nq, k) or (k,) float32
        Best first: Euclidean or cosine distances ascending, inner products descending; infinity
        (minus infinity for inner products) where there are fewer than k points.
    indices : (nq, k) or (k,) int64
        Ids of the points, for a fitted array its rows; -1 where there are fewer than k points.
    """

    distances: FloatArray
    indices: IndexArray

    @property
    def first(self) -> "Neighbors":
        """Answer of the first query alone, (k,) each."""
        return Neighbors(self.distances[0], self.indices[0])


class RadiusNeighbors(NamedTuple):
    """All points within a radius of each query.

    Attributes
    ----------
    offsets : (nq + 1,) int64
        The neighbours of query i are at offsets[i] : offsets[i + 1] of the other two.
    distances : (total,) float32
        Best first for each query.
    indices : (total,) int64
        Ids of the points.
    """

    offsets: IndexArray
    distances: FloatArray
    indices: IndexArray


@dataclass(frozen=True, repr=False)
class IndexStats:
    """What was chosen and measured while fitting; None where it does not apply.

    Attributes
    ----------
    n_points, dim : int
    metric : {"l2", "ip", "cosine"}
    method : {"exact", "ranked"}
    reason : str or None
        Why search is exact.
    directions : {"random", "principal", "query", "array"} or None
    ranking : {"max", "sum"} or None
    n_composite, n_simple, n_levels : int or None
    n_cells : int or None
        Cells of points, 0 with one level.
    held_out : int or None
        Queries that calibrate the budgets.
    max_visits, max_candidates : int or None
        Budget of a query for 10 neighbours at the recall of the index.
    recall_at_10 : float or None
        Recall of the held-out queries with this budget.
    store : {"float32", "float16", "int8"}
    exact_recall_at_10 : float or None
        Share of 10 true neighbours of the held-out queries that exact search finds, where points are not kept as
        float32: more cannot be reached.
    """

    n_points: int
    dim: int
    metric: str
    method: str
    reason: str | None = None
    directions: str | None = None
    ranking: str | None = None
    n_composite: int | None = None
    n_simple: int | None = None
    n_levels: int | None = None
    n_cells: int | None = None
    held_out: int | None = None
    max_visits: int | None = None
    max_candidates: int | None = None
    recall_at_10: float | None = None
    store: str = "float32"
    exact_recall_at_10: float | None = None

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return f"IndexStats({', '.join(f'{name}={value!r}' for name, value in values if value is not None)})"
