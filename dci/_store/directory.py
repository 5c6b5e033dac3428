"""A directory with a base, the journal of what came after it, and the switch to a new base.

    CURRENT                     the generation that counts
    base-<generation>.dci       a container
    journal-<generation>.log    operations since then
    LOCK                        what the only writer locks

A generation counts once CURRENT, which is replaced at once, names it; until then its files are leftovers of a switch
that was interrupted, and so are those of the one before afterwards. Opening removes leftovers.
"""

import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from typing import Any, Self

from .._runtime.fork import Lock
from ..errors import FileFormatError, InvalidValueError, StorageError
from . import container
from .files import Path, is_temporary, lock, remove_stale, replacing, sync_directory, unlock, write_all
from .journal import Journal, create_journal
from .records import Array, Cut, Position, Record

VERSION = 1

_POINTER = re.compile(r"dci-store (\d{1,9}) (creating|0|[1-9]\d{0,18}) ([0-9a-f]{8})\n")
_GENERATION = re.compile(r"(?:base-(0|[1-9]\d{0,18})\.dci|journal-(0|[1-9]\d{0,18})\.log)")
_CREATING = "creating"

WriteBase = Callable[[str], object]


def is_store(path: Path) -> bool:
    """Whether there is a store to `open`; where its creation was interrupted there is not.

    Raises
    ------
    FileFormatError
        The file CURRENT is damaged.
    """
    return _has_pointer(path) and _read_pointer(path) != _CREATING


class Store:
    """A store that is open for one writer.

    `create` and `open` make one. `base` is the file to read first, `replay` yields the operations to apply to it.

    Methods may be called from any thread, `append` also while `compact` writes a new base. A forked child must not
    write.

    Attributes
    ----------
    path : str
    generation : int
        Number of the base.
    cut : Cut or None
        What opening cut off the end of the journal.
    """

    def __init__(self, path: str, lock_file: FileIO, generation: int) -> None:
        self.path = path
        self._lock_file = lock_file
        self._pid = os.getpid()
        self._failed = False
        self._appending = Lock()
        self._compacting = Lock()
        self._journal = self._open_journal(generation)

    @classmethod
    def create(cls, path: Path, write_base: WriteBase) -> Self:
        """Make a store, and the directory if there is none.

        Parameters
        ----------
        path : path
            A directory that does not exist, is empty, or holds only what an interrupted `create` left.
        write_base : callable
            ``write_base(file)`` writes a container, by `container.write`.

        Raises
        ------
        InvalidValueError
            The directory holds something else.
        StorageError
            Another writer has it open.
        OSError
            As the system says. As for any exception, `create` may be tried again.
        """
        path = os.path.realpath(path)
        if not os.path.isdir(path):
            os.mkdir(path)
            sync_directory(os.path.dirname(path))
        with _locked(path) as lock_file:
            if is_store(path):
                raise InvalidValueError(f"{path}: expected no store there, received one")
            if not _has_pointer(path):
                others = [name for name in os.listdir(path) if name != "LOCK" and not is_temporary(name)]
                if others:
                    raise InvalidValueError(
                        f"{path}: expected an empty directory, received {len(others)} entries, one of them "
                        f"{min(others)!r}, and no file CURRENT"
                    )
                _write_pointer(path, _CREATING)
            _remove_leftovers(path, keep=None)
            _write_generation(path, 0, write_base)
            _write_pointer(path, "0")
            return cls(path, lock_file, 0)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store, after whatever interrupted the last writer.

        Raises
        ------
        FileFormatError
            There is no store, or it is damaged.
        StorageError
            Another writer has it open.
        OSError
            As the system says.
        """
        path = os.path.realpath(path)
        if os.path.isdir(path) and not _has_pointer(path):
            raise FileFormatError(f"{path}: expected a file CURRENT, received a directory without it: this is no store")
        with _locked(path) as lock_file:
            pointer = _read_pointer(path)
            if pointer == _CREATING:
                raise FileFormatError(f"{path}: expected a store, received one whose creation was interrupted")
            store = cls(path, lock_file, int(pointer))
            try:
                _remove_leftovers(path, keep=store.generation)  # now that this generation turned out to be whole
            except BaseException:
                store._journal.close()
                raise
            return store

    @property
    def base(self) -> str:
        """Path of the base; `compact` removes the file (not what is mapped of it) when there is a new one."""
        return _base(self.path, self.generation)

    @property
    def generation(self) -> int:
        return self._journal.generation

    @property
    def cut(self) -> Cut | None:
        return self._journal.cut

    @property
    def next_sequence(self) -> int:
        """Number of the next record; goes on through all generations."""
        return self._journal.next_sequence

    @property
    def journal_nbytes(self) -> int:
        """Size of the journal, for those who decide when to compact."""
        return self._journal.nbytes

    def position(self) -> Position:
        """Return the place after the last record, for `compact`."""
        return self._journal.position()

    def replay(self) -> Iterator[Record]:
        """Yield the operations since the base, in order. To be done before `compact`."""
        return self._journal.replay()

    def append(
        self,
        operation: int,
        meta: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Array] | None = None,
        *,
        sync: bool,
    ) -> int:
        """Append an operation; see `Journal.append`."""
        with self._appending:
            self._check_usable()
            return self._journal.append(operation, meta, arrays, sync=sync)

    def sync(self) -> None:
        """Return when all operations are on the disk."""
        with self._appending:
            self._check_usable()
            self._journal.sync()

    def compact(self, write_base: WriteBase, position: Position | None = None) -> None:
        """Switch to a new base and a journal of what it does not contain.

        Parameters
        ----------
        write_base : callable
            As for `create`. Operations may be appended while it runs.
        position : Position, optional
            The new base contains all operations up to this `position`; those after it are carried over to the new
            journal. The default is the position now, before `write_base` is called.

        Raises
        ------
        Exception
            Whatever `write_base` raises; the store stays as it was, and in use.
        OSError
            As the system says. If CURRENT may have been replaced, but not durably, the store takes no more operations
            until it is opened again: both generations are complete then.
        """
        with self._compacting:
            self._check_usable()
            old, new = self.generation, self.generation + 1
            begin = self.position() if position is None else position
            if begin.generation != old:
                raise InvalidValueError(f"position: expected one of generation {old}, received {begin.generation}")
            try:
                write_base(_base(self.path, new))
                fingerprint = container.fingerprint(_base(self.path, new))
                with self._appending:
                    records = self._journal.copy(begin)
                    create_journal(_log(self.path, new), new, fingerprint, begin.sequence, records)
                    journal = self._open_journal(new)
                    self._switch(journal)
            except BaseException:
                if self.generation == old and not self._failed:
                    _remove(self.path, new)
                raise
            _remove(self.path, old)

    def close(self) -> None:
        """Sync the journal and let the next writer in; a second call does nothing."""
        with self._appending:
            if self._lock_file.closed:
                return
            try:
                self._journal.close()
            finally:
                if os.getpid() == self._pid:
                    unlock(self._lock_file.fileno())
                self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _switch(self, journal: Journal) -> None:
        # If this is interrupted, perhaps CURRENT was replaced, perhaps that is not durable. What is appended to either
        # journal might be lost then, and neither generation may be removed.
        self._failed = True
        try:
            _write_pointer(self.path, str(journal.generation))
        except BaseException:
            journal.close()
            raise
        old, self._journal = self._journal, journal
        self._failed = False
        with contextlib.suppress(OSError):
            old.close()

    def _open_journal(self, generation: int) -> Journal:
        return Journal(_log(self.path, generation), generation, container.fingerprint(_base(self.path, generation)))

    def _check_usable(self) -> None:
        if self._lock_file.closed:
            raise StorageError(f"{self.path}: expected an open store, but it is closed")
        if self._failed:
            raise StorageError(f"{self.path}: switching to a new base failed: open the store again")


def _base(path: str, generation: int) -> str:
    return os.path.join(path, f"base-{generation}.dci")


def _log(path: str, generation: int) -> str:
    return os.path.join(path, f"journal-{generation}.log")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[FileIO]:
    """Lock a directory for one writer; unlocks it only on errors."""
    file = FileIO(os.open(os.path.join(path, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    try:
        holder = file.read(32).decode("ascii", "replace").strip()
        lock(file.fileno(), path, f"process {holder}" if holder.isdecimal() else "another writer")
        file.seek(0)
        file.truncate()
        file.write(b"%d\n" % os.getpid())  # only for the message
        yield file
    except BaseException:
        file.close()
        raise


def _has_pointer(path: Path) -> bool:
    return os.path.lexists(os.path.join(path, "CURRENT"))


def _read_pointer(path: Path) -> str:
    """Return the generation, or that there is none yet."""
    name = os.path.join(path, "CURRENT")
    with open(name, "rb") as file:
        text = file.read(100).decode("ascii", "replace")
    found = _POINTER.fullmatch(text)
    if found is None or zlib.crc32(text[: found.start(3)].encode()) != int(found[3], 16):
        raise FileFormatError(
            f"{name}: expected a line 'dci-store <version> <generation> <checksum>', received {text!r}"
        )
    if int(found[1]) != VERSION:
        raise FileFormatError(
            f"{name}: expected version {VERSION} of the directory's format, received version {found[1]}"
        )
    return found[2]


def _write_pointer(path: str, value: str) -> None:
    text = f"dci-store {VERSION} {value} ".encode()
    with replacing(os.path.join(path, "CURRENT")) as descriptor:
        write_all(descriptor, [text, b"%08x\n" % zlib.crc32(text)])


def _write_generation(path: str, generation: int, write_base: WriteBase) -> None:
    write_base(_base(path, generation))
    create_journal(_log(path, generation), generation, container.fingerprint(_base(path, generation)))


def _remove(path: str, generation: int) -> None:
    """Remove a generation that does not count; what cannot be removed, the next opening removes."""
    for file in (_base(path, generation), _log(path, generation)):
        with contextlib.suppress(OSError):
            os.unlink(file)


def _remove_leftovers(path: str, keep: int | None) -> None:
    remove_stale(path)
    for name in os.listdir(path):
        found = _GENERATION.fullmatch(name)
        if found and int(found[1] or found[2]) != keep:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))
