"""Random arguments: the answer is right or one of the package's errors is raised, nothing else."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dci
from dci.errors import DCIError

bounded = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])

DTYPES = ["f2", "f4", "f8", ">f8", "i1", "i8", "u2", "?"]
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 3, axis=1)[:, ::3],
    "reversed": lambda X: np.ascontiguousarray(X[::-1])[::-1],
    "list": lambda X: X.tolist() if X.size else X,
}


@st.composite
def points(draw, n, dim):
    """Points with ties, duplicates and equal rows, of any real dtype and layout."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((n, dim)) * draw(st.sampled_from([0.0, 1.0, 3.0, 100.0]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    X = np.abs(values).astype(dtype) if dtype.kind in "u?" else values.astype(dtype)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](X)


metrics = st.sampled_from(["l2", "ip", "cosine"])
options = st.fixed_dictionaries(
    {},
    optional={
        "directions": st.sampled_from(["auto", "random", "principal"]),
        "ranking": st.sampled_from(["auto", "max", "sum"]),
        "n_composite": st.just("auto") | st.integers(1, 4),
        "n_simple": st.just("auto") | st.integers(1, 20),
        "n_levels": st.just("auto") | st.integers(1, 3),
        "recall": st.sampled_from([0.1, 0.9, 1.0]),
        "num_threads": st.sampled_from([None, 1, 2, 3]),
    },
)
budgets = st.none() | st.integers(1, 300) | st.floats(0, 1, exclude_min=True)


def assert_well_formed(result, X, shape, worst):
    """Ids are unique and in range, padding comes last, distances ascend (descend) and are numbers."""
    distances, indices = result
    assert distances.shape == indices.shape == shape
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
    assert ((indices >= -1) & (indices < len(X))).all()
    padded = indices == -1
    assert (np.diff(padded.astype(int), axis=-1) >= 0).all()
    assert (distances[padded] == worst).all()
    assert np.isfinite(distances[~padded]).all()
    keys = distances if worst > 0 else -distances
    assert (keys[..., :-1] <= keys[..., 1:]).all()
    for row in indices.reshape(-1, shape[-1]):
        found = row[row >= 0]
        assert len(np.unique(found)) == len(found)


@bounded
@given(draw=st.data())
def test_good_arguments_give_right_answers(draw, assert_neighbours):
    n, dim, nq = (draw.draw(st.integers(low, high)) for low, high in [(0, 70), (1, 40), (0, 20)])
    X, Q = draw.draw(points(n, dim)), draw.draw(points(nq, dim))
    k, metric = draw.draw(st.integers(1, 90)), draw.draw(metrics)
    index = dci.DCI(metric, random_state=0, **draw.draw(options)).fit(X)
    allowed = np.random.default_rng(n).random(n) < draw.draw(st.sampled_from([0.0, 0.3, 1.0]))
    ids = draw.draw(st.permutations(np.flatnonzero(allowed)))
    form = draw.draw(st.sampled_from([None, allowed, np.array(ids, dtype=np.int64)]))

    exact = index.query(Q, k, recall=1.0, filter=form)
    assert_neighbours(exact, X, Q, k, metric, allowed=None if form is None else allowed)

    limits = {"max_candidates": draw.draw(budgets), "max_visits": draw.draw(budgets)}
    result = index.query(Q, k, filter=form, **limits)
    assert_well_formed(result, X, (nq, k), -np.inf if metric == "ip" else np.inf)
    assert form is None or allowed[result.indices[result.indices >= 0]].all()
    if nq:
        single = index.query(Q[0], k, filter=form, **limits)
        assert_well_formed(single, X, (k,), -np.inf if metric == "ip" else np.inf)


@bounded
@given(draw=st.data())
def test_functions_give_right_answers(draw, assert_neighbours):
    n, dim, nq = (draw.draw(st.integers(low, high)) for low, high in [(0, 50), (1, 20), (0, 20)])
    X, Q = draw.draw(points(n, dim)), draw.draw(points(nq, dim))
    k, metric = draw.draw(st.integers(1, 60)), draw.draw(metrics)
    assert_neighbours(dci.exact(X, Q, k, metric), X, Q, k, metric)
    graph = dci.knn(X, k, metric=metric, random_state=0)
    assert_well_formed(graph, X, (n, k), -np.inf if metric == "ip" else np.inf)
    assert (graph.indices != np.arange(n)[:, np.newaxis]).all()


COUNTS = ["n_composite", "n_simple", "n_levels", "num_threads"]
PARAMETERS = [*COUNTS, "metric", "directions", "ranking", "recall", "random_state"]

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(),
    st.text(max_size=3),
    st.just({}),
    st.lists(st.integers(-2, 2) | st.floats(), max_size=4),
    st.lists(st.lists(st.floats(width=32), max_size=3), max_size=3),
    hnp.arrays(
        dtype=st.sampled_from(["f4", "f8", "i4", "?", "c8", "U1", "O", "M8[s]"]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
)


def attempt(call):
    """Call it; the package's own errors are fine, any other one fails the test."""
    try:
        return call()
    except DCIError:
        return None


@bounded
@given(X=anything, Q=anything, k=anything, metric=metrics | anything)
def test_any_data(X, Q, k, metric):
    attempt(lambda: dci.exact(X, Q, k, metric))
    attempt(lambda: dci.knn(X, k, metric=metric))
    index = attempt(lambda: dci.DCI(random_state=0).fit(X))
    if index is not None:
        attempt(lambda: index.query(Q, k))
    fitted = dci.DCI(random_state=0).fit(np.eye(3))
    attempt(lambda: fitted.query(Q))
    attempt(lambda: fitted.query(np.eye(3), k))


@bounded
@given(
    parameters=st.dictionaries(
        st.sampled_from(PARAMETERS),
        anything,
        max_size=3,
    ),
    queries=anything,
)
def test_any_parameters(parameters, queries):
    X = np.random.default_rng(0).standard_normal((30, 3))
    index = attempt(lambda: dci.DCI(**parameters).fit(X))
    if index is not None:
        assert index.query(X, 2).indices.shape == (30, 2)
    attempt(lambda: dci.DCI(**parameters).fit(X, queries=queries))


@bounded
@given(
    limits=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(["max_candidates", "max_visits", "recall", "filter"], anything)
        | {"num_threads": anything},
    )
)
def test_any_limits(limits):
    X = np.random.default_rng(0).standard_normal((30, 3))
    index = dci.DCI(random_state=0).fit(X)
    result = attempt(lambda: index.query(X, 2, **limits))
    if result is not None:
        assert result.indices.shape == (30, 2)
