"""Readers see one version of an index, whatever a writer does meanwhile."""

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dci
from tests.processes import succeed

DIM, BATCH = 8, 40


@pytest.fixture(autouse=True)
def switch_often():
    """Let Python's threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


def rows_of(mark, count=BATCH, seed=0):
    """Points whose first coordinate tells their batch; the others are noise far smaller than a step of it."""
    rows = 1e-3 * np.random.default_rng([seed, mark]).standard_normal((count, DIM))
    rows[:, 0] += mark
    return rows.astype(np.float32)


def while_writing(write, read, n_readers=3):
    """Run `read` on threads until `write` is done, which is to take some reads at least."""
    done = threading.Event()
    reads = [0] * n_readers

    def keep_reading(i):
        while not done.is_set() or reads[i] < 3:
            read()
            reads[i] += 1

    with ThreadPoolExecutor(n_readers) as pool:
        readers = [pool.submit(keep_reading, i) for i in range(n_readers)]
        try:
            write(lambda: any(reader.done() for reader in readers))
        finally:
            done.set()
        for reader in readers:
            reader.result(timeout=60)


@pytest.mark.parametrize("params", [{}, {"n_simple": 4}, {"n_simple": 4, "n_levels": 1}])
def test_all_of_a_batch_or_none(params):
    """Each batch is far from the others, so that its points are the nearest ones to a query in their midst."""
    index = dci.DCI(random_state=0, recall=1.0, num_threads=1, **params).fit(rows_of(0, 200))
    marks = list(range(1, 50))
    Q = np.array([rows_of(mark, 1, seed=1)[0] for mark in marks])

    def read():
        found = index.query(Q, BATCH, recall=1.0)
        near = (found.distances < 0.5).sum(1)
        assert set(near.tolist()) <= {0, BATCH}, "a part of a batch"
        latest = np.flatnonzero(near)
        assert np.array_equal(latest, np.arange(len(latest))), "a batch without the one before"
        full = index.query(Q[:4], BATCH, max_visits=1.0, max_candidates=1.0)
        assert set((full.distances < 0.5).sum(1).tolist()) <= {0, BATCH}
        offsets = index.query_radius(Q[:10], 0.5).offsets
        assert set(np.diff(offsets).tolist()) <= {0, BATCH}
        ids = index.ids
        assert len(ids) % BATCH == 0
        assert np.array_equal(np.unique(ids), ids)

    def write(stop):
        for mark in marks:
            if stop():
                break
            index.add(rows_of(mark))

    while_writing(write, read)
    assert len(index) == 200 + BATCH * len(marks)


@pytest.mark.parametrize("params", [{}, {"n_simple": 4}])
def test_updates_move_all_points_at_once(params):
    """The same ids at one place or at another, and none while they are removed."""
    index = dci.DCI(random_state=0, num_threads=1, **params).fit(rows_of(0, 600))
    ids = index.add(rows_of(1))
    Q = np.array([rows_of(1, 1)[0], rows_of(2, 1)[0]])

    def read():
        found = index.query(Q, BATCH, recall=1.0)
        near = found.distances < 0.5
        counts = tuple(near.sum(1).tolist())
        assert counts in {(BATCH, 0), (0, BATCH), (0, 0)}, counts
        for i in range(2):
            if counts[i]:
                assert np.array_equal(np.sort(found.indices[i]), ids)
        try:
            own = index.query_by_id(ids, BATCH - 1)
        except KeyError as error:
            assert "received 600, 601, 602, 603, 604 and 35 more" in str(error)  # noqa: PT017 - all of them or none
        else:
            assert (own.distances < 0.5).all()
            assert np.isin(own.indices, ids).all()
        with contextlib.suppress(KeyError):
            assert len(np.unique(np.round(index.get(ids)[:, 0]))) == 1

    def write(stop):
        for round_ in range(60):
            if stop():
                break
            index.update(ids, rows_of(2 - round_ % 2, seed=round_))
            if round_ % 10 == 9:
                index.remove(ids)
                index.add(rows_of(1, seed=round_), ids=ids)

    while_writing(write, read)


def test_filters_go_with_the_version():
    """A mask of another version's length is refused, ids of it are found or refused; never others' rows."""
    index = dci.DCI(random_state=0, n_simple=4, num_threads=1).fit(rows_of(0, 400))
    even = np.arange(0, 400, 2)
    Q = rows_of(0, 5, seed=3)

    def read():
        found = index.query(Q, 20, filter=even, recall=1.0)
        assert np.isin(found.indices, even).all()
        ids = index.ids
        try:
            found = index.query(Q, 20, filter=ids < 400, recall=1.0)
        except ValueError as error:
            assert "expected a bool mask" in str(error)  # noqa: PT017
        else:
            assert (found.indices < 400).all()

    def write(stop):
        for mark in range(40):
            if stop():
                break
            new = index.add(rows_of(mark % 3, 30))
            if mark % 2:
                index.remove(new[::2])

    while_writing(write, read)


@pytest.mark.parametrize("params", [{}, {"n_simple": 4}])
def test_a_refit_swaps_at_once(params):
    """Points of one fit or of the other, with the additions between them."""
    index = dci.DCI(random_state=0, num_threads=1, **params).fit(rows_of(0, 500))
    Q = np.array([rows_of(mark, 1, seed=1)[0] for mark in (0, 10, 11)])
    allowed = {(60, 0, 0), (60, BATCH, 0), (0, 0, 60), (0, BATCH, 60)}

    def read():
        found = index.query(Q, 60, recall=1.0)
        assert tuple((found.distances < 0.5).sum(1).tolist()) in allowed

    def write(stop):
        for round_ in range(15):
            if stop():
                break
            index.fit(rows_of(0 if round_ % 2 else 11, 500))
            index.add(rows_of(10))

    while_writing(write, read)


def test_many_writers():
    """Each call is one change; no point is lost, no id is given twice."""
    index = dci.DCI(random_state=0, n_simple=4, num_threads=1).fit(rows_of(0, 100))

    def write(mark):
        given = []
        for round_ in range(12):
            ids = index.add(rows_of(mark, 20, seed=round_))
            np.testing.assert_array_equal(index.get(ids), rows_of(mark, 20, seed=round_))
            index.update(ids[:5], rows_of(mark, 5, seed=99))
            assert index.remove(ids[5:10]) == 5
            given.append(ids)
        return np.concatenate(given)

    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(write, range(1, 5)))
    every = np.concatenate(given)
    assert len(np.unique(every)) == len(every) == 4 * 12 * 20
    assert len(index) == 100 + 4 * 12 * 15
    for mark, ids in enumerate(given, 1):
        kept = ids[np.arange(len(ids)) % 20 // 5 != 1]
        assert (np.round(index.get(kept)[:, 0]) == mark).all()


def test_pickles_and_files_hold_one_version(tmp_path):
    index = dci.DCI(random_state=0, n_simple=4, num_threads=1).fit(rows_of(0, 400))

    def read():
        path = tmp_path / f"{threading.get_ident()}.dci"
        index.save(path)
        other = dci.load(path)
        assert (len(other) - 400) % BATCH == 0
        rows = other.get(other.ids)
        assert (np.bincount(np.round(rows[400:, 0]).astype(int), minlength=41)[1:] % BATCH == 0).all()

    def write(stop):
        for mark in range(1, 40):
            if stop():
                break
            index.add(rows_of(mark))

    while_writing(write, read, n_readers=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_adds():
    """The child has one version, and can change it although the thread that was at it does not exist there."""
    succeed("""
        import os, threading, time
        import numpy as np
        import dci

        index = dci.DCI(n_simple=4, random_state=0, num_threads=2).fit(np.zeros((400, 6)) + np.arange(400)[:, None])
        stop = threading.Event()

        def write():
            mark = 1000
            while not stop.is_set():
                index.add(np.full((50, 6), mark))
                if len(index) > 6000:
                    index.remove(index.ids[400:])
                mark += 1

        writer = threading.Thread(target=write)
        writer.start()
        children = []
        for _ in range(25):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    n = len(index)
                    assert (n - 400) % 50 == 0
                    marks, counts = np.unique(index.get(index.ids)[400:, 0], return_counts=True)
                    assert (counts % 50 == 0).all()
                    new = index.add(np.full((700, 6), -7.0))
                    assert len(index) == n + 700
                    found = index.query(np.full((3, 6), -7.0), 10, recall=1.0)
                    assert (found.distances == 0).all() and np.isin(found.indices, new).all()
                    index.update(new, np.full((700, 6), -9.0))
                    assert index.remove(new) == 700
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
            time.sleep(0.01)
        codes = [os.waitpid(child, 0)[1] for child in children]
        stop.set()
        writer.join()
        assert codes == [0] * 25, codes
    """)
