"""A classifier by retrieval: it looks up labelled examples and lets the nearest vote.

It learns by adding examples, not by training, and shows which of them led to an answer. ``python examples/classify.py``
reads handwritten digits; ``--data mine.npz`` takes your own vectors, an array ``X`` of shape (n, d) with labels ``y``.
It needs pip install 'dci-attention[sklearn]'.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

import dci

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.generic]


class RetrievalClassifier:
    """Labels by the votes of the k nearest examples, near ones counting for more."""

    def __init__(self, k: int = 5, metric: str = "l2", recall: float = 0.95) -> None:
        self.k = k
        self.index = dci.DCI(metric, recall=recall, random_state=0)

    def fit(self, X: Floats, y: Labels) -> "RetrievalClassifier":
        """Begin with the examples X of shape (n, d), labelled y."""
        self.index.fit(X)
        self.labels = y
        return self

    def add(self, X: Floats, y: Labels) -> None:
        """Take more examples; ids go on from the last one."""
        self.index.add(X)
        self.labels = np.concatenate([self.labels, y])

    def predict(self, X: Floats) -> tuple[Labels, Floats]:
        """Return the label of each query, and its share of the votes."""
        distances, ids = self.index.query(X, k=min(self.k, len(self.labels)))
        weights = np.exp(-distances / np.maximum(distances.mean(axis=1, keepdims=True), 1e-12))
        classes, votes = np.unique(self.labels[ids], return_inverse=True)
        counts = np.zeros((len(X), len(classes)), dtype=np.float32)
        np.add.at(counts, (np.arange(len(X))[:, None], votes.reshape(ids.shape)), weights)
        return classes[counts.argmax(axis=1)], counts.max(axis=1) / counts.sum(axis=1)


def main(arguments: list[str] | None = None) -> None:
    """Classify a held-out part of the data, and print how many labels are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".npz file with arrays X and y (default: handwritten digits)")
    parser.add_argument("--test", type=float, default=0.3, help="share that is held out (default 0.3)")
    parser.add_argument("--neighbours", type=int, default=5, help="examples that vote (default 5)")
    parser.add_argument("--metric", choices=["l2", "cosine"], default="l2", help="(default l2)")
    options = parser.parse_args(arguments)
    X, y = load(options.data)
    order = np.random.default_rng(0).permutation(len(X))
    test, *train = np.split(order, (len(X) * np.array([options.test, options.test + 0.1])).astype(int))
    classifier = RetrievalClassifier(options.neighbours, options.metric).fit(X[train[0]], y[train[0]])
    report(classifier, X[test], y[test])
    classifier.add(X[train[1]], y[train[1]])  # the rest comes later; queries may go on meanwhile
    report(classifier, X[test], y[test])


def load(path: Path | None) -> tuple[Floats, Labels]:
    """Return vectors and labels of a file, or of scikit-learn's digits: 1,797 images of 8 × 8."""
    if path is None:
        X, y = load_digits(return_X_y=True)
    else:
        with np.load(path) as data:
            X, y = data["X"], data["y"]
    return X.astype(np.float32), y


def report(classifier: RetrievalClassifier, X: Floats, y: Labels) -> None:
    """Print the accuracy, and the answer that was least sure with what it was retrieved from."""
    labels, shares = classifier.predict(X)
    print(f"{len(classifier.labels):,} examples: {(labels == y).mean():.2%} of {len(y):,} labels are right")
    least = int(shares.argmin())
    nearest = classifier.index.query(X[least], k=5).indices
    print(f"  least sure: {labels[least]} with {shares[least]:.0%} of the votes, in truth {y[least]}; ", end="")
    print(f"nearest: {', '.join(f'example {i} is {classifier.labels[i]}' for i in nearest)}")


if __name__ == "__main__":
    main()
