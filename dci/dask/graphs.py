"""Graphs of tasks over shards: answers, and what is measured over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

from .._runtime.fork import Lock
from .._runtime.types import FloatArray, IndexArray
from .._shards import tasks
from .._shards.budgets import Choice, Table
from .._shards.coarse import Coarse
from .._shards.shard import Batch, ShardInfo, Spending
from .._tuning.engine import EFFORTS, HELD_OUT
from .scheduler import Scheduler

_FAN_IN = 16  # answers that are merged at once


@dataclass(frozen=True)
class Shards:
    """What a query sees: it never changes, but for tables that are made when they are first needed.

    Attributes
    ----------
    scheduler : Scheduler
    tasks : tuple of Delayed
        Kept on the workers.
    infos : tuple of ShardInfo
    coarse : Coarse, optional
        Where points are distributed by cells.
    sample : (t, d) float32, optional
        Of the queries to come.
    seed : int
        Of what is drawn over all shards.
    next_id : int
        Above every id that there has been.
    calibrated : int
        How many points there were when the tables were made.
    tables : dict
        By the number of neighbours that they know.
    settings : dict
        Arguments of the index when it was fitted.
    """

    scheduler: Scheduler
    tasks: tuple[Delayed, ...]
    infos: tuple[ShardInfo, ...]
    coarse: Coarse | None
    sample: FloatArray | None
    seed: int
    next_id: int
    calibrated: int
    settings: dict[str, Any]
    tables: dict[int, Table] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @property
    def n(self) -> int:
        """Number of points."""
        return sum(info.n for info in self.infos)

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return self.infos[0].dim

    @property
    def descending(self) -> bool:
        """Whether the largest distances are the best."""
        return bool(self.settings["metric"] == "ip")

    def choose(self, k: int, recall: float, n_queries: float, n_allowed: int | None = None) -> Choice:
        """Return what each query spends; what no table covers yet is measured if there are queries enough to repay it.

        Exact search of all shards where recall is 1, or nothing else is known to reach it, or to be faster.
        """
        exact = Choice(None, 0, float(len(self.infos)), 1.0)
        if n_allowed is not None:  # the k-th allowed point is about the (k / share)-th of all
            k = -(-k * self.n // max(n_allowed, 1))
        if recall == 1.0 or not self._worth_measuring or k > min(self.n - 1, 16 * tables_k(0)):
            return exact
        size = min(tables_k(k), self.n - 1)
        with self.lock:
            if size not in self.tables:
                if n_queries < HELD_OUT:
                    return exact
                self.tables[size] = measure(self, size, k, recall)
            table = self.tables[size]
            choice = table.choose(k, recall)
            if (
                choice is None
                and n_queries >= HELD_OUT
                and table.may_pay(k, recall)
                and table.effort + 1 < len(EFFORTS)
            ):
                self.tables[size] = measure(self, size, k, recall, table.effort + 1)
                choice = self.tables[size].choose(k, recall)
        if choice is None:
            return exact
        if choice.spending is not None:
            growth = max(1.0, self.n / max(self.calibrated, 1))
            choice = Choice(
                Spending(*(int(np.ceil(growth * count)) for count in choice.spending)),
                choice.opened, choice.visited, choice.recall,
            )  # fmt: skip
        # What an answer may be is not distributed as the points are.
        return choice if n_allowed is None else Choice(choice.spending, 0, exact.visited, choice.recall)

    @property
    def _worth_measuring(self) -> bool:
        return self.n > 1 and (self.coarse is not None or any(info.ranked for info in self.infos))


def tables_k(k: int) -> int:
    """Return the number of neighbours of the table for k."""
    size = 64
    while size < k:
        size *= 2
    return size


def answers(
    shards: Shards, batch: Delayed, k: int, choice: Choice, allowed: Sequence[IndexArray | None], visits: Any = None
) -> Delayed:
    """Return the task of the merged answer, a `Part`.

    Parameters
    ----------
    batch : Delayed of Batch
    allowed : sequence of (any,) int64 or None
        Ids that may be answers, of each shard.
    visits : (nq, S) bool, or a task of it, optional
        Which shards queries visit; all if not given.

    Notes
    -----
    The graph is written down as it is: made of one `delayed` after the other, it takes ten times as long.
    """
    token = uuid4().hex
    graph: dict[Any, Any] = {}
    asked = [batch] if visits is None or isinstance(visits, np.ndarray) else [batch, visits]
    used = list(asked)
    level: list[Any] = []
    for number, (shard, some) in enumerate(zip(shards.tasks, allowed, strict=True)):
        rows = np.flatnonzero(visits[:, number]) if isinstance(visits, np.ndarray) else None
        if rows is not None and len(rows) == 0 and (level or number + 1 < len(shards.tasks)):
            continue
        ask = partial(tasks.ask, k=k, spending=choice.spending, allowed=some, rows=rows, number=number)
        level.append((f"ask-{token}", number))
        graph[level[-1]] = (ask, shard.key, *(task.key for task in asked))
        used.append(shard)
    while True:  # a tree, so that no worker has to hold all answers
        groups = [level[at : at + _FAN_IN] for at in range(0, len(level), _FAN_IN)]
        level = [f"merge_parts-{token}-{len(graph)}-{at}" for at in range(len(groups))]
        merge = partial(tasks.merge_parts, k=k, descending=shards.descending)
        graph |= {key: (merge, group) for key, group in zip(level, groups, strict=True)}
        if len(level) == 1:
            return Delayed(level[0], HighLevelGraph.from_collections(level[0], graph, used))


def literal(value: Any) -> Delayed:
    """Return a value as a task, so that it is sent once."""
    return delayed(value, traverse=False, pure=False)


def measure(shards: Shards, size: int, k: int, recall: float, first: int = 0) -> Table:
    """Find the true neighbours of held-out queries among all shards, and what it takes to find them again.

    Each neighbour is followed in the shard that has it, by the effort `first`, and farther if the recall at k is not
    reached and that may pay.
    """
    batch = _held_out(shards)
    exact = Choice(None, 0, 0.0, 1.0)
    truth = delayed(tasks.neighbors_of)(answers(shards, batch, size, exact, [None] * len(shards.tasks)))
    batch, truth = shards.scheduler.keep([batch, truth])
    coarse = None if shards.coarse is None else literal(shards.coarse)
    follow = delayed(tasks.reach, pure=False)
    for effort in range(first, len(EFFORTS)):
        found = shards.scheduler.run([follow(shard, batch, truth, effort, coarse) for shard in shards.tasks] + [batch])
        held_out: Batch = found.pop()
        shape = len(held_out.queries), size
        routing = None
        if shards.coarse is not None:
            cells = np.zeros(shape, np.int32)
            for reached, of_points in found:
                cells.flat[reached.places] = of_points
            order = shards.coarse.opened_before(held_out.queries, cells)
            routing = order, shards.coarse.mean_visited(held_out.queries)
        table = Table.of([reached for reached, _ in found], shape, routing, shards.dim, effort)
        choice = table.choose(k, recall)
        if (choice is not None and choice.spending is not None) or not table.may_pay(k, recall):
            break
    return table


def _held_out(shards: Shards) -> Delayed:
    """Return the task of the queries that are measured on: of the sample that was given, else points."""
    rng = np.random.default_rng([shards.seed, 1])
    if shards.sample is not None:
        chosen = np.sort(rng.choice(len(shards.sample), min(HELD_OUT, len(shards.sample)), replace=False))
        some = np.ascontiguousarray(shards.sample[chosen])
        return literal(Batch(some, float(np.abs(some).max(initial=0.0))))
    places = np.sort(rng.choice(shards.n, min(HELD_OUT, shards.n), replace=False))
    ends = np.cumsum([info.n for info in shards.infos])
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    sample = [
        delayed(_sample, pure=False)(shard, part - (end - info.n))
        for shard, part, end, info in zip(shards.tasks, parts, ends, shards.infos, strict=True)
        if len(part)
    ]
    return delayed(tasks.join_batches, pure=False)(sample)


def _sample(shard: Any, places: IndexArray) -> Batch:
    batch: Batch = shard.sample(places)
    return batch
