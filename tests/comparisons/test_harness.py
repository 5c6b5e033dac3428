"""The harness that judges the rivals: what it accepts, counts and chooses. No test looks at a clock."""

import json
from typing import ClassVar

import numpy as np
import pytest

from comparisons import datasets, knn, machine
from comparisons.adapters import Adapter, FaissIVF
from comparisons.harness import (
    Bench,
    InvalidAnswerError,
    Measurement,
    Setting,
    busy,
    cheapest,
    finalists,
    plain,
    recall,
    recompute,
    true_radius,
)


@pytest.fixture
def line():
    """Points 0, 1, 2, …, 9 and a copy of 2 on a line; queries at 0 and at 2."""
    points = np.array([*range(10), 2], dtype=np.float32)[:, None]
    return datasets.Dataset("line", points, np.array([[0], [2]], dtype=np.float32))


@pytest.fixture
def cloud():
    rows = np.random.default_rng(0).standard_normal((360, 5), dtype=np.float32)
    return datasets.Dataset("cloud", rows[:300], rows[300:])


class Partial(Adapter):
    """Exact search among the first `share` percent of the points, so that recall is known to rise with it."""

    name = "partial"
    fitted: ClassVar[list[dict]] = []
    queried: ClassVar[list[dict]] = []

    @classmethod
    def build_grid(cls, n_points, recall):
        return [{"reach": 50}, {"reach": 100}]

    @classmethod
    def search_grid(cls, build):
        return [{"share": share} for share in range(10, build["reach"] + 1, 10)]

    def fit(self, points):
        self.fitted.append(self.build)
        self.points = points

    def query(self, queries, k, share=100):
        self.queried.append({"share": share})
        some = self.points[: max(k, len(self.points) * share // 100)]
        distances = ((queries[:, None] - some) ** 2).sum(axis=2)
        return np.argsort(distances, axis=1)[:, :k]


@pytest.fixture(autouse=True)
def forget():
    Partial.fitted.clear()
    Partial.queried.clear()


def measurement(total, reached, label="", spread=0.0):
    return Measurement("rival", label, {}, {}, reached, [0.0, 0.0], [total, total * (1 + spread)])


# ------------------------------------------------------------------------------------------ truth and recall


def test_true_radius_is_the_distance_to_the_kth_neighbour(cloud):
    distances = np.linalg.norm(cloud.queries[:, None].astype(float) - cloud.points, axis=2)
    np.testing.assert_allclose(true_radius(cloud, 7), np.sort(distances, axis=1)[:, 6], rtol=1e-6)


def test_recall_counts_either_of_two_tied_points(line):
    radius = true_radius(line, 1)
    for tied in (2, 10):
        assert recall(recompute(line, np.array([[0], [tied]]), 1), radius) == 1.0
    assert recall(recompute(line, np.array([[0], [3]]), 1), radius) == 0.5


def test_recall_counts_a_tie_for_the_last_place(line):
    ids = np.array([[0, 1, 2], [2, 10, 1]])  # 1 and 3 are equally far from 2
    radius = true_radius(line, 3)
    assert recall(recompute(line, ids, 3), radius) == 1.0
    ids[1, 2] = 3
    assert recall(recompute(line, ids, 3), radius) == 1.0
    ids[1, 2] = 4
    assert recall(recompute(line, ids, 3), radius) == pytest.approx(5 / 6)


def test_nothing_found_is_allowed_and_counts_as_a_miss(line):
    distances = recompute(line, np.array([[0, -1], [-1, -1]]), 2)
    assert distances[0].tolist() == [0, np.inf]
    assert recall(distances, true_radius(line, 2)) == 0.25


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [3, 3]], "twice for query 1"),
        ([[0, 1], [2, 11]], r"expected ids in \[-1, 11\)"),
        ([[0, 1], [2, -2]], r"expected ids in \[-1, 11\)"),
        ([[0, 1]], r"expected integer ids of shape \(2, 2\)"),
        ([[0.0, 1.0], [2.0, 3.0]], "expected integer ids"),
    ],
)
def test_invalid_answers_are_rejected(line, ids, message):
    with pytest.raises(InvalidAnswerError, match=message):
        recompute(line, np.array(ids), 2)


# ---------------------------------------------------------------------------------------- sweeps and choices


def test_cheapest_is_the_fastest_that_reaches_the_recall():
    rows = [measurement(1, 0.8), measurement(3, 0.95), measurement(2, 0.9), measurement(9, 1)]
    assert cheapest(rows, 0.9) is rows[2]
    assert finalists(rows, 0.9, 2) == [rows[2], rows[1]]
    assert cheapest(rows[:1], 0.9) is None


def test_sweep_finds_the_least_effort_that_reaches_the_recall(cloud):
    bench = Bench(cloud, k=5, threads=1)
    reached = {share: recall(_answer(cloud, share), bench.radius) for share in range(10, 101, 10)}
    least = min(share for share, value in reached.items() if value >= 0.8)
    found = bench.sweep(Partial, 0.8, cost="query_time")
    assert [m.build for m in found] == [{"reach": 50}, {"reach": 100}]
    assert found[0].search == {"share": 50}  # cannot reach it: its greatest effort
    assert found[0].recall == pytest.approx(reached[50])
    assert found[0].recall < 0.8
    assert found[1].search == {"share": least}
    assert found[1].recall == pytest.approx(reached[least])


def _answer(data, share):
    rival = Partial(1)
    rival.fit(data.points)
    return recompute(data, rival.query(data.queries, 5, share), 5)


def test_sweep_builds_once_a_build(cloud):
    Bench(cloud, k=5, threads=1).sweep(Partial, 0.8, cost="query_time")
    warm_up = 1
    assert len(Partial.fitted) == 2 + warm_up
    assert len(Partial.queried) < 5 + 10 + warm_up  # bisection, not every setting


def test_interleaving_takes_turns_and_starts_with_another_each_round(cloud):
    settings = [Setting(Partial, {"reach": reach}, {"share": reach}) for reach in (50, 100)]
    found = Bench(cloud, k=5, threads=1).interleave(settings, repeats=2)
    assert [fit["reach"] for fit in Partial.fitted] == [
        50,
        100,
        50,
        100,
        100,
        50,
    ]  # warm-up, two rounds
    assert [m.build["reach"] for m in found] == [50, 100]
    assert all(len(m.totals) == 2 for m in found)
    assert found[1].recall == 1.0


def test_latency_checks_what_it_times(cloud):
    (row,) = Bench(cloud, k=5, threads=1).latency([Setting(Partial)], count=60)
    assert row["recall"] == 1.0
    assert 0 < row["median"] <= row["p90"]


def test_a_spread_of_more_than_a_fifth_means_a_busy_machine():
    assert busy([measurement(1, 1), measurement(1, 1, spread=0.5)])
    assert not busy([measurement(1, 1, spread=0.1)])


@pytest.mark.parametrize("n_points", [1, 20, 1_500, 390_000])
def test_ivf_grids_fit_the_data(n_points):
    for build in FaissIVF.build_grid(n_points, 0.9):
        assert 1 <= build["nlist"] <= n_points
        probes = [search["nprobe"] for search in FaissIVF.search_grid(build)]
        assert probes == sorted(set(probes))
        assert probes[-1] == build["nlist"]  # exact search is in the grid: every recall can be reached


@pytest.mark.parametrize("rival", [knn.FaissFlat, FaissIVF, knn.FaissHNSW], ids=lambda rival: rival.name)
def test_faiss_rivals_are_exact_at_their_greatest_effort(cloud, rival):
    pytest.importorskip("faiss")
    build = rival.build_grid(len(cloud.points), 0.9)[-1]
    setting = Setting(rival, build, rival.search_grid(build)[-1])
    assert Bench(cloud, k=5, threads=1).measure(setting).recall >= 0.999


# --------------------------------------------------------------------------------- files, tables, the machine


def test_tables_align_and_keep_every_cell():
    lines = knn.table([["data", "n"], ["a", "1,000"]]).splitlines()
    assert lines == ["| data | n     |", "|------|-------|", "| a    | 1,000 |"]


def test_results_are_json_with_the_environment(tmp_path):
    content = {"environment": machine.environment(2), "rows": [measurement(1, 0.9).record()]}
    machine.save(tmp_path / "results.json", content)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["environment"]["threads"] == 2
    assert read["environment"]["versions"]["numpy"] == np.__version__
    assert read["rows"][0]["recall"] == 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_notes_of_numpy_types_become_plain():
    notes = {"share": np.float32(0.5), "budget": np.int64(3), "order": np.arange(2), "type": np.dtype("f4")}
    assert plain(notes) == {"share": 0.5, "budget": 3, "order": [0, 1], "type": "float32"}


def test_a_npy_file_is_split_without_overlap(tmp_path, monkeypatch):
    rows = np.arange(200, dtype=np.float64).reshape(100, 2)
    np.save(tmp_path / "mine.npy", rows)
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    for name in ("mine", "mine.npy", str(tmp_path / "mine.npy")):
        data = datasets.load(name)
        assert data.points.shape == (90, 2)
        assert data.points.dtype == data.queries.dtype == np.float32
        np.testing.assert_array_equal(np.sort(np.concatenate([data.points, data.queries]), axis=0), rows)


def test_fvecs_are_read(tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    header = np.full((30, 1), 4, dtype=np.int32).view(np.float32)
    np.hstack([header, rows]).tofile(tmp_path / "mine.fvecs")
    data = datasets.load(str(tmp_path / "mine.fvecs"))
    read = np.concatenate([data.points, data.queries])
    np.testing.assert_array_equal(np.sort(read, axis=0), np.sort(rows, axis=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an array", "cannot read"),
        (b"\x93NUMPY\x01\x00", "cannot read"),
        (None, "unknown data set"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "bad.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(datasets.ComparisonError, match=message) as caught:
        datasets.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_cached_array_is_made_once_and_again_when_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCI_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return np.eye(3)

    for _ in range(2):
        np.testing.assert_array_equal(datasets._cached("eye", make), np.eye(3))
    assert len(made) == 1
    with (tmp_path / "eye.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    np.testing.assert_array_equal(datasets._cached("eye", make), np.eye(3))
    assert len(made) == 2
    assert "checksum" in capsys.readouterr().out
