"""Do fit and query need at most the data's own size plus 200 MB? A full run takes about 2 minutes; no smoke run."""

from comparisons.knn.suites import MEMORY as SUITE


def test_memory(asked, name):
    asked(SUITE, name)
