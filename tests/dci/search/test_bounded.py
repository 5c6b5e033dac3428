"""Search by bounds finds what exact search finds, with bounds that hold and with some that are worth nothing."""

import numpy as np
import pytest

from dci._geometry.directions import principal_directions
from dci._geometry.metric import MetricEmbedding
from dci._native.rows import prepared
from dci._runtime.threads import Work
from dci._search.bounded import BoundedSearch, Bounds, bounds_of
from dci._search.exact import ExactSearch


def searches(X, metric, m, keep):
    absmax = float(np.abs(X).max())
    exact, embedding = ExactSearch(X, absmax, metric), MetricEmbedding(X, absmax, metric, False)
    sample = prepared(embedding.points, np.arange(0, len(X), 4))
    directions = np.ascontiguousarray(principal_directions(sample, m, np.random.default_rng(0)))
    return exact, BoundedSearch(exact, embedding, Bounds(directions, keep)), absmax


def assert_exact(X, metric, m, keep, k=20, Q=None, num_threads=1):
    exact, bounded, _ = searches(X, metric, m, keep)
    own = np.arange(0, len(X), 50, dtype=np.int32) if Q is None else None
    queries = X[own] if Q is None else Q
    largest = float(np.abs(queries).max())
    with Work(num_threads) as work:
        expected = exact.search(queries, largest, k, work, exclude=own)[1]
        asked = []
        search = exact.search

        def counted(Q, *arguments, **named):
            asked.append(len(Q))
            return search(Q, *arguments, **named)

        exact.search = counted
        np.testing.assert_array_equal(bounded.search(queries, largest, k, work, own), expected)
    return sum(asked) / len(queries)


@pytest.fixture(scope="module")
def curved():
    rng = np.random.default_rng(0)
    hidden = np.tanh(rng.standard_normal((4000, 5)) @ rng.standard_normal((5, 90)))
    return (3 * hidden + 0.01 * rng.standard_normal(hidden.shape) + 1).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_few_intrinsic_dimensions_are_proven(curved, metric, num_threads):
    assert assert_exact(curved, metric, 32, 500, num_threads=num_threads) < 0.1


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("keep", [21, 100, 4000])
def test_few_directions_leave_some_to_exact_search(curved, metric, keep):
    assert_exact(curved, metric, 2, keep)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_noise_is_left_to_exact_search(metric):
    noise = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    assert assert_exact(noise, metric, 8, 100) > 0.9


@pytest.mark.parametrize("factor", [1e-25, 1e-3, 1e12])
def test_any_magnitude(curved, factor):
    assert assert_exact(curved * np.float32(factor), "l2", 32, 500) < 0.1


def test_ties_and_duplicates():
    lattice = np.zeros((3000, 30), np.float32)
    lattice[:, :3] = np.random.default_rng(0).integers(-1, 2, (3000, 3))
    for keep in (21, 300, 3000):
        assert_exact(lattice, "l2", 8, keep)


def test_queries_far_from_the_points(curved):
    Q = curved[:20] + np.linspace(0, 1e6, 20, dtype=np.float32)[:, None]
    assert_exact(curved, "l2", 32, 500, Q=Q)


def test_estimates_say_where_bounds_are_worth_it(curved):
    for X, least, most in ((curved, 0, 600), (np.random.default_rng(0).standard_normal((4000, 90)), 1000, 4000)):
        rows = X.astype(np.float32) - X.astype(np.float32).mean(0)
        directions = principal_directions(rows[:1000], 64, np.random.default_rng(0))
        sample, some = rows[:1000], rows[1000:1016]
        pairs = (sample, sample @ directions), (some, some @ directions)
        found = [candidates for _, candidates in bounds_of(*pairs, directions, len(X), 20)]
        assert all(least <= candidates <= most for candidates in found[-1:])
        assert found == sorted(found, reverse=True)
