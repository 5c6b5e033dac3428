"""The container's header and directory: into bytes, and out of bytes that nobody has to trust.

The names of the fields are those of docs/file-format.md. Everything is checked before anything is allocated or viewed
on its word: `decode_head` returns sections that lie within the file, apart from each other, and have the size that
their shape and dtype say.
"""

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import FileFormatError, InvalidTypeError, InvalidValueError

MAGIC = b"\x89DCI\r\n\x1a\n"
VERSION = 1
ORDER_MARK = 0x01020304
SWAPPED_MARK = 0x04030201
ALIGNMENT = 64
MAX_SECTIONS = 4096
MAX_META = 1 << 20
MAX_NDIM = 4
MAX_BYTES = 2**63 - 1
MAX_NAME = 63

PREFIX = struct.Struct("<8sII")  # magic, order mark, version: the same in every version, and in the journal
HEADER = struct.Struct("<8sIIQII24sII")
ENTRY = struct.Struct("<64s4sI4QQQII")

DTYPES = {name: np.dtype(name) for name in ("<f4", "<f2", "|i1", "|u1", "<i2", "<i4", "<i8", "<u4", "<u8")}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")

Shape = tuple[int, ...]
Fetch = Callable[[int, int], bytes]


class Section(NamedTuple):
    """One array of a file."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    offset: int
    nbytes: int
    crc: int


class Head(NamedTuple):
    """What precedes the data of a file; it ends at byte `end`."""

    meta: dict[str, Any]
    sections: list[Section]
    end: int


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """Round up to a multiple of `alignment`."""
    return -(-position // alignment) * alignment


# ---- what writers hand in ----


def check_name(name: Any, longest: int = MAX_NAME) -> str:
    """Return the name of an array."""
    if not isinstance(name, str):
        raise InvalidTypeError(f"name of an array: expected a str, received {type(name).__name__}")
    if not _valid_name(name, longest):
        raise InvalidValueError(
            f"name of an array: expected 1 to {longest} of A-Z a-z 0-9 _ . / -, beginning with none of the last three, "
            f"received {name!r}"
        )
    return name


def check_array(name: str, dtype: npt.DTypeLike, shape: Shape) -> np.dtype[Any]:
    """Return the little-endian dtype of an array that can be stored."""
    little = np.dtype(dtype).newbyteorder("<")
    if little.str not in DTYPES:
        expected = ", ".join(each.name for each in DTYPES.values())
        raise InvalidTypeError(f"{name}: expected a dtype of {expected}, received {np.dtype(dtype)}")
    if len(shape) > MAX_NDIM:
        raise InvalidValueError(f"{name}: expected at most {MAX_NDIM} axes, received shape {shape}")
    if min(shape, default=0) < 0 or _extent(shape, little) > MAX_BYTES:
        raise InvalidValueError(f"{name}: expected sizes in [0, 2^63) bytes, received shape {shape}")
    return DTYPES[little.str]


def encode_meta(meta: Any) -> bytes:
    """Write a dict as JSON."""
    if not isinstance(meta, dict):
        raise InvalidTypeError(f"meta: expected a dict, received {type(meta).__name__}")
    try:
        text = json.dumps(meta, allow_nan=False, separators=(",", ":")).encode()
    except TypeError as error:
        raise InvalidTypeError(f"meta: expected what JSON can hold: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"meta: expected what JSON can hold: {error}") from error
    if len(text) > MAX_META:
        raise InvalidValueError(f"meta: expected at most {MAX_META} bytes of JSON, received {len(text)}")
    return text


def lay_out(arrays: Sequence[tuple[str, np.dtype[Any], Shape]], meta_bytes: int) -> list[Section]:
    """Place arrays in a file, one after the other; their checksums are 0 yet."""
    if len(arrays) > MAX_SECTIONS:
        raise InvalidValueError(f"sections: expected at most {MAX_SECTIONS}, received {len(arrays)}")
    sections = []
    position = HEADER.size + ENTRY.size * len(arrays) + meta_bytes
    for name, dtype, shape in arrays:
        offset, nbytes = aligned(position), math.prod(shape) * dtype.itemsize
        sections.append(Section(name, dtype, shape, offset, nbytes, 0))
        position = offset + nbytes
    if position > MAX_BYTES:
        raise InvalidValueError(f"sections: expected less than 2^63 bytes, received {position}")
    return sections


def encode_head(meta: bytes, sections: Sequence[Section]) -> bytes:
    """Header, directory and JSON: all that precedes the first section, but for its padding."""
    entries = [
        ENTRY.pack(
            section.name.encode(),
            section.dtype.str.encode(),
            len(section.shape),
            *section.shape,
            *(0,) * (MAX_NDIM - len(section.shape)),
            section.offset,
            section.nbytes,
            section.crc,
            0,
        )
        for section in sections
    ]
    directory = b"".join([*entries, meta])
    end = sections[-1].offset + sections[-1].nbytes if sections else HEADER.size + len(directory)
    header = HEADER.pack(
        MAGIC, ORDER_MARK, VERSION, end, len(sections), len(meta), bytes(24), zlib.crc32(directory), 0
    )[:-4]
    return header + struct.pack("<I", zlib.crc32(header)) + directory


# ---- what readers find ----


def decode_head(fetch: Fetch, length: int, file: str) -> Head:
    """Read and check everything but the data.

    Parameters
    ----------
    fetch : callable
        ``fetch(offset, count)`` returns so many bytes of the file as bytes.
    length : int
        Bytes that there are.
    file : str
        What messages call it.

    Returns
    -------
    Head
        With the sections by ascending offsets.

    Raises
    ------
    FileFormatError
        With the first reason, in the order of the fields.
    """
    head = fetch(0, min(length, HEADER.size))
    check_prefix(head, MAGIC, VERSION, HEADER.size, file)
    _, _, _, end, n_sections, meta_bytes, reserved, directory_crc, header_crc = HEADER.unpack(head)
    if zlib.crc32(head[:-4]) != header_crc:
        raise FileFormatError(f"{file}: the header is damaged: its checksum does not match")
    if any(reserved):
        raise FileFormatError(f"{file}: the header's reserved bytes are not zero")
    if n_sections > MAX_SECTIONS or meta_bytes > MAX_META:
        raise FileFormatError(
            f"{file}: expected at most {MAX_SECTIONS} sections and {MAX_META} bytes of JSON, "
            f"received {n_sections} and {meta_bytes}"
        )
    if length != end:
        what = "truncated" if length < end else "something follows its end"
        raise FileFormatError(f"{file}: expected {end} bytes, as its header says, received {length}: {what}")
    data = HEADER.size + n_sections * ENTRY.size + meta_bytes
    if data > end:
        raise FileFormatError(f"{file}: the directory reaches to byte {data}, beyond the end at {end}")
    directory = fetch(HEADER.size, data - HEADER.size)
    if zlib.crc32(directory) != directory_crc:
        raise FileFormatError(f"{file}: the directory is damaged: its checksum does not match")

    sections = []
    names = set()
    position = data
    for i in range(n_sections):
        section = _decode_entry(directory[i * ENTRY.size : (i + 1) * ENTRY.size], position, end, f"{file}: section {i}")
        if section.name in names:
            raise FileFormatError(f"{file}: section {i}: there are two of the name {section.name!r}")
        names.add(section.name)
        sections.append(section)
        position = section.offset + section.nbytes
    if position != end:
        raise FileFormatError(f"{file}: the last section ends at byte {position}, the file at {end}")
    return Head(decode_meta(directory[n_sections * ENTRY.size :], file), sections, data)


def check_prefix(head: bytes, magic: bytes, version: int, size: int, file: str) -> None:
    """Refuse a file that is of another kind, byte order or version, or too short for its header."""
    if head[: len(magic)] != magic[: len(head)]:
        raise FileFormatError(f"{file}: expected a file that begins with {magic!r}, received {head[: len(magic)]!r}")
    if len(head) < size:
        raise FileFormatError(f"{file}: expected at least {size} bytes, received {len(head)}: truncated")
    _, mark, found = PREFIX.unpack_from(head)
    if mark == SWAPPED_MARK:
        raise FileFormatError(f"{file}: expected little-endian numbers, received big-endian ones")
    if mark != ORDER_MARK:
        raise FileFormatError(f"{file}: expected the byte order mark {ORDER_MARK:#010x}, received {mark:#010x}")
    if found > version:
        raise FileFormatError(
            f"{file}: expected version {version} of the format or an older one, received version {found}: "
            "a newer release of this library wrote it"
        )
    if found == 0:
        raise FileFormatError(f"{file}: expected version 1 to {version} of the format, received 0")


def decode_array(name: bytes, code: bytes, ndim: int, sizes: Shape, where: str) -> tuple[str, np.dtype[Any], Shape]:
    """Check what an entry says about an array; `where` begins the messages."""
    text = name.rstrip(b"\0").decode("ascii", "replace")
    if not _valid_name(text, len(name) - 1):
        raise FileFormatError(f"{where}: invalid name {text!r}")
    dtype = DTYPES.get(code.rstrip(b"\0").decode("ascii", "replace"))
    if dtype is None:
        raise FileFormatError(f"{where}: expected a dtype of {', '.join(DTYPES)}, received {code!r}")
    if ndim > MAX_NDIM:
        raise FileFormatError(f"{where}: expected at most {MAX_NDIM} axes, received {ndim}")
    shape = sizes[:ndim]
    if any(sizes[ndim:]):
        raise FileFormatError(f"{where}: expected zeros after the {ndim} sizes of its axes, received {sizes[ndim:]}")
    if _extent(shape, dtype) > MAX_BYTES:
        raise FileFormatError(f"{where}: expected less than 2^63 bytes, received shape {shape} of {dtype}")
    return text, dtype, shape


def decode_meta(text: bytes, file: str) -> dict[str, Any]:
    """Read a dict from JSON as RFC 8259 has it: without NaN, infinities, or numbers that become infinite."""
    try:
        meta = json.loads(text.decode(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FileFormatError(f"{file}: the JSON cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise FileFormatError(f"{file}: expected a JSON object, received {type(meta).__name__}")
    return meta


def _decode_entry(entry: bytes, position: int, end: int, where: str) -> Section:
    """Check one entry of the directory; what precedes its section ends at `position`."""
    raw_name, code, ndim, *sizes, offset, nbytes, crc, reserved = ENTRY.unpack(entry)
    name, dtype, shape = decode_array(raw_name, code, ndim, tuple(sizes), where)
    where = f"{where} ({name})"
    expected = math.prod(shape) * dtype.itemsize
    if nbytes != expected:
        raise FileFormatError(
            f"{where}: expected {expected} bytes for shape {shape} of {dtype}, the directory says {nbytes}"
        )
    if offset % ALIGNMENT:
        raise FileFormatError(f"{where}: expected an offset that is a multiple of {ALIGNMENT}, received {offset}")
    if offset < position:
        raise FileFormatError(f"{where}: begins at byte {offset} and overlaps what ends at {position}")
    if offset + nbytes > end:
        raise FileFormatError(f"{where}: bytes {offset} to {offset + nbytes} reach beyond the file's end at {end}")
    if offset != aligned(position):
        raise FileFormatError(f"{where}: expected to begin at byte {aligned(position)}, received {offset}")
    if reserved:
        raise FileFormatError(f"{where}: the reserved bytes are not zero")
    return Section(name, dtype, shape, offset, nbytes, crc)


def _valid_name(name: str, longest: int) -> bool:
    return len(name) <= longest and _NAME.fullmatch(name) is not None


def _extent(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Bytes that NumPy requires to be addressable, also for an empty array: as if no axis were empty."""
    return math.prod(max(1, size) for size in shape) * dtype.itemsize


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, received {text}")
    return value
