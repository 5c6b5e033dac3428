"""The suite of shards: its points, a small run, bars and table."""

import numpy as np
import pytest

from comparisons.data.datasets import ComparisonError
from comparisons.data.mixture import Mixture
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.knn import sharded, suites
from comparisons.knn.out_of_core import make
from comparisons.report import bars, tables

pytest.importorskip("distributed")


def test_workers_make_the_points_of_the_mixture(monkeypatch):
    monkeypatch.setattr(sharded, "BLOCK", 70)
    monkeypatch.setattr("comparisons.knn.out_of_core.BLOCK", 70)
    monkeypatch.setattr("comparisons.data.mixture.BLOCK", 70)
    points = make(Mixture(8), 500)
    for start, stop in ((0, 500), (0, 10), (60, 75), (69, 141), (490, 500)):
        np.testing.assert_array_equal(sharded._rows((500, 8), start, stop), points[start:stop])


def test_a_run(tmp_path, monkeypatch):
    for name, less in (("SAMPLE", 50), ("MANY", 4), ("SINGLE", 2)):
        monkeypatch.setattr(sharded, name, less)
    run = Run(tmp_path / "run.json", threads=2)
    suites.SHARDED.run(run, "mixture-4k-16", Options(smoke=True, repeats=2))
    rows = {row["operation"]: row for row in run.rows()}
    assert list(rows) == ["one", "sharded", "cells", "merge", "one query", "move"]
    for way in ("one", "sharded"):
        assert len(rows[way]["build_seconds"]) == len(rows[way]["query_seconds"]) == 2
        assert rows[way]["recall"] >= 0.85
        assert rows[way]["processor"] > 0
    assert rows["sharded"]["memory"] > 0
    assert rows["sharded"]["visited"] == 2
    assert 0 < rows["cells"]["visited"] <= 1
    assert rows["cells"]["shards"] == 8
    assert [bar.asked for bar in bars.bars(run.rows())] == ["recall 0.9 within 0.05"] * 3  # little data
    table = tables.of_suite(run.rows(), "sharded")
    assert len(table) == 7
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("name", ["glove", "mixture-0k-96"])
def test_other_data_are_refused(name):
    with pytest.raises(ComparisonError, match="expected mixture-<n>k-<dim>"):
        suites.SHARDED.read(name, False)


def rows_of(taken=1.15, memory=1.5, recall=0.9, n=1_000_000):
    context = {"suite": "sharded", "data": "mixture", "n": n, "dim": 96, "wanted": 0.9, "rival": "dci", "k": 10}
    context |= {"queries": 10_000, "threads": 2, "points": n, "recall": recall}
    return [
        context | {"operation": "one", "build_seconds": [0.7, 0.8], "query_seconds": [0.3, 0.2]},
        context | {"operation": "sharded", "build_seconds": [taken - 0.2, 0.1, 9.0], "query_seconds": [0.2, 0.1, 1.0],
                   "memory": memory, "visited": 2.0},
    ]  # fmt: skip


def test_bars():
    assert [bar.holds for bar in bars.bars(rows_of())] == [True] * 4
    for made_worse, words in (
        ({"taken": 1.21}, "at most 1.2 x the time of one index"),
        ({"memory": 1.61}, "a worker holds at most 1.6 x its shards"),
        ({"recall": 0.88}, "recall 0.9"),
    ):
        missed = [bar for bar in bars.bars(rows_of(**made_worse)) if not bar.holds]
        assert all(words in bar.asked for bar in missed)
        assert missed
    assert len(bars.bars(rows_of(n=20_000))) == 2
