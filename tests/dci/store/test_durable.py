"""Indexes in directories: what a call has returned from is there when they are opened again."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import dci
from dci._store.journal import Journal
from tests.dci.store.indexes import points
from tests.dci.store.test_index_files import assert_same
from tests.processes import succeed

KILL = Path(__file__).with_name("kill_index.py")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index"


def create(path, **params):
    return dci.open(path, sync=False, **{"random_state": 0, "n_simple": 3, "num_threads": 1} | params)


def journal_of(path):
    (log,) = path.glob("journal-*.log")
    return log


def assert_reopens(index, path):
    memory = pickle.loads(pickle.dumps(index))
    assert type(memory) is dci.DCI
    index.close()
    with dci.open(path) as again:
        assert_same(memory, pickle.loads(pickle.dumps(again)))


@pytest.mark.parametrize("params", [{}, {"ranking": "max"}, {"metric": "ip", "random_state": np.random.default_rng(3)}])
def test_reopening_gives_the_same_index(path, params):
    index = create(path, **params)
    index.fit(points(600))
    index.remove([3, 4])
    index.add(points(270, 1))
    for row in points(30, 2):
        index.add(row[np.newaxis])
    index.update([10, 12], points(2, 3))
    index.add(points(3, 4), ids=[-5, 10**15, 10**14])
    index.remove([11, 10**6], missing="ignore")
    assert_reopens(index, path)


def test_points_that_came_one_by_one_are_put_in_their_places_as_before(path):
    index = create(path)
    for row in points(900):
        index.add(row[np.newaxis])
    assert index.stats_.method == "ranked"
    assert index._version.points.ids is None
    expected = index._version.n_indexed, index._version.measured
    index.close()
    with dci.open(path) as again:
        assert (again._version.n_indexed, again._version.measured) == expected
        assert again._version.points.ids is None


def test_a_new_fit_replaces_all(path):
    with create(path) as index:
        index.fit(points(600))
        index.add(points(5, 1))
        index.set_params(metric="cosine", directions=np.eye(4, dtype=np.float32), n_simple=4, n_levels=1)
        index.fit(points(300, 2, 4), queries=points(20, 3, 4))
        index.remove([0])
        assert_reopens(index, path)
    with dci.open(path) as index:
        assert index.stats_.metric == "cosine"
        assert np.array_equal(index.directions, np.eye(4))


def test_many_single_additions_are_replayed_together(path):
    with create(path, recall=1.0) as index:
        for row in points(20_000):
            index.add(row[np.newaxis])
    start = time.process_time()
    with (
        mock.patch.object(dci.DurableDCI, "add", autospec=True, side_effect=dci.DCI.add) as add,
        dci.open(path) as index,
    ):
        assert len(index) == 20_000
    assert add.call_count < 100
    assert time.process_time() - start < 10  # 2 on a quiet machine


# ---- crashes ----


def run_kill(rounds):
    done = subprocess.run(
        [sys.executable, KILL, str(rounds)], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{rounds} killed" in done.stdout


def test_killed_processes_keep_what_returned():
    run_kill(12)


@pytest.mark.slow
def test_many_killed_processes_keep_what_returned():
    run_kill(200)


def test_a_torn_last_change_is_cut_with_a_warning(path):
    with create(path) as index:
        index.fit(points(50))
        index.add(points(5, 1))
        size = journal_of(path).stat().st_size
        index.add(points(5, 2))
    with open(journal_of(path), "r+b") as file:
        file.truncate(size + 30)
    with pytest.warns(UserWarning, match="cut 30 bytes off its end"):
        index = dci.open(path)
    assert len(index) == 55
    index.add(points(1, 3))
    index.close()
    with dci.open(path) as index:
        assert len(index) == 56


def test_a_change_that_is_not_written_is_not_made(path):
    with create(path) as index:
        index.fit(points(50))
        with mock.patch.object(os, "writev", side_effect=OSError(28, "No space left on device")):
            for change in (lambda: index.add(points(3, 1)), lambda: index.remove([1]), lambda: index.fit(points(9))):
                with pytest.raises(OSError, match="No space left"):
                    change()
        assert len(index) == 50
        index.add(points(2, 1))
        assert_reopens(index, path)


def test_an_interrupt_leaves_memory_and_journal_alike(path):
    append = Journal.append

    def interrupted(*args, **kwargs):
        append(*args, **kwargs)
        raise KeyboardInterrupt

    with create(path) as index:
        index.fit(points(50))
        with mock.patch.object(Journal, "append", interrupted):
            with pytest.raises(KeyboardInterrupt):
                index.add(points(3, 1))
            with pytest.raises(KeyboardInterrupt):
                index.remove([7])
        assert len(index) == 52
        index.add(points(2, 2))
        assert_reopens(index, path)


def test_damage_in_the_middle_is_refused(path):
    with create(path) as index:
        index.fit(points(50))
        index.add(points(5, 1))
    data = bytearray(journal_of(path).read_bytes())
    data[300] ^= 1
    journal_of(path).write_bytes(data)
    with pytest.raises(dci.FileFormatError, match="damaged"):
        dci.open(path)
    assert len(journal_of(path).read_bytes()) == len(data)


@pytest.mark.parametrize(
    ("operation", "meta", "arrays"),
    [
        (9, {}, {}),
        (0, {}, {}),
        (1, {}, {"points": np.ones((3, 2), np.float32)}),
        (1, {"settings": 3}, {"points": np.ones((3, 2), np.float32)}),
        (1, {"settings": {"metric": "l3"}}, {"points": np.ones((3, 2), np.float32)}),
        (2, {}, {"ids": np.arange(2)}),
        (2, {}, {"ids": np.array([1, 2]), "points": np.ones((2, 6), np.float32)}),
        (2, {}, {"ids": np.array([100]), "points": np.ones((2, 6), np.float32)}),
        (2, {}, {"ids": np.array([100]), "points": np.ones((), np.float32)}),
        (2, {}, {"ids": np.array([100]), "points": np.full((1, 6), np.nan, np.float32)}),
        (3, {}, {"ids": np.array([100]), "points": np.ones((1, 6), np.float32)}),
        (4, {}, {"ids": np.array([100])}),
        (4, {}, {"ids": np.array([0.5], np.float32)}),
    ],
)
def test_a_journal_of_other_changes_is_refused(path, operation, meta, arrays):
    with create(path) as index:
        index.fit(points(50))
        index._directory.append(operation, meta, arrays, sync=False)
    with pytest.raises(dci.FileFormatError, match="journal: expected"):
        dci.open(path)
    with pytest.raises(dci.FileFormatError, match="journal: expected"):  # and the directory was given back
        dci.open(path)


# ---- saving ----


def test_saving_while_another_thread_adds(path):
    X = points(1500)
    with create(path) as index:
        index.fit(X[:500])
        failed = []

        def add():
            try:
                for row in X[500:]:
                    index.add(row[np.newaxis])
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=add)
        thread.start()
        saved = 0
        while thread.is_alive():
            index.save()
            saved += 1
        thread.join()
        assert not failed
        assert saved
        expected = index.ids
        index.save()
        assert journal_of(path).stat().st_size == 64
    with dci.open(path) as index:
        assert np.array_equal(index.ids, expected)
        assert np.array_equal(index.get(expected), X)
    assert sorted(p.suffix for p in path.iterdir()) == ["", "", ".dci", ".log"]


def test_saving_with_a_path_writes_an_ordinary_file(path, tmp_path):
    with create(path) as index:
        index.fit(points(100))
        index.save(tmp_path / "file.dci")
        assert_same(pickle.loads(pickle.dumps(index)), dci.load(tmp_path / "file.dci"))


def test_a_failed_save_leaves_the_index_in_use(path):
    with create(path) as index:
        index.fit(points(100))
        with (
            mock.patch.object(os, "writev", side_effect=OSError(28, "No space left on device")),
            pytest.raises(OSError, match="No space left"),
        ):
            index.save()
        index.add(points(3, 1))
        assert_reopens(index, path)


# ---- who may open ----


def test_a_second_process_is_refused(path):
    with create(path) as index:
        index.fit(points(20))
        script = f"""
            import dci
            try:
                dci.open({str(path)!r})
            except dci.StorageError as error:
                print(error)
        """
        assert f"process {os.getpid()}" in succeed(script)
        with pytest.raises(dci.StorageError):
            dci.open(path)
    assert succeed(f"import dci\nprint(len(dci.open({str(path)!r})))") == "20\n"


def test_parameters_are_for_new_ones(path, tmp_path):
    create(path).close()
    with pytest.raises(dci.InvalidValueError, match="params: expected none for an index that exists, received"):
        dci.open(path, recall=0.9)
    with pytest.raises(dci.InvalidValueError, match="recall"):
        dci.open(tmp_path / "other", recall=7)
    assert not (tmp_path / "other").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    with pytest.raises(dci.InvalidValueError, match="expected an empty directory"):
        dci.open(tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        dci.open(tmp_path / "file")


def test_closed_ones_answer_but_do_not_change(path):
    index = create(path)
    index.fit(points(30))
    index.close()
    index.close()
    assert index.query(points(2), 1).indices.shape == (2, 1)
    for change in (lambda: index.add(points(1)), lambda: index.remove([0]), index.save):
        with pytest.raises(dci.StorageError, match="closed"):
            change()
    assert len(index) == 30


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copies_are_in_memory(path, copied):
    with create(path) as index:
        index.fit(points(30))
        other = copied(index)
        assert type(other) is dci.DCI
        other.add(points(5))
        assert len(index) == 30
