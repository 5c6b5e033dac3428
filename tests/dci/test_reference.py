"""The reference against first principles, and the engine's candidates against the reference."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import dci
from dci.errors import InvalidTypeError, InvalidValueError, NotFittedError
from dci.reference import PrioritizedDCI, exact_search

EPSILON = 1e-5  # of float32 projections, relative to the largest


def unit_directions(rng, count, dim):
    directions = rng.standard_normal((count, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.astype(np.float32)


def projected_distances(X, q, directions):
    """|u_j · (x - q)| of shape (n, m), in float64."""
    return np.abs((X.astype(np.float64) - q) @ directions.T.astype(np.float64))


class TestPrioritizedDCI:
    def test_candidates_ascend_in_the_largest_projected_distance(self, manifold):
        X, q = manifold.points[:300], manifold.queries[0]
        index = PrioritizedDCI(3, 5, random_state=0).fit(X)
        for composite, ids in enumerate(index.candidates(q)):
            assert np.array_equal(np.sort(ids), np.arange(300))
            directions = index.directions_[5 * composite : 5 * composite + 5]
            keys = projected_distances(X, q, directions).max(axis=1)
            assert (np.diff(keys[ids]) >= 0).all()

    @pytest.mark.parametrize("k0", [1, 17, 300, 1000, 0.25])
    def test_max_candidates_is_a_prefix(self, manifold, k0):
        index = PrioritizedDCI(2, 4, random_state=0).fit(manifold.points[:300])
        count = 75 if k0 == 0.25 else min(k0, 300)
        everything = index.candidates(manifold.queries[0])
        for ids, all_ids in zip(index.candidates(manifold.queries[0], k0), everything, strict=True):
            assert np.array_equal(ids, all_ids[:count])

    @pytest.mark.parametrize("k1", [1, 4, 100, 600, 1200])
    def test_max_visits_are_the_nearest_projections(self, manifold, k1):
        X, q = manifold.points[:300], manifold.queries[0]
        index = PrioritizedDCI(2, 4, random_state=0).fit(X)
        for composite, ids in enumerate(index.candidates(q, max_visits=k1)):
            singles = projected_distances(X, q, index.directions_[4 * composite : 4 * composite + 4])
            radius = np.sort(singles, axis=None)[k1 - 1]
            assert np.array_equal(np.sort(ids), np.flatnonzero((singles <= radius).all(axis=1)))

    def test_one_direction_is_a_sorted_list(self):
        X = np.array([[0.0], [10.0], [4.0], [5.5]])
        index = PrioritizedDCI(1, 1, directions=[[1.0]]).fit(X)
        assert index.candidates([5.0])[0].tolist() == [3, 2, 0, 1]

    def test_full_budget_is_exact(self, data):
        index = PrioritizedDCI(2, 3, random_state=0).fit(data.points)
        for q in data.queries[:3]:
            for received, expected in zip(index.query(q, 7), exact_search(data.points, q, 7), strict=True):
                np.testing.assert_array_equal(received, expected)

    def test_union_of_composites_is_ranked_by_distance(self, manifold):
        X, q = manifold.points[:300], manifold.queries[0]
        index = PrioritizedDCI(3, 4, random_state=0).fit(X)
        union = np.unique(np.concatenate(index.candidates(q, max_candidates=4)))
        distances, ids = index.query(q, k=20, max_candidates=4)
        true, order = exact_search(X[union], q, 20)
        np.testing.assert_array_equal(ids, np.where(order < 0, -1, union[order]))
        np.testing.assert_array_equal(distances, true)

    def test_seeded(self, gaussian):
        first, second = (PrioritizedDCI(random_state=3).fit(gaussian.points) for _ in range(2))
        np.testing.assert_array_equal(first.directions_, second.directions_)
        np.testing.assert_allclose(np.linalg.norm(first.directions_, axis=1), 1.0)

    @pytest.mark.parametrize("X", [[], np.empty((0, 2))])
    def test_no_points(self, X):
        index = PrioritizedDCI(2, 3, random_state=0).fit(X)
        assert [len(ids) for ids in index.candidates([1.0, 2.0])] == [0, 0]
        distances, ids = index.query([1.0, 2.0], k=2)
        assert distances.tolist() == [np.inf, np.inf]
        assert ids.tolist() == [-1, -1]

    def test_bad_input(self, gaussian):
        with pytest.raises(NotFittedError):
            PrioritizedDCI().query([0.0])
        with pytest.raises(InvalidValueError, match="= 20 rows, received shape"):
            PrioritizedDCI(directions=np.ones((3, 12))).fit(gaussian.points)
        with pytest.raises(InvalidValueError, match=r"directions: .*\(n, 12\)"):
            PrioritizedDCI(directions=np.ones((20, 3))).fit(gaussian.points)
        with pytest.raises(InvalidTypeError, match="n_simple"):
            PrioritizedDCI(n_simple=1.5).fit(gaussian.points)
        index = PrioritizedDCI().fit(gaussian.points)
        with pytest.raises(InvalidValueError, match="one query"):
            index.query(gaussian.queries)
        with pytest.raises(InvalidValueError, match="max_candidates"):
            index.candidates(gaussian.queries[0], max_candidates=0)


class TestExactSearch:
    def test_against_scipy(self, gaussian, metric):
        X, Q = (part.astype(np.float64) for part in gaussian)
        keys = {
            "l2": lambda: cdist(Q, X),
            "ip": lambda: -Q @ X.T,
            "cosine": lambda: cdist(Q, X, "cosine"),
        }[metric]()
        order = np.argsort(keys, axis=1)[:, :10]
        distances, indices = exact_search(*gaussian, 10, metric)
        np.testing.assert_array_equal(indices, order)
        expected = np.take_along_axis(keys, order, axis=1) * (-1 if metric == "ip" else 1)
        np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-12)

    def test_ties_break_by_index(self, metric):
        X = np.tile(np.random.default_rng(0).standard_normal((1, 37)), (50, 1))
        _, indices = exact_search(X, X[:2], 5, metric)
        assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2

    def test_padding(self, metric):
        distances, indices = exact_search(np.eye(2), np.eye(2), 4, metric)
        assert (indices[:, 2:] == -1).all()
        assert (distances[:, 2:] == (-np.inf if metric == "ip" else np.inf)).all()
        distances, indices = exact_search(np.empty((0, 2)), [1.0, 2.0], 2, metric)
        assert indices.tolist() == [-1, -1]

    def test_zero_vectors_under_cosine(self):
        X = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
        distances, indices = exact_search(X, [[0.0, 0.0], [2.0, 0.0]], 3, "cosine")
        np.testing.assert_array_equal(distances, [[1, 1, 1], [0, 1, 2]])
        np.testing.assert_array_equal(indices, [[0, 1, 2], [1, 0, 2]])


# The engine's contract: same directions, same candidates, for every budget. Candidates may differ only
# where a projected distance is within float32's rounding of the last one that the budget admits.

shapes = st.fixed_dictionaries(
    {
        "n": st.integers(2, 80),
        "dim": st.integers(1, 9),
        "n_composite": st.integers(1, 3),
        "n_simple": st.integers(1, 6),
        "seed": st.integers(0, 2**32 - 1),
        "lattice": st.booleans(),
    }
)


def draw(n, dim, n_composite, n_simple, seed, lattice):
    rng = np.random.default_rng(seed)
    X, Q = rng.standard_normal((n, dim)), rng.standard_normal((3, dim))
    if lattice:  # duplicates, hence ties
        X, Q = np.round(X), np.round(Q)
        assume(X.any())  # there is nothing to rank by otherwise
    directions = unit_directions(rng, n_composite * n_simple, dim)
    return X.astype(np.float32), Q.astype(np.float32), directions


def fit_flat(X, directions, n_composite, n_simple, ranking):
    return dci.DCI(
        directions=directions,
        ranking=ranking,
        n_composite=n_composite,
        n_simple=n_simple,
        n_levels=1,
        random_state=0,
    ).fit(X)


def assert_same_candidates(received, expected, keys, boundary, exact_count):
    """`keys` of shape (n,) ranked the points; those within rounding of `boundary` may be swapped."""
    assert received.dtype == np.int64
    assert (np.diff(received) > 0).all(), "sorted and unique"
    if exact_count:
        assert len(received) == len(expected)
    differing = np.setxor1d(received, expected)
    assert (np.abs(keys[differing] - boundary) <= EPSILON * max(1.0, keys.max())).all()


def last_visit(singles, k1):
    """Projected distance of visit k1, and whether rounding could let another visit take its place."""
    ordered = np.sort(singles, axis=None)
    radius = ordered[min(k1, len(ordered)) - 1]
    near = np.abs(ordered - radius) <= EPSILON * max(1.0, ordered[-1])
    return radius, near.sum() > 1


@settings(max_examples=150)
@given(shape=shapes, k0=st.integers(1, 90), k1=st.none() | st.integers(1, 500))
def test_max_ranking_gives_the_reference_candidates(shape, k0, k1):
    X, Q, directions = draw(**shape)
    n, n_composite, m = shape["n"], shape["n_composite"], shape["n_simple"]
    reference = PrioritizedDCI(n_composite, m, directions).fit(X)
    index = fit_flat(X, directions, n_composite, m, "max")
    received = index._candidates(Q, max_candidates=k0, max_visits=k1)
    for query, of_query in zip(Q, received, strict=True):
        expected = reference.candidates(query, k0, k1)
        for composite, (ids, reference_ids) in enumerate(zip(of_query, expected, strict=True)):
            block = directions[composite * m : composite * m + m]
            singles = projected_distances(X, query, block)
            keys = singles.max(axis=1)
            boundary, visits_tie = np.sort(keys)[min(k0, n) - 1], False
            assert len(ids) <= k0
            if k1 is not None:
                radius, visits_tie = last_visit(singles, k1)
                visits_tie |= bool(abs(radius - boundary) <= EPSILON * max(1.0, keys.max()))
                boundary = min(radius, boundary)
            assert_same_candidates(ids, reference_ids, keys, boundary, not visits_tie)


@settings(max_examples=150)
@given(shape=shapes, k0=st.integers(1, 90), k1=st.none() | st.integers(1, 500))
def test_sum_ranking_gives_the_smallest_sums_of_visited_points(shape, k0, k1):
    X, Q, directions = draw(**shape)
    n_composite, m = shape["n_composite"], shape["n_simple"]
    index = fit_flat(X, directions, n_composite, m, "sum")
    received = index._candidates(Q, max_candidates=k0, max_visits=k1)
    for query, of_query in zip(Q, received, strict=True):
        assert len(of_query) == n_composite
        for composite, ids in enumerate(of_query):
            block = directions[composite * m : composite * m + m]
            singles = projected_distances(X, query, block)
            radius, visits_tie = last_visit(singles, singles.size if k1 is None else k1)
            if k1 is not None and visits_tie:
                continue  # which of the tied visits came last, and so who was visited, is open
            visited = np.flatnonzero((singles <= radius).all(axis=1))
            sums = (singles**2).sum(axis=1)
            order = visited[np.argsort(sums[visited], kind="stable")]
            boundary = sums[order[min(k0, len(order)) - 1]] if len(order) else 0.0
            assert_same_candidates(ids, np.sort(order[:k0]), sums, boundary, True)


@pytest.mark.parametrize("ranking", ["max", "sum"])
def test_budgets_of_the_engine_may_be_shares(gaussian, ranking):
    X, Q = gaussian
    directions = unit_directions(np.random.default_rng(0), 8, X.shape[1])
    index = fit_flat(X, directions, 2, 4, ranking)
    n = len(X)
    for shares, counts in [((0.1, None), (n // 10, None)), ((None, 0.25), (None, n))]:
        for of_query, same in zip(index._candidates(Q[:5], *shares), index._candidates(Q[:5], *counts), strict=True):
            for ids, same_ids in zip(of_query, same, strict=True):
                np.testing.assert_array_equal(ids, same_ids)


def test_query_re_ranks_the_union_of_candidates(gaussian):
    X, Q = gaussian
    directions = unit_directions(np.random.default_rng(0), 12, X.shape[1])
    index = fit_flat(X, directions, 3, 4, "max")
    distances, indices = index.query(Q, 10, max_candidates=30)
    for row, of_query in enumerate(index._candidates(Q, max_candidates=30)):
        union = np.unique(np.concatenate(of_query))
        expected = exact_search(X[union], Q[row], 10)
        np.testing.assert_array_equal(indices[row], union[expected[1]])
        np.testing.assert_allclose(distances[row], expected[0], rtol=1e-5)
