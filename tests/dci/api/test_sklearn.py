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
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer, NearestNeighbors
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


METRICS = pytest.mark.parametrize(("metric", "theirs"), [("l2", "euclidean"), ("cosine", "cosine")])


def radius_of(X, Q, theirs, n_neighbors):
    """A distance that is between two neighbours of every query, for as many neighbours or about so many."""
    distances = NearestNeighbors(metric=theirs, algorithm="brute").fit(X).kneighbors(Q, n_neighbors)[0]
    every = np.sort(distances.ravel())
    middle = len(every) // 2
    gap = middle + np.argmax(np.diff(every[middle : middle + 50]))
    return float(every[gap : gap + 2].mean())


class TestRadiusNeighbors:
    @METRICS
    @pytest.mark.parametrize("own", [False, True], ids=["of queries", "of training points"])
    def test_agrees_with_scikit_learn(self, gaussian, metric, theirs, own):
        X, Q = gaussian
        radius = radius_of(X, X if own else Q, theirs, 60)
        ours = DCITransformer(metric=metric, recall=1.0, radius=radius).fit(X)
        other = NearestNeighbors(metric=theirs, radius=radius, algorithm="brute").fit(X)
        asked = () if own else (Q,)
        for sorted_ in (True, False):
            distances, ids = ours.radius_neighbors(*asked, sort_results=sorted_)
            their_distances, their_ids = other.radius_neighbors(*asked, sort_results=True)
            assert distances.dtype == ids.dtype == object
            assert distances.shape == ids.shape == their_ids.shape
            lengths = [len(row) for row in their_ids]
            assert min(lengths) < 32 < max(lengths)  # those with more are asked for again
            for row in range(len(ids)):
                assert (distances[row].dtype, ids[row].dtype) == (np.float32, np.int64)
                assert set(ids[row].tolist()) == set(their_ids[row].tolist())
                np.testing.assert_allclose(distances[row], their_distances[row], rtol=1e-4, atol=1e-5)
        only = ours.radius_neighbors(*asked, return_distance=False)
        assert all(map(np.array_equal, only, ids))

    @METRICS
    def test_graphs_agree_with_scikit_learn(self, gaussian, metric, theirs):
        X, Q = gaussian
        ours, other = (
            fit(X)
            for fit in (
                DCITransformer(metric=metric, recall=1.0).fit,
                NearestNeighbors(metric=theirs, algorithm="brute").fit,
            )
        )
        for asked in (None, Q):
            radius = radius_of(X, X if asked is None else asked, theirs, 10)
            for mode in ("connectivity", "distance"):
                graph = ours.radius_neighbors_graph(asked, radius, mode)
                expected = other.radius_neighbors_graph(asked, radius, mode, sort_results=True)
                assert graph.format == "csr"
                assert graph.dtype == np.float32
                assert graph.shape == expected.shape
                np.testing.assert_array_equal(graph.indptr, expected.indptr)
                np.testing.assert_allclose(graph.toarray(), expected.toarray(), rtol=1e-4, atol=1e-5)
                if mode == "distance":
                    rows = np.split(graph.data, graph.indptr[1:-1])
                    assert all((np.diff(row) >= 0).all() for row in rows)

    def test_recall(self, large_manifold):
        X, Q = large_manifold
        transformer = DCITransformer(recall=0.95, random_state=0, num_threads=1).fit(X)
        assert transformer.index_.stats_.method == "ranked"
        radius = radius_of(X, Q, "euclidean", 20)
        expected = NearestNeighbors(radius=radius, algorithm="brute").fit(X).radius_neighbors(Q, return_distance=False)
        found = transformer.radius_neighbors(Q, radius, return_distance=False)
        assert all(set(ours) <= set(theirs) for ours, theirs in zip(found, expected, strict=True))
        assert sum(map(len, found)) >= 0.93 * sum(map(len, expected)) > 0

    def test_of_training_points_leaves_out_the_point_itself_alone(self):
        distances, ids = DCITransformer().fit(np.ones((60, 2))).radius_neighbors(radius=0)
        assert [sorted(row.tolist()) for row in ids] == [[j for j in range(60) if j != i] for i in range(60)]
        assert all((row == 0).all() for row in distances)

    def test_rows_of_one_length_are_arrays_and_so_are_empty_ones(self):
        transformer = DCITransformer().fit(3.0 * np.eye(5))
        for radius, length in ((0.5, 0), (5.0, 4)):
            distances, ids = transformer.radius_neighbors(radius=radius)
            assert distances.shape == ids.shape == (5,)
            assert [row.shape for row in ids] == [(length,)] * 5
            assert transformer.radius_neighbors_graph(radius=radius).nnz == 5 * length

    def test_the_transformers_radius_and_infinity(self):
        transformer = DCITransformer(radius=1.5).fit(np.arange(6.0)[:, None])
        assert [len(row) for row in transformer.radius_neighbors(return_distance=False)] == [1, 2, 2, 2, 2, 1]
        assert [len(row) for row in transformer.radius_neighbors(radius=np.inf, return_distance=False)] == [5] * 6

    def test_dbscan(self, manifold):
        X = manifold.points[:800]
        eps = radius_of(X, X, "euclidean", 6)
        graph = DCITransformer(recall=1.0).fit(X).radius_neighbors_graph(radius=eps, mode="distance")
        labels = DBSCAN(eps=eps, metric="precomputed").fit_predict(graph)
        np.testing.assert_array_equal(labels, DBSCAN(eps=eps).fit_predict(X))
        assert len(set(labels.tolist())) > 1

    @pytest.mark.parametrize("radius", [-1, np.nan, "1", True, [1.0], -np.inf])
    def test_bad_radius(self, radius):
        transformer = DCITransformer().fit(np.eye(9))
        for call in (transformer.radius_neighbors, transformer.radius_neighbors_graph):
            with pytest.raises(DCIError, match="radius: expected a number >= 0"):
                call(radius=radius)

    def test_bad_mode_and_bad_queries(self):
        transformer = DCITransformer().fit(np.eye(9))
        with pytest.raises(DCIError, match="mode: expected"):
            transformer.radius_neighbors_graph(mode="weights")
        with pytest.raises(ValueError, match="9 features"):
            transformer.radius_neighbors(np.eye(3))


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "weights"},
        {"n_neighbors": 0},
        {"radius": -0.5},
        {"radius": "large"},
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
    with pytest.raises(SklearnNotFittedError):
        DCITransformer().radius_neighbors_graph()


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
