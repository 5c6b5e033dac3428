import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy.sparse import issparse

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from dci.errors import DCIError
from dci.sklearn import DCITransformer


@parametrize_with_checks([DCITransformer(n_neighbors=3), DCITransformer(mode="connectivity")])
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize(("metric", "theirs"), [("l2", "euclidean"), ("cosine", "cosine")])
def test_agrees_with_scikit_learn(gaussian, mode, metric, theirs):
    X, Q = gaussian
    ours = DCITransformer(mode=mode, n_neighbors=7, metric=metric, recall=1.0, random_state=0)
    other = KNeighborsTransformer(mode=mode, n_neighbors=7, metric=theirs, algorithm="brute")
    for received, expected in [
        (ours.fit_transform(X), other.fit_transform(X)),
        (ours.transform(Q), other.transform(Q)),
    ]:
        assert issparse(received)
        assert received.format == "csr"
        assert received.dtype == np.float32
        assert received.shape == expected.shape
        np.testing.assert_array_equal(received.indptr, expected.indptr)
        np.testing.assert_array_equal(received.indices, expected.indices)
        np.testing.assert_allclose(received.data, expected.data, atol=2e-3 if metric == "l2" else 1e-6)


@pytest.mark.parametrize(("mode", "entries"), [("distance", 5), ("connectivity", 4)])
def test_entries_and_diagonal(data, mode, entries):
    graph = DCITransformer(mode=mode, n_neighbors=4, random_state=0).fit_transform(data.points)
    assert (np.diff(graph.indptr) == entries).all()
    rows = np.repeat(np.arange(graph.shape[0]), entries)
    own = graph.indices == rows
    assert (np.bincount(rows[own], minlength=graph.shape[0]) == 1).all()
    if mode == "distance":
        assert (graph.data[own] == 0).all()
        assert (np.diff(graph.data.reshape(-1, entries), axis=1) >= 0).all()


def test_more_duplicates_than_neighbours_keep_the_diagonal():
    graph = DCITransformer(n_neighbors=2).fit_transform(np.ones((20, 3)))
    ids = graph.indices.reshape(20, 3)
    assert (ids == np.arange(20)[:, np.newaxis]).any(axis=1).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())
    assert (graph.data == 0).all()


class TestKneighbors:
    def test_of_queries(self, gaussian, assert_neighbours):
        X, Q = gaussian
        transformer = DCITransformer(recall=1.0).fit(X)
        assert_neighbours(transformer.kneighbors(Q), X, Q, 5)
        assert_neighbours(transformer.kneighbors(Q, 9), X, Q, 9)
        ids = transformer.kneighbors(Q, return_distance=False)
        np.testing.assert_array_equal(ids, transformer.kneighbors(Q)[1])

    def test_of_training_points_leaves_out_the_point_itself(self, gaussian):
        X = gaussian.points
        transformer = DCITransformer(recall=1.0).fit(X)
        distances, ids = transformer.kneighbors(n_neighbors=4)
        every_distance, every_id = transformer.kneighbors(X, 5)
        np.testing.assert_array_equal(every_id[:, 0], np.arange(len(X)))
        np.testing.assert_array_equal(ids, every_id[:, 1:])
        np.testing.assert_array_equal(distances, every_distance[:, 1:])

    def test_of_duplicates_leaves_out_the_point_itself(self):
        ids = DCITransformer(n_neighbors=3).fit(np.ones((9, 2))).kneighbors(return_distance=False)
        assert (ids != np.arange(9)[:, np.newaxis]).all()
        assert all(len(set(row)) == 3 for row in ids.tolist())

    def test_too_many(self):
        transformer = DCITransformer().fit(np.eye(4))
        assert transformer.kneighbors(np.eye(4), 4)[1].shape == (4, 4)
        assert transformer.kneighbors(n_neighbors=3)[1].shape == (4, 3)
        with pytest.raises(DCIError, match="n_neighbors <= n_samples_fit, .* = 5, n_samples_fit = 4"):
            transformer.kneighbors(np.eye(4), 5)
        with pytest.raises(DCIError, match="n_neighbors < n_samples_fit, .* = 4, n_samples_fit = 4"):
            transformer.kneighbors(n_neighbors=4)

    @pytest.mark.parametrize("n_neighbors", [0, -1, 1.5, "3"])
    def test_bad_count(self, n_neighbors):
        with pytest.raises(DCIError, match="n_neighbors: expected"):
            DCITransformer().fit(np.eye(9)).kneighbors(n_neighbors=n_neighbors)


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "weights"},
        {"n_neighbors": 0},
        {"metric": "ip"},
        {"metric": "minkowski"},
        {"recall": 2.0},
        {"n_simple": 0},
        {"directions": "best"},
    ],
    ids=repr,
)
def test_bad_parameters(bad):
    with pytest.raises(DCIError, match=f"{next(iter(bad))}: expected"):
        DCITransformer(**bad).fit(np.eye(9))


def test_not_fitted():
    with pytest.raises(SklearnNotFittedError):
        DCITransformer().transform(np.eye(3))
    with pytest.raises(SklearnNotFittedError):
        DCITransformer().kneighbors()


def test_feature_names():
    names = DCITransformer().fit(np.eye(7)).get_feature_names_out()
    assert names.tolist() == [f"dcitransformer{i}" for i in range(7)]


def test_clone_and_pickle(gaussian):
    transformer = DCITransformer(n_neighbors=3, n_simple=6, random_state=1).fit(gaussian.points)
    assert clone(transformer).get_params() == transformer.get_params()
    loaded = pickle.loads(pickle.dumps(transformer))
    received, expected = loaded.transform(gaussian.queries), transformer.transform(gaussian.queries)
    np.testing.assert_array_equal(received.indices, expected.indices)
    np.testing.assert_array_equal(received.data, expected.data)


def test_in_pipelines(manifold):
    X = manifold.points
    labels = (X[:, 0] > 0).astype(int)
    classify = make_pipeline(
        DCITransformer(n_neighbors=8, random_state=0),
        KNeighborsClassifier(n_neighbors=8, metric="precomputed"),
    ).fit(X[:1000], labels[:1000])
    direct = KNeighborsClassifier(n_neighbors=8).fit(X[:1000], labels[:1000])
    assert abs(classify.score(X[1000:], labels[1000:]) - direct.score(X[1000:], labels[1000:])) < 0.03
    graph = DCITransformer(n_neighbors=8, random_state=0).fit_transform(X[:200])
    assert len(DBSCAN(eps=2.0, metric="precomputed").fit_predict(graph)) == 200


def test_import_without_scikit_learn_says_what_to_install():
    script = """
        import sys
        sys.modules["sklearn"] = None
        import dci
        try:
            import dci.sklearn
        except ImportError as error:
            assert "dci-attention[sklearn]" in str(error), error
        else:
            raise SystemExit("imported")
    """
    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(script)], check=True, timeout=60)
