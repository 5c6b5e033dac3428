"""Replacing a file at once, whatever fails."""

import errno
import os
import resource
import stat

import numpy as np
import pytest

from dci._store import files
from dci._store.container import Blocks, read, write
from dci.errors import StorageError
from tests.dci.store.mutate import equal, sample
from tests.processes import succeed

LARGE = {"X": np.ones((1 << 20, 3), np.float32)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.dci"
    write(path, *sample())
    return path


def assert_unharmed(path):
    assert equal(read(path), sample())
    assert os.listdir(path.parent) == [path.name]


class TestFailures:
    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
    @pytest.mark.parametrize(("function", "nth"), [("writev", 1), ("writev", 3), ("fsync", 1), ("replace", 1)])
    def test_the_old_file_stays(self, path, monkeypatch, function, nth, error):
        real = getattr(os, function)
        calls = []

        def fail(*args):
            calls.append(args)
            if len(calls) == nth:
                raise error(errno.ENOSPC, "No space left on device")
            return real(*args)

        monkeypatch.setattr(os, function, fail)
        with pytest.raises(error) as caught:
            write(path, {}, LARGE)
        monkeypatch.undo()
        assert len(calls) == nth
        assert_unharmed(path)
        if error is OSError:
            assert str(path) in str(caught.value)

    def test_a_full_disk(self, path):
        """RLIMIT_FSIZE makes the system refuse the later part of the file."""
        succeed(f"""
            import resource, signal
            import numpy as np
            from dci._store.container import write
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
            try:
                write({str(path)!r}, {{}}, {{"X": np.ones((1 << 20, 3), np.float32)}})
            except OSError as error:
                assert "File too large" in str(error) and "some.dci" in str(error), error
            else:
                raise AssertionError("the limit did nothing")
            write({str(path)!r}, {{"small": 1}}, {{}})
        """)
        assert read(path) == ({"small": 1}, {})
        assert os.listdir(path.parent) == [path.name]

    def test_blocks_that_raise(self, path):
        def blocks():
            yield np.ones((10, 2), np.float32)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write(path, {}, {"X": Blocks((20, 2), np.float32, blocks())})
        assert_unharmed(path)

    def test_nowhere_to_write(self, path, tmp_path):
        with pytest.raises(FileNotFoundError, match="missing"):
            write(tmp_path / "missing" / "some.dci", {}, {})
        with pytest.raises(NotADirectoryError, match="some.dci"):
            write(path / "below.dci", {}, {})
        with pytest.raises(StorageError, match="expected a regular file or nothing in its place"):
            write(tmp_path, {}, {})
        with pytest.raises(StorageError, match="/dev/null: expected a regular file"):
            write("/dev/null", {}, {})
        assert_unharmed(path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_directory(self, path):
        path.parent.chmod(0o500)
        with pytest.raises(PermissionError):
            write(path, {}, {})
        path.parent.chmod(0o700)
        assert_unharmed(path)


class TestFlushing:
    """What another thread brings to the disk meanwhile."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(files, "_FLUSHED", 1 << 22)

    def test_it_is_told_of_all(self, path):
        write(path, {}, LARGE)
        assert equal(read(path), ({}, LARGE))

    def test_an_error_that_only_it_sees_leaves_the_old_file(self, path, monkeypatch):
        real = files.sync

        def fail(descriptor, *, data_only=False):
            if data_only:
                raise OSError(errno.EIO, "no such sector")
            real(descriptor)

        monkeypatch.setattr(files, "sync", fail)
        with pytest.raises(OSError, match="no such sector"):
            write(path, {}, LARGE)
        assert_unharmed(path)

    def test_no_thread_can_be_started(self, path, monkeypatch):
        def refuse(*args, **kwargs):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

        monkeypatch.setattr(files.ThreadPoolExecutor, "submit", refuse)
        write(path, {}, LARGE)
        assert equal(read(path), ({}, LARGE))


class TestReplacing:
    def test_the_order_of_what_makes_it_durable(self, path, monkeypatch):
        calls = []
        for name in ("fsync", "replace"):
            real = getattr(os, name)

            def record(*args, name=name, real=real):
                is_directory = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
                calls.append(f"{name} directory" if is_directory else name)
                return real(*args)

            monkeypatch.setattr(os, name, record)
        write(path, {}, {})
        assert calls == ["fsync", "replace", "fsync directory"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
    def test_permissions_are_kept(self, path, mode):
        path.chmod(mode)
        write(path, {}, {})
        assert stat.S_IMODE(path.stat().st_mode) == mode

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
    def test_a_new_file_follows_the_umask(self, tmp_path, mask, mode):
        old = os.umask(mask)
        try:
            write(tmp_path / "new.dci", {}, {})
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "new.dci").stat().st_mode) == mode

    def test_links_are_followed(self, path, tmp_path):
        (tmp_path / "below").mkdir()
        link = tmp_path / "below" / "link.dci"
        link.symlink_to(path)
        write(link, {"new": 1}, {})
        assert link.is_symlink()
        assert read(path)[0] == {"new": 1}

    def test_the_longest_name(self, tmp_path):
        write(tmp_path / ("a" * 255), {}, {})

    def test_nothing_stays_open(self, path):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        for _ in range(5):
            write(path, *sample())
            read(path)
            read(path, mmap=True)
        assert before is None or len(os.listdir("/proc/self/fd")) <= before < limit


class TestStale:
    def test_only_what_nobody_writes_is_removed(self, path):
        stale = path.parent / ".dci-0123456789abcdef.tmp"
        stale.write_bytes(b"left by a killed process")
        other = path.parent / ".dci-notes.tmp"
        other.write_bytes(b"not ours")
        with files.replacing(path.parent / "new.dci") as descriptor:
            os.write(descriptor, b"new")
            assert files.remove_stale(path.parent) == [stale.name]
        assert sorted(os.listdir(path.parent)) == [other.name, "new.dci", path.name]


def test_partial_writes_are_completed(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [views[0][:3]]))
    with open(tmp_path / "file", "wb") as file:
        files.write_all(file.fileno(), [b"abcd", b"", b"efghijk", bytearray(b"l")])
    assert (tmp_path / "file").read_bytes() == b"abcdefghijkl"
