"""Answers, changes and files of an index in shards, run by the threads of this process."""

import json
import shutil
import threading

import dask.array as da
import numpy as np
import pytest

import dci
from dci import Neighbors
from dci.dask import ShardedDCI
from dci.dask.scheduler import Scheduler

PARTITIONS = ["chunks", "cells"]


def as_chunks(X, *sizes):
    return da.from_array(X, chunks=(sizes if sizes else (len(X) // 3, len(X) // 3, len(X) - 2 * (len(X) // 3)), -1))


@pytest.mark.parametrize("partition", PARTITIONS)
class TestExact:
    def test_as_one_index(self, data, metric, partition, same):
        index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(data.points))
        for k in (1, 5, len(data.points) + 3):
            same(index.query(data.queries, k), dci.exact(data.points, data.queries, k, metric))
        same(index.query(data.queries[0], 4), dci.exact(data.points, data.queries[0], 4, metric))

    def test_ids(self, data, metric, partition, same):
        """Ties go by the caller's ids, in whatever order they come."""
        ids = np.random.default_rng(0).permutation(len(data.points)) * 7 - 900
        order = np.argsort(ids)
        expected = dci.exact(data.points[order], data.queries, 9, metric)
        for given in (ids, da.from_array(ids, chunks=100)):
            index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(data.points), ids=given)
            same(index.query(data.queries, 9), Neighbors(expected.distances, ids[order][expected.indices]))

    def test_dask_queries(self, data, metric, partition, same):
        index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(data.points))
        found = index.query(da.from_array(data.queries, chunks=(17, 3)), 4)
        assert isinstance(found, Neighbors)
        assert found.distances.chunks == ((17, 17, 17, 9), (4,))
        expected = dci.exact(data.points, data.queries, 4, metric)
        same(Neighbors(*(part.compute() for part in found)), expected)

    def test_filter(self, data, metric, partition, same):
        index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(data.points))
        for allowed in (np.arange(len(data.points)) % 3 == 1, np.array([5, 2, 2, 400]), np.array([], int)):
            expected = dci.DCI(metric, recall=1.0).fit(data.points).query(data.queries, 6, filter=allowed)
            same(index.query(data.queries, 6, filter=allowed), expected)

    def test_radius(self, data, metric, partition):
        index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(data.points))
        near = dci.exact(data.points, data.queries, 40, metric).distances
        one = dci.DCI(metric, recall=1.0).fit(data.points)
        for most in (None, 7):
            found, expected = (i.query_radius(data.queries, near[:, 35], most) for i in (index, one))
            for left, right in zip(found, expected, strict=True):
                np.testing.assert_array_equal(left, right)

    def test_changes(self, data, metric, partition, same):
        """Half of the points come later, some go: as an index of what is there."""
        points, half = data.points, len(data.points) // 2
        index = ShardedDCI(metric, recall=1.0, partition=partition).fit(as_chunks(points[:half]))
        assert index.add(points[half:-5]).tolist() == list(range(half, len(points) - 5))
        assert index.add(points[-5:], ids=np.arange(9000, 9005)).tolist() == list(range(9000, 9005))
        assert index.add(points[:0]).tolist() == []
        gone = np.arange(0, len(points) - 5, 4)
        assert index.remove(np.append(gone, gone)) == len(gone)
        assert index.remove([0, 1, 99_999], missing="ignore") == 1
        assert index.add(points[:2], ids=[10_000, 10_001]).tolist() == [10_000, 10_001]
        ids = np.concatenate([np.arange(len(points) - 5), np.arange(9000, 9005), [10_000, 10_001]])
        points = np.concatenate([points, points[:2]])
        kept = np.flatnonzero(~np.isin(ids, [*gone, 1]))
        expected = dci.exact(points[kept], data.queries, 6, metric)
        same(index.query(data.queries, 6), Neighbors(expected.distances, ids[kept][expected.indices]))
        assert len(index) == index.n_points == len(kept)
        assert index.add(points[:1]).tolist() == [10_002]

    def test_files(self, data, metric, partition, same, tmp_path):
        index = ShardedDCI(metric, recall=1.0, partition=partition, random_state=4).fit(as_chunks(data.points))
        index.add(data.points[:3])
        index.save(tmp_path / "new")
        again = ShardedDCI.load(tmp_path / "new")
        assert (again.metric, again.partition, again.random_state is not None) == (metric, partition, True)
        assert again.stats_ == index.stats_
        same(again.query(data.queries, 6), index.query(data.queries, 6))
        assert again.add(data.points[:1]).tolist() == [len(data.points) + 3]
        again.save(tmp_path / "new")
        assert len(list((tmp_path / "new").iterdir())) == again.n_shards + 2  # the old files are gone
        assert len(ShardedDCI.load(tmp_path / "new")) == len(data.points) + 4


def test_an_id_may_come_again(manifold):
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    index.remove([3, 4])
    assert index.add(manifold.points[4:5], ids=[3]).tolist() == [3]
    assert index.query(manifold.points[4], 1).indices.tolist() == [3]
    assert index.add(manifold.points[4:5]).tolist() == [1500]
    assert index.query(manifold.points[4], 2).indices.tolist() == [3, 1500]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_url(partition, manifold, same):
    fsspec = pytest.importorskip("fsspec")
    index = ShardedDCI(recall=1.0, partition=partition).fit(as_chunks(manifold.points))
    for _ in range(2):
        index.save("memory://some/where")
        same(ShardedDCI.load("memory://some/where").query(manifold.queries), index.query(manifold.queries))
    assert len(fsspec.filesystem("memory").ls("/some/where")) == index.n_shards + 2


def test_a_crash_while_saving_leaves_what_was_there(manifold, same, tmp_path, monkeypatch):
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    index.save(tmp_path)
    before = index.query(manifold.queries)
    index.remove(np.arange(900))
    with monkeypatch.context() as patched:
        patched.setattr("dci._shards.files.Directory.write_manifest", lambda self, manifest: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.save(tmp_path)
    same(ShardedDCI.load(tmp_path).query(manifold.queries), before)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_file_of_a_shard_is_that_of_an_index(partition, manifold, tmp_path):
    ShardedDCI(recall=1.0, partition=partition).fit(as_chunks(manifold.points)).save(tmp_path)
    ids = np.concatenate([dci.load(path).ids for path in sorted(tmp_path.glob("shard-*.dci"))])
    assert sorted(ids.tolist()) == list(range(len(manifold.points)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sum(shard["info"]["n"] for shard in manifest["shards"]) == len(ids)


def test_shard_bytes(manifold):
    X = da.from_array(manifold.points, chunks=(100, 5))
    for partition in PARTITIONS:
        index = ShardedDCI(recall=1.0, partition=partition, shard_bytes=500 * 4 * 24).fit(X)
        assert index.n_shards == 3
        assert len(index) == len(manifold.points)


def test_empty_chunks_are_left_out(manifold, same):
    for partition in PARTITIONS:
        X = da.concatenate(
            [as_chunks(manifold.points[some]) for some in (slice(0, 0), slice(0, 700), slice(700, None))]
        )
        index = ShardedDCI(recall=1.0, partition=partition).fit(X.rechunk(((0, 700, 0, 800, 0), -1)))
        assert index.n_shards == 2
        same(index.query(manifold.queries), dci.exact(manifold.points, manifold.queries))


@pytest.mark.parametrize("partition", PARTITIONS)
def test_no_points(partition, same):
    Q = np.ones((2, 5), np.float32)
    index = ShardedDCI(partition=partition).fit(da.zeros((0, 5), chunks=(3, 5)))
    same(index.query(Q, 2), dci.exact(np.empty((0, 5)), Q, 2))
    assert index.add(Q).tolist() == [0, 1]
    assert index.query(Q[:1], 1).indices.tolist() == [[0]]
    assert index.query(np.empty((0, 5)), 3).indices.shape == (0, 3)


def test_everything_removed(manifold):
    index = ShardedDCI().fit(as_chunks(manifold.points))
    index.remove(np.arange(len(manifold.points)))
    assert (index.query(manifold.queries, 2).indices == -1).all()
    index.add(manifold.points[:4])
    assert index.query(manifold.queries, 5).indices[0, -2] >= 1500


def test_the_seed_is_all_that_counts(large_manifold, same):
    """Neither the chunks' order of execution, nor threads, nor how often tasks run."""
    X = as_chunks(large_manifold.points)
    for partition in PARTITIONS:
        one, two = (
            ShardedDCI(partition=partition, random_state=seed, num_threads=threads).fit(X)
            for seed, threads in ((3, 1), (np.random.default_rng(0), 2))
        )
        again = ShardedDCI(partition=partition, random_state=3, num_threads=3).fit(X)
        same(one.query(large_manifold.queries), again.query(large_manifold.queries))
        assert two.stats_ != one.stats_ or partition == "chunks"


def test_a_query_sees_the_shards_of_when_it_began(manifold, same):
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    before = index.query(manifold.queries)
    lazy = index.query(da.from_array(manifold.queries, chunks=(20, -1)))
    index.add(manifold.queries)
    index.remove(np.arange(500))
    same(Neighbors(*(part.compute() for part in lazy)), before)


def test_queries_while_points_come(manifold):
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    wrong, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            distances = index.query(manifold.queries[:5], 3).distances
            if not (np.diff(distances, axis=1) >= 0).all():
                wrong.append(distances)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(5):
        ids = index.add(manifold.points[:50])
        index.remove(ids[:25])
    stop.set()
    thread.join()
    assert not wrong


def test_progress(manifold, capsys, client):
    for who in (None, client):
        ShardedDCI(verbose=True, client=who).fit(as_chunks(manifold.points))
        assert "100% Completed" in capsys.readouterr().out


def test_many_queries_go_in_parts(manifold, same, monkeypatch):
    monkeypatch.setattr("dci.dask.index._QUERY_BYTES", 4 * 24 * 7)
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    same(index.query(manifold.queries, 3), dci.exact(manifold.points, manifold.queries, 3))


def test_many_shards_are_merged_as_a_tree(manifold, same):
    index = ShardedDCI(recall=1.0).fit(da.from_array(manifold.points, chunks=(30, -1)))
    assert index.n_shards == 50
    same(index.query(manifold.queries, 3), dci.exact(manifold.points, manifold.queries, 3))


def test_repr():
    assert repr(ShardedDCI("ip")) == "<ShardedDCI ip, 0 x 0, 0 shards>"


def test_no_cluster_means_threads():
    assert Scheduler(None, False).client is None


def test_copies_of_a_directory_load(manifold, same, tmp_path):
    index = ShardedDCI(recall=1.0).fit(as_chunks(manifold.points))
    index.save(tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    same(ShardedDCI.load(tmp_path / "two").query(manifold.queries), index.query(manifold.queries))
