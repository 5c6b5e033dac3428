"""What do shards in two processes cost beside one index of two threads? A full run of 1 million x 96: 2 minutes.

Bars: fit and 10,000 queries in at most 1.2 times the time; recall; a worker holds at most 1.6 times its shards.
"""

from comparisons.knn.suites import SHARDED as SUITE


def test_sharded(asked, name):
    asked(SUITE, name)
