"""The rivals, one class each: what they build, what they search, and the grids worth sweeping.

An adapter is constructed with build arguments, `fit` builds, `query` answers with ids under search arguments. Distances
are not asked for: the harness recomputes them. Thread counts are given and the same for all.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from comparisons.datasets import optional

Arguments = dict[str, Any]


class Adapter:
    """What the harness needs of a rival.

    Parameters
    ----------
    threads : int
        Threads that building and searching may use.
    **build
        The rival's build arguments.
    """

    name: ClassVar[str]

    def __init__(self, threads: int, **build: Any) -> None:
        self.threads, self.build = threads, build

    @classmethod
    def build_grid(cls, n_points: int, recall: float) -> list[Arguments]:
        """Build arguments worth trying, cheapest construction first."""
        return [{}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        """Search arguments in ascending order of effort, and so of recall."""
        return [{}]

    def fit(self, points: np.ndarray) -> None:
        """Build the index on `points`, float32 of shape (n, d)."""
        raise NotImplementedError

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        """Return ids, int64 of shape (nq, k), -1 where nothing was found."""
        raise NotImplementedError

    def notes(self) -> Arguments:
        """Return what the rival says about itself, for the record."""
        return {}


class Faiss(Adapter):
    """An index of faiss; subclasses say which."""

    def make(self, dim: int) -> Any:
        """Return an empty faiss index."""
        raise NotImplementedError

    def fit(self, points: np.ndarray) -> None:
        self.faiss = optional("faiss", f"the rival {self.name!r}", "faiss-cpu")
        self.faiss.omp_set_num_threads(self.threads)
        self.index = self.make(points.shape[1])
        self.index.train(points)
        self.index.add(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        for name, value in search.items():
            setattr(self.index.hnsw if name == "efSearch" else self.index, name, value)
        return self.index.search(queries, k)[1]


class FaissFlat(Faiss):
    """Exact search."""

    name = "faiss flat"

    def make(self, dim: int) -> Any:
        return self.faiss.IndexFlatL2(dim)


class FaissIVF(Faiss):
    """Buckets by k-means, the nearest `nprobe` of `nlist` searched."""

    name = "faiss IVF"

    @classmethod
    def build_grid(cls, n_points: int, recall: float) -> list[Arguments]:
        """Six powers of two about sqrt(n), at least eight points a list."""
        centre = round(np.log2(max(n_points, 1)) / 2)
        sizes = {2 ** max(centre + step, 0) for step in range(-3, 3)}
        return [{"nlist": size} for size in sorted(sizes) if 8 * size <= n_points] or [{"nlist": 1}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        """Every nprobe up to 8, then steps of an eighth to a quarter."""
        probes = {*range(1, 9), *(step << shift for step in (4, 5, 6, 7) for shift in range(1, 12))}
        nlist = build["nlist"]
        return [{"nprobe": probe} for probe in sorted(probes | {nlist}) if probe <= nlist]

    def make(self, dim: int) -> Any:
        self.quantizer = self.faiss.IndexFlatL2(dim)
        index = self.faiss.IndexIVFFlat(self.quantizer, dim, self.build["nlist"])
        index.cp.min_points_per_centroid = 1  # silences a warning on small subsets, changes nothing else
        return index


class FaissLSH(Faiss):
    """Signs of random projections, compared by Hamming distance."""

    name = "faiss LSH"

    @classmethod
    def build_grid(cls, n_points: int, recall: float) -> list[Arguments]:
        """Bits, with signs taken about zero and about each projection's median."""
        return [{"bits": bits, "trained": trained} for bits in (256, 1024) for trained in (False, True)]

    def make(self, dim: int) -> Any:
        return self.faiss.IndexLSH(dim, self.build["bits"], True, self.build["trained"])


class FaissHNSW(Faiss):
    """A navigable small-world graph."""

    name = "faiss HNSW"

    @classmethod
    def build_grid(cls, n_points: int, recall: float) -> list[Arguments]:
        return [{"M": 8}, {"M": 16}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        return [{"efSearch": ef} for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)]

    def make(self, dim: int) -> Any:
        return self.faiss.IndexHNSWFlat(dim, self.build["M"])


class DCI(Adapter):
    """The index of this project, with nothing but `recall` set."""

    name = "dci"

    @classmethod
    def build_grid(cls, n_points: int, recall: float) -> list[Arguments]:
        return [{"recall": recall}]

    def fit(self, points: np.ndarray) -> None:
        dci = optional("dci", "the rival 'dci'", "dci-attention")
        self.index = dci.DCI(num_threads=self.threads, random_state=0, **self.build).fit(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        return self.index.query(queries, k, **search).indices

    def notes(self) -> Arguments:
        return dict(self.index.stats_)


class DCIExact(Adapter):
    """Blocked exact search of this project."""

    name = "dci.exact"

    def fit(self, points: np.ndarray) -> None:
        self.exact = optional("dci", "the rival 'dci.exact'", "dci-attention").exact
        self.points = points

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        return self.exact(self.points, queries, k, "l2")[1]
