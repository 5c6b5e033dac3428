"""Fitting: what to project on, how many coordinates, how far to look, and whether it pays at all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .._api.params import Params
from .._geometry import directions as dirs
from .._geometry.metric import Embedding
from .._native.cell_search import count_below
from .._native.rows import multiply, prepared
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IdArray
from .._search.exact import ExactSearch
from .._search.ranked import MOST_CELLS, Plan, Ranker
from .calibration import Budget, Calibration, calibrate, exact_cost, ranked_cost

_CELLS = 1.5  # times as many cells as the papers: finer cells waste fewer visits
_HELD_OUT = 256  # queries whose true neighbours calibrate the budgets
_MAX_K = 64  # neighbours of each that the first calibration knows
_MOST_K = 1024  # that any knows: with more of them a ranked query compares so many points that it hardly pays
_SAMPLE = 2048  # rows that directions are fitted to
# How far calibration follows the held-out queries: share of the points visited, candidates.
_EFFORTS = ((0.15, 512), (0.5, 512), (0.5, 4096), (1.0, 16384))
_PILOT_QUERIES = 16, 64  # a few first: where ranking is far from paying, they tell
_FAR_FROM_PAYING = 1.1  # times the most that it may cost
_PILOT_POINTS = 4096
_PILOT_K = 10
_PILOT_SIMPLE = (8, 12, 16, 24, 32, 48)
_PILOT_QUERY_COUNT = 10_000  # over so many queries the pilot spreads the cost of building
_MAX_SIMPLE = 64
_TINY_NS = 16_000.0  # below this cost of an exact query nothing is faster
_NS_MASK = 4.0  # of a call with a filter, for each point
_PAYS = 0.75  # of the exact cost that a ranked query may take, estimates being what they are


@dataclass
class Engine:
    """A fitted set of points: exact search, and the ranked structure where there is one.

    Attributes
    ----------
    most_cost
        What a ranked query may cost, in ns; above that exact search is the better way.
    held_out, held_out_absmax, held_out_ids
        Queries of the calibration, and their rows of X if they are points themselves.
    known : (some, k)
        True neighbours of the first held-out queries.
    calibrations
        By the number of neighbours they know, powers of two up to a limit, and their effort.
    stats
        What was chosen and measured while fitting.
    lock
        Of the calibrations.
    """

    exact: ExactSearch
    most_cost: float
    ranker: Ranker | None = None
    reason: str = ""
    held_out: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    held_out_absmax: float = 0.0
    held_out_ids: IdArray | None = None
    known: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    calibrations: dict[tuple[int, int], Calibration] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @property
    def X(self) -> FloatArray:  # noqa: N802 - the papers' matrix
        """The points, (n, d) float32."""
        return self.exact.X

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = Lock()
        if self.ranker is not None:
            self.ranker.embedding.attach(self.X)

    def most_neighbours(self) -> int:
        """Return how many a held-out query can have: not itself."""
        return len(self.X) - (self.held_out_ids is not None)

    def neighbours(self, k: int, work: Work, count: int = _HELD_OUT) -> np.ndarray:
        """Find the k true nearest neighbours of the first `count` held-out queries."""
        known = self.known[:, :k] if self.known.shape[1] >= k else np.empty((0, k), np.int64)
        rest = slice(len(known), count)
        own = None if self.held_out_ids is None else self.held_out_ids[rest]
        found = self.exact.search(self.held_out[rest], self.held_out_absmax, k, work.silent(), exclude=own)[1]
        return np.concatenate([known, found])

    def _calibrate(self, ranker: Ranker, truth: np.ndarray, effort: int, work: Work) -> Calibration:
        visits, candidates = self._generous(ranker, truth.shape[1], effort)
        return calibrate(
            ranker, self.held_out, self.held_out_absmax, truth, self.held_out_ids, work,
            visits, candidates,
        )  # fmt: skip

    def budget(
        self, k: int, recall: float, work: Work, n_queries: float = np.inf, n_allowed: int | None = None
    ) -> Budget | None:
        """Return the budget that reaches `recall` at k, None where exact search is the better way.

        What has not been calibrated yet is calibrated only if it can save these queries more time than it takes.

        Parameters
        ----------
        n_queries : int, or infinity where all queries to come may profit
        n_allowed : int, optional
            Points that may be answers; at least 1.
        """
        n, dim = self.X.shape
        if self.ranker is None or recall == 1.0:
            return None
        most_cost = self.most_cost
        if n_allowed is not None:
            # The k-th allowed point is about the (k / share)-th of all; and a mask in the order of the cells is made.
            k = -(-k * n // n_allowed)
            most_cost = min(most_cost, _PAYS * exact_cost(n_allowed, dim) - n * _NS_MASK / n_queries)
        if k > min(self.most_neighbours(), _MOST_K):
            return None
        if exact_cost(n, dim) < _TINY_NS:  # too few to save anything, or to calibrate on
            return Budget(n, n, 1.0) if n_allowed is None else None
        size = _MAX_K
        while size < k:
            size *= 2
        size = min(size, self.most_neighbours())
        least = k, k
        for effort in range(len(_EFFORTS)):
            saving = most_cost - self._cost(self.ranker, *least, n_allowed)
            if saving <= 0:
                return None
            with self.lock:
                calibration = self.calibrations.get((size, effort))
                if calibration is None:
                    if n_queries * saving < self._calibration_cost(self.ranker, size, effort):
                        return None
                    calibration = self._calibrate(self.ranker, self.neighbours(size, work), effort, work)
                    self.calibrations[size, effort] = calibration
                budget = calibration.budget(k, recall)
            if budget is not None:
                pays = self._cost(self.ranker, budget.visits, budget.candidates, n_allowed) < most_cost
                return budget if pays else None
            # What was tried is not enough; will more still be cheaper than exact search?
            least = calibration.least(k, recall, *self._generous(self.ranker, k, effort))
        return None

    def _generous(self, ranker: Ranker, k: int, effort: int) -> tuple[int, int]:
        """Visits and candidates of a calibration for k neighbours."""
        n = len(self.X)
        share, candidates = _EFFORTS[effort]
        visits = n if ranker.plan.n_cells == 0 else min(n, max(round(n * share), 64 * k))
        return visits, min(n, max(candidates, 16 * k))

    def _cost(self, ranker: Ranker, visits: int, candidates: int, n_allowed: int | None = None) -> float:
        """Estimated time of a ranked query, in ns."""
        n, dim = self.X.shape
        plan = ranker.plan
        # Visits count allowed points only, so that more cells are opened.
        every = visits if n_allowed is None else min(n, visits * n / n_allowed)
        return ranked_cost(every, candidates, plan.n_composite * plan.n_simple, dim, plan.n_cells)

    def _calibration_cost(self, ranker: Ranker, k: int, effort: int) -> float:
        """Estimated time of a calibration, in ns: exact answers and a generous search."""
        return self.held_out_size() * (
            exact_cost(*self.X.shape) + self._cost(ranker, *self._generous(ranker, k, effort))
        )

    def held_out_size(self) -> int:
        """Return the number of held-out queries."""
        return len(self.held_out)


def build(
    X: FloatArray,
    absmax: float,
    queries: tuple[FloatArray, float] | None,
    params: Params,
    rng: np.random.Generator,
    work: Work,
) -> Engine:
    """Fit to X: decide whether to rank, choose what is "auto", build and calibrate."""
    n, dim = X.shape
    # Who asks for a structure gets it, also where exact search would be faster.
    most_cost = _PAYS * exact_cost(n, dim) if params.all_auto else np.inf
    engine = Engine(ExactSearch(X, absmax, params.metric), most_cost)
    if params.all_auto:
        if params.recall == 1.0:
            engine.reason = "recall=1.0 asks for exact search"
        elif exact_cost(n, dim) < _TINY_NS:
            engine.reason = "exact search of so few points is faster than any ranking"
        if engine.reason:
            return engine
    if n < 2:
        engine.reason = "fewer than two points"
        return engine
    if absmax == 0.0:
        engine.reason = "all points are zero"
        return engine

    if queries is not None and len(queries[0]):
        chosen = rng.choice(len(queries[0]), min(_HELD_OUT, len(queries[0])), replace=False)
        engine.held_out, engine.held_out_absmax = queries[0][chosen], queries[1]
    else:
        ids = np.sort(rng.choice(n, min(_HELD_OUT, n), replace=False)).astype(np.int32)
        engine.held_out, engine.held_out_absmax, engine.held_out_ids = X[ids], absmax, ids
    kind = params.directions
    if isinstance(kind, str) and kind == "auto":
        kind = "principal" if queries is None else "query"
    ranking = params.ranking
    if ranking == "auto":
        ranking = "max" if isinstance(kind, str) and kind == "random" else "sum"
    # Projected distances mean something for inner products only where those are distances.
    lifted = params.metric == "ip" and (ranking == "max" or (isinstance(kind, str) and kind == "random"))
    embedding = Embedding(X, absmax, params.metric, lifted)
    plan = _choose_plan(engine, embedding, queries, params, kind, ranking, rng, work)
    if plan is None:
        return engine
    engine.ranker = Ranker(embedding, plan, rng, work)
    if params.all_auto:
        k = min(_PILOT_K, engine.most_neighbours())
        if engine.budget(k, params.recall, work) is None:
            engine.ranker = None
            engine.reason = "ranking was measured not to pay"
    return engine


def _choose_plan(
    engine: Engine,
    embedding: Embedding,
    queries: tuple[FloatArray, float] | None,
    params: Params,
    kind: str | FloatArray,
    ranking: str,
    rng: np.random.Generator,
    work: Work,
) -> Plan | None:
    """Everything that was left "auto"; None if ranking cannot pay."""
    n, width = len(engine.X), embedding.width
    n_cells = _n_cells(n, params.n_levels)
    if not isinstance(kind, str):
        n_composite = params.n_composite or 1
        matrix = np.zeros((width, len(kind)), np.float32)  # the coordinate of a lift, if any, stays 0
        matrix[: kind.shape[1]] = kind.T
        return Plan(matrix, matrix, "array", n_composite, len(kind) // n_composite, ranking, n_cells)
    n_composite = params.n_composite or (2 if ranking == "max" else 1)
    n_simple = params.n_simple
    if kind == "random":
        n_simple = n_simple or (10 if ranking == "max" else 32)
        matrix = dirs.random_directions(width, n_composite * n_simple, rng)
        return Plan(matrix, matrix, kind, n_composite, n_simple, ranking, n_cells)

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
            for_points = for_queries = dirs.difference_directions(points, sample, count, rng)
    else:
        for_points = for_queries = dirs.principal_directions(points, count, rng)
    if n_simple is None:
        n_simple = _pilot(engine, embedding, for_points, for_queries, params, n_cells, rng, work)
        if n_simple is None:
            return None
    total = n_simple * n_composite
    missing = total - for_points.shape[1]
    if missing > 0:  # more directions than were fitted: the rest at random
        rest = dirs.random_directions(width, missing, rng)
        for_points = np.concatenate([for_points, rest], axis=1)
        for_queries = np.concatenate([for_queries, rest], axis=1)
    # Composite indices take turns, so that each has some of the best directions.
    order = np.arange(total).reshape(n_simple, n_composite).T.ravel()
    return Plan(
        np.ascontiguousarray(for_points[:, order]),
        np.ascontiguousarray(for_queries[:, order]),
        kind, n_composite, n_simple, ranking, n_cells, quantized=n_cells > 0 and ranking == "sum",
    )  # fmt: skip


def _n_cells(n: int, n_levels: int | None) -> int:
    """Cells on the level above the points; the papers promote n^(1 - 1 / levels) of them."""
    if n_levels == 1:
        return 0
    levels = n_levels or 2
    return max(1, min(n, MOST_CELLS, round(_CELLS * float(n ** (1 - 1 / levels)))))


def _pilot(
    engine: Engine,
    embedding: Embedding,
    for_points: FloatArray,
    for_queries: FloatArray,
    params: Params,
    n_cells: int,
    rng: np.random.Generator,
    work: Work,
) -> int | None:
    """Choose the number of directions with the least estimated cost, None if none pays.

    A sample of the points stands for all: a true neighbour with s of S sampled points before it has
    a rank of about s * n / S.
    """
    n, dim = engine.X.shape
    rows = embedding.queries(engine.held_out, engine.held_out_absmax)
    k = min(_PILOT_K, engine.most_neighbours())
    ids = np.sort(rng.choice(n, min(n, _PILOT_POINTS), replace=False)).astype(np.int32)
    far = multiply(prepared(embedding.points, ids), for_points)
    goal = params.recall + 0.25 * (1.0 - params.recall)  # cells miss some of the others
    for some, slack in zip(_PILOT_QUERIES, (_FAR_FROM_PAYING, 1.0), strict=True):
        count = min(some, len(engine.held_out))
        q = multiply(prepared(rows, np.arange(count)), for_queries)
        engine.known = engine.neighbours(min(_MAX_K, engine.most_neighbours()), work, count)
        near_ids = engine.known[:, :k].astype(np.int32)
        near = multiply(prepared(embedding.points, near_ids.ravel()), for_points)
        ranks = _ranks(q, near.reshape(*near_ids.shape, -1), far, embedding.product)
        best, best_cost = None, np.inf
        for m, before in ranks:
            # Half a step more: ranks below the sample's resolution are all the same to it.
            rank = (np.quantile(before, goal) + 0.5) * n / len(ids)
            candidates = rank + _PILOT_K
            cost = ranked_cost(max(0.05 * n, 2 * candidates), candidates, m, dim, n_cells)
            cost += n * (2 * dim + n_cells / 3) * m * 0.009 / _PILOT_QUERY_COUNT  # of building
            if cost < best_cost:
                best, best_cost = m, cost
        if best_cost > slack * engine.most_cost:
            engine.reason = "ranking was estimated not to pay"
            return None
    return best


def _ranks(
    queries: FloatArray, near: FloatArray, far: FloatArray, product: bool
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """For rising numbers of directions: how many of `far` come before each of a query's `near`, (queries, k)."""
    steps = [m for m in _PILOT_SIMPLE if m < far.shape[1]] + [far.shape[1]]
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
