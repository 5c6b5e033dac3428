"""Fitting: whether to rank at all, and everything that was left "auto"."""

from dataclasses import replace
from typing import cast

import numpy as np

from .._api.params import Params
from .._geometry import directions as dirs
from .._geometry.metric import MetricEmbedding
from .._geometry.quantization import Matrix, coded_again
from .._native.codes import Codes
from .._native.rows import prepared
from .._runtime.threads import Work
from .._runtime.types import FloatArray
from .._search.exact import ExactSearch
from .._search.ranked import MOST_CELLS, Ranker, RankingPlan
from .._store.points import Points
from .cost_model import is_tiny, most_ranked_cost
from .engine import HELD_OUT, Engine
from .pilot import choose_n_simple, look_roughly

# To measure anew: `python -m comparisons run --suite sensitivity,construction`.
_CELLS = 1.5  # times as many cells as the papers: finer cells waste fewer visits
_SAMPLE = 2048  # rows that directions are fitted to
_MAX_SIMPLE = 64  # directions that are chosen among
_MORE_SIMPLE = 96  # the same, where the most of those look best and these are at most half of the coordinates


def build(
    X: Matrix,
    absmax: float,
    queries: tuple[FloatArray, float] | None,
    params: Params,
    rng: np.random.Generator,
    work: Work,
    kept: Points | None = None,
    calibrated: bool = True,
) -> Engine:
    """Fit to X: decide whether to rank, choose what is "auto", build and calibrate.

    Parameters
    ----------
    X : (n, d) float32, or Codes
    kept : Points, optional
        The same points as Codes, which take their place once there is a structure.
    calibrated : bool
        Measure the budget of an ordinary query now; else whoever asks first does, or who knows the other shards.
    """
    engine = _structure(X, absmax, queries, params, rng, work)
    if kept is not None or isinstance(X, Codes):
        engine = _coded(engine, kept, queries, rng, work)
    if engine.ranker is not None and calibrated:
        engine.settle(work)
    return engine


def _structure(
    X: Matrix,
    absmax: float,
    queries: tuple[FloatArray, float] | None,
    params: Params,
    rng: np.random.Generator,
    work: Work,
) -> Engine:
    n, dim = X.shape
    # An explicit structure is built even where exact search would be faster.
    most_cost = most_ranked_cost(n, dim) if params.all_auto else np.inf
    engine = Engine(ExactSearch(X, absmax, params.metric), params, most_cost)
    if params.all_auto:
        if params.recall == 1.0:
            engine.reason = "recall=1.0 asks for exact search"
        elif is_tiny(n, dim):
            engine.reason = "exact search of so few points is faster than any ranking"
        if engine.reason:
            return engine
    if n < 2:
        engine.reason = "fewer than two points"
        return engine
    if absmax == 0.0:
        engine.reason = "all points are zero"
        return engine

    _hold_out(engine, queries, rng)
    kind = params.directions
    if isinstance(kind, str) and kind == "auto":
        kind = "principal" if queries is None else "query"
    ranking = params.ranking
    if ranking == "auto":
        ranking = "max" if isinstance(kind, str) and kind == "random" else "sum"
    # Ranking by distances needs inner products as distances.
    lifted = params.metric == "ip" and (ranking == "max" or (isinstance(kind, str) and kind == "random"))
    embedding = MetricEmbedding(X, absmax, params.metric, lifted)
    chosen = _choose_plan(engine, embedding, queries, params, kind, ranking, rng, work)
    if chosen is None:
        return engine
    plan, coordinates = chosen
    engine.ranker = Ranker(embedding, plan, rng, work, coordinates)
    return engine


def _hold_out(engine: Engine, queries: tuple[FloatArray, float] | None, rng: np.random.Generator) -> None:
    """Choose the queries that are measured on."""
    n = len(engine.X)
    if queries is not None and len(queries[0]):
        chosen = rng.choice(len(queries[0]), min(HELD_OUT, len(queries[0])), replace=False)
        engine.held_out, engine.held_out_absmax = queries[0][chosen], queries[1]
    else:
        ids = np.sort(rng.choice(n, min(HELD_OUT, n), replace=False)).astype(np.int32)
        engine.held_out, engine.held_out_absmax, engine.held_out_ids = engine.X[ids], engine.exact.absmax, ids


def _coded(
    engine: Engine,
    kept: Points | None,
    queries: tuple[FloatArray, float] | None,
    rng: np.random.Generator,
    work: Work,
) -> Engine:
    """Put points as they are kept in the place of the true ones, and measure what is lost by that."""
    exact = of_other_codes(engine) if kept is None else ExactSearch(kept.rows, kept.absmax, engine.params.metric)
    if len(engine.X) >= 2:
        if len(engine.held_out) == 0:
            _hold_out(engine, queries, rng)
        engine.ceilings = engine.measure_ceilings(exact, work)
    if engine.ranker is None:  # nothing more is measured
        engine = replace(engine, held_out=np.empty((0, 0), np.float32), held_out_absmax=0.0, held_out_ids=None)
    if kept is None:
        return engine
    engine = replace(engine.on(kept.rows), exact=exact, known=np.empty((0, 0), np.int64))
    if engine.ranker is not None:
        engine.ranker.embedding.absmax = kept.absmax
    return engine


def of_other_codes(engine: Engine) -> ExactSearch:
    """Return a search that stands to exact search of the codes as that stands to exact search of the points themselves.

    These are gone: what it loses tells what was lost when they were coded.
    """
    rows = coded_again(cast(Codes, engine.X))
    return ExactSearch(rows, engine.exact.absmax, engine.params.metric)


def _choose_plan(
    engine: Engine,
    embedding: MetricEmbedding,
    queries: tuple[FloatArray, float] | None,
    params: Params,
    kind: str | FloatArray,
    ranking: str,
    rng: np.random.Generator,
    work: Work,
) -> tuple[RankingPlan, FloatArray | None] | None:
    """Everything that was left "auto", and coordinates of the points if there are some; None if ranking cannot pay."""
    n, width = len(engine.X), embedding.width
    n_cells = _n_cells(n, params.n_levels)
    if not isinstance(kind, str):
        n_composite = params.n_composite or 1
        matrix = np.zeros((width, len(kind)), np.float32)  # the coordinate of a lift, if any, stays 0
        matrix[: kind.shape[1]] = kind.T
        return RankingPlan(matrix, matrix, "array", n_composite, len(kind) // n_composite, ranking, n_cells), None
    n_composite = params.n_composite or (2 if ranking == "max" else 1)
    n_simple = params.n_simple
    if kind == "random":
        n_simple = n_simple or (10 if ranking == "max" else 32)
        matrix = dirs.random_directions(width, n_composite * n_simple, rng)
        return RankingPlan(matrix, matrix, kind, n_composite, n_simple, ranking, n_cells), None

    ids = np.sort(rng.choice(n, min(n, _SAMPLE), replace=False)).astype(np.int32)
    points = prepared(embedding.points, ids)
    count = min(width, params.n_simple * n_composite if params.n_simple else _MAX_SIMPLE)
    if kind == "query":
        Q, q_absmax = cast(tuple[FloatArray, float], queries)  # there are some, or fitting had refused
        some = np.sort(rng.choice(len(Q), min(len(Q), _SAMPLE), replace=False)).astype(np.int32)
        sample = prepared(embedding.queries(Q, q_absmax), some)
        if embedding.product:
            for_points, for_queries = dirs.product_directions(points, sample, count)
        else:
            for_points = for_queries = dirs.difference_directions(points, sample, count, rng, work)
    else:
        rough = None
        if n_simple is None:
            look = look_roughly(engine, embedding, points, count, n_cells, work)
            if look is None:
                return None
            rough = look.directions
            count = _MORE_SIMPLE if look.wants_more and width >= 2 * _MORE_SIMPLE else count
        for_points = for_queries = dirs.principal_directions(points, count, rng, work, rough)
    coordinates = None
    if n_simple is None:
        choice = choose_n_simple(engine, embedding, for_points, for_queries, n_cells, rng, work)
        if choice is None:
            return None
        n_simple, coordinates = choice
        if n_composite > 1 or (coordinates is not None and coordinates.shape[1] < n_simple):
            coordinates = None
    total = n_simple * n_composite
    missing = total - for_points.shape[1]
    if missing > 0:  # more directions than were fitted: the rest at random
        rest = dirs.random_directions(width, missing, rng)
        for_points = np.concatenate([for_points, rest], axis=1)
        for_queries = np.concatenate([for_queries, rest], axis=1)
    # Composite indices take turns, so that each has some of the best directions.
    order = np.arange(total).reshape(n_simple, n_composite).T.ravel()
    plan = RankingPlan(
        np.ascontiguousarray(for_points[:, order]),
        np.ascontiguousarray(for_queries[:, order]),
        kind, n_composite, n_simple, ranking, n_cells, quantized=n_cells > 0 and ranking == "sum",
    )  # fmt: skip
    return plan, coordinates


def _n_cells(n: int, n_levels: int | None) -> int:
    """Cells on the level above the points; the papers promote n^(1 - 1 / levels) of them."""
    if n_levels == 1:
        return 0
    levels = n_levels or 2
    return max(1, min(n, MOST_CELLS, round(_CELLS * float(n ** (1 - 1 / levels)))))
