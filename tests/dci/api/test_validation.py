import os

import numpy as np
import pytest

from dci._api.validation import (
    as_filter,
    as_points,
    as_queries,
    check_budget,
    check_choice,
    check_count_or_auto,
    check_k,
    check_metric,
    check_num_threads,
    check_random_state,
    check_recall,
)
from dci.errors import DCIError, InvalidTypeError, InvalidValueError, NotFittedError

NOT_COUNTS = [None, True, False, 1.0, 2.5, "3", [1], np.float64(3), np.bool_(True), np.array([2])]


def test_errors_are_builtins_too():
    assert issubclass(InvalidValueError, (DCIError, ValueError))
    assert issubclass(InvalidTypeError, (DCIError, TypeError))
    for base in (DCIError, ValueError, AttributeError):
        assert issubclass(NotFittedError, base)


class TestPoints:
    @pytest.mark.parametrize("read_only", [False, True])
    def test_right_form_is_not_copied(self, read_only):
        X = np.ones((3, 2), dtype=np.float32)
        X.setflags(write=not read_only)
        points, absmax = as_points(X)
        assert points is X
        assert absmax == 1.0

    @pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "g", "i1", "u1", "i4", "i8", "u8", "?"])
    @pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
    def test_dtypes_and_layouts(self, dtype, layout):
        values = np.arange(12).reshape(4, 3) % 2
        X = values.astype(dtype)
        if layout == "F":
            X = np.asfortranarray(X)
        elif layout == "strided":
            X = np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
        elif layout == "reversed":
            X = X[::-1, ::-1]
            values = values[::-1, ::-1]
        before = X.copy()
        points, absmax = as_points(X)
        assert points.dtype == np.float32
        assert points.flags.c_contiguous
        assert points.flags.aligned
        np.testing.assert_array_equal(points, values)
        np.testing.assert_array_equal(X, before)
        assert absmax == 1.0

    def test_unaligned(self):
        buffer = np.zeros(4 * 6 + 1, dtype=np.uint8)
        X = buffer[1:].view(np.float32).reshape(3, 2)
        X[...] = 7
        points, _ = as_points(X)
        assert points.flags.aligned
        np.testing.assert_array_equal(points, X)

    def test_lists(self):
        points, absmax = as_points([[1, -2.5], [3, 0]])
        np.testing.assert_array_equal(points, np.array([[1, -2.5], [3, 0]], dtype=np.float32))
        assert absmax == 3.0

    def test_array_protocol(self):
        class Wrapped:
            def __array__(self, dtype=None, copy=None):
                return np.eye(3, dtype=dtype)

        np.testing.assert_array_equal(as_points(Wrapped())[0], np.eye(3))

    @pytest.mark.parametrize("value", [0.0, 1e-45, -1e-30, 1e30, -3.4028235e38])
    def test_absmax(self, value):
        X = np.zeros((5, 3), dtype=np.float32)
        X[2, 1] = value
        assert as_points(X)[1] == abs(np.float32(value))

    @pytest.mark.parametrize("X", [np.empty((0, 4)), np.empty((0, 4), dtype=np.float32)])
    def test_no_rows(self, X):
        points, absmax = as_points(X, dim=4)
        assert points.shape == (0, 4)
        assert points.dtype == np.float32
        assert absmax == 0.0

    def test_empty_list(self):
        assert as_points([])[0].shape == (0, 0)
        assert as_points([], dim=3)[0].shape == (0, 3)

    @pytest.mark.parametrize(
        ("X", "shape"),
        [(5.0, r"\(\)"), ([1.0, 2.0], r"\(2,\)"), (np.zeros((2, 3, 4)), r"\(2, 3, 4\)")],
    )
    def test_axes(self, X, shape):
        with pytest.raises(InvalidValueError, match=rf"X: expected a 2-D .*received .*{shape}"):
            as_points(X)

    @pytest.mark.parametrize(
        "X",
        [
            None,
            "points",
            [["a", "b"]],
            [[None, 1.0]],
            [[2**70, 1]],
            [[1j, 2]],
            [[b"x"]],
            np.zeros((2, 2), dtype="M8[s]"),
            np.zeros((2, 2), dtype="m8[s]"),
            np.zeros((2, 2), dtype=[("a", "f4")]),
            np.ma.masked_equal([[1.0, 2.0]], 2.0),
            {"a": 1},
            {1.0, 2.0},
        ],
        ids=repr,
    )
    def test_dtype(self, X):
        with pytest.raises(InvalidTypeError, match="X: expected .*received"):
            as_points(X)

    def test_dtype_is_named(self):
        with pytest.raises(InvalidTypeError, match=r"shape \(2, 2\) and dtype complex128"):
            as_points(np.zeros((2, 2), dtype=complex))

    def test_ragged(self):
        with pytest.raises(InvalidValueError, match="rectangular"):
            as_points([[1.0, 2.0], [3.0]])

    def test_dim(self):
        with pytest.raises(InvalidValueError, match=r"Y: .*\(n, 3\).*received.*\(5, 2\)"):
            as_points(np.zeros((5, 2)), "Y", dim=3)
        with pytest.raises(InvalidValueError, match=r"\(0, 2\)"):
            as_points(np.zeros((0, 2)), dim=3)

    def test_no_columns(self):
        with pytest.raises(InvalidValueError, match=r"d >= 1.*\(4, 0\)"):
            as_points(np.zeros((4, 0)))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("dim", [1, 7, 8, 9, 33])
    def test_first_row_that_is_not_finite(self, value, dtype, dim):
        X = np.ones((20, dim), dtype=dtype)
        X[13, dim - 1] = X[17, 0] = value
        with pytest.raises(InvalidValueError, match=rf"{value} in row 13, column {dim - 1}$"):
            as_points(X)

    def test_beyond_float32(self):
        X = np.ones((9, 3))
        X[4, 2] = -1e39
        with pytest.raises(InvalidValueError, match=r"float32 range.*-1e\+39 in row 4"):
            as_points(X)


class TestQueries:
    def test_batch_and_single(self):
        batch, absmax, single = as_queries(np.full((4, 3), -2.0), 3)
        assert (batch.shape, absmax, single) == ((4, 3), 2.0, False)
        query, absmax, single = as_queries([1, 2, 3], 3)
        assert (query.shape, absmax, single) == ((1, 3), 3.0, True)

    def test_no_queries(self):
        for Q in ([], np.empty((0, 3))):
            queries, absmax, single = as_queries(Q, 3)
            assert (queries.shape, absmax, single) == ((0, 3), 0.0, False)

    def test_open_dimension(self):
        assert as_queries([[1.0, 2.0]], 0)[0].shape == (1, 2)
        assert as_queries([1.0, 2.0], 0)[0].shape == (1, 2)

    @pytest.mark.parametrize("Q", [np.zeros(2), np.zeros(4), np.zeros((1, 2)), 1.0, np.ones((1, 1, 3))])
    def test_shapes(self, Q):
        with pytest.raises(InvalidValueError, match=r"Q: expected .*3.*received"):
            as_queries(Q, 3)

    def test_single_query_is_checked(self):
        with pytest.raises(InvalidValueError, match="row 0, column 1"):
            as_queries([0, np.nan, 0], 3)


@pytest.mark.parametrize("k", [1, np.int8(1), np.uint64(1)])
def test_k(k):
    assert check_k(k) == 1
    assert type(check_k(k)) is int


@pytest.mark.parametrize("k", NOT_COUNTS)
def test_k_type(k):
    with pytest.raises(InvalidTypeError, match="k: expected an int >= 1, received"):
        check_k(k)


@pytest.mark.parametrize("k", [0, -1, np.int64(-5)])
def test_k_value(k):
    with pytest.raises(InvalidValueError, match=f"k: expected an int >= 1, received {k}"):
        check_k(k)


@pytest.mark.parametrize(
    ("value", "total", "count"),
    [
        (None, 100, None),
        (1, 100, 1),
        (np.int32(7), 100, 7),
        (1000, 100, 100),
        (1.0, 100, 100),
        (0.5, 101, 51),
        (np.float32(0.25), 100, 25),
        (1e-9, 100, 1),
        (0.5, 0, 1),
        (5, 0, 1),
    ],
)
def test_budget(value, total, count):
    assert check_budget(value, total, "max_visits") == count


@pytest.mark.parametrize("value", [0, -3, 0.0, -0.5, 1.5, np.nan, np.inf])
def test_budget_value(value):
    with pytest.raises(InvalidValueError, match="max_visits: expected .* received"):
        check_budget(value, 100, "max_visits")


@pytest.mark.parametrize("value", [True, "all", [1], 1j, np.bool_(False)])
def test_budget_type(value):
    with pytest.raises(InvalidTypeError, match="max_visits: expected .* received"):
        check_budget(value, 100, "max_visits")


@pytest.mark.parametrize("recall", [1, 1.0, 0.5, 1e-3, np.float32(0.5)])
def test_recall(recall):
    assert check_recall(recall) == recall
    assert type(check_recall(recall)) is float


@pytest.mark.parametrize("recall", [0, 0.0, -0.1, 1.01, 95, np.nan, np.inf])
def test_recall_value(recall):
    with pytest.raises(InvalidValueError, match="recall: expected a number in"):
        check_recall(recall)


@pytest.mark.parametrize("recall", [None, True, "0.9", [0.9], 1j])
def test_recall_type(recall):
    with pytest.raises(InvalidTypeError, match="recall: expected a number in"):
        check_recall(recall)


def test_count_or_auto():
    assert check_count_or_auto("auto", "n_simple") is None
    assert check_count_or_auto(np.int64(4), "n_simple") == 4
    for value in ["Auto", None, 1.5, True]:
        with pytest.raises(InvalidTypeError, match="n_simple: expected an int >= 1 or 'auto'"):
            check_count_or_auto(value, "n_simple")
    with pytest.raises(InvalidValueError, match="received 0"):
        check_count_or_auto(0, "n_simple")


class TestFilter:
    @pytest.mark.parametrize(
        "allowed",
        [
            np.array([False, True, False, True]),
            [False, True, False, True],
            np.array([False, True, True, True, False, False, True])[::2],
            [3, 1],
            np.array([1, 3, 3, 1], dtype=np.uint8),
            (1, 3),
        ],
    )
    def test_mask_or_ids(self, allowed):
        subset = as_filter(allowed, 4)
        assert subset.count == 2
        assert subset.ids.dtype == np.int32
        assert subset.ids.tolist() == [1, 3]
        mask = subset.mask
        assert mask.dtype == np.bool_
        assert mask.flags.c_contiguous
        assert mask.tolist() == [False, True, False, True]

    def test_mask_is_not_copied(self):
        mask = np.zeros(3, dtype=bool)
        assert as_filter(mask, 3).mask is mask

    @pytest.mark.parametrize("allowed", [[], np.empty(0, dtype=np.int64)])
    def test_nothing_allowed(self, allowed):
        assert as_filter(allowed, 3).count == 0
        assert as_filter(allowed, 3).mask.tolist() == [False] * 3

    @pytest.mark.parametrize(
        "allowed",
        [np.ones(3, bool), np.ones(5, bool), np.empty(0, bool), [4], [-1], [[0, 1]], 2, True],
        ids=repr,
    )
    def test_value(self, allowed):
        with pytest.raises(InvalidValueError, match=r"filter: expected a bool mask of shape \(4,\)"):
            as_filter(allowed, 4)

    @pytest.mark.parametrize("allowed", [[0.0, 1.0], ["a"], [None], [1j]], ids=repr)
    def test_dtype(self, allowed):
        with pytest.raises(InvalidTypeError, match="filter: expected a bool mask .*received"):
            as_filter(allowed, 4)

    def test_the_id_is_named(self):
        with pytest.raises(InvalidValueError, match="id 9 at position 2"):
            as_filter([0, 1, 9, 12], 4)


class TestThreads:
    def test_default_is_the_affinity(self, monkeypatch):
        monkeypatch.delenv("DCI_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
        assert check_num_threads(None) == 3

    def test_environment(self, monkeypatch):
        monkeypatch.setenv("DCI_NUM_THREADS", "7")
        assert check_num_threads(None) == 7
        assert check_num_threads(2) == 2

    @pytest.mark.parametrize("text", ["0", "two", "-1", "1.5", "99999"])
    def test_bad_environment(self, monkeypatch, text):
        monkeypatch.setenv("DCI_NUM_THREADS", text)
        with pytest.raises(InvalidValueError, match="DCI_NUM_THREADS: expected"):
            check_num_threads(None)

    @pytest.mark.parametrize("value", [0, -2, 10**9])
    def test_value(self, value):
        with pytest.raises(InvalidValueError, match="num_threads: expected"):
            check_num_threads(value)

    @pytest.mark.parametrize("value", [True, 1.0, "2"])
    def test_type(self, value):
        with pytest.raises(InvalidTypeError, match="num_threads: expected"):
            check_num_threads(value)


class TestRandomState:
    def test_int_is_a_seed(self):
        first, second = (check_random_state(seed) for seed in (5, np.int64(5)))
        assert first.integers(2**60) == second.integers(2**60)

    def test_generator_is_used_as_it_is(self):
        generator = np.random.default_rng(0)
        assert check_random_state(generator) is generator

    def test_legacy(self):
        first, second = (check_random_state(np.random.RandomState(1)) for _ in range(2))
        assert first.integers(2**60) == second.integers(2**60)

    def test_none_is_fresh(self):
        assert check_random_state(None).integers(2**60) != check_random_state(None).integers(2**60)

    def test_bad(self):
        for value in ["seed", 1.0, True, [1]]:
            with pytest.raises(InvalidTypeError, match="random_state: expected"):
                check_random_state(value)
        with pytest.raises(InvalidValueError, match="received -1"):
            check_random_state(-1)


def test_choice():
    assert check_choice("a", "mode", ("a", "b")) == "a"
    with pytest.raises(InvalidValueError, match="mode: expected one of 'a', 'b', received 'c'"):
        check_choice("c", "mode", ("a", "b"))
    with pytest.raises(InvalidTypeError, match="mode: expected one of 'a', 'b', received int 1"):
        check_choice(1, "mode", ("a", "b"))


def test_metric_names(metric):
    assert check_metric(metric) == metric
    with pytest.raises(InvalidValueError, match="'l2', 'ip', 'cosine', received 'manhattan'"):
        check_metric("manhattan")


def test_metric_aliases():
    assert check_metric("euclidean") == "l2"
    assert check_metric("inner_product") == "ip"


def test_long_values_are_cut_in_messages():
    with pytest.raises(InvalidTypeError) as caught:
        check_k("x" * 1000)
    assert len(str(caught.value)) < 150
