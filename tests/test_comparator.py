"""The comparator accepts what is right up to ties, and nothing else."""

import numpy as np
import pytest

from dci.reference import exact_search

X = np.array([[0, 0], [1, 0], [0, 1], [3, 0], [5, 0], [5, 0]], dtype=np.float32)
Q = np.zeros((1, 2), dtype=np.float32)


def answer(distances, indices):
    return np.array([distances], dtype=np.float32), np.array([indices], dtype=np.int64)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_accepts_the_exact_answer(assert_neighbours, metric, k):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((6, 4)).astype(np.float32)
    queries = rng.standard_normal((5, 4)).astype(np.float32)
    distances, indices = exact_search(points, queries, k, metric)
    assert_neighbours((distances.astype(np.float32), indices), points, queries, k, metric)
    one = distances[0].astype(np.float32), indices[0]
    assert_neighbours(one, points, queries[0], k, metric)


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(answer([0, 1, 1], [0, 2, 1]), id="swap of tied ids"),
        pytest.param(answer([0, 1, 1.00001], [0, 1, 2]), id="rounding"),
    ],
)
def test_accepts_near_ties(assert_neighbours, received):
    assert_neighbours(received, X, Q, 3)


def test_accepts_another_id_of_a_tie_at_the_last_rank(assert_neighbours):
    assert_neighbours(answer([0, 1], [0, 2]), X, Q, 2)


def test_accepts_a_filtered_and_padded_answer(assert_neighbours):
    allowed = np.array([False, True, False, True, False, False])
    assert_neighbours(answer([1, 3, np.inf], [1, 3, -1]), X, Q, 3, allowed=allowed)


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (answer([0, 1, 3], [0, 1, 3]), "not the nearest"),
        (answer([0, 1, 1], [0, 1, 3]), "not the nearest"),
        (answer([1, 0, 1], [1, 0, 2]), "not the nearest"),
        (answer([0, 1, 1.01], [0, 1, 2]), "not those of the ids"),
        (answer([0, 1, np.nan], [0, 1, 2]), "not those of the ids"),
        (answer([0, 1.00001, 1], [0, 1, 2]), "not in order"),
        (answer([0, 1, 1], [0, 1, 1]), "repeated"),
        (answer([0, 1, 1], [0, 1, 6]), "out of range"),
        (answer([0, 1, np.inf], [0, 1, -1]), "out of range"),
    ],
)
def test_rejects(assert_neighbours, received, reason):
    with pytest.raises(AssertionError, match=reason):
        assert_neighbours(received, X, Q, 3)


@pytest.mark.parametrize(
    "received",
    [
        answer([0, 1], [0, 1]),
        tuple(part[0] for part in answer([0, 1, 1], [0, 1, 2])),
        tuple(part.astype(np.float64) for part in answer([0, 1, 1], [0, 1, 2])),
        tuple(part.astype(np.float32) for part in answer([0, 1, 1], [0, 1, 2])),
    ],
    ids=["k", "axes", "float64 distances", "float32 ids"],
)
def test_rejects_wrong_shapes_and_dtypes(assert_neighbours, received):
    with pytest.raises(AssertionError):
        assert_neighbours(received, X, Q, 3)


@pytest.mark.parametrize(
    "received",
    [
        answer([0, 1, 1, 3, 5, 5, np.inf], [0, 1, 2, 3, 4, 5, 0]),
        answer([0, 1, 1, 3, 5, 5, 9], [0, 1, 2, 3, 4, 5, -1]),
        answer([0, 1, 1, 3, 5, 5, -np.inf], [0, 1, 2, 3, 4, 5, -1]),
    ],
)
def test_rejects_wrong_padding(assert_neighbours, received):
    with pytest.raises(AssertionError, match="padding"):
        assert_neighbours(received, X, Q, 7)


def test_rejects_forbidden_ids(assert_neighbours):
    allowed = np.array([True, False, True, True, True, True])
    with pytest.raises(AssertionError, match="forbids"):
        assert_neighbours(answer([0, 1], [0, 1]), X, Q, 2, allowed=allowed)


def test_recall_counts_ties_and_misses(recall_of):
    assert recall_of(answer([0, 1], [0, 2]), X, Q) == 1.0
    assert recall_of(answer([0, 3], [0, 3]), X, Q) == 0.5
    assert recall_of(answer([0, np.inf], [0, -1]), X, Q) == 0.5
