"""k-NN: how long do construction and 10,000 queries take at equal recall? A full run takes about 15 minutes.

Bars: `dci` against faiss flat and IVF (`comparisons.report.bars.GOALS`), and the recall that it was told.
"""

from comparisons.knn.suites import KNN as SUITE


def test_total_time(timed, name, rival):
    timed(SUITE, name, rival)
