"""One query at a time on a built index, whatever its construction took: a full run takes about 15 minutes.

Bar: the median of `dci` is at most that of the fastest faiss IVF.
"""

from comparisons.knn.suites import LATENCY as SUITE


def test_one_query(timed, name, rival):
    timed(SUITE, name, rival, "single")
