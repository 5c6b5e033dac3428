"""Exact answers to some queries at once by bounds: along a few directions no distance is longer than in full.

Where few points are as near along them as the neighbours are in full, that takes a fraction of the time that comparing
all coordinates takes. Points of few intrinsic dimensions are so, whatever the number of their coordinates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._geometry.metric import MetricEmbedding
from .._geometry.quantization import stored
from .._native.exact_scan import merge, scan
from .._native.kernels import LANES, Reservoirs
from .._native.rescore import METRICS, TrueDistances, rescore_bounded
from .._native.rows import Rows, multiply, panels_of, project
from .._runtime.mapped import file_of
from .._runtime.threads import Work, blocks, even_blocks
from .._runtime.types import DoubleArray, FloatArray, IdArray, IndexArray
from .exact import ExactSearch, score_error

_AT_ONCE = 4096  # rows that are projected and scanned while they are in a cache
_MOST_BYTES = 64 << 20  # of coordinates, and of reservoirs
_SPARE = 2  # times as many candidates are kept as a sample says that there are
_UNIT = 2.0**-24


@dataclass(frozen=True)
class Bounds:
    """What distances are bounded along.

    Attributes
    ----------
    directions : (width, m) float32
        Orthonormal, but for rounding.
    keep : int
        Candidates of a query.
    """

    directions: FloatArray
    keep: int


def bounds_of(
    sample: tuple[FloatArray, FloatArray], some: tuple[FloatArray, FloatArray], directions: FloatArray, n: int, k: int
) -> Iterator[tuple[Bounds, float]]:
    """Estimate for rising numbers of directions what finding k neighbours among n points by bounds takes.

    Parameters
    ----------
    sample, some : ((s, width), (s, most)) and ((b, width), (b, most)) float32
        Rows of some points and some queries, and their coordinates along the directions.
    directions : (width, most) float32

    Yields
    ------
    bounds : Bounds
    candidates : float
        Points of a query, in the mean, that are as near along the directions as its neighbours are in full.
    """
    (rows, coordinates), (queries, places) = sample, some
    share = n / len(rows)
    place = min(len(rows), int(np.ceil((k + 1) / share))) - 1
    full = _squares(rows, queries)
    radius = np.partition(full, place, axis=0)[place]
    for count in range(LANES, directions.shape[1] + 1, LANES):
        near = _squares(coordinates[:, :count], places[:, :count])
        counts = (near <= radius).sum(0) * share
        keep = int(_SPARE * np.quantile(counts, 0.9)) + 2 * k
        if keep < n:
            yield Bounds(directions[:, :count], keep), float(counts.mean())


def _squares(rows: FloatArray, queries: FloatArray) -> FloatArray:
    """Squared distances between all of them, (s, b) float32, as far as float32 tells."""
    norms, own = (np.einsum("ij,ij->i", part, part) for part in (rows, queries))
    squares: FloatArray = norms[:, None] - 2.0 * multiply(rows, queries.T) + own
    return squares


class BoundedSearch:
    """Exact search, "l2" or "cosine", whose answers are proven by bounds where these are enough.

    Parameters
    ----------
    exact : ExactSearch
        Answers the others.
    embedding : MetricEmbedding
        Of the same points.
    bounds : Bounds

    Attributes
    ----------
    coordinates : (n, m) float32
        Of the points, after a search.
    """

    def __init__(self, exact: ExactSearch, embedding: MetricEmbedding, bounds: Bounds) -> None:
        self._exact, self._embedding, self._bounds = exact, embedding, bounds
        self._panels = panels_of(bounds.directions.T)
        self._no_bias = np.zeros(self._panels.shape[0] * LANES, np.float32)
        self.coordinates = np.empty((len(exact.X), len(self._no_bias)), np.float32)

    @staticmethod
    def is_for(exact: ExactSearch, embedding: MetricEmbedding, n_queries: int, bounds: Bounds) -> bool:
        """Whether distances of these points are bounded so, with memory that there is."""
        row_scale, _ = embedding.of_points
        if embedding.metric == "ip" or (row_scale is not None and not row_scale.all()):
            return False  # a vector of zeros is as far from all others as none is in the embedding
        largest = max(bounds.directions.shape[1] * 4 * len(exact.X), 20 * bounds.keep * n_queries)
        return largest <= _MOST_BYTES and file_of(stored(exact.X)) is None and not exact.needs_double

    def search(self, Q: FloatArray, q_absmax: float, k: int, work: Work, exclude: IdArray | None) -> IndexArray:
        """Find the k nearest of all points, without row exclude[i] for query i, (nq, k) int64."""
        distances = np.empty((len(Q), k), np.float32)
        indices = np.empty((len(Q), k), np.int64)
        rows = self._embedding.queries(Q, q_absmax)
        tile = self._project(rows, 0, len(Q)) * np.float32(-2.0)
        n = len(self._exact.X)
        shares = blocks(n, -(-n // work.num_threads))
        lists = [Reservoirs(len(Q), min(n, self._bounds.keep)) for _ in shares]
        longest = np.zeros(len(shares))

        def scan_share(share: int) -> None:
            for first, last in blocks(shares[share][1] - shares[share][0], _AT_ONCE):
                work.tick()
                start, stop = first + shares[share][0], last + shares[share][0]
                self._project(self._embedding.points, start, stop, self.coordinates[start:stop])
                norm2 = scan(Rows(self.coordinates), None, start, stop, tile, lists[share], True)
                longest[share] = max(longest[share], norm2)

        work.run(scan_share, range(len(shares)))
        merged = lists[0] if len(lists) == 1 else merge(lists)
        limits = self._limits(tile, q_absmax, float(longest.max()))
        points = TrueDistances(self._exact.X, METRICS.index(self._embedding.metric), self._embedding.absmax)
        proven = np.zeros(len(Q), bool)

        def prove(block: tuple[int, int]) -> None:
            part = slice(*block)
            own = None if exclude is None else exclude[part]
            proven[part] = rescore_bounded(
                points, Q[part], merged, block[0], own, limits[part], distances[part], indices[part]
            )

        work.run(prove, even_blocks(len(Q), len(Q), work.num_threads))
        rest = np.flatnonzero(~proven)
        if len(rest):
            own = None if exclude is None else exclude[rest]
            indices[rest] = self._exact.search(Q[rest], q_absmax, k, work, exclude=own)[1]
        return indices

    def _project(self, rows: Rows, start: int, stop: int, out: FloatArray | None = None) -> FloatArray:
        out = np.empty((stop - start, len(self._no_bias)), np.float32) if out is None else out
        project(rows, np.arange(start, stop, dtype=np.int32), self._panels, self._no_bias, out)
        return out

    def _stretch(self) -> float:
        """Bound how much longer a difference may be along the directions, these not being quite orthonormal."""
        directions = self._bounds.directions.astype(np.float64)
        gram = directions.T @ directions
        return float(np.sqrt(1.0 + np.linalg.norm(gram - np.eye(len(gram)))))

    def _limits(self, tile: FloatArray, q_absmax: float, longest: float) -> DoubleArray:
        """Return what `rescore_bounded` takes scores for, of each query: (b, 4), with what rounding does to them.

        A row y is rounded by at most 8 u |y| when it is made, u being 2^-24, and its coordinates by g(d) |V| |y|, with
        Frobenius' norm of the directions (see `score_error`); both happen to the point and to the query.
        """
        embedding, width = self._embedding, self._embedding.width
        size = 1.0 if embedding.metric == "cosine" else np.sqrt(width) * embedding.scale * embedding.absmax
        q_size = 1.0 if embedding.metric == "cosine" else np.sqrt(width) * embedding.scale * q_absmax
        center = float(np.linalg.norm(embedding.center.astype(np.float64)))
        g = (width + 8) * _UNIT / (1.0 - (width + 8) * _UNIT)
        each = g * (float(np.linalg.norm(self._bounds.directions.astype(np.float64))) + 1.0) + 8.0 * _UNIT
        norms = np.sqrt(np.einsum("ij,ij->i", tile, tile, dtype=np.float64))
        error = score_error("l2", tile.shape[1], norms, longest, 1.0)
        slack = 1.01 * each * (size + q_size + 2.0 * center)
        alike = np.full((len(tile), 3), (embedding.scale, self._stretch(), slack))
        return np.column_stack([alike, np.square(norms / 2.0) - error])
