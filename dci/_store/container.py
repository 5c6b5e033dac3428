"""A file of named arrays and a JSON object: no pickle, no code, a checksum for every part.

The bytes are in docs/file-format.md. Writing goes through a temporary file, so that a crash leaves the old file or
the new one. Reading trusts nothing: see `layout`.

The checksums are CRC-32: they find damage, not forgery. Arrays come out little-endian, as they are in the file.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from .._runtime.mapped import Map
from ..errors import FileFormatError, InvalidTypeError, InvalidValueError
from . import layout
from .files import Path, flushing, replacing, write_all
from .layout import Section, Shape

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

BLOCK = 1 << 22  # bytes at a time: checksums are computed while they are in the cache


@dataclass(frozen=True)
class Blocks:
    """An array that is made while it is written.

    Parameters
    ----------
    shape : tuple of int
        Of the whole; at least one axis.
    dtype : dtype
    blocks : iterable of ndarray
        Parts along the first axis, in order, of this dtype.
    """

    shape: Shape
    dtype: npt.DTypeLike
    blocks: Iterable[Array]


Sections = Mapping[str, Array | Blocks]
Content = tuple[dict[str, Any], dict[str, Array]]


def write(path: Path, meta: dict[str, Any], sections: Sections) -> None:
    """Write a file, or replace one, at once.

    Data are written in blocks of a few MB; contiguous arrays are not copied. They must not change meanwhile.

    Parameters
    ----------
    path : path
        Its directory must exist. The permissions of an existing file are kept.
    meta : dict
        What JSON can hold, at most 1 MiB of it.
    sections : mapping of str to ndarray or Blocks
        Names of at most 63 characters ``A-Z a-z 0-9 _ . / -``; float32, float16, int8, uint8, int16, int32, int64,
        uint32 or uint64; at most four axes, none of them has to have entries.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        Something cannot be stored.
    OSError
        As the system says. Then, and if anything else interrupts it, the file at `path` stays as it was.
    """
    text, plan = _plan(meta, sections)
    with replacing(path) as descriptor, flushing(descriptor) as written:

        def put(block: memoryview) -> None:
            write_all(descriptor, [block])
            written(block.nbytes)

        # The header comes last: until it is there, no part of the file can be taken for a whole one.
        start = os.lseek(descriptor, len(layout.encode_head(text, plan)), os.SEEK_SET)
        done = _pour(plan, sections, put, start)
        os.lseek(descriptor, 0, os.SEEK_SET)
        write_all(descriptor, [layout.encode_head(text, done)])


def to_bytes(meta: dict[str, Any], sections: Sections) -> bytearray:
    """Return what `write` would write, with one copy of the data.

    Examples
    --------
    >>> import numpy as np
    >>> data = to_bytes({"metric": "l2"}, {"points": np.ones((2, 3), np.float32)})
    >>> len(data)
    280
    >>> meta, sections = from_bytes(data)
    >>> meta, sections["points"].shape
    ({'metric': 'l2'}, (2, 3))
    """
    text, plan = _plan(meta, sections)
    position = len(layout.encode_head(text, plan))
    data = bytearray(plan[-1].offset + plan[-1].nbytes if plan else position)
    view = memoryview(data)  # assigning to a slice of it copies once, to one of a bytearray twice

    def put(block: memoryview) -> None:
        nonlocal position
        view[position : position + len(block)] = block
        position += len(block)

    head = layout.encode_head(text, _pour(plan, sections, put, position))
    view[: len(head)] = head
    return data


def read(path: Path, *, mmap: bool = False, verify: bool | None = None) -> Content:
    """Read a file.

    Parameters
    ----------
    path : path
    mmap : bool
        Map the file instead of reading it: this takes no longer for a large file, and its memory is shared with other
        processes and given back under pressure. The arrays are read-only. The file may be replaced or removed
        meanwhile, by `write` or others, and the arrays stay what they are. It must not be truncated or written in
        place: arrays would change, or the process be killed (SIGBUS) where the file has ended.
    verify : bool, optional
        Check all checksums, which reads all data; the header's and the directory's are checked always. The default
        is ``not mmap``.

    Returns
    -------
    meta : dict
    sections : dict of str to ndarray
        In the order of the file; little-endian, addresses are multiples of 64.

    Raises
    ------
    FileFormatError
        The file is of another kind or version, truncated or damaged; says which part.
    OSError
        As the system says.
    """
    name = os.fspath(path)
    check = not mmap if verify is None else verify
    with _open(path) as file:
        length = _length(file)
        fetch = _fetcher(file, name)
        head = layout.decode_head(fetch, length, name)
        if mmap:
            data = memoryview(Map.of(file, length))
            if check:
                _check_data(head, lambda offset, count: data[offset : offset + count], name)
            return head.meta, {section.name: _view(data, section) for section in head.sections}
        if check:
            _check_padding(head, fetch, name)
        arrays = {}
        for section in head.sections:
            buffer = _allocate(section.nbytes)
            crc = _read_into(file, buffer, section.offset, name, check)
            if check and crc != section.crc:
                raise _damaged(name, [section.name])
            arrays[section.name] = buffer.view(section.dtype).reshape(section.shape)
        return head.meta, arrays


def from_bytes(data: Buffer, *, verify: bool = True, name: str = "data") -> Content:
    """Read what `to_bytes` returned, or the bytes of a file.

    Parameters
    ----------
    data : bytes-like
        The arrays are read-only views of it, where it allows (see Returns).
    verify : bool
        Check the checksums of all data.
    name : str
        What messages call it.

    Returns
    -------
    meta : dict
    sections : dict of str to ndarray
        Copies where a view's address would not be a multiple of its dtype's size.

    Raises
    ------
    FileFormatError
        As for `read`.
    """
    view = memoryview(data).cast("B").toreadonly()
    head = layout.decode_head(lambda offset, count: bytes(view[offset : offset + count]), len(view), name)
    if verify:
        _check_data(head, lambda offset, count: view[offset : offset + count], name)
    arrays = {section.name: _view(view, section) for section in head.sections}
    return head.meta, {key: array if array.flags.aligned else array.copy() for key, array in arrays.items()}


def verify(path: Path) -> None:
    """Check all of a file, in the memory of one block.

    Raises
    ------
    FileFormatError
        As for `read`; names every section that is damaged.
    """
    name = os.fspath(path)
    with _open(path) as file:
        fetch = _fetcher(file, name)
        _check_data(layout.decode_head(fetch, _length(file), name), fetch, name)


def fingerprint(path: Path) -> bytes:
    """Return 16 bytes that tell a file's content from others, without reading the data.

    They are a BLAKE2b hash of header, directory and JSON, in which the checksums of all sections are.
    """
    name = os.fspath(path)
    with _open(path) as file:
        return _fingerprint(_fetcher(file, name), _length(file), name)


def fingerprint_of(data: Buffer, name: str = "data") -> bytes:
    """Return what `fingerprint` returns of a file of these bytes."""
    view = memoryview(data).cast("B")
    return _fingerprint(lambda offset, count: bytes(view[offset : offset + count]), len(view), name)


def _fingerprint(fetch: Callable[[int, int], bytes], length: int, name: str) -> bytes:
    head = layout.decode_head(fetch, length, name)
    return blake2b(fetch(0, head.end), digest_size=16).digest()


# ---- writing ----


def _plan(meta: dict[str, Any], sections: Sections) -> tuple[bytes, list[Section]]:
    """Check what is to be written, and place it."""
    text = layout.encode_meta(meta)
    arrays = []
    for key, content in sections.items():
        name = layout.check_name(key)
        if not isinstance(content, np.ndarray | Blocks):
            raise InvalidTypeError(f"{name}: expected an ndarray or Blocks, received {type(content).__name__}")
        if isinstance(content, Blocks) and not content.shape:
            raise InvalidValueError(f"{name}: expected blocks of an array with axes, received shape ()")
        arrays.append((name, layout.check_array(name, content.dtype, content.shape), content.shape))
    return text, layout.lay_out(arrays, len(text))


def _pour(
    plan: Sequence[Section], sections: Sections, put: Callable[[memoryview], None], position: int
) -> list[Section]:
    """Put padding and data in the order of the file, from `position` on; return the plan with checksums."""
    done = []
    for section in plan:
        put(memoryview(bytes(section.offset - position)))
        count = crc = 0
        for block in _blocks(section, sections[section.name]):
            count += block.nbytes
            if count > section.nbytes:
                break
            crc = zlib.crc32(block, crc)
            put(block)
        if count != section.nbytes:
            raise InvalidValueError(
                f"{section.name}: expected {section.nbytes} bytes for shape {section.shape}, its blocks have "
                f"{'more' if count > section.nbytes else count}"
            )
        done.append(section._replace(crc=crc))
        position = section.offset + section.nbytes
    return done


def _blocks(section: Section, content: Array | Blocks) -> Iterator[memoryview]:
    if isinstance(content, np.ndarray):
        yield from _bytes_of(content, section.dtype)
        return
    for block in content.blocks:
        if block.dtype.newbyteorder("<") != section.dtype or block.shape[1:] != section.shape[1:] or not block.ndim:
            raise InvalidValueError(
                f"{section.name}: expected blocks of shape (any, {', '.join(map(str, section.shape[1:]))}) and "
                f"{section.dtype}, received {block.shape} and {block.dtype}"
            )
        yield from _bytes_of(block, section.dtype)


def _bytes_of(array: Array, dtype: np.dtype[Any]) -> Iterator[memoryview]:
    """Little-endian bytes of an array in C order, a block at a time; copies only where it has to."""
    if array.size == 0:
        return
    if array.flags.c_contiguous and array.dtype == dtype:
        view = array.reshape(-1).view(np.uint8).data
        for begin in range(0, len(view), BLOCK):
            yield view[begin : begin + BLOCK]
        return
    rows = array if array.ndim else array.reshape(1)
    step = max(1, BLOCK * len(rows) // rows.nbytes)
    for begin in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[begin : begin + step], dtype).reshape(-1).view(np.uint8).data


# ---- reading ----


def _open(path: Path) -> FileIO:
    # O_NONBLOCK: a pipe of this name must not hang, but be refused below.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileFormatError(f"{os.fspath(path)}: expected a regular file")
    return FileIO(descriptor)


def _length(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _fetcher(file: FileIO, name: str) -> Callable[[int, int], bytes]:
    def fetch(offset: int, count: int) -> bytes:
        block = os.pread(file.fileno(), count, offset)
        if len(block) != count:
            raise FileFormatError(f"{name}: expected {count} bytes at {offset}, received {len(block)}: truncated")
        return block

    return fetch


def _allocate(nbytes: int) -> npt.NDArray[np.uint8]:
    """Memory at a multiple of ALIGNMENT, as in a mapped file."""
    buffer = np.empty(nbytes + layout.ALIGNMENT, np.uint8)
    shift = -buffer.ctypes.data % layout.ALIGNMENT
    return buffer[shift : shift + nbytes]


def _read_into(file: FileIO, buffer: npt.NDArray[np.uint8], offset: int, name: str, check: bool) -> int:
    """Fill a buffer; return the checksum, if wanted."""
    file.seek(offset)
    crc = begin = 0
    while begin < len(buffer):
        block = buffer[begin : begin + BLOCK].data
        count = file.readinto(block)
        if not count:
            raise FileFormatError(f"{name}: expected {len(buffer)} bytes at {offset}, received {begin}: truncated")
        if check:
            crc = zlib.crc32(block[:count], crc)
        begin += count
    return crc


def _view(data: memoryview, section: Section) -> Array:
    if not section.nbytes:  # np.frombuffer refuses an offset at the end
        array = np.empty(section.shape, section.dtype)
        array.setflags(write=False)
        return array
    count = section.nbytes // section.dtype.itemsize
    return np.frombuffer(data, section.dtype, count, section.offset).reshape(section.shape)


def _check_padding(head: layout.Head, fetch: Callable[[int, int], Buffer], name: str) -> None:
    position = head.end
    for section in head.sections:
        if any(fetch(position, section.offset - position)):
            raise FileFormatError(f"{name}: the padding before section {section.name!r} is not zero: it is damaged")
        position = section.offset + section.nbytes


def _check_data(head: layout.Head, fetch: Callable[[int, int], Buffer], name: str) -> None:
    """Check padding and checksums; a fetched block is at most BLOCK bytes."""
    _check_padding(head, fetch, name)
    damaged = []
    for section in head.sections:
        crc = 0
        for begin in range(0, section.nbytes, BLOCK):
            crc = zlib.crc32(fetch(section.offset + begin, min(BLOCK, section.nbytes - begin)), crc)
        if crc != section.crc:
            damaged.append(section.name)
    if damaged:
        raise _damaged(name, damaged)


def _damaged(name: str, sections: Sequence[str]) -> FileFormatError:
    what = "section" if len(sections) == 1 else "sections"
    return FileFormatError(f"{name}: damaged {what} {', '.join(map(repr, sections))}: the checksum does not match")
