"""Total time at every recall, against every setting of every rival: a full run takes about 35 minutes.

Bar: at every recall from 0.5 to 0.99 `dci` takes less time than every setting of faiss LSH and IVF. pytest-benchmark
times each rival's cheapest setting at recall 0.9.
"""

from comparisons.knn.suites import PARETO as SUITE


def test_pareto(timed, name, rival):
    timed(SUITE, name, rival)
