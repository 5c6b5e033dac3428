"""What the public API promises, sentence by sentence."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import dci
from dci.reference import exact_search

WORST = {"l2": np.inf, "ip": -np.inf, "cosine": np.inf}


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


class TestQuery:
    @pytest.mark.parametrize("k", [1, 10, 33])
    def test_recall_one_is_exact(self, data, metric, k, assert_neighbours):
        X, Q = data
        index = dci.DCI(metric, recall=1.0, random_state=0).fit(X)
        assert_neighbours(index.query(Q, k), X, Q, k, metric)
        assert_neighbours(index.query(X[:20], k), X, X[:20], k, metric)
        assert_neighbours(index.query(Q[3], k), X, Q[3], k, metric)

    @pytest.mark.parametrize("ranking", ["max", "sum"])
    @pytest.mark.parametrize("n_levels", [1, 2])
    @pytest.mark.parametrize("directions", ["random", "principal", "query", "array"])
    def test_full_budget_is_exact(self, manifold, metric, ranking, n_levels, directions, assert_neighbours):
        X, Q = manifold
        if directions == "array":
            directions = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 8)))[0].T
        index = dci.DCI(
            metric,
            directions=directions,
            ranking=ranking,
            n_composite=1,
            n_simple=8,
            n_levels=n_levels,
            random_state=0,
        ).fit(X, queries=Q)
        for budget in ({"max_candidates": len(X)}, {"max_candidates": 1.0}, {"recall": 1.0}):
            assert_neighbours(index.query(Q, 10, **budget), X, Q, 10, metric)
        full = {"max_candidates": 1.0, "max_visits": 1.0}
        assert_neighbours(index.query(Q[0], 10, **full), X, Q[0], 10, metric)

    def test_named_tuple(self, gaussian):
        X, Q = gaussian
        index = dci.DCI(random_state=0).fit(X)
        for result, shape in [
            (index.query(Q), (len(Q), 10)),
            (index.query(Q[:1], 3), (1, 3)),
            (index.query(Q[0], 3), (3,)),
            (index.query(Q[0].tolist(), k=np.int64(3)), (3,)),
            (index.query(Q[:0], 3), (0, 3)),
        ]:
            distances, indices = result
            assert distances is result.distances
            assert indices is result.indices
            assert distances.shape == indices.shape == shape
            assert distances.dtype == np.float32
            assert indices.dtype == np.int64

    def test_one_by_one_is_as_good_as_a_batch(self, data, metric, assert_neighbours, recall_of):
        X, Q = data
        index = dci.DCI(metric, random_state=0).fit(X)
        rows = [index.query(q, 10) for q in Q]
        singles = tuple(np.stack(part) for part in zip(*rows, strict=True))
        assert recall_of(singles, X, Q, metric) >= 0.92
        exact = [index.query(q, 10, recall=1.0) for q in Q]
        stacked = tuple(np.stack(part) for part in zip(*exact, strict=True))
        assert_neighbours(stacked, X, Q, 10, metric)

    def test_padding(self, metric, assert_neighbours):
        X = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
        for options in ({}, {"recall": 1.0}, {"max_candidates": 1.0}):
            result = dci.DCI(metric, random_state=0).fit(X).query(X, 12, **options)
            assert (result.indices[:, 7:] == -1).all()
            assert (result.distances[:, 7:] == WORST[metric]).all()
            assert_neighbours(result, X, X, 12, metric)
        assert dci.DCI(metric).fit(X).query(X[0], 9).indices[7:].tolist() == [-1, -1]

    @pytest.mark.parametrize("X", [np.empty((0, 4)), np.empty((0, 4), dtype=np.float32), []])
    def test_empty_index(self, X, metric):
        index = dci.DCI(metric).fit(X)
        assert len(index) == index.n_points == 0
        for options in ({}, {"recall": 1.0}, {"max_candidates": 5}, {"filter": []}):
            result = index.query(np.ones((2, 4)), 3, **options)
            assert (result.indices == -1).all()
            assert (result.distances == WORST[metric]).all()
            assert result.indices.shape == (2, 3)
        assert index.query(np.ones(4), 3).indices.tolist() == [-1] * 3

    def test_budgets_bound_the_candidates(self, manifold, assert_neighbours):
        X, Q = manifold
        index = dci.DCI(
            directions="random",
            ranking="max",
            n_composite=2,
            n_simple=6,
            n_levels=1,
            random_state=0,
        ).fit(X)
        previous = np.full((len(Q), 10), np.inf, dtype=np.float32)
        for k0 in (10, 40, 160, 640, len(X)):
            result = index.query(Q, 10, max_candidates=k0)
            assert (result.distances <= previous).all(), "more candidates, nearer neighbours"
            same(result, index.query(Q, 10, max_candidates=k0))
            previous = result.distances
        few = index.query(Q, 10, max_candidates=2)
        assert ((few.indices >= 0).sum(axis=1) <= 4).all()
        none = index.query(Q, 10, max_visits=1)
        assert (none.indices == -1).all(), "one visit makes no candidate of six lists"
        assert_neighbours(index.query(Q, 10, max_visits=1.0), X, Q, 10)


class TestExactTies:
    """Integer coordinates: float32 computes these distances exactly, so ids are settled by the tie rule."""

    @pytest.mark.parametrize("metric", ["l2", "ip"])
    def test_break_by_index(self, duplicates, metric):
        X, Q = duplicates
        _, expected = exact_search(X, Q, 25, metric)
        index = dci.DCI(metric, recall=1.0, random_state=0).fit(X)
        np.testing.assert_array_equal(index.query(Q, 25).indices, expected)
        np.testing.assert_array_equal(index.query(Q[0], 25).indices, expected[0])
        np.testing.assert_array_equal(index.query(Q, 25, max_candidates=1.0).indices, expected)
        np.testing.assert_array_equal(dci.exact(X, Q, 25, metric).indices, expected)

    @pytest.mark.parametrize("n", [5, 300])
    def test_all_points_equal(self, n, metric):
        X = np.full((n, 9), 2.0, dtype=np.float32)
        for index in (dci.DCI(metric, random_state=0), dci.DCI(metric, recall=1.0)):
            result = index.fit(X).query(X[:4], 4)
            assert result.indices.tolist() == [[0, 1, 2, 3]] * 4
            expected = {"l2": 0.0, "ip": 36.0, "cosine": 0.0}[metric]
            np.testing.assert_allclose(result.distances, expected, atol=1e-6)


class TestCalibration:
    @pytest.mark.parametrize("recall", [0.8, 0.95])
    def test_recall_holds_on_unseen_queries(self, large_manifold, recall, recall_of):
        X, Q = large_manifold
        index = dci.DCI(recall=recall, random_state=0).fit(X)
        assert recall_of(index.query(Q, 10), X, Q) >= recall - 0.02

    @pytest.mark.parametrize("metric", ["ip", "cosine"])
    def test_recall_holds_for_other_metrics(self, large_manifold, metric, recall_of):
        X, Q = large_manifold
        index = dci.DCI(metric, random_state=0).fit(X)
        assert recall_of(index.query(Q, 10), X, Q, metric) >= 0.93

    def test_recall_of_a_query(self, large_manifold, recall_of, assert_neighbours):
        X, Q = large_manifold
        index = dci.DCI(recall=0.9, random_state=0).fit(X)
        assert recall_of(index.query(Q, 10, recall=0.5), X, Q) >= 0.45
        assert recall_of(index.query(Q, 10, recall=0.99), X, Q) >= 0.97
        assert_neighbours(index.query(Q, 10, recall=1.0), X, Q, 10)
        same(index.query(Q, 10, recall=0.9), index.query(Q, 10))

    @pytest.mark.parametrize("ranking", ["max", "sum"])
    @pytest.mark.parametrize("directions", ["random", "principal", "query"])
    def test_recall_holds_for_every_ranking(self, manifold, directions, ranking, recall_of):
        X, Q = manifold
        index = dci.DCI(directions=directions, ranking=ranking, random_state=0)
        index.fit(X, queries=Q[:30])
        assert recall_of(index.query(Q[30:], 10), X, Q[30:]) >= 0.9

    def test_queries_of_another_distribution(self, large_manifold, recall_of):
        X, Q = large_manifold
        shifted = (Q * 1.5 + 0.3).astype(np.float32)
        index = dci.DCI(directions="query", random_state=0).fit(X, queries=shifted[:100])
        assert recall_of(index.query(shifted[100:], 10), X, shifted[100:]) >= 0.9

    def test_tiny_sets_are_searched_exactly(self):
        X = np.random.default_rng(0).standard_normal((30, 8))
        assert says_exact(dci.DCI().fit(X))

    def test_full_rank_noise_is_searched_exactly(self, noise, assert_neighbours):
        index = dci.DCI(random_state=0).fit(noise.points)
        assert says_exact(index)
        assert_neighbours(index.query(noise.queries, 10), *noise, 10)

    def test_manifolds_are_ranked(self, large_manifold):
        assert not says_exact(dci.DCI(random_state=0).fit(large_manifold.points))

    def test_recall_one_is_searched_exactly(self, large_manifold):
        assert says_exact(dci.DCI(recall=1.0).fit(large_manifold.points))


def says_exact(index):
    return index.stats_.method == "exact"


class TestIndex:
    def test_attributes(self, gaussian):
        index = dci.DCI(random_state=0)
        assert index.fit(gaussian.points) is index
        assert (index.n_points, index.dim, len(index)) == (*gaussian.points.shape, index.n_points)

    def test_fit_again_replaces(self, gaussian, assert_neighbours):
        index = dci.DCI(recall=1.0, random_state=0).fit(np.ones((5, 3)))
        index.fit(gaussian.points)
        assert (index.n_points, index.dim) == gaussian.points.shape
        assert_neighbours(index.query(gaussian.queries, 5), *gaussian, 5)

    @pytest.mark.parametrize("directions", ["auto", "random"])
    def test_random_state(self, manifold, directions):
        X, Q = manifold
        first, second = (
            dci.DCI(directions=directions, random_state=4).fit(X).query(Q, 10, max_candidates=20) for _ in range(2)
        )
        same(first, second)

    @pytest.mark.parametrize("options", [{}, {"n_levels": 2, "n_simple": 6}, {"recall": 1.0}])
    def test_pickle(self, manifold, metric, options):
        X, Q = manifold
        index = dci.DCI(metric, random_state=0, **options).fit(X)
        loaded = pickle.loads(pickle.dumps(index))
        assert (loaded.n_points, loaded.dim) == X.shape
        same(loaded.query(Q, 10), index.query(Q, 10))
        same(loaded.query(Q, 10, max_candidates=50), index.query(Q, 10, max_candidates=50))
        same(loaded.query(Q[0], 10), index.query(Q[0], 10))

    def test_pickle_before_fit(self, gaussian):
        loaded = pickle.loads(pickle.dumps(dci.DCI("cosine", random_state=0)))
        expected = dci.DCI("cosine", random_state=0).fit(gaussian.points).query(gaussian.queries)
        same(loaded.fit(gaussian.points).query(gaussian.queries), expected)

    def test_verbose(self, large_manifold, capfd):
        X, Q = large_manifold
        dci.DCI(random_state=0).fit(X).query(Q)
        assert capfd.readouterr().err == ""
        dci.DCI(random_state=0, verbose=True).fit(X)
        assert "%" in capfd.readouterr().err


class TestFilter:
    @pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
    def test_exact(self, data, metric, share, assert_neighbours):
        X, Q = data
        allowed = np.random.default_rng(0).random(len(X)) < share
        allowed[0] = True
        index = dci.DCI(metric, recall=1.0, random_state=0).fit(X)
        ids = np.flatnonzero(allowed)
        for form in (allowed, ids, ids.astype(np.int32)[::-1], ids.tolist()):
            result = index.query(Q, 6, filter=form)
            assert_neighbours(result, X, Q, 6, metric, allowed=allowed)
        assert_neighbours(index.query(Q[1], 6, filter=ids), X, Q[1], 6, metric, allowed=allowed)

    @pytest.mark.parametrize("n_allowed", [10, 11, 200])
    def test_k_answers_as_long_as_there_are_k(self, large_manifold, n_allowed):
        X, Q = large_manifold
        allowed = np.zeros(len(X), dtype=bool)
        far = np.argsort(((X - Q[0]) ** 2).sum(axis=1))[-n_allowed:]
        allowed[far] = True
        index = dci.DCI(random_state=0).fit(X)
        for result in (index.query(Q, 10, filter=allowed), index.query(Q[:1], 10, filter=far)):
            assert (result.indices >= 0).all()
            assert allowed[result.indices].all()
            assert (np.diff(np.sort(result.indices, axis=1)) > 0).all()

    def test_recall_among_the_allowed(self, large_manifold, recall_of):
        X, Q = large_manifold
        allowed = np.random.default_rng(1).random(len(X)) < 0.3
        distances, indices = dci.DCI(random_state=0).fit(X).query(Q, 10, filter=allowed)
        position = np.cumsum(allowed) - 1
        assert recall_of((distances, position[indices]), X[allowed], Q) >= 0.9

    def test_nothing_and_everything_allowed(self, gaussian, metric, assert_neighbours):
        X, Q = gaussian
        index = dci.DCI(metric, random_state=0).fit(X)
        for nothing in ([], np.zeros(len(X), dtype=bool)):
            result = index.query(Q, 3, filter=nothing)
            assert (result.indices == -1).all()
            assert (result.distances == WORST[metric]).all()
        everything = index.query(Q, 3, recall=1.0, filter=np.ones(len(X), dtype=bool))
        assert_neighbours(everything, X, Q, 3, metric)


class TestFunctions:
    def test_exact(self, data, metric, assert_neighbours):
        X, Q = data
        assert_neighbours(dci.exact(X, Q, 10, metric), X, Q, 10, metric)
        assert_neighbours(dci.exact(X, Q[0], 3, metric), X, Q[0], 3, metric)
        assert_neighbours(dci.exact(X[:4], Q, 6, metric), X[:4], Q, 6, metric)

    def test_exact_blocks(self, assert_neighbours):
        rng = np.random.default_rng(0)
        X, Q = rng.standard_normal((3001, 33)), rng.standard_normal((257, 33))
        assert_neighbours(dci.exact(X, Q, 5, "l2"), X, Q, 5)

    def test_knn(self, data, metric, assert_neighbours):
        X = data.points[:400]
        distances, indices = dci.knn(X, 6, metric=metric, recall=1.0, random_state=0)
        assert indices.shape == (400, 6)
        for i in range(0, 400, 13):
            others = np.arange(400) != i
            row = distances[i], indices[i]
            assert_neighbours(row, X, X[i], 6, metric, allowed=others)

    def test_knn_of_few_points(self, metric):
        distances, indices = dci.knn(np.eye(3), 4, metric=metric)
        assert indices.tolist() == [[1, 2, -1, -1], [0, 2, -1, -1], [0, 1, -1, -1]]
        assert (distances[:, 2:] == WORST[metric]).all()
        assert dci.knn(np.empty((0, 3)), 4).indices.shape == (0, 4)

    def test_knn_of_equal_points_leaves_out_the_point_itself(self):
        indices = dci.knn(np.ones((50, 4)), 5).indices
        assert (indices != np.arange(50)[:, np.newaxis]).all()
        assert (np.diff(np.sort(indices, axis=1)) > 0).all()

    def test_show_config(self, capsys):
        dci.show_config()
        printed = capsys.readouterr().out.lower()
        assert any(name in printed for name in ("serial", "avx2", "avx512", "neon"))
        assert "threads" in printed

    def test_import_is_light(self):
        heavy = "{'torch', 'sklearn', 'scipy'}"
        script = f"import sys, dci; print({heavy} & set(sys.modules))"
        run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "set()"


class TestInputForms:
    @pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i2", "u1", "?"])
    def test_dtypes(self, dtype, metric):
        rng = np.random.default_rng(0)
        X, Q = (rng.integers(0, 2 if dtype == "?" else 9, size=(n, 6)) for n in (80, 9))
        expected = dci.DCI(metric, recall=1.0).fit(X.astype("f4")).query(Q.astype("f4"), 5)
        same(dci.DCI(metric, recall=1.0).fit(X.astype(dtype)).query(Q.astype(dtype), 5), expected)
        expected = dci.exact(X.astype("f4"), Q.astype("f4"), 5, metric)
        same(dci.exact(X.astype(dtype), Q.astype(dtype), 5, metric), expected)

    def test_layouts(self, manifold):
        X, Q = manifold
        expected = dci.DCI(random_state=0).fit(X).query(Q, 5)
        wide = np.zeros((2 * len(X), 3 * X.shape[1]), dtype=np.float32)
        wide[::2, ::3] = X
        for form in (np.asfortranarray(X), wide[::2, ::3], X.astype("f8"), X.tolist()):
            index = dci.DCI(random_state=0).fit(form)
            same(index.query(Q, 5), expected)
            same(index.query(np.asfortranarray(Q), 5), expected)
            same(index.query(Q.astype("f8")[::-1][::-1], 5), expected)
            same(index.query(Q.tolist(), 5), expected)

    def test_input_is_never_modified(self, metric):
        rng = np.random.default_rng(0)
        X, Q = (rng.standard_normal((n, 8)).astype(np.float32) for n in (500, 20))
        allowed = rng.random(500) < 0.5
        before = X.copy(), Q.copy(), allowed.copy()
        index = dci.DCI(metric, random_state=0).fit(X, queries=Q)
        index.query(Q, 5, filter=allowed)
        index.query(Q[0], 5, max_candidates=10)
        dci.exact(X, Q, 5, metric)
        dci.knn(X, 5, metric=metric)
        for array, original in zip((X, Q, allowed), before, strict=True):
            np.testing.assert_array_equal(array, original)

    def test_read_only(self, metric):
        X = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
        X.setflags(write=False)
        allowed = np.ones(300, dtype=bool)
        allowed.setflags(write=False)
        index = dci.DCI(metric, random_state=0).fit(X, queries=X[:50])
        assert index.query(X, 1, filter=allowed).indices.shape == (300, 1)
        assert dci.exact(X, X, 1, metric).indices.shape == (300, 1)


class TestShapesAndMagnitudes:
    @pytest.mark.parametrize("n", [1, 2, 3, 17])
    def test_fewer_points_than_directions(self, n, metric, assert_neighbours):
        X = np.random.default_rng(n).standard_normal((n, 6))
        for options in ({}, {"n_simple": 32, "n_composite": 2, "directions": "random"}):
            index = dci.DCI(metric, random_state=0, **options).fit(X)
            for budget in ({}, {"max_candidates": 1.0}):
                assert_neighbours(index.query(X, 2, **budget), X, X, 2, metric)

    @pytest.mark.parametrize(("n", "dim"), [(2000, 1), (2000, 2), (60, 10_000)])
    @pytest.mark.parametrize("recall", [0.95, 1.0])
    def test_extreme_dimensions(self, n, dim, recall, metric, assert_neighbours, recall_of):
        rng = np.random.default_rng(dim)
        X, Q = (rng.standard_normal((m, dim)).astype(np.float32) for m in (n, 20))
        result = dci.DCI(metric, recall=recall, random_state=0).fit(X).query(Q, 5)
        if recall == 1.0:
            assert_neighbours(result, X, Q, 5, metric)
        else:
            assert recall_of(result, X, Q, metric) >= 0.9

    @pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
    @pytest.mark.parametrize("shape", ["manifold", "gaussian"])
    def test_scales(self, scale, shape, metric, request, assert_neighbours):
        X, Q = (np.float32(scale) * part for part in request.getfixturevalue(shape))
        if metric == "ip":
            Q = Q / np.float32(scale)  # products of two such numbers leave float32
        for options in ({}, {"recall": 1.0}, {"max_candidates": 1.0}):
            index = dci.DCI(metric, random_state=0).fit(X)
            result = index.query(Q, 5, **options)
            assert np.isfinite(result.distances).all()
            assert (result.distances != 0).all()
            if options:
                assert_neighbours(result, X, Q, 5, metric)
        assert_neighbours(dci.exact(X, Q, 5, metric), X, Q, 5, metric)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_products_beyond_float32_keep_their_order(self, gaussian, scale):
        X, Q = (np.float32(scale) * part for part in gaussian)
        _, expected = exact_search(*gaussian, 5, "ip")
        index = dci.DCI("ip", recall=1.0, random_state=0).fit(X)
        np.testing.assert_array_equal(index.query(Q, 5).indices, expected)
        assert (index.query(Q, 5).distances == (np.inf if scale > 1 else 0)).all()

    def test_mixed_scales(self, gaussian, metric, assert_neighbours):
        X, Q = (part.copy() for part in gaussian)
        X[::3] *= np.float32(1e-30)
        X[1::3] *= np.float32(1e30)
        Q[::2] *= np.float32(1e-30)
        index = dci.DCI(metric, recall=1.0, random_state=0).fit(X)
        assert_neighbours(index.query(Q, 20), X, Q, 20, metric)
        assert_neighbours(dci.exact(X, Q, 20, metric), X, Q, 20, metric)

    def test_zero_vectors_under_cosine(self, gaussian, assert_neighbours):
        X, Q = (part.copy() for part in gaussian)
        X[::5] = 0
        Q[0] = 0
        index = dci.DCI("cosine", recall=1.0, random_state=0).fit(X)
        result = index.query(Q, 10)
        assert_neighbours(result, X, Q, 10, "cosine")
        np.testing.assert_array_equal(result.distances[0], np.ones(10))
        np.testing.assert_array_equal(result.indices[0], np.arange(10))
        everything = index.query(Q[1], len(X))
        np.testing.assert_array_equal(everything.distances[np.isin(everything.indices, range(0, 700, 5))], 1)
        approximate = dci.DCI("cosine", random_state=0).fit(X).query(Q, 10)
        assert np.isfinite(approximate.distances).all()

    def test_offset_data_keeps_its_precision(self, assert_neighbours):
        rng = np.random.default_rng(0)
        X = (1000 + 0.01 * rng.standard_normal((800, 10))).astype(np.float32)
        Q = (1000 + 0.01 * rng.standard_normal((20, 10))).astype(np.float32)
        index = dci.DCI(recall=1.0, random_state=0).fit(X)
        assert_neighbours(index.query(Q, 5), X, Q, 5, atol=0)
        assert_neighbours(dci.exact(X, Q, 5, "l2"), X, Q, 5, atol=0)
