"""Is `dci` at most 1.3 x slower beside busy PyTorch and NumPy, each on half of the processors? About 2 minutes."""

from comparisons.knn.suites import BESIDE as SUITE


def test_beside(asked, name):
    asked(SUITE, name)
