"""Files of vectors that others write: NumPy's, the .fvecs family, CSV and Parquet."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FileFormatError, InvalidValueError
from .files import replacing

Array = npt.NDArray[Any]

_VECS: dict[str, np.dtype[Any]] = {".fvecs": np.dtype("<f4"), ".ivecs": np.dtype("<i4"), ".bvecs": np.dtype("u1")}
READABLE = ".npy, .npz (of one array, or file.npz:name), .fvecs, .ivecs, .bvecs, .csv, .parquet"


def read_vectors(name: str) -> Array:
    """Read rows of numbers.

    Parameters
    ----------
    name : str
        Path of a .npy, .npz, .fvecs, .ivecs, .bvecs, .csv or .parquet; ``file.npz:name`` is one of several arrays.

    Returns
    -------
    (n, d) array
        A .npy file is mapped, not read.

    Raises
    ------
    FileFormatError, InvalidValueError
        Says which file, what was expected and what is there.
    ImportError
        Neither pyarrow nor pandas is there to read Parquet.
    OSError
        As the system says.
    """
    array = _read(name)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise InvalidValueError(f"{name}: expected rows of real numbers, received {array.dtype} of shape {array.shape}")
    return array


def read_ids(name: str) -> npt.NDArray[np.int64]:
    """Read ids, from the same files; one column or one row.

    Raises
    ------
    FileFormatError, InvalidValueError, ImportError, OSError
        As for `read_vectors`.
    """
    array = _read(name, np.int64)
    if array.ndim == 2 and 1 in array.shape:
        array = array.ravel()
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidValueError(f"{name}: expected ids, (m,) ints, received {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def write_answers(path: str, distances: Array, ids: Array) -> None:
    """Write answers of (nq, k) to a .npz, or to a .csv with a line for each; replaces a file at once.

    Raises
    ------
    InvalidValueError
        Neither of these.
    OSError
        As the system says.
    """
    check_output(path)
    with replacing(path) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
        if path.endswith(".npz"):
            np.savez(file, distances=distances, ids=ids)
        else:
            file.write("\n".join(["query,rank,id,distance", *answer_lines(distances, ids), ""]).encode())


def check_output(path: str) -> None:
    """Refuse a file that `write_answers` cannot write."""
    if Path(path).suffix not in (".npz", ".csv"):
        raise InvalidValueError(f"{path}: expected a name that ends in .npz or .csv")


def answer_lines(distances: Array, ids: Array) -> list[str]:
    """Return ``query,rank,id,distance`` of all answers there are."""
    return [
        f"{query},{rank},{ids[query, rank]},{distances[query, rank]:.9g}"
        for query, rank in np.argwhere(np.isfinite(distances) | (ids != -1)).tolist()
    ]


def _read(name: str, kind: npt.DTypeLike = np.float64) -> Array:
    path, _, member = name.partition(".npz:") if ".npz:" in name else (name, "", "")
    path = f"{path}.npz" if member else path
    suffix = Path(path).suffix.lower()
    if suffix in _VECS:
        return _read_vecs(path, _VECS[suffix])
    readers: dict[str, Callable[[str], Array]] = {
        ".npy": _read_npy,
        ".npz": lambda path: _read_npz(path, member),
        ".csv": lambda path: _read_csv(path, kind),
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise InvalidValueError(f"{name}: expected a file of {READABLE}")
    return readers[suffix](path)


def _read_npy(path: str) -> Array:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: expected a .npy file of numbers, received another: {error}") from error
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path}: expected a .npy file, received a .npz file")
    return array


def _read_npz(path: str, member: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise FileFormatError(f"{path}: expected a .npz file, received a .npy file")
            names = file.files
            if member and member not in names:
                raise InvalidValueError(f"{path}: expected an array {member!r}, received {', '.join(names)}")
            if not member and len(names) != 1:
                shown = ", ".join(names) or "none"
                raise InvalidValueError(f"{path}: expected one array, or {path}:name for one of them, received {shown}")
            array: Array = file[member or names[0]]
            return array
    except (InvalidValueError, OSError):
        raise
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path}: expected a .npz file of numbers, received another: {error}") from error


def _read_vecs(path: str, dtype: np.dtype[Any]) -> Array:
    """Rows that are preceded by their number of coordinates, as int32."""
    data = np.fromfile(path, np.uint8)
    if len(data) == 0:
        return np.empty((0, 0), dtype)
    if len(data) < 4:
        raise FileFormatError(f"{path}: expected at least 4 bytes, received {len(data)}: truncated")
    dim = int(data[:4].view("<i4")[0])
    if dim < 1:
        raise FileFormatError(f"{path}: expected a number of coordinates from 1, received {dim}")
    width = 4 + dim * dtype.itemsize
    n, rest = divmod(len(data), width)
    if rest:
        raise FileFormatError(
            f"{path}: expected rows of {width} bytes, as {dim} coordinates take, received {len(data)} bytes: "
            f"truncated, or the rows differ"
        )
    rows = data.reshape(n, width)
    dims = rows[:, :4].copy().view("<i4")[:, 0]
    if (dims != dim).any():
        row = int((dims != dim).argmax())
        raise FileFormatError(f"{path}: expected {dim} coordinates in each row, received {dims[row]} in row {row}")
    return rows[:, 4:].copy().view(dtype)


def _read_csv(path: str, kind: npt.DTypeLike) -> Array:
    """Numbers with commas between them; a first line of names is passed over."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            first = file.readline()
            skip = int(not all(_is_number(word) for word in first.strip().split(",")))
            file.seek(0)
            lines = [line for line in file if line.strip()][skip:]
            if not lines:
                return np.empty((0, 0), kind)
            return np.loadtxt(lines, kind, delimiter=",", ndmin=2, comments=None)
        except ValueError as error:
            raise FileFormatError(f"{path}: expected lines of as many numbers, received others: {error}") from error


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_parquet(path: str) -> Array:
    """All columns, which are numbers; or one column of lists of numbers."""
    try:
        from pyarrow import parquet  # type: ignore[import-not-found, unused-ignore]

        columns = [column.to_numpy() for column in parquet.read_table(path).columns]
    except ImportError:
        try:
            import pandas  # type: ignore[import-not-found, import-untyped, unused-ignore]

            frame = pandas.read_parquet(path)
            columns = [frame[name].to_numpy() for name in frame.columns]
        except ImportError as error:
            raise ImportError(
                f"{path}: expected pyarrow or pandas to read Parquet with: pip install pyarrow"
            ) from error
    except OSError:
        raise
    except Exception as error:  # pyarrow's own
        raise FileFormatError(f"{path}: expected a Parquet file, received another: {error}") from error
    try:
        if len(columns) == 1 and columns[0].dtype == object:
            return np.array([list(row) for row in columns[0]])
        return np.array(columns).T
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: expected columns of numbers, or lists of equal lengths: {error}") from error
