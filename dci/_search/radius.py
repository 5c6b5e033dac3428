"""All points within a radius: the nearest ones, more and more of them until one is farther."""

from collections.abc import Callable

import numpy as np

from .._api.answers import Neighbors, RadiusNeighbors
from .._runtime.types import FloatArray

_FIRST, _FACTOR = 32, 4  # neighbours that are asked for at first, and how many times as many for queries with more
_NUMBERS = 1 << 22  # of an answer at once, 48 MB


def within(
    search: Callable[[FloatArray, int], Neighbors],
    queries: FloatArray,
    radius: FloatArray,
    most: int,
    *,
    descending: bool,
) -> RadiusNeighbors:
    """Collect the neighbours of each query within its radius.

    Parameters
    ----------
    search : callable
        From queries (b, d) and k to their k nearest, best first.
    queries : (nq, d) float32
    radius : (nq,) float32
        The largest distance; the smallest inner product if `descending`.
    most : int
        Of a query.
    descending : bool
    """
    found: list[tuple[FloatArray, np.ndarray]] = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
    left, k = np.arange(len(queries)), min(_FIRST, most)
    while len(left):
        unfinished = []
        for part in np.array_split(left, -(-len(left) * k // _NUMBERS)):
            answer = search(np.ascontiguousarray(queries[part]), k)
            edge = radius[part, None]
            inside = (answer.distances >= edge) if descending else (answer.distances <= edge)
            inside &= np.isfinite(answer.distances) | (answer.indices >= 0)
            counts = inside.sum(1)
            for i, row in enumerate(part):
                found[row] = answer.distances[i, : counts[i]], answer.indices[i, : counts[i]]
            unfinished.append(part[counts == k])
        if k == most:
            break
        left, k = np.concatenate(unfinished), min(_FACTOR * k, most)
    offsets = np.concatenate([[0], np.cumsum([len(distances) for distances, _ in found], dtype=np.int64)])
    if not found:
        return RadiusNeighbors(offsets, np.empty(0, np.float32), np.empty(0, np.int64))
    distances, indices = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return RadiusNeighbors(offsets, distances, indices)
