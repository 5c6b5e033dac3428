"""How does time grow with the dimension, ambient and intrinsic? A full run takes about 8 minutes."""

from comparisons.knn.suites import DIMENSION as SUITE


def test_dimension(timed, name, rival):
    timed(SUITE, name, rival)
