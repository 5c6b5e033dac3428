"""Queries, keys and values of attention heads: of a real encoder, made from a seed, or from a file.

``load(name, length)`` knows ``heads``, the real ones, the names in `HEADS`, and any path to an ``.npz`` file with the
arrays ``query``, ``key`` and ``value`` of shape (heads, length, width). With ``-causal`` at its end, a name stands for
the same heads and causal attention; `split` takes that off. The real heads are made once, within some minutes, and kept
as float16 beside the other prepared data (`datasets.cache_dir`): a file a layer, of 75 MB for 32,768 tokens and 300 MB
for 131,072, of which what is used is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from comparisons.data import adversarial
from comparisons.data.datasets import ComparisonError, MissingPackageError, cached, optional

ENCODER = "heads"  # the real encoder's name as a data set
N_LAYERS = 6  # of all-MiniLM-L6-v2, of 12 heads each
SIZES = (4_096, 32_768, 131_072)  # tokens that the files hold; shorter sequences are their beginnings
CAUSAL = "-causal"
NEEDLES = 64  # queries of a head that have one


@dataclass(frozen=True)
class Heads:
    """Some heads that attend over one sequence.

    Attributes
    ----------
    name : str
    query, key, value : ndarray of shape (heads, length, width), float32
    """

    name: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray

    @property
    def shape(self) -> str:
        n, length, width = self.query.shape
        return f"{n} heads of {length:,} x {width}"

    def some(self, count: int) -> Heads:
        """Return the first heads."""
        return Heads(self.name, self.query[:count], self.key[:count], self.value[:count])


def split(name: str) -> tuple[str, bool]:
    """Return a data set's name without ``-causal``, and whether that was there."""
    return name.removesuffix(CAUSAL), name.endswith(CAUSAL)


def load(name: str, length: int, layer: int | None = None) -> Heads:
    """Return heads by name or by path.

    Parameters
    ----------
    name : str
    length : int
        So many tokens, or as many as a file has.
    layer : int, optional
        All heads of this layer of the encoder; None takes two heads a layer of it. Other data have one layer only.
    """
    name, _ = split(name)
    if name == ENCODER:
        if layer is not None:
            return Heads(name, *_layer(length, layer))
        # Heads 0 and 6 of layer 0, 1 and 7 of layer 1, …, first one of each layer, then the others.
        picked = [_layer(length, at)[:, [at, at + N_LAYERS]] for at in range(N_LAYERS)]
        return Heads(name, *np.concatenate([part[:, i : i + 1] for i in (0, 1) for part in picked], axis=1))
    if name in HEADS:
        return Heads(name, *HEADS[name](length))
    return _read(_path(name), length)


def check(name: str, smoke: bool = False) -> None:
    """Say in one line if there are no such heads; `smoke` changes nothing."""
    name, _ = split(name)
    if name != ENCODER and name not in HEADS:
        _read(_path(name), 1)


def _path(name: str) -> Path:
    path = Path(name).expanduser()
    with contextlib.suppress(OSError):  # of names too long for a file
        if path.is_file():
            return path
    raise ComparisonError(
        f"unknown heads {name!r}: expected one of {', '.join((ENCODER, *HEADS))}, any of them with {CAUSAL}, "
        "or a path to an .npz file"
    )


# ------------------------------------------------------------------------------------------ of the encoder


def _layer(length: int, layer: int) -> np.ndarray:
    """Return one layer's queries, keys and values, (3, 12, length, 32) float32."""
    size = next((size for size in SIZES if size >= length), None)
    if size is None:
        raise ComparisonError(f"the real heads have at most {SIZES[-1]:,} tokens, {length:,} were asked for")
    return _file(size, layer)[:, :, :length].astype(np.float32)


@lru_cache(maxsize=N_LAYERS)
def _file(size: int, layer: int) -> np.ndarray:
    """Return one layer as its file has it, not yet in memory; where a file is missing, all layers are made."""

    def make() -> np.ndarray:
        optional("torch", "the real heads", "torch")
        from attention.demo import DemoError, real_heads

        try:
            layers = (np.stack([part.numpy() for part in heads]).astype(np.float16) for heads in real_heads(size))
            found = None
            for at, array in enumerate(layers):  # one run of the encoder makes all files
                found = array if at == layer else found
                if at != layer:
                    cached(f"heads-{size}-{at}", lambda array=array: array, np.float16)
        except DemoError as error:
            raise MissingPackageError(f"the real heads: {error}") from error
        return found

    return cached(f"heads-{size}-{layer}", make, np.float16)


# ---------------------------------------------------------------------------------------- made from a seed


def _smooth(length: int, width: int, scale: float, heads: int = 4) -> np.ndarray:
    """Make keys and values that are smooth functions of one latent with 5 % noise, and queries near keys.

    Parameters
    ----------
    scale : float
        Of the scores: queries · keys / √width have about this standard deviation.
    """
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((length, 6), dtype=np.float32)
    return np.stack([_smooth_head(latent, width, scale, np.random.default_rng(1 + head)) for head in range(heads)], 1)


def _smooth_head(latent: np.ndarray, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    def noise(size: float) -> np.ndarray:
        return np.float32(size) * rng.standard_normal((len(latent), width), dtype=np.float32)

    def smooth(hidden: int = 256) -> np.ndarray:
        """Return a random function of the latent, of unit variance."""
        weights = rng.standard_normal((latent.shape[1], hidden), dtype=np.float32) / np.sqrt(np.float32(6))
        bias = rng.uniform(-np.pi, np.pi, hidden).astype(np.float32)
        rows = np.tanh(latent @ weights + bias) @ rng.standard_normal((hidden, width), dtype=np.float32)
        return (rows - rows.mean(axis=0)) / rows.std()

    key, value = smooth() + noise(0.05), smooth() + noise(0.05)
    query = key[rng.permutation(len(key))] + noise(0.1)
    few = slice(0, 512)
    spread = (query[few] @ key.T).std() / np.sqrt(width)
    return np.stack([query * np.float32(scale / spread), key, value])


def _noise(length: int, width: int = 64, heads: int = 4) -> np.ndarray:
    """Make Gaussian noise: nothing to approximate here but the mean."""
    return np.random.default_rng(0).standard_normal((3, heads, length, width), dtype=np.float32)


def _needle(length: int, width: int = 64, heads: int = 4) -> np.ndarray:
    """Make diffuse smooth heads in which each of the last `NEEDLES` queries has one key that outweighs all others.

    A needle is any of the keys, moved along its query until it weighs nine times as much as they do. It stays beside
    the keys that it came from, which weigh next to nothing for this query.
    """
    query, key, value = _smooth(length, width, scale=1.0, heads=heads)
    rng = np.random.default_rng(0)
    for head in range(heads):
        asked = np.arange(length - min(NEEDLES, length // 4), length)
        needles = rng.choice(length, len(asked), replace=False)
        scores = query[head, asked] @ key[head].T / np.sqrt(np.float32(width))
        largest = scores.max(axis=1)
        wanted = largest + np.log(9 * np.exp(scores - largest[:, None]).sum(axis=1))
        missing = (wanted - np.take_along_axis(scores, needles[:, None], axis=1)[:, 0]) * np.sqrt(np.float32(width))
        norms = np.einsum("ld,ld->l", query[head, asked], query[head, asked])
        key[head, needles] += (missing / norms)[:, None] * query[head, asked]
    return np.stack([query, key, value])


# -------------------------------------------------------------------------------------------- from a file


def _read(path: Path, length: int) -> Heads:
    try:
        with np.load(path) as file:
            arrays = [np.ascontiguousarray(file[part][:, :length], np.float32) for part in ("query", "key", "value")]
    except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, BadZipFile) as error:
        raise ComparisonError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 3 or not all(np.isfinite(array).all() for array in arrays):
        got = ", ".join(str(array.shape) for array in arrays)
        expected = "finite query, key and value of one shape (h, n, d)"
        raise ComparisonError(f"cannot use {path}: expected {expected}, got {got}")
    return Heads(path.stem, *arrays)


DIFFUSE, PEAKED = 1.0, 4.0  # standard deviation of the scores

HEADS: dict[str, Callable[[int], np.ndarray]] = {
    f"smooth-{width}-{kind}": lambda length, width=width, scale=scale: _smooth(length, width, scale)
    for width in (64, 128)
    for kind, scale in (("diffuse", DIFFUSE), ("peaked", PEAKED))
}
HEADS |= {"needle": _needle, "noise": _noise} | adversarial.HEADS
