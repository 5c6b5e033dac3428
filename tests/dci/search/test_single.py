"""Single queries have a way of their own: the answers are those of a batch, and so are the errors."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dci
from dci._search.single import answer_one


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    basis = rng.standard_normal((6, 40))
    return (np.tanh(rng.standard_normal((3040, 6)) @ basis) + 0.1).astype(np.float32)


def fitted(rows, metric="l2", **params):
    return dci.DCI(metric, random_state=0, n_simple=6, recall=0.9, **params).fit(rows[:3000])


def assert_as_in_a_batch(index, Q, k=10, **arguments):
    batch = index.query(Q, k, **arguments)
    for turn in range(2):  # the first query prepares what the others use
        for i, query in enumerate(Q):
            one = index.query(query, k, **arguments)
            np.testing.assert_array_equal(one.indices, batch.indices[i], err_msg=f"turn {turn}, query {i}")
            np.testing.assert_array_equal(one.distances, batch.distances[i])
            assert one.indices.dtype == np.int64
            alone = index.query(Q[i : i + 1], k, **arguments)
            np.testing.assert_array_equal(alone.indices, batch.indices[i : i + 1])
            np.testing.assert_array_equal(alone.distances, batch.distances[i : i + 1])


@pytest.mark.parametrize("params", [{}, {"ranking": "max"}, {"n_composite": 2}, {"store": "int8"}, {"n_levels": 1}])
def test_answers_are_those_of_a_batch(rows, metric, params):
    assert_as_in_a_batch(fitted(rows, metric, **params), rows[3000:])


@pytest.mark.parametrize("k", [1, 10, 60])
def test_other_numbers_of_neighbours_and_recalls(rows, k):
    index = fitted(rows)
    assert_as_in_a_batch(index, rows[3000:], k)
    assert_as_in_a_batch(index, rows[3000:], k, recall=0.5)
    assert_as_in_a_batch(index, rows[3000:], k, recall=1.0)


def test_other_forms_of_a_query(rows):
    index, query = fitted(rows), rows[3000]
    expected = index.query(query)
    wide = np.zeros((2, 40), np.float32, order="F")
    wide[1] = query
    for form in (query.astype(np.float64), query.tolist(), wide[1], query[None], query.astype(">f4")):
        np.testing.assert_array_equal(np.ravel(index.query(form).indices), expected.indices)


def test_it_is_taken(rows):
    index = fitted(rows)
    assert answer_one(index._version, rows[3000], 10, None) is not None
    assert answer_one(index._version, rows[3000], 10, 0.5) is not None
    assert answer_one(index._version, rows[3000], 3000, None) is None
    assert answer_one(index._version, rows[3000:3001], 10, None).indices.shape == (1, 10)
    assert answer_one(index._version, rows[3000:3002], 10, None) is None
    assert answer_one(index._version, rows[3000:3001, None], 10, None) is None
    assert answer_one(index._version, rows[3000:3000], 10, None) is None


def test_queries_are_counted(rows):
    index = fitted(rows)
    for _ in range(3):
        index.query(rows[3000])
    assert index._version.demand.queries == 3


def test_follows_points_that_come_and_go(rows):
    index = fitted(rows)
    index.query(rows[3000])
    ids = index.add(rows[3000:3005])
    assert index.query(rows[3000], 1).indices[0] == ids[0]
    index.add(np.repeat(rows[:1], 2000, axis=0) + 9)  # into the structure
    assert_as_in_a_batch(index, rows[3000:])
    index.remove(ids)
    assert_as_in_a_batch(index, rows[3000:])
    assert not np.isin(index.query(rows[3000]).indices, ids).any()
    index.fit(rows[:2000])
    assert_as_in_a_batch(index, rows[3000:])


def test_ids_are_the_callers(rows):
    index = dci.DCI(random_state=0, n_simple=6, recall=0.9)
    index.add(rows[:3000], ids=np.arange(3000) * 7 + 5)
    assert_as_in_a_batch(index, rows[3000:])


def test_errors_are_those_of_a_batch(rows):
    index = fitted(rows)
    index.query(rows[3000])
    bad = rows[3000].copy()
    bad[7] = np.nan
    with pytest.raises(dci.InvalidValueError, match="received nan in row 0, column 7"):
        index.query(bad)
    with pytest.raises(dci.InvalidValueError, match="expected shape"):
        index.query(rows[3000, :39].copy())
    for k, error in ((True, dci.InvalidTypeError), (0, dci.InvalidValueError), (2.0, dci.InvalidTypeError)):
        with pytest.raises(error, match="^k: expected"):
            index.query(rows[3000], k)
    index.query(rows[3000], 1)
    with pytest.raises(dci.InvalidTypeError, match="^k: expected"):
        index.query(rows[3000], True)
    for recall in (0.0, 1.5, np.nan):
        with pytest.raises(dci.InvalidValueError, match="^recall: expected"):
            index.query(rows[3000], recall=recall)
    with pytest.raises(dci.InvalidTypeError, match="masked"):
        index.query(np.ma.masked_array(rows[3000]))


def test_queries_beyond_all_points_are_answered_exactly(rows):
    index = fitted(rows)
    index.query(rows[3000])
    far = rows[3000] * np.float32(1e30)
    np.testing.assert_array_equal(index.query(far).indices, dci.exact(rows[:3000], far).indices)


def test_threads_do_not_meet(rows):
    index = fitted(rows)
    batch = index.query(rows[3000:])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda q: index.query(q).indices, rows[3000:]))
            np.testing.assert_array_equal(found, batch.indices)


def test_is_left_out_of_copies(rows):
    index = fitted(rows)
    index.query(rows[3000])
    again = pickle.loads(pickle.dumps(index))
    assert_as_in_a_batch(again, rows[3000:])
