"""Ranked paths, forced, on random sets large enough for cells, samples and several threads, with many ties."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dci

bounded = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

metrics = st.sampled_from(["l2", "ip", "cosine"])
scales = st.sampled_from([1.0, 1e-30, 1e-15, 1e15, 1e30])
SHAPES = {
    "normal": lambda rng, n, dim: rng.standard_normal((n, dim)),
    "lattice": lambda rng, n, dim: rng.integers(-1, 2, size=(n, dim)),
    "few distinct": lambda rng, n, dim: rng.standard_normal((5, dim))[rng.integers(5, size=n)],
    "one cluster": lambda rng, n, dim: 10 + 1e-3 * rng.standard_normal((n, dim)),
    "magnitudes": lambda rng, n, dim: rng.standard_normal((n, dim)) * 10.0 ** rng.integers(-20, 1, size=(n, 1)),
    "half zero": lambda rng, n, dim: rng.standard_normal((n, dim)) * rng.integers(2, size=(n, 1)),
}
FILTERS = {
    "none": lambda rng, n: np.zeros(n, bool),
    "one": lambda rng, n: np.arange(n) == rng.integers(n),
    "few": lambda rng, n: rng.random(n) < 20 / n,
    "a tenth": lambda rng, n: rng.random(n) < 0.1,
    "half": lambda rng, n: rng.random(n) < 0.5,
    "one side": lambda rng, n: np.arange(n) < n // 2,
    "all but one": lambda rng, n: np.arange(n) != rng.integers(n),
    "all": lambda rng, n: np.ones(n, bool),
}
structures = st.fixed_dictionaries(
    {"n_levels": st.integers(1, 4), "recall": st.sampled_from([0.1, 0.9, 0.99]), "num_threads": st.integers(3, 7)},
    optional={
        "directions": st.sampled_from(["random", "principal", "query"]),
        "ranking": st.sampled_from(["max", "sum"]),
        "n_composite": st.integers(1, 3),
        "n_simple": st.integers(1, 12),
    },
)


@st.composite
def cases(draw):
    """An index that ranks, its points and some queries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, dim = draw(st.integers(2, 2000) | st.integers(2000, 20_000)), draw(st.integers(1, 40))
    metric, scale = draw(metrics), draw(scales)
    X = (scale * SHAPES[draw(st.sampled_from(sorted(SHAPES)))](rng, n, dim)).astype(np.float32)
    X[0, 0] = scale  # there is something to rank by
    Q = X[rng.integers(n, size=draw(st.integers(1, 24)))]
    Q = Q + np.float32(draw(st.sampled_from([0, 0.01, 1])) * scale) * rng.standard_normal(Q.shape).astype(np.float32)
    index = dci.DCI(metric, random_state=0, **draw(structures)).fit(X, queries=Q)
    assert index.stats_.method == "ranked"
    return rng, metric, X, Q, index, draw(st.sampled_from([1, 10, 40, 70]))


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


def assert_valid(found, X, Q, metric, allowed):
    """Distances are those of the ids, in order, ties by index; no id comes twice; what is missing comes last."""
    distances, indices = found
    assert distances.dtype == np.float32
    assert indices.dtype == np.int64
    x, q = X.astype(float), Q.astype(float)
    sign = -1 if metric == "ip" else 1
    for row, ids, near in zip(q, indices, distances, strict=True):
        count = int((ids >= 0).sum())
        assert (ids[count:] == -1).all()
        assert (near[count:] == sign * np.inf).all()
        ids, near = ids[:count], near[:count]
        assert len(np.unique(ids)) == count
        assert allowed[ids].all()
        if metric == "l2":
            true = np.sqrt(np.square(x[ids] - row).sum(1))
        elif metric == "ip":
            true = x[ids] @ row
        else:
            norms = np.linalg.norm(x[ids], axis=1) * np.linalg.norm(row)
            true = 1 - np.divide(x[ids] @ row, norms, out=np.zeros(count), where=norms > 0)
        size = np.linalg.norm(x[ids], axis=1) * np.linalg.norm(row) if metric == "ip" else float(metric == "cosine")
        with np.errstate(over="ignore"):
            expected, slack = true.astype(np.float32), np.abs(true) * 1e-6 + 1e-12 * size + 1e-44
        assert ((near == expected) | (np.abs(near - true) <= slack)).all()
        assert (sign * near[:-1] <= sign * near[1:]).all()


@bounded
@given(case=cases())
def test_a_full_budget_is_exact(case):
    _, metric, X, Q, index, k = case
    full = {"max_candidates": 1.0, "max_visits": 1.0}
    expected = dci.exact(X, Q, k, metric)
    same(index.query(Q, k, **full), expected)
    same(index.query(Q, k, recall=1.0), expected)
    same(index.query(Q, k, recall=1.0, num_threads=1), expected)


@bounded
@given(case=cases(), name=st.sampled_from(sorted(FILTERS)), draw=st.data())
def test_answers_are_valid_and_as_many_as_there_are(case, name, draw):
    rng, metric, X, Q, index, k = case
    allowed = FILTERS[name](rng, len(X))
    form = draw.draw(st.sampled_from([allowed, rng.permutation(np.flatnonzero(allowed))]))
    everything = np.ones(len(X), bool)
    for mask, options in ((everything, {}), (allowed, {"filter": form})):
        count = min(k, int(mask.sum()))
        for limits in ({}, {"recall": 0.8}, {"max_candidates": max(k, 50)}, {"recall": 1.0}):
            found = index.query(Q, k, **limits, **options)
            assert_valid(found, X, Q, metric, mask)
            assert ((found.indices >= 0).sum(1) == count).all()
        few = index.query(Q, k, max_candidates=3, max_visits=0.2, **options)
        assert_valid(few, X, Q, metric, mask)


@bounded
@given(case=cases(), name=st.sampled_from(sorted(FILTERS)))
def test_answers_depend_on_neither_threads_nor_batches(case, name):
    rng, _, X, Q, index, k = case
    allowed = FILTERS[name](rng, len(X))
    explicit = {"max_candidates": max(k, 30), "max_visits": 0.3}
    for call in ({}, {"recall": 1.0}, explicit, explicit | {"filter": allowed}, {"filter": allowed, "recall": 1.0}):
        batch = index.query(Q, k, **call)
        for num_threads in (1, 2, 5):
            same(index.query(Q, k, num_threads=num_threads, **call), batch)
        for i, q in enumerate(Q[:5]):
            single = index.query(q, k, **call)
            np.testing.assert_array_equal(single.indices, batch.indices[i])
            np.testing.assert_array_equal(single.distances, batch.distances[i])


@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 3000),
    shape=st.sampled_from(sorted(SHAPES)),
    scale=scales,
    metric=metrics,
    structure=structures.filter(lambda options: options.get("directions") != "query"),
    k=st.sampled_from([1, 10, 70]),
)
def test_knn_leaves_out_the_point_itself(seed, n, shape, scale, metric, structure, k):
    rng = np.random.default_rng(seed)
    X = (scale * SHAPES[shape](rng, n, 12)).astype(np.float32)
    X[0, 0] = scale
    found = dci.knn(X, k, metric=metric, random_state=0, **structure)
    same(dci.knn(X, k, metric=metric, random_state=0, **(structure | {"num_threads": 1})), found)
    assert (found.indices != np.arange(n)[:, np.newaxis]).all()
    assert ((found.indices >= 0).sum(1) == min(k, n - 1)).all()
    some = rng.integers(n, size=20)
    assert_valid(dci.Neighbors(*(part[some] for part in found)), X, X[some], metric, np.ones(n, bool))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_queries_of_other_magnitudes_in_one_batch(metric):
    """The scale of one query is none of the others' business."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 8)).astype(np.float32)
    Q = (rng.standard_normal((9, 8)) * 10.0 ** np.array([30, -30, 0, -38, 20, -20, 10, -10, 0])[:, None]).astype("f4")
    index = dci.DCI(metric, n_levels=2, n_simple=6, random_state=0).fit(X)
    for call in ({"recall": 1.0}, {"max_candidates": 1.0}):
        batch = index.query(Q, 10, **call)
        for i, q in enumerate(Q):
            single = index.query(q, 10, **call)
            np.testing.assert_array_equal(single.indices, batch.indices[i])
            assert (single.indices >= 0).all()
