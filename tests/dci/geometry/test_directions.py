"""Projection directions: what they keep, and that they are orthonormal whatever the rank."""

import numpy as np
import pytest

from dci._geometry import directions


class TestDirections:
    @pytest.mark.parametrize("rank", [3, 20])
    def test_of_products_reproduce_them(self, rank):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((900, 20)) * np.linspace(0.1, 3, 20)
        Q = rng.standard_normal((700, rank)) @ rng.standard_normal((rank, 20)) + 0.5 * (rank == 20)
        X, Q = X.astype(np.float32), Q.astype(np.float32)
        for_points, for_queries = directions.product_directions(X, Q, rank)
        assert for_points.shape == for_queries.shape == (20, rank)
        assert for_points.dtype == for_queries.dtype == np.float32
        received = (Q @ for_queries).astype(float) @ (X @ for_points).T.astype(float)
        expected = Q.astype(float) @ X.T.astype(float)
        np.testing.assert_allclose(received, expected, rtol=0, atol=2e-3 * expected.std())

    def test_of_products_err_less_the_more_there_are(self):
        rng = np.random.default_rng(0)
        X = (rng.standard_normal((2000, 32)) * np.linspace(3, 0.1, 32)).astype(np.float32)
        Q = (rng.standard_normal((1000, 32)) * np.linspace(0.1, 3, 32)).astype(np.float32)
        errors = {}
        for count in (1, 2, 4, 8, 16, 32):
            for_points, for_queries = directions.product_directions(X, Q, count)
            errors[count] = np.square(Q @ X.T - Q @ for_queries @ (X @ for_points).T).mean()
            eigen = directions.principal_directions(X, count, rng)
            assert errors[count] <= np.square(Q @ X.T - Q @ eigen @ (X @ eigen).T).mean() + 1e-5
        assert (np.diff(list(errors.values())) < 0).all()

    @pytest.mark.parametrize(("width", "rank"), [(12, 3), (30, 12), (200, 5), (200, 40), (400, 16)])
    def test_of_points_span_the_leading_eigenvectors(self, width, rank):
        rng = np.random.default_rng(width)
        scales = np.linspace(3, 1, rank)
        X = (scales * rng.standard_normal((600, rank))) @ np.linalg.qr(rng.standard_normal((width, rank)))[0].T
        X = (X + 1e-3 * rng.standard_normal(X.shape)).astype(np.float32)
        X -= X.mean(0)
        found = directions.principal_directions(X, rank, rng).astype(float)
        vectors = np.linalg.eigh(X.T.astype(float) @ X)[1][:, ::-1][:, :rank]
        assert found.shape == (width, rank)
        np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-4)
        np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=5e-3)
        kept = np.square(X @ found).sum(0)
        assert (np.diff(kept) <= 1e-3 * kept[0]).all(), "best first"

    @pytest.mark.parametrize(("width", "count"), [(10, 10), (100, 20), (100, 64)])
    @pytest.mark.parametrize("rank", [0, 1, 4])
    def test_of_points_are_orthonormal_beyond_their_rank(self, width, count, rank):
        rng = np.random.default_rng(0)
        X = (rng.standard_normal((300, rank)) @ rng.standard_normal((rank, width))).astype(np.float32)
        found = directions.principal_directions(X, count, rng)
        np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-3)
        np.testing.assert_allclose(X @ found @ found.T, X, atol=1e-3 * max(1.0, np.abs(X).max()))

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    @pytest.mark.parametrize("kind", ["full", "nearly", "repeated", "zero column", "rank 1", "zero"])
    def test_orthonormal(self, kind, scale):
        rng = np.random.default_rng(0)
        columns = rng.standard_normal((50, 6))
        columns[:, 5] = {
            "full": columns[:, 5],
            "nearly": columns[:, 0] + 1e-3 * columns[:, 5],
            "repeated": columns[:, 0],
            "zero column": 0 * columns[:, 0],
        }.get(kind, columns[:, 5])
        if kind == "rank 1":
            columns = columns[:, :1] * np.arange(1, 7)
        columns = (scale * columns * (kind != "zero")).astype(np.float32)
        basis = directions.orthonormal(columns)
        assert basis.shape == columns.shape
        np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-3)
        unit = columns / np.float32(scale)
        np.testing.assert_allclose(basis @ (basis.T @ unit), unit, atol=1e-3)
