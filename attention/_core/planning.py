"""What is decided about a head before its attention is computed: coordinates, cells, which keys are always near.

With the same plan, the output of a query depends on no key that it may not see.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dci._geometry.directions import product_directions, random_directions, score_directions
from dci._geometry.kmeans import assign_cells, cell_means, make_cells
from dci._native.kernels import LANES
from dci._native.rows import multiply
from dci._runtime.types import FloatArray, IdArray

from .._native.kd_order import kd_order
from ..embedding import embed_keys, embed_queries
from ..errors import InvalidValueError
from ..options import AttentionOptions

# To measure these anew, `python -m comparisons run --suite …`: attention_sensitivity for coordinates, attention_layers
# and attention_length for cells.
_SAMPLE = 2048  # rows that directions are fitted to
_SAMPLE_PER_CELL = 16  # keys that k-means sees
_CELL_COORDINATES = 16
_MOMENT_COORDINATES = 32
_OUTLIER_RATIO = 6.0  # times the mean squared distance to the own centre
_MOST_OUTLIERS = 64
# Strays: keys farther than so many times the mean squared distance of their cell, about so many times the root of the
# number of keys.
_STRAY_RATIO = 1.5
_STRAYS = 1.0
_PRIOR = 4  # keys at the mean distance of all that a cell's mean counts, beside those of the sample
_CELLS = 128  # for 16,384 keys and a tolerance of 0.05
_LEAST_CELLS, _MOST_CELLS = 32, 1024


@dataclass(frozen=True)
class HeadPlan:
    """Where the keys and queries of one head belong.

    Attributes
    ----------
    for_keys, for_queries : ndarray of shape (E, p), float32
        Coordinates in which distances are differences of scores, which keys and queries are grouped by.
    centers : ndarray of shape (C, p), float32
        Centres of the cells.
    references : ndarray of shape (C + 1, E), float32
        A key near the mean of each cell, for moments without cancellation.
    spread : (float, float)
        Mean squared distance of keys to their centre, in those coordinates, and to their cell's mean.
    outlier_ratio : float
        Times `spread` beyond which, by either distance, a key is an outlier and belongs to every near field.
    own_spread : ndarray of shape (C, 2), float32
        The same distances, cell by cell.
    stray_ratio : float
        Times `own_spread` beyond which a key is a stray, that is scored by itself.
    moments : (ndarray of shape (E, m), ndarray of shape (E, m)) or None
        Directions of the moments, for keys and for queries; None for the coordinates themselves.
    radius : float or None
        c of the published embedding, if keys and queries are grouped as T_K and T_Q have them.
    """

    for_keys: FloatArray
    for_queries: FloatArray
    centers: FloatArray
    references: FloatArray
    spread: tuple[float, float]
    outlier_ratio: float
    own_spread: FloatArray
    stray_ratio: float
    moments: tuple[FloatArray, FloatArray] | None
    radius: float | None

    def cells_of(self, key: FloatArray, value: FloatArray, sink: int, num_threads: int) -> tuple[IdArray, IdArray]:
        """Cell of every key, and C for the keys that belong to every near field, (S,) int32; strays, ascending."""
        cell_of, gap, rest = self._nearest(key, num_threads)
        own = self.own_spread[cell_of]
        stray = np.maximum(gap / own[:, 0], rest / own[:, 1]) > self.stray_ratio
        n_cells = len(self.centers)
        cell_of[self._outliers(gap, rest)] = n_cells
        cell_of[_outlier_values(value)] = n_cells
        cell_of[:sink] = n_cells
        return cell_of, np.flatnonzero(stray & (cell_of < n_cells)).astype(np.int32)

    def cells_of_more(self, key: FloatArray, value: FloatArray, bound: "ValueBound") -> IdArray:
        """Cells of some keys among others, (n,) int32, on the calling thread."""
        cell_of, gap, rest = self._nearest(key, 1)
        cell_of[self._outliers(gap, rest) | bound.is_beyond(value)] = len(self.centers)
        return cell_of

    def _nearest(self, key: FloatArray, num_threads: int) -> tuple[IdArray, FloatArray, FloatArray]:
        """Cells of keys, and their squared distances to the centre and to the mean."""
        cell_of, gap = assign_cells(self.place_keys(key), self.centers, num_threads)
        return cell_of, gap, row_norms(key - self.references[cell_of])

    def _outliers(self, gap: FloatArray, rest: FloatArray) -> npt.NDArray[np.bool_]:
        far: npt.NDArray[np.bool_] = np.maximum(gap / self.spread[0], rest / self.spread[1]) > self.outlier_ratio
        return far

    def place_keys(self, key: FloatArray) -> FloatArray:
        """Coordinates of keys, (S, p)."""
        if self.radius is not None:
            _finite(key, "key")
            longest = np.linalg.norm(key, axis=1, keepdims=True)
            key = embed_keys(key * np.minimum(1, self.radius / np.maximum(longest, self.radius)), self.radius * 1.0001)
        return _finite(multiply(key, self.for_keys), "key")

    def place_queries(self, query: FloatArray) -> FloatArray:
        """Coordinates of queries, (n, p)."""
        if self.radius is not None:
            query = embed_queries(_finite(query, "query"))
        return np.ascontiguousarray(_finite(multiply(query, self.for_queries), "query"))

    def order(self, query: FloatArray, block: int) -> IdArray:
        """k-d ordering of rows of queries, so that blocks of them are alike, (n,) int32."""
        return kd_order(self.place_queries(query), block)


@dataclass(frozen=True)
class ValueBound:
    """How far from the mean of a head's values one of them is no outlier.

    Attributes
    ----------
    mean : ndarray of shape (Ev,), float32
    most : float
        Squared distance; infinite where values are not finite.
    """

    mean: FloatArray
    most: float

    @classmethod
    def of(cls, sample: FloatArray, n_keys: int) -> "ValueBound":
        """From a sample (n, Ev) of the values of a head, of all of which about 64 at most are beyond."""
        with np.errstate(invalid="ignore", over="ignore"):
            mean = sample.mean(0)
            gap = row_norms(sample - mean)
            typical = float(gap.mean(dtype=np.float64))
            most = max(_OUTLIER_RATIO * typical, _quantile_beyond(gap, _MOST_OUTLIERS / n_keys))
        return cls(mean, most if np.isfinite(most) else np.inf)

    def is_beyond(self, value: FloatArray) -> npt.NDArray[np.bool_]:
        """Which values (n, Ev) are farther from the mean, (n,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            beyond: npt.NDArray[np.bool_] = row_norms(value - self.mean) > self.most
        return beyond


def _quantile_beyond(squares: FloatArray, share: float) -> float:
    """Return what about this share of the squares is beyond."""
    return float(np.quantile(squares, max(0.0, 1 - share)))


def make_plan(
    query: FloatArray, key: FloatArray, seen: float, scale: float, options: AttentionOptions, num_threads: int
) -> HeadPlan:
    """Plan from samples of the queries (n, E) and the keys (S, E) of a head; a query sees `seen` keys on average."""
    steps = plan_steps(query, key, seen, scale, options, num_threads)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            plan: HeadPlan = end.value
            return plan


def plan_steps(
    query: FloatArray,
    key: FloatArray,
    seen: float,
    scale: float,
    options: AttentionOptions,
    num_threads: int,
    more_cells: float = 1.0,
) -> Generator[int, None, HeadPlan]:
    """`make_plan` in steps; yields the work of each, in multiply-adds.

    There are `more_cells` times as many cells as a call without a cache has.
    """
    rng = np.random.default_rng(options.random_state)
    width = key.shape[1]
    n_cells = min(len(key), cells_for(seen, options.tolerance, more_cells))
    queries = _finite(query[_some(rng, len(query), _SAMPLE)], "query") * np.float32(scale)
    keys = _finite(key[_some(rng, len(key), max(_SAMPLE, _SAMPLE_PER_CELL * n_cells))], "key")
    centered = keys[:_SAMPLE] - keys.mean(0)
    yield 16 * (len(key) + len(keys) * width)  # memory is waited for
    radius = None
    if options.embedding == "random":  # the published reduction
        radius = max(float(np.linalg.norm(_finite(key, "key"), axis=1).max()), 1e-30)
        for_keys = for_queries = random_directions(width + 1, _CELL_COORDINATES, rng)
        coordinates = multiply(embed_keys(keys, radius * 1.0001), for_keys)
    else:
        for_keys, for_queries = score_directions(centered, queries, min(_CELL_COORDINATES, width))
        coordinates = multiply(keys, for_keys)
    decompositions = 2 * _SAMPLE * width**2 + 64 * width**3
    yield decompositions
    wanted = _MOMENT_COORDINATES if options.directions == "auto" else int(options.directions)
    moments = product_directions(centered, queries, wanted) if wanted < width else None
    yield decompositions
    centers = yield from make_cells(coordinates, n_cells, num_threads)
    cell_of, gap = assign_cells(coordinates, centers, num_threads)
    references = _references(keys, cell_of, n_cells)
    yield len(keys) * centers.size + 16 * keys.size
    rest = row_norms(keys - references[cell_of])
    spread = max(float(gap.mean()), _rounding(coordinates)), max(float(rest.mean()), _rounding(keys))
    ratios = np.maximum(gap / spread[0], rest / spread[1])
    own = np.stack([_own_means(x, cell_of, n_cells, mean) for x, mean in zip((gap, rest), spread, strict=True)], axis=1)
    # Keys that are not in the sample are farther from its centres.
    sizes = np.maximum(np.bincount(cell_of, minlength=n_cells), 2)[cell_of]
    own_ratios = np.maximum(gap / own[cell_of, 0], rest / own[cell_of, 1]) * (sizes + 1) / (sizes - 1)
    return HeadPlan(
        for_keys=for_keys,
        for_queries=for_queries,
        centers=centers,
        references=references,
        spread=spread,
        outlier_ratio=max(_OUTLIER_RATIO, _quantile_beyond(ratios, _MOST_OUTLIERS / len(key))),
        own_spread=own,
        stray_ratio=max(_STRAY_RATIO, float(np.quantile(own_ratios, max(0.0, 1 - _STRAYS / math.sqrt(len(key)))))),
        moments=moments,
        radius=radius,
    )


def cells_for(seen: float, tolerance: float, more: float = 1.0) -> int:
    """How many cells: about what the estimate of all of them costs, the keys of near ones cost too."""
    count = more * _CELLS * (seen / 16384) ** 0.4 * float(np.clip(0.05 / tolerance, 0.5, 1)) ** 0.6
    return int(np.clip(LANES * round(count / LANES), _LEAST_CELLS, _MOST_CELLS))


def _outlier_values(value: FloatArray) -> npt.NDArray[np.intp]:
    """Rows of values far from the mean of all, of which a cell's moments would say too little, at most 64."""
    with np.errstate(invalid="ignore", over="ignore"):  # values need not be finite
        mean = value[:: -(-len(value) // _SAMPLE)].mean(0)
        gap = row_norms(value) - 2 * np.einsum("ij,j->i", value, mean) + mean @ mean  # no copy of the values
        far = np.flatnonzero(gap > _OUTLIER_RATIO * float(gap.mean(dtype=np.float64)))
    return far[np.argsort(-gap[far], kind="stable")[:_MOST_OUTLIERS]]


def _own_means(squares: FloatArray, cell_of: IdArray, n_cells: int, mean: float) -> FloatArray:
    """Mean of each cell, (n_cells,), as if some more keys were in it that have the mean of all."""
    sums = np.bincount(cell_of, squares, n_cells) + _PRIOR * mean
    means: FloatArray = (sums / (np.bincount(cell_of, minlength=n_cells) + _PRIOR)).astype(np.float32)
    return means


def _rounding(rows: FloatArray) -> float:
    """Return a mean squared distance that rounding alone can make between equal rows, above zero."""
    finfo = np.finfo(np.float32)
    return float(8 * finfo.eps * row_norms(rows).mean(dtype=np.float64) + finfo.tiny)


def row_norms(rows: FloatArray) -> FloatArray:
    """Squared norms, (n,)."""
    norms: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return norms


def _some(rng: np.random.Generator, n: int, size: int) -> IdArray:
    chosen = rng.choice(n, size, replace=False) if size < n else rng.permutation(n)
    return chosen.astype(np.int32)


def _finite(rows: FloatArray, name: str) -> FloatArray:
    if not np.isfinite(rows).all():
        raise InvalidValueError(f"{name}: expected finite values, received NaN or infinity")
    return rows


def _references(keys: FloatArray, cell_of: IdArray, n_cells: int) -> FloatArray:
    """Mean key of each cell, zero for empty ones and for what follows the cells."""
    out = np.zeros((n_cells + 1, keys.shape[1]), np.float32)
    filled, means = cell_means(keys, cell_of, n_cells)
    out[filled] = means
    return out
