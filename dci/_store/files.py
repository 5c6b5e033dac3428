"""Files that are replaced at once, synced and locked: what Python's standard library leaves to its users."""

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import StorageError

Path = str | os.PathLike[str]

_FLUSHED = 1 << 24  # bytes that are brought to the disk at a time. To measure anew: the suite `dynamic`
_TEMPORARY = re.compile(r"\.dci-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Write a file that takes the place of `path` at the end of the block, or not at all.

    The block writes to a temporary file in the same directory, ``.dci-<16 hex digits>.tmp``, which is synced, renamed
    over `path`, and made durable by syncing the directory. Whatever interrupts this leaves the old file or the new one
    whole; any exception removes the temporary, and what a killed process left `remove_stale` finds. A new file gets
    the permissions of the file that it replaces, or those that the umask leaves. A link is followed.

    Yields
    ------
    int
        A descriptor to read and write.

    Raises
    ------
    OSError
        As the system says: no such directory, no permission, disk full.
    """
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    mode = _replaceable(target)
    descriptor, temporary = _create_temporary(directory)
    try:
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield descriptor
            sync(descriptor)
            os.replace(temporary, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = os.fspath(path)  # a failed write does not say of what
            raise
    finally:
        os.close(descriptor)
    sync_directory(directory)


def write_all(descriptor: int, buffers: Iterable[Any]) -> None:
    """Write buffers of bytes one after the other: by one system call, unless the system takes less than all."""
    views: list[memoryview] = [memoryview(buffer) for buffer in buffers]
    views = [view for view in views if view.nbytes]
    while views:
        written = os.writev(descriptor, views)
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if written:
            views[0] = views[0][written:]


@contextlib.contextmanager
def flushing(descriptor: int) -> Iterator[Callable[[int], None]]:
    """Have another thread bring what is written to the disk meanwhile, so that a sync at the end finds little to do.

    Yields
    ------
    callable
        To be told of every so many bytes that have been written.

    Raises
    ------
    OSError
        As the system says of what it could not bring there; the sync at the end does not say that again.
    """
    left = 0
    running: Future[None] | None = None

    def written(count: int) -> None:
        nonlocal left, running
        left += count
        if left >= _FLUSHED and (running is None or running.done()):
            _result(running)
            left, running = 0, None
            with contextlib.suppress(RuntimeError):  # no thread can be started any more when the interpreter ends
                running = pool.submit(sync, descriptor, data_only=True)

    with ThreadPoolExecutor(1) as pool:
        yield written
        _result(running)


def _result(task: Future[None] | None) -> None:
    if task is not None:
        task.result()


def sync(descriptor: int, *, data_only: bool = False) -> None:
    """Return when the file is on the disk; with `data_only`, perhaps without its times."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where fsync leaves the data in the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    elif data_only and hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock a file for one writer (advisory, flock), or return False where another has it, in this process or not.

    The lock ends when the last descriptor is closed that was duplicated or inherited from this one; `unlock` ends it
    at once.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, path: Path, holder: str = "another writer") -> None:
    """Lock a file for one writer, or raise StorageError."""
    if not try_lock(descriptor):
        raise StorageError(f"{os.fspath(path)}: expected to be the only writer, but {holder} has it open")


def unlock(descriptor: int) -> None:
    """End the lock, also for processes that inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_temporary(name: str) -> bool:
    """Whether a file's name is that of a temporary of `replacing`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale(directory: Path) -> list[str]:
    """Remove temporaries that killed processes left, never one that is being written; return their names."""
    removed = []
    for name in sorted(filter(is_temporary, os.listdir(directory))):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):  # its writer holds the lock as long as it lives
                    os.unlink(path)
                    removed.append(name)
            finally:
                os.close(descriptor)
    return removed


def _replaceable(target: str) -> int | None:
    """Permissions of a file to replace; None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # os.replace would put a file in place of a device
        raise StorageError(f"{target}: expected a regular file or nothing in its place")
    return stat.S_IMODE(mode)


def _create_temporary(directory: str) -> tuple[int, str]:
    while True:
        path = os.path.join(directory, f".dci-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: then nothing is ever taken for stale
                try_lock(descriptor)
            if os.fstat(descriptor).st_nlink:  # else `remove_stale` took it before it was locked
                return descriptor, path
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        os.close(descriptor)
