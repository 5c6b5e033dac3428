"""The number of directions, from a sample of the points and a few queries with known neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .._geometry.directions import principal_directions
from .._geometry.metric import MetricEmbedding
from .._native.cell_search import count_below
from .._native.kernels import LANES
from .._native.rows import multiply, prepared
from .._runtime.threads import Work, even_blocks
from .._runtime.types import FloatArray, IdArray, IndexArray
from .._search.bounded import BoundedSearch, Bounds, bounds_of
from .cost_model import build_cost, exact_cost, ranked_cost, rescore_cost, selection_cost
from .engine import MAX_K, ORDINARY_K, Engine

# To measure anew: `python -m comparisons run --suite construction,knn`; noise shows what is given up, and when.
_QUERIES = 16, 64  # a few first: where ranking is far from paying, they tell
_FAR_FROM_PAYING = 1.1  # times the most that it may cost
_MUCH_FASTER = 0.6  # share of the time of exact search that search by bounds may take
_POINTS = 4096  # sampled
_AT_ONCE = 512  # points whose rows are still in a cache when they are projected
_ROUGH_ROWS, _ROUGH_POINTS = 512, 1024  # that a first look is satisfied with
_HOPELESS = 1.8  # times the most that ranking may cost, in this first look, which finds it up to 2.3 times as expensive
_REASON = "ranking was estimated not to pay"
_STEPS = (8, 12, 16, 24, 32, 40, 48, 64)  # numbers of directions that are compared
_QUERY_COUNT = 10_000  # over so many queries the cost of building is spread


def choose_n_simple(
    engine: Engine,
    embedding: MetricEmbedding,
    for_points: FloatArray,
    for_queries: FloatArray,
    n_cells: int,
    rng: np.random.Generator,
    work: Work,
) -> tuple[int, FloatArray | None] | None:
    """Choose the number of directions with the least estimated cost, None if none pays.

    Also returns the coordinates of all points along the first directions, if they were needed.

    A sample of the points stands for all: a true neighbour with s of S sampled points before it has
    a rank of about s * n / S.

    Parameters
    ----------
    engine : Engine
        With its held-out queries; the neighbours found of them, and the reason if none pays, are left there.
    for_points, for_queries : (width, most) float32
        Directions, best first.
    """
    n = len(engine.X)
    ids = np.sort(rng.choice(n, min(n, _POINTS), replace=False)).astype(np.int32)
    sample = _Sample.of(embedding, ids, for_points, work)
    coordinates = None
    bounds = None
    if not embedding.product and len(engine.known) == 0:  # else bounds were of no use in the rough look
        bounds = _bounds(engine, embedding, sample, for_points)
    if bounds is not None:
        search = BoundedSearch(engine.exact, embedding, bounds)
        held_out, k = (engine.held_out, engine.held_out_absmax), min(MAX_K, engine.most_neighbours)
        engine.known = search.search(*held_out, k, work.silent(), engine.held_out_ids)
        coordinates = search.coordinates
    best = 0
    for count, slack in zip(_QUERIES, (_FAR_FROM_PAYING, 1.0), strict=True):
        if count == _QUERIES[-1]:
            k = min(MAX_K, engine.most_neighbours)
            engine.known = engine.neighbours(k, work)  # of all of them at once: points are read once for that
        best, cost = _cheapest(engine, embedding, sample, (for_points, for_queries), count, n_cells, work)
        if cost > slack * engine.most_cost:
            engine.reason = _REASON
            return None
    return best, coordinates


class RoughLook(NamedTuple):
    """What a look by a few rows found.

    Attributes
    ----------
    directions : (width, count) float32
        To begin with.
    wants_more : bool
        The more of them the better.
    """

    directions: FloatArray
    wants_more: bool


def look_roughly(
    engine: Engine, embedding: MetricEmbedding, rows: FloatArray, count: int, n_cells: int, work: Work
) -> RoughLook | None:
    """Find out soon where ranking by principal directions is far from paying: by a few rows, points and queries.

    Parameters
    ----------
    engine : Engine
        As `choose_n_simple` takes it.
    rows : (s, width) float32
        Points to fit directions to.
    count : int
        Directions that are chosen among.

    Returns
    -------
    RoughLook
        None if ranking is not worth more time.
    """
    n = len(engine.X)
    some = rows[:: max(1, len(rows) // _ROUGH_ROWS)]
    directions = principal_directions(some, count, np.random.default_rng(0), work, rounds=1)
    ids = np.linspace(0, n - 1, min(n, _ROUGH_POINTS)).astype(np.int32)
    sample = _Sample.of(embedding, ids, directions, work)
    if not embedding.product and _bounds(engine, embedding, sample, directions) is not None:
        return RoughLook(directions, False)  # the neighbours take longer to find this way
    pair = directions, directions
    best, cost = _cheapest(engine, embedding, sample, pair, _QUERIES[0], n_cells, work)
    if cost > _HOPELESS * engine.most_cost:
        engine.reason = _REASON
        return None
    return RoughLook(directions, best == count)


class _Sample(NamedTuple):
    """Some points: their rows, (s, width) float32, and their coordinates along directions, (s, most) float32."""

    rows: FloatArray
    coordinates: FloatArray

    @classmethod
    def of(cls, embedding: MetricEmbedding, ids: IdArray, directions: FloatArray, work: Work) -> "_Sample":
        sample = cls(
            np.empty((len(ids), embedding.width), np.float32), np.empty((len(ids), directions.shape[1]), np.float32)
        )

        def take(block: tuple[int, int]) -> None:
            part = slice(*block)
            sample.rows[part] = prepared(embedding.points, ids[part])
            sample.coordinates[part] = multiply(sample.rows[part], directions)

        work.run(take, even_blocks(len(ids), _AT_ONCE, work.num_threads))
        return sample


def _cheapest(
    engine: Engine,
    embedding: MetricEmbedding,
    sample: _Sample,
    directions: tuple[FloatArray, FloatArray],
    some: int,
    n_cells: int,
    work: Work,
) -> tuple[int, float]:
    """Find the number of directions with the least estimated cost for the first `some` held-out queries."""
    n, dim = engine.X.shape
    recall, k = engine.params.recall, min(ORDINARY_K, engine.most_neighbours)
    for_points, for_queries = directions
    count = min(some, len(engine.held_out))
    rows = embedding.queries(engine.held_out, engine.held_out_absmax)
    q = multiply(prepared(rows, np.arange(count)), for_queries)
    engine.known = engine.neighbours(min(MAX_K, engine.most_neighbours), work, count)
    near_ids = engine.known[:count, :k].astype(np.int32)
    near = multiply(prepared(embedding.points, near_ids.ravel()), for_points)
    ranks = _ranks(q, near.reshape(*near_ids.shape, -1), sample.coordinates, embedding.product)
    goal = recall + 0.25 * (1.0 - recall)  # cells miss some of the others
    best, best_cost = 0, np.inf
    for m, before in ranks:
        # Half a step more: ranks below the sample's resolution are all the same to it.
        rank = (np.quantile(before, goal) + 0.5) * n / len(sample.rows)
        candidates = rank + ORDINARY_K
        cost = ranked_cost(max(0.05 * n, 2 * candidates), candidates, m, dim, n_cells)
        cost += build_cost(n, dim, m, n_cells) / _QUERY_COUNT
        if cost < best_cost:
            best, best_cost = m, cost
    return best, best_cost


def _bounds(engine: Engine, embedding: MetricEmbedding, sample: _Sample, directions: FloatArray) -> Bounds | None:
    """Choose what neighbours of the held-out queries are found by, None where comparing all coordinates is as fast."""
    n, dim = engine.X.shape
    count, k = len(engine.held_out), min(MAX_K, engine.most_neighbours)
    best, best_cost = None, _MUCH_FASTER * count * exact_cost(n, dim)
    if count * exact_cost(n, LANES) >= best_cost:
        return None
    some = np.arange(min(_QUERIES[0], count))
    queries = prepared(embedding.queries(engine.held_out, engine.held_out_absmax), some)
    for bounds, candidates in bounds_of(sample, (queries, multiply(queries, directions)), directions, n, k):
        m = bounds.directions.shape[1]
        each = exact_cost(n, m) + selection_cost(bounds.keep) + rescore_cost(k + candidates, dim)
        cost = build_cost(n, dim, m, 0) / 2 + count * each
        if cost < best_cost and BoundedSearch.is_for(engine.exact, embedding, count, bounds):
            best, best_cost = bounds, cost
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
