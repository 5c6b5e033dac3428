"""Exact search is exact: whatever the number of threads, the ties and the rounding of its filter."""

import math

import numpy as np
import pytest

import dci
from dci._native import cell_search as native_cell_search
from dci._native import exact_scan as native_exact_scan
from dci._native import kernels as native_kernels
from dci._native.kernels import Reservoirs
from dci._native.rows import Rows, panels_of, prepared, project
from dci._search.exact import score_error
from dci.reference import exact_search

THREADS = range(1, 8)
U = 2.0**-24


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def lattice(n, dim, nq, seed=0):
    """Points and queries of few distinct integer coordinates: nearly all distances tie, and none is rounded."""
    rng = np.random.default_rng(seed)
    X, Q = np.zeros((2, n, dim), np.float32)
    for part in X, Q:
        part[:, :3] = rng.integers(-1, 2, size=(n, 3))
    return X, Q[:nq]


class TestTies:
    """Ids are settled by the tie rule, so that they are the same on any number of threads."""

    @pytest.mark.parametrize("few", [True, False], ids=["one by one", "in tiles"])
    def test_do_not_depend_on_num_threads(self, metric, few):
        X, Q = lattice(8000, 128, 3 if few else 20)  # so wide that each thread gets a list of its own
        for k in (1, 40, 300):
            expected = exact_search(X, Q, k, metric)[1]
            for num_threads in THREADS:
                index = dci.DCI(metric, recall=1.0, num_threads=num_threads).fit(X)
                np.testing.assert_array_equal(index.query(Q, k).indices, expected)

    def test_do_not_depend_on_num_threads_with_a_filter(self, metric):
        X, Q = lattice(8000, 128, 20)
        allowed = np.random.default_rng(1).random(len(X)) < 0.7
        ids = np.flatnonzero(allowed)
        expected = ids[exact_search(X[ids], Q, 40, metric)[1]]
        for num_threads in THREADS:
            index = dci.DCI(metric, recall=1.0, num_threads=num_threads).fit(X)
            np.testing.assert_array_equal(index.query(Q, 40, filter=allowed).indices, expected)
            np.testing.assert_array_equal(index.query(Q[0], 40, filter=ids[::-1]).indices, expected[0])

    def test_do_not_depend_on_num_threads_without_the_point_itself(self, metric):
        X, _ = lattice(1500, 128, 0)
        order = exact_search(X, X[::50], 42, metric)[1]
        rows = zip(order, range(0, len(X), 50), strict=True)
        expected = [row[row != own][:41] for row, own in rows]
        for num_threads in THREADS:
            found = dci.knn(X, 41, metric=metric, recall=1.0, num_threads=num_threads).indices
            np.testing.assert_array_equal(found[::50], expected)

    def test_do_not_depend_on_num_threads_where_the_nearest_come_last(self):
        """So that the merged list overflows among points that tie with its worst, in an order that is not theirs."""
        X, q = np.zeros((2400, 128), np.float32), np.zeros(128, np.float32)
        for seed in range(120):
            rng = np.random.default_rng(seed)
            k = int(rng.integers(40, 130))
            few = k - int(rng.integers(1, 32))
            X[:800, 0], X[800:1600, 0], X[1600:, 0] = 3, 2, rng.choice([1, 2], 800, p=[0.7, 0.3])
            X[800 + rng.choice(800, few, replace=False), 0] = 1
            X[1600 + rng.choice(800, 3, replace=False), 0] = 0
            expected = np.argsort(X[:, 0], kind="stable")[:k]
            for num_threads in (1, 3):
                index = dci.DCI(recall=1.0, num_threads=num_threads).fit(X)
                np.testing.assert_array_equal(index.query(q, k).indices, expected)

    @pytest.mark.parametrize("keep", [1, 7, 40, 200])
    @pytest.mark.parametrize("order", ["ascending", "descending", "any"])
    def test_merged_lists_keep_the_lowest_positions(self, order, keep):
        X = np.zeros((2000, 2), np.float32)
        X[:, 0] = np.random.default_rng(0).integers(3, size=2000)
        Q = np.zeros((2, 2), np.float32)
        parts = [(start, start + 250) for start in range(0, 2000, 250)]
        if order != "ascending":
            parts = parts[::-1] if order == "descending" else [parts[i] for i in (3, 0, 6, 1, 7, 2, 5, 4)]
        lists = []
        for start, stop in parts:
            lists.append(Reservoirs(2, keep))
            native_exact_scan.scan(Rows(X), None, start, stop, Q, lists[-1], True)
        expected = np.argsort(X[:, 0] ** 2, kind="stable")[:keep]
        np.testing.assert_array_equal(
            native_cell_search.positions(native_exact_scan.merge(lists), keep), [expected] * 2
        )


def misleading(metric, dim, n=64):
    """Points whose best one for the query, the first, the chain of float32 additions puts behind many others.

    Once the first products are added, no other one is large enough to move the sum: what they add is lost.
    """
    rank = np.arange(n)
    X = np.zeros((n, dim))
    X[:, 0] = 1
    q = np.full(dim, np.sqrt((0.9 if metric == "ip" else 0.45) * U))
    q[0] = 1
    if metric == "ip":
        X[:, 0] += dim * U * (0.85 - 0.6 * rank / n)
    elif metric == "cosine":
        X[:, 1] = np.sqrt(dim / 120 * U * rank)
    else:
        q[1] = np.sqrt(0.9 * dim * U)  # so that the sum stays above 1
        X[:, 1] = q[1] + np.sqrt(dim / 82 * U * rank)
    X[0] = q
    if metric == "l2":  # a mean of zero
        X = np.concatenate([X, -X])
    return X.astype(np.float32), np.tile(q.astype(np.float32), (4, 1))


def true_keys(X, q, metric):
    """What orders the rows, by sums that are rounded once: float64 holds a product of two float32 as it is."""
    X, q = X.astype(float), q.astype(float)
    products = np.array([math.fsum(x * q) for x in X])
    norms = np.array([math.fsum(x * x) for x in X])
    if metric == "l2":
        return np.sqrt(np.array([math.fsum(np.concatenate([x * x, -2 * x * q, q * q])) for x in X]))
    return -products if metric == "ip" else 1 - products / np.sqrt(norms * math.fsum(q * q))


class TestRounding:
    @pytest.mark.parametrize("dim", [8192, 20_000])
    def test_one_sided_rounding_loses_no_neighbour(self, metric, dim):
        X, Q = misleading(metric, dim)
        keys = true_keys(X, Q[0], metric)
        assert (keys[0] < keys[1:]).all()
        order = np.argsort(keys.astype(np.float32), kind="stable")  # ties of float32 go by index
        for k in (1, 5, 20):
            np.testing.assert_array_equal(dci.exact(X, Q, k, metric).indices, np.tile(order[:k], (4, 1)))

    def test_the_misleading_points_do_mislead_the_filter(self, metric):
        if metric == "l2" and native_kernels.simd() == "serial":
            pytest.skip("without lanes, the norms lose what the products lose")
        X, Q = misleading(metric, 8192)
        if metric == "cosine":
            X, Q = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (X, Q))
        kept = Reservoirs(4, 26)
        native_exact_scan.scan(Rows(X), None, 0, len(X), (-2 if metric == "l2" else -1) * Q, kept, metric == "l2")
        assert 0 not in native_cell_search.positions(kept, 26)[0]

    @pytest.mark.parametrize("name", native_kernels.simd_available())
    @pytest.mark.parametrize("dim", [1, 7, 50, 784, 8192])
    def test_no_score_errs_by_more_than_the_bound(self, metric, dim, name):
        before = native_kernels.simd()
        native_kernels.use_simd(name)
        try:
            self.check_scores(metric, dim)
        finally:
            native_kernels.use_simd(before)

    def check_scores(self, metric, dim):
        rng = np.random.default_rng(dim)
        shapes = [
            lambda n: rng.standard_normal((n, dim)),
            lambda n: rng.random((n, dim)),
            lambda n: np.full((n, dim), 0.7) * (1 + 1e-4 * rng.standard_normal((n, 1))),
            lambda n: rng.standard_normal((n, dim)) * 10.0 ** rng.integers(-30, 1, size=(n, 1)),
        ]
        for make in shapes:
            X, Q = (make(n).astype(np.float32) for n in (48, 4))
            norms = np.linalg.norm(X.astype(float), axis=1)
            row_scale = center = None
            if metric == "cosine":
                scale, row_scale = 1.0, (1 / norms).astype(np.float32)
                x = X / norms[:, None]
                q = Q.astype(float)
            elif metric == "ip":
                scale, x, q = 0.25, 0.25 * X.astype(float), Q.astype(float)
            else:
                scale, center = 0.25, (0.25 * X).mean(0).astype(np.float32)
                x, q = (0.25 * part.astype(float) - center for part in (X, Q))
            points = Rows(X, scale, row_scale, center=center)
            queries = Rows(Q, scale, center=center) if metric == "l2" else Rows(Q)
            factor = -2 if metric == "l2" else -1
            tile = prepared(queries, np.arange(4)) * np.float32(factor)
            true = factor * q @ x.T + (np.square(x).sum(1) if metric == "l2" else 0)
            norms2 = np.array([norm2(points, i) for i in range(48)], np.float32)
            received = np.empty((4, 48), np.float32)
            bias = norms2 if metric == "l2" else np.zeros(48, np.float32)
            project(
                Rows(tile), np.arange(4, dtype=np.int32), panels_of(prepared(points, np.arange(48))), bias, received
            )
            longest = float(norms2.max())
            error = score_error(metric, dim, np.linalg.norm(tile.astype(float), axis=1), longest, scale)
            assert (np.abs(received - true) <= error[:, None]).all()

    def test_of_sums_too_long_for_float32_nothing_is_known(self):
        assert np.isinf(score_error("ip", 2**23, np.ones(3), 1.0, 1.0)).all()

    @pytest.mark.parametrize("shift", [1e2, 1e4, 1e6])
    def test_distances_that_float32_cannot_tell_apart_are_ties(self, shift):
        """Far queries: many points are equally far, and which of them are the nearest is a matter of their ids."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((3000, 6)).astype(np.float32)
        Q = (shift * rng.standard_normal((12, 6))).astype(np.float32)
        found = dci.exact(X, Q, 10)
        distances = np.sqrt(np.square(Q[:, None].astype(float) - X).sum(2)).astype(np.float32)
        np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1, kind="stable")[:, :10])

    @pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30, 2e38])
    def test_near_the_ends_of_the_range(self, metric, scale):
        rng = np.random.default_rng(0)
        X = rng.uniform(-1, 1, (2000, 40)) * scale
        X[::2] /= 2 ** rng.integers(0, 4, (1000, 1))
        X, Q = X.astype(np.float32), rng.uniform(-1, 1, (9, 40)).astype(np.float32)
        Q = Q if metric != "l2" else (np.float64(scale) * Q).astype(np.float32)
        batch = dci.exact(X, Q, 10, metric)
        for q, near, far in zip(Q, batch.indices, batch.distances, strict=True):
            single = dci.exact(X, q, 10, metric)
            np.testing.assert_array_equal(near, single.indices)
            np.testing.assert_array_equal(far, single.distances)


def norm2(points, i):
    """|x|^2 as the kernel computes it."""
    return native_exact_scan.scan(
        points, None, i, i + 1, np.zeros((1, points.width), np.float32), Reservoirs(1, 1), True
    )
