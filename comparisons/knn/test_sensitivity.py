"""What do m, L, levels, directions, ranking and k change, one at a time? A full run takes about 5 minutes."""

from comparisons.knn.suites import SENSITIVITY as SUITE


def test_sensitivity(timed, name, rival):
    timed(SUITE, name, rival)
