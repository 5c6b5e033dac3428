"""The journal: what is appended is replayed, a torn end is cut off, and damage before it is told."""

import errno
import os
import struct
import threading
import warnings

import numpy as np
import pytest

from dci._store import files, journal, layout, records
from dci._store.journal import Journal, create_journal
from dci._store.records import Operation
from dci.errors import DCIError, FileFormatError, InvalidTypeError, InvalidValueError, StorageError
from tests.dci.store.mutate import BASE, equal, equal_records, sample, sample_journal, seal_record
from tests.processes import succeed

X = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.arange(4)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal.log"
    create_journal(path, 3, BASE, 10)
    return path


def replay(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Journal(path, 3, BASE) as opened:
            return list(opened.replay())


class TestAppend:
    def test_records_come_back_in_order(self, path):
        with Journal(path, 3, BASE) as opened:
            assert (opened.first_sequence, opened.next_sequence) == (10, 10)
            assert opened.append(Operation.ADD, None, {"ids": IDS, "X": X}, sync=True) == 10
            assert opened.append(Operation.REMOVE, {"why": "old"}, {"ids": IDS[:1]}, sync=False) == 11
            assert opened.append(2**32 - 1, sync=False) == 12
            assert [record.sequence for record in opened.replay()] == [10, 11, 12]
        found = replay(path)
        assert [record[:3] for record in found] == [(10, 2, {}), (11, 4, {"why": "old"}), (12, 2**32 - 1, {})]
        assert equal(({}, found[0].arrays), ({}, {"ids": IDS, "X": X}))
        assert equal(({}, found[1].arrays), ({}, {"ids": IDS[:1]}))
        assert not found[0].arrays["X"].flags.writeable
        with Journal(path, 3, BASE) as opened:
            assert opened.cut is None
            assert opened.append(1, sync=True) == 13
        assert len(replay(path)) == 4

    def test_every_dtype_shape_and_memory_order(self, path):
        arrays = {f"a{i}": array for i, array in enumerate(sample()[1].values())}
        arrays |= {"F": np.asfortranarray(X), "steps": X[::2, ::-1], "big": X.astype(">f4")}
        with Journal(path, 3, BASE) as opened:
            opened.append(1, {}, arrays, sync=False)
        found = replay(path)[0].arrays
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype.str in layout.DTYPES
            assert found[name].flags.aligned

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((-1,), InvalidValueError, r"operation: expected an int in \[0, 2\^32\), received -1"),
            ((1, {"a": {1}}), InvalidTypeError, "meta: expected what JSON can hold"),
            ((1, {}, {"a": np.zeros(3)}), InvalidTypeError, "a: expected a dtype of"),
            ((1, {}, {"a" * 16: X}), InvalidValueError, "expected 1 to 15"),
            ((1, {}, {f"a{i}": X for i in range(65)}), InvalidValueError, "arrays: expected at most 64, received 65"),
        ],
    )
    def test_what_cannot_be_stored(self, path, arguments, error, message):
        with Journal(path, 3, BASE) as opened:
            with pytest.raises(error, match=message):
                opened.append(*arguments, sync=True)
            assert opened.append(1, sync=True) == 10

    def test_from_many_threads(self, path):
        with Journal(path, 3, BASE) as opened:

            def append(thread):
                for _ in range(50):
                    opened.append(thread, {}, {"ids": np.full(thread, thread)}, sync=False)

            threads = [threading.Thread(target=append, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        found = replay(path)
        assert [record.sequence for record in found] == list(range(10, 210))
        assert all((record.arrays["ids"] == record.operation).all() for record in found)


class TestFailedWrites:
    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    @pytest.mark.parametrize("written", [0, 1, 50])
    def test_the_journal_is_as_it_was(self, path, monkeypatch, written, error):
        real = os.writev
        with Journal(path, 3, BASE) as opened:
            opened.append(1, {}, {"X": X}, sync=True)
            before = path.read_bytes()

            def fail(descriptor, views):
                os.write(descriptor, b"".join(views)[:written])
                raise error(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "writev", fail)
            with pytest.raises(error) as caught:
                opened.append(1, {}, {"X": X}, sync=True)
            assert error is not OSError or "journal.log" in str(caught.value)
            assert path.read_bytes() == before
            monkeypatch.setattr(os, "writev", real)
            assert opened.append(2, sync=True) == 11
        assert [record.operation for record in replay(path)] == [1, 2]

    def test_a_full_disk(self, path):
        succeed(f"""
            import resource, signal
            import numpy as np
            from dci._store.journal import Journal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with Journal({str(path)!r}, 3, bytes(range(16))) as journal:
                journal.append(1, sync=True)
                try:
                    journal.append(2, {{}}, {{"X": np.ones((10_000, 3), np.float32)}}, sync=True)
                except OSError as error:
                    assert "File too large" in str(error) and "journal.log" in str(error), error
                else:
                    raise AssertionError("the limit did nothing")
                assert journal.append(3, sync=True) == 11
        """)
        assert [record.operation for record in replay(path)] == [1, 3]

    def test_a_failed_sync_ends_it(self, path, monkeypatch):
        opened = Journal(path, 3, BASE)
        opened.append(1, sync=True)

        def fail(descriptor, **_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(journal, "sync", fail)
        with pytest.raises(OSError, match="Input/output error: .*journal.log"):
            opened.append(2, sync=True)
        monkeypatch.undo()
        for use in (lambda: opened.append(3, sync=False), opened.sync, lambda: list(opened.replay())):
            with pytest.raises(StorageError, match="syncing it failed: open it again"):
                use()
        opened.close()
        assert [record.operation for record in replay(path)] == [1]

    def test_what_cannot_be_taken_back_ends_it(self, path, monkeypatch):
        opened = Journal(path, 3, BASE)
        opened.append(1, sync=True)

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "writev", fail)
        monkeypatch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="Input/output error"):
            opened.append(2, sync=True)
        monkeypatch.undo()
        with pytest.raises(StorageError, match="a record could be neither written nor taken back: open it again"):
            opened.append(3, sync=True)
        opened.close()


class TestTornEnd:
    def test_every_truncation_keeps_the_whole_records(self, tmp_path):
        path = tmp_path / "journal.log"
        written, bounds, data = sample_journal(path)
        begin, length = bounds[-1]
        for end in range(begin, begin + length):
            path.write_bytes(data[:end])
            if end == begin:
                assert len(replay(path)) == len(written) - 1
                continue
            message = f"journal.log: cut {end - begin} bytes off its end, at byte {begin}: expected .* received"
            with pytest.warns(UserWarning, match=message):
                opened = Journal(path, 3, BASE)
            with opened:
                assert opened.cut[:2] == (begin, end - begin)
                assert opened.next_sequence == 10 + len(written) - 1
                assert all(equal_records(a, b) for a, b in zip(opened.replay(), written, strict=False))
            assert path.read_bytes() == data[:begin]

    @pytest.mark.parametrize(("offset", "message"), [(0, "its header's checksum"), (60, "its checksum")])
    def test_a_damaged_last_record_is_cut(self, tmp_path, offset, message):
        path = tmp_path / "journal.log"
        written, bounds, data = sample_journal(path)
        begin, length = bounds[-1]
        path.write_bytes(data[: begin + offset] + b"\xff\xff" + data[begin + offset + 2 :])
        with pytest.warns(UserWarning, match=f"cut {length} bytes .* {message} does not match"):
            Journal(path, 3, BASE).close()
        assert len(replay(path)) == len(written) - 1

    def test_zeros_at_the_end_are_cut(self, tmp_path):
        """What file systems leave that extend a file before its data are written."""
        path = tmp_path / "journal.log"
        written, _, data = sample_journal(path)
        path.write_bytes(data + bytes(5000))
        with pytest.warns(UserWarning, match="cut 5000 bytes"):
            Journal(path, 3, BASE).close()
        assert len(replay(path)) == len(written)


class TestDamage:
    @pytest.mark.parametrize("offset", [0, 9, 17, 45, 100])
    @pytest.mark.parametrize("which", [0, 3, 4])
    def test_before_a_whole_record_it_is_an_error(self, tmp_path, monkeypatch, which, offset):
        monkeypatch.setattr(records, "BLOCK", 64)
        path = tmp_path / "journal.log"
        _, bounds, data = sample_journal(path)
        begin, length = bounds[which]
        data = bytearray(data)
        data[begin + min(offset, length - 1)] ^= 1
        path.write_bytes(data)
        message = (
            f"record {10 + which} at byte {begin} is damaged: its (header's )?checksum does not match; it was not torn "
            f"by a crash, as another record follows at byte {bounds[which + 1][0]}"
        )
        with pytest.raises(FileFormatError, match=message):
            Journal(path, 3, BASE)
        assert path.read_bytes() == data

    def test_since_it_was_opened(self, tmp_path):
        path = tmp_path / "journal.log"
        _, bounds, data = sample_journal(path)
        with Journal(path, 3, BASE) as opened:
            path.write_bytes(data[:-1] + b"\xff")
            with pytest.raises(FileFormatError, match=f"damaged at byte {bounds[-1][0]} since it was opened"):
                list(opened.replay())

    @pytest.mark.parametrize(
        ("offset", "layout", "value", "message"),
        [
            (16, "Q", 14, "record at byte .*: expected sequence number 15, received 14"),
            (16, "Q", 2**64 - 1, "expected sequence number 15, received"),
            (28, "I", 2**32 - 1, "4294967295 arrays and 7 bytes of JSON in 264 bytes"),
            (28, "I", 3, "record at byte .*: array 2: invalid name"),
            (32, "I", 2**32 - 1, "2 arrays and 4294967295 bytes of JSON in 264 bytes"),
            (32, "I", 100, "array 'ids' of shape .* reaches beyond its end"),
            (32, "I", 6, "the JSON cannot be read"),
            (40, "16s", b"X", "there are two arrays of the name 'X'"),
            (40, "16s", b"a" * 16, "array 0: invalid name"),
            (56, "4s", b"|O", "array 0: expected a dtype of"),
            (56, "4s", b"|i1", "its parts have .* bytes, it has"),
            (60, "I", 5, "array 0: expected at most 4 axes, received 5"),
            (64, "Q", 2**63, "array 0: expected less than 2.63 bytes"),
            (64, "Q", 2**40, "array 'ids' of shape .* reaches beyond its end"),
        ],
    )
    def test_forged_records(self, tmp_path, offset, layout, value, message):
        path = tmp_path / "journal.log"
        _, bounds, data = sample_journal(path)
        begin, length = bounds[5]
        assert length == 264
        data = bytearray(data)
        struct.pack_into("<" + layout, data, begin + offset, value)
        path.write_bytes(seal_record(data, begin, length))
        with pytest.raises(FileFormatError, match=f"journal.log: .*{message}"):
            Journal(path, 3, BASE)

    def test_many_markers_take_one_pass(self, path):
        with open(path, "ab") as file:
            file.write(b"DCIRxxxx" * 100_000)
        with pytest.warns(UserWarning, match="cut 800000 bytes"):
            Journal(path, 3, BASE).close()


class TestHeader:
    @pytest.mark.parametrize(("generation", "base"), [(4, BASE), (3, bytes(16))])
    def test_another_base(self, path, generation, base):
        message = (
            f"expected the journal of generation {generation} and base {base.hex()}, received that of 3 and 000102"
        )
        with pytest.raises(FileFormatError, match=message):
            Journal(path, generation, base)

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (0, b"\x89DCI", "expected a file that begins with b'.x89DCJ"),
            (8, b"\1\2\3\4", "expected little-endian numbers, received big-endian ones"),
            (12, b"\2", "expected version 1 of the format or an older one, received version 2"),
            (20, b"\1", "the header is damaged: its checksum does not match"),
        ],
    )
    def test_other_files(self, path, offset, value, message):
        data = bytearray(path.read_bytes())
        if offset == 0:
            data[:] = b"\x89DCI\r\n\x1a\n" + data[8:]
        else:
            data[offset : offset + len(value)] = value
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=f"journal.log: {message}"):
            Journal(path, 3, BASE)

    def test_truncated(self, path):
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(FileFormatError, match="expected at least 64 bytes, received 40: truncated"):
            Journal(path, 3, BASE)

    def test_bad_arguments(self, path):
        with pytest.raises(InvalidValueError, match="base: expected 16 bytes, received 3"):
            create_journal(path, 0, b"abc")
        with pytest.raises(InvalidValueError, match="generation, first_sequence: expected ints"):
            create_journal(path, -1, BASE)


class TestOneWriter:
    def test_a_second_one_is_refused(self, path):
        with Journal(path, 3, BASE) as opened:
            message = "journal.log: expected to be the only writer, but another writer has it open"
            with pytest.raises(StorageError, match=message):
                Journal(path, 3, BASE)
            succeed(f"""
                from dci.errors import StorageError
                from dci._store.journal import Journal
                try:
                    Journal({str(path)!r}, 3, bytes(range(16)))
                except StorageError as error:
                    assert "only writer" in str(error)
                else:
                    raise AssertionError
            """)
            assert opened.append(1, sync=True) == 10
        replay(path)

    def test_a_closed_one_is_no_more(self, path):
        opened = Journal(path, 3, BASE)
        opened.close()
        opened.close()
        with pytest.raises(StorageError, match="expected an open journal, but it is closed"):
            opened.append(1, sync=True)

    def test_a_forked_child_may_not_append(self, path):
        succeed(f"""
            import os
            from dci.errors import StorageError
            from dci._store.journal import Journal
            journal = Journal({str(path)!r}, 3, bytes(range(16)))
            pid = os.fork()
            if pid == 0:
                try:
                    journal.append(1, sync=True)
                except StorageError as error:
                    journal.close()
                    os._exit(7 if "expected no use in process" in str(error) else 1)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert journal.append(1, sync=True) == 10
            try:
                Journal({str(path)!r}, 3, bytes(range(16)))
            except StorageError:
                pass
            else:
                raise AssertionError("the child ended the lock")
        """)

    def test_the_error_is_one_of_the_family(self):
        assert issubclass(StorageError, DCIError)
        assert issubclass(StorageError, OSError)


def test_a_copy_continues_another(path, tmp_path):
    with Journal(path, 3, BASE) as opened:
        opened.append(1, sync=False)
        position = opened.position()
        opened.append(2, {}, {"X": X}, sync=False)
        opened.append(3, sync=False)
        create_journal(tmp_path / "next.log", 4, bytes(16), position.sequence, opened.copy(position))
        with pytest.raises(InvalidValueError, match="position: expected one of this journal"):
            list(opened.copy(position._replace(generation=2)))
    with Journal(tmp_path / "next.log", 4, bytes(16)) as opened:
        assert [(record.sequence, record.operation) for record in opened.replay()] == [(11, 2), (12, 3)]
        assert opened.next_sequence == 13


def test_locks_do_not_survive_their_file(path):
    with open(path, "rb") as one, open(path, "rb") as other:
        assert files.try_lock(one.fileno())
        assert not files.try_lock(other.fileno())
        files.unlock(one.fileno())
        assert files.try_lock(other.fileno())
