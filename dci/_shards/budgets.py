"""Budgets for all shards: a recall is measured on the merged answers, not on each shard's.

A shard has to find those of the k nearest that lie in it, about k / S of S shards' where points are spread at random.
What it takes to reach each true neighbour is measured in the shard that holds it, and put in one table, as if all
shards were one index; a budget is looked up there once and is that of every shard. So no shard pays for neighbours
that another has, the recall is estimated on all neighbours of the held-out queries, however many shards there are,
and how points are spread does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._runtime.types import IndexArray
from .._tuning.calibration import MOST_BUDGETS, NOT_FOUND, Budget, Calibration
from .._tuning.cost_model import COSTS, exact_cost, ranked_cost
from .shard import Reached, Spending


@dataclass(frozen=True)
class Choice:
    """What a query spends.

    Attributes
    ----------
    spending : Spending or None
        In a shard that it visits; None for exact search.
    opened : int
        Coarse cells whose shards it visits; 0 for all shards.
    visited : float
        How many shards that are, on average.
    recall : float
        Of the held-out queries.
    """

    spending: Spending | None
    opened: int
    visited: float
    recall: float


class Table:
    """Held-out queries, and what it takes to find each of their true neighbours.

    Parameters
    ----------
    visits, ranks : (H, K) int64
        In the shard that holds the neighbour.
    order : (H, K) int64
        Coarse cells that are opened before the neighbour's own; zeros where there are none.
    visited : (p,) float
        Shards that a query visits on average if it opens 1, …, p coarse cells; a single number where it visits all.
    width, n_cells, n : float
        Of a shard, on average.
    dim : int
    effort : int
        How far neighbours were followed.
    """

    def __init__(
        self,
        numbers: tuple[IndexArray, IndexArray, IndexArray],
        visited: np.ndarray,
        shape: tuple[float, float, float],
        dim: int,
        effort: int = 0,
    ) -> None:
        self.visits, self.ranks, self.order = numbers
        self.visited = visited
        self.shape = shape
        self.dim, self.effort = dim, effort
        self._choices: dict[tuple[int, float], Choice] = {}

    @classmethod
    def of(
        cls,
        reached: Sequence[Reached],
        shape: tuple[int, int],
        routing: tuple[IndexArray, np.ndarray] | None,
        dim: int,
        effort: int,
    ) -> "Table":
        """Put together what all shards have found of an (H, K) table.

        Parameters
        ----------
        reached : sequence of Reached
        shape : (H, K)
        routing : ((H, K) int64, (p,) float), optional
            `order` and `visited`.
        dim, effort : int
        """
        visits, ranks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for part in reached:
            visits.flat[part.places], ranks.flat[part.places] = part.visits, part.ranks
        ranked = [part for part in reached if part.width]
        width, n_cells = np.mean([(part.width, part.n_cells) for part in ranked], axis=0) if ranked else (0.0, 0.0)
        n = np.mean([part.n for part in reached])
        order, visited = routing or (np.zeros(shape, np.int64), np.array([float(len(reached))]))
        return cls((visits, ranks, order), visited, (float(width), float(n_cells), float(n)), dim, effort)

    @property
    def max_k(self) -> int:
        """The largest k that this can answer for."""
        return int(self.visits.shape[1])

    def choose(self, k: int, recall: float) -> Choice | None:
        """Return the cheapest choice that reaches `recall` at k; None if none of those measured does.

        Exact search of some shards is one of them, of all of them it is not.
        """
        if (k, recall) not in self._choices:
            found = [choice for opened in self._openings(recall) if (choice := self._spend(k, recall, opened))]
            if not found:
                return None
            if len(self._choices) == MOST_BUDGETS:
                del self._choices[next(iter(self._choices))]
            self._choices[k, recall] = min(found, key=self._cost)
        return self._choices[k, recall]

    def may_pay(self, k: int, recall: float) -> bool:
        """Whether following the neighbours farther, where no choice reached the recall, may find one."""
        needed = round(float(np.quantile(self.visits[:, : min(k, self.max_k)], recall)))
        return self.shape[0] > 0 and self._pays(Budget(max(needed, k), k, recall))

    def _openings(self, recall: float) -> list[int]:
        """Numbers of coarse cells that are compared: from those that could do to all."""
        if len(self.visited) == 1:
            return [0]
        shares = np.linspace(recall, 1.0, 8)
        return sorted({int(np.quantile(self.order, share, method="higher")) + 1 for share in shares})

    def _spend(self, k: int, recall: float, opened: int) -> Choice | None:
        width, n_cells, _ = self.shape
        inside = self.order < opened if opened else np.ones(self.order.shape, bool)
        visited = float(self.visited[max(opened - 1, 0)])
        ranks = np.where(inside, self.ranks, NOT_FOUND)
        if width:
            known = Calibration(self.visits, ranks, round(width), self.dim, round(n_cells))
            budget = known.budget(k, recall)
            if budget is not None and self._pays(budget):
                return Choice(Spending(budget.visits, budget.candidates), opened, visited, budget.recall)
        # Shards searched exactly: what counts is whether they are visited.
        known = Calibration(np.zeros_like(ranks), np.where(inside, 0, NOT_FOUND), 1, self.dim, 0)
        if opened and known.budget(k, recall) is not None:
            return Choice(None, opened, visited, float(inside[:, :k].mean()))
        return None

    def _pays(self, budget: Budget) -> bool:
        width, n_cells, n = self.shape
        cost = ranked_cost(budget.visits, budget.candidates, round(width), self.dim, round(n_cells))
        return cost < COSTS.worthwhile * exact_cost(round(n), self.dim)

    def _cost(self, choice: Choice) -> float:
        width, n_cells, n = self.shape
        if choice.spending is None:
            return choice.visited * exact_cost(round(n), self.dim)
        return choice.visited * ranked_cost(*choice.spending, round(width), self.dim, round(n_cells))
