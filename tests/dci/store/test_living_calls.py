"""Calls of an index that changes: what they do at the edges, and what those say that cannot be served."""

import pickle

import numpy as np
import pytest

import dci
from dci import errors
from tests.dci.store.living import DIM, HIGHEST, LOWEST, assert_same, changed, fitted, observed, some_rows

BAD = [
    ("add", (np.ones(DIM),), {}, r"X: expected a 2-D array of shape \(n, 6\), received .* \(6,\)"),
    ("add", (np.ones((2, 5)),), {}, r"X: expected a 2-D array of shape \(n, 6\), received .* \(2, 5\)"),
    ("add", (np.ones((2, 3, 6)),), {}, r"received an array of shape \(2, 3, 6\)"),
    ("add", (np.full((1, DIM), np.nan),), {}, "X: expected finite values, received nan in row 0, column 0"),
    ("add", (np.full((1, DIM), 1e300),), {}, "X: expected magnitudes within the float32 range"),
    ("add", ([["a"] * DIM],), {}, "X: expected real numbers"),
    ("add", (np.ones((2, DIM)), [7, 7]), {}, "ids: expected (different ids|ids that are not in use), received 7"),
    ("add", (np.ones((2, DIM)), [2000, 2000]), {}, "ids: expected different ids, received 2000 more than once"),
    ("add", (np.ones((2, DIM)), [2000, 7]), {}, "ids: expected ids that are not in use, received 7"),
    ("add", (np.ones((9, DIM)), np.arange(9)), {}, "ids that are not in use, received 0, 1, 2, 4, 6 and 2 more"),
    ("add", (np.ones((2, DIM)), [2000]), {}, r"ids: expected a 1-D integer array of 2 ids, received .* \(1,\)"),
    ("add", (np.ones((2, DIM)), [[2000, 2001]]), {}, r"of 2 ids, received an array of shape \(1, 2\)"),
    ("add", (np.ones((1, DIM)), [2.0]), {}, "ids: expected a 1-D integer array of 1 ids, received .* float64"),
    ("add", (np.ones((1, DIM)), [True]), {}, "received .* bool"),
    ("add", (np.ones((1, DIM)), ["7"]), {}, "ids: expected a 1-D integer array"),
    ("add", (np.ones((1, DIM)), [2**63]), {}, "ids: expected ints within 64 bits, received 9223372036854775808"),
    ("add", (np.ones((1, DIM)), [-(2**63) - 1]), {}, "ids: expected ints within 64 bits, received -92233720368547758"),
    ("add", (np.ones((1, DIM)), [2**200]), {}, "ids: expected ints within 64 bits"),
    ("remove", ([7, 5000],), {}, "ids: expected ids of the index, received 5000"),
    ("remove", (3,), {}, "ids: expected ids of the index, received 3"),
    ("remove", ([1.5],), {}, "ids: expected a 1-D integer array, received"),
    ("remove", ([[1, 2]],), {}, r"received an array of shape \(1, 2\)"),
    ("remove", ([1],), {"missing": "drop"}, "missing: expected one of 'raise', 'ignore', received 'drop'"),
    ("remove", ([1],), {"missing": None}, "missing: expected one of 'raise', 'ignore', received NoneType"),
    ("update", ([7, 5000], np.ones((2, DIM))), {}, "ids: expected ids of the index, received 5000"),
    ("update", ([7, 7], np.ones((2, DIM))), {}, "ids: expected different ids, received 7 more than once"),
    ("update", ([7], np.ones((2, DIM))), {}, r"ids: expected a 1-D integer array of 2 ids, received .* \(1,\)"),
    ("update", ([7], np.ones((1, 5))), {}, r"X: expected a 2-D array of shape \(n, 6\)"),
    ("update", ([7], np.full((1, DIM), np.inf)), {}, "X: expected finite values, received inf"),
    ("get", ([7, 5000, -4],), {}, "ids: expected ids of the index, received 5000, -4"),
    ("query_by_id", ([7, 5000],), {}, "ids: expected ids of the index, received 5000"),
    ("query_by_id", ([7], 0), {}, "k: expected an int >= 1, received 0"),
    ("query_radius", (np.ones((2, DIM)), [1.0]), {}, r"r: expected a number or shape \(2,\), received .* \(1,\)"),
    ("query_radius", (np.ones((2, DIM)), np.nan), {}, "r: expected .*, received NaN"),
    ("query_radius", (np.ones((2, DIM)), -0.5), {}, "r: expected .* >= 0 for the metric 'l2', received -0.5"),
    ("query_radius", (np.ones((2, DIM)), [1.0, -2.0]), {}, "r: expected .* >= 0 for the metric 'l2', received -2.0"),
    ("query_radius", (np.ones((2, DIM)), "far"), {}, "r: expected real numbers"),
    ("query_radius", (np.ones((2, DIM)), 1.0, 0), {}, "max_results: expected an int >= 1, received 0"),
    ("query", (np.ones((2, DIM)), 2), {"filter": [7, 5000]}, "filter: expected ids of the index, received 5000"),
    ("query", (np.ones((2, DIM)), 2), {"filter": np.ones(325, bool)}, r"expected a bool mask of shape \(322,\)"),
    ("query", (np.ones((2, DIM)), 2), {"filter": [[1], [1, 2]]}, "filter: expected a rectangular array"),
    ("query", (np.ones((2, DIM)), 2), {"filter": np.ma.array(np.ones(322, bool))}, "received a masked array"),
]  # fmt: skip


@pytest.fixture(scope="module")
def one_for_all():
    return changed()


@pytest.mark.parametrize(("name", "arguments", "options", "message"), BAD)
def test_bad_calls_say_why_and_change_nothing(one_for_all, name, arguments, options, message):
    index = one_for_all
    before, version = observed(index), index._version
    with pytest.raises((errors.DCIError), match=message) as caught:
        getattr(index, name)(*arguments, **options)
    assert isinstance(caught.value, ValueError | TypeError | KeyError)
    assert index._version is version
    assert_same(before, observed(index))


def test_unknown_ids_are_a_key_error():
    index = fitted()
    for call in (index.remove, index.get, index.query_by_id, lambda ids: index.update(ids, some_rows(2))):
        with pytest.raises(KeyError, match="expected ids of the index, received 300"):
            call([5, 300])


@pytest.mark.parametrize("call", [
    lambda index: index.remove([1]), lambda index: index.get([1]), lambda index: index.query_by_id([1]),
    lambda index: index.update([1], some_rows(1)), lambda index: index.query_radius(some_rows(1), 1.0),
])  # fmt: skip
def test_before_fit(call):
    with pytest.raises(errors.NotFittedError, match="expected a fitted index"):
        call(dci.DCI())


def test_an_empty_index_has_no_ids():
    index = dci.DCI()
    assert index.ids.tolist() == []
    assert 0 not in index
    assert index.nbytes == 0


def test_a_failed_first_add_leaves_the_index_unfitted():
    index = dci.DCI()
    with pytest.raises(errors.InvalidValueError, match="received 1 more than once"):
        index.add(some_rows(2), ids=[1, 1])
    with pytest.raises(errors.NotFittedError):
        index.query(some_rows(1))
    assert index.add(np.ones((1, 3))).tolist() == [0]


def test_directions_by_queries_need_a_fit():
    with pytest.raises(errors.InvalidValueError, match=r"expected fit\(X, queries=...\)"):
        dci.DCI(directions="query").add(some_rows(2))


# where it begins


@pytest.mark.parametrize("start", [None, [], np.empty((0, DIM))])
@pytest.mark.parametrize("params", [{}, {"n_simple": 4}])
@pytest.mark.parametrize("ids", [None, [5, HIGHEST, LOWEST]])
def test_first_points(start, params, ids):
    index = dci.DCI(random_state=0, **params)
    if start is not None:
        index.fit(start)
    X = some_rows(3)
    assert index.add(X, ids).tolist() == (ids or [0, 1, 2])
    assert index.query(X, 1).indices.ravel().tolist() == (ids or [0, 1, 2])
    assert index.dim == DIM


def test_no_rows():
    index = dci.DCI()
    assert index.add([]).tolist() == []
    assert index.add(np.empty((0, 3))).tolist() == []
    assert index.dim == 3
    index = fitted()
    before, version = observed(index), index._version
    assert index.add(np.empty((0, DIM))).dtype == np.int64
    assert index.add([], ids=[]).tolist() == []
    assert index.remove([]) == 0
    index.update([], np.empty((0, DIM)))
    assert index.get([]).shape == (0, DIM)
    assert index.query_by_id([], 3).indices.shape == (0, 3)
    assert index._version is version
    assert_same(before, observed(index))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_remove_all_and_begin_again(metric):
    index = fitted(400, metric=metric)
    assert index.remove(index.ids) == 400
    assert len(index) == 0
    found = index.query(some_rows(3), 2)
    assert (found.indices == -1).all()
    assert index.query_radius(some_rows(3), 1e9 if metric != "ip" else -1e9).offsets.tolist() == [0, 0, 0, 0]
    X = some_rows(700, 5)
    assert index.add(X).tolist() == list(range(400, 1100))
    truth = dci.exact(X, X[:50], 3, metric)
    found = index.query(X[:50], 3, recall=1.0)
    np.testing.assert_array_equal(found.indices, truth.indices + 400)


def test_all_indexed_points_gone_while_others_are_pending():
    index = fitted(250)
    index.add(some_rows(100, 3))
    index.remove(np.arange(250))  # budgets would be measured on points that are not there
    assert index.query(some_rows(100, 3), 1).indices.ravel().tolist() == list(range(250, 350))


@pytest.mark.parametrize("params", [{"n_simple": 4}, {"n_simple": 4, "n_levels": 1}, {"n_simple": 2, "ranking": "max"}])
def test_points_removed_before_they_are_indexed(params):
    index = fitted(600, **params)
    X = some_rows(400, 3)
    ids = index.add(X[:200])
    index.remove(ids[::2])
    index.add(X[200:])  # folds
    assert index._version.n_indexed == 1000
    for budget in ({"recall": 1.0}, {"max_visits": 1.0, "max_candidates": 1.0}, {"max_candidates": 1.0}, {}):
        found = index.query(X[:200], 3, **budget)
        assert np.isin(found.indices, index.ids).all()
        assert np.array_equal(found.indices[1::2, 0], ids[1::2])
    found = index.query_by_id(ids[1::2], 12)
    assert np.isin(found.indices, index.ids).all()


def test_cells_of_equal_points():
    """Their mean squared distance to the centre is 0, so that any other point is infinitely far by comparison."""
    index = dci.DCI(n_simple=4, random_state=0).fit(np.ones((300, DIM)))
    index.add(some_rows(600))
    assert index.query(some_rows(600), 1, recall=1.0).indices.ravel().tolist() == list(range(300, 900))


def test_the_second_add_may_overflow_distances():
    """Points at infinite distance (beyond float32) come before places that stay empty."""
    index = dci.DCI().fit([[3e38, 3e38]])
    index.add([[-3e38, -3e38], [2e38, 2e38]])
    assert index.query([[3e38, 3e38]], 4).indices.tolist() == [[0, 2, 1, -1]]


# ids


def test_ids_at_the_ends_of_64_bits():
    index = fitted(10)
    X = some_rows(4, 1)
    ids = [LOWEST, HIGHEST - 1, LOWEST + 1, -1]
    index.add(X, ids)
    assert index.query(X, 1).indices.ravel().tolist() == ids
    assert index.add(some_rows(1, 2)).tolist() == [HIGHEST]  # above all that there have been
    with pytest.raises(errors.InvalidValueError, match=f"none are left above {HIGHEST}"):
        index.add(some_rows(1, 3))
    assert index.remove(HIGHEST) == 1
    with pytest.raises(errors.InvalidValueError, match="none are left"):
        index.add(some_rows(1, 3))
    assert index.add(some_rows(1, 3), [HIGHEST]).tolist() == [HIGHEST]
    again = pickle.loads(pickle.dumps(index))
    assert again.ids.tolist() == index.ids.tolist() == [*range(10), *ids, HIGHEST]
    assert LOWEST in again
    assert 2**63 not in again
    assert -(2**63) - 1 not in again


def test_kinds_of_ids():
    index = fitted(10)
    assert index.add(some_rows(1), np.array([20], np.uint64)).tolist() == [20]
    assert index.add(some_rows(1), np.array([21], np.int8)).tolist() == [21]
    assert index.add(some_rows(1), [22]).tolist() == [22]
    assert index.add(some_rows(1), 23).tolist() == [23]
    assert np.int8(21) in index
    assert index.get(np.uint64(20)).shape == (DIM,)
    assert index.remove(np.int32(22)) == 1
    with pytest.raises(errors.InvalidTypeError, match="id: expected a 1-D integer array"):
        "20" in index  # noqa: B015
    with pytest.raises(TypeError):
        1.5 in index  # noqa: B015


def test_assigned_ids_are_never_used_again():
    index = dci.DCI(random_state=0)
    there = set()
    for round_ in range(40):
        new = index.add(some_rows(100, round_)).tolist()
        assert not there & set(new)
        there |= set(new)
        index.remove(index.ids[::-1][: 100 if round_ % 3 else 150], missing="ignore")
        if round_ == 20:
            index = pickle.loads(pickle.dumps(index))


def test_missing():
    index = fitted(20)
    with pytest.raises(KeyError, match="received 20, 21"):
        index.remove([1, 20, 21])
    assert index.remove([1, 20, 21, 1], missing="ignore") == 1
    assert index.remove([1, 20, 21, 1], missing="ignore") == 0
    assert index.remove(2, missing="ignore") == 1
    assert len(index) == 18


def test_update_keeps_ids_and_moves_points():
    index = fitted(50)
    X = some_rows(3, 8)
    index.update([40, 2, 7], X)
    assert sorted(index.ids.tolist()) == list(range(50))
    assert index.ids[-3:].tolist() == [40, 2, 7]
    assert index.query(X, 1).indices.ravel().tolist() == [40, 2, 7]
    np.testing.assert_array_equal(index.get([40, 2, 7]), X)
    index.update(2, X[:1])
    assert index.add(X[:1]).tolist() == [50]


def test_filter_of_a_changed_index():
    index = changed()
    ids, Q = index.ids, some_rows(30, 4)
    rows = index.get(ids)
    for share in (2, 30):
        mask = np.arange(len(ids)) % share == 0
        truth = dci.exact(rows[mask], Q, 4)
        for given in (mask, ids[mask], ids[mask][::-1].tolist(), np.repeat(ids[mask], 2)):
            found = index.query(Q, 4, filter=given)
            np.testing.assert_array_equal(found.indices, ids[mask][truth.indices])
    assert (index.query(Q, 4, filter=[]).indices == -1).all()
    assert_same(index.query(Q, 4, filter=np.ones(len(ids), bool)), index.query(Q, 4))


# the caller's arrays


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("params", [{"n_simple": 4}, {"n_simple": 2, "n_composite": 2, "ranking": "max"}, {}])
def test_arrays_are_the_callers(metric, params):
    X, more, ids = some_rows(500), some_rows(20, 1), np.arange(700, 720)
    index = dci.DCI(metric, random_state=0, num_threads=1, **params).fit(X)
    index.add(more, ids)
    before = observed(index)
    X[:], more[:], ids[:] = np.nan, np.nan, 0
    assert_same(before, observed(index))
    index.add(some_rows(900, 2))  # folds
    index.remove(np.arange(100))
    assert np.isfinite(index.get(index.ids)).all()


def test_given_directions_are_the_callers():
    directions = np.eye(DIM, dtype=np.float32)
    index = dci.DCI(directions=directions, random_state=0).fit(some_rows(300))
    index.add(some_rows(10, 1))
    directions[:] = np.nan
    index.add(some_rows(3000, 2))  # builds anew
    assert index.query(some_rows(10, 1), 1).indices.ravel().tolist() == list(range(300, 310))


def test_what_get_gives_is_the_callers():
    index = changed()
    before = observed(index)
    for array in (index.get(7), index.get([7, 8]), index.ids, index.query(some_rows(2), 2).indices):
        array[...] = 1
    assert_same(before, observed(index))


def test_read_only_arrays():
    X = some_rows(300)
    X.flags.writeable = False
    index = dci.DCI(n_simple=4, random_state=0).fit(X)
    more = np.asfortranarray(some_rows(20, 1))
    ids = np.arange(400, 420)
    more.flags.writeable = ids.flags.writeable = False
    index.add(more, ids)
    index.add(more[::2].astype(np.float64))
    index.update(ids, more[::-1])
    assert index.query(more, 1).indices.ravel().tolist() != []
    assert index.remove(ids) == 20
    index.add(index.get(index.ids)[::-1])  # its own rows
