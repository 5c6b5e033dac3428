"""Measuring: what a rival returns is checked and recomputed, rivals take turns in one run, spread is kept.

Recall is counted by distance, so that ties count: an answer is right when it is no farther than the true k-th
neighbour. Total time is construction plus queries. Nothing here knows which rivals there are.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from comparisons.adapters import Adapter, Arguments
from comparisons.datasets import Dataset, optional

THREADS = 2  # for every rival, unless told otherwise
TIE = 1e-5  # relative: float32 distances this near are equal
BUSY_SPREAD = 0.2  # (slowest - fastest) / median of one contender's totals, above which the machine was busy
SAMPLE = 1_000  # queries that a sweep looks at before it times a setting on all of them


class InvalidAnswerError(Exception):
    """A rival returned ids that no index may return."""


# ------------------------------------------------------------------------------------------ truth and recall


def recompute(data: Dataset, ids: np.ndarray, k: int) -> np.ndarray:
    """Return the Euclidean distances of returned ids, or reject them.

    Parameters
    ----------
    data : Dataset
    ids : ndarray of shape (nq, k), integer
        -1 stands for nothing found, and its distance is infinite.

    Returns
    -------
    ndarray of shape (nq, k), float32

    Raises
    ------
    InvalidAnswerError
        For a wrong shape or dtype, an id that is not a point, an id twice in one row.
    """
    ids = np.asarray(ids)
    expected = (len(data.queries), k)
    if ids.shape != expected or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidAnswerError(f"expected integer ids of shape {expected}, got {ids.dtype} of shape {ids.shape}")
    if ids.size and (ids.min() < -1 or ids.max() >= len(data.points)):
        raise InvalidAnswerError(f"expected ids in [-1, {len(data.points)}), got {ids.min()} to {ids.max()}")
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if twice.any():
        row = int(np.flatnonzero(twice.any(axis=1))[0])
        raise InvalidAnswerError(f"an id is returned twice for query {row}: {ids[row].tolist()}")
    distances = np.empty(expected, dtype=np.float32)
    for rows in _blocks(len(ids), 256):
        difference = data.points[ids[rows]] - data.queries[rows, None]
        distances[rows] = np.sqrt(np.einsum("qkd,qkd->qk", difference, difference))
    distances[ids < 0] = np.inf
    return distances


def true_radius(data: Dataset, k: int) -> np.ndarray:
    """Return each query's distance to its true k-th neighbour, float32 of shape (nq,).

    A few more than k are found by BLAS in float32; their distances are then recomputed as those of the rivals are.
    """
    count = min(k + 8, len(data.points))
    squared_norms = np.einsum("nd,nd->n", data.points, data.points)
    ids = np.empty((len(data.queries), count), dtype=np.int64)
    try:
        import faiss

        ids[:] = faiss.knn(data.queries, data.points, count)[1]
    except ImportError:
        for rows in _blocks(len(ids), 64):
            scores = squared_norms - 2 * (data.queries[rows] @ data.points.T)
            ids[rows] = np.argpartition(scores, count - 1, axis=1)[:, :count]
    return np.sort(recompute(data, ids, count), axis=1)[:, min(k, count) - 1]


def recall(distances: np.ndarray, radius: np.ndarray) -> float:
    """Return the share of answers no farther than the true k-th neighbour, ties included.

    Examples
    --------
    >>> recall(np.array([[1.0, 2.0], [1.0, 5.0]]), np.array([2.0, 2.0]))
    0.75
    """
    return float(np.mean(distances <= radius[:, None] * (1 + TIE)))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


# ---------------------------------------------------------------------------------------------- one setting


@dataclass(frozen=True)
class Setting:
    """A rival with its build and its search arguments."""

    rival: type[Adapter]
    build: Arguments = field(default_factory=dict)
    search: Arguments = field(default_factory=dict)

    @property
    def label(self) -> str:
        arguments = {**self.build, **self.search}.items()
        return " ".join([self.rival.name, *(f"{name}={value}" for name, value in arguments)])


@dataclass
class Measurement:
    """One setting's times, one entry a repeat, and the recall it reached."""

    rival: str
    label: str
    build: Arguments
    search: Arguments
    recall: float
    build_seconds: list[float]
    query_seconds: list[float]
    notes: Arguments = field(default_factory=dict)

    @property
    def build_time(self) -> float:
        return statistics.median(self.build_seconds)

    @property
    def query_time(self) -> float:
        return statistics.median(self.query_seconds)

    @property
    def totals(self) -> list[float]:
        return [b + q for b, q in zip(self.build_seconds, self.query_seconds, strict=True)]

    @property
    def total(self) -> float:
        """Median seconds of construction plus queries."""
        return statistics.median(self.totals)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the totals; 0 for one repeat."""
        return (max(self.totals) - min(self.totals)) / self.total

    def record(self) -> Arguments:
        """Return everything for JSON."""
        return {**asdict(self), "total": self.total, "spread": self.spread}


class Bench:
    """One data set, its truth, k and a thread count: times settings and checks what they return.

    Parameters
    ----------
    data : Dataset
    k : int
    threads : int
        Given to every rival, and set as the limit of every BLAS and OpenMP in the process.
    """

    def __init__(self, data: Dataset, k: int = 10, threads: int = THREADS) -> None:
        self.data, self.k, self.threads = data, k, threads
        self.radius = true_radius(data, k)

    def fit(self, setting: Setting) -> tuple[Adapter, float]:
        """Build once; return the built rival and the seconds it took."""
        rival = setting.rival(self.threads, **setting.build)
        return rival, self._timed(lambda: rival.fit(self.data.points))[0]

    def query(self, rival: Adapter, search: Arguments, count: int | None = None) -> tuple[float, float]:
        """Answer the first `count` queries in one batch; return the recall and the seconds it took."""
        some = Dataset(self.data.name, self.data.points, self.data.queries[:count])
        seconds, ids = self._timed(lambda: rival.query(some.queries, self.k, **search))
        return recall(recompute(some, ids, self.k), self.radius[:count]), seconds

    def measure(self, setting: Setting) -> Measurement:
        """Build, answer all queries, check."""
        rival, build_seconds = self.fit(setting)
        return self._measurement(setting, rival, build_seconds, *self.query(rival, setting.search))

    def interleave(self, settings: Sequence[Setting], repeats: int) -> list[Measurement]:
        """Measure settings in turn, `repeats` rounds, each round starting with another one, after a warm-up."""
        for setting in settings:
            self.warm_up(setting)
        found: dict[str, Measurement] = {}
        for turn in range(repeats):
            shift = turn % max(len(settings), 1)
            for setting in [*settings[shift:], *settings[:shift]]:
                once = self.measure(setting)
                earlier = found.setdefault(setting.label, once)
                if earlier is not once:
                    earlier.build_seconds += once.build_seconds
                    earlier.query_seconds += once.query_seconds
                    earlier.recall = min(earlier.recall, once.recall)
        return [found[setting.label] for setting in settings]

    def warm_up(self, setting: Setting) -> None:
        """Run a setting on a few points: code is loaded, thread pools are up."""
        few = self.data.head(5_000, 100)
        rival = setting.rival(self.threads, **setting.build)
        self._timed(lambda: (rival.fit(few.points), rival.query(few.queries, self.k, **setting.search)))

    def sweep(self, rival: type[Adapter], wanted: float, cost: str = "total") -> list[Measurement]:
        """Measure a rival at the least effort that reaches the wanted recall, for every build in its grid.

        One construction a build. The least effort is bisected on a sample of the queries (recall rises with effort),
        then timed once on all of them, with more effort where the sample flattered it. A build that cannot reach the
        recall is measured at its greatest effort. Builds come cheapest first: where the cost is the total, the rest
        is skipped once construction alone takes longer than the best total so far.
        """
        found: list[Measurement] = []
        grid = rival.build_grid(len(self.data.points), wanted)
        self.warm_up(Setting(rival, grid[0], rival.search_grid(grid[0])[0]))
        for build in grid:
            searches = rival.search_grid(build)
            built, seconds = self.fit(Setting(rival, build))
            best = cheapest(found, wanted) if cost == "total" else None
            if best is not None and seconds > best.total:
                break
            low, high = 0, len(searches) - 1
            while low < high:
                middle = (low + high) // 2
                if self.query(built, searches[middle], SAMPLE)[0] >= wanted:
                    high = middle
                else:
                    low = middle + 1
            for search in searches[low:]:
                reached = self.query(built, search)
                if reached[0] >= wanted:
                    break
            found.append(self._measurement(Setting(rival, build, search), built, seconds, *reached))
        return found

    def latency(self, settings: Sequence[Setting], count: int = 1_000) -> list[Arguments]:
        """Answer queries one at a time, the settings taking turns every 50; return medians in seconds."""
        rivals = [self.fit(setting)[0] for setting in settings]
        queries = self.data.queries[:count]
        ids = np.empty((len(settings), len(queries), self.k), dtype=np.int64)
        seconds = np.empty((len(settings), len(queries)))
        with self._limits():
            for rows in _blocks(len(queries), 50):
                for which, (rival, setting) in enumerate(zip(rivals, settings, strict=True)):
                    rival.query(queries[rows][:1], self.k, **setting.search)  # the caches are its own again
                    for row in range(rows.start, rows.stop):
                        start = time.perf_counter()
                        answer = rival.query(queries[row : row + 1], self.k, **setting.search)
                        seconds[which, row] = time.perf_counter() - start
                        ids[which, row] = answer[0]
        some = Dataset(self.data.name, self.data.points, queries)
        return [
            {
                "label": setting.label,
                "recall": recall(recompute(some, ids[which], self.k), self.radius[:count]),
                "median": float(np.median(seconds[which])),
                "p90": float(np.quantile(seconds[which], 0.9)),
            }
            for which, setting in enumerate(settings)
        ]

    def _measurement(
        self, setting: Setting, rival: Adapter, build_seconds: float, reached: float, query_seconds: float
    ) -> Measurement:
        return Measurement(
            rival=setting.rival.name,
            label=setting.label,
            build=setting.build,
            search=setting.search,
            recall=reached,
            build_seconds=[build_seconds],
            query_seconds=[query_seconds],
            notes=plain(rival.notes()),
        )

    def _timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        gc.collect()
        with self._limits():
            start = time.perf_counter()
            result = work()
            return time.perf_counter() - start, result

    def _limits(self) -> contextlib.AbstractContextManager[Any]:
        threads = optional("threadpoolctl", "the harness")
        return threads.threadpool_limits(self.threads)


def cheapest(measurements: Sequence[Measurement], wanted: float, cost: str = "total") -> Measurement | None:
    """Return the measurement with the least `cost` among those that reach the wanted recall."""
    return next(iter(finalists(measurements, wanted, 1, cost)), None)


def finalists(measurements: Sequence[Measurement], wanted: float, count: int, cost: str = "total") -> list[Measurement]:
    """Return the few cheapest that reach the wanted recall, cheapest first."""
    enough = [m for m in measurements if m.recall >= wanted]
    return sorted(enough, key=lambda m: getattr(m, cost))[:count]


def plain(value: Any) -> Any:
    """Return a value as JSON keeps it: arrays as lists, what JSON does not know as text."""
    return json.loads(json.dumps(value, default=lambda other: getattr(other, "tolist", other.__str__)()))


def busy(measurements: Sequence[Measurement]) -> bool:
    """Say whether the times of one setting differ so much that the machine was doing something else."""
    return any(m.spread > BUSY_SPREAD for m in measurements)
