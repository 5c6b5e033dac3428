"""Filters: few allowed points cost what they alone would cost, and no query pays for a calibration it cannot repay."""

import tracemalloc

import numpy as np
import pytest

import dci
from dci._runtime.threads import Work
from dci._tuning import calibration, engine
from tests.processes import succeed

N = 60_000


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    X = np.tanh(rng.standard_normal((N, 6)) @ rng.standard_normal((6, 48)) / 2.4).astype(np.float32)
    fitted = dci.DCI(random_state=0, num_threads=2).fit(X)
    assert fitted.stats_.method == "ranked"
    return fitted


@pytest.fixture
def count(monkeypatch):
    """How many calibrations are made from here on."""
    made = []

    def counted(*arguments):
        made.append(arguments)
        return calibration.calibrate(*arguments)

    monkeypatch.setattr(engine, "calibrate", counted)
    return made


@pytest.mark.parametrize("n_queries", [1, 10, 1000])
@pytest.mark.parametrize("n_allowed", [0, 1, 10, 100, 1000, 5999])
def test_few_allowed_points_are_searched_as_they_are(index, count, n_allowed, n_queries):
    ids = np.random.default_rng(n_allowed).choice(N, n_allowed, replace=False)
    X = index._version.engine.X
    Q = X[:n_queries] + np.float32(0.01)
    found = index.query(Q, 10, filter=ids)
    ids.sort()
    expected = dci.exact(X[ids], Q, 10)
    np.testing.assert_array_equal(found.distances, expected.distances)
    there = expected.indices >= 0
    np.testing.assert_array_equal(found.indices[there], ids[expected.indices[there]])
    assert (found.indices[~there] == -1).all()
    assert count == []


@pytest.mark.parametrize("form", ["ids", "shuffled", "mask"])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_nothing_is_copied_for_few_allowed_points(form, metric):
    X = np.random.default_rng(0).standard_normal((100_000, 50), dtype=np.float32)
    index = dci.DCI(metric, random_state=0, n_levels=2, n_simple=8).fit(X)
    ids = np.arange(0, 100_000, 11)
    given = {"ids": ids, "shuffled": ids[::-1], "mask": np.isin(np.arange(100_000), ids)}[form]
    for Q in (X[0], X[:100]):
        tracemalloc.start()
        index.query(Q, 10, filter=given)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * X[ids].nbytes


@pytest.mark.alone
def test_a_selective_filter_takes_no_memory():
    """Of the whole process: what Cython allocates is not traced."""
    script = """
        import resource
        import numpy as np
        import dci

        X = np.tanh(np.random.default_rng(0).standard_normal((200_000, 50), dtype=np.float32))
        X[:, 6:] = np.tanh(X[:, :6] @ np.random.default_rng(1).standard_normal((6, 44), dtype=np.float32))
        index = dci.DCI(random_state=0).fit(X)
        assert index.stats_.method == "ranked"
        index.query(X[0], 10, filter=np.arange(5))
        spare = np.ones(30_000_000 // 8)  # what fitting has left behind is not taken for free
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        index.query(X[0], 10, filter=np.arange(100))
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    """
    assert int(succeed(script)) < 5e6


class TestCalibrations:
    def test_are_not_made_by_queries_that_cannot_repay_them(self, index, count):
        Q = index._version.engine.X[:5]
        for share in (0.1, 0.2, 0.5, 0.9):
            allowed = np.random.default_rng(0).random(N) < share
            for k in (1, 10, 100, 1000):
                index.query(Q, k, filter=allowed)
                index.query(Q[0], k, filter=allowed)
        for recall in (0.1, 0.9, 0.99, 0.999):
            for k in (10, 65, 300, 5000):
                index.query(Q, k, recall=recall)
        assert count == []

    def test_are_made_once_by_queries_that_can(self, index, count):
        Q = index._version.engine.X[:6000]
        for _ in range(2):
            index.query(Q, 100)
        assert len(count) == 1
        index.query(Q[0], 100)
        assert len(count) == 1

    def test_are_bounded(self, index):
        fitted = index._version.engine
        with Work(2) as work:
            for k in (1, 64, 65, 200, 1000, 1025, 5000, N - 2):
                for recall in np.linspace(0.1, 0.99, 40):
                    fitted.budget(k, float(recall), work)
        assert len(fitted.calibrations) <= 20
        assert max(made.max_k for made in fitted.calibrations.values()) <= 1024
        assert max(len(made._budgets) for made in fitted.calibrations.values()) <= 64


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_a_small_recall_gives_k_answers(metric, copies):
    """However few points the cells hold that are opened first."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1500 // copies, 600)).repeat(copies, axis=0)  # so wide that budgets are measured
    X = (X + 1e-3 * rng.standard_normal(X.shape)).astype(np.float32)
    options = {"n_levels": 9, "n_simple": 8, "recall": 0.1, "random_state": 0}
    index = dci.DCI(metric, **options).fit(X)
    allowed = np.arange(len(X)) % 3 > 0
    for k in (1, 10, 40):
        for Q in (X[:20], X[:20] + rng.standard_normal((20, 600)).astype(np.float32)):
            assert (index.query(Q, k).indices >= 0).all()
            assert (index.query(Q, k, recall=0.01).indices >= 0).all()
            assert (index.query(Q, k, filter=allowed).indices >= 0).all()
        assert (dci.knn(X, k, metric=metric, **options).indices >= 0).all()
