"""What fitting leaves behind: the points, the ranked structure where there is one, and the budgets of queries."""

import math
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np

from .._api.answers import IndexStats
from .._api.params import Params
from .._api.subset import Subset
from .._geometry.quantization import Matrix, store_of
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import DoubleArray, FloatArray, IdArray, IndexArray
from .._search.exact import ExactSearch
from .._search.ranked import Ranker
from .calibration import Budget, Calibration, calibrate
from .cost_model import exact_cost, is_tiny, mask_cost, most_ranked_cost, ranked_cost

# To measure anew: `python -m comparisons run --suite calibration` for the recall reached, `construction` for the time.
ORDINARY_K = 10  # neighbours that most queries ask for
HELD_OUT = 256  # queries whose true neighbours calibrate the budgets
MAX_K = 64  # neighbours of each that the first calibration knows
_MOST_K = 1024  # that any knows: with more of them a ranked query compares so many points that it hardly pays
# How far calibration follows the held-out queries: share of the points visited, candidates.
EFFORTS = ((0.15, 512), (0.5, 512), (0.5, 4096), (1.0, 16384))


@dataclass
class Engine:
    """A fitted set of points: exact search, and the ranked structure where there is one.

    Attributes
    ----------
    exact : ExactSearch
    params : Params
        What the index was asked for when it was fitted.
    most_cost : float
        What a ranked query may cost, in ns; above that exact search is the better way.
    ranker : Ranker, optional
    reason : str
        Why there is no ranker.
    held_out, held_out_absmax, held_out_ids
        Queries of the calibration, their largest magnitude, and their rows of X if they are points themselves.
    known : (some, k) int64
        True neighbours of the first held-out queries.
    calibrations
        By the number of neighbours they know, powers of two up to a limit, and their effort.
    lock
        Of the calibrations.
    live : Subset, optional
        The points that have not been removed; all if not given.
    growth : float
        How many times as many points there may be near a query as when budgets were measured, at least 1.
    ceilings : (K,) float64
        Share of the k true nearest neighbours that exact search finds, k = 1, …, K, where points are kept as codes.
    """

    exact: ExactSearch
    params: Params
    most_cost: float
    ranker: Ranker | None = None
    reason: str = ""
    held_out: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    held_out_absmax: float = 0.0
    held_out_ids: IdArray | None = None
    known: IndexArray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    calibrations: dict[tuple[int, int], Calibration] = field(default_factory=dict)
    live: Subset | None = None
    growth: float = 1.0
    ceilings: DoubleArray = field(default_factory=lambda: np.empty(0))
    lock: Lock = field(default_factory=Lock)

    @property
    def X(self) -> Matrix:  # noqa: N802 - the papers' matrix
        """The points, (n, d) float32, or Codes."""
        return self.exact.X

    def on(self, rows: Matrix) -> "Engine":
        """Return the same engine on a copy of its points."""
        exact, ranker = copy(self.exact), copy(self.ranker)
        exact.X = rows
        if ranker is not None:
            ranker.embedding = copy(ranker.embedding)
            ranker.embedding.attach(rows)
        return replace(self, exact=exact, ranker=ranker, calibrations=dict(self.calibrations), lock=Lock())

    @property
    def n_live(self) -> int:
        """Points that have not been removed."""
        return len(self.X) if self.live is None else self.live.count

    @property
    def live_ids(self) -> IdArray | None:
        """Their rows, ascending; None for all."""
        return None if self.live is None else self.live.ids

    @property
    def is_flat(self) -> bool:
        """Whether points are ranked without cells."""
        return self.ranker is not None and self.ranker.plan.n_cells == 0

    @property
    def total_visits(self) -> int:
        """All that a query can visit: entries of sorted lists with one level, else points."""
        return len(self.X) * (self.ranker.plan.n_simple if self.ranker is not None and self.is_flat else 1)

    @property
    def most_neighbours(self) -> int:
        """How many a held-out query can have: not itself."""
        return self.n_live - (self.held_out_ids is not None)

    def neighbours(self, k: int, work: Work, count: int = HELD_OUT) -> IndexArray:
        """Find the k true nearest neighbours of the first `count` held-out queries."""
        known = self.known[:, :k] if self.known.shape[1] >= k else np.empty((0, k), np.int64)
        rest = slice(len(known), count)
        own = None if self.held_out_ids is None else self.held_out_ids[rest]
        found = self.exact.search(self.held_out[rest], self.held_out_absmax, k, work.silent(), self.live_ids, own)[1]
        return np.concatenate([known, found])

    def ceiling(self, k: int) -> float:
        """Return the share of the k true nearest neighbours that exact search of points as they are kept finds."""
        return float(self.ceilings[min(k, len(self.ceilings)) - 1]) if len(self.ceilings) else 1.0

    def measure_ceilings(self, other: ExactSearch, work: Work) -> DoubleArray:
        """Return the shares of the true neighbours of held-out queries that another search of the same points finds."""
        k = min(MAX_K, self.most_neighbours)
        true = self.neighbours(k, work)
        found = other.search(self.held_out, self.held_out_absmax, k, work.silent(), self.live_ids, self.held_out_ids)[1]
        same = true[:, :, None] == found[:, None, :]
        place = np.where(same.any(2), same.argmax(2), k)
        return np.array([(place[:, :count] < count).mean() for count in range(1, k + 1)])

    def budget(
        self, k: int, recall: float, work: Work, n_queries: float = np.inf, n_allowed: int | None = None
    ) -> Budget | None:
        """Return the budget that reaches `recall` at k, None where exact search is the better way.

        What has not been calibrated yet is calibrated only if it can save these queries more time than it takes.

        Parameters
        ----------
        k : int
        recall : float
        work : Work
        n_queries : int, or infinity where all queries to come may profit
        n_allowed : int, optional
            Points that may be answers; at least 1.
        """
        n, dim = self.X.shape
        if self.ranker is None or recall == 1.0:
            return None
        if len(self.ceilings):
            # A calibration knows neighbours among points as they are kept, of which the ceiling's share are true ones.
            ceiling = self.ceiling(k)
            if recall > ceiling:
                return None
            recall /= ceiling
        most_cost = self.most_cost
        if n_allowed is not None:
            # The k-th allowed point is about the (k / share)-th of all; and a mask in the order of the cells is made.
            k = -(-k * n // n_allowed)
            most_cost = min(most_cost, most_ranked_cost(n_allowed, dim) - mask_cost(n) / n_queries)
        if k > min(self.most_neighbours, _MOST_K):
            return None
        if is_tiny(n, dim):  # too few to save anything, or to calibrate on
            return Budget(n, n, 1.0) if n_allowed is None else None
        size = MAX_K
        while size < k:
            size *= 2
        size = min(size, self.most_neighbours)
        least = k, k
        for effort in range(len(EFFORTS)):
            saving = most_cost - self._cost(self.ranker, *least, n_allowed)
            if saving <= 0:
                return None
            with self.lock:
                calibration = self.calibrations.get((size, effort))
                if calibration is None:
                    if n_queries * saving < self._calibration_cost(self.ranker, size, effort):
                        return None
                    truth = self.neighbours(size, work)
                    held_out = self.held_out, self.held_out_absmax
                    calibration = self.follow(self.ranker, held_out, truth, self.held_out_ids, effort, work)
                    self.calibrations[size, effort] = calibration
                budget = calibration.budget(k, recall)
            if budget is not None:
                pays = self._cost(self.ranker, budget.visits, budget.candidates, n_allowed) < most_cost
                return self._grown(budget) if pays else None
            # What was tried is not enough; will more still be cheaper than exact search?
            least = calibration.least(k, recall, *self._generous(self.ranker, k, effort))
        return None

    def follow(
        self,
        ranker: Ranker,
        queries: tuple[FloatArray, float],
        truth: IndexArray,
        exclude: IdArray | None,
        effort: int,
        work: Work,
    ) -> Calibration:
        """Find what it takes to reach true neighbours of queries, with one of the efforts.

        Parameters
        ----------
        queries : (H, d) float32 and float
            And their largest magnitude.
        truth : (H, K) int64
            Rows, -1 where there is none.
        exclude : (H,) int32, optional
            The query's own row.
        """
        visits, candidates = self._generous(ranker, truth.shape[1], effort)
        return calibrate(ranker, *queries, truth, exclude, work, visits, candidates)

    def settle(self, work: Work) -> None:
        """Measure the budget of an ordinary query; where exact search may take its place, see whether it pays."""
        budget = self.budget(min(ORDINARY_K, self.most_neighbours), self.params.recall, work)
        if self.params.all_auto and budget is None:
            self.ranker = None
            self.reason = "ranking was measured not to pay"
            ceiling = self.ceiling(min(ORDINARY_K, self.most_neighbours))
            if ceiling < self.params.recall:
                self.reason = (
                    f"even exact search of {store_of(self.X)} points finds {ceiling:.3f} of the true neighbours"
                )

    def repays_calibration(self, n_queries: int, share: float) -> bool:
        """Whether a share of the time of so many ordinary queries is as long as a calibration."""
        if self.ranker is None:
            return False
        k = min(ORDINARY_K, self.most_neighbours)
        with Work(1) as work:
            budget = self.budget(k, self.params.recall, work, n_queries=0)  # none that is not there yet
        query = self.most_cost if budget is None else self._cost(self.ranker, budget.visits, budget.candidates)
        return n_queries * share * query >= self._calibration_cost(self.ranker, min(MAX_K, self.most_neighbours), 0)

    def pays(self, visits: int, candidates: int) -> bool:
        """Whether ranking with this budget is faster than exact search."""
        return self.ranker is not None and self._cost(self.ranker, visits, candidates) < self.most_cost

    def _grown(self, budget: Budget) -> Budget:
        """Scale a budget by how many points have come since it was measured: cells hold as many times as many.

        Where points drift, fewer candidates would lose more than a hundredth of the recall.
        """
        if self.growth == 1.0:
            return budget
        n = len(self.X)
        visits, candidates = (min(n, math.ceil(self.growth * count)) for count in (budget.visits, budget.candidates))
        return Budget(visits, candidates, budget.recall)

    def _generous(self, ranker: Ranker, k: int, effort: int) -> tuple[int, int]:
        """Visits and candidates of a calibration for k neighbours."""
        n = len(self.X)
        share, candidates = EFFORTS[effort]
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
        one = exact_cost(*self.X.shape) + self._cost(ranker, *self._generous(ranker, k, effort))
        return len(self.held_out) * one

    def describe(self, work: Work) -> IndexStats:
        """Tell what was chosen and measured while fitting."""
        n, dim = self.X.shape
        metric = self.params.metric
        ceiling = self.ceiling(min(ORDINARY_K, max(n - 1, 1)))
        store, reachable = store_of(self.X), ceiling if len(self.ceilings) else None
        if self.ranker is None:
            return IndexStats(n, dim, metric, "exact", self.reason, store=store, exact_recall_at_10=reachable)
        plan = self.ranker.plan
        budget = self.budget(min(10, n - 1), self.params.recall, work)
        return IndexStats(
            n,
            dim,
            metric,
            "ranked",
            directions=plan.directions,
            ranking=plan.ranking,
            n_composite=plan.n_composite,
            n_simple=plan.n_simple,
            n_levels=1 if plan.n_cells == 0 else self.params.n_levels or 2,
            n_cells=plan.n_cells,
            held_out=len(self.held_out),
            max_visits=None if budget is None else budget.visits,
            max_candidates=None if budget is None else budget.candidates,
            recall_at_10=None if budget is None else budget.recall * ceiling,
            store=store,
            exact_recall_at_10=reachable,
        )
