"""An index in shards: fitted, saved, asked after a worker was killed, and loaded by other workers.

Run it as ``python examples/sharded.py``; ``--points 20000`` takes a few seconds. It needs pip install
'dci-attention[dask]'.
"""

import argparse
import os
import signal
import tempfile

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import dci
from dci.dask import ShardedDCI


def show(what: str, found: dci.Neighbors, exact: dci.Neighbors) -> None:
    """Print the recall of an answer."""
    recall = float((found.distances <= exact.distances[:, -1:]).mean())
    print(f"{what}: recall {recall:.3f}, {int((found.indices >= 0).sum())} of {found.indices.size} neighbours")


def kill_one(client: Client) -> None:
    """Kill a worker process, as if its machine had failed."""
    pid = next(iter(client.run(os.getpid).values()))
    os.kill(pid, signal.SIGKILL)
    print(f"killed worker process {pid}")


def main(n_points: int, directory: str) -> None:
    """Go through all of it."""
    # Each chunk is made on a worker, from a seed: what a worker lost can be made again.
    mix = np.random.default_rng(0).standard_normal((8, 64))
    X = da.tanh(da.random.default_rng(0).standard_normal((n_points, 8), chunks=(n_points // 4, 8)) @ mix)
    X = X.astype(np.float32)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        index = ShardedDCI(recall=0.95, random_state=0, client=client).fit(X)
        print(index, index.stats_)
        queries = X[:200].compute()
        exact = index.query(queries, k=10, recall=1.0)
        show("fitted", index.query(queries, k=10), exact)
        index.save(directory)
        kill_one(client)
        show("with a worker lost", index.query(queries, k=10), exact)  # its shards are made again
        ids = index.add(queries + 100)
        print("added:", index.query(queries[0] + 100, k=1).indices == ids[0])
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster, Client(cluster) as client:
        index = ShardedDCI.load(directory, client=client)
        print("loaded by one worker:", index)
        show("loaded", index.query(queries, k=10), exact)


if __name__ == "__main__":  # worker processes import this file too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=400_000)
    parser.add_argument("--directory", help="where shards are saved (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(options.points, options.directory or temporary)
