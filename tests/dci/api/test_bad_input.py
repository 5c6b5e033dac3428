"""Every kind of bad input raises one of the package's errors, which says what was expected and received."""

import numpy as np
import pytest

import dci
from dci.errors import DCIError, InvalidTypeError, InvalidValueError, NotFittedError

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def index():
    return dci.DCI(random_state=0).fit(X)


def with_value(value, dtype=np.float64):
    bad = np.ones((9, 3), dtype=dtype)
    bad[5, 1] = bad[7, 0] = value
    return bad


# Every place where points enter, with d = 3 fixed by what else is given.
ENTRIES = {
    "fit": lambda bad: dci.DCI().fit(bad),
    "fit queries": lambda bad: dci.DCI(directions="query").fit(X, queries=bad),
    "query": lambda bad: dci.DCI(random_state=0).fit(X).query(bad),
    "exact X": lambda bad: dci.exact(bad, X, 2, "l2"),
    "exact Q": lambda bad: dci.exact(X, bad, 2, "l2"),
    "knn": lambda bad: dci.knn(bad),
    "directions": lambda bad: dci.DCI(directions=bad).fit(X),
}


@pytest.fixture(params=ENTRIES)
def enter(request):
    return ENTRIES[request.param]


@pytest.mark.parametrize(
    "bad",
    [
        np.array(1.0),
        np.zeros((2, 3, 4)),
        np.zeros((1, 1, 1, 3)),
        np.zeros((5, 0)),
        [[1.0, 2.0, 3.0], [1.0]],
        with_value(np.nan),
        with_value(np.inf, np.float32),
        with_value(-np.inf, np.float16),
        with_value(1e300),
    ],
    ids=["0 axes", "3 axes", "4 axes", "no columns", "ragged", "nan", "inf", "-inf", "too large"],
)
def test_values(enter, bad):
    with pytest.raises(InvalidValueError, match="expected .*received"):
        enter(bad)


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((4, 3), dtype=complex),
        np.full((4, 3), "1"),
        np.full((4, 3), None),
        np.zeros((4, 3), dtype="M8[D]"),
        [[1, 2, "x"]],
    ],
    ids=["complex", "str", "object", "datetime", "list of str"],
)
def test_dtypes(enter, bad):
    with pytest.raises(InvalidTypeError, match="expected .*received .*dtype"):
        enter(bad)


@pytest.mark.parametrize("entry", ["fit", "fit queries", "query", "exact X", "exact Q", "knn"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_the_first_bad_row_is_named(entry, value):
    with pytest.raises(InvalidValueError, match="row 5"):
        ENTRIES[entry](with_value(value))


@pytest.mark.parametrize("entry", ["fit queries", "query", "exact Q", "directions"])
def test_dimension(entry):
    with pytest.raises(InvalidValueError, match=r"expected .*3.*received .*\(4, 2\)"):
        ENTRIES[entry](np.ones((4, 2)))


def test_dimension_of_points_and_queries():
    with pytest.raises(InvalidValueError, match=r"Q: expected .*2.*received .*\(40, 3\)"):
        dci.exact(np.zeros((4, 2)), X, 2, "l2")


@pytest.mark.parametrize("entry", ["fit", "fit queries", "knn", "exact X"])
def test_one_axis_is_not_a_set(entry):
    with pytest.raises(InvalidValueError, match=r"expected .*received .*\(3,\)"):
        ENTRIES[entry](np.zeros(3))


@pytest.mark.parametrize("q", [np.zeros(2), np.zeros(4), np.zeros(40)])
def test_dimension_of_one_query(index, q):
    with pytest.raises(InvalidValueError, match=r"expected .*\(3,\).*received"):
        index.query(q)


@pytest.mark.parametrize("k", [0, -1, np.int64(0)])
def test_k_below_one(index, k):
    for call in (
        lambda: index.query(X, k),
        lambda: dci.exact(X, X, k, "l2"),
        lambda: dci.knn(X, k),
    ):
        with pytest.raises(InvalidValueError, match=f"k: expected .*received {k}"):
            call()


@pytest.mark.parametrize("k", [1.0, 2.5, "3", None, True, [2], np.nan])
def test_k_is_not_an_integer(index, k):
    for call in (
        lambda: index.query(X, k),
        lambda: dci.exact(X, X, k, "l2"),
        lambda: dci.knn(X, k),
    ):
        with pytest.raises(InvalidTypeError, match="k: expected .*received"):
            call()


PARAMETERS = [
    ("metric", ["manhattan", "", None, 2]),
    ("directions", ["best", None, 3, True]),
    ("ranking", ["min", None, 1]),
    ("n_composite", [0, -1, 1.5, "many", None, True]),
    ("n_simple", [0, -1, 1.5, "many", None, True]),
    ("n_levels", [0, -1, 1.5, "many", None, True]),
    ("recall", [0, 0.0, -0.5, 1.5, 95, np.nan, None, "high", True]),
    ("random_state", [-1, 1.5, "seed", True]),
    ("num_threads", [0, -1, 1.5, "two", True]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PARAMETERS for value in values])
def test_parameters(name, value):
    with pytest.raises(DCIError, match=f"{name}: expected .*received"):
        dci.DCI(**{name: value}).fit(X)


@pytest.mark.parametrize("metric", ["manhattan", None, 1])
def test_metric_of_exact(metric):
    with pytest.raises(DCIError, match="metric: expected .*received"):
        dci.exact(X, X, 2, metric)


@pytest.mark.parametrize("name", ["max_candidates", "max_visits"])
@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, 1.5, np.nan, np.inf, True, "all", [1]])
def test_budgets(index, name, value):
    with pytest.raises(DCIError, match=f"{name}: expected .*received"):
        index.query(X, 2, **{name: value})


@pytest.mark.parametrize("value", [0, -0.1, 1.1, np.nan, "high", True])
def test_recall_of_a_query(index, value):
    with pytest.raises(DCIError, match="recall: expected .*received"):
        index.query(X, 2, recall=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "two", True])
def test_num_threads_of_a_query(index, value):
    with pytest.raises(DCIError, match="num_threads: expected .*received"):
        index.query(X, 2, num_threads=value)


class TestContradictions:
    def test_query_directions_without_queries(self):
        with pytest.raises(InvalidValueError, match="queries"):
            dci.DCI(directions="query").fit(X)

    @pytest.mark.parametrize("budget", [{"max_candidates": 5}, {"max_visits": 5}])
    def test_recall_and_a_budget(self, index, budget):
        with pytest.raises(InvalidValueError, match="recall"):
            index.query(X, 2, recall=0.9, **budget)

    @pytest.mark.parametrize(("n_composite", "n_simple"), [(1, 4), (2, 2), (2, 3), (5, "auto")])
    def test_directions_of_another_count(self, n_composite, n_simple):
        with pytest.raises(InvalidValueError, match="directions"):
            dci.DCI(directions=np.eye(3), n_composite=n_composite, n_simple=n_simple).fit(X)

    def test_no_directions(self):
        with pytest.raises(InvalidValueError, match="directions"):
            dci.DCI(directions=np.empty((0, 3))).fit(X)


class TestFilter:
    @pytest.mark.parametrize(
        "bad",
        [
            np.ones(39, bool),
            np.ones(41, bool),
            np.ones((40, 1), bool),
            [40],
            [-1],
            [[1, 2]],
            3,
            True,
        ],
    )
    def test_values(self, index, bad):
        for Q in (X, X[0]):
            with pytest.raises(InvalidValueError, match="filter: expected .*received"):
                index.query(Q, 2, filter=bad)

    @pytest.mark.parametrize("bad", [np.ones(40), ["a"], [1j], [None], "all"])
    def test_dtypes(self, index, bad):
        with pytest.raises(DCIError, match="filter: expected .*received"):
            index.query(X, 2, filter=bad)


class TestNotFitted:
    def test_query(self):
        with pytest.raises(NotFittedError, match="fit"):
            dci.DCI().query(X)

    def test_attributes(self):
        index = dci.DCI()
        assert (index.n_points, index.dim, len(index)) == (0, 0, 0)
        assert not hasattr(index, "stats_")

    def test_after_a_failed_fit(self):
        index = dci.DCI()
        with pytest.raises(InvalidValueError):
            index.fit([[np.nan]])
        with pytest.raises(NotFittedError):
            index.query(X)


def test_a_failed_query_leaves_the_index_usable(index):
    before = index.query(X, 3)
    with pytest.raises(InvalidValueError):
        index.query(with_value(np.nan), 3)
    after = index.query(X, 3)
    np.testing.assert_array_equal(before.indices, after.indices)
    np.testing.assert_array_equal(before.distances, after.distances)
