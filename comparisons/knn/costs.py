"""The constants of the ranking cost model, measured anew: what `dci` takes an operation to cost on this machine.

`dci` chooses between exact search, ranking and budgets by estimated times, which are linear in a few constants of its
own, in nanoseconds. Here the searches that they stand for are timed on one thread over several sizes, and the constants
are fitted to these times. Nothing is changed by it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

import dci
from comparisons.data import datasets
from comparisons.report import tables

K = 10

NAMES = {
    "product": "one coordinate of one point against one query, in a tile",
    "candidate": "a candidate: its selection and a cache miss",
    "coordinate": "a coordinate of a candidate",
    "cell": "scoring and selecting among cells, each",
    "query": "a ranked query, whatever its budget",
    "exact": "an exact query, whatever the points",
    "mask": "a point, of a call with a filter",
}


class Model(NamedTuple):
    """The cost model of `dci`: its constants by the names above, in ns, and the estimates it makes of them."""

    constants: Mapping[str, float]
    exact_cost: Callable[[int, int], float]  # of n points of d coordinates
    ranked_cost: Callable[[float, float, int, int, int], float]  # of visits, candidates, L m, d and cells


def current_model() -> Model:
    """Return the model in use. Only here is it known where `dci` keeps it."""
    from dci._tuning import cost_model

    c = cost_model.COSTS
    constants = {
        "product": c.product,
        "candidate": c.candidate,
        "coordinate": c.coordinate,
        "cell": c.cell,
        "query": c.ranked_query,
        "exact": c.exact_query,
        "mask": c.masked_point,
    }
    return Model(constants, cost_model.exact_cost, cost_model.ranked_cost)


class Timed(NamedTuple):
    """Nanoseconds of one query, how often each constant counts in them, and what the model adds to these."""

    ns: float
    counts: Mapping[str, float]
    fixed: float


class Sizes(NamedTuple):
    """What is timed."""

    n_points: tuple[int, ...]
    dims: tuple[int, ...]
    n_queries: int
    n_simple: tuple[int, ...]
    n_levels: tuple[int, ...]
    visits: tuple[float, ...]  # shares of the points
    candidates: tuple[int, ...]
    repeats: int


FULL = Sizes((2_000, 10_000, 50_000), (32, 128, 512), 500, (8, 32), (2, 3), (0.02, 0.1, 0.3), (20, 200, 1000), 3)
SMOKE = Sizes((2_000, 6_000), (32, 64), 200, (8,), (2, 3), (0.05, 0.2), (20, 200), 1)


# --------------------------------------------------------------------------------------- what a search consists of


def exact_counts(n: int, dim: int) -> dict[str, float]:
    """How often the constants count in one exact query."""
    return {"exact": 1, "product": n * dim}


def ranked_counts(visits: float, candidates: float, width: int, dim: int, n_cells: int) -> dict[str, float]:
    """How often the constants count in one ranked query, `width` being L m."""
    return {
        "query": 1,
        "product": (visits + n_cells) * width,
        "candidate": candidates,
        "coordinate": candidates * dim,
        "cell": n_cells,
    }


def total(counts: Mapping[str, float], constants: Mapping[str, float]) -> float:
    """Return the time that counts and constants make, in ns."""
    return sum(count * constants[name] for name, count in counts.items())


# ------------------------------------------------------------------------------------------------------- measuring


def measure(model: Model, sizes: Sizes) -> list[Timed]:
    """Time exact search, ranked search with explicit budgets, and calls with a filter, on one thread."""
    out: list[Timed] = []
    for n, dim in itertools.product(sizes.n_points, sizes.dims):
        data = datasets.load(f"manifold-{n // 1000}k-12-{dim}")
        queries = data.queries[: sizes.n_queries]
        each = 1e9 / len(queries)
        seconds = least_seconds(lambda: dci.exact(data.points, queries, K, num_threads=1), sizes.repeats)  # noqa: B023
        counts = exact_counts(n, dim)
        out.append(Timed(seconds * each, counts, model.exact_cost(n, dim) - total(counts, model.constants)))
        for m, levels in itertools.product(sizes.n_simple, sizes.n_levels):
            index = dci.DCI(
                directions="principal", n_composite=1, n_simple=m, n_levels=levels,
                recall=1.0,  # no budget is calibrated: all of them are told
                random_state=0, num_threads=1,
            ).fit(data.points)  # fmt: skip
            out += _ranked(model, sizes, index, queries, m)
            out.append(_masked(index, queries[:1], max(sizes.repeats, 3)))
    return out


def _ranked(model: Model, sizes: Sizes, index: dci.DCI, queries: np.ndarray, width: int) -> Iterator[Timed]:
    n_cells = index.stats_.n_cells
    for share, candidates in itertools.product(sizes.visits, sizes.candidates):
        visits = int(share * index.n_points)
        if candidates > visits:
            continue
        budget = {"max_visits": visits, "max_candidates": candidates}
        seconds = least_seconds(lambda: index.query(queries, K, **budget), sizes.repeats)  # noqa: B023
        of = visits, candidates, width, index.dim, n_cells
        counts = ranked_counts(*of)
        fixed = model.ranked_cost(*of) - total(counts, model.constants)
        yield Timed(seconds * 1e9 / len(queries), counts, fixed)


def _masked(index: dci.DCI, query: np.ndarray, repeats: int) -> Timed:
    """Time a call with a filter that allows all points but one; what it takes without is no part of the constant."""
    allowed = np.ones(index.n_points, bool)
    allowed[0] = False
    budget = {"max_visits": index.n_points // 20, "max_candidates": 2 * K}
    without = least_seconds(lambda: index.query(query, K, **budget), repeats)
    masked = least_seconds(lambda: index.query(query, K, filter=allowed, **budget), repeats)
    return Timed(masked * 1e9, {"mask": index.n_points}, without * 1e9)


def least_seconds(call: Callable[[], object], repeats: int) -> float:
    """Time a call, after one that warms up: processor time of this thread, the least of the repeats."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        call()
        times.append(time.thread_time() - begin)
    return min(times)


# --------------------------------------------------------------------------------------------------------- fitting


def fit(timed: list[Timed]) -> tuple[dict[str, float], float]:
    """Fit the constants; return them and the median relative error of the times that they make."""
    ns = np.array([one.ns for one in timed])
    counts = np.array([[one.counts.get(name, 0) for name in NAMES] for one in timed], dtype=float)
    fixed = np.array([one.fixed for one in timed])
    # Relative errors: a time of 10 µs says as much as one of a millisecond.
    found = nonnegative(counts / ns[:, None], (ns - fixed) / ns)
    error = float(np.median(np.abs(counts @ found + fixed - ns) / ns))
    return dict(zip(NAMES, found.tolist(), strict=True)), error


def nonnegative(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares of A x - b over x >= 0.

    For few columns: the best of the ordinary solutions over subsets of columns that happen to be non-negative.
    """
    scale = np.maximum(np.linalg.norm(A, axis=0), np.finfo(float).tiny)
    best, best_error = np.zeros(A.shape[1]), float(np.linalg.norm(b))
    for chosen in itertools.product((False, True), repeat=A.shape[1]):
        columns = np.flatnonzero(chosen)
        if len(columns) == 0:
            continue
        x = np.linalg.lstsq(A[:, columns] / scale[columns], b, rcond=None)[0]
        error = float(np.linalg.norm(A[:, columns] / scale[columns] @ x - b))
        if (x >= 0).all() and error < best_error:
            best_error = error
            best = np.zeros(A.shape[1])
            best[columns] = x / scale[columns]
    return best


def report(smoke: bool = False) -> str:
    """Measure, fit, and compare with the constants in use, as text."""
    model = current_model()
    timed = measure(model, SMOKE if smoke else FULL)
    found, error = fit(timed)
    table = [["constant", "now", "measured here", "ratio"]]
    for name, what in NAMES.items():
        now, here = model.constants[name], found[name]
        table.append([f"{name}: {what}", _ns(now), _ns(here), f"{here / now:.2f}"])
    return (
        f"{tables.markdown(table)}\n\nFrom {len(timed)} times on one thread, half of which the fit misses by less than "
        f"{error:.0%}. dci uses the constants of now on every machine; only how they compare with each other counts."
    )


def _ns(value: float) -> str:
    return f"{value:,.0f} ns" if value >= 100 else f"{value:.3g} ns"
