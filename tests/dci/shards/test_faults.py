"""Workers that are killed: the answer is complete and right, or there is an error."""

import functools
import os
import signal
import time

import dask.array as da
import distributed
import numpy as np
import pytest

import dci
from dci import WorkersLostError
from dci.dask import ShardedDCI, scheduler

POINTS = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)


@functools.cache
def expected():
    return dci.exact(POINTS, QUERIES, 7)


def chunks(victim=None):
    X = da.from_array(POINTS, chunks=(500, -1))
    return X if victim is None else mapped(victim, X)


def mapped(victim, X):
    return X.map_blocks(victim, meta=np.empty((0, 0), np.float32))  # or Dask tries it here


def kill_one(client):
    """Kill the worker that holds most, and return when its end has been noticed."""
    held = client.run(lambda dask_worker: (os.getpid(), len(dask_worker.data)))
    address, (pid, _) = max(held.items(), key=lambda item: item[1][1])
    os.kill(pid, signal.SIGKILL)
    for _ in range(600):
        if address not in client.nthreads():
            return
        time.sleep(0.05)
    raise AssertionError("its end was not noticed")


@pytest.mark.parametrize("partition", ["chunks", "cells"])
def test_during_fit(client, killer, same, partition):
    index = ShardedDCI(recall=1.0, client=client, partition=partition, random_state=0).fit(chunks(killer))
    same(index.query(QUERIES, 7), expected())


def test_during_query(client, killer, same):
    index = ShardedDCI(recall=1.0, client=client).fit(chunks())
    Q = mapped(killer, da.from_array(QUERIES, chunks=(10, -1)))
    same(dci.Neighbors(*client.gather(client.compute(list(index.query(Q, 7))))), expected())


def test_before_a_query(client, same):
    index = ShardedDCI(recall=1.0, client=client).fit(chunks())
    kill_one(client)
    same(index.query(QUERIES, 7), expected())


def test_after_changes(client, same):
    """What was added and removed is done again."""
    index = ShardedDCI(recall=1.0, client=client).fit(chunks())
    index.remove(np.arange(0, 2000, 2))
    index.add(POINTS[::2], ids=np.arange(0, 2000, 2))
    index.add(POINTS[:3] + 100)
    kill_one(client)
    same(index.query(QUERIES, 7), expected())
    assert index.query(POINTS[:3] + 100, 1).indices.ravel().tolist() == [2000, 2001, 2002]


def test_during_save(client, killer, same, tmp_path):
    index = ShardedDCI(recall=1.0, client=client).fit(chunks())

    def patch():
        from dci._shards import files

        write = files.Directory.write_arrays
        files.Directory.write_arrays = lambda self, *args: write(self, *killer(args))

    client.run(patch)
    index.save(tmp_path / "saved")
    client.restart()  # without the patch
    same(ShardedDCI.load(tmp_path / "saved", client=client).query(QUERIES, 7), expected())


def test_a_ranked_index_is_made_again_as_it_was(client, same, large_manifold):
    X = da.from_array(large_manifold.points, chunks=(10_000, -1)).rechunk((5_000, -1))
    index = ShardedDCI(client=client, random_state=3, shard_bytes=4 * 64 * 10_000).fit(X)
    before = index.query(large_manifold.queries, 10)
    # Nor does it matter who runs the tasks, and how many of them there are.
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 3, "dashboard_address": ":0"}
    with distributed.Client(**options, set_as_default=False) as other:
        again = ShardedDCI(client=other, random_state=3, shard_bytes=4 * 64 * 10_000, num_threads=2).fit(X)
        same(again.query(large_manifold.queries, 10), before)
    kill_one(client)
    same(index.query(large_manifold.queries, 10), before)


@pytest.mark.parametrize("gone", [False, True])
def test_shards_that_were_loaded_are_read_again(client, same, tmp_path, gone):
    ShardedDCI(recall=1.0, client=client).fit(chunks()).save(tmp_path)
    index = ShardedDCI.load(tmp_path, client=client)
    if gone:
        for path in tmp_path.glob("shard-*"):
            path.unlink()
    kill_one(client)
    if not gone:
        same(index.query(QUERIES, 7), expected())
    else:
        with pytest.raises(dci.FileFormatError, match="expected shard [0-3] in shard-0000"):
            index.query(QUERIES, 7)


def test_chunks_that_only_a_worker_had(client):
    """Data that were scattered to one worker cannot be computed again."""
    parts = client.scatter(np.split(POINTS, 4), direct=True)
    X = da.concatenate([da.from_delayed(part, (500, 8), np.float32) for part in parts])
    index = ShardedDCI(recall=1.0, client=client).fit(X)
    kill_one(client)
    with pytest.raises(WorkersLostError, match="cannot be computed again"):
        index.query(QUERIES, 7)


def test_no_worker_comes_back(same, monkeypatch):
    monkeypatch.setattr(scheduler, "PATIENCE", 1.0)
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(processes=False, **options) as local, distributed.Client(local) as client:
        index = ShardedDCI(recall=1.0, client=client).fit(chunks())
        same(index.query(QUERIES, 7), expected())
        local.scale(0)
        while client.nthreads():
            time.sleep(0.05)
        with pytest.raises(WorkersLostError, match="no worker for"):
            index.query(QUERIES, 7)
