"""What ranking promises: needles are found, full budgets are exact, candidates are the best by projection."""

import os
import subprocess
import sys

import numpy as np
import pytest

import dci
from dci._native import kernels as native_kernels
from dci._native.cell_search import positions
from dci._native.kernels import LANES, Reservoirs
from dci._native.rows import prepared

OUTLIER = 6.0  # times the mean squared distance to the own centre


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def recall(found, truth):
    return np.mean([np.isin(*pair).mean() for pair in zip(found.indices, truth.indices, strict=True)])


def clusters(n, dim, seed=0, count=20):
    """Points of tight clusters and the number of each one's cluster."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(count, size=n)
    X = 3 * rng.standard_normal((count, dim))[labels] + 0.3 * rng.standard_normal((n, dim))
    return X.astype(np.float32), labels


def projections(index, Q):
    """Projected points (n, L, m) and queries (nq, L, m), in float64."""
    ranker, X = index._version.engine.ranker, index._version.engine.X
    Q = np.ascontiguousarray(Q, np.float32)
    plan, rows = ranker.plan, ranker.embedding.queries(Q, float(np.abs(Q).max()))
    shape = -1, plan.n_composite, plan.n_simple
    points = prepared(ranker.embedding.points, np.arange(len(X))).astype(float) @ plan.for_points
    queries = prepared(rows, np.arange(len(Q))).astype(float) @ plan.for_queries
    return points.reshape(shape), queries.reshape(shape)


def ranking_scores(index, Q):
    """What each composite index orders the points of each query by, (L, nq, n), and its rounding in float32."""
    points, queries = projections(index, Q)
    longest = max(np.linalg.norm(points, axis=2).max(), np.linalg.norm(queries, axis=2).max())
    if index._version.engine.ranker.plan.ranking == "max":
        scores = [np.abs(queries[:, None, c] - points[:, c]).max(2) for c in range(points.shape[1])]
        return np.stack(scores), 1e-5 * longest
    products = np.einsum("qcm,ncm->cqn", queries, points)
    norms = 0.0 if index._version.engine.ranker.embedding.product else np.square(points).sum(2).T[:, None]
    return norms - 2 * products, 1e-5 * longest**2


def ranked(index, Q, keep, visits=None, allowed=None):
    """Ids of the candidates of a batch of queries in order of rank, (L, nq, keep)."""
    ranker = index._version.engine.ranker
    Q = np.ascontiguousarray(Q, np.float32)
    rows = ranker.embedding.queries(Q, float(np.abs(Q).max()))
    reservoirs = Reservoirs(ranker.plan.n_composite * len(Q), keep)
    ids = ranker.cells.arrays.ids
    if allowed is not None:
        allowed = (allowed[ids] & (ids >= 0)).view(np.uint8)
    ranker.rank(rows, 0, len(Q), visits or index.n_points, reservoirs, allowed)
    places = positions(reservoirs, keep)
    return np.where(places < 0, -1, ids[places]).reshape(ranker.plan.n_composite, len(Q), keep)


def cells_of(index):
    """Cell of each point, and the centres (cells, L * m)."""
    arrays = index._version.engine.ranker.cells.arrays
    ids, first_panel, centers, n_centers = arrays.ids, arrays.first_panel, arrays.centers, arrays.n_centers
    cell_of = np.empty(index.n_points, int)
    cell_of[ids[ids >= 0]] = np.searchsorted(first_panel, np.flatnonzero(ids >= 0) // LANES, side="right") - 1
    return cell_of, centers.transpose(0, 2, 1).reshape(-1, centers.shape[1])[:n_centers]


PLACES = ("outside", "far outside", "between clusters", "along one axis", "off the directions")


def with_needle(n, place, seed):
    """Clustered points with one more, far from all of them, and its id."""
    rng = np.random.default_rng(seed)
    X, labels = clusters(n - 1, 16, seed)
    X[:, 12:] *= 0.01  # what principal directions leave out
    if place == "between clusters":
        needle = (X[labels == 0].mean(0) + X[labels == 1].mean(0)) / 2
    elif place == "along one axis":
        needle = X.mean(0) + 40 * np.eye(16)[rng.integers(12)]
    elif place == "off the directions":
        needle = X.mean(0) + 40 * np.eye(16)[rng.integers(12, 16)]
    else:
        direction = rng.standard_normal(16)
        needle = (20 if place == "outside" else 2000) * direction / np.linalg.norm(direction)
    i = int(rng.integers(n))
    return np.insert(X, i, needle, axis=0).astype(np.float32), i


def queries_of_needle(X, i, seed):
    """Queries on the way from the needle to other points, up to where another point gets nearer."""
    rng = np.random.default_rng(seed)
    others = X[rng.integers(len(X), size=40)]
    Q = X[i] + np.linspace(0.01, 0.7, 40, dtype=np.float32)[:, None] * (others - X[i])
    return Q[dci.exact(X, Q, 1).indices[:, 0] == i]


class TestNeedle:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("ranking", ["max", "sum"])
    @pytest.mark.parametrize("place", PLACES)
    def test_found_whenever_its_rank_is_within_the_candidates(self, place, ranking, seed):
        X, i = with_needle(3000, place, seed)
        Q = queries_of_needle(X, i, seed)
        assert len(Q) >= 10
        index = dci.DCI(directions="principal", ranking=ranking, n_simple=8, n_levels=2, random_state=seed).fit(X)
        scores, rounding = ranking_scores(index, Q)
        ranks = (scores[0] < scores[0][:, [i]] + rounding).sum(1)  # at most; from 1
        for q, rank in zip(Q, ranks.tolist(), strict=True):
            for candidates in (rank, rank + 10):
                assert index.query(q, 1, max_candidates=candidates).indices[0] == i
        assert (index.query(Q, 1, max_candidates=int(ranks.max())).indices[:, 0] == i).all()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("n", [40, 90, 300, 3000])
    @pytest.mark.parametrize("place", ["outside", "far outside", "along one axis"])
    def test_far_from_all_centres_it_is_visited_by_every_query(self, place, n, seed):
        X, i = with_needle(n, place, seed)
        Q = queries_of_needle(X, i, seed)
        assert len(Q) >= 5
        index = dci.DCI(directions="principal", n_simple=8, n_levels=2, random_state=seed).fit(X)
        cell_of, centers = cells_of(index)
        points, queries = (part.reshape(len(part), -1) for part in projections(index, Q))
        gap = np.square(points[:, None] - centers).sum(2).min(1)
        outlier = gap[i] > 1.1 * OUTLIER * gap.mean()
        # Where it is none, k-means made it a centre, whose cell is its own and is opened by queries nearest to it.
        assert (cell_of[i] == len(centers)) == outlier
        assert outlier or gap[i] < 1e-3 * gap.mean()
        nearest = np.square(queries[:, None] - centers).sum(2).argmin(1)
        opened = np.ones(len(Q), bool) if outlier else nearest == cell_of[i]
        assert opened.any()
        scores, rounding = ranking_scores(index, Q)
        ranks = (scores[0] < scores[0][:, [i]] + rounding).sum(1)
        visits = 1 if outlier else 1 + int((cell_of == len(centers)).sum())  # outliers are visited first, and count
        found = index.query(Q, 1, max_candidates=int(ranks.max()), max_visits=visits)
        assert (found.indices[opened, 0] == i).all()

    @pytest.mark.parametrize("seed", range(3))
    def test_many_needles_up_to_one_percent(self, seed):
        rng = np.random.default_rng(seed)
        X, _ = clusters(5000, 16, seed)
        needles = rng.choice(5000, 40, replace=False)
        X[needles] = 60 * rng.standard_normal((40, 16))
        index = dci.DCI(directions="principal", n_simple=16, n_levels=2, random_state=seed).fit(X)
        Q = X[needles] + 0.5 * rng.standard_normal((40, 16)).astype(np.float32)
        same(index.query(Q, 1, max_candidates=5, max_visits=50), dci.exact(X, Q, 1))

    def test_no_needles_in_even_data(self):
        X = np.random.default_rng(0).random((4000, 6), dtype=np.float32)
        index = dci.DCI(directions="principal", n_simple=6, n_levels=2, random_state=0).fit(X)
        cell_of, centers = cells_of(index)
        outliers = cell_of == len(centers)
        assert outliers.mean() <= 0.01
        points = projections(index, X[:1])[0].reshape(4000, -1)
        gap = np.square(points[~outliers] - centers[cell_of[~outliers]]).sum(1)
        assert gap.max() <= OUTLIER * gap.mean() * 1.1

    @pytest.mark.parametrize("seed", range(3))
    def test_calibrated_search_finds_it_too(self, seed):
        X, i = with_needle(20_000, "outside", seed)
        Q = X[i] + 0.1 * np.random.default_rng(seed).standard_normal((20, 16)).astype(np.float32)
        for options in ({}, {"n_levels": 2}, {"ranking": "max"}):
            index = dci.DCI(random_state=seed, **options).fit(X)
            assert (index.query(Q, 1).indices[:, 0] == i).all()
            assert index.query(Q[0], 1).indices[0] == i


class TestFullBudget:
    @pytest.mark.parametrize("n_composite", [1, 2])
    @pytest.mark.parametrize("n_levels", [1, 2, 3])
    @pytest.mark.parametrize("ranking", ["max", "sum"])
    @pytest.mark.parametrize("directions", ["random", "principal", "query", "array"])
    def test_is_exact(self, metric, directions, ranking, n_levels, n_composite):
        X, _ = clusters(500, 12)
        Q = X[::20] + 0.2 * np.random.default_rng(1).standard_normal((25, 12)).astype(np.float32)
        if directions == "array":
            directions = np.random.default_rng(0).standard_normal((6, 12))
        index = dci.DCI(
            metric,
            directions=directions,
            ranking=ranking,
            n_composite=n_composite,
            n_simple=6 // n_composite,
            n_levels=n_levels,
            random_state=0,
        ).fit(X, queries=Q)
        full = {"max_visits": 1.0, "max_candidates": 1.0}
        same(index.query(Q, 10, **full), dci.exact(X, Q, 10, metric))
        same(index.query(Q[0], 500, **full), dci.exact(X, Q[0], 500, metric))


def big_sets():
    """20,000 points in orders that a sample of every sixteenth panel may mistake, with queries."""
    rng = np.random.default_rng(0)
    n, dim = 20_000, 12
    clustered, labels = clusters(n, dim)
    ramp = np.sort(rng.standard_normal((n, 1)), axis=0) + 0.05 * rng.standard_normal((n, dim))
    distinct = rng.standard_normal((400, dim))
    sampled = np.arange(n) // LANES % LANES == 0
    near = np.where(sampled[:, None], 0.1, 10.0) * rng.standard_normal((n, dim))
    far = np.where(sampled[:, None], 10.0, 0.1) * rng.standard_normal((n, dim))
    return {
        "clustered": clustered,
        "sorted by cluster": clustered[np.argsort(labels, kind="stable")],
        "ramp": ramp,
        "duplicates": distinct[rng.integers(400, size=n)],
        "sorted duplicates": distinct[np.sort(rng.integers(400, size=n))],
        "lattice": rng.integers(-2, 3, size=(n, dim)),
        "near ones are sampled": near,
        "far ones are sampled": far,
    }


BIG = {name: X.astype(np.float32) for name, X in big_sets().items()}
KEEPS = (1, 2, 5, 16, 17, 64, 100, 300)


def queries_near(X):
    rng = np.random.default_rng(7)
    Q = X[rng.integers(len(X), size=24)].copy()
    Q[::2] += 0.1 * rng.standard_normal(Q[::2].shape).astype(np.float32)
    Q[:2] = 0
    return Q


@pytest.mark.parametrize("name", BIG)
class TestCandidates:
    @pytest.mark.parametrize("n_composite", [1, 2])
    @pytest.mark.parametrize("ranking", ["max", "sum"])
    @pytest.mark.parametrize("n_levels", [1, 2])
    def test_full_visits_give_the_best_by_projection(self, name, n_levels, ranking, n_composite):
        X = BIG[name]
        Q = queries_near(X)
        index = dci.DCI(
            directions="principal",
            ranking=ranking,
            n_composite=n_composite,
            n_simple=8 // n_composite,
            n_levels=n_levels,
            random_state=0,
        ).fit(X)
        scores, rounding = ranking_scores(index, Q)
        ordered = np.sort(scores, axis=2)
        everything = ranked(index, Q, len(X))  # with so many candidates nothing is sampled
        for keep in KEEPS:
            found = ranked(index, Q, keep)
            assert (found >= 0).all()
            assert (np.diff(np.sort(found, axis=2), axis=2) > 0).all()
            received = np.sort(np.take_along_axis(scores, found, axis=2), axis=2)
            np.testing.assert_allclose(received, ordered[:, :, :keep], rtol=0, atol=rounding)
            np.testing.assert_array_equal(found, everything[:, :, :keep])
        single = index._candidates(Q[:3], max_candidates=100)
        for row, of_query in enumerate(single):
            for composite, ids in enumerate(of_query):
                np.testing.assert_array_equal(ids, np.sort(everything[composite, row, :100]))

    @pytest.mark.parametrize("ranking", ["max", "sum"])
    def test_a_sample_never_loses_a_visited_candidate(self, name, ranking):
        X = BIG[name]
        Q = queries_near(X)
        index = dci.DCI(directions="random", ranking=ranking, n_simple=8, n_levels=2, random_state=0).fit(X)
        allowed = np.random.default_rng(1).random(len(X)) < 0.3
        for mask in (None, allowed):
            for visits in (700, 3000, 12_000):
                everything = ranked(index, Q, len(X), visits, mask)
                assert mask is None or mask[everything[everything >= 0]].all()
                for keep in KEEPS:
                    np.testing.assert_array_equal(ranked(index, Q, keep, visits, mask), everything[:, :, :keep])


OPTIONS = [
    {},
    {"n_levels": 1, "n_composite": 2, "n_simple": 8, "directions": "random", "ranking": "max"},
    {"n_levels": 2, "n_composite": 2, "n_simple": 8, "directions": "principal", "ranking": "sum"},
    {"n_levels": 2, "n_simple": 8, "directions": "query", "ranking": "max"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
class TestOneResult:
    def test_whatever_the_threads(self, large_manifold, metric, options):
        X, Q = large_manifold
        first = None
        for num_threads in (1, 2, 3):
            index = dci.DCI(metric, random_state=0, num_threads=num_threads, **options).fit(X[:5000], queries=Q[:50])
            results = [
                index.query(Q, 10),
                index.query(Q, 70, recall=0.9),
                index.query(Q[60:80], 10, max_candidates=100, max_visits=0.1),
                index.query(Q, 10, filter=np.arange(0, 5000, 3)),
            ]
            first = first or results
            for received, wanted in zip(results, first, strict=True):
                same(received, wanted)

    def test_one_by_one_or_in_a_batch(self, large_manifold, metric, options):
        X, Q = large_manifold
        index = dci.DCI(metric, random_state=0, **options).fit(X[:5000], queries=Q[:50])
        Q = Q[50:80]
        some = np.arange(0, 5000, 3)
        for call in ({}, {"max_candidates": 100, "max_visits": 0.1}, {"recall": 1.0}, {"filter": some}):
            batch = index.query(Q, 10, **call)
            for row in range(0, len(Q), 3):
                single = index.query(Q[row], 10, **call)
                np.testing.assert_array_equal(single.indices, batch.indices[row])
                np.testing.assert_array_equal(single.distances, batch.distances[row])


class TestInstructionSets:
    @pytest.fixture(autouse=True)
    def restore(self):
        before = native_kernels.simd()
        yield
        native_kernels.use_simd(before)

    @pytest.mark.parametrize("options", OPTIONS, ids=repr)
    def test_have_the_same_recall(self, large_manifold, metric, options):
        X, Q = large_manifold[0][:5000], large_manifold[1][50:]
        limits = {"max_candidates": 60} | ({"max_visits": 1000} if options.get("n_levels") != 1 else {})
        recalls = []
        for name in native_kernels.simd_available():
            native_kernels.use_simd(name)
            index = dci.DCI(metric, random_state=0, **options).fit(X, queries=large_manifold[1][:50])
            recalls.append(recall(index.query(Q, 10, **limits), dci.exact(X, Q, 10, metric)))
        np.testing.assert_allclose(recalls, recalls[0], atol=0.02)

    def test_answer_alike_from_one_index(self, large_manifold, metric):
        X, Q = large_manifold
        index = dci.DCI(metric, random_state=0, n_levels=2).fit(X)
        expected = index.query(Q, 10)
        for name in native_kernels.simd_available():
            native_kernels.use_simd(name)
            received = index.query(Q, 10)
            assert (received.indices == expected.indices).mean() > 0.995
            exact = index.query(Q, 10, recall=1.0)
            np.testing.assert_allclose(exact.distances, dci.exact(X, Q, 10, metric).distances, rtol=1e-6)

    @pytest.mark.parametrize("name", native_kernels.simd_available())
    def test_are_chosen_by_the_environment(self, name):
        script = "import dci; dci.show_config(); print(dci.DCI(random_state=0).fit([[0.0], [1.0]]).query([0.9], 1))"
        environment = os.environ | {"DCI_SIMD": name}
        run = subprocess.run(
            [sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert f"instruction set: {name} " in run.stdout
        assert "indices=array([1])" in run.stdout


class TestDirections:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("metric", "ranking"), [("l2", "max"), ("l2", "sum"), ("ip", "sum")])
    def test_of_the_queries_beat_those_of_the_points(self, metric, ranking, seed):
        rng = np.random.default_rng(seed)
        spread = np.where(np.arange(48) < 8, 3.0, 1.0)
        X = (spread * rng.standard_normal((8000, 48))).astype(np.float32)
        basis = np.linalg.qr(rng.standard_normal((40, 4)))[0].T  # where the points spread least
        latent = 10 * rng.standard_normal((400, 4)) + 8
        Q = np.concatenate([np.zeros((400, 8)), latent @ basis], axis=1).astype(np.float32)
        options = {"ranking": ranking, "n_simple": 8, "n_levels": 2, "random_state": seed}
        recalls = {}
        for kind in ("principal", "query"):
            index = dci.DCI(metric, directions=kind, **options).fit(X, queries=Q[:200])
            found = index.query(Q[200:], 10, max_candidates=200, max_visits=0.5)
            recalls[kind] = recall(found, dci.exact(X, Q[200:], 10, metric))
        assert recalls["query"] > recalls["principal"] + 0.2
        if metric == "ip":
            assert recalls["query"] > 0.95


@pytest.mark.parametrize("ranking", ["max", "sum"])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_magnitudes_from_subnormal_to_1e30_in_one_index(metric, ranking):
    X = np.random.default_rng(0).standard_normal((3000, 20)).astype(np.float32)
    X[::3] *= np.float32(1e30)
    X[1::3] *= np.float32(1e-30)
    X[5], X[7] = 1e-42, 0
    index = dci.DCI(metric, directions="principal", ranking=ranking, n_simple=8, n_levels=2, random_state=0).fit(X)
    every = index.query(X[:40], 5, max_candidates=1.0, max_visits=1.0)
    np.testing.assert_array_equal(every.indices, dci.exact(X, X[:40], 5, metric).indices)
    if metric == "cosine":
        assert every.indices[5, 0] == 5
