"""The judge: what it accepts and what counts."""

import numpy as np
import pytest

from comparisons.harness.truth import InvalidAnswerError, recall, recompute, true_radius


def test_true_radius_is_the_distance_to_the_kth_neighbour(cloud):
    distances = np.linalg.norm(cloud.queries[:, None].astype(float) - cloud.points, axis=2)
    np.testing.assert_allclose(true_radius(cloud, 7), np.sort(distances, axis=1)[:, 6], rtol=1e-6)


def test_true_radius_is_the_same_without_faiss(cloud, monkeypatch):
    expected = true_radius(cloud, 7)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    np.testing.assert_array_equal(true_radius(cloud, 7), expected)


def test_recall_counts_either_of_two_tied_points(line):
    radius = true_radius(line, 1)
    for tied in (2, 10):
        assert recall(recompute(line, np.array([[0], [tied]]), 1), radius) == 1.0
    assert recall(recompute(line, np.array([[0], [3]]), 1), radius) == 0.5


def test_recall_counts_a_tie_for_the_last_place(line):
    ids = np.array([[0, 1, 2], [2, 10, 1]])  # 1 and 3 are equally far from 2
    radius = true_radius(line, 3)
    assert recall(recompute(line, ids, 3), radius) == 1.0
    ids[1, 2] = 3
    assert recall(recompute(line, ids, 3), radius) == 1.0
    ids[1, 2] = 4
    assert recall(recompute(line, ids, 3), radius) == pytest.approx(5 / 6)


def test_nothing_found_is_allowed_and_counts_as_a_miss(line):
    distances = recompute(line, np.array([[0, -1], [-1, -1]]), 2)
    assert distances[0].tolist() == [0, np.inf]
    assert recall(distances, true_radius(line, 2)) == 0.25


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [3, 3]], "twice for query 1"),
        ([[0, 1], [2, 11]], r"expected ids in \[-1, 11\)"),
        ([[0, 1], [2, -2]], r"expected ids in \[-1, 11\)"),
        ([[0, 1]], r"expected integer ids of shape \(2, 2\)"),
        ([[0.0, 1.0], [2.0, 3.0]], "expected integer ids"),
    ],
)
def test_invalid_answers_are_rejected(line, ids, message):
    with pytest.raises(InvalidAnswerError, match=message):
        recompute(line, np.array(ids), 2)
