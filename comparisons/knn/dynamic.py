"""An index that changes: what adding, removing, saving and loading take, beside fitting what is there anew.

Points that come are points of the data set that were kept back, so that they are distributed as those that are there.
A row is one operation: its seconds, one entry a round, the `points` or `bytes` that it was about, and in `beside` the
operation of the same rounds that its time is to be seen against.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from comparisons.data.datasets import Dataset
from comparisons.harness.results import Row
from comparisons.harness.truth import InvalidAnswerError, recall, recompute, true_radius
from comparisons.knn.adapters import DCI, Adapter, HNSWLib
from comparisons.knn.bench import Bench

SHARE = 100  # one point of so many comes or goes in a call
BATCHES = 100  # in which all points come
CHURNS = 50  # rounds in which others take the place of all points
LEAST_SINGLE = 2_000  # points that come one by one, or a quarter of the data if it is little …
SINGLE_SHARE = 50  # … and one of so many of much data, so that new points have to join the structure
LEAST_READS = 200  # single queries, alone; more while points are added, as long as that takes
TURNS = 3  # batches of queries a round: the index that changed and the one that was fitted take turns
CONNECTIONS = {"M": 16}  # of the graph
STORES = ("float32", "float16", "int8")  # what points are kept in


class Changing:
    """Measures an index that changes, on one data set at one recall.

    Parameters
    ----------
    bench : Bench
    wanted : float
    rivals : list of Adapter classes
        hnswlib is looked at if it is among them.
    """

    def __init__(self, bench: Bench, wanted: float, rivals: list[type[Adapter]]) -> None:
        self.bench, self.wanted, self.rivals = bench, wanted, rivals
        points = bench.data.points
        few, single = max(1, len(points) // SHARE), max(LEAST_SINGLE, len(points) // SINGLE_SHARE)
        single = min(single, len(points) // 4)
        fitted = len(points) - 2 * few - single
        self.there, self.some, self.more, self.single = np.split(points, [fitted, fitted + few, fitted + 2 * few])

    def measure(self, suite: str, repeats: int) -> None:
        """Measure everything once a round, under another seed each."""
        bench = self.bench
        bench.warm_up(DCI)
        for turn in range(repeats):
            for part in (self.changes, self.one_by_one, self.churn, self.reads, self.stores, self.files):
                key = f"round {turn} at {self.wanted}: {part.__name__}"
                bench.step(suite, key, self.wanted, lambda part=part, turn=turn: list(part(turn)))
        if HNSWLib in self.rivals:
            bench.step(suite, f"{HNSWLib.name} one by one", self.wanted, lambda: [self.graph()])

    # ------------------------------------------------------------------------------------------ what is measured

    def changes(self, turn: int) -> Iterator[Row]:
        """Fit, add and remove 1 %; fit 1 % and add the rest in batches. Who starts changes from round to round."""
        parts = [self._single_calls, self._in_batches]
        for part in parts if turn % 2 == 0 else parts[::-1]:
            yield from part(turn)

    def _single_calls(self, turn: int) -> Iterator[Row]:
        index, seconds = self._fit(self.there, turn)
        answered = self._ask(self._there, [(index, 0)])[0]
        yield _row("fit", seconds, points=len(self.there), **answered)
        for operation, points in (("first add", self.some), ("second add", self.more)):
            seconds, _ = self.bench.timed(lambda points=points: index.add(points))
            yield _row(operation, seconds, points=len(points), beside="fit")
        gone = np.random.default_rng(turn).choice(index.ids, len(self.some), replace=False)
        seconds, _ = self.bench.timed(lambda: index.remove(gone))
        yield _row("remove", seconds, points=len(gone), beside="fit")

    def _in_batches(self, turn: int) -> Iterator[Row]:
        first, *others = np.array_split(self.there, BATCHES)

        def grow() -> Any:
            index = self._index(turn).fit(first)
            for batch in others:
                index.add(batch)
            return index

        seconds, index = self.bench.timed(grow)
        query = self.bench.data.queries[:1]
        first, _ = self.bench.timed(lambda: index.query(query, self.bench.k))  # does what was left as nobody asked
        answered = self._ask(self._there, [(index, 0)])[0]
        yield _row("in batches", seconds, points=len(self.there), beside="fit", **answered)
        yield _row("in batches, and a query", seconds + first, points=len(self.there), beside="fit")

    def one_by_one(self, turn: int) -> Iterator[Row]:
        """Add single points to an index that owns its points, as it does from the first call on."""
        index, _ = self._fit(self.there, turn)
        index.add(self.some)
        index.add(self.more)
        index.query(self.bench.data.queries[:1], self.bench.k)  # else new points would wait for one, outside
        yield self._singly("dci", index.add)

    def graph(self) -> Row:
        """Add the same points to a graph of hnswlib, once: to build it takes a minute."""
        rival = HNSWLib(self.bench.threads, **CONNECTIONS)
        self.bench.timed(lambda: rival.fit(np.concatenate([self.there, self.some])))
        rival.index.resize_index(len(self.there) + len(self.some) + len(self.single))
        return self._singly(HNSWLib.name, rival.index.add_items) | {"build": CONNECTIONS}

    def _singly(self, rival: str, add: Callable[[np.ndarray], Any]) -> Row:
        def run() -> None:
            for at in range(len(self.single)):
                add(self.single[at : at + 1])

        return _row("one by one", self.bench.timed(run)[0], rival, points=len(self.single))

    def churn(self, turn: int) -> Iterator[Row]:
        """Let half of the points take the place of the other half; then ask, beside an index of these alone."""
        points = self.bench.data.points
        half = len(points) // 2
        index, _ = self._fit(points[:half], turn)
        gone = np.array_split(np.random.default_rng(turn).permutation(half), CHURNS)
        come = np.array_split(points[half : 2 * half], CHURNS)

        def churn() -> None:
            for ids, batch in zip(gone, come, strict=True):
                index.remove(ids)
                index.add(batch)

        seconds, _ = self.bench.timed(churn)
        anew, fitted = self._fit(points[half : 2 * half], turn)
        churned, fresh = self._ask(self._second_half, [(index, half), (anew, 0)], TURNS)
        yield _row("churn", seconds, points=half, beside="fit anew", **churned)
        yield _row("fit anew", fitted, points=half, **fresh)

    def reads(self, turn: int) -> Iterator[Row]:
        """Ask one query after the other, alone and while another thread adds as many points as there are.

        Each of the two has one thread. A row's time is the longest that a query took.
        """
        points = self.bench.data.points
        half, load = len(points) // 2, DCI.load()
        index = load.DCI(recall=self.wanted, num_threads=1, random_state=turn).fit(points[:half])
        self._read(index, lambda taken: len(taken) >= LEAST_READS)  # an index measures budgets when it is first asked
        alone = self._read(index, lambda taken: len(taken) >= LEAST_READS)
        writer = threading.Thread(target=index.add, args=(points[half : 2 * half],))
        writer.start()
        meanwhile = self._read(index, lambda taken: not writer.is_alive() and len(taken) > 0)
        writer.join()
        if len(index) != 2 * half:
            raise InvalidAnswerError(f"expected {2 * half} points after adding, got {len(index)}")
        for operation, taken in (("longest read", alone), ("longest read, adding", meanwhile)):
            quantiles = {"median": float(np.median(taken)), "p99": float(np.quantile(taken, 0.99))}
            yield _row(operation, float(max(taken)), asked=len(taken), **quantiles)

    def _read(self, index: Any, enough: Callable[[list[float]], bool]) -> list[float]:
        queries, k, taken = self.bench.data.queries, self.bench.k, []
        with self.bench.limits():
            while not enough(taken):
                start = time.perf_counter()
                index.query(queries[len(taken) % len(queries)], k)
                taken.append(time.perf_counter() - start)
        return taken

    def stores(self, turn: int) -> Iterator[Row]:
        """Keep points as float32, float16 and int8, which are fitted and asked in turns."""
        fitted = {store: self._fit(self.there, turn, store) for store in np.roll(STORES, turn).tolist()}
        answers = self._ask(self._there, [(index, 0) for index, _ in fitted.values()], TURNS)
        for (store, (index, seconds)), answered in zip(fitted.items(), answers, strict=True):
            more = {} if store == STORES[0] else {"beside": _kept_as(STORES[0])}
            reachable = index.stats_.exact_recall_at_10
            more |= {"memory": index.nbytes, "reachable": 1.0 if reachable is None else reachable}
            yield _row(_kept_as(store), seconds, points=len(index), **more, **answered)

    def files(self, turn: int) -> Iterator[Row]:
        """Save and load, beside a plain file of as many bytes that is written and synced in the same directory.

        What is read was just written, and is in the system's memory.
        """
        index, _ = self._fit(self.there, turn)
        timed, load = self.bench.timed, DCI.load().load
        queries, k = self.bench.data.queries, self.bench.k
        kept = self.bench.run.path
        with tempfile.TemporaryDirectory(prefix="dynamic-", dir=kept and kept.parent) as folder:
            path, saved, plain = (Path(folder, name) for name in ("index", "saved", "plain"))
            index.save(path)
            content = path.read_bytes()
            ways = {"save": lambda: index.save(saved), "write": lambda: _write(plain, content)}
            seconds = {}
            for way in sorted(ways, reverse=turn % 2 == 0):
                seconds[way], _ = timed(ways[way])
            seconds["load"], loaded = timed(lambda: load(path))
            seconds["map"], _ = timed(lambda: load(path, mmap=True))
            seconds["map and query"], _ = timed(lambda: load(path, mmap=True).query(queries[:1], k))
            expected = index.query(queries, k).indices
            for other in (loaded, load(path, mmap=True)):
                if not np.array_equal(other.query(queries, k).indices, expected):
                    raise InvalidAnswerError("expected the same answers from an index that was loaded, got others")
        for way, taken in seconds.items():
            yield _row(way, taken, bytes=len(content), **({"beside": "write"} if way == "save" else {}))

    # ------------------------------------------------------------------------------------------------- its parts

    def _index(self, turn: int, store: str = STORES[0]) -> Any:
        return DCI.load().DCI(recall=self.wanted, store=store, num_threads=self.bench.threads, random_state=turn)

    def _fit(self, points: np.ndarray, turn: int, store: str = STORES[0]) -> tuple[Any, float]:
        index = self._index(turn, store)
        seconds, _ = self.bench.timed(lambda: index.fit(points))
        return index, seconds

    @cached_property
    def _there(self) -> tuple[Dataset, np.ndarray]:
        return self._truth(self.there)

    @cached_property
    def _second_half(self) -> tuple[Dataset, np.ndarray]:
        half = len(self.bench.data.points) // 2
        return self._truth(self.bench.data.points[half : 2 * half])

    def _truth(self, points: np.ndarray) -> tuple[Dataset, np.ndarray]:
        data = Dataset(self.bench.data.name, points, self.bench.data.queries)
        return data, true_radius(data, self.bench.k)

    def _ask(self, truth: tuple[Dataset, np.ndarray], indexes: list[tuple[Any, int]], turns: int = 1) -> list[Row]:
        """Ask indexes of the same points, whose first ids are given, for recall and the median time of some turns.

        Nobody's first batch is timed: an index measures budgets when it is first asked.
        """
        data, radius = truth
        found: list[Row] = []
        for index, first in indexes:
            ids = index.query(data.queries, self.bench.k).indices
            ids = np.where(ids < 0, -1, ids - first)
            found.append({"recall": recall(recompute(data, ids, self.bench.k), radius)})
        taken = np.empty((turns, len(indexes)))
        for turn in range(turns):
            for which in np.roll(np.arange(len(indexes)), turn):
                query = indexes[which][0].query
                taken[turn, which], _ = self.bench.timed(lambda query=query: query(data.queries, self.bench.k))
        for row, seconds in zip(found, np.median(taken, axis=0), strict=True):
            row["query_seconds"] = [float(seconds)]
        return found


def _kept_as(store: str) -> str:
    return f"fit as {store}"


def _row(operation: str, seconds: float, rival: str = "dci", **more: Any) -> Row:
    return {"rival": rival, "operation": operation, "seconds": [seconds], **more}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
