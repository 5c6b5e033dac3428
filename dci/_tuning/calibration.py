"""From a wanted recall to a budget: how far held-out queries had to look for their neighbours."""

from dataclasses import dataclass

import numpy as np

from .._native.cell_search import find_ranks, positions
from .._native.kernels import LANES, Reservoirs
from .._native.rows import multiply
from .._runtime.threads import Work, blocks
from .._runtime.types import FloatArray, IdArray, IndexArray
from .._search.ranked import Ranker
from .cost_model import ranked_cost

NOT_FOUND = np.iinfo(np.int64).max  # a rank
# To measure anew: `python -m comparisons run --suite calibration`.
_N_BUDGETS = 24  # limits of visits that are compared
MOST_BUDGETS = 64  # that are remembered, of as many pairs of k and recall
_LEAST_K = 10  # neighbours of each held-out query that a recall is estimated on
_MARGIN = 1.5  # standard errors that the held-out recall stays above the wanted one


@dataclass(frozen=True)
class Budget:
    """What a query may spend: k1 visits, k0 candidates, and the recall measured with them."""

    visits: int
    candidates: int
    recall: float


class Calibration:
    """For each held-out query and each of its true neighbours, the budget that finds it.

    Parameters
    ----------
    visits : (H, K) int64
        Points in the cells opened up to and including the neighbour's own.
    ranks : (H, K) int64
        Place of the neighbour among the candidates, from 0; its best over composite indices.
    """

    def __init__(self, visits: IndexArray, ranks: IndexArray, width: int, dim: int, n_cells: int) -> None:
        self.visits = visits
        self.ranks = ranks
        self._cost = width, dim, n_cells
        self._budgets: dict[tuple[int, float], Budget | None] = {}

    @property
    def max_k(self) -> int:
        """The largest k that this can answer for."""
        return int(self.visits.shape[1])

    def budget(self, k: int, recall: float) -> Budget | None:
        """Return the cheapest budget whose recall@k on the held-out queries is `recall`.

        With a margin for the noise of that estimate; None if no budget measured reaches it.
        """
        # Fewer neighbours say too little; and the nearer ones are no harder to find.
        k = min(max(k, _LEAST_K), self.max_k)
        if (k, recall) not in self._budgets:
            if len(self._budgets) == MOST_BUDGETS:
                del self._budgets[next(iter(self._budgets))]
            self._budgets[k, recall] = self._with_margin(k, recall)
        return self._budgets[k, recall]

    def _with_margin(self, k: int, recall: float) -> Budget | None:
        first = self._cheapest(k, recall)
        if first is None:
            return None
        found = (self.visits[:, :k] <= first.visits) & (self.ranks[:, :k] < first.candidates)
        error = _MARGIN * float(found.mean(1).std() / np.sqrt(len(found)))
        return self._cheapest(k, min(recall + error, 1.0))

    def _cheapest(self, k: int, recall: float) -> Budget | None:
        visits, ranks = self.visits[:, :k].ravel(), self.ranks[:, :k].ravel()
        needed = int(np.ceil(recall * visits.size - 1e-9))
        if needed == 0 or np.count_nonzero(ranks < NOT_FOUND) < needed:
            return None
        shares = np.linspace(needed / visits.size, 1.0, _N_BUDGETS)
        best, best_cost = None, np.inf
        for limit in np.unique(np.quantile(visits, shares, method="higher")):
            reached = np.sort(ranks[visits <= limit])
            if len(reached) < needed or reached[needed - 1] == NOT_FOUND:
                continue
            candidates = max(int(reached[needed - 1]) + 1, k)
            seen = max(int(limit), k)  # k answers are among no fewer
            cost = ranked_cost(seen, candidates, *self._cost)
            if cost < best_cost:
                share = np.searchsorted(reached, candidates) / visits.size
                best, best_cost = Budget(seen, candidates, float(share)), cost
        return best

    def least(self, k: int, recall: float, visits: int, candidates: int) -> tuple[int, int]:
        """Return the least budget for `recall` there can be, where these visits and candidates did not reach it."""
        needed = round(float(np.quantile(self.visits[:, : min(k, self.max_k)], recall)))
        return max(needed, k), k if needed > visits else candidates

    def cost(self, visits: int, candidates: int) -> float:
        """Estimated time of a query with this budget, in ns."""
        return ranked_cost(visits, candidates, *self._cost)


def calibrate(
    ranker: Ranker,
    queries: FloatArray,
    absmax: float,
    truth: IndexArray,
    exclude: IdArray | None,
    work: Work,
    visits: int,
    candidates: int,
) -> Calibration:
    """Answer held-out queries with a generous budget and note where their true neighbours were.

    Parameters
    ----------
    queries : (H, d) float32
    truth : (H, K) int64
        Their true nearest neighbours, -1 where there is none.
    exclude : (H,) int32, optional
        The query's own row of the points, which takes a place in the ranking but is no answer.
    visits, candidates : int
        The generous budget.
    """
    cells = ranker.cells
    ids, n_centers = cells.arrays.ids, cells.n_centers
    n_composite = cells.n_composite
    position_of = np.full(ranker.embedding.points.size + 1, -1, np.int64)
    position_of[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
    truth_positions = position_of[truth]  # the last entry answers for -1
    own = np.full(len(queries), -1) if exclude is None else position_of[exclude]
    rows = ranker.embedding.queries(queries, absmax)
    ranks = np.full(truth.shape, NOT_FOUND)
    needed = np.empty(truth.shape, np.int64)

    def follow(block: tuple[int, int]) -> None:
        start, stop = block
        coordinates = ranker.project_queries(rows, start, stop)
        needed[start:stop] = _visits_needed(ranker, coordinates, truth_positions[start:stop])
        work.tick()
        reservoirs = Reservoirs(n_composite * (stop - start), candidates)
        ranker.rank(rows, start, stop, visits, reservoirs)
        places = positions(reservoirs, candidates)
        workspace = np.zeros(len(ids), np.int32)
        for composite in np.split(places, n_composite):
            find_ranks(composite, truth_positions[start:stop], own[start:stop], ranks[start:stop], workspace)

    n_blocks = max(work.num_threads, 1)
    work.run(follow, blocks(len(queries), max(1, -(-len(queries) // n_blocks))))
    width = n_composite * cells.n_simple
    return Calibration(needed, ranks, width, queries.shape[1], n_centers)


def _visits_needed(ranker: Ranker, coordinates: FloatArray, places: IndexArray) -> IndexArray:
    """Find the least `max_visits` with which a query opens the cell of each position."""
    arrays = ranker.cells.arrays
    sizes, centers, n_centers = arrays.sizes, arrays.centers, arrays.n_centers
    cell = np.searchsorted(arrays.first_panel, places // LANES, side="right") - 1
    flat = centers.transpose(0, 2, 1).reshape(-1, centers.shape[1])[:n_centers]
    scores = arrays.center_bias[:n_centers] - 2.0 * multiply(coordinates[:, : centers.shape[1]], flat.T)
    order = np.argsort(scores, axis=1)
    always = int(sizes[n_centers:].sum())
    before = always + np.cumsum(sizes[:n_centers][order], axis=1) - sizes[:n_centers][order]
    needed = np.zeros((len(order), len(sizes)), np.int64)
    np.put_along_axis(needed, order, before + 1, axis=1)
    return np.take_along_axis(needed, cell, axis=1)
