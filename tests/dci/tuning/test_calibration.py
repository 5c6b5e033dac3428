"""What a wanted recall gives: on unseen queries, for other k, with filters, and when ranking does not pay."""

from typing import NamedTuple

import numpy as np
import pytest

import dci
from dci._runtime.threads import Work
from dci._tuning.calibration import Calibration

RECALLS = (0.8, 0.9, 0.95)
KS = (1, 10, 50, 100)  # the last is beyond what the first calibration knows


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def recall_against(found, truth, metric):
    """Share of answers at least as near as the true k-th neighbour, as ties count."""
    sign = -1 if metric == "ip" else 1
    k = found.distances.shape[1]
    worst = sign * truth.distances[:, [k - 1]]
    hits = sign * found.distances <= worst + 1e-6 * np.abs(worst)
    return float((hits & (found.indices >= 0)).mean())


class Case(NamedTuple):
    """A fitted index, its points, queries that it has not seen, and their true neighbours."""

    metric: str
    X: np.ndarray
    Q: np.ndarray
    index: dci.DCI
    truth: dci.Neighbors

    def recall(self, k, **options):
        return recall_against(self.index.query(self.Q, k, **options), self.truth, self.metric)


def manifold(rng, n):
    latent = rng.standard_normal((n, 6), dtype=np.float32)
    hidden = np.tanh(latent @ np.random.default_rng(1).standard_normal((6, 12)) / 2.4)
    X = hidden @ np.random.default_rng(2).standard_normal((12, 48))
    return (X + 0.1 * rng.standard_normal(X.shape)).astype(np.float32)


def clustered(rng, n):
    centres = 3 * np.random.default_rng(1).standard_normal((60, 32))
    return (centres[rng.integers(60, size=n)] + 0.5 * rng.standard_normal((n, 32))).astype(np.float32)


def shifted(rng, n):
    return (1.4 * manifold(rng, n) + 0.3).astype(np.float32)


CASES = {
    "manifold": (manifold, manifold, "l2", {}),
    "clustered": (clustered, clustered, "l2", {"n_levels": 2}),
    "cosine": (manifold, manifold, "cosine", {}),
    "ip": (manifold, manifold, "ip", {}),
    "clustered cosine": (clustered, clustered, "cosine", {"n_levels": 2}),
    "clustered ip": (clustered, clustered, "ip", {"n_levels": 2}),
    "queries from elsewhere": (manifold, shifted, "l2", {"directions": "query"}),
    "max over random directions": (manifold, manifold, "l2", {"directions": "random", "ranking": "max"}),
    "one level": (manifold, manifold, "l2", {"n_levels": 1, "n_simple": 16}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    points, queries, metric, options = CASES[request.param]
    rng = np.random.default_rng(0)
    X, Q, sample = points(rng, 20_000), queries(rng, 1200), queries(rng, 500)
    index = dci.DCI(metric, random_state=0, **options).fit(X, queries=sample if queries is shifted else None)
    assert index.stats_.method == "ranked"
    return Case(metric, X, Q, index, dci.exact(X, Q, max(KS), metric))


class TestRecall:
    @pytest.mark.parametrize("recall", RECALLS)
    @pytest.mark.parametrize("k", KS)
    def test_holds_on_unseen_queries(self, case, k, recall):
        assert case.recall(k, recall=recall) >= recall - 0.01

    @pytest.mark.parametrize("recall", RECALLS)
    def test_of_the_index_is_that_of_its_queries(self, recall):
        rng = np.random.default_rng(0)
        X, Q = manifold(rng, 20_000), manifold(rng, 1500)
        index, other = (dci.DCI(recall=r, random_state=0, n_simple=8).fit(X) for r in (recall, 0.99))
        same(index.query(Q, 10), other.query(Q, 10, recall=recall))
        assert index.stats_.recall_at_10 >= recall
        found = index.query(Q, 10)
        assert abs(recall_against(found, dci.exact(X, Q, 10), "l2") - index.stats_.recall_at_10) < 0.03

    def test_of_one_is_exact(self, case):
        for k in (1, 10, 100):
            same(case.index.query(case.Q[:200], k, recall=1.0), dci.exact(case.X, case.Q[:200], k, case.metric))

    def test_one_by_one(self, case):
        found = [case.index.query(q, 10, recall=0.9) for q in case.Q[:400]]
        found = dci.Neighbors(*(np.stack(part) for part in zip(*found, strict=True)))
        truth = dci.Neighbors(*(part[:400] for part in case.truth))
        assert recall_against(found, truth, case.metric) >= 0.88

    def test_ranking_visits_few(self):
        rng = np.random.default_rng(0)
        index = dci.DCI(random_state=0).fit(manifold(rng, 20_000))
        assert index.stats_.max_visits < 4000
        assert index.stats_.max_candidates < 1000


class TestBudget:
    def test_grows_with_the_recall(self, case):
        engine = case.index._version.engine
        with Work(1) as work:
            for k in KS:
                budgets = [engine.budget(k, recall, work) for recall in np.arange(0.3, 0.99, 0.03)]
                budgets = [budget for budget in budgets if budget is not None]
                cost = next(iter(engine.calibrations.values())).cost
                costs = [cost(budget.visits, budget.candidates) for budget in budgets]
                assert (np.diff(costs) >= 0).all()
                assert (np.diff([budget.recall for budget in budgets]) >= 0).all()
                assert all(budget.candidates >= k for budget in budgets)

    @pytest.mark.parametrize("seed", range(8))
    def test_grows_with_the_recall_whatever_was_measured(self, seed):
        rng = np.random.default_rng(seed)
        visits = rng.lognormal(6, 1, (256, 64)).astype(np.int64) + 1
        ranks = rng.lognormal(3, 1.5, (256, 64)).astype(np.int64)
        calibration = Calibration(visits, ranks, 16, 64, 212)
        budgets = [calibration.budget(10, recall) for recall in np.arange(0.3, 0.99, 0.01)]
        costs = [calibration.cost(budget.visits, budget.candidates) for budget in budgets if budget is not None]
        assert len(costs) > 50
        assert (np.diff(costs) >= 0).all()

    @pytest.mark.parametrize("recall", RECALLS)
    def test_reaches_the_recall_on_what_was_measured(self, recall):
        rng = np.random.default_rng(0)
        visits = rng.integers(1, 5000, (256, 64))
        ranks = rng.integers(0, 700, (256, 64))
        for k in (10, 64):
            budget = Calibration(visits, ranks, 16, 64, 212).budget(k, recall)
            found = (visits[:, :k] <= budget.visits) & (ranks[:, :k] < budget.candidates)
            assert found.mean() >= recall
            assert found.mean() == pytest.approx(budget.recall)

    def test_is_none_for_what_was_not_found(self):
        visits, ranks = np.ones((100, 20), np.int64), np.zeros((100, 20), np.int64)
        ranks[:, 15:] = np.iinfo(np.int64).max
        calibration = Calibration(visits, ranks, 16, 64, 212)
        assert calibration.budget(15, 0.99) is not None
        assert calibration.budget(20, 0.74) is not None
        assert calibration.budget(20, 0.76) is None

    @pytest.mark.parametrize("tried", [(500, 700), (4999, 20)], ids=["too few visits", "too few candidates"])
    def test_nothing_that_reaches_the_recall_costs_less_than_the_least(self, tried):
        rng = np.random.default_rng(0)
        visits, ranks = rng.integers(1, 5000, (256, 10)), rng.geometric(0.01, (256, 10)) - 1
        calibration = Calibration(visits, ranks, 16, 64, 212)
        least = calibration.cost(*calibration.least(10, 0.8, *tried))
        costs = [
            calibration.cost(v, c)
            for v in range(100, 5000, 100)
            for c in range(10, 700, 10)
            if ((visits <= v) & (ranks < c)).mean() >= 0.8
        ]
        assert 0.2 * min(costs) < least <= min(costs)


class TestExactFallback:
    def test_not_where_a_little_more_than_a_few_cells_is_needed(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((25_000, 24), dtype=np.float32) @ np.linalg.qr(rng.standard_normal((96, 24)))[0].T
        stats = dci.DCI(recall=0.9, random_state=0).fit(X).stats_
        assert stats.method == "ranked"
        assert stats.max_visits > 0.15 * len(X)

    @pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
    def test_on_noise(self, metric):
        rng = np.random.default_rng(0)
        X, Q = (rng.standard_normal((n, 128), dtype=np.float32) for n in (20_000, 300))
        index = dci.DCI(metric, recall=0.9, random_state=0).fit(X)
        assert index.stats_.method == "exact"
        assert "not to pay" in index.stats_.reason
        same(index.query(Q, 10), dci.exact(X, Q, 10, metric))
        same(index.query(Q, 10, recall=0.5), dci.exact(X, Q, 10, metric))

    def test_on_few_points(self):
        X = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
        index = dci.DCI(random_state=0).fit(X)
        assert index.stats_.method == "exact"
        assert "few points" in index.stats_.reason
        same(index.query(X, 5), dci.exact(X, X, 5))

    def test_not_where_a_structure_is_asked_for(self):
        X = np.random.default_rng(0).standard_normal((3000, 64), dtype=np.float32)
        stats = dci.DCI(random_state=0, n_levels=2).fit(X).stats_
        assert stats.method == "ranked"
        assert stats.reason is None


def half_space(share):
    def mask(X, Q):
        along = (X - X.mean(0)) @ np.random.default_rng(3).standard_normal(X.shape[1])
        return along < np.quantile(along, share)

    return mask


def ball(X, Q):
    distance = np.linalg.norm(X - X[0], axis=1)
    return distance < np.quantile(distance, 0.2)


MASKS = {
    "50 %": lambda X, Q: np.random.default_rng(1).random(len(X)) < 0.5,
    "20 %": lambda X, Q: np.random.default_rng(1).random(len(X)) < 0.2,
    "2 %": lambda X, Q: np.random.default_rng(1).random(len(X)) < 0.02,
    "half-space": half_space(0.5),
    "fifth of space": half_space(0.2),
    "corner": half_space(0.05),
    "ball": ball,
}


class TestFilter:
    @pytest.mark.parametrize("name", MASKS)
    def test_recall_holds_among_the_allowed(self, case, name):
        allowed = MASKS[name](case.X, case.Q)
        ids = np.flatnonzero(allowed)
        found = case.index.query(case.Q, 10, filter=allowed)
        assert allowed[found.indices].all()
        assert (found.indices >= 0).all()
        assert recall_against(found, dci.exact(case.X[ids], case.Q, 10, case.metric), case.metric) >= 0.95 - 0.05

    @pytest.mark.parametrize("share", [0.5, 0.3, 0.15])
    def test_recall_holds_for_queries_that_are_not_among_the_allowed(self, case, share):
        """Queries on one side, allowed points on the other: the cells around a query hold no answer."""
        axis = np.random.default_rng(3).standard_normal(case.X.shape[1])
        along, of_queries = (case.X @ axis, case.Q @ axis)
        allowed = along < np.quantile(along, share)
        Q = case.Q[of_queries > np.quantile(of_queries, 0.7)]
        found = case.index.query(Q, 10, filter=allowed)
        assert allowed[found.indices].all()
        truth = dci.exact(case.X[allowed], Q, 10, case.metric)
        assert recall_against(found, truth, case.metric) >= 0.95 - 0.05

    @pytest.mark.parametrize("k", [1, 300])
    @pytest.mark.parametrize("n_allowed", [0, 1, 99, 2500])
    def test_gives_as_many_as_there_are(self, case, k, n_allowed):
        """In one corner of the points, so that few cells hold them all."""
        along = case.X @ np.random.default_rng(3).standard_normal(case.X.shape[1])
        ids = np.argsort(along)[:n_allowed]
        allowed = np.zeros(len(case.X), bool)
        allowed[ids] = True
        for form in (allowed, ids):
            found = case.index.query(case.Q[:12], k, filter=form).indices
            count = min(k, n_allowed)
            assert (found[:, count:] == -1).all()
            assert allowed[found[:, :count]].all()
            assert (found[:, :count] >= 0).all()
            assert (np.diff(np.sort(found[:, :count], axis=1), axis=1) > 0).all()


class TestKnn:
    @pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
    @pytest.mark.parametrize(
        ("options", "copies"),
        [({}, 1), ({}, 2), ({"n_levels": 2}, 1), ({"n_levels": 2}, 3), ({"n_levels": 1, "n_simple": 8}, 3)],
        ids=repr,
    )
    def test_leaves_out_the_point_itself(self, metric, options, copies):
        rng = np.random.default_rng(0)
        X = np.tile(manifold(rng, 4200 // copies), 4)  # so wide that exact search is no matter of course
        X = rng.permutation(np.repeat(X, copies, axis=0))
        found = dci.knn(X, 10, metric=metric, recall=0.9, random_state=0, **options)
        truth = dci.knn(X, 10, metric=metric, recall=1.0)
        for indices in (found.indices, truth.indices):
            assert indices.shape == (4200, 10)
            assert (indices >= 0).all()
            assert (indices != np.arange(4200)[:, None]).all()
            assert (np.diff(np.sort(indices, axis=1), axis=1) > 0).all()
        if metric == "l2":
            assert (truth.distances[:, : copies - 1] == 0).all()
            assert (truth.distances[:, copies - 1] > 0).all()
        assert recall_against(found, truth, metric) >= 0.89

    def test_of_many_copies(self):
        """Any of the copies will do, but never the point itself."""
        rng = np.random.default_rng(0)
        X = rng.permutation(np.repeat(np.tile(manifold(rng, 140), 4), 30, axis=0))
        distances, indices = dci.knn(X, 10, recall=0.9, n_levels=2, random_state=0)
        assert (indices != np.arange(4200)[:, None]).all()
        assert (distances == 0).mean() >= 0.89
