"""A recall counts true neighbours among the points as they were given, in whatever they are kept."""

from unittest import mock

import numpy as np
import pytest

import dci
from dci._tuning import build, engine, living

DIM, LATENT, N = 24, 5, 16_000
_MAPS = np.random.default_rng(7)
W = _MAPS.standard_normal((LATENT, 2 * LATENT)) / np.sqrt(LATENT)
V = _MAPS.standard_normal((2 * LATENT, DIM))


def surface(n, seed):
    rng = np.random.default_rng(seed)
    X = np.tanh(rng.standard_normal((n, LATENT)) @ W) @ V
    return (X + 0.02 * rng.standard_normal(X.shape)).astype(np.float32)


def coarse(n, seed):
    """Far from their mean: steps of int8 are as coarse as the distances between neighbours."""
    X = surface(n, seed)
    X[::2] += 160.0
    return X


X, Q = surface(N, 0), surface(600, 1)


@pytest.fixture(autouse=True)
def never_tiny(monkeypatch):
    for module in (build, engine):
        monkeypatch.setattr(module, "is_tiny", lambda n, dim: False)


def share(found, truth):
    k = truth.shape[1]
    return np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)])


def recalls(index, points, metric, k):
    """What an index finds of the true neighbours, and what exact search of its points does."""
    truth = dci.exact(points, Q, k, metric).indices
    return share(index.query(Q, k).indices, truth), share(index.query(Q, k, recall=1.0).indices, truth)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("store", ["float16", "int8"])
def test_the_recall_is_of_the_true_points(store, metric):
    index = dci.DCI(metric, store=store, n_simple=10, random_state=0, recall=0.9).fit(X)
    for k in (1, 10, 40):
        found, exact = recalls(index, X, metric, k)
        assert found >= min(0.9, exact) - 0.015
        assert exact >= 0.9 or found == exact


def test_the_ceiling_is_what_exact_search_reaches():
    index = dci.DCI(store="int8", n_simple=10, random_state=0).fit(coarse(N, 0), queries=Q)
    _, exact = recalls(index, coarse(N, 0), "l2", 10)
    assert 0.3 < exact < 0.9
    assert abs(index.stats_.exact_recall_at_10 - exact) < 0.03


def test_where_rounding_loses_too_much_search_is_exact_and_says_so():
    index = dci.DCI(store="int8", random_state=0, recall=0.95).fit(coarse(N, 0))
    stats = index.stats_
    assert stats.method == "exact"
    assert "int8" in stats.reason
    assert stats.exact_recall_at_10 < 0.95
    assert f"{stats.exact_recall_at_10:.3f}" in stats.reason
    D = index.get(index.ids)
    np.testing.assert_array_equal(index.query(Q, 10).indices, dci.exact(D, Q, 10).indices)
    forced = dci.DCI(store="int8", random_state=0, recall=0.95, n_simple=10).fit(coarse(N, 0))
    np.testing.assert_array_equal(forced.query(Q, 10).indices, index.query(Q, 10).indices)
    lower = forced.query(Q, 10, recall=0.3)
    assert (lower.indices != forced.query(Q, 10).indices).any(), "a recall within reach is ranked"


@pytest.mark.parametrize("recall", [1.0, 0.95])
def test_exact_indexes_say_what_they_reach_too(recall):
    stats = dci.DCI(store="float16", recall=recall, random_state=0).fit(X[:300]).stats_
    assert stats.exact_recall_at_10 > 0.98
    assert dci.DCI(recall=recall).fit(X[:300]).stats_.exact_recall_at_10 is None


def test_once_the_points_are_gone_their_codes_stand_for_them():
    """Codes of codes lose about as much as codes of points."""
    given = dci.DCI(store="int8", n_simple=10, random_state=0).fit(X, queries=Q)._version.engine
    again = build.of_other_codes(given)
    with dci._runtime.threads.Work(1) as work:
        simulated = given.measure_ceilings(again, work)
    assert abs(simulated[9] - given.ceilings[9]) < 0.02


@pytest.mark.parametrize("store", ["float16", "int8"])
def test_the_recall_holds_as_points_come(store):
    index = dci.DCI(store=store, n_simple=10, random_state=0, recall=0.9)
    with (
        mock.patch.object(living.Upkeep, "measured", wraps=living.Upkeep.measured) as measure,
        mock.patch.object(living.Version, "_repays_measuring", return_value=True),
    ):
        for part in np.array_split(X, 20):
            index.add(part)
            index.query(part[0], 1)
    assert 0 < measure.call_count <= 20
    found, exact = recalls(index, X, "l2", 10)
    assert found >= min(0.9, exact) - 0.015


def test_codes_that_are_written_anew_have_a_structure_at_once():
    index = dci.DCI(store="int8", n_simple=10, random_state=0, recall=0.9).fit(X)
    far = X[:5] * np.float32(100)
    index.add(far)
    assert index._version.pending is None
    found, exact = recalls(index, np.concatenate([X, far]), "l2", 10)
    assert found >= min(0.9, exact) - 0.015
