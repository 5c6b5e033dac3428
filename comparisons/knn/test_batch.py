"""Batches of 10 to 10,000 queries on a built index, whatever its construction took: a full run takes about 18 minutes.

The rows in ``extra_info`` hold all sizes; the largest batch is what pytest-benchmark times.
"""

from comparisons.knn.suites import BATCH as SUITE


def test_batched_queries(timed, name, rival):
    timed(SUITE, name, rival, "batch")
