"""k-NN: ``pytest comparisons/test_knn.py --benchmark-only`` (about twenty minutes), with ``--smoke`` under a minute.

The clock of pytest-benchmark times `dci` (for --benchmark-compare); ratios come from the harness, where the rivals take
turns. Both, with recall and parameters, are in ``extra_info``. Bars on time hold in full runs on a quiet machine only.
"""

from __future__ import annotations

import pytest

from comparisons import knn, machine
from comparisons.adapters import DCI, FaissHNSW, FaissIVF
from comparisons.harness import THREADS, Bench, Setting

RECALL_MARGIN = 0.01  # calibrated on a sample, measured on other queries
EVERY_SET = pytest.mark.parametrize("name", knn.GOALS)


def load(name: str, smoke: bool):
    if smoke and name not in knn.SMOKE:
        pytest.skip(f"{name} is not in the smoke run")
    return knn.load(name, smoke)


@EVERY_SET
def test_total_time(benchmark, name, smoke):
    """Construction plus 10,000 queries at equal recall, against the best IVF and exact search."""
    data, goal = load(name, smoke), knn.GOALS[name]
    benchmark.group = "total time"
    row = knn.compare(data, goal.recall, repeats=1 if smoke else 3, threads=THREADS)
    benchmark.extra_info.update(row.record())
    setting = Setting(DCI, {"recall": goal.recall})

    def fit_and_query():
        rival = setting.rival(THREADS, **setting.build)
        rival.fit(data.points)
        rival.query(data.queries, knn.K)

    benchmark.pedantic(fit_and_query, rounds=1 if smoke else 3)
    assert row.dci.recall >= goal.recall - RECALL_MARGIN
    if not smoke:
        quiet = "the machine was busy" if row.busy else "quiet machine"
        assert row.over_flat >= goal.over_flat, f"{knn.totals_table([row])} ({quiet})"
        if goal.over_ivf and row.over_ivf:
            assert row.over_ivf >= goal.over_ivf, f"{knn.totals_table([row])} ({quiet})"


@pytest.mark.parametrize("name", ["manifold", "glove"])
def test_one_query_at_a_time(benchmark, name, smoke):
    """Median latency of single queries, at most that of the fastest IVF at equal recall."""
    data, goal = load(name, smoke), knn.GOALS[name]
    benchmark.group = "one query"
    dci, ivf = knn.latency(data, goal.recall, THREADS)
    benchmark.extra_info.update(dci=dci, ivf=ivf)
    index, _ = Bench(data.head(len(data.points), 1), knn.K, THREADS).fit(Setting(DCI, {"recall": goal.recall}))
    turn = iter(range(1 << 62))
    benchmark(lambda: index.query(data.queries[(row := next(turn) % len(data.queries)) : row + 1], knn.K))
    assert dci["recall"] >= goal.recall - 2 * RECALL_MARGIN  # a tenth of the queries
    if not smoke:
        assert dci["median"] <= ivf["median"], (dci, ivf)


def test_growth_with_n(benchmark, smoke):
    """Cost per query against n on GloVe: exponent at most 0.6."""
    sizes = (5, 10, 20) if smoke else (25, 50, 100, 200, 400)
    benchmark.group = "growth"
    sets = [knn.datasets.load(f"glove-{thousands}k") for thousands in sizes]
    if smoke:
        sets = [data.head(len(data.points), 500) for data in sets]
    exponent, rows = benchmark.pedantic(knn.growth, (sets, 0.9), {"repeats": 1 if smoke else 3, "threads": THREADS})
    benchmark.extra_info.update(exponent=exponent, rows=rows)
    assert all(row["recall"] >= 0.9 - RECALL_MARGIN for row in rows)
    if not smoke:
        assert exponent <= 0.6, rows


@pytest.mark.parametrize("rival", [DCI, FaissIVF, FaissHNSW], ids=lambda rival: rival.name)
@pytest.mark.parametrize("name", ["manifold", "glove"])
def test_construction(benchmark, name, rival, smoke):
    """Construction alone; IVF with the middle of its grid, HNSW with M = 8."""
    data, goal = load(name, smoke), knn.GOALS[name]
    benchmark.group = f"construction, {name}"
    grid = rival.build_grid(len(data.points), goal.recall)
    build = grid[0] if rival is FaissHNSW else grid[len(grid) // 2]
    benchmark.extra_info.update(rival=rival.name, build=build, points=data.points.shape)
    benchmark.pedantic(lambda: rival(THREADS, **build).fit(data.points), rounds=1 if smoke else 3)


@EVERY_SET
def test_calibrated_recall_holds_on_unseen_queries(benchmark, name, smoke):
    """Each recall asked for is reached, within the margin, on queries that calibration never saw."""
    data = load(name, smoke)
    benchmark.group = "calibration"
    reached = benchmark.pedantic(knn.calibration, (data,), {"threads": THREADS})
    benchmark.extra_info.update(reached={str(wanted): value for wanted, value in reached.items()})
    margin = 0.03 if smoke else RECALL_MARGIN  # 500 queries
    assert all(value >= wanted - margin for wanted, value in reached.items()), reached


@EVERY_SET
def test_memory(benchmark, name, smoke):
    """Fit and query need at most the data's own size plus 200 MB on top of the data."""
    if smoke:
        pytest.skip("memory is measured on whole data sets")
    load(name, smoke)  # made and cached here, not in the measured process
    benchmark.group = "memory"
    growth = benchmark.pedantic(machine.memory_growth, (name, knn.GOALS[name].recall, THREADS))
    benchmark.extra_info.update(growth)
    assert growth["growth_bytes"] <= growth["data_bytes"] + 200e6, growth
