"""Parameters as scikit-learn's tools read and set them, other names of metrics, and what fitting tells."""

import dataclasses
import pickle

import numpy as np
import pytest

import dci
from dci.errors import InvalidTypeError, InvalidValueError, NotFittedError
from dci.reference import exact_search

sklearn_base = pytest.importorskip("sklearn.base")
X = np.random.default_rng(0).standard_normal((300, 6), dtype=np.float32)


class TestGetParams:
    def test_gives_what_was_given(self):
        directions = [[1.0, 0.0], [0.0, 1.0]]
        given = {
            "metric": "euclidean", "directions": directions, "ranking": "max", "n_composite": 1, "n_simple": 2,
            "n_levels": 2, "recall": 1, "store": "int8", "random_state": 3, "num_threads": 2, "verbose": 0,
        }  # fmt: skip
        index = dci.DCI(**given)
        for deep in (True, False):
            assert index.get_params(deep) == given
        assert index.get_params()["directions"] is directions

    def test_stays_the_same_when_fitted(self):
        index = dci.DCI(n_levels=2, random_state=0)
        before = index.get_params()
        assert index.fit(X).get_params() == before

    @pytest.mark.parametrize("fitted", [False, True])
    def test_clone(self, fitted):
        index = dci.DCI("cosine", directions=np.eye(6)[:4], n_simple=2, n_composite=2, random_state=0)
        if fitted:
            index.fit(X)
        copy = sklearn_base.clone(index)
        with pytest.raises(NotFittedError):
            copy.query(X, 3)
        np.testing.assert_array_equal(copy.fit(X).query(X, 3).indices, index.fit(X).query(X, 3).indices)


class TestSetParams:
    def test_does_not_touch_what_is_fitted(self):
        index = dci.DCI(random_state=0, recall=1.0).fit(X)
        before, shown = index.query(X, 5), repr(index)
        assert index.set_params(metric="ip", recall=0.5, n_levels=2) is index
        np.testing.assert_array_equal(index.query(X, 5).distances, before.distances)
        assert repr(index) == shown
        index.fit(X)
        assert (index.stats_.metric, index.stats_.method) == ("ip", "ranked")

    def test_is_what_the_constructor_does(self):
        one = dci.DCI(random_state=0).set_params(metric="cosine", n_simple=3, n_levels=1).fit(X)
        other = dci.DCI("cosine", random_state=0, n_simple=3, n_levels=1).fit(X)
        assert one.stats_ == other.stats_
        np.testing.assert_array_equal(one.query(X, 4).indices, other.query(X, 4).indices)

    @pytest.mark.parametrize("bad", [{"nprobe": 3}, {"metric": "manhattan"}, {"recall": 0.0}, {"num_threads": 0}])
    def test_refuses_and_changes_nothing(self, bad):
        index = dci.DCI()
        before = index.get_params()
        with pytest.raises(InvalidValueError, match="expected .* received"):
            index.set_params(n_levels=2, **bad)
        assert index.get_params() == before

    def test_types(self):
        with pytest.raises(InvalidTypeError, match="n_simple"):
            dci.DCI().set_params(n_simple=1.5)

    def test_values_set_as_attributes_are_checked_by_fit(self):
        index = dci.DCI()
        index.recall = 2.0
        with pytest.raises(InvalidValueError, match="recall"):
            index.fit(X)


@pytest.mark.parametrize(("alias", "metric"), [("euclidean", "l2"), ("inner_product", "ip")])
def test_metric_aliases(alias, metric):
    Q = X[:20]
    expected = dci.exact(X, Q, 5, metric)
    index = dci.DCI(alias, recall=1.0).fit(X)
    for found in (dci.exact(X, Q, 5, alias), index.query(Q, 5)):
        np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(exact_search(X, Q, 5, alias)[1], exact_search(X, Q, 5, metric)[1])
    np.testing.assert_array_equal(dci.knn(X, 5, metric=alias).indices, dci.knn(X, 5, metric=metric).indices)
    assert index.stats_.metric == metric
    assert metric in repr(index)


def test_metric_alias_of_the_transformer():
    module = pytest.importorskip("dci.sklearn")
    one, other = (module.DCITransformer(metric=metric).fit_transform(X) for metric in ("euclidean", "l2"))
    assert (one != other).nnz == 0


class TestSharesAndCounts:
    """An int is a count and a float a share, so that 1 and 1.0 are the least and the most."""

    index = dci.DCI(n_levels=2, n_simple=4, random_state=0).fit(X)
    flat = dci.DCI(n_levels=1, n_simple=4, random_state=0).fit(X)

    def test_candidates(self):
        assert [(self.index.query(X, 5, max_candidates=m).indices >= 0).sum(1).max() for m in (1, 1.0)] == [1, 5]

    def test_visits(self):
        Q = X + np.float32(0.3)
        assert (self.flat.query(Q, 5, max_visits=1).indices < 0).all()  # one entry of four lists makes no candidate
        assert (self.flat.query(Q, 5, max_visits=1.0).indices >= 0).all()

    def test_all_of_both_is_exact(self):
        found = self.index.query(X, 5, max_candidates=1.0, max_visits=1.0)
        np.testing.assert_array_equal(found.indices, dci.exact(X, X, 5).indices)

    @pytest.mark.parametrize("one", [1, 1.0])
    def test_recall_of_one_is_exact_in_both_forms(self, one):
        for found in (dci.DCI(recall=one).fit(X).query(X, 5), self.index.query(X, 5, recall=one)):
            np.testing.assert_array_equal(found.indices, dci.exact(X, X, 5).indices)


class TestStats:
    def test_of_exact_search(self):
        stats = dci.DCI().fit(X).stats_
        assert (stats.n_points, stats.dim, stats.metric, stats.method) == (300, 6, "l2", "exact")
        assert stats.reason is not None
        assert {value for name, value in dataclasses.asdict(stats).items() if name.startswith(("n_c", "max"))} == {None}

    def test_of_a_ranked_index(self):
        stats = dci.DCI(n_levels=2, n_simple=4, random_state=0).fit(X).stats_
        assert stats.reason is None
        assert (stats.method, stats.n_simple, stats.n_levels, stats.held_out) == ("ranked", 4, 2, 256)

    def test_repr_leaves_out_what_does_not_apply(self):
        assert repr(dci.DCI(recall=1.0).fit(X).stats_) == (
            "IndexStats(n_points=300, dim=6, metric='l2', method='exact', reason='recall=1.0 asks for exact search', "
            "store='float32')"
        )

    def test_is_frozen_and_travels(self):
        stats = dci.DCI().fit(X).stats_
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.method = "ranked"
        assert pickle.loads(pickle.dumps(stats)) == stats
        assert isinstance(stats, dci.IndexStats)
