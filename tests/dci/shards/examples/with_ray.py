import numpy as np
import ray

import dci

X = np.random.default_rng(0).standard_normal((8000, 16), dtype=np.float32)
Q, starts = X[:50], range(0, len(X), 2000)


@ray.remote
class Shard:
    def __init__(self, rows, start):
        self.index, self.start = dci.DCI(random_state=0, num_threads=1).fit(rows), start

    def ask(self, Q, k):
        found = self.index.query(Q, k)
        return dci.Neighbors(found.distances, np.where(found.indices < 0, -1, found.indices + self.start))


shards = [Shard.remote(X[start : start + 2000], start) for start in starts]
nearest = dci.merge(ray.get([shard.ask.remote(Q, 10) for shard in shards]), k=10)
