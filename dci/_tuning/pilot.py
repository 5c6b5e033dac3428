"""The number of directions, from a sample of the points and a few queries with known neighbours."""

from collections.abc import Iterator

import numpy as np

from .._geometry.metric import MetricEmbedding
from .._native.cell_search import count_below
from .._native.rows import multiply, prepared
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IndexArray
from .cost_model import build_cost, ranked_cost
from .engine import MAX_K, ORDINARY_K, Engine

# To measure anew: `python -m comparisons run --suite construction,knn`; noise shows what is given up, and when.
_QUERIES = 16, 64  # a few first: where ranking is far from paying, they tell
_FAR_FROM_PAYING = 1.1  # times the most that it may cost
_POINTS = 4096  # sampled
_STEPS = (8, 12, 16, 24, 32, 48)  # numbers of directions that are compared
_QUERY_COUNT = 10_000  # over so many queries the cost of building is spread


def choose_n_simple(
    engine: Engine,
    embedding: MetricEmbedding,
    for_points: FloatArray,
    for_queries: FloatArray,
    n_cells: int,
    rng: np.random.Generator,
    work: Work,
) -> int | None:
    """Choose the number of directions with the least estimated cost, None if none pays.

    A sample of the points stands for all: a true neighbour with s of S sampled points before it has
    a rank of about s * n / S.

    Parameters
    ----------
    engine : Engine
        With its held-out queries; the neighbours found of them, and the reason if none pays, are left there.
    for_points, for_queries : (width, most) float32
        Directions, best first.
    """
    n, dim = engine.X.shape
    recall = engine.params.recall
    rows = embedding.queries(engine.held_out, engine.held_out_absmax)
    k = min(ORDINARY_K, engine.most_neighbours)
    ids = np.sort(rng.choice(n, min(n, _POINTS), replace=False)).astype(np.int32)
    far = multiply(prepared(embedding.points, ids), for_points)
    goal = recall + 0.25 * (1.0 - recall)  # cells miss some of the others
    for some, slack in zip(_QUERIES, (_FAR_FROM_PAYING, 1.0), strict=True):
        count = min(some, len(engine.held_out))
        q = multiply(prepared(rows, np.arange(count)), for_queries)
        engine.known = engine.neighbours(min(MAX_K, engine.most_neighbours), work, count)
        near_ids = engine.known[:, :k].astype(np.int32)
        near = multiply(prepared(embedding.points, near_ids.ravel()), for_points)
        ranks = _ranks(q, near.reshape(*near_ids.shape, -1), far, embedding.product)
        best, best_cost = None, np.inf
        for m, before in ranks:
            # Half a step more: ranks below the sample's resolution are all the same to it.
            rank = (np.quantile(before, goal) + 0.5) * n / len(ids)
            candidates = rank + ORDINARY_K
            cost = ranked_cost(max(0.05 * n, 2 * candidates), candidates, m, dim, n_cells)
            cost += build_cost(n, dim, m, n_cells) / _QUERY_COUNT
            if cost < best_cost:
                best, best_cost = m, cost
        if best_cost > slack * engine.most_cost:
            engine.reason = "ranking was estimated not to pay"
            return None
    return best


def _ranks(queries: FloatArray, near: FloatArray, far: FloatArray, product: bool) -> Iterator[tuple[int, IndexArray]]:
    """For rising numbers of directions: how many of `far` come before each of a query's `near`, (queries, k)."""
    steps = [m for m in _STEPS if m < far.shape[1]] + [far.shape[1]]
    near_scores = np.zeros(near.shape[:2], np.float32)
    far_scores = np.zeros((len(queries), len(far)), np.float32)
    for last, m in zip([0, *steps], steps, strict=False):
        part = slice(last, m)  # the coordinates that this step adds to the scores
        near_scores -= (near[..., part] * (2.0 * queries[:, None, part])).sum(-1)
        far_scores -= multiply(2.0 * queries[:, part], far[:, part].T)
        if not product:
            near_scores += np.square(near[..., part]).sum(-1)
            far_scores += np.square(far[:, part]).sum(1)
        yield m, count_below(far_scores, near_scores)
