"""Files of vectors that others write."""

import builtins
from unittest import mock

import numpy as np
import pytest

from dci._store.vectors import read_ids, read_vectors, write_answers
from dci.errors import FileFormatError, InvalidValueError

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def vecs(array):
    counts = np.full((len(array), 1), array.shape[1], "<i4").view(np.uint8)
    return np.hstack([counts, array.view(np.uint8).reshape(len(array), -1)]).tobytes()


def write(path):
    """Write X in the way of the name."""
    kind = path.suffix
    if kind == ".npy":
        np.save(path, X)
    elif kind == ".npz":
        np.savez(path, X)
    elif kind == ".csv":
        np.savetxt(path, X, delimiter=",")
    else:
        path.write_bytes(vecs(X.astype({".fvecs": "<f4", ".ivecs": "<i4", ".bvecs": "u1"}[kind])))
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "fvecs", "ivecs", "bvecs"])
def test_every_kind(tmp_path, kind):
    found = read_vectors(write(tmp_path / f"some.name.{kind}"))
    assert np.array_equal(found, X)


def test_one_of_several_arrays(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, a=X, b=X[:1])
    assert np.array_equal(read_vectors(f"{path}:b"), X[:1])
    with pytest.raises(InvalidValueError, match="expected one array, or .*some.npz:name .*, received a, b"):
        read_vectors(str(path))
    with pytest.raises(InvalidValueError, match="expected an array 'c', received a, b"):
        read_vectors(f"{path}:c")


def test_csv_with_names_and_without_lines(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("\ufeffx,y\r\n1,2.5\r\n\r\n-3,4e2\r\n", encoding="utf-8")
    assert read_vectors(str(path)).tolist() == [[1, 2.5], [-3, 400]]
    path.write_text("")
    assert read_vectors(str(path)).shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.fvecs", vecs(X)[:-1], "expected rows of 16 bytes, as 3 coordinates take, received 63 bytes"),
        ("a.fvecs", vecs(X)[:3], "expected at least 4 bytes, received 3"),
        ("a.fvecs", vecs(X)[:16] + b"\2" + vecs(X)[17:], "expected 3 coordinates in each row, received 2 in row 1"),
        ("a.fvecs", bytes(16), "expected a number of coordinates from 1, received 0"),
        ("a.bvecs", b"\xff" * 64, "expected a number of coordinates from 1, received -1"),
        ("a.fvecs", b"\xff\xff\xff\x7f" * 4, "expected rows of"),
        ("a.npy", b"junk", "expected a .npy file"),
        ("a.npy", b"", "expected a .npy file"),
        ("a.npz", b"junk", "expected a .npz file"),
        ("a.npz", b"PK\3\4junk", "expected a .npz file"),
        ("a.csv", b"1,2\n3\n", "expected lines of as many numbers"),
        ("a.csv", b"1,2\n3,x\n", "expected lines of as many numbers"),
        ("a.csv", b"1,2\n\xff\xfe\n", "expected lines of as many numbers"),
        ("a.h5", b"", "expected a file of .npy, .npz"),
    ],
)
def test_what_is_in_the_way(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidValueError, match=message) as caught:
        read_vectors(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert name == "a.h5" or isinstance(caught.value, FileFormatError)


def test_arrays_of_objects_and_of_one_axis(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match="expected a .npy file of numbers"):
        read_vectors(str(tmp_path / "objects.npy"))
    np.save(tmp_path / "row.npy", np.ones(3))
    with pytest.raises(InvalidValueError, match=r"expected rows of real numbers, received float64 of shape \(3,\)"):
        read_vectors(str(tmp_path / "row.npy"))
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    with pytest.raises(InvalidValueError, match="expected rows of real numbers"):
        read_vectors(str(tmp_path / "words.npy"))


def test_parquet_needs_a_package(tmp_path):
    def fail(name, *args, real=builtins.__import__, **kwargs):
        if name.split(".")[0] in ("pyarrow", "pandas"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    with mock.patch.object(builtins, "__import__", fail), pytest.raises(ImportError, match="pip install pyarrow"):
        read_vectors(str(tmp_path / "some.parquet"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "some.parquet"
    for table in ({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}, {"vector": X.tolist()}):
        parquet.write_table(pyarrow.table(table), path)
        assert np.array_equal(read_vectors(str(path)), X)


def test_ids(tmp_path):
    np.save(tmp_path / "a.npy", np.array([5, -(2**62), 7]))
    assert read_ids(str(tmp_path / "a.npy")).tolist() == [5, -(2**62), 7]
    (tmp_path / "a.csv").write_text(f"id\n{2**62 + 1}\n3\n")
    assert read_ids(str(tmp_path / "a.csv")).tolist() == [2**62 + 1, 3]
    np.save(tmp_path / "b.npy", np.array([0.5]))
    with pytest.raises(InvalidValueError, match="expected ids, .* received float64"):
        read_ids(str(tmp_path / "b.npy"))


def test_answers_replace_a_file_at_once(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    full = OSError(28, "No space left on device")
    with mock.patch.object(np, "savez", side_effect=full), pytest.raises(OSError, match="No space left"):
        write_answers(str(path), X, X.astype(np.int64))
    assert path.read_text() == "old"
    write_answers(str(path), X, X.astype(np.int64))
    with np.load(path) as found:
        assert np.array_equal(found["distances"], X)
    assert len(list(tmp_path.iterdir())) == 1
