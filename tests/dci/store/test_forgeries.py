"""What is wrong with a file is said, field by field, before anything is allocated on its word."""

import os
import struct
import tracemalloc

import numpy as np
import pytest

from dci._store import container
from dci._store.container import from_bytes, read, to_bytes, verify
from dci.errors import DCIError, FileFormatError
from tests.dci.store.mutate import seal

X = np.arange(15, dtype=np.float32).reshape(5, 3)
IDS = np.arange(40)
ENTRY = 64  # of X; that of the ids follows 128 bytes later
IDS_ENTRY = ENTRY + 128


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forged.dci"


def whole():
    return bytes(to_bytes({"metric": "l2"}, {"X": X, "ids": IDS}))


def forged(offset, layout, *values):
    data = bytearray(whole())
    struct.pack_into("<" + layout, data, offset, *values)
    return seal(data)


def with_meta(text):
    """The same sections with another JSON text of the same length."""
    data = bytearray(whole())
    text = text.ljust(15)
    data[64 + 256 : 64 + 256 + 15] = text
    return seal(data)


def refuse(path, data, message):
    path.write_bytes(data)
    for check in (lambda: read(path), lambda: read(path, mmap=True), lambda: verify(path)):
        with pytest.raises(FileFormatError, match=f"forged.dci: .*{message}"):
            check()
    with pytest.raises(FileFormatError, match=f"^some bytes: .*{message}"):
        from_bytes(data, name="some bytes")


def test_the_offsets_here_are_right(path):
    path.write_bytes(seal(whole()))
    assert read(path)[0] == {"metric": "l2"}
    assert with_meta(b'{"metric":"l2"}') == whole()


@pytest.mark.parametrize(
    ("offset", "layout", "values", "message"),
    [
        (0, "8s", (b"\x93NUMPY\x01\0",), "expected a file that begins with b'.x89DCI.*received b'.x93NUMPY"),
        (0, "8s", (b"\x89DCI\n\x1a\n\n",), "expected a file that begins with"),
        (8, "I", (0x04030201,), "expected little-endian numbers, received big-endian ones"),
        (8, "I", (7,), "expected the byte order mark 0x01020304, received 0x00000007"),
        (12, "I", (2,), "expected version 1 of the format or an older one, received version 2: a newer release"),
        (12, "I", (0,), "expected version 1 to 1 of the format, received 0"),
        (16, "Q", (2**63,), f"expected {2**63} bytes, as its header says, received 768: truncated"),
        (16, "Q", (700,), "expected 700 bytes, as its header says, received 768: something follows its end"),
        (24, "I", (2**32 - 1,), "expected at most 4096 sections and 1048576 bytes of JSON, received 4294967295 and 15"),
        (24, "I", (4096,), "the directory reaches to byte 524367, beyond the end at 768"),
        (24, "I", (1,), r"section 0 \(X\): expected to begin at byte 256, received 384"),
        (28, "I", (2**32 - 1,), "expected at most 4096 sections .* received 2 and 4294967295"),
        (28, "I", (2**20,), "the directory reaches to byte 1048896, beyond the end at 768"),
        (28, "I", (14,), "the JSON cannot be read"),
        (40, "B", (1,), "the header's reserved bytes are not zero"),
        (ENTRY, "64s", (b"",), "section 0: invalid name ''"),
        (ENTRY, "64s", (b"../X",), "section 0: invalid name '../X'"),
        (ENTRY, "64s", (b"a\0b",), "section 0: invalid name"),
        (ENTRY, "64s", (b"a" * 64,), "section 0: invalid name"),
        (ENTRY, "64s", (b"\xff",), "section 0: invalid name"),
        (ENTRY, "64s", (b"ids",), "section 1: there are two of the name 'ids'"),
        (ENTRY + 64, "4s", (b"|O",), "section 0: expected a dtype of <f4, .* received b'|O"),
        (ENTRY + 64, "4s", (b">f4",), "section 0: expected a dtype of"),
        (ENTRY + 64, "4s", (b"<f8",), "section 0: expected a dtype of"),
        (ENTRY + 64, "4s", (b"<f2",), r"section 0 \(X\): expected 30 bytes .* the directory says 60"),
        (ENTRY + 68, "I", (5,), "section 0: expected at most 4 axes, received 5"),
        (ENTRY + 68, "I", (1,), "section 0: expected zeros after the 1 sizes of its axes"),
        (ENTRY + 68, "I", (3,), r"section 0 \(X\): expected 0 bytes for shape \(5, 3, 0\)"),
        (ENTRY + 72, "QQ", (2**40, 2**40), "section 0: expected less than 2.63 bytes"),
        (ENTRY + 72, "QQ", (2**63, 0), "section 0: expected less than 2.63 bytes"),
        (ENTRY + 72, "QQ", (2**62, 3), "section 0: expected less than 2.63 bytes"),
        (ENTRY + 72, "Q", (2**64 - 1,), "section 0: expected less than 2.63 bytes"),
        (ENTRY + 72, "Q", (2**40,), r"section 0 \(X\): expected 13194139533312 bytes .* says 60"),
        (ENTRY + 104, "Q", (385,), r"section 0 \(X\): expected an offset that is a multiple of 64, received 385"),
        (ENTRY + 104, "Q", (320,), r"section 0 \(X\): begins at byte 320 and overlaps what ends at 335"),
        (ENTRY + 104, "Q", (0,), r"section 0 \(X\): begins at byte 0 and overlaps"),
        (ENTRY + 104, "Q", (2**64 - 64,), r"section 0 \(X\): bytes .* reach beyond the file's end at 768"),
        (ENTRY + 104, "Q", (512,), r"section 0 \(X\): expected to begin at byte 384, received 512"),
        (ENTRY + 112, "Q", (64,), r"section 0 \(X\): expected 60 bytes for shape \(5, 3\) of float32, .* says 64"),
        (ENTRY + 124, "I", (1,), r"section 0 \(X\): the reserved bytes are not zero"),
        (IDS_ENTRY + 104, "Q", (384,), r"section 1 \(ids\): begins at byte 384 and overlaps what ends at 444"),
        (IDS_ENTRY + 104, "Q", (640,), r"section 1 \(ids\): bytes 640 to 960 reach beyond the file's end at 768"),
    ],
)
def test_each_field(path, offset, layout, values, message):
    tracemalloc.start()
    data = forged(offset, layout, *values)
    assert len(data) == 768, "or the messages above have other numbers"
    refuse(path, data, message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_nothing_may_follow_the_last_section(path):
    data = bytearray(whole() + b"payload")
    struct.pack_into("<Q", data, 16, len(data))
    refuse(path, seal(data), "the last section ends at byte 768, the file at 775")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1, 2]", "expected a JSON object, received list"),
        (b'{"a": NaN}', "the JSON cannot be read: expected finite numbers, received NaN"),
        (b'{"a": -1e999}', "the JSON cannot be read: expected finite numbers, received -1e999"),
        (b'{"a": 1', "the JSON cannot be read"),
        (b'{"\xff": 1}', "the JSON cannot be read: 'utf-8' codec"),
        (b"", "the JSON cannot be read"),
    ],
)
def test_json(path, text, message):
    refuse(path, with_meta(text), message)


@pytest.mark.parametrize("text", [b"[" * 2**20, b'{"a":' * 2**17, b'{"a":' + b"9" * 10_000 + b"}"])
def test_hostile_json(path, text):
    head = bytearray(to_bytes({}, {}))
    struct.pack_into("<QII", head, 16, 64 + len(text), 0, len(text))
    refuse(path, seal(bytes(head[:64]) + text), "the JSON cannot be read")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 63, 64, 100, 334, 335, 400, 767])
def test_truncated(path, kept):
    expected = 768 if kept >= 64 else 64
    least = " at least" if kept < 64 else ""
    refuse(path, whole()[:kept], f"expected{least} {expected} bytes,.* received {kept}: truncated")


@pytest.mark.parametrize(("position", "part"), [(20, "header"), (61, "header"), (70, "directory"), (325, "directory")])
def test_damaged_head(path, position, part):
    data = bytearray(whole())
    data[position] ^= 4
    refuse(path, bytes(data), f"the {part} is damaged: its checksum does not match")


def test_what_is_no_file(tmp_path):
    for check in (read, verify, container.fingerprint):
        with pytest.raises(FileNotFoundError, match="missing.dci"):
            check(tmp_path / "missing.dci")
        with pytest.raises(FileFormatError, match="expected a regular file"):
            check(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="pipe: expected a regular file"):
        read(tmp_path / "pipe")


def test_the_error_is_one_of_the_family():
    assert issubclass(FileFormatError, DCIError)
    assert issubclass(FileFormatError, ValueError)


def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    path.write_bytes(whole())
    length = container._length
    monkeypatch.setattr(container, "_length", lambda file: [length(file), os.truncate(path, 500)][0])
    with pytest.raises(FileFormatError, match="expected .* bytes at .*, received .*: truncated"):
        read(path)
