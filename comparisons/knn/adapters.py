"""The rivals, one class each: what they build, what they search, and the grids worth sweeping.

An adapter is constructed with build arguments, `fit` builds, `query` answers with ids under search arguments. Distances
are not asked for: the harness recomputes them. Thread counts are given and the same for all. Search grids ascend in
effort, so that recall rises along them; their last entry is the most that the rival is asked to do.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from comparisons.data.datasets import ComparisonError, optional

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

    key: ClassVar[str]  # on the command line
    name: ClassVar[str]  # in tables and plots
    module: ClassVar[str]  # what it imports
    package: ClassVar[str]  # and what to install for it

    def __init__(self, threads: int, **build: Any) -> None:
        self.threads, self.build = threads, build

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        """Build arguments worth trying, cheapest construction first."""
        return [{}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        """Search arguments in ascending order of effort, and so of recall."""
        return [{}]

    @classmethod
    def single(cls, search: Arguments) -> list[Arguments]:
        """Variants of search arguments worth trying where queries come one at a time."""
        return [search]

    @classmethod
    def load(cls) -> Any:
        """Import the rival's package, or say what to install."""
        return optional(cls.module, f"the rival {cls.key!r}", cls.package)

    def fit(self, points: np.ndarray) -> None:
        """Build the index on `points`, float32 of shape (n, d)."""
        raise NotImplementedError

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        """Return ids, int64 of shape (nq, k), -1 where nothing was found."""
        raise NotImplementedError

    def notes(self) -> Arguments:
        """Return what the rival says about itself, for the record."""
        return {}


# ------------------------------------------------------------------------------------------------- this project


class DCI(Adapter):
    """The index of this project, with nothing but `recall` set (the sensitivity suite sets more)."""

    key, name, module, package = "dci", "dci", "dci", "dci-attention"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        return [{"recall": recall}]

    def fit(self, points: np.ndarray) -> None:
        self.index = self.load().DCI(num_threads=self.threads, random_state=0, **self.build).fit(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        return self.index.query(queries, k, **search).indices

    def notes(self) -> Arguments:
        return {name: value for name, value in asdict(self.index.stats_).items() if value is not None}


class DCIExact(Adapter):
    """Blocked exact search of this project."""

    key, name, module, package = "exact", "dci.exact", "dci", "dci-attention"

    def fit(self, points: np.ndarray) -> None:
        self.exact, self.points = self.load().exact, points

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        return self.exact(self.points, queries, k, "l2", num_threads=self.threads)[1]


# -------------------------------------------------------------------------------------------------------- faiss


class Faiss(Adapter):
    """An index of faiss; subclasses say which."""

    module, package = "faiss", "faiss-cpu"

    def make(self, dim: int) -> Any:
        """Return an empty faiss index."""
        raise NotImplementedError

    def fit(self, points: np.ndarray) -> None:
        self.faiss = self.load()
        self.faiss.omp_set_num_threads(self.threads)
        self.index = self.make(points.shape[1])
        self.index.train(points)
        self.index.add(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        self.faiss.omp_set_num_threads(self.threads)
        for name, value in search.items():
            setattr(self.index.hnsw if name == "efSearch" else self.index, name, value)
        return self.index.search(queries, k)[1]


class FaissFlat(Faiss):
    """Exact search."""

    key, name = "flat", "faiss flat"

    def make(self, dim: int) -> Any:
        return self.faiss.IndexFlatL2(dim)


class FaissIVF(Faiss):
    """Buckets by k-means, the nearest `nprobe` of `nlist` searched."""

    key, name = "ivf", "faiss IVF"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        """Six powers of two about sqrt(n), at least eight points a list."""
        centre = round(np.log2(max(n, 1)) / 2)
        sizes = {2 ** max(centre + step, 0) for step in range(-3, 3)}
        return [{"nlist": size} for size in sorted(sizes) if 8 * size <= n] or [{"nlist": 1}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        """Every nprobe up to 8, then steps of an eighth to a quarter."""
        probes = {*range(1, 9), *(step << shift for step in (4, 5, 6, 7) for shift in range(1, 12))}
        nlist = build["nlist"]
        return [{"nprobe": probe} for probe in sorted(probes | {nlist}) if probe <= nlist]

    @classmethod
    def single(cls, search: Arguments) -> list[Arguments]:
        """One query's lists may be spread over the threads, or not."""
        return [{**search, "parallel_mode": mode} for mode in (0, 1)]

    def make(self, dim: int) -> Any:
        self.quantizer = self.faiss.IndexFlatL2(dim)
        index = self.faiss.IndexIVFFlat(self.quantizer, dim, self.build["nlist"])
        index.cp.min_points_per_centroid = 1  # silences a warning on small subsets, changes nothing else
        return index


class FaissLSH(Faiss):
    """Signs of random projections, compared by Hamming distance; all there is to turn is the number of bits."""

    key, name = "lsh", "faiss LSH"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        """Bits, with signs taken about zero and about each projection's median."""
        bits = (64, 128, 256, 512, 1024, 2048)
        return [{"bits": count, "trained": trained} for count in bits for trained in (False, True)]

    def make(self, dim: int) -> Any:
        return self.faiss.IndexLSH(dim, self.build["bits"], True, self.build["trained"])


class FaissLSHRefined(FaissLSH):
    """The same, and the `k_factor` · k best by Hamming distance compared exactly: LSH at its strongest."""

    key, name = "lsh-refined", "faiss LSH refined"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        return [{"bits": count, "trained": trained} for count in (128, 512, 1024) for trained in (False, True)]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        return [{"k_factor": factor} for factor in (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)]

    def make(self, dim: int) -> Any:
        self.codes = super().make(dim)
        return self.faiss.IndexRefineFlat(self.codes)


class FaissHNSW(Faiss):
    """A navigable small-world graph."""

    key, name = "hnsw", "faiss HNSW"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        return [{"M": 8}, {"M": 16}, {"M": 32}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        return [{"efSearch": ef} for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)]

    def make(self, dim: int) -> Any:
        return self.faiss.IndexHNSWFlat(dim, self.build["M"])


# ------------------------------------------------------------------------------------------ where installed


class HNSWLib(Adapter):
    """The graph's first implementation."""

    key, name, module, package = "hnswlib", "hnswlib", "hnswlib", "hnswlib"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        return [{"M": 8}, {"M": 16}, {"M": 32}]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        return [{"ef": ef} for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)]

    def fit(self, points: np.ndarray) -> None:
        self.index = self.load().Index("l2", points.shape[1])
        self.index.init_index(len(points), M=self.build["M"], ef_construction=100, random_seed=0)
        self.index.set_num_threads(self.threads)
        self.index.add_items(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        self.index.set_ef(max(k, search["ef"]))
        return self.index.knn_query(queries, k)[0].astype(np.int64)


class LoRANN(Adapter):
    """Clusters, their scores by reduced-rank regression, the best points compared exactly."""

    key, name, module, package = "lorann", "LoRANN", "lorann", "lorann"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        """Clusters about sqrt(n); its documentation's advice for the rest. It takes no fewer than 64 dimensions."""
        if dim < 64:
            return []
        centre = 2 ** round(np.log2(max(n, 1)) / 2)
        clusters = sorted({size for size in (centre // 2, centre, centre * 2) if 16 * size <= n and size > 1})
        return [{"n_clusters": c, "rank": r} for c in clusters for r in (16, 32)]

    @classmethod
    def search_grid(cls, build: Arguments) -> list[Arguments]:
        pairs = [(2, 25), (4, 50), (6, 75), (8, 100), (12, 150), (16, 200), (24, 300), (32, 400), (48, 800), (64, 1600)]
        few = [pair for pair in pairs if pair[0] <= build["n_clusters"]]
        return [{"clusters_to_search": clusters, "points_to_rerank": points} for clusters, points in few]

    def fit(self, points: np.ndarray) -> None:
        lorann, dim = self.load(), points.shape[1]
        reduced = None if dim < 200 else 128 if dim <= 1000 else 256
        self.index = lorann.LorannIndex(points, global_dim=reduced, distance=lorann.L2, **self.build)
        self.index.build(n_threads=self.threads)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        search["points_to_rerank"] = max(k, search["points_to_rerank"])
        return self.index.search(queries, k, n_threads=self.threads, **search).astype(np.int64)


class ScikitLearn(Adapter):
    """scikit-learn's NearestNeighbors: exact search, in few dimensions also by trees."""

    key, name, module, package = "sklearn", "scikit-learn", "sklearn.neighbors", "scikit-learn"

    @classmethod
    def build_grid(cls, n: int, dim: int, recall: float) -> list[Arguments]:
        return [{"algorithm": how} for how in (("brute", "kd_tree") if dim <= 20 else ("brute",))]

    def fit(self, points: np.ndarray) -> None:
        self.index = self.load().NearestNeighbors(n_jobs=self.threads, **self.build).fit(points)

    def query(self, queries: np.ndarray, k: int, **search: Any) -> np.ndarray:
        return self.index.kneighbors(queries, k, return_distance=False)


RIVALS: dict[str, type[Adapter]] = {
    rival.key: rival
    for rival in (
        DCI,
        DCIExact,
        FaissFlat,
        FaissIVF,
        FaissLSH,
        FaissLSHRefined,
        FaissHNSW,
        HNSWLib,
        LoRANN,
        ScikitLearn,
    )
}


def installed(rival: type[Adapter]) -> bool:
    """Say whether the rival's package is there, without importing it."""
    return importlib.util.find_spec(rival.module.partition(".")[0]) is not None


def named(keys: str, rivals: dict[str, type[Any]] | None = None) -> list[str]:
    """Return the rivals' keys in a comma-separated text; unknown ones, and ones not installed, are an error."""
    rivals = RIVALS if rivals is None else rivals
    found = [key for key in (part.strip() for part in keys.split(",")) if key]
    for key in found:
        if key not in rivals:
            raise ComparisonError(f"unknown rival {key!r}: expected some of {', '.join(rivals)}")
        if not installed(rivals[key]):
            optional(rivals[key].module, f"the rival {key!r}", rivals[key].package)
    if not found:
        raise ComparisonError(f"no rival named: expected some of {', '.join(rivals)}")
    return list(dict.fromkeys(["dci", *found]))
