"""The suite of a mapped index: its points, its truth, what the process that asks reports; bars and table."""

import numpy as np
import pytest

from comparisons.data import mixture
from comparisons.data.datasets import ComparisonError
from comparisons.data.mixture import Mixture
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.knn import out_of_core, suites
from comparisons.report import bars, tables


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(out_of_core, "SAMPLE", 20)
    monkeypatch.setattr(out_of_core, "MORE", 40)
    monkeypatch.setattr(out_of_core, "SINGLE", 5)


def test_the_mixture_is_the_same_in_blocks_of_any_number(monkeypatch):
    monkeypatch.setattr(mixture, "BLOCK", 300)
    points = np.concatenate(list(Mixture(24).blocks(1000)))
    assert points.shape == (1000, 24)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(Mixture(24).blocks(600))), points[:600])
    assert len(np.unique(points, axis=0)) == 1000
    queries = Mixture(24).queries(50)
    assert queries.shape == (50, 24)
    assert not set(map(bytes, queries)) & set(map(bytes, points))
    assert abs(queries.std() - points.std()) < 0.2 * points.std()


def test_the_truth_in_blocks_is_that_of_all_points(monkeypatch):
    monkeypatch.setattr(out_of_core, "BLOCK", 70)
    points, queries = next(Mixture(16).blocks(500)), Mixture(16).queries(12)
    distances = np.linalg.norm(points.astype(float) - queries[:, None].astype(float), axis=2)
    received = out_of_core.kth_distance(points, queries, 7)
    np.testing.assert_allclose(received, np.sort(distances, axis=1)[:, 6], rtol=1e-5)


def test_a_run(tmp_path, monkeypatch):
    run = Run(tmp_path / "run.json", threads=1)
    suites.OUT_OF_CORE.run(run, "mixture-4k-16", Options(smoke=True, repeats=1))
    rows = run.rows()
    made, asked = (
        ["make", "truth", "fit", "save"],
        ["map", "map again", "first answer", "one by one", "batch", "batch again", "sample"],
    )
    assert [row["operation"] for row in rows] == made + asked
    assert all(row["n"] == 4000 and row["dim"] == 16 and len(row["seconds"]) == 1 for row in rows)
    for row in rows[len(made) :]:
        held = row["resident"]
        assert 0 < max(held["anon"], held["file"]) <= held["peak"] < 2**30
        assert row["bytes"] > 4000 * 16 * 4
    assert rows[-1]["recall"] >= 0.85
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert [bar.asked for bar in bars.bars(rows)] == ["recall 0.9 within 0.05"]  # little data
    table = tables.of_suite(rows, "out_of_core")
    assert len(table) == 1 + len(rows)
    assert len({len(line) for line in table}) == 1
    assert table[1][2] == "0.00 GB"
    assert [line[2] for line in table if line[1] == "sample"] == ["300 queries"]


def test_what_the_process_that_asks_says_when_it_fails(small, tmp_path):
    (tmp_path / "index").write_bytes(b"nothing")
    np.save(tmp_path / "queries.npy", np.zeros((60, 4), np.float32))
    with pytest.raises(ComparisonError, match="asking the mapped index failed: .*index"):
        out_of_core._apart(tmp_path / "index", tmp_path / "queries.npy", tmp_path / "answers.npy", 1)


@pytest.mark.parametrize("name", ["glove", "mixture-0k-96", "mixture-10m-96"])
def test_other_data_are_refused(name):
    with pytest.raises(ComparisonError, match="expected mixture-<n>k-<dim>"):
        suites.OUT_OF_CORE.read(name, False)


def rows_of(n, peak=1.9e9, opened=0.049, recall=0.9, nbytes=1.1e9):
    context = {"suite": "out_of_core", "data": "mixture", "n": n, "dim": 96, "wanted": 0.9, "rival": "dci", "k": 10}
    context |= {"queries": 300, "threads": 2}
    held = {"peak": peak, "anon": 0.4e9, "file": 1.5e9}
    return [
        context | {"operation": "save", "seconds": [3.0], "bytes": nbytes, "resident": {"peak": 9e9}},
        context | {"operation": "map again", "seconds": [opened], "bytes": nbytes, "resident": held | {"peak": 1e8}},
        context | {"operation": "batch", "seconds": [6.0], "asked": 3000, "bytes": nbytes, "resident": held},
        context | {"operation": "sample", "seconds": [0.6], "asked": 300, "bytes": nbytes, "recall": recall,
                   "resident": held},
    ]  # fmt: skip


def test_bars():
    found = bars.bars(rows_of(10_000_000))
    assert [bar.holds for bar in found] == [True] * 3
    assert found[1].reached == "1.90 GB (0.40 GB its own, 1.50 GB of files)"
    for made_worse, words in (
        ({"peak": 2.01e9}, "2 GB resident"),
        ({"opened": 0.05}, "opened with mmap"),
        ({"recall": 0.84}, "recall"),
    ):
        (missed,) = [bar for bar in bars.bars(rows_of(10_000_000, **made_worse)) if not bar.holds]
        assert words in missed.asked
    assert len(bars.bars(rows_of(10_000_000, nbytes=4e9))) == 2  # another size, for which no time is asked
    assert len(bars.bars(rows_of(20_000))) == 1
    table = tables.of_suite(rows_of(10_000_000), "out_of_core")
    assert table[3][1:] == ["batch", "3,000 queries", "6 s", "2 ms", "1.90 GB", "0.40 GB", "1.50 GB", ""]
