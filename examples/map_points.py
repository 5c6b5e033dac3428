"""A map of many points: t-SNE or UMAP on a neighbour graph that `dci.knn` makes.

Both begin with the nearest neighbours of every point, and both take them ready made. ``python examples/map_points.py``
draws the handwritten digits of scikit-learn; ``--data mine.npy`` takes your own vectors, of shape (n, d). It needs
pip install 'dci-attention[sklearn]', with ``--method umap`` umap-learn too, and matplotlib for an image.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

import dci

Floats = npt.NDArray[np.float32]


def neighbours(X: Floats, k: int, metric: str, recall: float) -> dci.Neighbors:
    """Return every point's k nearest others, and before them itself, as both methods count: (n, k + 1) each."""
    found = dci.knn(X, k, metric=metric, recall=recall, random_state=0)
    own = np.arange(len(X))[:, None]
    distances = np.hstack([np.zeros_like(own, dtype=np.float32), found.distances])
    return dci.Neighbors(distances, np.hstack([own, found.indices]))


def tsne(X: Floats, metric: str, recall: float, perplexity: float = 30) -> Floats:
    """Return a t-SNE map of shape (n, 2), of as many neighbours as its perplexity needs."""
    perplexity = min(perplexity, (len(X) - 1) / 4)
    distances, indices = neighbours(X, int(3 * perplexity + 1), metric, recall)
    ends = np.arange(0, indices.size + 1, indices.shape[1])
    graph = csr_matrix((distances.ravel(), indices.ravel(), ends), shape=(len(X), len(X)))
    start = PCA(2, random_state=0).fit_transform(X)  # the large picture; at random, it differs from run to run
    start *= 1e-4 / start.std(axis=0)[0]
    points: Floats = TSNE(metric="precomputed", init=start, perplexity=perplexity, random_state=0).fit_transform(graph)
    return points


def umap(X: Floats, metric: str, recall: float, k: int = 15) -> Floats:
    """Return a UMAP map of shape (n, 2)."""
    from umap import UMAP

    distances, indices = neighbours(X, k - 1, metric, recall)
    points: Floats = UMAP(n_neighbors=k, precomputed_knn=(indices, distances), random_state=0).fit_transform(X)
    return points


def main(arguments: list[str] | None = None) -> None:
    """Make the map, say how well it keeps neighbourhoods, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npy file of shape (n, d) (default: handwritten digits)")
    parser.add_argument("--points", type=int, help="take the first ones only")
    parser.add_argument("--method", choices=["tsne", "umap"], default="tsne")
    parser.add_argument("--metric", choices=["l2", "cosine"], default="l2", help="(default l2)")
    parser.add_argument("--recall", type=float, default=0.95, help="share of true neighbours (default 0.95)")
    parser.add_argument("--out", type=Path, default=Path("map.npy"), help="map.npy, or an image such as map.png")
    options = parser.parse_args(arguments)
    X, colours = load_digits(return_X_y=True) if options.data is None else (np.load(options.data), None)
    X = np.ascontiguousarray(X[: options.points], dtype=np.float32)

    start = time.perf_counter()
    points = {"tsne": tsne, "umap": umap}[options.method](X, options.metric, options.recall)
    print(f"{options.method} of {len(X):,} points in {X.shape[1]} dimensions: {time.perf_counter() - start:.1f} s")
    some = np.random.default_rng(0).permutation(len(X))[:2000]  # it compares all of them with all
    print(f"trustworthiness {trustworthiness(X[some], points[some], n_neighbors=10):.3f}; 1 keeps all neighbours")
    if options.out.suffix == ".npy":
        np.save(options.out, points)
    else:
        draw(points, None if colours is None else colours[: options.points], options.out)
    print(f"saved as {options.out}")


def draw(points: Floats, colours: npt.NDArray[np.generic] | None, path: Path) -> None:
    """Save an image of a map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    axes.scatter(points[:, 0], points[:, 1], s=2, c=colours, cmap=None if colours is None else "tab10")
    axes.set_axis_off()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
