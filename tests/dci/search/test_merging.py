"""Answers about different points, as one: the same as that of one index of all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dci
from dci import InvalidTypeError, InvalidValueError, Neighbors, RadiusNeighbors


def parts_of(X, Q, k, metric, bounds):
    """Exact answers of consecutive rows, ids of all."""
    starts = [0, *bounds]
    for start, stop in zip(starts, [*bounds, len(X)], strict=True):
        found = dci.exact(X[start:stop], Q, k, metric)
        yield Neighbors(found.distances, np.where(found.indices < 0, -1, found.indices + start))


@given(st.data())
def test_merged_is_the_answer_of_all_points(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    n, k = draw(st.integers(0, 40)), draw(st.integers(1, 12))
    X = rng.integers(-2, 3, (n, 2)).astype(np.float32)  # many ties
    Q = rng.integers(-2, 3, (draw(st.integers(0, 4)), 2)).astype(np.float32)
    bounds = sorted(draw(st.lists(st.integers(0, n), max_size=5)))
    metric = draw(st.sampled_from(["l2", "ip", "cosine"]))
    answers = list(parts_of(X, Q, k, metric, bounds))
    order = draw(st.permutations(answers))
    expected = dci.exact(X, Q, k, metric)
    for found in (dci.merge(order, k, metric), dci.merge([dci.merge(order[:2], k, metric), *order[2:]], k, metric)):
        np.testing.assert_array_equal(found.distances, expected.distances)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.distances.dtype == np.float32
        assert found.indices.dtype == np.int64


def test_answers_may_have_different_lengths_and_be_padded():
    one = Neighbors(np.float32([[1.0]]), np.int64([[7]]))
    two = Neighbors(np.float32([[0.5, 1.0, np.inf]]), np.int64([[9, 3, -1]]))
    assert dci.merge([one, two], 4).indices.tolist() == [[9, 3, 7, -1]]
    assert dci.merge([one, two], 5).distances.tolist() == [[0.5, 1.0, 1.0, np.inf, np.inf]]
    assert dci.merge([two], 1).indices.tolist() == [[9]]


def test_a_point_infinitely_far_comes_before_padding():
    far = Neighbors(np.float32([[np.inf]]), np.int64([[2]]))
    none = Neighbors(np.float32([[np.inf]]), np.int64([[-1]]))
    assert dci.merge([none, far], 2).indices.tolist() == [[2, -1]]


def test_inner_products_pad_with_minus_infinity():
    one = Neighbors(np.float32([[1.0]]), np.int64([[7]]))
    assert dci.merge([one], 2, "ip").distances.tolist() == [[1.0, -np.inf]]


def test_single_queries():
    one, two = Neighbors(np.float32([1.0]), np.int64([7])), Neighbors(np.float32([1.0]), np.int64([3]))
    found = dci.merge([one, two], 2)
    assert found.indices.tolist() == [3, 7]


def test_radius():
    X = np.float32([[0], [1], [1], [2], [5]])
    index = [dci.DCI(recall=1.0).fit(part) for part in (X[:2], X[2:])]
    some = [i.query_radius([[1.0], [9.0], [5.0]], 1.5) for i in index]
    some[1] = RadiusNeighbors(some[1].offsets, some[1].distances, some[1].indices + 2)
    expected = dci.DCI(recall=1.0).fit(X).query_radius([[1.0], [9.0], [5.0]], 1.5)
    for order in (some, some[::-1]):
        for left, right in zip(dci.merge(order), expected, strict=True):
            np.testing.assert_array_equal(left, right)
    first = dci.merge(some, 1)
    assert first.offsets.tolist() == [0, 1, 1, 2]
    assert first.indices.tolist() == [1, 4]


class TestRefused:
    one = Neighbors(np.float32([[1.0]]), np.int64([[7]]))

    def test_none(self):
        with pytest.raises(InvalidValueError, match="answers: expected at least one, received none"):
            dci.merge([], 3)

    def test_k(self):
        with pytest.raises(InvalidTypeError, match="k: expected an int >= 1, received None"):
            dci.merge([self.one], None)

    def test_metric(self):
        with pytest.raises(InvalidValueError, match="metric: expected one of"):
            dci.merge([self.one], 1, "l1")

    def test_different_numbers_of_queries(self):
        two = Neighbors(np.ones((2, 1), np.float32), np.ones((2, 1), np.int64))
        with pytest.raises(InvalidValueError, match=r"same nq.*received shapes .*\(1, 1\), .*\(2, 1\)"):
            dci.merge([self.one, two], 1)
        three = RadiusNeighbors(np.int64([0, 0]), np.empty(0, np.float32), np.empty(0, np.int64))
        with pytest.raises(InvalidValueError, match=r"same number of queries in each, received \[1, 2\]"):
            dci.merge([three, three._replace(offsets=np.int64([0, 0, 0]))])

    def test_single_and_batch(self):
        with pytest.raises(InvalidValueError, match="same nq"):
            dci.merge([self.one, self.one.first], 1)

    def test_distances_and_indices_of_different_shapes(self):
        with pytest.raises(InvalidValueError, match="same nq"):
            dci.merge([Neighbors(np.ones((1, 2), np.float32), np.ones((1, 1), np.int64))], 1)

    def test_one_point_in_two_answers(self):
        with pytest.raises(InvalidValueError, match="different points in each, received id 7 in two"):
            dci.merge([self.one, self.one], 2)
        within = RadiusNeighbors(np.int64([0, 1, 3]), np.float32([1, 1, 2]), np.int64([7, 5, 7]))
        with pytest.raises(InvalidValueError, match="different points in each, received id 5 in two"):
            dci.merge([within, RadiusNeighbors(np.int64([0, 0, 1]), np.float32([3]), np.int64([5]))])

    def test_other_types(self):
        with pytest.raises(InvalidTypeError, match=r"all to be Neighbors.*received \['tuple'\]"):
            dci.merge([tuple(self.one)], 1)
