"""Construction alone: what is the fastest one that still reaches the recall? A full run takes about 14 minutes."""

from comparisons.knn.suites import CONSTRUCTION as SUITE


def test_construction(timed, name, rival):
    timed(SUITE, name, rival, "fit")
