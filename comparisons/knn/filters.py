"""Queries with a filter, beside exact search of the allowed points alone: what a caller without filters would do.

For every number of allowed points `dci` chooses between ranking and exact search by itself. The bar: never slower than
exact search of a copy of these points, plus a tenth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import dci
from comparisons.report import tables

K = 10
MOST = 1.1  # times exact search of the allowed points


class Sizes(NamedTuple):
    """What is timed."""

    n: int
    dim: int
    allowed: tuple[int, ...]
    batches: tuple[int, ...]
    rounds: int


FULL = Sizes(
    200_000, 50, (10, 100, 1_000, 5_000, 10_000, 20_000, 30_000, 50_000, 100_000, 150_000, 199_999), (1, 100), 15
)
SMOKE = Sizes(5_000, 20, (10, 500, 2_500, 4_999), (1, 10), 2)
KINDS = ("ids", "mask")


class Timed(NamedTuple):
    """Medians of seconds a call, and of the ratios of the rounds."""

    allowed: int
    batch: int
    kind: str
    seconds: float
    exact: float
    ratio: float


def measure(sizes: Sizes, num_threads: int) -> Iterator[Timed]:
    """Time filters of every size; both ways take turns, and who starts changes from round to round."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((sizes.n, 8), dtype=np.float32) @ rng.standard_normal((8, sizes.dim), dtype=np.float32)
    X += 0.1 * rng.standard_normal(X.shape, dtype=np.float32)
    index = dci.DCI(random_state=0, num_threads=num_threads).fit(X)
    for count in sizes.allowed:
        ids = np.sort(rng.choice(sizes.n, count, replace=False))
        mask = np.isin(np.arange(sizes.n), ids)
        for batch in sizes.batches:
            queries = X[rng.choice(sizes.n, batch)] + np.float32(0.1)
            calls = max(1, 20 // batch)
            for kind, chosen in zip(KINDS, (ids, mask), strict=True):
                ours = _calls(lambda q, chosen=chosen: index.query(q, K, filter=chosen), queries, calls)
                exact = _calls(
                    lambda q, chosen=chosen: dci.exact(X[chosen], q, K, num_threads=num_threads), queries, calls
                )
                yield Timed(count, batch, kind, *_paired(ours, exact, sizes.rounds))


def _calls(ask: Callable[[np.ndarray], object], queries: np.ndarray, count: int) -> Callable[[], float]:
    def timed() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            ask(queries)
        return (time.perf_counter() - begin) / count

    return timed


def _paired(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    first(), second()
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            pairs.append((first(), second()))
        else:
            late = second()
            pairs.append((first(), late))
    ours, exact = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(exact), statistics.median(a / b for a, b in pairs)


def report(num_threads: int, smoke: bool = False) -> str:
    """Measure, and return the times as a table with the worst ratio below."""
    timed = list(measure(SMOKE if smoke else FULL, num_threads))
    rows = [["allowed", "queries", "filter", "dci", "exact", "ratio"]]
    for one in timed:
        numbers = tables.time(one.seconds), tables.time(one.exact), f"{one.ratio:.2f}"
        rows.append([f"{one.allowed:,}", str(one.batch), one.kind, *numbers])
    worst = max(timed, key=lambda one: one.ratio)
    return (
        f"{tables.markdown(rows)}\n\nAt worst {worst.ratio:.2f} times exact search of the allowed points "
        f"({worst.allowed:,} of them, {worst.batch} queries, {worst.kind}); the bar is {MOST}."
    )
