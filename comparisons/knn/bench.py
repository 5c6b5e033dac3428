"""Measuring: rivals take turns in one run, what they return is checked, every repeat is kept.

Total time is construction plus queries. Nothing here knows which rivals there are. What is measured is kept as a step
of a `Run`, and what the run already has is not measured again.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from comparisons.data.datasets import Dataset, optional
from comparisons.harness.results import Row, Run, merge
from comparisons.harness.truth import blocks, recall, recompute, true_radius
from comparisons.knn.adapters import Adapter, Arguments

THREADS = 2  # for every rival, unless told otherwise
SAMPLE = 1_000  # queries that a sweep looks at before it times a setting on all of them
NEAR = 1.15  # settings of one rival whose times in its sweep are within this factor all go to the final

_warm: set[type[Adapter]] = set()  # rivals that ran in this process


@dataclass(frozen=True)
class Setting:
    """A rival with its build and its search arguments."""

    rival: type[Adapter]
    build: Arguments = field(default_factory=dict)
    search: Arguments = field(default_factory=dict)


@dataclass
class Measurement:
    """One setting's times, one entry a repeat, and the recall that it reached."""

    rival: str
    build: Arguments
    search: Arguments
    recall: float
    build_seconds: list[float]
    query_seconds: list[float]
    notes: Arguments = field(default_factory=dict)

    @property
    def build_time(self) -> float:
        """Median seconds of construction."""
        return statistics.median(self.build_seconds)

    @property
    def query_time(self) -> float:
        """Median seconds of all queries."""
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

    @property
    def label(self) -> str:
        """The rival's name and its arguments."""
        return " ".join([self.rival, self.arguments]).strip()

    @property
    def arguments(self) -> str:
        return " ".join(f"{name}={value}" for name, value in {**self.build, **self.search}.items())

    @classmethod
    def of(cls, row: Row) -> Measurement:
        """Read a row."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


class Bench:
    """One data set, its truth, k and the run's threads: times settings and checks what they return.

    Parameters
    ----------
    data : Dataset
    k : int
    builds : int, optional
        Only so many builds of each grid, for smoke runs.
    run : Run, optional
        Keeps the steps, and says how many threads every rival, every BLAS and every OpenMP of the process gets.
    """

    def __init__(self, data: Dataset, k: int = 10, run: Run | None = None, builds: int | None = None) -> None:
        self.data, self.k, self.run, self.builds = data, k, run or Run(threads=THREADS), builds
        self.threads = self.run.threads
        self.name = f"{data.name} {data.shape}, {len(data.queries):,} queries, k={k}"
        self.run.same_data(self.name, data.checksum)
        gc.collect()
        gc.freeze()  # what is there now is not looked through again before every measurement

    @cached_property
    def radius(self) -> np.ndarray:
        return true_radius(self.data, self.k)

    # ------------------------------------------------------------------------------------------ one setting

    def fit(self, setting: Setting) -> tuple[Adapter, float]:
        """Build once; return the built rival and the seconds it took."""
        rival = setting.rival(self.threads, **setting.build)
        return rival, self.timed(lambda: rival.fit(self.data.points))[0]

    def query(self, rival: Adapter, search: Arguments, count: int | None = None) -> tuple[float, float]:
        """Answer the first `count` queries in one batch; return the recall and the seconds it took."""
        some = Dataset(self.data.name, self.data.points, self.data.queries[:count])
        seconds, ids = self.timed(lambda: rival.query(some.queries, self.k, **search))
        return recall(recompute(some, ids, self.k), self.radius[:count]), seconds

    def measure(self, settings: Sequence[Setting], until: float = 2.0) -> list[Measurement]:
        """Build once, answer all queries under each search in turn, check; stop when recall reaches `until`."""
        self.warm_up(settings[0].rival)
        rival, build_seconds = self.fit(settings[0])
        found = []
        for setting in settings:
            reached, seconds = self.query(rival, setting.search)
            found.append(_measurement(setting, rival, reached, build_seconds, seconds))
            if reached >= until:
                break
        return found

    def warm_up(self, rival: type[Adapter]) -> None:
        """Run a rival on a few points, once a process: its code is loaded, its threads are up."""
        few = self.data.head(2_000, 100)
        builds = rival.build_grid(*few.points.shape, 0.9)
        if rival not in _warm and builds:
            _warm.add(rival)
            some = rival(self.threads, **builds[0])
            search = rival.search_grid(builds[0])[0]
            self.timed(lambda: (some.fit(few.points), some.query(few.queries, self.k, **search)))

    # --------------------------------------------------------------------------------------- sweep and final

    def sweep(self, rival: type[Adapter], wanted: float, cost: str = "total") -> list[Measurement]:
        """Measure a rival at the least effort that reaches the wanted recall, for every build in its grid.

        One construction a build. The least effort is bisected on a sample of the queries (recall rises with effort),
        then timed once on all of them, with more effort where the sample flattered it. A build that cannot reach the
        recall is measured at its greatest effort. Builds come cheapest first: where the cost is the total, the rest
        is skipped once construction alone takes longer than the best total so far.
        """
        found: list[Measurement] = []
        for build in self.grid(rival, wanted):
            key = f"{wanted}: {rival.name} {build}"
            rows = self.step("sweep", key, wanted, lambda build=build: self._least(rival, build, wanted))
            found.append(Measurement.of(rows[0]))
            best = cheapest(found, wanted)
            if cost == "total" and best is not None and found[-1].build_time > best.total:
                break
        return found

    def grid(self, rival: type[Adapter], wanted: float) -> list[Arguments]:
        """Return the builds of a rival that are worth trying on this data."""
        return rival.build_grid(*self.data.points.shape, wanted)[: self.builds]

    def contenders(self, rival: type[Adapter], wanted: float, cost: str = "total", count: int = 2) -> list[Setting]:
        """Return what a rival's sweep finds cheapest at the recall: at most `count` settings, none if none reach it."""
        best = finalists(self.sweep(rival, wanted, cost), wanted, count, cost)
        return [Setting(rival, m.build, m.search) for m in best if getattr(m, cost) <= NEAR * getattr(best[0], cost)]

    def trace(self, rival: type[Adapter], build: Arguments, until: float) -> list[Measurement]:
        """Measure one build at every search of its grid, up to the first that reaches recall `until`."""
        settings = [Setting(rival, build, search) for search in rival.search_grid(build)]
        rows = self.step("trace", f"{rival.name} {build} up to {until}", None, lambda: self.measure(settings, until))
        return [Measurement.of(row) for row in rows]

    def interleave(
        self, suite: str, settings: Sequence[Setting], repeats: int, wanted: float | None = None
    ) -> list[Measurement]:
        """Measure settings in turn, each round starting with another one; settings that share a build share it.

        The rows go to `suite`, a step for each build and round.
        """
        groups = [list(group) for _, group in groupby(settings, lambda s: (s.rival.name, s.build))]
        rows: list[Row] = []
        for turn in range(repeats):
            shift = turn % max(len(groups), 1)
            for group in [*groups[shift:], *groups[:shift]]:
                searches = [setting.search for setting in group if setting.search]
                key = f"round {turn} at {wanted}: {group[0].rival.name} {group[0].build} {searches}"
                rows += self.step(suite, key, wanted, lambda group=group: self.measure(group))
        return [Measurement.of(row) for row in merge(rows)]

    # ----------------------------------------------------------------------------------------------- batches

    def calls(self, suite: str, settings: Sequence[Setting], batch: int, count: int, wanted: float) -> list[Row]:
        """Answer `count` batches of queries, the settings taking turns after every few calls."""
        batch = min(batch, len(self.data.queries))
        key = f"{wanted} batches of {batch}: {[(s.rival.name, s.build, s.search) for s in settings]}"
        return self.step(suite, key, wanted, lambda: self._calls(settings, batch, count))

    def _calls(self, settings: Sequence[Setting], batch: int, count: int) -> list[Row]:
        rivals = [self.fit(setting)[0] for setting in settings]
        starts = [call * batch % (len(self.data.queries) - batch + 1) for call in range(count)]
        seconds = np.empty((len(settings), count))
        ids = np.empty((len(settings), count, batch, self.k), dtype=np.int64)
        turns = list(blocks(count, max(1, min(50, count // 4))))
        with self.limits():
            for calls in turns:
                for which, (rival, setting) in enumerate(zip(rivals, settings, strict=True)):
                    rival.query(self.data.queries[:batch], self.k, **setting.search)  # the caches are its own again
                    for call in range(calls.start, calls.stop):
                        queries = self.data.queries[starts[call] : starts[call] + batch]
                        start = time.perf_counter()
                        ids[which, call] = rival.query(queries, self.k, **setting.search)
                        seconds[which, call] = time.perf_counter() - start
        # What the turns' medians differ by, the outer quarters left out: on a quiet machine, next to nothing.
        quarter, middle, three_quarters = np.quantile(
            [np.median(seconds[:, calls], axis=1) for calls in turns], (0.25, 0.5, 0.75), axis=0
        )
        asked = (np.array(starts)[:, None] + np.arange(ids.shape[2])).ravel()
        some = Dataset(self.data.name, self.data.points, self.data.queries[asked])
        return [
            {
                "rival": setting.rival.name,
                "build": setting.build,
                "search": setting.search,
                "batch": batch,
                "calls": count,
                "recall": recall(recompute(some, ids[which].reshape(-1, self.k), self.k), self.radius[asked]),
                "median": float(np.median(seconds[which])),
                "p90": float(np.quantile(seconds[which], 0.9)),
                "spread": float((three_quarters - quarter)[which] / middle[which]),
            }
            for which, setting in enumerate(settings)
        ]

    # --------------------------------------------------------------------------------------------- its parts

    def _least(self, rival: type[Adapter], build: Arguments, wanted: float) -> list[Measurement]:
        """Bisect for the least effort of one build that reaches the recall."""
        searches = rival.search_grid(build)
        self.warm_up(rival)
        built, seconds = self.fit(Setting(rival, build))
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
        return [_measurement(Setting(rival, build, search), built, reached[0], seconds, reached[1])]

    def step(self, suite: str, key: str, wanted: float | None, make: Callable[[], Iterable[Any]]) -> list[Row]:
        """Measure, unless the run has it: rows of a suite, each with all that the data set and the run say."""
        n, dim = self.data.points.shape
        context = {"suite": suite, "data": self.data.name, "n": n, "dim": dim, "queries": len(self.data.queries)}
        context |= {"k": self.k, "threads": self.threads, "wanted": wanted}

        def rows() -> list[Row]:
            print(f"  {suite}: {self.name} | {key}", file=sys.stderr, flush=True)
            return [context | (asdict(m) if isinstance(m, Measurement) else m) for m in make()]

        return self.run.step(f"{suite} | {self.name} | {key}", rows)

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds that a call takes under the run's threads, garbage collected before, and its result."""
        gc.collect()
        with self.limits():
            start = time.perf_counter()
            result = work()
            return time.perf_counter() - start, result

    def limits(self) -> contextlib.AbstractContextManager[Any]:
        """Limit every BLAS and OpenMP of the process to the run's threads."""
        return optional("threadpoolctl", "the harness").threadpool_limits(self.threads)


def _measurement(
    setting: Setting, rival: Adapter, reached: float, build_seconds: float, query_seconds: float
) -> Measurement:
    return Measurement(
        rival=setting.rival.name,
        build=setting.build,
        search=setting.search,
        recall=reached,
        build_seconds=[build_seconds],
        query_seconds=[query_seconds],
        notes=rival.notes(),
    )


def cheapest(measurements: Sequence[Measurement], wanted: float, cost: str = "total") -> Measurement | None:
    """Return the measurement with the least `cost` among those that reach the wanted recall."""
    return next(iter(finalists(measurements, wanted, 1, cost)), None)


def finalists(measurements: Sequence[Measurement], wanted: float, count: int, cost: str = "total") -> list[Measurement]:
    """Return the few cheapest that reach the wanted recall, cheapest first."""
    enough = [m for m in measurements if m.recall >= wanted]
    return sorted(enough, key=lambda m: getattr(m, cost))[:count]


def front(measurements: Sequence[Measurement], cost: str = "total") -> list[Measurement]:
    """Return the Pareto front in ascending recall: those that nothing beats in recall at the same or a lower cost."""
    best: list[Measurement] = []
    for m in sorted(measurements, key=lambda m: (-m.recall, getattr(m, cost))):
        if not best or getattr(m, cost) < getattr(best[-1], cost):
            best.append(m)
    return best[::-1]
