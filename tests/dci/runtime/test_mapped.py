"""Mapped indexes whose points are larger than what a process may hold of them."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

import dci
from dci._geometry.quantization import stored
from dci._runtime import mapped
from dci._search import read_rows

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/smaps")


@pytest.fixture(scope="module")
def saved(large_manifold, tmp_path_factory):
    """Return the path of a ranked index, and the index."""
    path = tmp_path_factory.mktemp("mapped") / "index.dci"
    index = dci.DCI(random_state=0, num_threads=2, n_simple=8).fit(large_manifold.points)
    assert index.stats_.method == "ranked"
    index.save(path)
    return path, index


def resident(path):
    """Bytes of a file's pages that this process holds."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("limit", [1 << 20, 1 << 16], ids=["1 MB", "64 kB"])
def test_answers_are_those_of_an_index_in_memory(saved, large_manifold, limit, monkeypatch):
    monkeypatch.setattr(mapped, "_RESIDENT", limit)
    path, index = saved
    X, Q = large_manifold
    other = dci.load(path, mmap=True)
    assert mapped.most_bytes(other._version.points.rows, 2) == limit // 8
    assert mapped.most_bytes(index._version.points.rows, 2) is None
    calls = {
        "batch": lambda index: index.query(Q, 10),
        "one": lambda index: index.query(Q[0], 10),
        "budget": lambda index: index.query(Q, 10, max_candidates=3000),
        "all candidates": lambda index: index.query(Q[:2], 10, max_candidates=1.0),
        "exact": lambda index: index.query(Q, 10, recall=1.0),
        "exact, one": lambda index: index.query(Q[0], 3, recall=1.0),
        "mask": lambda index: index.query(Q, 10, filter=np.arange(len(X)) % 2 == 0),
        "ids": lambda index: index.query(Q, 10, filter=np.arange(0, len(X), 50)),
        "by id": lambda index: index.query_by_id(np.arange(30), 5),
    }
    for name, call in calls.items():
        for found, expected in zip(call(other), call(index), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=name)
    other.add(Q)
    assert len(other) == len(X) + len(Q)
    np.testing.assert_array_equal(other.query(Q, 1, recall=1.0).distances, 0.0)


@pytest.mark.parametrize("store", ["float16", "int8"])
def test_answers_from_codes_in_a_file(store, large_manifold, tmp_path, monkeypatch):
    X, Q = large_manifold
    index = dci.DCI(store=store, random_state=0, num_threads=2, n_simple=8).fit(X)
    index.save(tmp_path / "index")
    monkeypatch.setattr(mapped, "_RESIDENT", 1 << 16)
    other = dci.load(tmp_path / "index", mmap=True)
    assert mapped.file_of(stored(other._version.points.rows))
    for options in ({}, {"max_candidates": 3000}, {"recall": 1.0}, {"filter": np.arange(0, len(X), 50)}):
        for queries in (Q, Q[0]):
            for found, expected in zip(
                other.query(queries, 10, **options), index.query(queries, 10, **options), strict=True
            ):
                np.testing.assert_array_equal(found, expected, err_msg=str(options))


@LINUX
def test_pages_are_given_back(saved, large_manifold, monkeypatch):
    path, index = saved
    Q, points = large_manifold.queries, large_manifold.points.nbytes
    held = []
    for limit in (1 << 30, 1 << 20):
        monkeypatch.setattr(mapped, "_RESIDENT", limit)
        other = dci.load(path, mmap=True)
        for recall in (0.95, 1.0):
            other.query(Q, 10, recall=recall)
            held.append(resident(path))
        del other
        gc.collect()
    structure = index.nbytes - points
    assert min(held[:2]) > 0.5 * points  # that much is looked at
    assert max(held[2:]) < structure + (1 << 20) + (1 << 19)
    assert resident(path) == 0


@LINUX
def test_single_queries_read_their_candidates(saved, large_manifold, monkeypatch):
    path, index = saved
    monkeypatch.setattr(mapped, "_RESIDENT", 1 << 20)
    other = dci.load(path, mmap=True)
    most = 0
    for query in large_manifold.queries:
        other.query(query, 10, max_candidates=8, num_threads=1)
        most = max(most, resident(path))
    assert most < index.nbytes - large_manifold.points.nbytes + (1 << 16)


def test_a_file_that_was_cut_short_is_an_error_not_a_crash(saved, large_manifold, tmp_path, monkeypatch):
    path = tmp_path / "cut.dci"
    path.write_bytes(saved[0].read_bytes())
    monkeypatch.setattr(mapped, "_RESIDENT", 1 << 20)
    rows = dci.load(path, mmap=True)._version.points.rows
    file, start = mapped.file_of(rows)
    read = read_rows.FileRows(rows, file, start, "l2", 1.0).read
    some = np.array([5, 0, len(rows) - 1], np.int32)
    np.testing.assert_array_equal(read(some), large_manifold.points[some])
    assert read(some[:0]).shape == (0, rows.shape[1])
    with path.open("r+b") as cut:
        cut.truncate(start + 1000)
    np.testing.assert_array_equal(read(some[1:2]), large_manifold.points[:1])
    with pytest.raises(OSError, match=r"Input/output error"):
        read(some)


def test_only_what_is_mapped_is_scattered(saved, tmp_path):
    for array in (np.zeros((9, 4), np.float32), np.zeros((0, 4), np.float32)[:0], np.frombuffer(b"12345678", np.uint8)):
        mapped.scatter(array)
        mapped.looked_at(array, 1 << 40)
        assert mapped.most_bytes(array, 1) is None
        assert mapped.file_of(array) is None
        with mapped.in_order(array):
            pass
    small = dci.DCI().fit(np.ones((3, 2)))  # less than a page
    small.save(tmp_path / "small")
    rows = dci.load(tmp_path / "small", mmap=True)._version.points.rows
    mapped.scatter(rows)
    assert mapped.most_bytes(rows, 1) is None


@LINUX
def test_points_alone_are_scattered(saved):
    path, index = saved
    other = dci.load(path, mmap=True)
    found = mapped._map_of(other._version.points.rows)
    start, length = found.scattered
    assert length == other._version.points.rows.nbytes
    rows = np.frombuffer(found, np.uint8)[start : start + length]
    points = index._version.points.rows.reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(rows, points)
