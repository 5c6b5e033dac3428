"""Real text in bytes: source code and documentation of Python packages, to be told apart or to be continued."""

from __future__ import annotations

import sysconfig
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from comparisons.data.datasets import ComparisonError
from comparisons.tasks.task import Batch, Source, batch

PACKAGES = ("stdlib", "numpy", "scipy", "sklearn", "torch", "matplotlib")
HASHES = 4_096  # of three bytes
TESTED = 6  # one file of so many is held out
MOST = 4_000_000  # bytes of a package
SKIPPED = {"site-packages", "test", "tests", "testing", "idlelib", "_vendor"}


def packages(length: int, sequences: int, rng: Source, kinds: int = len(PACKAGES)) -> Batch:
    """Return windows of files of a package, which is to be named; training and evaluation have files of their own.

    A token is a byte together with the two before it, hashed. The answer is read at the last one.
    """
    named = rng.integers(0, kinds, sequences)
    windows = np.stack([_window(PACKAGES[kind], length + 2, rng) for kind in named])
    threes = (windows[:, :-2] << 16) + (windows[:, 1:-1] << 8) + windows[:, 2:]
    tokens = threes * 2_654_435_761 % 2**32 * HASHES >> 32
    return batch(tokens, named[:, None], np.full((sequences, 1), length - 1))


def continuation(length: int, sequences: int, rng: Source) -> Batch:
    """Return windows of the standard library's files, each byte's successor to be named."""
    windows = np.stack([_window("stdlib", length + 1, rng) for _ in range(sequences)])
    at = np.tile(np.arange(length), (sequences, 1))
    return batch(windows[:, :-1], windows[:, 1:], at)


def _window(package: str, length: int, rng: Source) -> np.ndarray:
    content = _content(package, rng.held_out)
    if len(content) < length:
        raise ComparisonError(f"the text of {package} has {len(content):,} bytes, {length:,} were asked for")
    start = rng.integers(0, len(content) - length + 1)
    return content[start : start + length].astype(np.int64)


@lru_cache(maxsize=2 * len(PACKAGES))
def _content(package: str, held_out: bool) -> np.ndarray:
    """Return the files of a package one after the other, (bytes,) uint8, in an order that goes by their names."""
    paths = sysconfig.get_paths()
    root = Path(paths["stdlib"]) if package == "stdlib" else Path(paths["purelib"]) / package
    some = [path.relative_to(root) for path in root.rglob("*.py")]
    ranks = {name: zlib.crc32(str(name).encode()) for name in some if SKIPPED.isdisjoint(name.parts)}
    found, size = [], 0
    for name in sorted(ranks, key=lambda name: (ranks[name], name)):
        if (ranks[name] % TESTED == 0) == held_out and size < MOST:
            found.append((root / name).read_bytes())
            size += len(found[-1])
    if not found:
        raise ComparisonError(f"the tasks on text need the files of the package {package!r}: pip install {package}")
    return np.frombuffer(b"\n".join(found), np.uint8)
