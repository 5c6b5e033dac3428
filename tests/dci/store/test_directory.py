"""A store: a base, its journal, and the switch to the next, with every interruption of it."""

import os
import threading

import numpy as np
import pytest

from dci._store import container, directory
from dci._store.directory import Store, is_store
from dci.errors import FileFormatError, InvalidValueError, StorageError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def write_base(count):
    return lambda file: container.write(file, {}, {"applied": np.arange(count)})


def contents(store):
    """Number of operations in the base, and the codes of those after it."""
    applied = container.read(store.base)[1]["applied"]
    return len(applied), [record.operation for record in store.replay()]


def names(generation):
    return sorted(["CURRENT", "LOCK", f"base-{generation}.dci", f"journal-{generation}.log"])


def filled(path):
    store = Store.create(path, write_base(0))
    for code in (5, 6, 7):
        store.append(code, {}, {"ids": np.arange(code)}, sync=True)
    return store


class TestUse:
    def test_operations_outlive_the_writer(self, path):
        assert not is_store(path)
        with filled(path) as store:
            assert (store.generation, store.next_sequence) == (0, 3)
            assert contents(store) == (0, [5, 6, 7])
        assert is_store(path)
        with Store.open(path) as store:
            assert contents(store) == (0, [5, 6, 7])
            assert store.append(8, sync=False) == 3
        with Store.open(path) as store:
            assert contents(store) == (0, [5, 6, 7, 8])
            assert store.cut is None
        assert sorted(os.listdir(path)) == names(0)

    def test_compaction_switches_base(self, path):
        with filled(path) as store:
            before = store.journal_nbytes
            mapped = container.read(store.base, mmap=True)[1]["applied"]
            store.compact(write_base(3))
            assert store.journal_nbytes < before
            assert (store.generation, store.next_sequence) == (1, 3)
            assert contents(store) == (3, [])
            assert len(mapped) == 0
            assert store.append(8, sync=True) == 3
            assert sorted(os.listdir(path)) == names(1)
        with Store.open(path) as store:
            assert contents(store) == (3, [8])

    def test_operations_after_the_position_are_carried_over(self, path):
        with filled(path) as store:
            position = store.position()
            store.append(8, {"a": 1}, {"ids": np.arange(3)}, sync=False)
            store.compact(write_base(position.sequence), position)
            assert contents(store) == (3, [8])
            with pytest.raises(InvalidValueError, match="position: expected one of generation 1, received 0"):
                store.compact(write_base(3), position)
            assert contents(store) == (3, [8])

    def test_appending_while_a_base_is_written(self, path):
        with filled(path) as store:

            def slowly(file):
                thread = threading.Thread(target=lambda: store.append(9, sync=True))
                thread.start()
                thread.join(10)
                assert not thread.is_alive()
                write_base(3)(file)

            store.compact(slowly)
            assert contents(store) == (3, [9])

    def test_an_existing_empty_directory(self, path):
        path.mkdir()
        filled(path).close()
        assert sorted(os.listdir(path)) == names(0)


class TestFailures:
    def test_a_base_that_cannot_be_written(self, path):
        def fail(file):
            write_base(3)(file)
            raise ZeroDivisionError

        with filled(path) as store:
            with pytest.raises(ZeroDivisionError):
                store.compact(fail)
            with pytest.raises(FileNotFoundError, match="base-1.dci"):
                store.compact(lambda file: None)
            assert sorted(os.listdir(path)) == names(0)
            store.append(8, sync=True)
            assert contents(store) == (0, [5, 6, 7, 8])

    def test_a_pointer_that_may_have_been_replaced(self, path, monkeypatch):
        """The directory cannot be synced after CURRENT was replaced: both generations stay until the next opening."""
        real = directory._write_pointer

        def fail(*args):
            real(*args)
            raise OSError("Input/output error")

        with filled(path) as store:
            monkeypatch.setattr(directory, "_write_pointer", fail)
            with pytest.raises(OSError, match="Input/output"):
                store.compact(write_base(3))
            for use in (lambda: store.append(8, sync=True), store.sync, lambda: store.compact(write_base(3))):
                with pytest.raises(StorageError, match="switching to a new base failed: open the store again"):
                    use()
            assert set(os.listdir(path)) == {*names(0), *names(1)}
        monkeypatch.undo()
        with Store.open(path) as store:
            assert contents(store) == (3, [])
            assert sorted(os.listdir(path)) == names(1)

    def test_an_interrupt_after_the_switch_does_not_remove_the_new_base(self, path, monkeypatch):
        from dci._store.journal import Journal

        real = Journal.close

        def interrupt(journal):
            real(journal)
            raise KeyboardInterrupt

        with filled(path) as store:
            monkeypatch.setattr(Journal, "close", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.compact(write_base(3))
            monkeypatch.undo()
            assert contents(store) == (3, [])
            store.append(8, sync=True)
        with Store.open(path) as store:
            assert contents(store) == (3, [8])
            assert sorted(os.listdir(path)) == names(1)

    def test_an_interrupted_creation_can_be_repeated(self, path):
        with pytest.raises(ZeroDivisionError):
            Store.create(path, lambda file: 1 / 0)
        assert not is_store(path)
        with pytest.raises(FileFormatError, match="received one whose creation was interrupted"):
            Store.open(path)
        filled(path).close()
        assert sorted(os.listdir(path)) == names(0)

    def test_leftovers_are_removed_and_other_files_are_not(self, path):
        filled(path).close()
        for name in ("base-1.dci", "journal-1.log", ".dci-0123456789abcdef.tmp", "base-01.dci", "notes.txt"):
            (path / name).write_bytes(b"")
        Store.open(path).close()
        assert sorted(os.listdir(path)) == sorted([*names(0), "base-01.dci", "notes.txt"])


class TestRefusals:
    def test_a_second_writer(self, path):
        with filled(path):
            for attempt in (lambda: Store.open(path), lambda: Store.create(path, write_base(0))):
                with pytest.raises(StorageError, match=f"only writer, but process {os.getpid()} has it open"):
                    attempt()
        Store.open(path).close()

    def test_a_closed_store(self, path):
        store = filled(path)
        store.close()
        store.close()
        for use in (lambda: store.append(1, sync=True), lambda: store.compact(write_base(3)), store.sync):
            with pytest.raises(StorageError, match="expected an open store, but it is closed"):
                use()

    def test_what_is_no_store(self, path):
        with pytest.raises(FileNotFoundError, match="store"):
            Store.open(path)
        path.mkdir()
        with pytest.raises(FileFormatError, match="expected a file CURRENT"):
            Store.open(path)
        assert os.listdir(path) == []
        (path / "base-7.dci").write_bytes(b"")
        with pytest.raises(InvalidValueError, match="expected an empty directory, received 1 entries, .*'base-7.dci'"):
            Store.create(path, write_base(0))

    def test_what_is_one_already(self, path):
        filled(path).close()
        with pytest.raises(InvalidValueError, match="expected no store there, received one"):
            Store.create(path, write_base(0))
        with Store.open(path) as store:
            assert contents(store) == (0, [5, 6, 7])

    def test_another_base_in_its_place(self, path):
        filled(path).close()
        write_base(2)(path / "base-0.dci")
        with pytest.raises(FileFormatError, match="journal-0.log: expected the journal of generation 0 and base"):
            Store.open(path)

    @pytest.mark.parametrize("missing", ["base-0.dci", "journal-0.log"])
    def test_a_missing_file(self, path, missing):
        filled(path).close()
        os.unlink(path / missing)
        (path / "base-1.dci").write_bytes(b"perhaps the last copy")
        with pytest.raises(FileNotFoundError, match=missing):
            Store.open(path)
        assert (path / "base-1.dci").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "expected a line 'dci-store <version> <generation> <checksum>', received ''"),
            (b"dci-store 1 0 00000000\n", "expected a line"),
            (b"\xff" * 1000, "expected a line"),
        ],
    )
    def test_a_damaged_pointer(self, path, text, message):
        filled(path).close()
        (path / "CURRENT").write_bytes(text)
        with pytest.raises(FileFormatError, match=f"CURRENT: {message}"):
            Store.open(path)

    def test_a_newer_pointer(self, path, monkeypatch):
        monkeypatch.setattr(directory, "VERSION", 2)
        filled(path).close()
        monkeypatch.undo()
        with pytest.raises(FileFormatError, match="expected version 1 of the directory's format, received version 2"):
            Store.open(path)
