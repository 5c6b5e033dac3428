"""Random arguments: the answer is right where they are valid, else one of the package's errors is raised."""

import numpy as np
import pytest
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
    permitted = np.ones(n, bool) if form is None else allowed
    assert permitted[result.indices[result.indices >= 0]].all()
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


def expect(call, valid):
    """Call what must succeed if its input is valid, and raise one of the package's errors else."""
    if valid:
        return call()
    with pytest.raises(DCIError):
        call()
    return None


def as_array(value):
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # ragged
        return np.asarray(None)


def is_matrix(value, dim=None):
    array = as_array(value)
    if array.dtype.kind not in "biuf":
        return False
    if array.shape == (0,):
        return True
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim) or (len(array) and not array.shape[1]):
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32)).all())


def is_queries(value, dim):
    array = as_array(value)
    if array.ndim == 1 and array.size:
        return is_matrix(array[np.newaxis], dim or None)
    return is_matrix(value, dim or None)


def is_int(value, least=1, most=np.inf):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_share(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def is_metric(value):
    return isinstance(value, str) and value in ("l2", "ip", "cosine")


def is_threads(value):
    return value is None or is_int(value, most=1024)


def is_budget(value):
    return value is None or is_int(value) or is_share(value)


def is_filter(value, n):
    array = as_array(value)
    if value is None or array.ndim != 1:
        return value is None
    if array.dtype == bool:
        return len(array) == n
    return array.size == 0 or (array.dtype.kind in "iu" and bool(((array >= 0) & (array < n)).all()))


def width(X):
    return as_array(X).shape[1] if as_array(X).ndim == 2 else 0


def are_directions(value, dim, composite, simple):
    if isinstance(value, str):
        return value in ("auto", "random", "principal")
    if not is_matrix(value):
        return False
    array = as_array(value)
    if len(array) == 0 or not (array.astype(np.float32) != 0).any(1).all() or np.abs(array.astype(float)).max() > 1e15:
        return False
    composite, simple = (None if count == "auto" else count for count in (composite, simple))
    right = len(array) % (composite or 1) == 0 and (simple is None or simple * (composite or 1) == len(array))
    return right and array.shape[1] == dim


@bounded
@given(X=anything, Q=anything, k=st.integers(1, 3) | anything, metric=metrics | anything)
def test_any_data(X, Q, k, metric):
    points, count = is_matrix(X), is_int(k)
    expect(lambda: dci.exact(X, Q, k, metric), points and is_queries(Q, width(X)) and count and is_metric(metric))
    expect(lambda: dci.knn(X, k, metric=metric), points and count and is_metric(metric))
    index = expect(lambda: dci.DCI(random_state=0).fit(X), points)
    fitted = index or dci.DCI(random_state=0).fit(np.eye(3))
    expect(lambda: fitted.query(Q, k), is_queries(Q, fitted.dim) and count)
    expect(lambda: fitted.query(np.ones((2, fitted.dim or 3)), k), count)


@bounded
@given(
    parameters=st.dictionaries(
        st.sampled_from(PARAMETERS),
        anything,
        max_size=3,
    ),
    queries=st.just([[1.0, 2.0, 3.0]]) | anything,
)
def test_any_parameters(parameters, queries):
    X = np.random.default_rng(0).standard_normal((30, 3))
    counts = [parameters.get(name, "auto") for name in ("n_composite", "n_simple", "n_levels")]
    valid = (
        all((isinstance(count, str) and count == "auto") or is_int(count) for count in counts)
        and is_threads(parameters.get("num_threads"))
        and is_metric(parameters.get("metric", "l2"))
        and isinstance(parameters.get("ranking", "auto"), str)
        and parameters.get("ranking", "auto") in ("auto", "max", "sum")
        and is_share(parameters.get("recall", 0.5))
        and (parameters.get("random_state") is None or is_int(parameters["random_state"], 0))
        and are_directions(parameters.get("directions", "auto"), 3, *counts[:2])
    )
    index = expect(lambda: dci.DCI(**parameters).fit(X), valid)
    sample = queries is None or (is_matrix(queries, 3) and as_array(queries).size > 0)
    other = expect(lambda: dci.DCI(**parameters).fit(X, queries=queries), valid and sample)
    for fitted in filter(None, (index, other)):
        assert fitted.query(X, 2).indices.shape == (30, 2)


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
    budgets = limits.get("max_candidates"), limits.get("max_visits")
    recall = limits.get("recall")
    valid = (
        all(map(is_budget, budgets))
        and (recall is None or (is_share(recall) and budgets == (None, None)))
        and is_filter(limits.get("filter"), 30)
        and is_threads(limits.get("num_threads"))
    )
    result = expect(lambda: index.query(X, 2, **limits), valid)
    assert not valid or result.indices.shape == (30, 2)
