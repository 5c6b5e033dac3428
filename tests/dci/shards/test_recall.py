"""The recall of merged answers, however points are spread over shards, and what is spent for it."""

import dask.array as da
import numpy as np
import pytest

import dci
from dci.dask import ShardedDCI
from tests.conftest import make_clustered, make_manifold

N, DIM, SHARDS, WANTED = 60_000, 48, 3, 0.9


def recall(found, X, Q, metric="l2"):
    """Share of the answers at most as far as the exact k-th neighbour."""
    exact = dci.exact(X, Q, found.indices.shape[1], metric).distances[:, -1:]
    near = found.distances >= exact if metric == "ip" else found.distances <= exact
    return float((near & (found.indices >= 0)).mean())


def spread(points, how):
    """Rows of the points in the order in which they go to shards."""
    if how == "random":
        return np.random.default_rng(5).permutation(len(points))
    if how == "sorted":
        return np.argsort(points[:, 0], kind="stable")
    # Clusters: those nearest to each of some points, one after the other.
    seeds = points[:: len(points) // SHARDS][:SHARDS]
    return np.argsort(((points[:, None, :8] - seeds[None, :, :8]) ** 2).sum(-1).argmin(1), kind="stable")


@pytest.fixture(scope="module", params=["manifold", "clusters"])
def some(request):
    make = make_manifold if request.param == "manifold" else make_clustered
    data = make(N, DIM, n_queries=300)
    # Half of the keys are saved on a manifold. Of full-rank noise within clusters no point is easier to find than
    # another: there is nothing to save, and what chance does to two measurements is to be allowed for.
    saved = 0.75 if request.param == "manifold" else 1.15
    return data, dci.exact(data.points, data.queries, 20), saved


@pytest.fixture(scope="module")
def spent_alone(some):
    """Keys that a shard of random points spends when it reaches the recall among its own, as without the others."""
    data = some[0]
    stats = dci.DCI(recall=WANTED, random_state=0).fit(data.points[::SHARDS]).stats_
    assert stats.method == "ranked"
    return stats.max_visits + stats.max_candidates


@pytest.mark.parametrize("partition", ["chunks", "cells"])
@pytest.mark.parametrize("how", ["random", "sorted", "clustered"])
def test_merged_recall(some, spent_alone, partition, how):
    data, truth, saved = some
    order = spread(data.points, how)
    X = da.from_array(data.points[order], chunks=(N // SHARDS, -1))
    index = ShardedDCI(recall=WANTED, partition=partition, random_state=0).fit(X, ids=order)
    assert index.stats_.n_ranked == SHARDS
    for k in (10, 20):
        found = index.query(data.queries, k)
        assert recall(found, data.points, data.queries) >= WANTED - 0.01
    exact = index.query(data.queries[:50], 20, recall=1.0)
    np.testing.assert_array_equal(exact.indices, truth.indices[:50])
    stats = index.stats_
    spent = stats.shards_visited * (stats.max_visits + stats.max_candidates)
    if partition == "cells":
        assert stats.shards_visited < 0.75 * SHARDS
    if how == "random" and partition == "chunks":
        assert spent < saved * SHARDS * spent_alone


def test_the_table_is_that_of_one_index(some):
    """Budgets come from as many neighbours as one index would measure on, with one margin."""
    data = some[0]
    X = da.from_array(data.points, chunks=(N // SHARDS, -1))
    index = ShardedDCI(recall=WANTED, random_state=0).fit(X)
    (table,) = index._shards.tables.values()
    assert table.visits.shape == (256, 64)
    assert 0 < index.stats_.recall_at_10 - WANTED < 0.03


def test_more_neighbours_and_other_recalls(some):
    data = some[0]
    index = ShardedDCI(recall=WANTED, random_state=0).fit(da.from_array(data.points, chunks=(N // SHARDS, -1)))
    assert recall(index.query(data.queries, 10, recall=0.98), data.points, data.queries) >= 0.97
    assert recall(index.query(data.queries, 100), data.points, data.queries) >= WANTED - 0.01
    assert set(index._shards.tables) == {64, 128}
    few = index.query(data.queries[:5], 300)  # too few to measure for: exact
    np.testing.assert_array_equal(few.indices, dci.exact(data.points, data.queries[:5], 300).indices)


def test_a_filter(some):
    data = some[0]
    index = ShardedDCI(recall=WANTED, random_state=0).fit(da.from_array(data.points, chunks=(N // SHARDS, -1)))
    allowed = np.arange(N) % 3 == 0
    found = index.query(data.queries, 10, filter=allowed)
    assert allowed[found.indices].all()
    rows = np.flatnonzero(allowed)
    local = dci.Neighbors(found.distances, np.searchsorted(rows, found.indices))
    assert recall(local, data.points[rows], data.queries) >= WANTED - 0.01


def test_noise_is_searched_exactly(noise, same):
    index = ShardedDCI(random_state=0).fit(da.from_array(noise.points, chunks=(1000, -1)))
    same(index.query(noise.queries, 10), dci.exact(noise.points, noise.queries, 10))
    assert index.stats_.n_ranked == 0
    assert index.stats_.recall_at_10 is None


def test_the_sample_of_queries_is_measured_on(some):
    """Queries from elsewhere than the points."""
    data = some[0]
    rng = np.random.default_rng(8)
    others = (data.queries + 0.5 * data.points.std() * rng.standard_normal(data.queries.shape)).astype(np.float32)
    X = da.from_array(data.points, chunks=(N // SHARDS, -1))
    index = ShardedDCI(recall=WANTED, random_state=0).fit(X, queries=others[:150])
    assert recall(index.query(others[150:], 10), data.points, others[150:]) >= WANTED - 0.02


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_metrics(metric):
    data = make_manifold(N // 2, DIM, n_queries=300)
    X = da.from_array(data.points, chunks=(N // 4, -1))
    for partition in ("chunks", "cells"):
        index = ShardedDCI(metric, recall=WANTED, partition=partition, random_state=0).fit(X)
        assert recall(index.query(data.queries, 10), data.points, data.queries, metric) >= WANTED - 0.01


def test_recall_after_the_points_have_doubled():
    data = make_manifold(N, DIM, n_queries=300)
    for partition in ("chunks", "cells"):
        index = ShardedDCI(recall=WANTED, partition=partition, random_state=0)
        index.fit(da.from_array(data.points[: N // 2], chunks=(N // 4, -1)))
        for part in np.array_split(data.points[N // 2 :], 5):
            index.add(part)
            some = data.points[: len(index)]
            assert recall(index.query(data.queries, 10), some, data.queries) >= WANTED - 0.015
