"""A file that operations are appended to, each a record with a sequence number and checksums.

The bytes are in docs/file-format.md. A crash can only tear the last record off, which the next opening cuts away; what
was appended with ``sync=True`` stays. The header ties a journal to the base that its operations apply to.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from typing import Any, Self
from warnings import warn

from .._runtime.fork import Lock
from ..errors import FileFormatError, InvalidValueError, StorageError
from . import layout
from .files import Path, lock, replacing, sync, unlock, write_all
from .records import BLOCK, MAX_SEQUENCE, Array, Cut, Position, Record, encode, fetch, walk

MAGIC = b"\x89DCJ\r\n\x1a\n"
VERSION = 1
HEADER = struct.Struct("<8sIIQ16sQ12sI")


def create_journal(
    path: Path, generation: int, base: bytes, first_sequence: int = 0, records: Iterable[bytes] = ()
) -> None:
    """Write a journal, or replace one, at once and durably.

    Parameters
    ----------
    path : path
    generation : int
        Number of the base that it belongs to.
    base : bytes
        16 bytes that tell this base from others.
    first_sequence : int
        Number of its first record.
    records : iterable of bytes
        What `Journal.copy` of another journal returned, from the same sequence number on.
    """
    if len(base) != 16:
        raise InvalidValueError(f"base: expected 16 bytes, received {len(base)}")
    if not (0 <= generation <= MAX_SEQUENCE and 0 <= first_sequence <= MAX_SEQUENCE):
        raise InvalidValueError(
            f"generation, first_sequence: expected ints in [0, 2^62], received {generation}, {first_sequence}"
        )
    header = HEADER.pack(MAGIC, layout.ORDER_MARK, VERSION, generation, base, first_sequence, bytes(12), 0)[:-4]
    with replacing(path) as descriptor:
        write_all(descriptor, [header, struct.pack("<I", zlib.crc32(header))])
        for block in records:
            write_all(descriptor, [block])


class Journal:
    """A journal that is open for one writer.

    Opening locks the file, reads all of it, and cuts a torn record off its end, with a warning. A record is torn if it
    is incomplete or its checksum does not match, and no other record follows.

    Methods may be called from any thread. A forked child must not append.

    Parameters
    ----------
    path : path
    generation, base : int, bytes
        As given to `create_journal`.

    Attributes
    ----------
    first_sequence, next_sequence : int
        Numbers of the first record and of the next one to be appended.
    nbytes : int
        Size of the file.
    cut : Cut or None
        What opening cut away.

    Raises
    ------
    FileFormatError
        It is no journal, belongs to another base, or is damaged before its end.
    StorageError
        Another writer has it open.
    OSError
        As the system says.
    """

    def __init__(self, path: Path, generation: int, base: bytes) -> None:
        self.path = os.fspath(path)
        self.generation = generation
        self.cut: Cut | None = None
        self._failed = ""
        self._pid = os.getpid()
        self._lock = Lock()
        self._file = FileIO(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC), "r+")
        try:
            lock(self._file.fileno(), path)
            size = os.fstat(self._file.fileno()).st_size
            self.first_sequence = _read_header(self._file.fileno(), size, generation, base, self.path)
            self._end = self._start()  # number and offset in one attribute: no interrupt comes between the two
            for item in walk(self._file.fileno(), self._end, size, self.path):
                if isinstance(item, Cut):
                    self.cut = item
                else:
                    self._end = item[1]
            if self.cut:
                self._cut_off(self.cut)
        except BaseException:
            self._file.close()
            raise

    @property
    def next_sequence(self) -> int:
        return self._end.sequence

    @property
    def nbytes(self) -> int:
        return self._end.offset

    def position(self) -> Position:
        """Return the place after the last record."""
        return self._end

    def append(
        self,
        operation: int,
        meta: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Array] | None = None,
        *,
        sync: bool,
    ) -> int:
        """Append a record with one write.

        Parameters
        ----------
        operation : int
            An `Operation`, or another code.
        meta : mapping, optional
            What JSON can hold.
        arrays : mapping of str to ndarray, optional
            At most 64, of the dtypes of a container, with names of at most 15 characters.
        sync : bool
            Return when the record, and all before it, are on the disk. Without it a crash of the process loses
            nothing either, one of the machine may.

        Returns
        -------
        int
            The record's sequence number.

        Raises
        ------
        InvalidTypeError, InvalidValueError
            Something cannot be stored.
        OSError
            As the system says, for example that the disk is full; the journal is as it was. If that cannot be
            assured, it takes no more records until it is opened again.
        StorageError
            It is closed, failed before, or belongs to another process.
        """
        plain = dict(meta or {})
        text = layout.encode_meta(plain) if plain else b""
        with self._lock:
            self._check_usable()
            start = self._end
            pieces, nbytes = encode(start.sequence, operation, text, arrays or {})
            descriptor = self._file.fileno()
            try:
                write_all(descriptor, pieces)
                if sync:
                    self._sync()
                self._end = Position(start.generation, start.sequence + 1, start.offset + nbytes)
            except BaseException as error:
                if self._end is start:
                    self._take_back(start.offset)
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = self.path
                raise
            return start.sequence

    def sync(self) -> None:
        """Return when all records are on the disk."""
        with self._lock:
            self._check_usable()
            self._sync()

    def replay(self) -> Iterator[Record]:
        """Yield the records that there are now, in order; their arrays are read-only.

        Raises
        ------
        FileFormatError
            The file was damaged since it was opened.
        """
        self._check_usable()
        for item in walk(self._file.fileno(), self._start(), self._end.offset, self.path):
            if isinstance(item, Cut):
                raise FileFormatError(f"{self.path}: damaged at byte {item.offset} since it was opened: {item.reason}")
            yield item[0]

    def copy(self, begin: Position) -> Iterator[bytes]:
        """Yield the bytes of all records from a position on, for `create_journal`."""
        if not (begin.generation == self.generation and HEADER.size <= begin.offset <= self._end.offset):
            raise InvalidValueError(f"position: expected one of this journal, up to {self._end}, received {begin}")
        end = self._end.offset
        for offset in range(begin.offset, end, BLOCK):
            yield fetch(self._file.fileno(), offset, min(BLOCK, end - offset), self.path)

    def close(self) -> None:
        """Sync and unlock the file; a second call does nothing."""
        with self._lock:
            if self._file.closed:
                return
            try:
                if os.getpid() == self._pid:
                    if not self._failed:
                        self._sync()
                    unlock(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Position:
        return Position(self.generation, self.first_sequence, HEADER.size)

    def _check_usable(self) -> None:
        if self._file.closed:
            raise StorageError(f"{self.path}: expected an open journal, but it is closed")
        if os.getpid() != self._pid:
            raise StorageError(f"{self.path}: process {self._pid} opened it, expected no use in process {os.getpid()}")
        if self._failed:
            raise StorageError(f"{self.path}: {self._failed}: open it again")

    def _sync(self) -> None:
        try:
            sync(self._file.fileno(), data_only=True)
        except BaseException:
            # After a failed sync nobody knows which of the earlier pages are on the disk, and the next sync succeeds.
            self._failed = "syncing it failed"
            raise

    def _take_back(self, size: int) -> None:
        try:
            os.ftruncate(self._file.fileno(), size)
        except BaseException:
            self._failed = "a record could be neither written nor taken back"
            raise

    def _cut_off(self, cut: Cut) -> None:
        os.ftruncate(self._file.fileno(), cut.offset)
        self._sync()
        warn(
            f"{self.path}: cut {cut.nbytes} bytes off its end, at byte {cut.offset}: {cut.reason}. "
            "The last operation was not written completely",
            stacklevel=3,
        )


def _read_header(descriptor: int, size: int, generation: int, base: bytes, path: str) -> int:
    """Check the header; return the number of the first record."""
    head = fetch(descriptor, 0, min(size, HEADER.size), path)
    layout.check_prefix(head, MAGIC, VERSION, HEADER.size, path)
    _, _, _, its_generation, its_base, first, reserved, crc = HEADER.unpack(head)
    if zlib.crc32(head[:-4]) != crc:
        raise FileFormatError(f"{path}: the header is damaged: its checksum does not match")
    if any(reserved) or max(first, its_generation) > MAX_SEQUENCE:
        raise FileFormatError(f"{path}: the header's reserved bytes are not zero, or a number is above 2^62")
    if (its_generation, its_base) != (generation, base):
        raise FileFormatError(
            f"{path}: expected the journal of generation {generation} and base {base.hex()}, "
            f"received that of {its_generation} and {its_base.hex()}"
        )
    return int(first)
