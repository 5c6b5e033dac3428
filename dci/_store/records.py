"""The records of a journal: into bytes, and out of a file that may end within one, or be damaged.

The bytes are in docs/file-format.md.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import FileFormatError, InvalidValueError
from . import layout
from .layout import Shape, aligned

MARKER = b"DCIR"
MAX_ARRAYS = 64
MAX_NAME = 15
MAX_SEQUENCE = 2**62
MAX_OPERATION = 2**32 - 1

RECORD = struct.Struct("<4sIQQIIII")
ARRAY = struct.Struct("<16s4sI4Q")

BLOCK = 1 << 20

Array = npt.NDArray[Any]


class Operation(IntEnum):
    """What records say; a journal takes any other code below 2^32 too."""

    FIT = 1
    ADD = 2
    UPDATE = 3
    REMOVE = 4


class Record(NamedTuple):
    """One operation."""

    sequence: int
    operation: int
    meta: dict[str, Any]
    arrays: dict[str, Array]


class Cut(NamedTuple):
    """The end of a journal that was cut away: `nbytes` from byte `offset` on, because of `reason`."""

    offset: int
    nbytes: int
    reason: str


class Position(NamedTuple):
    """A place between two records of a journal."""

    generation: int
    sequence: int
    offset: int


class _BadRecordError(Exception):
    """A record that is torn, or damaged; `later` is the first byte where another one may begin."""

    def __init__(self, reason: str, later: int) -> None:
        super().__init__(reason)
        self.later = later


def encode(sequence: int, operation: int, text: bytes, arrays: Mapping[str, Array]) -> tuple[list[Any], int]:
    """Return the pieces of a record and their bytes; contiguous arrays are not copied."""
    if not 0 <= operation <= MAX_OPERATION:
        raise InvalidValueError(f"operation: expected an int in [0, 2^32), received {operation}")
    if len(arrays) > MAX_ARRAYS:
        raise InvalidValueError(f"arrays: expected at most {MAX_ARRAYS}, received {len(arrays)}")
    entries = []
    data: list[Any] = []
    for key, array in arrays.items():
        name = layout.check_name(key, MAX_NAME)
        dtype = layout.check_array(name, array.dtype, array.shape)
        sizes = array.shape + (0,) * (layout.MAX_NDIM - array.ndim)
        entries.append(ARRAY.pack(name.encode(), dtype.str.encode(), array.ndim, *sizes))
        data.append(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
        data.append(bytes(-array.nbytes % 8))
    body = [b"".join([*entries, text, bytes(-len(text) % 8)]), *data]
    length = RECORD.size + sum(len(piece) for piece in body)
    crc = 0
    for piece in body:
        crc = zlib.crc32(piece, crc)
    rest = RECORD.pack(MARKER, 0, length, sequence, operation, len(arrays), len(text), crc)[8:]
    return [MARKER + struct.pack("<I", zlib.crc32(rest)) + rest, *body], length


def fetch(descriptor: int, offset: int, count: int, path: str) -> bytes:
    block = os.pread(descriptor, count, offset)
    if len(block) != count:
        raise FileFormatError(f"{path}: expected {count} bytes at {offset}, received {len(block)}: truncated")
    return block


def walk(descriptor: int, begin: Position, end: int, path: str) -> Iterator[tuple[Record, Position] | Cut]:
    """Yield records with the place after them, and at last a torn end, if there is one."""
    position = begin
    while position.offset < end:
        try:
            record, length = _read_record(descriptor, position, end, path)
        except _BadRecordError as bad:
            later = _find_record(descriptor, bad.later, end, position.sequence, path)
            if later is not None:
                raise FileFormatError(
                    f"{path}: record {position.sequence} at byte {position.offset} is damaged: {bad}; it was not torn "
                    f"by a crash, as another record follows at byte {later}"
                ) from bad
            yield Cut(position.offset, end - position.offset, str(bad))
            return
        position = Position(position.generation, position.sequence + 1, position.offset + length)
        yield record, position


def _read_record(descriptor: int, position: Position, end: int, path: str) -> tuple[Record, int]:
    offset = position.offset
    if end - offset < RECORD.size:
        raise _BadRecordError(f"expected a record's {RECORD.size} bytes of header, received {end - offset}", end)
    head = fetch(descriptor, offset, RECORD.size, path)
    if not _intact(head):
        raise _BadRecordError("its header's checksum does not match", offset + 8)
    _, _, length, sequence, operation, n_arrays, meta_bytes, crc = RECORD.unpack(head)
    where = f"{path}: record at byte {offset}"
    if sequence != position.sequence:
        raise FileFormatError(f"{where}: expected sequence number {position.sequence}, received {sequence}")
    if length > end - offset:
        raise _BadRecordError(f"expected {length} bytes, received {end - offset}", end)
    if (
        length < RECORD.size + n_arrays * ARRAY.size + meta_bytes
        or n_arrays > MAX_ARRAYS
        or meta_bytes > layout.MAX_META
    ):
        raise FileFormatError(f"{where}: {n_arrays} arrays and {meta_bytes} bytes of JSON in {length} bytes")
    body = np.empty(length - RECORD.size, np.uint8)
    view = body.data
    begin = 0
    while begin < len(view):
        block = fetch(descriptor, offset + RECORD.size + begin, min(BLOCK, len(view) - begin), path)
        view[begin : begin + len(block)] = block
        begin += len(block)
    if zlib.crc32(view) != crc:
        raise _BadRecordError("its checksum does not match", offset + length)
    body.setflags(write=False)
    return Record(sequence, operation, *_decode_body(body, n_arrays, meta_bytes, where)), length


def _decode_body(
    body: npt.NDArray[np.uint8], n_arrays: int, meta_bytes: int, where: str
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Check what the checksum does not: that a record says what it may."""
    described: list[tuple[str, np.dtype[Any], Shape]] = []
    for i in range(n_arrays):
        try:
            described.append(_described(body[i * ARRAY.size : (i + 1) * ARRAY.size].tobytes()))
        except FileFormatError as error:
            raise FileFormatError(f"{where}: array {i}{error}") from error
    text = body[n_arrays * ARRAY.size :][:meta_bytes].tobytes()
    begin = position = n_arrays * ARRAY.size + meta_bytes
    arrays: dict[str, Array] = {}
    for name, dtype, shape in described:
        begin = aligned(position, 8)
        position = begin + math.prod(shape) * dtype.itemsize
        if position > len(body):
            raise FileFormatError(f"{where}: array {name!r} of shape {shape} and {dtype} reaches beyond its end")
        if name in arrays:
            raise FileFormatError(f"{where}: there are two arrays of the name {name!r}")
        arrays[name] = body[begin:position].view(dtype).reshape(shape)
    if aligned(position, 8) != len(body):
        raise FileFormatError(f"{where}: its parts have {aligned(position, 8)} bytes, it has {len(body)}")
    return layout.decode_meta(text, where) if text else {}, arrays


@lru_cache(maxsize=256)  # journals of small operations repeat the same few
def _described(entry: bytes) -> tuple[str, np.dtype[Any], Shape]:
    name, code, ndim, *sizes = ARRAY.unpack(entry)
    return layout.decode_array(name, code, ndim, tuple(sizes), "")


def _intact(head: bytes) -> bool:
    return head[:4] == MARKER and zlib.crc32(head[8:]) == int.from_bytes(head[4:8], "little")


def _find_record(descriptor: int, begin: int, end: int, after: int, path: str) -> int | None:
    """Look for the intact header of a later record than `after`; one read of the rest of the file, however it looks."""
    for offset in range(begin, end, BLOCK):
        block = fetch(descriptor, offset, min(BLOCK + RECORD.size, end - offset), path)
        found = block.find(MARKER)
        while found >= 0:
            head = block[found : found + RECORD.size]
            whole = len(head) == RECORD.size and (offset + found) % 8 == 0
            if whole and _intact(head) and RECORD.unpack(head)[3] > after:
                return offset + found
            found = block.find(MARKER, found + 1)
    return None
