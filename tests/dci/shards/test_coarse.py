"""The first level of cells: shards of near points, about equally many, and which of them a query visits."""

import numpy as np
import pytest

from dci._shards.coarse import Coarse
from tests.conftest import make_clustered, make_manifold


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("n_shards", [1, 2, 5, 8])
def test_shards_are_balanced_and_local(metric, n_shards):
    points = make_manifold(8000, 24).points
    coarse = Coarse.of(points[: 16 * 32 * n_shards], metric, n_shards, 32 * n_shards)
    shard_of = coarse.shards_of(points)
    counts = np.bincount(shard_of, minlength=n_shards)
    assert counts.min() > 0.6 * len(points) / n_shards
    assert counts.max() < 1.5 * len(points) / n_shards
    rows = points / np.linalg.norm(points, axis=1, keepdims=True) if metric == "cosine" else points
    within = sum(np.square(rows[shard_of == i] - rows[shard_of == i].mean(0)).sum() for i in range(n_shards))
    assert within < (0.9 if n_shards > 1 else 1.001) * np.square(rows - rows.mean(0)).sum()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_opening_all_cells_visits_all_shards_and_more_cells_never_fewer(metric):
    data = make_clustered(4000, 12)
    coarse = Coarse.of(data.points[:2048], metric, 4, 128)
    before = np.zeros((len(data.queries), 4), bool)
    means = coarse.mean_visited(data.queries)
    for opened in (1, 3, 20, len(coarse.centers)):
        visits = coarse.visits(data.queries, opened)
        assert (visits >= before).all()
        assert visits.sum(1).mean() == pytest.approx(means[opened - 1])
        before = visits
    assert before.all()


def test_a_points_own_cell_is_opened_first():
    points = make_manifold(3000, 16).points
    coarse = Coarse.of(points[:1024], "l2", 4, 64)
    cells = coarse.cells_of(points)
    assert (coarse.opened_before(points, cells[:, None]) == 0).mean() > 0.999  # but for ties
    assert (coarse.visits(points, 1)[np.arange(3000), coarse.shards_of(points)]).mean() > 0.999


def test_magnitudes_beyond_the_squares_of_float32():
    points = make_manifold(2000, 16).points * np.float32(1e30)
    coarse = Coarse.of(points[:512], "l2", 4, 32)
    assert len(np.unique(coarse.shards_of(points))) == 4
    far = np.full((1, 16), 3e38, np.float32)
    small = Coarse.of(points[:512] * np.float32(1e-37), "l2", 4, 32)
    assert small.visits(far, 1).all()  # nothing can be told, so all are visited


def test_fewer_points_than_shards():
    points = np.arange(6, dtype=np.float32).reshape(3, 2)
    coarse = Coarse.of(points, "l2", 5, 3)
    assert len(np.unique(coarse.shards_of(points))) == 3
    equal = Coarse.of(np.ones((10, 2), np.float32), "l2", 3, 8)
    assert set(equal.shards_of(np.ones((10, 2), np.float32))) <= {0, 1, 2}
