"""Round trips through the container, by file, by map and by bytes."""

import gc
import os
import tracemalloc

import numpy as np
import pytest

from dci._store import container, layout
from dci._store.container import Blocks, from_bytes, read, to_bytes, verify, write
from dci.errors import FileFormatError, InvalidTypeError, InvalidValueError
from tests.dci.store.mutate import equal, sample


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.dci"


class TestRoundTrips:
    @pytest.mark.parametrize("mmap", [False, True])
    def test_every_dtype_and_shape(self, path, mmap):
        content = sample()
        write(path, *content)
        found = read(path, mmap=mmap)
        assert equal(found, content)
        assert all(array.flags.writeable != mmap for array in found[1].values())
        assert all(array.ctypes.data % 64 == 0 for array in found[1].values() if array.size)
        verify(path)

    def test_bytes_are_those_of_the_file(self, path):
        content = sample()
        write(path, *content)
        data = to_bytes(*content)
        assert bytes(data) == path.read_bytes()
        for source in (data, bytes(data), memoryview(data)):
            found = from_bytes(source)
            assert equal(found, content)
            assert not any(array.flags.writeable for array in found[1].values())

    def test_bytes_at_odd_addresses(self):
        content = sample()
        data = bytearray(1) + to_bytes(*content)
        found = from_bytes(memoryview(data)[1:])
        assert equal(found, content)
        assert all(array.flags.aligned for array in found[1].values())

    @pytest.mark.parametrize("arrays", [{}, {"only": np.empty((0, 3), np.float32)}, {"zero": np.array(7, np.int64)}])
    @pytest.mark.parametrize("meta", [{}, {"text": "ä\ud800", "deep": [[{}]], "number": 2**70}])
    def test_little_or_nothing(self, path, meta, arrays):
        write(path, meta, arrays)
        for mmap in (False, True):
            assert equal(read(path, mmap=mmap), (meta, arrays))

    def test_many_blocks(self, path, monkeypatch):
        monkeypatch.setattr(container, "BLOCK", 1000)
        rng = np.random.default_rng(0)
        arrays = {"a": rng.random((777, 5), np.float32), "b": rng.integers(0, 9, 12_345).astype(np.int16)}
        write(path, {}, arrays)
        assert equal(read(path), ({}, arrays))
        assert equal(read(path, mmap=True, verify=True), ({}, arrays))
        verify(path)

    @pytest.mark.parametrize("block", [1, 100, 10**6])
    def test_any_memory_order_and_byte_order(self, path, monkeypatch, block):
        monkeypatch.setattr(container, "BLOCK", block)
        X = np.random.default_rng(0).random((6, 7, 4), np.float32)
        arrays = {"F": np.asfortranarray(X), "steps": X[::2, ::-1], "big": X.astype(">f4"), "zero": np.array(3, ">i8")}
        write(path, {}, arrays)
        found = read(path)[1]
        for name, array in arrays.items():
            assert found[name].dtype.str in layout.DTYPES
            np.testing.assert_array_equal(found[name], array)

    def test_blocks_are_the_array(self, path):
        X = np.random.default_rng(0).random((50, 7), np.float32)
        blocks = Blocks(X.shape, X.dtype, (X[i : i + 8] for i in range(0, 50, 8)))
        write(path, {}, {"X": blocks, "none": Blocks((0, 3), "i4", [])})
        assert path.read_bytes() == to_bytes({}, {"X": X, "none": np.empty((0, 3), np.int32)})

    def test_equal_content_has_equal_bytes_and_fingerprint(self, path, tmp_path):
        other = tmp_path / "other.dci"
        write(path, *sample())
        write(other, *sample())
        assert path.read_bytes() == other.read_bytes()
        assert container.fingerprint(path) == container.fingerprint(other)
        meta, arrays = sample()
        arrays["part/int64"] = arrays["part/int64"] + 1
        write(other, meta, arrays)
        assert container.fingerprint(path) != container.fingerprint(other)


class TestMemory:
    def test_one_copy_at_most(self, path):
        X = np.zeros((1 << 19, 8), np.float32)  # 16 MiB
        for work, most in [
            (lambda: write(path, {}, {"X": X}), 0.1),
            (lambda: verify(path), 0.6),
            (lambda: read(path), 1.1),
            (lambda: read(path, mmap=True), 0.1),
            (lambda: to_bytes({}, {"X": X}), 1.1),
            (lambda: from_bytes(path.read_bytes()), 1.1),
        ]:
            tracemalloc.start()
            result = work()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            del result
            assert peak < most * X.nbytes, (peak, most)

    def test_maps_outlive_the_file(self, path):
        content = sample()
        write(path, *content)
        mapped = read(path, mmap=True)
        write(path, *sample(1))
        assert equal(mapped, content)
        os.unlink(path)
        gc.collect()
        assert equal(mapped, content)
        one = mapped[1]["part/float32"]
        del mapped
        gc.collect()
        np.testing.assert_array_equal(one, content[1]["part/float32"])


class TestBadContent:
    @pytest.mark.parametrize(
        ("meta", "sections", "error", "message"),
        [
            ([], {}, InvalidTypeError, "meta: expected a dict, received list"),
            ({"a": np.int64(1)}, {}, InvalidTypeError, "meta: expected what JSON can hold"),
            ({"a": float("nan")}, {}, InvalidValueError, "meta: expected what JSON can hold"),
            ({"a": "x" * 2**20}, {}, InvalidValueError, "meta: expected at most 1048576 bytes of JSON"),
            ({}, {"a": [1]}, InvalidTypeError, "a: expected an ndarray or Blocks, received list"),
            ({}, {"a": np.zeros(2)}, InvalidTypeError, "a: expected a dtype of float32, .* received float64"),
            ({}, {"a": np.zeros(2, bool)}, InvalidTypeError, "received bool"),
            ({}, {"a": np.zeros(2, object)}, InvalidTypeError, "received object"),
            ({}, {"a": np.zeros((1,) * 5, "f4")}, InvalidValueError, "a: expected at most 4 axes"),
            ({}, {3: np.zeros(2, "f4")}, InvalidTypeError, "name of an array: expected a str, received int"),
            ({}, {"": np.zeros(2, "f4")}, InvalidValueError, "name of an array: expected 1 to 63"),
            ({}, {"/a": np.zeros(2, "f4")}, InvalidValueError, "received '/a'"),
            ({}, {"a" * 64: np.zeros(2, "f4")}, InvalidValueError, "expected 1 to 63"),
            ({}, {"a": Blocks((), "f4", [])}, InvalidValueError, "a: expected blocks of an array with axes"),
            ({}, {"a": Blocks((-1,), "f4", [])}, InvalidValueError, r"a: expected sizes in \[0, 2\^63\)"),
            ({}, {"a": Blocks((2**40, 2**40), "f4", [])}, InvalidValueError, r"a: expected sizes in \[0, 2\^63\)"),
            ({}, {"a": Blocks((3,), "f4", [np.ones(2, "f4")])}, InvalidValueError, "a: expected 12 bytes .* have 8"),
            ({}, {"a": Blocks((3,), "f4", [np.ones(4, "f4")])}, InvalidValueError, "a: expected 12 bytes .* have more"),
            ({}, {"a": Blocks((3,), "f4", [np.ones(3, "f8")])}, InvalidValueError, r"received \(3,\) and float64"),
            ({}, {"a": Blocks((3, 2), "f4", [np.ones((2, 3), "f4")])}, InvalidValueError, r"received \(2, 3\)"),
            ({}, {str(i): np.zeros(0, "f4") for i in range(4097)}, InvalidValueError, "expected at most 4096"),
        ],
    )
    def test_what_cannot_be_stored(self, path, meta, sections, error, message):
        write(path, *sample())
        with pytest.raises(error, match=message):
            write(path, meta, sections)
        assert equal(read(path), sample())
        assert os.listdir(path.parent) == [path.name]

    def test_verify_names_the_damaged_sections(self, path):
        write(path, *sample())
        data = bytearray(path.read_bytes())
        sections = layout.decode_head(
            lambda offset, count: bytes(data[offset : offset + count]), len(data), ""
        ).sections
        for section in (sections[0], sections[4]):
            data[section.offset] ^= 1
        path.write_bytes(data)
        both = "some.dci: damaged sections 'part/float32', 'part/int16': the checksum does not match"
        for check in (lambda: verify(path), lambda: read(path, mmap=True, verify=True)):
            with pytest.raises(FileFormatError, match=both):
                check()
        with pytest.raises(FileFormatError, match="damaged section 'part/float32'"):
            read(path)
        assert read(path, verify=False)[0] == read(path, mmap=True)[0]
        data[sections[0].offset] ^= 1
        data[sections[4].offset] ^= 1
        data[sections[1].offset - 1] = 1
        path.write_bytes(data)
        for check in (lambda: verify(path), lambda: read(path), lambda: from_bytes(data)):
            with pytest.raises(FileFormatError, match="the padding before section 'part/float16' is not zero"):
                check()
