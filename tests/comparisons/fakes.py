"""Fake rivals and rows for the tests of the comparisons. No test looks at a clock."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from comparisons.knn.adapters import Adapter


class Partial(Adapter):
    """Exact search among the first `share` percent of the points, so that recall is known to rise with it."""

    key = name = "partial"
    module = package = "numpy"
    fitted: ClassVar[list[dict]] = []
    queried: ClassVar[list[dict]] = []

    @classmethod
    def build_grid(cls, n, dim, recall):
        return [{"reach": 50}, {"reach": 100}]

    @classmethod
    def search_grid(cls, build):
        return [{"share": share} for share in range(10, build["reach"] + 1, 10)]

    def fit(self, points):
        self.fitted.append(self.build)
        self.points = points

    def query(self, queries, k, share=100):
        self.queried.append({"share": share})
        some = self.points[: max(k, len(self.points) * share // 100)]
        distances = ((queries[:, None] - some) ** 2).sum(axis=2)
        return np.argsort(distances, axis=1)[:, :k]


def row(suite="knn", rival="dci", build=0.1, query=0.2, recall=0.95, **other):
    """Make a row as the harness keeps it; `build` and `query` are seconds, or lists of them."""
    asked = query if isinstance(query, list) else [query]
    built = build if isinstance(build, list) else [build] * len(asked)
    return {
        "suite": suite,
        "data": "cloud",
        "n": 1_000,
        "dim": 8,
        "queries": 10_000,
        "k": 10,
        "threads": 2,
        "wanted": 0.9,
        "rival": rival,
        "build": {"recall": 0.9} if rival == "dci" else {"size": 4},
        "search": {},
        "recall": recall,
        "notes": {},
        "build_seconds": built,
        "query_seconds": asked,
        **other,
    }
