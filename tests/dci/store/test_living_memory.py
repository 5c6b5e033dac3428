"""An index that changes: its memory, and that the number of threads changes nothing."""

import tracemalloc

import numpy as np
import pytest

import dci
from tests.dci.store.living import DIM, assert_same, fitted, observed, some_rows

# the same whatever the number of threads


@pytest.mark.parametrize("params", [{"n_simple": 4}, {"n_simple": 3, "n_composite": 2, "ranking": "max"}, {}])
def test_the_number_of_threads_changes_nothing(params):
    answers = []
    for num_threads in (1, 2, 5):
        index = dci.DCI(random_state=3, num_threads=num_threads, **params).fit(some_rows(900))
        for round_ in range(6):
            index.add(some_rows(500, round_))
            index.remove(index.ids[round_::4])
            index.update(index.ids[::50], index.get(index.ids[::50]) + 1)
        answers.append(observed(index))
    assert_same(answers[0], answers[1])
    assert_same(answers[0], answers[2])


# memory


def test_nbytes_follows_the_points():
    index = fitted(300)
    first = index.nbytes
    assert first >= 300 * DIM * 4
    index.add(some_rows(3000, 1))
    grown = index.nbytes
    assert 3300 * DIM * 4 <= grown <= 20 * first
    index.remove(index.ids[300:])
    assert index.nbytes <= 2 * first


def test_one_row_at_a_time_takes_memory_of_the_points():
    dim, count = 64, 5000
    X = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    index = dci.DCI(random_state=0, num_threads=1)
    index.add(X[:1])
    arrays = set()
    held = []  # so that addresses stay theirs
    tracemalloc.start()
    try:
        for row in X[1:]:
            index.add(row[None])
            base = index._version.points.rows.base
            if id(base) not in arrays:
                arrays.add(id(base))
                held.append(base)
        held.clear()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(arrays) <= 12, "memory is to grow by halves"
    assert now <= 4 * X.nbytes
    assert peak <= 8 * X.nbytes
    assert len(index) == count
    np.testing.assert_array_equal(index.get(index.ids), X)


def test_rows_that_come_and_go_take_no_more_and_more_memory():
    index = fitted(1000)
    sizes = []
    for round_ in range(40):
        new = index.add(some_rows(200, round_))
        index.remove(new)
        sizes.append(len(index._version.points.rows))
    assert max(sizes) <= 3 * 1000 + 200
    assert len(index) == 1000
