"""Damaged and forged files: python tests/dci/store/mutate.py 100000

Damage changes bytes; a reader has to refuse the file or find the content equal. A forgery changes a field and computes
the checksums again, so that only the checks of the structure stand between it and the reader; what is accepted has to
be a whole file, which written again has the same bytes. What indexes are made of is changed by `mutate_contents.py`.
"""

import os
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from unittest import mock

import numpy as np

from dci._store import container, layout, records
from dci._store import journal as journals
from dci.errors import FileFormatError

BASE = bytes(range(16))
INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    65,
    127,
    128,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 64,
)
INTERESTING += (2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1)


def sample(seed=0):
    """Meta and arrays of every dtype, with empty ones and none of the sizes round."""
    rng = np.random.default_rng(seed)
    shapes = [(5, 3), (), (0, 4), (7,), (2, 3, 2), (1, 1, 1, 5), (33,), (0,), (4, 4)]
    arrays = {
        f"part/{np.dtype(name).name}": rng.integers(0, 100, shape).astype(name)
        for name, shape in zip(layout.DTYPES, shapes, strict=True)
    }
    return {"metric": "l2", "n": 5, "nested": {"a": [1.5, None, "ä"]}, "seed": seed}, arrays


def seal(data):
    """Compute the checksums of a container again, as far as its fields lead to places inside."""
    data = bytearray(data)
    n_sections, meta_bytes = struct.unpack_from("<II", data, 24)
    end = 64 + 128 * n_sections + meta_bytes
    if end <= len(data):
        for i in range(n_sections):
            offset, nbytes = struct.unpack_from("<QQ", data, 64 + 128 * i + 104)
            if offset + nbytes <= len(data):
                struct.pack_into("<I", data, 64 + 128 * i + 120, zlib.crc32(data[offset : offset + nbytes]))
        struct.pack_into("<I", data, 56, zlib.crc32(data[64:end]))
    struct.pack_into("<I", data, 60, zlib.crc32(data[:60]))
    return bytes(data)


def seal_record(data, begin, length):
    """Compute the checksums of one record again."""
    data = bytearray(data)
    struct.pack_into("<I", data, begin + 36, zlib.crc32(data[begin + 40 : begin + length]))
    struct.pack_into("<I", data, begin + 4, zlib.crc32(data[begin + 8 : begin + 40]))
    return bytes(data)


def damage(data, other, rng):
    """Flip bits, cut, extend, or splice."""
    data = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            data[position] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:
        data += rng.bytes(int(rng.integers(1, 200)))
    elif kind == 3:
        begin, source = rng.integers(len(data)), rng.integers(len(other))
        size = rng.integers(1, 300)
        data[begin : begin + size] = other[source : source + size]
    else:
        begin = rng.integers(len(data))
        size = rng.integers(1, 100)
        data[begin : begin + size] = bytes(len(data[begin : begin + size]))
    return bytes(data)


def put_field(data, fields, rng):
    """Set one of the fields (offset, size) to an interesting value, or a neighbour of its own."""
    data = bytearray(data)
    offset, size = fields[rng.integers(len(fields))]
    old = int.from_bytes(data[offset : offset + size], "little")
    value = int(rng.choice(np.array(INTERESTING, dtype=object)))
    if rng.integers(3) == 0:
        value = old + int(rng.integers(-70, 71))
    data[offset : offset + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(data)


def forge(data, rng):
    """Change fields of a container and seal it."""
    n_sections, meta_bytes = struct.unpack_from("<II", data, 24)
    fields = [(8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32 + int(rng.integers(24)), 1)]
    for begin in range(64, 64 + 128 * n_sections, 128):
        fields += [(begin + int(rng.integers(64)), 1), (begin + 64, 4), (begin + 68, 4), (begin + 124, 4)]
        fields += [(begin + offset, 8) for offset in (72, 80, 88, 96, 104, 112)]
    meta = 64 + 128 * n_sections
    fields += [(meta + int(rng.integers(meta_bytes)), 1) for _ in range(8)]
    for _ in range(rng.integers(1, 4)):
        data = put_field(data, fields, rng)
    if rng.integers(4) == 0:  # one section's place and shape for another's
        i, j = 64 + 128 * rng.integers(n_sections, size=2)
        copy = bytearray(data)
        copy[i + 64 : i + 120] = data[j + 64 : j + 120]
        data = bytes(copy)
    return seal(data)


def forge_journal(data, bounds, rng):
    """Change fields of one record and seal it; return also which."""
    which = int(rng.integers(len(bounds)))
    begin, length = bounds[which]
    n_arrays, meta_bytes = struct.unpack_from("<II", data, begin + 28)
    fields = [(begin + 8, 8), (begin + 16, 8), (begin + 24, 4), (begin + 28, 4), (begin + 32, 4)]
    for entry in range(begin + 40, begin + 40 + 56 * n_arrays, 56):
        fields += [(entry + int(rng.integers(16)), 1), (entry + 16, 4), (entry + 20, 4)]
        fields += [(entry + offset, 8) for offset in (24, 32, 40, 48)]
    fields += [(begin + 40 + 56 * n_arrays + i, 1) for i in range(meta_bytes)]
    for _ in range(rng.integers(1, 3)):
        data = put_field(data, fields, rng)
    return seal_record(data, begin, length), which


def equal(one, other):
    """Whether two contents are the same to the bit."""
    return (
        one[0] == other[0]
        and list(one[1]) == list(other[1])
        and all(
            a.dtype == b.dtype and a.shape == b.shape for a, b in zip(one[1].values(), other[1].values(), strict=True)
        )
        and all(a.tobytes() == b.tobytes() for a, b in zip(one[1].values(), other[1].values(), strict=True))
    )


def attempt(read):
    """Return a content, or None if the file was refused."""
    try:
        return read()
    except FileFormatError:
        return None


def try_container(data, path):
    """Read it in every way, which must agree; return the content or None."""
    with open(path, "wb") as file:
        file.write(data)
    content = attempt(lambda: container.from_bytes(data))
    unverified = attempt(lambda: container.read(path, mmap=True))
    if unverified is not None:
        for array in unverified[1].values():
            array.tobytes()  # a page that is not there would kill the process
    else:
        assert content is None
    for read in (lambda: container.read(path), lambda: container.read(path, mmap=True, verify=True)):
        again = attempt(read)
        assert (again is None) == (content is None)
        assert content is None or equal(again, content)
    assert (attempt(lambda: (container.verify(path), True)) is None) == (content is None)
    if content is not None:
        assert sum(array.nbytes for array in content[1].values()) <= len(data)
        written = container.to_bytes(*content)
        if layout.encode_meta(content[0]) in data:  # else its JSON is spelled otherwise
            assert bytes(written) == data
        assert equal(container.from_bytes(written), content)
    return content


def fuzz_containers(count, rng, path):
    meta, arrays = sample()
    original, other = bytes(container.to_bytes(meta, arrays)), bytes(container.to_bytes(*sample(1)))
    assert equal(try_container(original, path), (meta, arrays))
    assert seal(original) == original
    outcomes = Counter()
    for i in range(count):
        if i % 2:
            content = try_container(damage(original, other, rng), path)
            assert content is None or equal(content, (meta, arrays)), "damage was not seen"
            outcomes["damaged: refused" if content is None else "damaged: accepted with equal content"] += 1
        else:
            content = try_container(forge(original, rng), path)
            outcomes["forged: refused" if content is None else "forged: accepted as a whole file"] += 1
    return outcomes


def sample_journal(path, seed=0):
    """Write a journal; return its records, their bounds, and its bytes."""
    rng = np.random.default_rng(seed)
    journals.create_journal(path, 3, BASE, 10)
    bounds = []
    with journals.Journal(path, 3, BASE) as journal:
        for i in range(6):
            begin = journal.nbytes
            arrays = {"ids": rng.integers(0, 9, i), "X": rng.random((i, 3), np.float32)}
            journal.append(1 + i % 2, {"i": i} if i % 3 else None, arrays if i != 2 else None, sync=False)
            bounds.append((begin, journal.nbytes - begin))
        written = list(journal.replay())
    with open(path, "rb") as file:
        return written, bounds, file.read()


def try_journal(data, path):
    """Return the records, None if they were refused; a second opening must find the same, with nothing to cut."""
    with open(path, "wb") as file:
        file.write(data)
    found = []
    for attempt_number in range(2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error" if attempt_number else "ignore", UserWarning)
                with journals.Journal(path, 3, BASE) as journal:
                    found.append(list(journal.replay()))
        except FileFormatError:
            assert attempt_number == 0
            return None
    assert len(found[0]) == len(found[1])
    assert all(equal_records(a, b) for a, b in zip(*found, strict=True))
    return found[0]


def equal_records(one, other):
    return one[:2] == other[:2] and equal(one[2:], other[2:])


def fuzz_journals(count, rng, path):
    written, bounds, original = sample_journal(path)
    other = sample_journal(path, 1)[2]
    assert len(try_journal(original, path)) == len(written)
    outcomes = Counter()
    for i in range(count):
        if i % 2:
            mutated = damage(original, other, rng)
            found = try_journal(mutated, path)
            if found is not None:
                assert len(found) <= len(written)
                assert all(equal_records(a, b) for a, b in zip(found, written, strict=False)), "damage was not seen"
            what = "refused" if found is None else "a prefix of equal records accepted"
            outcomes[f"damaged journals: {what}"] += 1
        else:
            mutated, which = forge_journal(original, bounds, rng)
            found = try_journal(mutated, path)
            if found is not None:
                for k, record in enumerate(found):
                    assert record.sequence == 10 + k
                    assert k == which or equal_records(record, written[k])
                    pieces, length = records.encode(
                        k + 10, record.operation, layout.encode_meta(record.meta), record.arrays
                    )
                    assert length == sum(map(len, pieces))
                    assert sum(array.nbytes for array in record.arrays.values()) <= len(original)
            outcomes[f"forged journals: {'refused' if found is None else 'whole records accepted'}"] += 1
    return outcomes


def run(count, seed=0):
    """Try so many files, three in four of them containers."""
    rng = np.random.default_rng(seed)
    # Thousands of syncs would take most of the time, and are not what is tested.
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(journals, "sync"):
        n_journals = count // 4
        outcomes = fuzz_containers(count - n_journals, rng, os.path.join(directory, "mutated.dci"))
        outcomes.update(fuzz_journals(n_journals, rng, os.path.join(directory, "mutated.log")))
    return outcomes


if __name__ == "__main__":
    outcomes = run(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"tried {sum(outcomes.values())} files")
    for what, count in sorted(outcomes.items()):
        print(f"{count:8d} {what}")
