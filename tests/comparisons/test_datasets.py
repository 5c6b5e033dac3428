"""Data sets: what is read, made, kept and refused."""

import json

import numpy as np
import pytest

from comparisons.data import datasets
from comparisons.data.datasets import ComparisonError, load


def test_a_npy_file_is_split_without_overlap(tmp_path, monkeypatch):
    rows = np.arange(200, dtype=np.float64).reshape(100, 2)
    np.save(tmp_path / "mine.npy", rows)
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    for name in ("mine", "mine.npy", str(tmp_path / "mine.npy")):
        data = load(name)
        assert data.points.shape == (90, 2)
        assert data.points.dtype == data.queries.dtype == np.float32
        np.testing.assert_array_equal(np.sort(np.concatenate([data.points, data.queries]), axis=0), rows)


def test_fvecs_are_read(tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    header = np.full((30, 1), 4, dtype=np.int32).view(np.float32)
    np.hstack([header, rows]).tofile(tmp_path / "mine.fvecs")
    data = load(str(tmp_path / "mine.fvecs"))
    read = np.concatenate([data.points, data.queries])
    np.testing.assert_array_equal(np.sort(read, axis=0), np.sort(rows, axis=0))


def fvecs(rows, dim):
    return np.hstack([np.full((len(rows), 1), dim, dtype=np.int32).view(np.float32), rows]).tobytes()


def npy(path, rows):
    np.save(path, rows, allow_pickle=True)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", lambda p: b"not an array", "cannot read"),
        ("a.npy", lambda p: b"", "cannot read"),
        ("a.npy", lambda p: b"\x93NUMPY\x01\x00", "cannot read"),
        ("a.npy", lambda p: npy(p, np.ones((50, 3)))[:-8], "cannot read"),
        ("a.npy", lambda p: npy(p, np.array([{}] * 30)), "cannot read"),
        ("a.npy", lambda p: npy(p, np.ones(50)), r"expected a numeric \(n, d\) array of 20 or more rows, got shape"),
        ("a.npy", lambda p: npy(p, np.ones((5, 3))), "20 or more rows"),
        ("a.npy", lambda p: npy(p, np.ones((50, 0))), "cannot use"),
        ("a.npy", lambda p: npy(p, np.full((50, 3), "a")), "numeric"),
        ("a.npy", lambda p: npy(p, np.ones((50, 3)) * 1j), "numeric"),
        ("a.npy", lambda p: npy(p, np.where(np.arange(150).reshape(50, 3) == 7, np.nan, 1)), "row 2 holds NaN"),
        ("a.fvecs", lambda p: b"", "not whole vectors"),
        ("a.fvecs", lambda p: fvecs(np.ones((30, 4), np.float32), 4)[:-4], "not whole vectors of 4 dimensions"),
        ("a.fvecs", lambda p: fvecs(np.ones((30, 4), np.float32), -4), "not whole vectors"),
        ("a.hdf5", lambda p: b"nothing", "cannot read"),
        ("a.csv", lambda p: b"1,2", "expected a .hdf5, .npy, .fvecs file"),
        ("a.npy", None, "unknown data set"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(tmp_path, name, content, message):
    if name.endswith("hdf5"):
        pytest.importorskip("h5py")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content(tmp_path / "other.npy"))
    with pytest.raises(ComparisonError, match=message) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_hdf5_of_ann_benchmarks(tmp_path, distance):
    h5py = pytest.importorskip("h5py")
    rows = np.random.default_rng(0).standard_normal((60, 4))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["train"], file["test"] = rows[:40], rows[40:]
        file.attrs["distance"] = distance
    data = load(str(tmp_path / "a.hdf5"))
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True) if distance == "angular" else rows
    np.testing.assert_allclose(np.concatenate([data.points, data.queries]), expected, rtol=1e-6)
    whole = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "half.hdf5", "w") as file:
        file["train"] = rows
    with h5py.File(tmp_path / "odd.hdf5", "w") as file:
        file["train"], file["test"] = rows, rows[:, :3]
    for name, message in (("cut", "cannot read"), ("half", "cannot read"), ("odd", "differ in dimension")):
        with pytest.raises(ComparisonError, match=message):
            load(str(tmp_path / f"{name}.hdf5"))


def test_names_of_a_size():
    data = load("manifold-1k-4-16")
    assert (data.points.shape, data.queries.shape) == ((1000, 16), (10_000, 16))
    assert load("noise-1k-8").points.shape == (1000, 8)
    assert data.checksum == load("manifold-1k-4-16").checksum != load("manifold-1k-5-16").checksum


def test_a_cached_array_is_made_once_and_again_when_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return np.eye(3)

    for _ in range(2):
        np.testing.assert_array_equal(datasets.cached("eye", make), np.eye(3))
    assert len(made) == 1
    with (tmp_path / "eye.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    np.testing.assert_array_equal(datasets.cached("eye", make), np.eye(3))
    assert len(made) == 2
    assert "checksum" in capsys.readouterr().err


@pytest.mark.parametrize("note", ["", "{}", "[]"])
def test_a_damaged_note_is_not_trusted(tmp_path, monkeypatch, note):
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    datasets.cached("eye", lambda: np.eye(3))
    assert json.loads((tmp_path / "eye.json").read_text())["shape"] == [3, 3]
    (tmp_path / "eye.json").write_text(note)
    np.testing.assert_array_equal(datasets.cached("eye", lambda: np.ones(3)), np.ones(3))


def test_a_cache_that_cannot_be_made_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DCI_DATA", str(tmp_path / "file"))
    with pytest.raises(ComparisonError, match="DCI_DATA names a directory"):
        datasets.cache_dir()
