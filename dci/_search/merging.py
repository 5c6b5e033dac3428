"""Several answers to the same queries, about different points, as one."""

from collections.abc import Sequence

import numpy as np

from .._api.answers import Neighbors, RadiusNeighbors
from .._runtime.types import FloatArray, IndexArray

_LAST = np.iinfo(np.int64).max


def merge(answers: Sequence[Neighbors], k: int, *, descending: bool) -> Neighbors:
    """Return the k best of answers of (nq, any) each: by distance, then by id, what is padding last."""
    distances = np.concatenate([answer.distances for answer in answers], axis=1)
    indices = np.concatenate([answer.indices for answer in answers], axis=1)
    missing = k - distances.shape[1]
    if missing > 0:
        worst = -np.inf if descending else np.inf
        distances = np.pad(distances, ((0, 0), (0, missing)), constant_values=worst)
        indices = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    keys = -distances if descending else distances
    order = np.argsort(keys, axis=1, kind="stable")[:, : k + 1]
    first = np.take_along_axis(keys, order, 1)
    tied = np.flatnonzero((first[:, 1:] == first[:, :-1]).any(axis=1))  # few: sorting by both keys takes twice as long
    order = order[:, :k]
    if len(tied):
        order[tied] = np.lexsort((_ranks(distances[tied], indices[tied]), keys[tied]), axis=1)[:, :k]
    return Neighbors(np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1))


def merge_radius(answers: Sequence[RadiusNeighbors], most: int | None, *, descending: bool) -> RadiusNeighbors:
    """Return all of these neighbours, or of a query the `most` best: by distance, then by id."""
    query, indices = _pairs(answers)
    distances = np.concatenate([answer.distances for answer in answers])
    order = np.lexsort((indices, -distances if descending else distances, query))
    counts = np.bincount(query, minlength=len(answers[0].offsets) - 1)
    if most is not None:
        place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, counts = order[place < most], np.minimum(counts, most)
    return RadiusNeighbors(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), distances[order], indices[order])


def repeated(indices: IndexArray) -> int | None:
    """Return an id that a query has twice, None if there is none; padding does not count."""
    ordered = np.sort(indices, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -1)
    return int(ordered[:, 1:][twice][0]) if twice.any() else None


def repeated_within(answers: Sequence[RadiusNeighbors]) -> int | None:
    """Return an id that a query has in two answers, None if there is none."""
    query, indices = _pairs(answers)
    order = np.lexsort((indices, query))
    query, indices = query[order], indices[order]
    twice = (query[1:] == query[:-1]) & (indices[1:] == indices[:-1])
    return int(indices[1:][twice][0]) if twice.any() else None


def _pairs(answers: Sequence[RadiusNeighbors]) -> tuple[IndexArray, IndexArray]:
    """Query and id of every neighbour."""
    query = [np.repeat(np.arange(len(answer.offsets) - 1), np.diff(answer.offsets)) for answer in answers]
    return np.concatenate(query), np.concatenate([answer.indices for answer in answers])


def _ranks(distances: FloatArray, indices: IndexArray) -> IndexArray:
    """Ids as ties go by them: padding, which has as bad a distance as a point beyond float32, comes last."""
    return np.where((indices == -1) & np.isinf(distances), _LAST, indices)
