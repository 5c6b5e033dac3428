"""An index that changes finds as many neighbours as one that is fitted to the same points."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

import dci
from dci._tuning import calibration, engine, living

DIM, LATENT, N = 24, 4, 20_000
N_QUERIES = 1000
_MAPS = np.random.default_rng(12345)
W = _MAPS.standard_normal((LATENT, 2 * LATENT)) / np.sqrt(LATENT)
V = _MAPS.standard_normal((2 * LATENT, DIM))


def surface(latent, rng):
    """Put points of few dimensions on a curved surface in 24, with a little noise."""
    X = np.tanh(latent @ W) @ V
    return (X + 0.05 * rng.standard_normal(X.shape)).astype(np.float32)


def even(n, rng):
    return surface(rng.standard_normal((n, LATENT)), rng)


def clusters(n, rng, *, ordered):
    """40 clusters, mixed or one after the other."""
    centres = 2.0 * np.random.default_rng(777).standard_normal((40, LATENT))
    of = rng.integers(40, size=n)
    if ordered:
        of = np.sort(of)
    return surface(centres[of] + 0.3 * rng.standard_normal((n, LATENT)), rng)


def drifting(n, rng):
    """Later points lie elsewhere, and farther from each other."""
    time = np.linspace(0, 1, n)[:, None]
    return surface(rng.standard_normal((n, LATENT)) * (0.3 + 0.7 * time) + 3.0 * time, rng)


@pytest.fixture(autouse=True)
def never_tiny(monkeypatch):
    """So few points would be ranked without a limit; their budgets are to be those of calibration."""
    monkeypatch.setattr(engine, "is_tiny", lambda n, dim: n < 1000)


# Each yields the changes of an index: (rows to add or None, ids to remove or None).


def at_random(rng):
    X = even(N + 10_000, rng)
    yield X[:10_000], None
    alive = np.arange(10_000)
    for start in range(10_000, len(X), 500):
        yield X[start : start + 500], None
        gone = rng.choice(alive, 250, replace=False)
        yield None, gone
        alive = np.concatenate([np.setdiff1d(alive, gone), np.arange(start, start + 500)])


def clustered(rng):
    X = clusters(N, rng, ordered=False)
    yield X[:4000], None
    for start in range(4000, N, 1000):
        yield X[start : start + 1000], None


def sorted_by_cluster(rng):
    X = clusters(N, rng, ordered=True)
    yield X[:2000], None
    for start in range(2000, N, 300):
        yield X[start : start + 300], None


def in_drift(rng):
    X = drifting(N, rng)
    yield X[:2000], None
    for start in range(2000, N, 400):
        yield X[start : start + 400], None


def a_moving_window(rng):
    X = drifting(2 * N, rng)[:30_000]
    yield X[:10_000], None
    for start in range(10_000, len(X), 500):
        yield X[start : start + 500], np.arange(start - 10_000, start - 9500)


def nearly_all_replaced(rng):
    X = even(N, rng)
    yield X, None
    fresh = clusters(18_000, rng, ordered=False)
    gone = rng.permutation(N)[:18_000]
    for start in range(0, 18_000, 1000):
        yield fresh[start : start + 1000], gone[start : start + 1000]


def grown_from_nothing(rng):
    X = even(N, rng)
    yield X[:1], None
    start, size = 1, 1
    while start < N:
        yield X[start : start + size], None
        start, size = start + size, min(2 * size, 500)


def shrunk_to_a_part(rng):
    X = clusters(N, rng, ordered=True)
    yield X, None
    for start in range(0, 12_000, 1000):
        yield None, np.arange(start, start + 1000)  # whole clusters


SCENARIOS = [
    at_random, clustered, sorted_by_cluster, in_drift, a_moving_window, nearly_all_replaced, grown_from_nothing,
    shrunk_to_a_part,
]  # fmt: skip


def recall(index, Q, truth, k=10):
    """Share of true neighbours, as ids of the index, that are found."""
    found = index.query(Q, k).indices
    return np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)])


def changed(scenario, params, asked):
    """An index after a scenario, of how many rows each structure was built, and how often budgets were measured."""
    index = dci.DCI(**params)
    with (
        mock.patch.object(living, "build", wraps=living.build) as build,
        mock.patch.object(living.Upkeep, "measured", wraps=living.Upkeep.measured) as measure,
        mock.patch.object(living.Version, "_repays_measuring", return_value=asked),
    ):
        for added, gone in scenario(np.random.default_rng(5)):
            if added is not None:
                index.add(added) if len(index) else index.fit(added.copy())
            if gone is not None:
                index.remove(gone)
            if asked:
                index.query(np.zeros(DIM), 1)
    return index, [len(call.args[0]) for call in build.call_args_list], measure.call_count


def compare(scenario, params, asked):
    """Recall after a scenario and after a fit to the same points; and that work is amortised."""
    index, built, measured = changed(scenario, params, asked)
    ids = index.ids
    X = index.get(ids)
    rng = np.random.default_rng(6)
    # Queries near the points of today, which stand for them in either calibration
    Q = X[rng.choice(len(X), N_QUERIES, replace=False)] + 0.05 * rng.standard_normal((N_QUERIES, DIM))
    truth = dci.exact(X, Q, 10, params.get("metric", "l2")).indices
    fresh = dci.DCI(**params).fit(X)
    if index._version.engine.ranker is not None:
        assert index.stats_.max_visits < len(X) / 2, "budgets are to matter"
    # At most ten times as much surprise as points, five times the points for each structure
    assert sum(built) <= 6 * max(built, default=1)
    assert len(built) <= 10
    assert measured <= 30
    return recall(index, Q, ids[truth]), recall(fresh, Q, truth)


def assert_as_good(scenario, params, asked):
    """Over three random states: held-out queries are few, so that budgets differ from fit to fit."""
    states = [{**params, "random_state": seed} for seed in range(3)]
    ours, theirs = np.mean([compare(scenario, state, asked) for state in states], axis=0)
    assert ours >= theirs - 0.01


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "never asked"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_recall_with_cells(scenario, asked):
    """With budgets that were measured as often as may be, and with those that were enlarged instead."""
    assert_as_good(scenario, {"n_simple": 10}, asked)


def test_points_themselves_take_no_place():
    """The point that is left out is one candidate more."""
    X = even(3000, np.random.default_rng(0))
    index = dci.DCI(n_simple=10, random_state=0).fit(X[:2000])
    index.add(X[2000:])
    least = calibration.Budget(visits=2000, candidates=10, recall=0.9)
    with mock.patch.object(engine.Engine, "budget", return_value=least):
        found = index.query_by_id(index.ids, 10).indices
    assert (found >= 0).all()
    assert not (found == index.ids[:, None]).any()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("params", [
    {}, {"n_simple": 10, "n_levels": 1}, {"n_simple": 6, "n_composite": 2, "ranking": "max"},
    {"n_simple": 12, "directions": "random", "ranking": "sum"}, {"n_simple": 10, "metric": "cosine"},
    {"n_simple": 10, "metric": "ip"},
], ids=lambda params: " ".join(map(str, params.values())) or "auto")  # fmt: skip
def test_recall_of_other_structures(scenario, params):
    assert_as_good(scenario, params, asked=False)


@pytest.mark.parametrize("by", ["queries", "add", "remove"])
def test_queries_repay_new_budgets(by):
    """Budgets that have become too large are measured anew by many queries, or by whoever changes the index then."""
    X = even(9000, np.random.default_rng(0))
    index = dci.DCI(n_simple=10, random_state=0).fit(X[:4000])
    index.add(X[4000:8000])
    large = index.stats_.max_visits
    index.query(X[:10], 10)
    assert index._version.is_stale
    if by == "queries":
        for _ in range(20):
            index.query(X[:5000], 10)
    else:
        index._version.demand.queries += 100_000
        index.add(X[8000:]) if by == "add" else index.remove([0])
    assert not index._version.is_stale
    assert index.stats_.max_visits < large


class TestUnasked:
    """As long as no query comes, many points wait, and the next query finds them in their places."""

    X = even(6000, np.random.default_rng(0))

    def grown(self, asked, **params):
        index = dci.DCI(n_simple=10, random_state=0, **params).fit(self.X[:4000])
        for rows in np.array_split(self.X[4000:4900], 30):
            index.add(rows)
            if asked:
                index.query(rows[0], 1)
        return index

    def test_points_wait_until_somebody_asks(self):
        index = self.grown(asked=False)
        assert index._version.n_indexed == 4000
        index.query(self.X[0], 1)
        assert index._version.pending is None

    def test_a_share_of_all_waits_at_most(self):
        index = self.grown(asked=False)
        for rows in np.array_split(self.X[4900:], 10):
            index.add(rows)
        assert index._version.n_indexed > 4900

    def test_where_queries_come_few_wait(self):
        index = self.grown(asked=True)
        assert len(index) - index._version.n_indexed <= 256
        index.add(self.X[4900:5300])
        assert index._version.pending is None

    def test_both_answer_alike(self):
        Q = self.X[::7]
        truth = dci.exact(self.X[:4900], Q, 10).indices
        asked, unasked = (recall(self.grown(asked=asked), Q, truth) for asked in (True, False))
        assert abs(asked - unasked) < 0.02

    def test_budgets_that_are_much_too_old_are_measured_by_the_first_query(self):
        index = self.grown(asked=False)
        version = index._version
        index._state = replace(version, measured=100, unmeasured=4800.0), index._state[1]
        index.add(self.X[4900:4901])
        assert index._version.measured == 100
        index.query(self.X[0], 1)
        assert index._version.measured == 4901

    def test_who_writes_does_what_was_left(self, tmp_path):
        index = self.grown(asked=False)
        index.save(tmp_path / "index")
        assert index._version.pending is None
        assert dci.load(tmp_path / "index")._version.pending is None

    def test_points_that_do_not_fit_the_structure_wait_outside_it(self):
        index = self.grown(asked=False)
        far = self.X[:20] * np.float32(1e9)
        ids = index.add(far)
        assert np.array_equal(index.query(far, 1).indices[:, 0], ids)
        assert index._version.n_indexed == 4000
        index.add(self.X[4900:4901])
        assert index._version.pending is None


def test_more_points_make_ranking_pay_that_did_not():
    """What a ranked query may cost is that of exact search among the points of today."""
    X = even(N, np.random.default_rng(0))
    index = dci.DCI(random_state=0).fit(X[:4000])
    before = index._version.engine.most_cost
    for rows in np.array_split(X[4000:], 20):
        index.add(rows)
        index.query(X[0], 1)
    fresh = dci.DCI(random_state=0).fit(index.get(np.arange(index._version.n_indexed)))
    assert index._version.engine.most_cost == fresh._version.engine.most_cost > before


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_points_of_another_magnitude_renew_the_structure(metric):
    rng = np.random.default_rng(0)
    X = np.tanh(rng.standard_normal((3000, 4)) @ rng.standard_normal((4, 24))).astype(np.float32)
    small, large = X * np.float32(1e-20), X * np.float32(1e20)
    index = dci.DCI(metric, n_simple=8, n_levels=2, random_state=0).fit(small)
    index.query(small[0], 1)
    index.add(large[:300])  # too few to make it anew for their surprise
    Q = np.concatenate([small[:50], large[:50]])
    truth = dci.exact(index.get(index.ids), Q, 10, metric).distances
    found = index.query(Q, 10).distances
    assert np.isclose(found, truth, rtol=1e-5, atol=0).mean() > 0.85
