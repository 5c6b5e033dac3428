import numpy as np
from joblib import Parallel, delayed

import dci

X = np.random.default_rng(0).standard_normal((8000, 16), dtype=np.float32)
Q, starts = X[:50], range(0, len(X), 2000)


def fit(start):
    return dci.DCI(random_state=0, num_threads=1).fit(X[start : start + 2000])


def ask(index, start):
    found = index.query(Q, k=10)
    return dci.Neighbors(found.distances, np.where(found.indices < 0, -1, found.indices + start))


with Parallel(n_jobs=2) as parallel:
    shards = parallel(delayed(fit)(start) for start in starts)
    answers = parallel(delayed(ask)(*shard) for shard in zip(shards, starts, strict=True))
nearest = dci.merge(answers, k=10)
