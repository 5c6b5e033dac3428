"""Bad input: what is wrong is named, with the chunk, the worker or the file that it is about."""

import asyncio
import json
import os
import subprocess
import sys

import dask.array as da
import distributed
import numpy as np
import pytest

import dci
from dci import DCIError, FileFormatError, InvalidTypeError, InvalidValueError, NotFittedError, UnknownIdError
from dci.dask import ShardedDCI

PARTITIONS = ["chunks", "cells"]
POINTS = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)


def chunks(points=POINTS):
    return da.from_array(points, chunks=(25, -1))


@pytest.fixture
def index():
    return ShardedDCI(recall=1.0, random_state=0).fit(chunks())


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"metric": "l1"}, InvalidValueError, "metric: expected one of"),
            ({"recall": 0}, InvalidValueError, "recall: expected a number in"),
            ({"partition": "rows"}, InvalidValueError, "partition: expected one of"),
            ({"shard_bytes": 0}, InvalidValueError, "shard_bytes: expected an int >= 1, received 0"),
            ({"num_threads": 0}, InvalidValueError, "num_threads: expected"),
            ({"random_state": -1}, InvalidValueError, "random_state: expected"),
        ],
    )
    def test_constructor(self, arguments, error, message):
        with pytest.raises(error, match=message):
            ShardedDCI(**arguments)

    def test_client(self):
        with pytest.raises(InvalidTypeError, match=r"client: expected a distributed.Client or None, received str"):
            ShardedDCI(client="tcp://here:1").fit(chunks())

    def test_not_fitted(self, tmp_path):
        index = ShardedDCI()
        for call in (
            lambda: index.query(POINTS), lambda: index.query_radius(POINTS, 1.0), lambda: index.add(POINTS),
            lambda: index.remove([1]), lambda: index.save(tmp_path), lambda: index.stats_,
        ):  # fmt: skip
            with pytest.raises(NotFittedError, match="expected a fitted index"):
                call()

    @pytest.mark.parametrize("X", [POINTS, POINTS.tolist()])
    def test_no_dask_array(self, X):
        with pytest.raises(InvalidTypeError, match=r"X: expected a Dask array, received .*from_array"):
            ShardedDCI().fit(X)

    def test_axes_and_dtypes(self):
        with pytest.raises(InvalidValueError, match=r"X: expected shape \(n, d\), received 1 axes"):
            ShardedDCI().fit(da.zeros(5))
        with pytest.raises(InvalidTypeError, match="X: expected real numbers .* received complex64"):
            ShardedDCI().fit(chunks().astype(np.complex64))

    def test_ids(self):
        with pytest.raises(InvalidValueError, match="ids: expected a 1-D integer array of 100 ids"):
            ShardedDCI().fit(chunks(), ids=np.arange(99))
        with pytest.raises(InvalidValueError, match="ids: expected different ids, received 3 more than once"):
            ShardedDCI().fit(chunks(), ids=np.where(np.arange(100) == 50, 3, np.arange(100)))

    def test_queries(self, index):
        for Q in (POINTS[:, :3], chunks(POINTS)[:, :3]):
            with pytest.raises(InvalidValueError, match=r"Q: expected .*4.*received .*3"):
                index.query(Q)
        with pytest.raises(InvalidValueError, match="k: expected an int >= 1, received 0"):
            index.query(POINTS, 0)
        bad = POINTS.copy()
        bad[30, 2] = np.nan
        with pytest.raises(InvalidValueError, match="Q: expected finite values, received nan in row 30, column 2"):
            index.query(bad)
        with pytest.raises(InvalidValueError, match="Q, chunk 1: expected finite values, received nan in row 5"):
            index.query(chunks(bad)).distances.compute()

    def test_filters(self, index):
        with pytest.raises(InvalidValueError, match="filter: expected ids of the index, received 100"):
            index.query(POINTS, filter=[3, 100])
        with pytest.raises(InvalidValueError, match=r"filter: expected a bool mask of shape \(100,\)"):
            index.query(POINTS, filter=np.ones(99, bool))
        index.remove(5)
        with pytest.raises(InvalidValueError, match="filter: expected ids, since those of the points are not 0"):
            index.query(POINTS, filter=np.ones(99, bool))


class TestChunks:
    @pytest.mark.parametrize("partition", PARTITIONS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, partition, value):
        bad = POINTS.copy()
        bad[57, 3] = value
        message = rf"X, chunk 2 \(its row 0 is row 50 of X\): expected finite .* received {value} in row 7, column 3"
        with pytest.raises(InvalidValueError, match=message):
            ShardedDCI(partition=partition).fit(chunks(bad))

    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_another_width_than_the_array_says(self, partition):
        X = da.concatenate([
            da.from_array(POINTS[:50], chunks=(25, -1)),
            da.from_delayed(__import__("dask").delayed(POINTS[:25, :3]), (25, 4), np.float32),
        ])  # fmt: skip
        with pytest.raises(InvalidValueError, match=r"chunk 2 .*expected shape \(25, 4\).*received \(25, 3\)"):
            ShardedDCI(partition=partition).fit(X)

    @pytest.mark.parametrize("partition", PARTITIONS)
    def test_unknown_sizes_are_computed(self, partition, same):
        X = chunks()
        with pytest.warns(UserWarning, match="X: its chunks have unknown sizes, which are computed now"):
            index = ShardedDCI(recall=1.0, partition=partition).fit(X[X[:, 0] > 0])
        same(index.query(POINTS), dci.exact(POINTS[POINTS[:, 0] > 0], POINTS))
        assert np.isnan(X[X[:, 0] > 0].shape[0])

    def test_unknown_sizes_of_different_widths(self):
        X = da.map_blocks(lambda x, block_info: x[:, : 4 - (block_info[0]["chunk-location"][0] == 3)], chunks(),
                          chunks=((np.nan,) * 4, (4,)), meta=POINTS[:0])  # fmt: skip
        with (
            pytest.warns(UserWarning, match="unknown sizes"),
            pytest.raises(InvalidValueError, match=r"X, chunk 3: expected shape \(25, 4\).*received \(25, 3\)"),
        ):
            ShardedDCI().fit(X)

    def test_a_failed_fit_leaves_the_index(self, index, same):
        before = index.query(POINTS)
        bad = POINTS.copy()
        bad[0] = np.nan
        with pytest.raises(InvalidValueError):
            index.fit(chunks(bad))
        same(index.query(POINTS), before)

    def test_an_error_of_a_chunk_is_raised(self):
        def fail(block):
            raise ZeroDivisionError("in a chunk")

        with pytest.raises(ZeroDivisionError, match="in a chunk"):
            ShardedDCI().fit(chunks().map_blocks(fail, meta=POINTS[:0]))


class TestChanges:
    def test_add(self, index):
        with pytest.raises(InvalidValueError, match=r"X: expected .*\(n, 4\), received .*\(100, 3\)"):
            index.add(POINTS[:, :3])
        with pytest.raises(InvalidValueError, match="ids: expected ids that are not in use, received 7"):
            index.add(POINTS[:2], ids=[7, 200])
        with pytest.raises(InvalidValueError, match="ids: expected different ids, received 200"):
            index.add(POINTS[:2], ids=[200, 200])
        with pytest.raises(InvalidValueError, match="X: expected finite"):
            index.add(POINTS[:2] * np.nan)
        assert len(index) == 100

    def test_remove(self, index):
        with pytest.raises(UnknownIdError, match="ids: expected ids of the index, received 100, 300"):
            index.remove([1, 100, 300])
        with pytest.raises(InvalidValueError, match="missing: expected one of"):
            index.remove([1], missing="no")
        assert len(index) == 100


class TestDirectories:
    @pytest.fixture
    def saved(self, index, tmp_path):
        index.save(tmp_path / "saved")
        return tmp_path / "saved"

    def shards(self, saved):
        return sorted(saved.glob("shard-*.dci"))

    def test_no_manifest(self, tmp_path):
        with pytest.raises(FileFormatError, match=r"manifest.json: expected a manifest of shards, found no such file"):
            ShardedDCI.load(tmp_path)

    def test_a_missing_shard(self, saved):
        name = self.shards(saved)[2]
        name.unlink()
        with pytest.raises(FileFormatError, match=f"expected shard 2 in {name.name}, found no such file"):
            ShardedDCI.load(saved)

    def test_swapped_shards(self, saved):
        one, two = self.shards(saved)[1:3]
        one.rename(saved / "aside")
        two.rename(one)
        (saved / "aside").rename(two)
        with pytest.raises(
            FileFormatError, match=r"expected shard ([12]) in shard-0000\1-.*, of fingerprint .* found another"
        ):
            ShardedDCI.load(saved)

    def test_a_damaged_shard(self, saved):
        name = self.shards(saved)[3]
        data = bytearray(name.read_bytes())
        data[-10] ^= 1
        name.write_bytes(data)
        with pytest.raises(FileFormatError, match=f"expected shard 3 in {name.name}, found damage: .*checksum"):
            ShardedDCI.load(saved)

    def test_what_is_shared_is_missing(self, saved):
        next(saved.glob("shared-*.dci")).unlink()
        with pytest.raises(FileFormatError, match="expected what all shards share in shared-"):
            ShardedDCI.load(saved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content.update(next_id=3), "checksum does not match"),
            (lambda content: content["shards"].pop(), "checksum does not match"),
            (lambda content: content.update(kind="else"), "expected kind 'dci.shards', received another"),
            (lambda content: content.update(version=2), "expected a version up to 1, received a newer one"),
            (lambda content: content.pop("version"), "expected a manifest of shards, received something else"),
        ],
    )
    def test_manifests(self, saved, change, message):
        path = saved / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(FileFormatError, match=message):
            ShardedDCI.load(saved)

    @pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff"])
    def test_no_json(self, saved, text):
        (saved / "manifest.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"manifest\.json: expected"):
            ShardedDCI.load(saved)

    def test_a_place_that_cannot_be_written(self, index, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            index.save(tmp_path / "file")


class TestClusters:
    def test_no_workers(self):
        options = {"n_workers": 0, "processes": False, "dashboard_address": ":0"}
        with (
            distributed.LocalCluster(**options) as local,
            distributed.Client(local, set_as_default=False) as client,
            pytest.raises(InvalidValueError, match="client: expected at least one worker, found none at"),
        ):
            ShardedDCI(client=client).fit(chunks())

    def test_another_version(self, client, index, tmp_path):
        index.save(tmp_path)

        def pretend(version):
            from dci._shards import tasks

            before, tasks.__version__ = tasks.__version__, version
            return before

        address = next(iter(client.nthreads()))
        (before,) = client.run(pretend, "0.0.7", workers=[address]).values()
        try:
            for call in (
                lambda: ShardedDCI(client=client).fit(chunks()),
                lambda: ShardedDCI.load(tmp_path, client=client),
            ):
                with pytest.raises(DCIError, match=rf"expected dci {before} on every worker, {address} has 0\.0\.7"):
                    call()
        finally:
            client.run(pretend, before)

    def test_a_worker_of_another_version_that_comes_later(self):
        from dci._shards import tasks

        with pytest.raises(DCIError, match=r"dci: expected version 9\.9, as the client has, on every worker, found"):
            tasks.check_version("9.9")

    def test_directories_that_are_not_shared(self, client, tmp_path, monkeypatch):
        index = ShardedDCI(recall=1.0, client=client).fit(chunks())
        monkeypatch.setattr("dci._shards.files.Directory.has", lambda self, entry: False)
        with pytest.raises(dci.StorageError, match="expected shard 0 in .*all workers share"):
            index.save(tmp_path)

    def test_asynchronous(self, client):
        address = client.scheduler.address

        async def fit():
            options = {"asynchronous": True, "set_as_default": False}
            async with distributed.Client(address, **options) as other:
                ShardedDCI(client=other).fit(chunks())

        with pytest.raises(InvalidValueError, match="client: expected a synchronous one"):
            asyncio.run(fit())


@pytest.mark.parametrize("missing", ["dask", "distributed"])
def test_the_extra_is_named(missing):
    script = f"import sys; sys.modules['{missing}'] = None; import dci.dask"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 1
    assert "dci.dask needs Dask's array and distributed: pip install 'dci-attention[dask]'" in run.stderr


def test_dci_imports_no_dask():
    script = "import sys, dci; print(sorted({'dask', 'distributed', 'fsspec'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=os.environ)
    assert run.stdout.strip() == "[]"
