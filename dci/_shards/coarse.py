"""A first level of cells: near points go to the same shard, and a query to the shards of the cells nearest to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._geometry.kmeans import BLOCK, assign_cells, k_means
from .._geometry.metric import power_of_two
from .._native.rows import inverse_norms, multiply
from .._runtime.threads import Work, blocks
from .._runtime.types import BoolArray, FloatArray, IdArray, IndexArray

# To measure anew: `python -m comparisons run --suite sharded`.
_CELLS_PER_SHARD, _MOST_CELLS = 32, 4096
SAMPLE_PER_CELL = 16  # points that k-means sees


def n_cells_of(n_shards: int, n: int) -> int:
    """Return how many cells so many points have, to be distributed among so many shards."""
    return max(1, min(n, _MOST_CELLS, _CELLS_PER_SHARD * n_shards))


@dataclass(frozen=True)
class Coarse:
    """Cells and the shards that their points belong to.

    Attributes
    ----------
    centers : (p, d) float32
        Of scaled points, or of their directions for "cosine".
    shard_of : (p,) int32
    metric : {"l2", "ip", "cosine"}
        By which queries open cells; points are in that of the nearest centre.
    n_shards : int
    scale : float
        Of the points: squares do not overflow then.
    """

    centers: FloatArray
    shard_of: IdArray
    metric: str
    n_shards: int
    scale: float = 1.0

    @classmethod
    def of(cls, sample: FloatArray, metric: str, n_shards: int, n_cells: int) -> "Coarse":
        """Make cells of a sample of the points (s, d), in random order, and shards of about as many of them each."""
        scale = power_of_two(float(np.abs(sample).max(initial=0.0)))
        rows = _rows(sample, metric, scale)
        with Work(1) as work:
            centers = k_means(rows, min(n_cells, len(rows)), work)
        weights = np.bincount(assign_cells(rows, centers)[0], minlength=len(centers)) if len(rows) else np.zeros(0)
        shard_of = np.zeros(len(centers), np.int32)
        _split(centers, weights + 1e-9, np.arange(len(centers)), range(n_shards), shard_of)
        if len(centers) == 0:  # of no points; those that are added have to go somewhere
            centers, shard_of = np.zeros((1, sample.shape[1]), np.float32), np.zeros(1, np.int32)
        return cls(centers, shard_of, metric, n_shards, scale)

    def shards_of(self, rows: FloatArray) -> IdArray:
        """Return the shard of each point, (n,)."""
        return np.asarray(self.shard_of[self.cells_of(rows)])

    def visits(self, queries: FloatArray, opened: int) -> BoolArray:
        """Tell which shards queries visit that open so many cells, (nq, n_shards)."""
        out = np.zeros((len(queries), self.n_shards), np.bool_)
        for start, stop in blocks(len(queries), BLOCK):
            scores = self._scores(queries[start:stop])
            order = np.argsort(scores, axis=1, kind="stable")[:, :opened]
            np.put_along_axis(out[start:stop], self.shard_of[order], True, axis=1)
            out[start:stop][~np.isfinite(scores).all(1)] = True  # so far away that floats do not tell
        return out

    def opened_before(self, queries: FloatArray, points_cells: IdArray) -> IndexArray:
        """Return how many cells a query opens before those of its neighbours, (H, K)."""
        place = np.argsort(np.argsort(self._scores(queries), axis=1, kind="stable"), axis=1)
        return np.take_along_axis(place, points_cells, axis=1).astype(np.int64)

    def mean_visited(self, queries: FloatArray) -> np.ndarray:
        """Return how many shards queries visit on average that open 1, 2, … cells, (p,)."""
        shards = self.shard_of[np.argsort(self._scores(queries), axis=1, kind="stable")]
        visited = np.zeros(shards.shape[1])
        for row in shards:
            visited[np.unique(row, return_index=True)[1]] += 1  # where a shard comes first
        return np.cumsum(visited) / max(len(shards), 1)

    def cells_of(self, rows: FloatArray) -> IdArray:
        """Return the cell of each point, (n,)."""
        return assign_cells(_rows(rows, self.metric, self.scale), self.centers)[0]

    def _scores(self, queries: FloatArray) -> FloatArray:
        """Cells' scores, (nq, p): queries open those of the smallest first."""
        with np.errstate(over="ignore", invalid="ignore"):
            product = multiply(_rows(queries, self.metric, self.scale), self.centers.T)
            return -product if self.metric == "ip" else np.square(self.centers).sum(1) - 2 * product


def _rows(rows: FloatArray, metric: str, scale: float) -> FloatArray:
    rows = np.ascontiguousarray(rows)
    factors = inverse_norms(rows)[:, None] if metric == "cosine" and len(rows) else np.float32(scale)
    return np.asarray(rows * factors, np.float32)


def _split(
    centers: FloatArray, weights: np.ndarray, cells: IndexArray, shards: Sequence[int], shard_of: IdArray
) -> None:
    """Give cells to shards: halve both, along the direction in which the centres spread most, until one is left."""
    shard_of[cells] = shards[0]
    if len(shards) == 1 or len(cells) < 2:
        return
    some = len(shards) // 2
    rows = centers[cells].astype(np.float64)
    rows -= np.average(rows, axis=0, weights=weights[cells])
    axis = np.linalg.svd(rows * np.sqrt(weights[cells])[:, None], full_matrices=False)[2][0]
    along = cells[np.argsort(rows @ axis, kind="stable")]
    share = np.cumsum(weights[along]) / weights[along].sum()
    place = min(max(int(np.searchsorted(share, some / len(shards))) + 1, 1), len(along) - 1)
    _split(centers, weights, along[:place], shards[:some], shard_of)
    _split(centers, weights, along[place:], shards[some:], shard_of)
