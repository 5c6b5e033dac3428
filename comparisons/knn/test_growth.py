"""How does time grow with the number of points? 25,000 to 390,000 of GloVe: a full run takes about 5 minutes.

Bar: the cost of a query of `dci` grows with an exponent of at most 0.6.
"""

from comparisons.knn.suites import GROWTH as SUITE


def test_growth(timed, name, rival):
    timed(SUITE, name, rival)
